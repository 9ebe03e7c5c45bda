"""Every change of a signed release is refused, and named."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.release.conftest import facts_of, small_plan, write_weights

from asterion_shared.audit_key import public_pem
from asterion_shared.errors import (
    FileProblemError,
    PlanMismatchError,
    ReleaseBrokenError,
    SettingsError,
)
from asterion_shared.parameters import layout_of
from asterion_shared.plan import ParameterPolicy
from asterion_shared.release.facts import FACTS, MODEL, PLAN, SIGNATURE
from asterion_shared.release.opening import check_whole, open_release
from asterion_shared.release.sealing import seal
from asterion_shared.release.verifying import verify_release
from asterion_shared.tasks import initial_model

Pem = Callable[[Ed25519PrivateKey], Path]


def test_a_whole_release_is_verified(
    release: Path, release_key: Ed25519PrivateKey, pem_file: Pem
) -> None:
    unknown, known = verify_release(release), verify_release(release, pem_file(release_key))
    assert (unknown.signer_known, known.signer_known) == (False, True)
    assert known.public_key == public_pem(release_key)
    assert set(known.facts.files) == {
        PLAN, MODEL, "docs/README.md", "calibration.json",
    }  # fmt: skip


def test_an_opened_release_predicts_as_the_network_that_was_trained(release: Path) -> None:
    opened = open_release(release)
    inputs = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        expected = initial_model(small_plan()).eval()(inputs)
        assert torch.equal(opened.network(inputs), expected)
    assert not opened.network.training
    assert (opened.temperature, opened.thresholds) == (1.5, {"cell": 0.4})
    assert opened.plan == small_plan()


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / MODEL).read_bytes())
    content[-7] ^= 1
    (folder / MODEL).write_bytes(content)


def edit_the_facts(folder: Path) -> None:
    text = (folder / FACTS).read_text()
    (folder / FACTS).write_text(text.replace('"research"', '"approved"'))


def sign_as_another(folder: Path) -> None:
    signature = json.loads((folder / SIGNATURE).read_text())
    signature["public_key"] = public_pem(Ed25519PrivateKey.generate())
    (folder / SIGNATURE).write_text(json.dumps(signature))


def link_the_plan(folder: Path) -> None:
    (folder.parent / "elsewhere.json").write_bytes((folder / PLAN).read_bytes())
    (folder / PLAN).unlink()
    (folder / PLAN).symlink_to("../elsewhere.json")


def link_the_models(folder: Path) -> None:
    (folder / "models").rename(folder.parent / "models")
    (folder / "models").symlink_to("../models")


CHANGES: dict[str, tuple[Callable[[Path], object], tuple[tuple[str, str], ...]]] = {
    "bit": (flip_a_bit, ((MODEL, "was changed: its SHA-256"),)),
    "added": (lambda f: (f / "docs/.note").write_text(""), (("docs/.note", "was added"),)),
    "removed": (lambda f: (f / "docs/README.md").unlink(), (("docs/README.md", "is missing"),)),
    "renamed": (
        lambda f: (f / "docs/README.md").rename(f / "docs/card.md"),
        (("docs/README.md", "was renamed to docs/card.md"),),
    ),
    "edited": (edit_the_facts, ((FACTS, "does not hold for it"),)),
    "resigned": (sign_as_another, ((FACTS, "does not hold for it"),)),
    "linked": (link_the_plan, ((PLAN, "is a link"),)),
    "linked folder": (link_the_models, ((MODEL, "is missing"), ("models", "is a link"))),
    "unsigned": (lambda f: (f / SIGNATURE).unlink(), ((SIGNATURE, "is missing"),)),
    "pipe": (lambda f: os.mkfifo(f / "pipe"), (("pipe", "is neither a file nor a folder"),)),
    "two at once": (
        lambda f: (flip_a_bit(f), (f / "docs/README.md").unlink()),
        (("docs/README.md", "is missing"), (MODEL, "was changed")),
    ),
    "odd name": (lambda f: (f / "a\x1b[2Jb").write_text(""), (("a?[2Jb", "was added"),)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_is_named(release: Path, name: str) -> None:
    change, expected = CHANGES[name]
    change(release)
    with pytest.raises(ReleaseBrokenError) as caught:
        open_release(release)
    told = sorted((problem.where, problem.what) for problem in caught.value.problems)
    assert len(told) == len(expected)
    for (where, what), (file, words) in zip(told, sorted(expected), strict=True):
        assert where == file
        assert words in what


def test_the_signature_of_another_key_is_refused_by_whoever_knows_the_signer(
    release: Path, pem_file: Pem
) -> None:
    seal(release, facts_of(small_plan()), Ed25519PrivateKey.generate())
    verify_release(release)  # nobody said who had to sign
    with pytest.raises(ReleaseBrokenError, match=r"signature\.json: it is signed with the key"):
        verify_release(release, pem_file(Ed25519PrivateKey.generate()))


def test_weights_of_another_plan_are_refused(release: Path, release_key: Ed25519PrivateKey) -> None:
    wider = small_plan(model={"name": "small_unet", "widths": [8, 16]})
    (release / PLAN).write_text(wider.canonical())
    with pytest.raises(SettingsError, match="plan_sha256"):
        seal(release, facts_of(small_plan()), release_key)
    seal(release, facts_of(wider), release_key)
    with pytest.raises(ReleaseBrokenError, match=rf"{MODEL}: does not fit plan\.json"):
        open_release(release)


def test_weights_that_are_not_numbers_are_refused(
    release: Path, release_key: Ed25519PrivateKey
) -> None:
    content = bytearray((release / MODEL).read_bytes())
    content[-4:] = b"\x00\x00\xc0\x7f"
    (release / MODEL).write_bytes(content)
    seal(release, facts_of(small_plan()), release_key)
    with pytest.raises(ReleaseBrokenError, match="not finite"):
        open_release(release)


def test_a_network_of_which_sites_keep_a_part_is_refused(
    release: Path, release_key: Ed25519PrivateKey
) -> None:
    plan = small_plan(parameters={"keep": ["logits.*"]})
    write_weights(plan, release / MODEL)
    (release / PLAN).write_text(plan.canonical())
    seal(release, facts_of(plan), release_key)
    with pytest.raises(ReleaseBrokenError, match=r"each site keeps its own logits\.weight"):
        open_release(release)


def test_a_release_that_was_held_back_stays_research(
    release: Path, release_key: Ed25519PrivateKey
) -> None:
    held = {"held_back": ["the worst site has dice 0.2"]}
    for bad in (held, held | {"despite": "a demonstration", "maturity": "approved"}):
        with pytest.raises(SettingsError, match="held_back"):
            seal(release, facts_of(small_plan(), **bad), release_key)


def test_a_link_is_not_sealed(release: Path, release_key: Ed25519PrivateKey) -> None:
    (release / "docs/secret").symlink_to("/etc/hostname")
    with pytest.raises(ReleaseBrokenError, match="docs/secret: is a link"):
        seal(release, facts_of(small_plan()), release_key)


def test_what_is_no_release_is_said(tmp_path: Path) -> None:
    with pytest.raises(ReleaseBrokenError, match=r"release\.json: is missing"):
        verify_release(tmp_path)
    with pytest.raises(FileProblemError, match="no such folder"):
        verify_release(tmp_path / "nothing")


OFFLINE = """
import sys
def refuse(event, _):
    if event.startswith("socket.") and event != "socket.__new__":
        raise SystemExit(f"the network was used: {event}")
sys.addaudithook(refuse)
import typer
from asterion_shared.errors import AsterionError
from asterion_shared.release.command_line import verify
app = typer.Typer()
app.command()(verify)
try:
    sys.exit(app(standalone_mode=False))
except AsterionError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def asterion_verify(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", OFFLINE, *map(str, words)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command_works_offline(
    release: Path, release_key: Ed25519PrivateKey, pem_file: Pem
) -> None:
    whole = asterion_verify(release, "--key", pem_file(release_key))
    assert whole.returncode == 0, whole.stderr
    assert "cells version 1 (research): all 4 files are as they were signed" in whole.stdout
    assert "signed with the key that you gave" in whole.stdout
    (release / "docs/README.md").unlink()
    broken = asterion_verify(release, "--json")
    assert broken.returncode == ReleaseBrokenError.exit_code
    assert [row["where"] for row in json.loads(broken.stdout)["problems"]] == ["docs/README.md"]


def test_batch_statistics_that_are_shared_can_be_released() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    check_whole(layout_of(network, ParameterPolicy(batch_norm_statistics="share")))
    with pytest.raises(PlanMismatchError, match=r"keeps its own 1\.running_mean"):
        check_whole(layout_of(network, ParameterPolicy(batch_norm_statistics="keep")))
