"""What an operator sees: runs in every state, sites, many of them, long names, hostile ones."""

import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from tests.console.conftest import SITES, Browser
from tests.console.examples import coordinator, ended, going_on, launched, plan_of, round_of
from tests.link.loopback import free_port

from asterion_server.console.run_looks import RunLook, RunLooks
from asterion_server.keys import Provisioned
from asterion_shared.events import RoundFinished, append_event

Browse = Callable[[Provisioned], Browser]


class Reader(HTMLParser):
    """The tags, the text, and whether every tag is closed in order."""

    VOID = frozenset({"meta", "link", "input", "br", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " "
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_runs_in_every_state(anna: Browser) -> None:
    text = re.sub(r"\s+", " ", Reader(anna.get("/")).text)
    assert "deep-field waiting 5 of 12 rounds so far; site north missing in round 2" in text
    assert "next-one waiting no round is finished yet" in text
    assert "first-look finished 8 of 8 rounds finished; no site was missing" in text
    assert "sources-2 finished 8 of 8 rounds finished; site north missing in rounds 3-4" in text
    assert "quorum lost after 1 of 8 rounds" in text
    assert "disk-gone failed" in text


def test_a_run_that_goes_on(anna: Browser) -> None:
    text = re.sub(r"\s+", " ", Reader(anna.get("/runs/deep-field")).text)
    assert "east working, round 6 answered, round 5" in text
    assert "north answered, round 6" in text
    assert "south away since 2026-01-02 03:04 UTC" in text
    assert "The deadline of round 6 is 1 min 33 s: three times what east took." in text
    assert "3.07 of 12 that the plan allows" in text
    assert "east 6 epsilon 3.07 8.94" in text
    assert "the site could not be reached [unreachable]" in text
    assert "Dice by round, pooled and by site" in text


def test_a_run_that_lost_its_quorum_says_why(anna: Browser) -> None:
    name = "a-run-with-a-name-as-long-as-a-name-may-be-and-not-shorter-2026"
    text = Reader(anna.get(f"/runs/{name}")).text
    assert "bring the sites back and start the same run again" in text
    assert "Nothing was measured" not in text
    text = Reader(anna.get("/runs/disk-gone")).text
    assert "never measured" in text
    assert "Nothing was measured: no round was finished." in text
    assert "the run has failed; see its log" in text


def test_the_report_is_shown_without_script_or_origin(anna: Browser) -> None:
    answer = anna.client.get("/runs/first-look/report")
    assert answer.headers["Content-Security-Policy"].startswith("sandbox;")
    assert "8 of 8 rounds finished" in answer.text
    assert anna.client.get("/runs/deep-field/report").status_code == 404


def test_a_run_and_its_report_tell_one_time(anna: Browser) -> None:
    # 9 rounds of 31 s and of a second more each; that of the count is one of them.
    for path in ("/runs/first-look", "/runs/first-look/report"):
        text = re.sub(r"\s+", " ", Reader(anna.get(path)).text)
        assert "rounds 8 of 8 5 min 15 s" in text


@pytest.mark.parametrize("path", ["/runs/none", "/runs/..%2f..", "/runs/<b>x", "/x", "/runs/"])
def test_what_is_not_there(anna: Browser, path: str) -> None:
    answer = anna.client.get(path)
    assert answer.status_code == 404
    assert "<b>x" not in answer.text


def test_pages_are_whole_and_have_nothing_inline(anna: Browser) -> None:
    for path in ("/", "/sites", "/runs/deep-field", "/runs/sources-2", "/runs/disk-gone"):
        page = Reader(anna.get(path))
        names = {tag for tag, _ in page.tags}
        assert {"h1", "main", "nav"} <= names
        assert "style" not in names
        for tag, attrs in page.tags:
            assert not [name for name in attrs if name.startswith("on") or name == "style"]
            if tag == "script":
                assert attrs["src"] == "/static/live.js"
            if tag == "input" and attrs.get("type") != "hidden":
                assert attrs.get("id")
        ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
        assert len(ids) == len(set(ids))
        assert "main" in ids


def test_sites(anna: Browser) -> None:
    text = re.sub(r"\s+", " ", Reader(anna.get("/sites")).text)
    assert "2 of 3 connected, 1 at work" in text
    assert re.search(r"east ?working ?round 6 of deep-field", text)
    assert re.search(r"south ?away", text)
    assert "MB/s" in text


def test_a_site_that_was_never_seen_and_no_run_at_all(tmp_path: Path, browse: Browse) -> None:
    browser = browse(coordinator(tmp_path / "centre", ["north"], free_port()))
    browser.sign_in()
    assert "No run goes on, and none waits." in browser.get("/")
    assert "never seen" in browser.get("/sites")


def test_a_run_whose_files_are_broken_hides_no_other(tmp_path: Path, browse: Browse) -> None:
    made = coordinator(tmp_path / "centre", SITES, free_port())
    ended(made, plan_of("good"), "good", SITES, [round_of(n, SITES, {}) for n in range(9)])
    bad = launched(made, plan_of("bad"), "bad", SITES)
    bad.plan_file.write_text("{")
    browser = browse(made)
    browser.sign_in()
    page = browser.get("/")
    assert "good" in page
    assert "Cannot be read" in page
    assert browser.client.get("/runs/bad").status_code == 400


def test_fifty_sites(tmp_path: Path, browse: Browse) -> None:
    sites = [f"observatory-of-a-long-name-{number:02d}" for number in range(50)]
    made = coordinator(tmp_path / "centre", SITES, free_port())
    rounds = [round_of(n, sites, dict.fromkeys(sites[:8], "unreachable")) for n in range(4)]
    going_on(made, plan_of("many"), "many", sites, rounds)
    browser = browse(made)
    browser.sign_in()
    page = Reader(browser.get("/runs/many")).text
    assert "8 of 50 sites missing in one round or more" in page
    assert "median of the sites" in page
    assert "observatory-of-a-long-name-49" in page


def test_events_are_read_on_and_a_look_is_kept(tmp_path: Path) -> None:
    made = coordinator(tmp_path / "centre", SITES, free_port())
    folder = going_on(made, plan_of("on"), "on", SITES, [round_of(0, SITES, {})])
    looks = RunLooks(made)
    first = looks.look(folder)
    assert isinstance(first, RunLook)
    assert looks.look(folder) is first
    assert first.rounds_done == 0
    append_event(folder.events, RoundFinished(round_result=round_of(1, SITES, {})))
    with folder.events.open("ab") as file:
        file.write(b'{"event": "round_fin')
    second = looks.look(folder)
    assert isinstance(second, RunLook)
    assert second.rounds_done == 1
    with folder.carried_out_here():
        running = looks.look(folder)
        assert isinstance(running, RunLook)
        assert running.status == "running"
        assert running.end is not None
        # 7 rounds left of 32 s each.
        assert running.end - time.time() == pytest.approx(7 * 32, abs=10)
        folder.stop_file.touch()
        stopping = looks.look(folder)
        assert isinstance(stopping, RunLook)
        assert stopping.status == "stopping"


def test_an_open_page_hears_of_a_change(tmp_path: Path, browse: Browse) -> None:
    made = coordinator(tmp_path / "centre", SITES, free_port())
    folder = going_on(made, plan_of("on"), "on", SITES, [round_of(0, SITES, {})])
    browser = browse(made)
    browser.sign_in()
    with browser.client.stream("GET", "/runs/on/live") as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        lines = stream.iter_lines()
        assert next(lines) == "retry: 3000"
        append_event(folder.events, RoundFinished(round_result=round_of(1, SITES, {})))
        assert next(line for line in lines if line.startswith("event")) == "event: changed"
        browser_two = httpx.Client(base_url=browser.client.base_url, cookies=browser.client.cookies)
        with browser_two:
            browser_two.post("/sign-out", data={"csrf": browser.hidden("/", "csrf")})
        assert next(line for line in lines if line.startswith("event")) == "event: ended"


def test_a_fault_of_a_page_is_logged_without_its_text(
    tmp_path: Path,
    browse: Browse,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = coordinator(tmp_path / "centre", SITES, free_port())

    def fail(*_: object) -> None:
        msg = "mueller_anna"
        raise RuntimeError(msg)

    browser = browse(made)
    browser.sign_in()
    monkeypatch.setattr("asterion_server.console.console.sites_values", fail)
    answer = browser.client.get("/sites")
    assert answer.status_code == 500
    assert "mueller" not in answer.text + caplog.text
    assert "RuntimeError at" in caplog.text
