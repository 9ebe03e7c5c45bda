"""The bundle is the same everywhere, flwr takes it, and a site takes no other."""

import hashlib
import importlib.util
import io
import logging
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.cli.config_utils import get_fab_metadata
from tests.flower.conftest import bundle_with

from asterion_client import runner
from asterion_client.app import SITE_VARIABLE
from asterion_client.day_book import DayBook
from asterion_client.egress_log import read_log
from asterion_client.flower_client_compat import Submission
from asterion_server.flower_server_compat import ensure_task_identity
from asterion_shared import __version__
from asterion_shared.audit import trail_files
from asterion_shared.audit_verify import verify_trails
from asterion_shared.bundle import NAME, bundle, bundle_sha256, project
from asterion_shared.flower_messages import decode_answer
from asterion_shared.messages import NoReport


def entries(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_bundle_has_the_same_bytes_on_every_machine() -> None:
    digest = "4c5979f4dc1c02ec413cb51d9d64c42d762e1592a5722c4545bad7ea9dc8df04"
    assert hashlib.sha256(bundle("0.1.0")).hexdigest() == digest
    assert bundle_sha256() == hashlib.sha256(bundle(__version__)).hexdigest()
    assert bundle("0.1.1") != bundle("0.1.0")


def test_the_bundle_holds_no_code_and_names_installed_modules() -> None:
    assert set(entries(bundle())) == {"pyproject.toml", "LICENSE", ".info/CONTENT"}
    app = tomllib.loads(project())["tool"]["flwr"]["app"]
    for component in app["components"].values():
        module, _, name = component.partition(":")
        assert importlib.util.find_spec(module) is not None
        assert name == "app"


def test_flwr_builds_the_same_content_and_reads_ours() -> None:
    ours, flwrs = entries(bundle()), entries(bundle_with({}))
    assert tomllib.loads(ours.pop("pyproject.toml").decode()) == tomllib.loads(
        flwrs.pop("pyproject.toml").decode()
    )
    assert ours.pop(".info/CONTENT").splitlines()[1:] == flwrs.pop(".info/CONTENT").splitlines()[1:]
    assert ours == flwrs
    assert get_fab_metadata(bundle()) == (NAME, __version__)


OWN = Submission(bundle(), NAME, __version__)
FOREIGN = {
    "own code in a module": Submission(bundle_with({"evil.py": "app = 1\n"}), NAME, __version__),
    "another version": Submission(bundle("0.0.9"), NAME, "0.0.9"),
    "our bytes, another version": Submission(bundle(), NAME, "0.0.9"),
    "another version's bytes under our version": Submission(bundle("0.0.9"), NAME, __version__),
    "another name": Submission(bundle(), "someone/asterion", __version__),
    "nothing": Submission(b"", "", ""),
    "words in the version": Submission(bundle(), NAME, "mueller_anna\nWARNING forged"),
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    seen: list[Message] = []

    def app(message: Message, context: Context) -> Message:
        seen.append(message)
        return Message(RecordDict(), reply_to=message)

    monkeypatch.setattr(runner, "app", app)
    return seen


def answer_to(submission: Submission) -> Message:
    ensure_task_identity()
    message = Message(RecordDict(), 7, "train", ttl=5.0, group_id="1")
    context: Any = None
    return runner.answer(message, context, submission)


def test_the_app_sees_a_message_of_the_own_bundle(asked: list[Message]) -> None:
    assert not answer_to(OWN).content
    assert len(asked) == 1


@pytest.mark.parametrize("submission", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_bundle_is_refused_with_its_code_before_the_app_sees_anything(
    submission: Submission, asked: list[Message], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    settings = 'name = "north"\ntask = "classification"\n[data]\nformat = "table"\n'
    (tmp_path / "site.toml").write_text(settings)
    monkeypatch.setenv(SITE_VARIABLE, str(tmp_path / "site.toml"))
    with caplog.at_level(logging.WARNING, "asterion.site"):
        answer = decode_answer(answer_to(submission).content, "north", 3)
    (verdict,) = verify_trails(trail_files(tmp_path / "state" / "audit"))
    refused = NoReport(
        site="north", outcome="refused", code="foreign_bundle", stage="receiving",
        audit_head=verdict.last,
    )  # fmt: skip
    assert answer == refused
    last = verdict.lines[-1].record
    told = {"code": "foreign_bundle", "stage": "receiving"}
    assert (last.kind, last.run, last.facts) == ("refusal", "", told)
    assert [line["what"] for line in read_log(tmp_path / "state")] == ["refusal"]
    assert asked == []
    assert "mueller" not in caplog.text
    assert caplog.text.count("foreign_bundle") == 1


def sized(num_bytes: int) -> RecordDict:
    return RecordDict({"order": ConfigRecord({"bytes": bytes(num_bytes)})})


def test_the_bytes_of_an_order_and_its_reply_are_noted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def app(message: Message, context: Context) -> Message:
        return Message(sized(7), reply_to=message)

    monkeypatch.setattr(runner, "app", app)
    ensure_task_identity()
    context: Any = None
    days = DayBook(tmp_path)
    runner.counted(Message(sized(11), 7, "train"), context, OWN, days)
    assert days.today().num_bytes == 18


def test_a_reply_whose_bytes_cannot_be_noted_does_not_leave(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runner, "app", lambda message, context: Message(sized(7), reply_to=message))
    ensure_task_identity()
    context: Any = None
    (tmp_path / "consent").write_text("not a folder")
    said = runner.counted(Message(sized(11), 7, "train"), context, OWN, DayBook(tmp_path))
    answer = decode_answer(said.content, "north", 3)
    assert isinstance(answer, NoReport)
    assert answer.code == "disk_problem"
