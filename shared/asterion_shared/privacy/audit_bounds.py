"""Lower bounds on epsilon from a repeated game: what its guesses refute, with confidence.

A proof bounds epsilon from above, an attack from below. Where the two cross, the proof does not
describe the code. In a repeated game (Jagielski, Ullman and Oprea 2020,
https://arxiv.org/abs/2006.07709) the mechanism runs often with one canary and often without; the
rates of wrong guesses are bounded after Clopper and Pearson 1934. For many canaries in one run see
:mod:`asterion_shared.privacy.audit_curve`.

Nothing here looks at data or draws at random.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]

CHOOSING_SHARE = 0.25
"""Share of the games that choose the threshold; the others measure it."""

MOST_THRESHOLDS = 2000
"""Thresholds that are compared."""


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
        confidence: in (0, 1). A mechanism that is (epsilon, delta)-private gives a bound above
            epsilon with probability at most ``1 - confidence``.

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


def _check_delta(delta: float) -> None:
    if not 0 <= delta < 1:
        msg = f"delta is {delta}; give a number in [0, 1)"
        raise ValueError(msg)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        msg = f"confidence is {confidence}; give a number in (0, 1), such as 0.95"
        raise ValueError(msg)
