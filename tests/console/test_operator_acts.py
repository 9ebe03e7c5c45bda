"""What an operator does at the console: who may, what is on record, and that it is done."""

import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.console.conftest import SITES, Browser
from tests.console.examples import coordinator, ended, going_on, launched, plan_of, round_of
from tests.link.loopback import free_port

from asterion_server.keys import Provisioned
from asterion_server.quarantine_files import HeldReport, QuarantineFiles, SuspiciousLayer
from asterion_server.run_folder import RunFolder
from asterion_shared.audit import trail_files
from asterion_shared.audit_records import read_line
from asterion_shared.plan_file import plan_to_toml
from asterion_sim.local_federation import signed_here

Browse = Callable[[Provisioned], Browser]
TABLE: dict[str, Any] = {
    "task": "classification",
    "data": {"kind": "table", "features": ["a", "b"], "classes": ["well", "ill"]},
    "model": {"name": "logistic"},
}


@contextmanager
def listening(made: Provisioned) -> Iterator[None]:
    """Somebody with the coordinator's certificate at its port: the queue itself is its folders."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.private_key)

    def answer(listener: socket.socket) -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            with suppress(OSError), context.wrap_socket(raw, server_side=True) as line:
                line.recv(1)

    with socket.create_server(("127.0.0.1", made.settings.port)) as listener:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        yield
        listener.shutdown(socket.SHUT_RDWR)


def acts_on_record(made: Provisioned) -> list[dict[str, object]]:
    lines = b"".join(path.read_bytes() for path in trail_files(made.audit)).splitlines()
    records = [line.record for line in map(read_line, lines) if line is not None]
    return [{"run": r.run, **r.facts} for r in records if r.kind == "console"]


def launch_form(browser: Browser, toml: str, signature: str = "", **form: str) -> Any:
    files = {"plan": ("../../plan.toml", toml.encode())}
    if signature:
        files["signature"] = ("s", signature.encode())
    data: dict[str, Any] = {"csrf": browser.hidden("/launch", "csrf"), "site": SITES} | form
    return browser.client.post("/launch", data=data, files=files)


@pytest.fixture
def centre(tmp_path: Path) -> Provisioned:
    return coordinator(tmp_path / "centre", SITES, free_port())


def signed_in(browse: Browse, made: Provisioned, name: str = "anna") -> Browser:
    browser = browse(made)
    assert browser.sign_in(name).status_code == 200
    return browser


def test_who_only_looks_cannot_act(centre: Provisioned, browse: Browse) -> None:
    going_on(centre, plan_of("on"), "on", SITES, [round_of(0, SITES, {})])
    otto = signed_in(browse, centre, "otto")
    page = otto.get("/runs/on")
    assert "Stop this run" not in page
    assert "(looks only)" in page
    for path in ("/runs/on/stop", "/runs/on/resume", "/runs/on/drop", "/launch", "/launch/go"):
        assert otto.post(path).status_code == 403
    assert not RunFolder(centre.runs / "on").stop_file.exists()
    assert acts_on_record(centre) == []


def test_a_form_from_elsewhere_does_nothing(centre: Provisioned, browse: Browse) -> None:
    folder = going_on(centre, plan_of("on"), "on", SITES, [round_of(0, SITES, {})])
    anna = signed_in(browse, centre)
    csrf = {"csrf": anna.hidden("/", "csrf")}
    assert anna.client.post("/runs/on/stop").status_code == 403
    assert anna.client.post("/runs/on/stop", data={"csrf": "x" * 43}).status_code == 403
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        answer = anna.client.post("/runs/on/stop", data=csrf, headers=headers)
        assert answer.status_code == 403
    assert not folder.stop_file.exists()
    assert acts_on_record(centre) == []


def test_stop_and_resume(
    centre: Provisioned, browse: Browse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asterion_server.launch.STOP_SECONDS", 0.1)
    folder = going_on(centre, plan_of("on"), "on", SITES, [round_of(0, SITES, {})])
    anna = signed_in(browse, centre)
    assert "cannot be reached" in anna.post("/runs/on/stop").text  # the coordinator is down
    with listening(centre):
        form = {"csrf": anna.hidden("/runs/on", "csrf")}
        anna.client.post("/runs/on/stop", data=form, follow_redirects=False)
        update = anna.client.get("/runs/on", headers={"X-Asterion-Live": "1"})
        assert "Run on is stopped" not in update.text  # of the page before, in its own time
        assert "Run on is stopped" in anna.get("/runs/on")
        assert "Run on is stopped" not in anna.get("/runs/on")  # it is said once
        assert folder.stop_file.exists()
        rounds = [round_of(n, SITES, {}) for n in range(3)]
        ended(centre, plan_of("early"), "early", SITES, rounds[:1], "quorum_lost")
        assert "Start it again" in anna.get("/runs/early")
        ended(centre, plan_of("lost"), "lost", SITES, rounds, "quorum_lost")
        assert "Resume from the last finished round" in anna.get("/runs/lost")
        assert "goes on from its last finished round" in anna.post("/runs/lost/resume").text
        assert not RunFolder(centre.runs / "lost").problem_file.exists()
    assert acts_on_record(centre) == [
        {"run": "on", "person": "anna", "act": "stop"},
        {"run": "on", "person": "anna", "act": "stop"},
        {"run": "lost", "person": "anna", "act": "resume"},
    ]


def test_launching_a_signed_plan(centre: Provisioned, browse: Browse) -> None:
    plan = plan_of("first", 3, **TABLE)
    signature = signed_here(centre.folder, plan, "trial-1")
    anna = signed_in(browse, centre)
    page = launch_form(anna, plan_to_toml(plan), signature.model_dump_json(), run="trial-1").text
    assert "The plan is right" in page
    assert plan.sha256 in page
    assert 'class="warning"' not in page
    token = re.search(r'name="token" value="([^"]+)"', page)
    assert token is not None
    with listening(centre):
        answer = anna.post("/launch/go", token=token[1])
        assert answer.url.path == "/runs/trial-1"
        assert "Run trial-1 is launched" in answer.text
        assert anna.post("/launch/go", token=token[1]).status_code == 400  # once
    folder = RunFolder(centre.runs / "trial-1")
    assert folder.read_plan() == plan
    assert folder.read_signature() == signature
    assert folder.read_launch().sites == tuple(SITES)
    (act,) = acts_on_record(centre)
    assert act["person"] == "anna"
    assert (act["act"], act["run"], act["plan_sha256"]) == ("launch", "trial-1", plan.sha256)


def test_findings_of_the_check(centre: Provisioned, browse: Browse) -> None:
    launched(centre, plan_of("taken", 5), "taken", SITES)
    anna = signed_in(browse, centre)
    good = plan_to_toml(plan_of("taken", 3, **TABLE))
    answer = launch_form(anna, good)
    assert answer.status_code == 400
    assert "run &#39;taken&#39; exists with another plan" in answer.text
    assert "unsigned_plan" in answer.text
    answer = launch_form(anna, good.replace("count = 3", "count = 0\nquorums = 2"), run="x y")
    assert "rounds.count" in answer.text
    assert "rounds.quorums" in answer.text
    assert "is not TOML" in launch_form(anna, "a = ").text
    wrong = signed_here(centre.folder, plan_of("other"), "other").model_dump_json()
    assert "plan_altered" in launch_form(anna, good, wrong, run="free").text
    assert "is not JSON" in launch_form(anna, good, "-----BEGIN", run="free").text
    assert "the run is" not in launch_form(anna, good, run="../x").text
    assert anna.post("/launch/go", token="").status_code == 400
    assert acts_on_record(centre) == []


def test_deciding_on_a_quarantined_report(centre: Provisioned, browse: Browse) -> None:
    folder = going_on(centre, plan_of("on"), "on", SITES, [round_of(0, SITES, {})])
    layer = SuspiciousLayer(layer="head.weight", norm=9.0, median_norm=1.0, norm_z=12.0,
                            cosine=0.1, median_cosine=0.9, cosine_z=3.0)  # fmt: skip
    files = QuarantineFiles(folder.path)
    for round_, site in ((1, "east"), (2, "east"), (2, "south")):
        files.put(HeldReport(run="on", round=round_, site=site, policy="hold", num_reports=3,
                  weight=1.0, clip_factor=1.0, layers=(layer,)))  # fmt: skip
    anna = signed_in(browse, centre)
    page = anna.get("/runs/on")
    assert page.count("Yes, drop the report of") == 3
    assert "head.weight (z 12)" in page
    anna.post("/runs/on/drop", site="east", round="1")
    page = anna.post("/runs/on/release", site="south", round="2").text
    assert "goes into the next round" in page
    states = {(r.site, r.round): files.state(r) for r in files.reports()}
    assert states == {("east", 1): "dropped", ("east", 2): "held", ("south", 2): "released"}
    assert anna.post("/runs/on/drop", site="east", round="x").status_code == 400
    assert [(a["act"], a["site"], a["of_round"]) for a in acts_on_record(centre)] == [
        ("drop", "east", 1),
        ("release", "south", 2),
    ]
