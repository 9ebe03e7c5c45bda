"""A site and a coordinator of two versions: they work together, or each is told why not."""

import logging
import threading
from pathlib import Path

import pytest
from tests.link.loopback import Loopback, eventually, noise

from asterion_client import link_session
from asterion_client.link_daemon import run_on_link
from asterion_client.link_runner import LinkRunner
from asterion_client.settings import read_site_settings
from asterion_client.site_standing import read_status
from asterion_server import link_calls, link_server
from asterion_server.run_queue import LinkQueue
from asterion_shared import __version__
from asterion_shared.errors import ConnectionProblemError
from asterion_shared.link.channel import WIRE_FORMAT
from asterion_shared.site_standing import in_words

OLDER, NEWER = "0.0.9", "0.2.0"


@pytest.mark.parametrize("version", [OLDER, NEWER])
def test_a_site_of_another_version_that_talks_the_same_joins_and_is_named(
    version: str, link: Loopback, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(link_session, "__version__", version)
    with caplog.at_level(logging.INFO, "asterion.link"):
        session = link.session()
        eventually(lambda: session.standing.connected)
    assert f"site north: session open (version {version})" in caplog.text
    link.post(link.grid(), "north", vector=noise(1_000))
    assert eventually(lambda: session.next_order(0.1)).key
    [standing] = LinkQueue(link.made).site_standings(["north"])
    assert standing.version == version
    assert in_words(standing).endswith(f", by Asterion {version}")
    session.stop()
    eventually(lambda: not link.store.sessions()[0].is_open)
    [standing] = LinkQueue(link.made).site_standings(["north"])
    assert (standing.state, standing.version) == ("away", version)


def test_a_site_of_the_same_version_is_not_worth_a_word(link: Loopback) -> None:
    session = link.session()
    eventually(lambda: session.standing.connected)
    [standing] = LinkQueue(link.made).site_standings(["north"])
    assert standing.version == __version__
    assert __version__ not in in_words(standing)


@pytest.mark.parametrize("site_format", [WIRE_FORMAT - 1, WIRE_FORMAT + 1])
def test_a_site_that_talks_otherwise_is_refused_and_both_are_told_the_versions(
    site_format: int,
    link: Loopback,
    hospital: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    version = OLDER if site_format < WIRE_FORMAT else NEWER
    monkeypatch.setattr(link_session, "__version__", version)
    monkeypatch.setattr(link_session, "WIRE_FORMAT", site_format)
    runner = LinkRunner(read_site_settings(hospital / "site.toml"), hospital)
    stop = threading.Event()
    thread = threading.Thread(target=runner.serve, args=(stop,))
    thread.start()
    state = hospital / "state"
    status = eventually(
        lambda: (
            (state / "status.json").exists()
            and (found := read_status(state)).refused == "other_version"
            and found
        )
    )
    stop.set()
    thread.join(10)
    runner._lock.close()
    assert status.coordinator_version == __version__
    assert f"it has Asterion {__version__}, this site" in status.meaning
    assert status.meaning.endswith(f"install {__version__} here")
    assert status.meaning in status.problem(10, status.written)
    assert link.store.sessions() == []
    why = (
        f"site north: refused (other_version): it is Asterion {version} and speaks format "
        f"{site_format}, this link is {__version__} and speaks {WIRE_FORMAT}"
    )
    assert why in caplog.text


@pytest.mark.live
def test_the_daemon_ends_and_says_what_to_install(
    link: Loopback, hospital: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The site's own process is this version's; the coordinator is a newer one."""
    monkeypatch.setattr(link_server, "WIRE_FORMAT", WIRE_FORMAT + 1)
    monkeypatch.setattr(link_calls, "__version__", NEWER)
    settings = read_site_settings(hospital / "site.toml")
    connection = settings.connection
    assert connection is not None
    state, lines = hospital / settings.state_folder, []
    state.mkdir(exist_ok=True)
    with pytest.raises(ConnectionProblemError) as told:
        run_on_link(
            settings, hospital / "site.toml", connection, state, lines.append, threading.Event()
        )
    assert str(told.value) == (
        f"the coordinator at {connection.address} refuses site north (other_version); it has "
        f"Asterion {NEWER}, this site {__version__}, and the two cannot talk: install {NEWER} here"
    )
    assert told.value.exit_code == ConnectionProblemError.exit_code


def test_a_version_is_words_fit_for_a_line_whoever_sends_it(
    link: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_server, "WIRE_FORMAT", WIRE_FORMAT + 1)
    monkeypatch.setattr(link_calls, "__version__", "1'\\" + "x" * 300)
    session = link.session()
    eventually(lambda: session.standing.refused)
    said = session.standing.coordinator_version
    assert len(said) == 40
    assert said.startswith("1'")
    assert "\n" not in said
