"""One image or row: predicted, judged, and its own files written."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from asterion_client.predict.calls import Rule, as_fitted, call_classes
from asterion_client.predict.inputs import Input, Member
from asterion_client.predict.outputs import Desk, parts_of, write_error_map, write_masks
from asterion_client.predict.results import CaseResult
from asterion_client.predict.uncertainty import (
    POSSIBLE,
    Opinions,
    segmentation_summary,
    spread_of,
)
from asterion_shared.cases import Predict
from asterion_shared.release.opening import ReleasedModel

if TYPE_CHECKING:
    # It needs astropy, which only a site of the sky has.
    from asterion_client.predict.sky_desk import SkyDesk

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """What every case of a folder is predicted with.

    Attributes:
        released: the model.
        rule: how a class is called.
        predict: its predictions, with its temperature.
        opinions: further ones.
        desk: where results go.
        sky: where catalogues go; None for what is no FITS image of 2 dimensions to be segmented.
    """

    released: ReleasedModel
    rule: Rule
    predict: Predict
    opinions: Opinions
    desk: Desk
    sky: "SkyDesk | None" = None


def judge_case(judge: Judge, member: Member, read: Input) -> CaseResult:
    """Predict one case and write the files that are its own.

    Raises:
        OrderRefusedError: ``diverged``: the network's output is not finite.
        UnreadableFileError: a file of the results cannot be made from the image's file.
        DiskProblemError: a file cannot be written.
    """
    (alone,) = judge.predict([read.case])
    judged: dict[str, Callable[[Judge, Member, Input, Floats], CaseResult]] = {
        "segmentation": _segmentation,
        "classification": _classification,
        "anomaly": _anomaly,
    }
    return judged[judge.released.plan.task](judge, member, read, alone)


def called_mask(judge: Judge, read: Input, alone: Floats) -> npt.NDArray[np.int16]:
    """Class numbers of a segmentation, on the stored grid."""
    fitted = as_fitted(alone, judge.released.temperature)
    mask = call_classes(fitted, judge.released.plan.data.classes, judge.rule.by_class)
    mask[_bad_points(read)] = 0
    return mask


def _bad_points(read: Input) -> npt.NDArray[np.bool_]:
    """What the file marks as bad; it was filled in for the network, and is no part of a result."""
    if read.raw is None:
        return np.zeros(read.case.native_shape, np.bool_)
    return np.asarray(~np.isfinite(read.raw.image).all(axis=0))


def _segmentation(judge: Judge, member: Member, read: Input, alone: Floats) -> CaseResult:
    plan = judge.released.plan
    mask = called_mask(judge, read, alone)
    spread = spread_of(judge.opinions.ask(read.case, member.id, alone))
    bad = _bad_points(read)
    alone[1:, bad], alone[0, bad], spread.entropy[bad] = 0.0, 1.0, 0.0
    uncertainty, disagreement, points = segmentation_summary(spread, alone)
    why = (
        f"mean entropy of the {points:,} points where an object is at least {POSSIBLE:.0%} probable"
    )
    if not mask.any():
        why = f"nothing was found; {why if points else 'the largest entropy of any point'}"
    files = write_masks(judge.desk, member, read, mask, spread, alone)
    if judge.sky is not None and read.raw is not None:
        files.append(judge.sky.write(judge.desk, member, read.raw, mask, alone))
    return CaseResult(
        id=member.id,
        parts=parts_of(mask, alone, read, plan),
        uncertainty=uncertainty,
        disagreement=_known(judge, disagreement),
        why=why,
        files=tuple(files),
    )


def _classification(judge: Judge, member: Member, read: Input, alone: Floats) -> CaseResult:
    names, limits = judge.released.plan.data.classes, judge.rule.by_class
    fitted = as_fitted(alone, judge.released.temperature)
    number = int(call_classes(fitted, names, limits))
    spread = spread_of(judge.opinions.ask(read.case, member.id, alone))
    order = [int(k) for k in np.argsort(-alone, kind="stable") if k != number]
    why = f"{names[number]} {alone[number]:.3f}, then {names[order[0]]} {alone[order[0]]:.3f}"
    near = next((k for k in (number, order[0]) if names[k] in limits), None)
    if near is not None:
        before = "" if judge.released.temperature == 1 else ", before the temperature"
        why += f"; {names[near]} is called from {limits[names[near]]:.3g} on{before}"
    return CaseResult(
        id=member.id,
        call=names[number],
        probabilities=tuple(float(p) for p in alone),
        points=_sides(judge, float(fitted[1])),
        uncertainty=float(spread.entropy),
        disagreement=_known(judge, float(spread.disagreement)),
        why=why,
    )


def _anomaly(judge: Judge, member: Member, read: Input, alone: Floats) -> CaseResult:
    plan = judge.released.plan
    normal, anomalous = plan.data.classes
    score = float(alone.mean(dtype=np.float64))
    limit = judge.rule.by_class.get(anomalous)
    uncertainty = None
    why = f"score {score:.4g}"
    if limit is not None:
        why += f", and {anomalous} is called from {limit:.4g} on"
    if judge.opinions.method != "single":
        maps = judge.opinions.ask(read.case, member.id, alone)
        scores = np.array([m.mean(dtype=np.float64) for m in maps])
        uncertainty = float(scores.std() / scores.mean()) if scores.mean() > 0 else 0.0
        least, most = scores.min(), scores.max()
        why += f"; the scores of {judge.opinions.words} run from {least:.4g} to {most:.4g}"
    return CaseResult(
        id=member.id,
        call="" if limit is None else anomalous if score >= limit else normal,
        score=score,
        points=_sides(judge, score),
        uncertainty=uncertainty,
        why=why,
        files=(write_error_map(judge.desk, member, read, alone),),
    )


def _sides(judge: Judge, score: float) -> tuple[tuple[str, bool], ...]:
    return tuple((name, score >= limit) for name, limit in sorted(judge.rule.points.items()))


def _known(judge: Judge, disagreement: float) -> float | None:
    return None if judge.opinions.method == "single" else disagreement
