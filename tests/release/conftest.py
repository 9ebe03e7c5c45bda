"""A small release, signed, made once and copied for each test that changes it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from asterion_shared.audit_key import public_pem
from asterion_shared.parameters import layout_of, named_parts, read_vector
from asterion_shared.plan import Plan
from asterion_shared.release.facts import MODEL, PLAN
from asterion_shared.release.sealing import seal
from asterion_shared.settings_files import validate
from asterion_shared.tasks import initial_model
from asterion_shared.tensor_files import write_tensors


def small_plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "name": "cells",
        "task": "segmentation",
        "data": {"classes": ["background", "cell"], "patch_size": [16, 16]},
        "model": {"name": "small_unet", "widths": [4, 8]},
    }
    return validate(Plan, values | changes, "plan")


def write_weights(plan: Plan, path: Path) -> None:
    network = initial_model(plan)
    layout = layout_of(network, plan.parameters)
    write_tensors(path, named_parts(read_vector(network, layout), layout))


def facts_of(plan: Plan, **changes: Any) -> dict[str, Any]:
    values = {
        "name": "cells", "version": 1, "task": plan.task, "run": "cells", "rounds": 3, "sites": 3,
        "plan_sha256": plan.sha256, "created": "2026-11-22T12:00:00Z",
        "onnx": {"why_not": "not tried in this test"},
    }  # fmt: skip
    return values | changes


@pytest.fixture(scope="session")
def release_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture(scope="session")
def sealed(tmp_path_factory: pytest.TempPathFactory, release_key: Ed25519PrivateKey) -> Path:
    folder, plan = tmp_path_factory.mktemp("made") / "release", small_plan()
    write_weights(plan, folder / MODEL)
    (folder / PLAN).write_text(plan.canonical())
    (folder / "docs").mkdir()
    (folder / "docs" / "README.md").write_text("# Cells\n")
    (folder / "calibration.json").write_text('{"temperature": 1.5, "thresholds": {"cell": 0.4}}')
    seal(folder, facts_of(plan), release_key)
    return folder


@pytest.fixture
def release(sealed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sealed, tmp_path / "release"))


@pytest.fixture
def pem_file(tmp_path: Path) -> Callable[[Ed25519PrivateKey], Path]:
    def write(key: Ed25519PrivateKey) -> Path:
        path = tmp_path / "public.pem"
        path.write_text(public_pem(key))
        return path

    return write
