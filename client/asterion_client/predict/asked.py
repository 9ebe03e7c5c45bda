"""What the command was asked, carried out: settings read, releases opened, words at the end."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from asterion_client.data.site_data import scale_at_site
from asterion_client.predict.folder import (
    Predicted,
    Task,
    predict_members,
    program_versions,
    release_words,
)
from asterion_client.predict.inputs import (
    choose_settings,
    find_members,
    missing_features,
    unscaled_features,
)
from asterion_client.predict.results import by_certainty
from asterion_client.settings import SiteSettings, read_site_settings
from asterion_shared.errors import DataProblemError, FileProblemError, UserInputError
from asterion_shared.files import write_atomically
from asterion_shared.plan import Plan
from asterion_shared.release.opening import ReleasedModel, open_release
from asterion_shared.settings_files import Positive, Settings
from asterion_shared.table_columns import Scale

SUMMARY = "summary.json"
SKIPPED_CODE = DataProblemError.exit_code
"""How the command ends when a file was skipped, and the others were predicted."""

LEAST_CERTAIN = 3
"""Cases that the terminal names."""


class Asked(Settings):
    """The options of ``asterion site predict``."""

    release: Path
    folder: Path
    out: Path
    site: Path | None = None
    others: tuple[Path, ...] = ()
    key: Path | None = None
    format: str | None = None
    samples: Annotated[int, Field(ge=0, le=1000)] = 20
    explain: Annotated[int, Field(ge=0, le=10_000)] = 0
    pictures: Annotated[int, Field(ge=0, le=10_000)] = 50
    reference: Path | None = None
    radius_arcsec: Positive | None = None
    smallest_pixels: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    device: str | None = None
    as_json: bool = False


def carry_out(asked: Asked, network: str) -> int:
    """Predict, write ``summary.json`` last, and say how it went.

    Args:
        asked: by the command.
        network: how the network was closed.

    Returns:
        0, or :data:`SKIPPED_CODE` when a file was skipped.

    Raises:
        AsterionError: nothing could be predicted at all; of the kind that says why.
    """
    import torch

    _refuse_used(asked.out, asked.folder)
    site = read_site_settings(asked.site) if asked.site is not None else None
    if site is not None:
        torch.set_num_threads(site.compute.threads)
    released = open_release(asked.release, asked.key)
    others = [open_release(folder, asked.key) for folder in asked.others]
    plan = released.plan
    settings = choose_settings(asked.folder, plan, site.data if site else None, asked.format)
    members = find_members(asked.folder, settings, plan)
    notes, scale = [], None
    if plan.data.kind == "table":
        scale = _scale(asked, site, plan)
        missing = sorted(missing_features(members, settings, plan))
        if missing:
            notes.append(f"columns that a table lacks count as missing: {', '.join(missing)}")
    if asked.key is None:
        notes.append("who signed the release was not checked: name the public key with --key")
    task = Task(
        released=released,
        others=others,
        members=members,
        settings=settings,
        out=asked.out,
        scale=scale,
        samples=asked.samples,
        explain=asked.explain,
        pictures=asked.pictures,
        reference=asked.reference,
        radius_arcsec=asked.radius_arcsec,
        smallest_pixels=asked.smallest_pixels,
        device=asked.device or (site.compute.device if site is not None else "cpu"),
    )
    predicted = predict_members(task, _progress(len(members)))
    summary = _summary(asked, task, predicted, network, notes)
    text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(asked.out / SUMMARY, text.encode())
    if asked.as_json:
        _say(text)
    else:
        _say(*closing_words(released, asked.out, predicted, summary))
    return SKIPPED_CODE if predicted.skipped else 0


def _refuse_used(out: Path, folder: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileProblemError(out, "is there already", "choose a new folder for the results")
    if out.resolve().is_relative_to(folder.resolve()):
        what = f"lies in {folder}, where its masks would be taken for images the next time"
        raise FileProblemError(out, what, "choose a folder beside it")


def _scale(asked: Asked, site: SiteSettings | None, plan: Plan) -> Scale:
    """As in training: the plan's figures, and else those of the site's own training rows."""
    unscaled = sorted(unscaled_features(plan))
    if site is not None and asked.site is not None:
        return scale_at_site(site, asked.site.resolve().parent, plan)
    if unscaled:
        msg = (
            f"the plan gives no mean and deviation of {', '.join(unscaled)}, so that each site "
            "took those of its own training rows; name them with --site SITE_TOML"
        )
        raise UserInputError(msg)
    import numpy as np

    from asterion_shared.table_columns import scale_of

    return scale_of(np.empty((0, len(plan.data.features))), plan.data)


def _progress(count: int) -> Any:
    """Counts on a terminal, on standard error; silent elsewhere."""
    if not sys.stderr.isatty():
        return lambda _: None

    def told(done: int) -> None:
        end = "\n" if done == count else ""
        print(f"\r{done:,} of {count:,}", end=end, file=sys.stderr, flush=True)  # noqa: T201

    return told


def _summary(
    asked: Asked, task: Task, predicted: Predicted, network: str, notes: list[str]
) -> dict[str, Any]:
    released, plan = task.released, task.released.plan
    logits = plan.task != "anomaly"
    return {
        "format": 1,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "release": release_words(released),
        "signer_checked": asked.key is not None,
        "other_releases": [release_words(other) for other in task.others],
        "versions": program_versions(),
        "network": network,
        "task": plan.task,
        "classes": list(plan.data.classes),
        "data_format": task.settings.format,
        "temperature": released.temperature if logits else None,
        "thresholds": released.thresholds,
        **predicted.facts,
        "notes": [*notes, *predicted.facts["notes"]],
        "predicted": len(predicted.results),
        "files": [{"file": r.id, "results": list(r.files)} for r in predicted.results],
        "skipped": [{"file": name, "reason": why} for name, why in predicted.skipped],
    }


def closing_words(
    released: ReleasedModel, out: Path, predicted: Predicted, summary: dict[str, Any]
) -> list[str]:
    """What the command says at its end, line by line."""
    done, skipped = len(predicted.results), len(predicted.skipped)
    facts = released.facts
    lines = [f"predicted {done:,} of {done + skipped:,} with {facts.name} version {facts.version} "
             f"({facts.maturity}); the network was {summary['network']}"]  # fmt: skip
    if skipped:
        first = predicted.skipped[0]
        lines.append(f"skipped {skipped:,}, the first because {first[1]}; all in {SUMMARY}")
    lines += _reference_words(summary.get("reference"))
    if predicted.results:
        lines.append(f"how sure: by {summary['uncertainty']['how']}; to be looked at first:")
        width = max(len(r.id) for r in by_certainty(predicted.results)[:LEAST_CERTAIN])
        for result in by_certainty(predicted.results)[:LEAST_CERTAIN]:
            value = "     " if result.uncertainty is None else f"{result.uncertainty:5.3f}"
            lines.append(f"  {result.id:{width}}  {value}  {result.why}")
    lines += [f"note: {note}" for note in summary["notes"]]
    there = sorted(p.name + ("/" if p.is_dir() else "") for p in out.iterdir())
    lines.append(f"in {out}: {', '.join(there)}")
    return lines


def _reference_words(reference: dict[str, Any] | None) -> list[str]:
    if reference is None:
        return []
    radii = sorted({image["radius_arcsec"] for image in reference["images"]})
    radius = " to ".join(f"{r:g}" for r in (radii[:1] if len(radii) < 2 else (radii[0], radii[-1])))
    words = []
    for name in ("completeness", "purity"):
        share = reference[name]
        text = "not known" if share["share"] is None else f"{share['share']:.1%}"
        words.append(f"{name} {text} ({share['count']} of {share['of']})")
    within = f", within {radius} arcsec" if radii else ""
    return [f"against the reference{within}: {', '.join(words)}"]


def _say(*lines: str) -> None:
    for line in lines:
        print(line)  # noqa: T201  # for the person who asked
