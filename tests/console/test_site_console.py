"""The site's console: plans that wait, a person's word, budget, what left, data, health."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Ran
from tests.consent.conftest import Clinic, new_clinic
from tests.console.conftest import Browser
from tests.console.examples import clinic_console
from tests.console.test_operator_pages import Reader
from tests.link.loopback import eventually

from asterion_client.approvals import approvals, waiting
from asterion_client.check_machine import look_at_machine
from asterion_client.console.console import site_console
from asterion_client.console.tasks import Works
from asterion_client.plan_desk import is_paused
from asterion_client.settings import read_site_settings
from asterion_client.site_vitals import write_vitals
from asterion_shared.audit import trail_files
from asterion_shared.audit_records import Record, read_line
from asterion_shared.console.web import Console
from asterion_shared.errors import FileProblemError, UserInputError


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    """A hospital with a console, where a person approves; one plan waits."""
    found = new_clinic(tmp_path)
    clinic_console(found)
    return found


@pytest.fixture
def anna(clinic: Clinic, visit: Callable[[Console], Browser]) -> Browser:
    browser = visit(site_console(clinic.toml))
    assert browser.sign_in().status_code == 200
    return browser


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", Reader(page).text)


def records(clinic: Clinic) -> list[Record]:
    lines = b"".join(p.read_bytes() for p in trail_files(clinic.folder / "state" / "audit"))
    return [line.record for line in map(read_line, lines.splitlines()) if line is not None]


def test_a_plan_is_approved_as_it_was_reviewed_and_taken_back(
    anna: Browser, clinic: Clinic
) -> None:
    assert "1 plan waits for a person" in text_of(anna.get("/"))
    assert re.search(r"trial-1 ?train classification ?anna", text_of(anna.get("/plans")))
    page = text_of(anna.get("/plans/trial-1"))
    assert "no image, no row of a table, no file name, no header" in page
    assert f"plan {clinic.plan.sha256}" in page
    where = "/plans/trial-1"
    answer = anna.post(f"{where}/approve", where, reviewed="0" * 64)
    assert answer.status_code == 400
    assert "this is another plan" in answer.text
    assert waiting(clinic.folder / "state")
    anna.post(f"{where}/approve", where, reviewed=clinic.plan.sha256)
    settings = read_site_settings(clinic.toml)
    (approval,) = approvals(settings, clinic.folder)
    assert approval.plan == clinic.plan.canonical()
    assert not waiting(clinic.folder / "state")
    assert anna.client.get(where).status_code == 400
    assert "Take the approval of trial-1 back" in text_of(anna.get("/plans"))
    anna.post(f"{where}/refuse")
    assert approvals(settings, clinic.folder) == []
    assert anna.post(f"{where}/refuse").status_code == 400
    told = [(r.kind, r.run, r.facts.get("person")) for r in records(clinic)]
    assert ("approved", "trial-1", "anna") in told
    assert ("approval_withdrawn", "trial-1", "anna") in told
    assert [r.facts["plan_sha256"] for r in records(clinic) if r.kind == "approved"] == [
        clinic.plan.sha256
    ]


def test_a_plan_that_consent_is_against_cannot_be_approved(anna: Browser, clinic: Clinic) -> None:
    clinic.toml.write_text(clinic.toml.read_text().replace("smallest_cohort = 2",
                           "smallest_cohort = 9"))  # fmt: skip
    page = text_of(anna.get("/plans/trial-1"))
    assert "Against the site's [consent]" in page
    assert "Approve this plan" not in page
    answer = anna.post("/plans/trial-1/approve", reviewed=clinic.plan.sha256)
    assert answer.status_code == 400
    assert approvals(read_site_settings(clinic.toml), clinic.folder) == []


def test_who_only_looks(clinic: Clinic, visit: Callable[[Console], Browser]) -> None:
    otto = visit(site_console(clinic.toml))
    otto.sign_in("otto")
    for page in ("/", "/plans", "/plans/trial-1", "/data"):
        assert otto.get(page).count('<form method="post"') == 1  # to sign out
    for path in ("/pause", "/continue", "/data", "/plans/trial-1/approve", "/plans/trial-1/try"):
        assert otto.post(path, reviewed=clinic.plan.sha256).status_code == 403
    assert not is_paused(read_site_settings(clinic.toml), clinic.folder)
    assert approvals(read_site_settings(clinic.toml), clinic.folder) == []


def test_pause_and_continue(anna: Browser, clinic: Clinic) -> None:
    settings = read_site_settings(clinic.toml)
    assert "paused" in text_of(anna.post("/pause").text)
    assert is_paused(settings, clinic.folder)
    assert "takes part again" in text_of(anna.post("/continue").text)
    assert not is_paused(settings, clinic.folder)
    acts = [(r.facts["person"], r.facts["act"]) for r in records(clinic) if r.kind == "console"]
    assert acts == [("anna", "pause"), ("anna", "continue")]


def test_a_plan_is_tried_on_the_data_here(anna: Browser) -> None:
    assert "The plan is tried" in text_of(anna.post("/plans/trial-1/try").text)
    page = eventually(
        lambda: (p := text_of(anna.get("/plans/trial-1"))) and "one step on these" in p and p, 120
    )
    assert re.search(r"to train: \d+ examples of \d+ patients", page)


def test_the_check_names_what_is_wrong(anna: Browser, clinic: Clinic) -> None:
    assert "Nobody has looked" in text_of(anna.get("/data"))
    (clinic.folder / "patients.csv").unlink()
    assert "has begun" in text_of(anna.post("/data").text)
    page = eventually(lambda: (p := text_of(anna.get("/data"))) and "Found at" in p and p, 60)
    assert "patients.csv" in page or "no table" in page.lower() or "data.folder" in page


def test_pages_of_a_site_that_never_ran(anna: Browser, clinic: Clinic) -> None:
    page = text_of(anna.get("/"))
    assert "the site never ran here" in page
    assert "the site does not run" in page
    assert "at most epsilon 8 at delta" in page
    assert "Nothing was charged yet" in text_of(anna.get("/budget"))
    page = text_of(anna.get("/egress"))
    assert "Nothing has left." in page
    assert "num_examples" in page
    assert "None yet." in text_of(anna.get("/history"))
    for path in ("/history/none", "/history/%2e%2e", "/plans/A%20B"):
        assert anna.client.get(path).status_code == 404
    settings = read_site_settings(clinic.toml)
    write_vitals(clinic.folder / "state", look_at_machine(settings, clinic.folder))
    assert re.search(r"disk free ?[\d.]+ GiB ?well", text_of(anna.get("/")))
    report = clinic.folder / "state" / "runs" / "trial-1" / "report.html"
    report.parent.mkdir(parents=True)
    report.write_text("<p>of this site</p>")
    answer = anna.client.get("/history/trial-1")
    assert "of this site" in answer.text
    assert answer.headers["Content-Security-Policy"].startswith("sandbox;")


def test_console_password_of_a_site(clinic: Clinic, asterion: Callable[..., Ran]) -> None:
    words = ("site", "console-password", clinic.toml, "maria")
    assert asterion(*words, typed="four words make one\n").code == 0
    assert (clinic.folder / "console-people.json").stat().st_mode & 0o777 == 0o600
    assert asterion(*words, typed="short\n").code == UserInputError.exit_code
    text = clinic.toml.read_text().partition("[console]")[0]
    clinic.toml.write_text(text)
    ran = asterion("site", "console", clinic.toml)
    assert ran.code == FileProblemError.exit_code
    assert "port = 8444" in ran.err


def test_work_that_fails_says_so_without_its_text(tmp_path: Path) -> None:
    works: Works[int] = Works()
    assert works.of("x") is None

    def fail() -> int:
        msg = "mueller_anna"
        raise RuntimeError(msg)

    works.begin("x", fail)
    done = eventually(lambda: (d := works.of("x")) and not d.goes_on and d)
    assert done.failure == "it failed (RuntimeError)"
    works.begin("x", lambda: 7)
    assert eventually(lambda: (d := works.of("x")) and d.result) == 7
