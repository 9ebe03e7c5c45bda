"""Nothing of a site's data stands in what leaves it, or in what its processes say.

Markers are planted in pixels, headers, names and columns, a run goes over the real link and over
Flower's messages, and every byte that went out, every line of the log, every file at the
coordinator and every file of the site's state is searched for them. test_live_leaks.py does the
same with real processes.
"""

import io
import logging
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import recorddict_to_proto
from tests.conftest import Ran
from tests.leaks.markers import NUMBERS, TEXTS, files_below, forms, found_in
from tests.leaks.planted import (
    NUM_BROKEN,
    consenting,
    plan_of,
    refused_plans,
    signed_for,
    write_site,
)
from tests.leaks.tap import tap
from tests.link.loopback import Loopback, eventually, free_port

from asterion_client import app as site_app
from asterion_client import egress
from asterion_client.flower_client_compat import order_message
from asterion_client.link_runner import LinkRunner
from asterion_client.settings import read_site_settings
from asterion_client.site_log import without_foreign_text
from asterion_client.withdrawals import read_withdrawals
from asterion_server.in_process_grid import InProcessGrid, InProcessSite
from asterion_server.live_cohort import LiveCohort
from asterion_server.rounds import run_rounds
from asterion_shared.errors import FileProblemError, QuorumLostError
from asterion_shared.flower_messages import encode_order, encode_report
from asterion_shared.messages import Order, Report
from asterion_shared.plan import Plan
from asterion_shared.result import Result, read_result
from asterion_shared.settings_files import validate
from asterion_sim.local_federation import enrol_on_this_machine, signed_here

LOG = logging.getLogger("asterion.site")
HEADERS = {
    "dicom": {"patient", "birth", "study day", "uid", "pixels"},
    "fits": {"observer", "position", "target", "pixels"},
    "table": {"patient", "column", "manifest", "label"},
}
"""What must be in the data themselves, else the search would find nothing either way."""


@dataclass
class Overheard:
    """Every byte that went out, by the call that sent it, and what the site's process said."""

    sent: list[tuple[str, bytes]] = field(default_factory=list)
    said: io.StringIO = field(default_factory=io.StringIO)

    def places(self) -> list[tuple[str, bytes]]:
        return [*self.sent, ("log", self.said.getvalue().encode())]


@pytest.fixture
def overheard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Overheard]:
    heard = Overheard()
    tap(lambda name, content: heard.sent.append((name, content)), monkeypatch.setattr)
    handler = logging.StreamHandler(heard.said)
    handler.addFilter(without_foreign_text)
    root = logging.getLogger()
    monkeypatch.setattr(root, "level", logging.DEBUG)
    root.addHandler(handler)
    yield heard
    root.removeHandler(handler)


@contextmanager
def site_on(link: Loopback, folder: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A site's own process on the link, here as a thread."""
    patch.setenv(site_app.SITE_VARIABLE, str(folder / "site.toml"))
    runner, stop = LinkRunner(read_site_settings(folder / "site.toml"), folder), threading.Event()
    thread = threading.Thread(target=runner.serve, args=(stop,))
    thread.start()
    try:
        eventually(lambda: runner.session.standing.connected, 20)
        yield
    finally:
        stop.set()
        thread.join(20)
        runner._lock.close()
        link.close()


def run_on_link(root: Path, kind: str, patch: pytest.MonkeyPatch) -> Result:
    hospital, plan = root / TEXTS["home"], plan_of(kind)
    made = enrol_on_this_machine(
        root / "center", [write_site(hospital, kind)], ["localhost"], port=free_port(),
        listen="127.0.0.1",
    )  # fmt: skip
    link = Loopback(made, root / "sites")
    with site_on(link, hospital, patch):
        cohort = LiveCohort(link.grid("leaks"), signature=signed_here(made.folder, plan, "leaks"))
        return run_rounds(
            plan, cohort, root / "center" / "runs" / "leaks", run="leaks",
            expected_sites=["north"], carrier="link",
        )  # fmt: skip


def run_over_messages(
    root: Path, plan: Plan, overheard: Overheard, *, signed: bool = True
) -> tuple[str, set[tuple[str, str]]]:
    """A run over Flower's messages: how it ended, and code and stage of each refusal."""
    hospital = root / TEXTS["home"]

    def listening(message: Message, context: Context) -> Message:
        reply = site_app.app(message, context)
        overheard.sent.append(("reply", recorddict_to_proto(reply.content).SerializeToString()))
        if "refusal" in reply.content:
            told = reply.content["refusal"]
            refused.add((str(told["code"]), str(told["stage"])))
        return reply

    refused: set[tuple[str, str]] = set()
    toml = str(hospital / "site.toml")
    site = InProcessSite("north", listening, {"site-toml": toml})  # type: ignore[arg-type]
    grid = InProcessGrid({node_of(hospital / plan.name): site})
    signature = signed_for(hospital, plan, plan.name) if signed else None
    folder = root / "center" / plan.name
    try:
        run_rounds(
            plan, LiveCohort(grid, signature=signature), folder, run=plan.name,
            expected_sites=["north"], carrier="flower",
        )  # fmt: skip
    except QuorumLostError:
        assert refused
    return read_result(folder / "result.json").status, refused


def node_of(folder: Path) -> int:
    """The app remembers the last round of each node, so every test has one of its own."""
    return abs(hash(folder)) % 2**31


def state_of(hospital: Path) -> list[tuple[str, bytes]]:
    """The site's state but its own report, which shows its people pictures with file names."""
    found = files_below(hospital / "state")
    assert len(found) > 3
    return [(name, content) for name, content in found if name != "report.html"]


@pytest.mark.parametrize("kind", ["dicom", "fits", "table"])
def test_nothing_of_the_data_leaves_over_the_link(
    kind: str, tmp_path: Path, overheard: Overheard, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run_on_link(tmp_path, kind, monkeypatch)
    assert result.status == "finished"
    assert result.rounds[1].outcomes["north"].num_bad_files == NUM_BROKEN
    assert {name for name, _ in overheard.sent} >= {"record", "Attend", "Submit"}
    hospital = tmp_path / TEXTS["home"]
    planted = {marker for marker, _, _ in found_in(files_below(hospital / TEXTS["folder"]))}
    assert planted >= HEADERS[kind]
    state = state_of(hospital)
    assert {"status.json", "manifest.json", "withdrawals.json"} < {name for name, _ in state}
    assert found_in([*overheard.places(), *state, *files_below(tmp_path / "center")]) == set()


def flower_replies(folder: Path, contents: list[tuple[RecordDict, str]]) -> list[bytes]:
    """What the app answers over Flower's own messages, as bytes."""
    context = Context(
        1, node_of(folder), {"site-toml": str(folder / "site.toml")}, RecordDict(), {}
    )
    replies = []
    for content, kind in contents:
        message = order_message(content, kind, 1, 1)
        reply = site_app.app(message, context).content
        replies.append(recorddict_to_proto(reply).SerializeToString())
    return replies


def failing_orders(folder: Path, plan: Plan) -> dict[str, Order]:
    """Orders that fail before anything is trained, by the code of the refusal."""
    other = validate(Plan, {"name": "x", "task": "anomaly", "data": {"classes": ["a", "b"]},
                            "model": {"name": "conv_autoencoder"}}, "plan")  # fmt: skip
    classes = plan.data.model_copy(update={"classes": ("cat", "dog")})
    weights = np.zeros(3, np.float32)

    def order(run: str, plan: Plan, phase: Any = "count", **fields: Any) -> Order:
        signature = signed_for(folder, plan, run)
        return Order(run=run, plan=plan, phase=phase, signature=signature,
                     round=int(phase == "train"), **fields)  # fmt: skip

    return {
        "wrong_task": order("a", other),
        "label_outside_classes": order("b", plan.model_copy(update={"data": classes})),
        "layout_mismatch": order("c", plan, "train", weights=weights, layout_sha256="0" * 64),
        "no_data": order("d", plan),
    }


@pytest.mark.parametrize("kind", ["dicom", "fits", "table"])
def test_refusals_of_orders_hold_nothing_of_the_data(
    kind: str, tmp_path: Path, overheard: Overheard
) -> None:
    folder = tmp_path / TEXTS["home"]
    consenting(folder, kind)
    messages = {"count": "query", "train": "train"}
    for code, order in failing_orders(folder, plan_of(kind)).items():
        if code == "no_data":
            (folder / TEXTS["folder"]).rename(tmp_path / "elsewhere")
        content = encode_order(order, "north")
        (reply,) = flower_replies(folder, [(content, messages[order.phase])])
        assert b"refusal" in reply
        assert code.encode() in reply or code == "no_data"
        overheard.sent.append(("reply", reply))
    assert overheard.said.getvalue().count("order") >= 4
    assert found_in([*overheard.places(), *state_of(folder)]) == set()


@pytest.mark.parametrize("kind", ["dicom", "fits", "table"])
def test_refused_runs_hold_nothing_of_the_data(
    kind: str, tmp_path: Path, overheard: Overheard
) -> None:
    """Of a plan that nobody signed, of one that diverges, and of one that costs too much."""
    hospital = tmp_path / TEXTS["home"]
    toml = consenting(hospital, kind)
    toml.write_text(toml.read_text() + "[privacy]\nepsilon_limit = 1e-4\n")
    for problem, plan in refused_plans(kind).items():
        signed = problem[0] != "unsigned_plan"
        told = run_over_messages(tmp_path, plan, overheard, signed=signed)
        assert told == ("quorum_lost", {problem})
    places = [*overheard.places(), *state_of(hospital), *files_below(tmp_path / "center")]
    assert found_in(places) == set()


def test_who_has_withdrawn_stands_in_no_file_of_the_state(
    tmp_path: Path, overheard: Overheard, asterion: Callable[..., Ran]
) -> None:
    hospital = tmp_path / TEXTS["home"]
    toml, plan = consenting(hospital, "dicom"), plan_of("dicom")
    run_over_messages(tmp_path, plan, overheard)
    page = hospital / "state" / "runs" / plan.name / "report.html"
    shown = re.search(rf"{TEXTS['file']}(\d+)", page.read_text())
    assert shown is not None  # the report for the site's own people names files
    names = [f"{TEXTS[what]}{shown[1]}" for what in ("file", "manifest", "patient")]
    ran = asterion("site", "withdraw", toml, names[1])
    assert "1 withdrawn" in ran.out
    assert found_in([("said", ran.said.encode())]) == set()
    assert len(read_withdrawals(hospital / "state").moments) == 1
    for listing in (["withdrawals"], ["withdrawals", "--json"], ["egress"], ["egress", "--json"]):
        ran = asterion("site", listing[0], toml, *listing[1:])
        assert (ran.code, found_in([("said", ran.said.encode())])) == (0, set())
    assert run_over_messages(tmp_path, plan_of("dicom", name="later"), overheard) == (
        "finished",
        set(),
    )
    after = files_below(hospital / "state")
    assert "report.html" in {name for name, _ in after}
    for name in names:
        pattern = re.compile(rf"{name}(?!\d)".encode())
        assert [place for place, content in after if pattern.search(content)] == []
    assert found_in([*overheard.places(), *state_of(hospital)]) == set()


def test_a_run_over_flower_s_messages_holds_nothing_of_the_data(
    tmp_path: Path, overheard: Overheard
) -> None:
    consenting(tmp_path / TEXTS["home"], "table")
    assert run_over_messages(tmp_path, plan_of("table"), overheard) == ("finished", set())
    assert len([name for name, _ in overheard.sent if name == "reply"]) == 3
    places = [*overheard.places(), *state_of(tmp_path / TEXTS["home"])]
    assert found_in([*places, *files_below(tmp_path / "center")]) == set()


@pytest.mark.parametrize("marker", sorted([*TEXTS, *NUMBERS]))
def test_a_marker_that_leaks_is_found_in_a_record_and_in_the_log(
    marker: str, tmp_path: Path, overheard: Overheard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in one of its forms, past all checks: the search above could fail."""
    folder = tmp_path / "hospital"
    consenting(folder, "table")
    plan = plan_of("table")
    for number, (form, needle) in enumerate(forms()[marker].items()):

        def leaking(report: Report, needle: bytes = needle) -> RecordDict:
            content = encode_report(report)
            content["report"]["manifest_sha256"] = b"\x01" + needle  # type: ignore[index]
            return content

        monkeypatch.setattr(egress, "encode_report", leaking)
        run = f"run-{number}"
        order = Order(
            run=run, plan=plan, round=0, phase="count", signature=signed_for(folder, plan, run)
        )
        (reply,) = flower_replies(folder, [(encode_order(order, "north"), "query")])
        assert (marker, form, "reply") in found_in([("reply", reply)])
        if marker in TEXTS and form == "utf-8":
            LOG.warning("cannot read %s", TEXTS[marker])
            assert (marker, form, "log") in found_in(overheard.places())


LOUD = """
import logging, sys, threading, warnings
from asterion_client.site_log import keep_log_clean
keep_log_clean()
warnings.warn("Invalid value for OBSERVER: {text}")
logging.getLogger("pydicom").warning("PatientName is %s", "{text}")
try:
    raise KeyError("{text}")
except KeyError:
    logging.getLogger("nibabel").exception("failed with {text}")
    logging.getLogger("asterion.site").exception("failed")
thread = threading.Thread(target=lambda: int("{text}"))
thread.start(); thread.join()
raise OSError(2, "no such file", "/data/{text}/scan.dcm")
"""


def test_what_readers_warn_of_does_not_reach_the_log_of_a_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOUD.format(text=TEXTS["patient"])], capture_output=True, check=False
    )
    said = done.stdout + done.stderr
    assert found_in([("log", said)]) == set()
    for word in (b"UserWarning", b"pydicom", b"nibabel", b"ValueError", b"FileNotFoundError"):
        assert word in said
    assert done.returncode == 1


def test_a_process_that_cannot_start_names_its_paths_to_its_daemon_alone(tmp_path: Path) -> None:
    toml = consenting(tmp_path / TEXTS["home"], "table")
    with tempfile.TemporaryFile() as told:
        done = subprocess.run(
            [sys.executable, "-m", "asterion_client.link_runner", "--site", str(toml),
             "--told", str(told.fileno())],
            capture_output=True, check=False, pass_fds=(told.fileno(),),
        )  # fmt: skip
        told.seek(0)
        words = told.read()
    assert done.returncode == FileProblemError.exit_code
    assert b"cannot start: settings_invalid" in done.stderr
    assert found_in([("log", done.stdout + done.stderr)]) == set()
    assert {marker for marker, _, _ in found_in([("told", words)])} == {"home"}
