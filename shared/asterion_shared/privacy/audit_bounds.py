"""Lower bounds on epsilon from an attack's guesses: what the attack refutes, with confidence.

A proof bounds epsilon from above, an attack from below. Where the two cross, the proof does not
describe the code. Two ways to count guesses:

- *One run* (Steinke, Nasr and Jagielski 2023, https://arxiv.org/abs/2305.08846): many canaries,
  each included by its own fair coin, guessed from a single output.
- *A repeated game* (Jagielski, Ullman and Oprea 2020, https://arxiv.org/abs/2006.07709): the
  mechanism runs often with one canary and often without; the rates of wrong guesses are bounded
  after Clopper and Pearson 1934.

Nothing here looks at data or draws at random.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]
Coins = npt.NDArray[np.bool_]

CHOOSING_SHARE = 0.25
"""Share of the games that choose the threshold; the others measure it."""

MOST_THRESHOLDS = 2000
"""Thresholds that are compared."""

_HALVINGS = 60
"""Of the interval that holds a bound; it is at most a few tens long."""


def one_run_p_value(
    num_canaries: int, num_guesses: int, num_right: int, epsilon: float, delta: float
) -> float:
    """Most probable it is that so many guesses are right under (epsilon, delta).

    Steinke, Nasr and Jagielski 2023, theorem 5.2 with the constants of corollary 5.4. With ``B``
    binomial of ``r`` guesses and chance ``q = 1 / (1 + exp(-epsilon))``:

        p = P[B >= v] + 2 m delta max_{i >= 1} P[v > B >= v - i] / i.

    Beyond ``i = v`` the last probability grows no more, so the maximum is among the first ``v``.

    Args:
        num_canaries: m, each included by a fair coin of its own; at least 0.
        num_guesses: r of them that were guessed at, 0 to m. Which and how many may depend on the
            output, but ``r`` must be fixed before it is seen.
        num_right: v of the guesses that were right, 0 to r.
        epsilon: finite, at least 0.
        delta: in [0, 1).

    Returns:
        In [0, 1]; 1 without a guess.

    Raises:
        ValueError: an argument is outside its range.
    """
    _check_guesses(num_canaries, num_guesses, num_right, delta)
    if not 0 <= epsilon < math.inf:
        msg = f"epsilon is {epsilon}; give a finite number of at least 0"
        raise ValueError(msg)
    chance = float(special.expit(epsilon))
    if num_right == 0:
        return 1.0
    tail = float(special.betainc(num_right, num_guesses - num_right + 1, chance))
    below = np.arange(num_right - 1, -1, -1)
    probabilities = np.exp(
        special.gammaln(num_guesses + 1)
        - special.gammaln(below + 1)
        - special.gammaln(num_guesses - below + 1)
        + special.xlogy(below, chance)
        + (num_guesses - below) * special.log_expit(-epsilon)
    )
    share = float((probabilities.cumsum() / np.arange(1, num_right + 1)).max())
    return min(1.0, tail + 2 * num_canaries * delta * share)


def one_run_bound(
    num_canaries: int, num_guesses: int, num_right: int, delta: float, confidence: float
) -> float:
    """Largest epsilon that the guesses of one run refute.

    Args:
        num_canaries: as for :func:`one_run_p_value`, and so the next three.
        num_guesses: see there.
        num_right: see there.
        delta: see there.
        confidence: in (0, 1). A mechanism that is (epsilon, delta)-private gives a bound above
            epsilon with probability at most ``1 - confidence``.

    Returns:
        At least 0; 0 when nothing is refuted, and without a guess.

    Raises:
        ValueError: an argument is outside its range.
    """
    _check_guesses(num_canaries, num_guesses, num_right, delta)
    _check_confidence(confidence)
    if num_guesses == 0:
        return 0.0
    level = 1 - confidence

    def refuted(epsilon: float) -> bool:
        return one_run_p_value(num_canaries, num_guesses, num_right, epsilon, delta) < level

    if not refuted(0.0):
        return 0.0
    # With every guess right and delta 0 the p-value is q^r, which is the level here.
    low, high = 0.0, -math.log(math.expm1(-math.log(level) / num_guesses))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def count_right(scores: Floats, included: Coins, num_guesses: int) -> int:
    """Guess "included" of the highest half of the guesses, "not" of the lowest, and compare.

    Args:
        scores: float ``(m,)``, higher where a canary looks included; ties go by position.
        included: bool ``(m,)``, the coins.
        num_guesses: even, 0 to m.

    Returns:
        How many guesses were right, 0 to ``num_guesses``.

    Raises:
        ValueError: shapes differ, or ``num_guesses`` is odd or outside its range.
    """
    if scores.shape != included.shape or scores.ndim != 1:
        msg = f"scores have shape {scores.shape} and coins {included.shape}; give one coin a score"
        raise ValueError(msg)
    if num_guesses % 2 or not 0 <= num_guesses <= scores.size:
        msg = f"num_guesses is {num_guesses}; give an even number from 0 to {scores.size}"
        raise ValueError(msg)
    order, half = np.argsort(scores, kind="stable"), num_guesses // 2
    lowest, highest = order[:half], order[scores.size - half :]
    return int(included[highest].sum() + (~included[lowest]).sum())


def planned_guesses(num_canaries: int, deviation: float, delta: float, confidence: float) -> int:
    """How many guesses promise the largest bound, before any score is seen.

    For scores from N(0, deviation^2) without and N(1, deviation^2) with the canary, as those of a
    Gaussian mechanism are. Where they are otherwise the bound still holds, and may be smaller.

    Args:
        num_canaries: at least 0.
        deviation: above 0: the noise over what a canary adds.
        delta: in [0, 1).
        confidence: in (0, 1).

    Returns:
        Even, 0 to ``num_canaries``; 0 for fewer than two canaries.

    Raises:
        ValueError: an argument is outside its range.
    """
    _check_guesses(num_canaries, 0, 0, delta)
    _check_confidence(confidence)
    if not 0 < deviation < math.inf:
        msg = f"deviation is {deviation}; give a finite number above 0"
        raise ValueError(msg)
    best, most = 0, -1.0
    halves = np.geomspace(1, max(1, num_canaries // 2), 50)
    for half in sorted({int(size) for size in halves if 2 * size <= num_canaries}):
        right = math.floor(2 * half * _accuracy(half / num_canaries, deviation))
        bound = one_run_bound(num_canaries, 2 * half, right, delta, confidence)
        if bound >= most:
            best, most = 2 * half, bound
    return best


def _accuracy(share: float, deviation: float) -> float:
    """Of "included", said of the highest ``share`` <= 1/2 of scores from both Gaussians."""

    def above(edge: float) -> tuple[float, float]:
        without, including = special.ndtr([-edge / deviation, (1 - edge) / deviation])
        return float(without), float(including)

    low, high = 0.5, 1.0 + deviation * 30
    for _ in range(_HALVINGS):
        edge = (low + high) / 2
        low, high = (edge, high) if sum(above(edge)) / 2 > share else (low, edge)
    without, including = above(low)
    return including / (without + including)


def rate_limit(num_wrong: int, num_games: int, confidence: float) -> float:
    """Upper confidence limit of a rate (Clopper and Pearson 1934, one-sided).

    Args:
        num_wrong: 0 to ``num_games``.
        num_games: at least 0.
        confidence: in (0, 1).

    Returns:
        In (0, 1]; 1 without a game.

    Raises:
        ValueError: an argument is outside its range.
    """
    if not 0 <= num_wrong <= num_games:
        msg = f"{num_wrong} of {num_games} games were wrong; give 0 <= wrong <= games"
        raise ValueError(msg)
    _check_confidence(confidence)
    return float(_limits(np.array([num_wrong]), num_games, confidence)[0])


def game_bound(
    num_false_alarms: int,
    num_without: int,
    num_missed: int,
    num_with: int,
    delta: float,
    confidence: float,
) -> float:
    """Epsilon that a repeated game refutes, from its two kinds of wrong guesses.

    ``max(ln((1 - delta - FPR) / FNR), ln((1 - delta - FNR) / FPR))`` with both rates at their upper
    limits, which hold together with ``confidence`` (Kairouz, Oh and Viswanath 2015, theorem 2.1;
    Nasr et al. 2021, https://arxiv.org/abs/2101.04535). The rule of the guess must have been
    fixed before these games were looked at.

    Args:
        num_false_alarms: games without the canary in which it was seen.
        num_without: games without it.
        num_missed: games with the canary in which it was not seen.
        num_with: games with it.
        delta: in [0, 1).
        confidence: in (0, 1), as for :func:`one_run_bound`.

    Returns:
        At least 0; 0 without games of either kind.

    Raises:
        ValueError: an argument is outside its range.
    """
    _check_delta(delta)
    single = 1 - (1 - confidence) / 2
    alarms = rate_limit(num_false_alarms, num_without, single)
    missed = rate_limit(num_missed, num_with, single)
    return float(_refuted(np.array([alarms]), np.array([missed]), delta)[0])


def game_bound_of_scores(
    without: Floats, with_canary: Floats, delta: float, confidence: float
) -> float:
    """The bound of a repeated game whose guess is "score at least a threshold".

    The first quarter of the games (:data:`CHOOSING_SHARE`) chooses the threshold that would refute
    most; only the others are counted.

    Args:
        without: float ``(n,)``, finite scores of independent games without the canary.
        with_canary: float ``(k,)``, those with it, higher where the attack works.
        delta: in [0, 1).
        confidence: in (0, 1).

    Returns:
        At least 0; 0 without games.

    Raises:
        ValueError: an argument is outside its range, or a score is not finite.
    """
    _check_delta(delta)
    _check_confidence(confidence)
    if not (np.isfinite(without).all() and np.isfinite(with_canary).all()):
        msg = "a score is not finite; check the attack that made it"
        raise ValueError(msg)
    first, rest = _parted(without)
    first_with, rest_with = _parted(with_canary)
    if first.size == 0 or first_with.size == 0:
        return 0.0
    threshold = _best_threshold(first, first_with, delta, confidence)
    return game_bound(
        int((rest >= threshold).sum()),
        rest.size,
        int((rest_with < threshold).sum()),
        rest_with.size,
        delta,
        confidence,
    )


def _parted(scores: Floats) -> tuple[Floats, Floats]:
    first = math.floor(scores.size * CHOOSING_SHARE)
    return scores[:first], scores[first:]


def _best_threshold(without: Floats, with_canary: Floats, delta: float, confidence: float) -> float:
    """One of the scores.

    The limits are those of these few games, so that rates that rest on a handful do not win.
    """
    scores = np.unique(np.concatenate([without, with_canary]))
    places = np.linspace(0, scores.size - 1, min(scores.size, MOST_THRESHOLDS)).astype(np.int64)
    candidates = scores[places]
    alarms = without.size - np.searchsorted(np.sort(without), candidates)
    missed = np.searchsorted(np.sort(with_canary), candidates)
    single = 1 - (1 - confidence) / 2
    bounds = _refuted(
        _limits(alarms, without.size, single), _limits(missed, with_canary.size, single), delta
    )
    return float(candidates[int(bounds.argmax())])


def _limits(num_wrong: npt.NDArray[np.int64], num_games: int, confidence: float) -> Floats:
    right = num_games - num_wrong
    limits = special.betaincinv(num_wrong + 1.0, np.maximum(right, 1.0), confidence)
    return np.where(right == 0, 1.0, limits)


def _refuted(alarms: Floats, missed: Floats, delta: float) -> Floats:
    """``alarms`` and ``missed`` above 0: upper limits of both rates."""
    one = np.maximum(1 - delta - alarms, 0) / missed
    other = np.maximum(1 - delta - missed, 0) / alarms
    return np.asarray(np.log(np.maximum(np.maximum(one, other), 1.0)))


def _check_guesses(num_canaries: int, num_guesses: int, num_right: int, delta: float) -> None:
    if not 0 <= num_right <= num_guesses <= num_canaries:
        msg = (
            f"{num_right} of {num_guesses} guesses about {num_canaries} canaries were right; give "
            "0 <= right <= guesses <= canaries"
        )
        raise ValueError(msg)
    _check_delta(delta)


def _check_delta(delta: float) -> None:
    if not 0 <= delta < 1:
        msg = f"delta is {delta}; give a number in [0, 1)"
        raise ValueError(msg)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        msg = f"confidence is {confidence}; give a number in (0, 1), such as 0.95"
        raise ValueError(msg)
