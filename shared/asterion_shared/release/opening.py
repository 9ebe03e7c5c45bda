"""Open a release: verify it, then build its network with its weights."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from asterion_shared.errors import (
    FileProblemError,
    PlanMismatchError,
    Problem,
    ReleaseBrokenError,
    SettingsError,
)
from asterion_shared.parameters import Layout, from_bytes, layout_of, write_vector
from asterion_shared.plan import Plan, parse_plan
from asterion_shared.release.facts import CALIBRATION, MODEL, PLAN, Calibration, ReleaseFacts
from asterion_shared.release.verifying import AGAIN, verify_release
from asterion_shared.settings_files import validate
from asterion_shared.tasks import task_module


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedModel:
    """A verified release, ready to predict.

    Attributes:
        folder: where it lies.
        facts: what it says of itself.
        plan: of the run that trained it: task, data contract, classes.
        network: with the released weights, in eval mode, on the CPU.
        temperature: > 0; the logits are divided by it. 1 when none was fitted.
        thresholds: as :class:`asterion_shared.release.facts.Calibration` has them; empty when none
            was fitted.
    """

    folder: Path
    facts: ReleaseFacts
    plan: Plan
    network: nn.Module
    temperature: float = 1.0
    thresholds: dict[str, float] = field(default_factory=dict)


def open_release(folder: Path, key: Path | None = None) -> ReleasedModel:
    """Verify a release and build its network.

    Args:
        folder: the release's.
        key: the public key, PEM, that the reader knows the signer by; None: any may have signed.

    Raises:
        ReleaseBrokenError: it is not as it was signed, or its weights are not the plan's network.
        FileProblemError: the key or a file cannot be read.
        SettingsError: this version of Asterion does not take its plan.
    """
    facts = verify_release(folder, key).facts
    plan = parse_plan(_read(folder, facts, PLAN).decode(), f"{folder / PLAN}")
    try:
        network = network_of(plan, _read(folder, facts, MODEL))
    except PlanMismatchError as error:
        problem = Problem(where=MODEL, what=f"does not fit {PLAN}: {error}", fix=AGAIN)
        raise ReleaseBrokenError(folder, [problem]) from None
    fitted = Calibration()
    if CALIBRATION in facts.files:
        fitted = _calibration(folder, facts)
    return ReleasedModel(
        folder=folder,
        facts=facts,
        plan=plan,
        network=network,
        temperature=fitted.temperature,
        thresholds=dict(fitted.thresholds),
    )


def network_of(plan: Plan, weights: bytes) -> nn.Module:
    """A plan's network with given weights, in eval mode, on the CPU.

    Args:
        plan: names the network.
        weights: safetensors with the names of ``state_dict``.

    Raises:
        PlanMismatchError: the weights do not fit or are not finite, or a part of the network never
            left the sites, so that no one model can be released.
    """
    network = task_module(plan.task).build_model(plan)
    layout = layout_of(network, plan.parameters)
    check_whole(layout)
    vector = from_bytes(weights, layout)
    if not np.isfinite(vector).all():
        msg = "the weights hold numbers that are not finite; release a model of an earlier round"
        raise PlanMismatchError(msg)
    write_vector(network, layout, vector)
    return network.eval()


def released_network(folder: str) -> nn.Module:
    """The network of a release, for ``configs/inference.json``: MONAI's parser calls it.

    Raises:
        AsterionError: as :func:`open_release` without a key.
    """
    return open_release(Path(folder)).network


def check_whole(layout: Layout) -> None:
    """Refuse a network of which each site keeps a part of its own.

    The count of batches beside a batch norm's statistics is no such part: prediction does not
    read it.

    Raises:
        PlanMismatchError: there is such a part.
    """
    own = [t.name for t in layout.kept if t.name.rpartition(".")[2] != "num_batches_tracked"]
    if own:
        msg = (
            f"each site keeps its own {own[0]} ({len(own)} such tensors), so there is no one model "
            "to release; train with parameters.keep empty and a network without batch norm, or "
            "with parameters.batch_norm_statistics = 'share'"
        )
        raise PlanMismatchError(msg)


def _calibration(folder: Path, facts: ReleaseFacts) -> Calibration:
    try:
        values: Any = json.loads(_read(folder, facts, CALIBRATION))
        return validate(Calibration, values, CALIBRATION)
    except ValueError:
        problem = Problem(where=CALIBRATION, what="is not JSON", fix=AGAIN)
    except SettingsError as error:
        problem = error.problems[0]
    raise ReleaseBrokenError(folder, [problem])


def _read(folder: Path, facts: ReleaseFacts, path: str) -> bytes:
    """A file's bytes, hashed once more: it may have changed since it was verified."""
    try:
        content = (folder / path).read_bytes()
    except OSError as error:
        raise FileProblemError(folder / path, error.strerror or "unreadable", AGAIN) from None
    if hashlib.sha256(content).hexdigest() != facts.files[path]:
        what = "was changed while it was read"
        raise ReleaseBrokenError(folder, [Problem(where=path, what=what, fix=AGAIN)])
    return content
