"""Make a release of a run: weights, ONNX, papers; sealed, registered and on the audit trail."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from asterion_server.keys import Provisioned
from asterion_server.release_bundle import inference, metadata
from asterion_server.release_card import model_card
from asterion_server.release_claim import claim_report
from asterion_server.release_gate import gate_problems
from asterion_server.release_onnx import export_onnx
from asterion_server.release_papers import approval, calibration_of, datasheets, privacy_statement
from asterion_server.release_registry import MadeCurrent, Registry, Released
from asterion_server.release_run import Chosen, TrainedRun, read_trained
from asterion_server.release_settings import ReleaseSettings
from asterion_server.round_audit import coordinator_trail
from asterion_server.run_folder import RunFolder
from asterion_server.run_result import utc_now
from asterion_shared.audit_key import public_pem, read_key, write_key
from asterion_shared.audit_records import Fact
from asterion_shared.errors import (
    DiskProblemError,
    FileProblemError,
    PlanMismatchError,
    ReleaseHeldError,
    UserInputError,
)
from asterion_shared.files import make_folder, sync_folder, write_atomically
from asterion_shared.metrics import HEADLINE
from asterion_shared.release.facts import (
    CALIBRATION,
    FACTS,
    MODEL,
    ONNX,
    PLAN,
    Maturity,
    ReleaseFacts,
)
from asterion_shared.release.opening import network_of
from asterion_shared.release.sealing import seal, sha256_of
from asterion_shared.release.verifying import verify_release
from asterion_shared.reports.report_page import lowest_site

KEY, PUBLIC = "release.key", "release.pem"
PACKAGES = ("asterion-shared", "asterion", "torch", "monai", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A release that was made.

    Attributes:
        folder: where it lies.
        facts: what it says of itself.
        run: that trained it.
    """

    folder: Path
    facts: ReleaseFacts
    run: TrainedRun


def registry_of(made: Provisioned) -> Registry:
    """The registry of a coordinator's releases."""
    return Registry(made.releases)


def release_key(registry: Registry) -> Ed25519PrivateKey:
    """The key that releases are signed with; made on first use, its public half beside it.

    Raises:
        FileProblemError: others can read it, it is no such key, or it is gone while releases are
            here.
        DiskProblemError: it cannot be made.
    """
    path = registry.folder / KEY
    if not path.exists():
        if registry.models():
            fix = "put it back from a backup"
            raise FileProblemError(path, "the key is gone, its releases are here", fix)
        write_key(path, Ed25519PrivateKey.generate())
    key = read_key(path)
    public = registry.folder / PUBLIC
    if not public.exists():
        write_atomically(public, public_pem(key).encode())
    return key


def release(
    made: Provisioned,
    run_name: str,
    settings: ReleaseSettings,
    *,
    name: str = "",
    chosen: Chosen = "final",
    out: Path | None = None,
    maturity: Maturity = "research",
    despite: str = "",
) -> Made:
    """Release a model of a run.

    Args:
        made: the coordinator's folder.
        run_name: of a run that has ended.
        settings: thresholds of the gate, and what people know of the model.
        name: of the model; empty: the plan's.
        chosen: the run's last model, or its best.
        out: a folder that is made; None: ``releases/NAME/VERSION``.
        maturity: what it shall be called; it stays research where the gate held it back.
        despite: why it is released although the gate holds it back; empty: then it is not.

    Raises:
        UserInputError: the run cannot be released, or something stands at ``out``.
        ReleaseHeldError: the gate holds it back.
        PlanMismatchError: each site keeps a part of the network, or a weight is not finite.
        FileProblemError: a file of the run or the key is missing or wrong.
        DiskProblemError: the disk is full or not writable.
    """
    run = read_trained(RunFolder(made.runs / run_name), made.operators, chosen)
    held = [str(problem) for problem in gate_problems(run.result, run.plan, settings.gate)]
    if held and not despite.strip():
        fix = 'to release it all the same, for research only, say why: --despite "REASON"'
        what = f"run {run_name}"
        raise ReleaseHeldError(what, held, fix=fix)
    if out is not None and (out.exists() or out.is_symlink()):
        msg = f"{out} exists; name a folder that does not, since a release has nothing else in it"
        raise UserInputError(msg)
    registry, wanted = registry_of(made), name or run.plan.name
    with registry.locked():
        key, number = release_key(registry), registry.next_version(wanted)
        values: dict[str, Any] = {
            "name": wanted,
            "version": number,
            "maturity": "research" if held else maturity,
            "held_back": tuple(held),
            "despite": despite.strip() if held else "",
        }
        folder = registry.folder / wanted / str(number) if out is None else out.resolve()
        facts = _put_together(run, settings, values, folder, key)
        found = Made(folder=folder, facts=facts, run=run)
        _register(made, registry, found)
    return found


def make_current(made: Provisioned, name: str, number: int | None) -> Released:
    """Promote a version of a model, or go back to the one that was in use before.

    Args:
        made: the coordinator's folder.
        name: of the model.
        number: the version; None: roll back.

    Returns:
        The version that is current from now on.

    Raises:
        UserInputError: there is no such model or version, or none was in use before.
        ReleaseHeldError: the gate held that version back.
        ReleaseBrokenError: its folder is not as it was signed.
        FileProblemError: its folder is gone.
        DiskProblemError: the registry cannot be written.
    """
    registry = registry_of(made)
    with registry.locked():
        model = registry.model(name)
        if number is None and len(model.in_use) < 2:
            msg = f"no version of {name} was in use before {model.current or 'this'}; promote one"
            raise UserInputError(msg)
        found = model.version(model.in_use[-2] if number is None else number)
        if found.held_back:
            fix = "promote a version that the gate let through"
            what = f"{name} version {found.version}"
            raise ReleaseHeldError(what, found.held_back, fix=fix)
        verify_release(registry.folder_of(found), registry.folder / PUBLIC)
        kind = "model_rolled_back" if number is None else "model_promoted"
        _record(made, kind, found)
        registry.add(
            MadeCurrent(
                event="rolled_back" if number is None else "promoted",
                at=utc_now(),
                name=name,
                version=found.version,
            )
        )
    return found


def _put_together(
    run: TrainedRun,
    settings: ReleaseSettings,
    values: dict[str, Any],
    folder: Path,
    key: Ed25519PrivateKey,
) -> ReleaseFacts:
    """Fill a folder beside the wanted one, seal it, and rename it into place."""
    part = folder.with_name(f".{folder.name}.part")
    try:
        make_folder(folder.parent)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        facts = _fill(run, settings, values, part, key)
        part.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise DiskProblemError(folder, error.strerror or type(error).__name__) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return facts


def _fill(
    run: TrainedRun,
    settings: ReleaseSettings,
    values: dict[str, Any],
    part: Path,
    key: Ed25519PrivateKey,
) -> ReleaseFacts:
    try:
        network = network_of(run.plan, run.model.read_bytes())
    except PlanMismatchError as error:
        msg = f"run {run.folder.path.name!r} cannot be released: {error}"
        raise PlanMismatchError(msg) from None
    onnx = export_onnx(network, run.plan, part / ONNX)
    name, number, about = values["name"], values["version"], settings.about
    for path, source in {
        MODEL: run.model,
        PLAN: run.folder.plan_file,
        "docs/result.json": run.folder.result,
        "docs/report.html": run.folder.report,
    }.items():
        write_atomically(part / path, source.read_bytes())
    papers = {
        "configs/metadata.json": metadata(run, name, number, about),
        "configs/inference.json": inference(run.plan),
        "docs/datasheets.json": datasheets(run),
        "docs/privacy.json": privacy_statement(run),
        "docs/approval.json": approval(run),
    }
    for path, content in papers.items():
        write_atomically(part / path, (json.dumps(content, indent=2) + "\n").encode())
    if (fitted := calibration_of(run.result)) is not None:
        write_atomically(part / CALIBRATION, (fitted.model_dump_json(indent=2) + "\n").encode())
    card = model_card(run, about, onnx, **values)
    write_atomically(part / "docs/README.md", card.encode())
    claim = claim_report(run, about, name=name, version=number)
    write_atomically(part / "docs/claim.md", claim.encode())
    facts = values | {
        "task": run.plan.task,
        "run": run.folder.path.name,
        "plan_sha256": run.result.plan_sha256,
        "parent": run.plan.init.sha256 if run.plan.init is not None else "",
        "rounds": run.rounds,
        "chosen": run.chosen,
        "sites": len(run.sites),
        "created": utc_now(),
        "onnx": onnx.model_dump(),
        "versions": run.result.versions,
        "built_with": {package: version(package) for package in PACKAGES},
        "code_sha256": {p: code_sha256(p) for p in ("asterion_shared", "asterion_server")},
    }
    return seal(part, facts, key)


def _register(made: Provisioned, registry: Registry, found: Made) -> None:
    facts, result = found.facts, found.run.result
    metric = HEADLINE[result.task]
    lowest = lowest_site(result.final_sites, metric)
    usual = f"{facts.name}/{facts.version}"
    line = Released(
        at=facts.created,
        name=facts.name,
        version=facts.version,
        path=usual if found.folder == registry.folder / usual else str(found.folder),
        release_sha256=sha256_of(found.folder / FACTS),
        run=facts.run,
        plan_sha256=facts.plan_sha256,
        model_sha256=facts.files[MODEL],
        parent=facts.parent,
        rounds=facts.rounds,
        sites=facts.sites,
        maturity=facts.maturity,
        held_back=facts.held_back,
        metric=metric,
        value=result.final_metrics.get(metric),
        worst_site=None if lowest is None else lowest[1],
        calibration_error=result.final_metrics.get("calibration_error"),
    )
    _record(made, "model_released", line)
    registry.add(line)


def _record(made: Provisioned, kind: str, line: Released) -> None:
    facts: dict[str, Fact] = {
        "model": line.name,
        "version": line.version,
        "release_sha256": line.release_sha256,
        "model_sha256": line.model_sha256,
        "held_back": len(line.held_back),
    }
    coordinator_trail(made.folder).append(kind, run=line.run, facts=facts)


def code_sha256(package: str) -> str:
    """Hash of a package's code: of the names and hashes of its Python files, sorted."""
    root = Path(str(resources.files(package)))
    rows: Sequence[str] = [
        f"{path.relative_to(root).as_posix()} {sha256_of(path)}"
        for path in sorted(root.rglob("*.py"))
    ]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()
