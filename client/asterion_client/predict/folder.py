"""Predict every image or row of a folder, one at a time."""

import hashlib
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from asterion_client.data.raw_image import UnreadableFileError
from asterion_client.predict.calls import decision_rule, predicting_network
from asterion_client.predict.dicom_masks import Author
from asterion_client.predict.explanations import refuse_unexplained, write_explanations
from asterion_client.predict.fhir import write_observations
from asterion_client.predict.inputs import Member, read_member
from asterion_client.predict.one_case import Judge, judge_case
from asterion_client.predict.outputs import Desk
from asterion_client.predict.results import (
    CaseResult,
    write_parts,
    write_predictions,
    write_review,
)
from asterion_client.predict.uncertainty import choose_opinions
from asterion_client.settings import SiteDataSettings
from asterion_shared import __version__
from asterion_shared.errors import OrderRefusedError, UserInputError
from asterion_shared.files import make_folder
from asterion_shared.release.facts import FACTS
from asterion_shared.release.opening import ReleasedModel
from asterion_shared.table_columns import Scale
from asterion_shared.tasks.prediction import model_predictor


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What to predict, with what, and where to.

    Attributes:
        released: the model that predicts.
        others: further releases that say how sure it is.
        members: what to predict, at least one.
        settings: how the files are read.
        out: the folder of results; new or empty.
        scale: of the features of a table; None for images.
        samples: of dropout, a case.
        explain: pictures of where the classifier looked.
        pictures: of the least certain images, with what was predicted.
        reference: a catalogue of the sky to compare with.
        radius_arcsec: how near a match is; None: 1 arcsec or 2 pixels, whichever is wider.
        smallest_pixels: sources of the sky with fewer are in no catalogue.
        device: ``cpu`` or ``cuda[:N]``.
    """

    released: ReleasedModel
    others: Sequence[ReleasedModel] = ()
    members: Sequence[Member]
    settings: SiteDataSettings
    out: Path
    scale: Scale | None = None
    samples: int = 20
    explain: int = 0
    pictures: int = 0
    reference: Path | None = None
    radius_arcsec: float | None = None
    smallest_pixels: int = 1
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What became of a folder.

    Attributes:
        results: in the order of the members.
        skipped: member and reason of those that could not be predicted.
        facts: of ``summary.json``, but for what the caller knows alone.
    """

    results: tuple[CaseResult, ...]
    skipped: tuple[tuple[str, str], ...]
    facts: dict[str, Any]


def predict_members(task: Task, on_case: Callable[[int], None]) -> Predicted:
    """Predict one case after the other and write all results but ``summary.json``.

    A file that cannot be used is skipped and named with its reason; the others go on.

    Args:
        task: what to do.
        on_case: is told after each case how many are done.

    Raises:
        PlanMismatchError: the releases do not fit together.
        UserInputError: an option that the release is not for.
        FileProblemError: the reference is no catalogue.
        DiskProblemError: the disk is full or not writable.
    """
    released, plan = task.released, task.released.plan
    sky = None
    if task.settings.format == "fits" and plan.task == "segmentation" and plan.data.dimensions == 2:
        from asterion_client.predict.sky_desk import sky_desk

        sky = sky_desk(task.reference, task.radius_arcsec, task.smallest_pixels)
    elif task.reference is not None:
        msg = "--reference is for the segmentation of FITS images; leave it out"
        raise UserInputError(msg)
    if task.explain:
        refuse_unexplained(plan)
    opinions = choose_opinions(released, task.others, task.samples, task.device)
    author = Author(released.facts.name, str(released.facts.version), __version__)
    desk = Desk(out=task.out, settings=task.settings, plan=plan, author=author)
    network = predicting_network(released).to(task.device)
    judge = Judge(
        released=released,
        rule=decision_rule(released),
        predict=model_predictor(network, plan, task.device),
        opinions=opinions,
        desk=desk,
        sky=sky,
    )
    make_folder(task.out, 0o700)
    results: list[CaseResult] = []
    skipped: list[tuple[str, str]] = []
    for number, member in enumerate(task.members, start=1):
        try:
            read = read_member(member, task.settings, plan, task.scale)
            results.append(judge_case(judge, member, read))
        except (UnreadableFileError, OrderRefusedError) as error:
            skipped.append((member.id, str(error)))
        except (RuntimeError, MemoryError) as error:  # of torch: too small for it, or too large
            why = (
                f"the network cannot take it, shape too small or too large ({type(error).__name__})"
            )
            skipped.append((member.id, why))
        on_case(number)
    notes = []
    by_id = {member.id: member for member in task.members}
    if task.pictures and results and plan.data.kind == "image":
        from asterion_client.predict.pictures import write_pictures

        notes += write_pictures(judge, by_id, results, task.pictures)
    if task.explain and results:
        network.to("cpu")
        notes += write_explanations(desk, released, by_id, results, task.explain)
    write_review(task.out / "review.csv", results, opinions)
    if plan.task == "segmentation":
        write_parts(task.out / "segments.csv", results)
    else:
        write_predictions(task.out / "predictions.csv", results, plan.data.classes)
        now = datetime.now(UTC)
        sha256 = release_sha256(released)
        write_observations(task.out / "observations.json", results, released, sha256, now)
    facts: dict[str, Any] = {
        "uncertainty": {"method": opinions.method, "count": opinions.count, "how": opinions.words},
        "called_by": judge.rule.words,
        "notes": notes,
    }
    if sky is not None:
        facts["sources"] = sky.num_sources
        facts["smallest_pixels"] = task.smallest_pixels
        facts["images_without_coordinates"] = sky.num_without
        facts["reference"] = sky.comparison()
    return Predicted(results=tuple(results), skipped=tuple(skipped), facts=facts)


def release_sha256(released: ReleasedModel) -> str:
    """SHA-256 of ``release.json``, which has the hash of every other file of a release."""
    return hashlib.sha256((released.folder / FACTS).read_bytes()).hexdigest()


def release_words(released: ReleasedModel) -> dict[str, Any]:
    """What ``summary.json`` says of a release."""
    facts = released.facts
    return {
        "name": facts.name,
        "version": facts.version,
        "maturity": facts.maturity,
        "sha256": release_sha256(released),
        "plan_sha256": facts.plan_sha256,
    }


def program_versions() -> dict[str, str]:
    """Versions of what predicted."""
    return {
        "asterion": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
