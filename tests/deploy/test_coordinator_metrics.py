"""The coordinator's figures, over HTTP from a real queue and real run folders."""

import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tests.link.loopback import free_port
from tests.papers import provisioned

from asterion_server.coordinator_metrics import metrics_served
from asterion_server.keys import Provisioned, open_provisioned
from asterion_server.link_paths import database_url
from asterion_server.link_store import LinkStore, StoredOrder
from asterion_server.run_folder import Launch, RunFolder
from asterion_shared.errors import AsterionError, ConnectionProblemError, PortInUseError
from asterion_shared.link.parcels import Parcel, Part
from asterion_shared.prometheus_text import Figure, exposition


def with_port(folder: Path, **other: object) -> Provisioned:
    path = folder / "coordinator.toml"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("metrics")]
    lines += [f"{key} = {value!r}".replace("'", '"') for key, value in other.items()]
    path.write_text("\n".join(lines))
    return open_provisioned(folder)


@pytest.fixture
def made(tmp_path: Path) -> Provisioned:
    provisioned(tmp_path / "center", ["localhost"], ["north", "south", "west"], port=free_port())
    return with_port(tmp_path / "center", metrics_port=free_port())


def get(made: Provisioned, path: str = "/metrics") -> tuple[int, str]:
    url = f"http://127.0.0.1:{made.settings.metrics_port}{path}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # ours
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def order(number: int, site: str) -> StoredOrder:
    content = Parcel((Part(3, b"abc"),))
    return StoredOrder(
        key=f"{number:064x}", site=site, run="outcome", round=2, message_type="train",
        content=content, submission=1, expires=None,
    )  # fmt: skip


def test_figures_of_sites_runs_and_queue(made: Provisioned) -> None:
    store, now = LinkStore(database_url(made)), time.time()
    store.open_session("north", "a", "1", "0.1")
    store.open_session("south", "b", "2", "0.1")
    store.close_session("south", "2")
    store.post([order(1, "north"), order(2, "south"), order(3, "west")])
    for key in (1, 2):
        store.count_attempt(f"{key:064x}")
    store.end([f"{3:064x}"])
    store.close()
    run = RunFolder(made.runs / "outcome")
    run.write_launch(Launch(sites=("north", "south")))
    (run.path / "checkpoints").mkdir()
    for number in (11, 12):
        (run.path / f"checkpoints/round-{number:06d}.safetensors").touch()
    other = RunFolder(made.runs / "early")
    other.write_launch(Launch(sites=("north",)))
    other.write_problem(AsterionError("no"))
    with metrics_served(made):
        code, body = get(made)
        assert get(made, "/")[0] == 404
        with pytest.raises(PortInUseError), metrics_served(made):
            pass
    assert code == 200
    lines = body.splitlines()
    for line in (
        'asterion_coordinator_site_connected{site="north"} 1',
        'asterion_coordinator_site_connected{site="south"} 0',
        'asterion_coordinator_site_connected{site="west"} 0',
        'asterion_coordinator_site_working{site="north"} 1',
        'asterion_coordinator_site_working{site="south"} 0',
        'asterion_coordinator_orders{state="open"} 2',
        'asterion_coordinator_orders{state="over"} 1',
        'asterion_coordinator_orders{state="answered"} 0',
        'asterion_coordinator_runs{state="waiting"} 1',
        'asterion_coordinator_runs{state="interrupted"} 1',
        'asterion_coordinator_runs{state="finished"} 0',
        'asterion_coordinator_run_rounds_done{run="outcome"} 12',
    ):
        assert line in lines
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    heard = float(values['asterion_coordinator_site_last_contact_timestamp_seconds{site="north"}'])
    assert heard == pytest.approx(now, abs=10)
    assert 'asterion_coordinator_site_last_contact_timestamp_seconds{site="west"}' not in values
    left = float(values['asterion_coordinator_certificate_seconds_left{certificate="server"}'])
    assert left > 86_400
    assert 'asterion_coordinator_site_certificate_seconds_left{site="west"}' in values
    assert float(values["asterion_coordinator_disk_free_bytes"]) > 0
    assert str(made.folder) not in body


def test_what_cannot_be_read_is_no_figure_and_names_no_file(made: Provisioned) -> None:
    made.certificate.unlink()
    with metrics_served(made):
        assert get(made) == (503, "# not known now (FileProblemError)\n")


def test_it_listens_on_the_loopback_interface_alone_and_stops(made: Provisioned) -> None:
    assert made.settings.metrics_address == "127.0.0.1"
    port = made.settings.metrics_port
    other = ("127.0.0.2", port)
    with metrics_served(made), pytest.raises(ConnectionRefusedError):
        socket.create_connection(other, 1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)
    elsewhere = with_port(made.folder, metrics_port=port, metrics_address="192.0.2.1")
    with pytest.raises(ConnectionProblemError, match=r"cannot listen on 192\.0\.2\.1"), \
            metrics_served(elsewhere):  # fmt: skip
        pass
    without = with_port(made.folder)
    assert without.settings.metrics_port is None
    with metrics_served(without), pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)


def test_a_site_that_is_enrolled_meanwhile_is_told_of_and_the_port_stays(made: Provisioned) -> None:
    left = 'asterion_coordinator_site_certificate_seconds_left{site="east"}'
    with metrics_served(made):
        assert left not in get(made)[1]
        again = provisioned(made.folder, ["localhost"], ["east"])
        values = dict(line.rsplit(" ", 1) for line in get(made)[1].splitlines())
    assert float(values[left]) > 86_400
    assert again.settings.sites == ("east", "north", "south", "west")
    assert again.settings.metrics_port == made.settings.metrics_port


def test_the_text_format() -> None:
    """As https://prometheus.io/docs/instrumenting/exposition_formats has it."""
    text = exposition(
        [
            Figure("a", "One.", 1.5, {"x": 'quote " slash \\ line \n {}'}),
            Figure("b", "Two.", True),
            Figure("a", "One.", float("nan"), {"x": "y"}),
            Figure("b", "Two.", float("-inf"), {"z": ""}),
            Figure("c", "Three.", 1e300),
        ]
    )
    assert text == (
        "# HELP a One.\n# TYPE a gauge\n"
        'a{x="quote \\" slash \\\\ line \\n {}"} 1.5\na{x="y"} NaN\n'
        '# HELP b Two.\n# TYPE b gauge\nb 1\nb{z=""} -Inf\n'
        "# HELP c Three.\n# TYPE c gauge\nc 1e+300\n"
    )
    assert exposition([]) == ""
