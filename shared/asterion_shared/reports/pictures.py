"""Pictures of examples, so that a person can judge masks. Drawn only where the images are."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from asterion_shared.cases import Case, CaseList, Predict
from asterion_shared.plan import Plan
from asterion_shared.reports import drawing
from asterion_shared.reports.drawing import Array, Flags

WINDOW_PIXELS = 128
"""Side of the piece that is shown of a large field."""

MOST_CASES = 200
"""Cases that are looked at to find the best and the worst; of a longer list, evenly spread ones."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One example for a report.

    Attributes:
        title: what it stands for: ``Best of 12``.
        caption: what is seen, with the numbers.
        png: the picture as PNG.
    """

    title: str
    caption: str
    png: bytes


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A case, or a window of it, that may be shown; a higher score is a better prediction."""

    score: float
    case: int
    window: tuple[slice, ...] = ()


def draw_examples(
    plan: Plan, predict: Predict, cases: CaseList, max_pictures: int = 6
) -> list[Picture]:
    """Draw the best, the middle and the worst examples.

    Segmentation: image, outlines of truth and prediction, errors; by Dice. Of a volume the slice
    with the largest mask, of a large field a window. Classification: image and probabilities; by
    the probability of the true class. Anomaly: image and error map; by the share of the cases of
    the other class that it is ranked right against. The same cases give the same pictures.

    May be called only at a site or in a simulation: the pictures show the site's data.

    Args:
        plan: the plan of the run.
        predict: the model.
        cases: held-out cases; ones without truth are left out.
        max_pictures: most pictures, at least 1.

    Returns:
        Pictures from best to worst; none for a table, or when no case has truth.

    Raises:
        ValueError: ``max_pictures`` is below 1, or a prediction has another shape than its mask.
    """
    if max_pictures < 1:
        msg = f"max_pictures is {max_pictures}; it must be >= 1"
        raise ValueError(msg)
    if plan.data.kind == "table" or not len(cases):
        return []
    step = -(-len(cases) // MOST_CASES)
    numbers = list(range(0, len(cases), step))
    scored = _pairs(predict, (cases[number] for number in numbers))
    candidates = sorted(
        _CANDIDATES[plan.task](plan, zip(numbers, scored, strict=True)),
        key=lambda c: (-c.score, c.case, str(c.window)),
    )
    chosen = choose(len(candidates), max_pictures)
    wanted = sorted({candidates[index].case for _, index in chosen})
    again = dict(zip(wanted, _pairs(predict, (cases[n] for n in wanted)), strict=True))
    pictures = []
    for word, index in chosen:
        candidate = candidates[index]
        case, prediction = again[candidate.case]
        caption, png = _DRAW[plan.task](plan, case, prediction, candidate)
        title = f"{word} of {len(candidates)}" if len(candidates) > 1 else "The only example"
        pictures.append(Picture(title=title, caption=caption, png=png))
    return pictures


def choose(count: int, most: int) -> list[tuple[str, int]]:
    """Which of ``count`` ranked examples to show: best, middle and worst, in that order.

    >>> choose(10, 3)
    [('Best', 0), ('Middle', 5), ('Worst', 9)]
    >>> choose(2, 6)
    [('Best', 0), ('Worst', 1)]
    """
    if count <= most:
        picked = list(range(count))
    else:
        num_best, num_worst = -(-most // 3), (most + 1) // 3
        num_middle = most - num_best - num_worst
        start = min(max((count - num_middle + 1) // 2, num_best), count - num_worst - num_middle)
        middle = range(start, start + num_middle)
        picked = [*range(num_best), *middle, *range(count - num_worst, count)]
    third = len(picked) / 3
    words = ["Best" if i < third else "Worst" if i >= 2 * third else "Middle"
             for i in range(len(picked))]  # fmt: skip
    if len(picked) == 2:
        words = ["Best", "Worst"]
    return list(zip(words, picked, strict=True))


def dice(truth: Flags, prediction: Flags) -> float:
    """Overlap of two masks of one shape, in [0, 1]; 1 when both are empty."""
    size = int(truth.sum()) + int(prediction.sum())
    return 1.0 if size == 0 else 2.0 * int((truth & prediction).sum()) / size


def _pairs(predict: Predict, cases: Iterable[Case]) -> Iterator[tuple[Case, Array]]:
    """Each case with its prediction; a case is read once, and kept until it is answered."""
    waiting: deque[Case] = deque()

    def feed() -> Iterator[Case]:
        for case in cases:
            waiting.append(case)
            yield case

    for prediction in predict(feed()):
        yield waiting.popleft(), prediction


Scored = Iterable[tuple[int, tuple[Case, Array]]]


def _truth(case: Case) -> npt.NDArray[np.int16] | None:
    return case.native_mask if case.native_mask is not None else case.mask


def _segmentation_candidates(plan: Plan, scored: Scored) -> list[_Candidate]:
    candidates: list[tuple[int, _Candidate]] = []
    for number, (case, probabilities) in scored:
        truth = _truth(case)
        if truth is None:
            continue
        if probabilities.shape[1:] != truth.shape:
            msg = (
                f"the prediction for case {case.id} has shape {probabilities.shape[1:]} and its "
                f"mask {truth.shape}; predict on the native grid"
            )
            raise ValueError(msg)
        predicted = probabilities.argmax(axis=0)
        for window in windows(truth.shape):
            t, p = truth[window], predicted[window]
            size = int((t > 0).sum())
            if window and size == 0 and not (p > 0).any():
                continue
            score = float(np.mean(_dice_by_class(plan, t, p)))
            candidates.append((size, _Candidate(score, number, window)))
    if any(c.window for _, c in candidates):
        # Of a field's windows only the fuller half: one faint dot tells a person little.
        middle = float(np.median([size for size, _ in candidates]))
        return [c for size, c in candidates if size >= middle]
    return [c for _, c in candidates]


def windows(shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """Square windows that tile a large field; one empty tuple, the whole, for anything else."""
    if len(shape) != 2 or max(shape) <= WINDOW_PIXELS * 3 // 2:
        return [()]
    starts = [
        sorted(
            {min(start, max(size - WINDOW_PIXELS, 0)) for start in range(0, size, WINDOW_PIXELS)}
        )
        for size in shape
    ]
    return [
        (slice(y, y + WINDOW_PIXELS), slice(x, x + WINDOW_PIXELS))
        for y in starts[0]
        for x in starts[1]
    ]


def _dice_by_class(
    plan: Plan, truth: npt.NDArray[np.int16], predicted: npt.NDArray[np.int64]
) -> list[float]:
    known = truth >= 0
    return [
        dice((truth == number) & known, (predicted == number) & known)
        for number in range(1, len(plan.data.classes))
    ]


def _draw_segmentation(
    plan: Plan, case: Case, probabilities: Array, candidate: _Candidate
) -> tuple[str, bytes]:
    truth = _truth(case)
    if truth is None:  # it was chosen for its truth
        raise TypeError(case.id)
    predicted = probabilities.argmax(axis=0)
    scores = _dice_by_class(plan, truth[candidate.window], predicted[candidate.window])
    each = ", ".join(
        f"{name} {score:.2f}" for name, score in zip(plan.data.classes[1:], scores, strict=True)
    )
    caption = f"Dice {candidate.score:.2f}" + (f" ({each})" if len(scores) > 1 else "")
    cut: drawing.Cut = candidate.window
    where = ""
    if candidate.window:
        rows, columns = candidate.window
        where = f", rows {rows.start}-{rows.stop}, columns {columns.start}-{columns.stop}"
    elif truth.ndim == 3:
        cut, place = drawing.fullest_slice(truth if (truth > 0).any() else predicted,
                                           case.native_spacing)  # fmt: skip
        where = f"; the Dice is of the volume, shown is {place}"
    view = drawing.view(plan, case, truth.shape, cut)
    png = drawing.segmentation(view, truth[cut], predicted[cut], len(plan.data.classes))
    return f"{caption}{where}. {view.words}Case {case.id}.", png


def _classification_candidates(plan: Plan, scored: Scored) -> list[_Candidate]:
    return [
        _Candidate(float(probabilities[case.label]), number)
        for number, (case, probabilities) in scored
        if 0 <= case.label < len(plan.data.classes)
    ]


def _draw_classification(
    plan: Plan, case: Case, probabilities: Array, candidate: _Candidate
) -> tuple[str, bytes]:
    names, predicted = plan.data.classes, int(probabilities.argmax())
    right = "right" if predicted == case.label else "wrong"
    view = drawing.view(plan, case, case.image.shape[1:], drawing.middle_slice(case))
    png = drawing.classification(view, names, case.label, probabilities)
    return (
        f"Truth: {names[case.label]}; predicted: {names[predicted]} with probability "
        f"{probabilities[predicted]:.2f} ({right}). {view.words}Case {case.id}."
    ), png


def _anomaly_candidates(plan: Plan, scored: Scored) -> list[_Candidate]:
    known = [
        (number, case.label, float(error.mean()))
        for number, (case, error) in scored
        if case.label >= 0
    ]
    normal = np.array([score for _, label, score in known if label == 0])
    odd = np.array([score for _, label, score in known if label > 0])

    if not (len(normal) and len(odd)):
        # Nothing to be ranked against: the smallest error stands for the best prediction.
        return [_Candidate(-1 - score, number) for number, _, score in known]

    def ranked_right(label: int, score: float) -> float:
        others = normal if label > 0 else odd
        right = others < score if label > 0 else others > score
        return float(right.mean())

    return [_Candidate(ranked_right(label, score), number) for number, label, score in known]


def _draw_anomaly(plan: Plan, case: Case, error: Array, candidate: _Candidate) -> tuple[str, bytes]:
    kind = plan.data.classes[1 if case.label > 0 else 0]
    other = plan.data.classes[0 if case.label > 0 else 1]
    side = "above" if case.label > 0 else "below"
    cut = drawing.middle_slice(case)
    if case.mask is not None and case.mask.ndim == 3 and (case.mask > 0).any():
        cut, _ = drawing.fullest_slice(case.mask, case.native_spacing)
    view = drawing.view(plan, case, case.image.shape[1:], cut)
    mask = None if case.mask is None else case.mask[cut]
    png = drawing.anomaly(view, error[cut], mask)
    # Below 0 it is no share: the site has no case of the other class to compare with.
    beside = f", {side} that of {candidate.score:.0%} of the cases that are {other}"
    return (
        f"Truth: {kind}. Score (mean squared error) {error.mean():.3g}"
        f"{beside if candidate.score >= 0 else ''}. {view.words}Case {case.id}."
    ), png


_CANDIDATES = {
    "segmentation": _segmentation_candidates,
    "classification": _classification_candidates,
    "anomaly": _anomaly_candidates,
}
_DRAW = {
    "segmentation": _draw_segmentation,
    "classification": _draw_classification,
    "anomaly": _draw_anomaly,
}
