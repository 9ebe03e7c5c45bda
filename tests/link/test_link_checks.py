"""``asterion site check`` and ``asterion server check`` over the link: what is wrong."""

import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event

import grpc
import pytest
from cryptography import x509
from tests.link.loopback import Loopback, free_port
from tests.link.postgres import is_installed, postgres
from tests.papers import papers_of, provisioned
from typer.testing import CliRunner

from asterion_client.check_connection import check_connection as check_site_connection
from asterion_client.daemon import run_site
from asterion_client.settings import read_site_settings
from asterion_server import certificates
from asterion_server.command_line import app
from asterion_server.coordinator import LinkCoordinator
from asterion_server.database_urls import check_database, problem_of_url
from asterion_server.enrol import enrol
from asterion_server.initialise import init_coordinator
from asterion_server.keys import Provisioned, open_provisioned
from asterion_server.link_check import check_coordinator
from asterion_server.link_store import LinkStore
from asterion_shared import connection_check
from asterion_shared.connection_check import check_connection
from asterion_shared.enrolment_files import read_request
from asterion_shared.errors import FileProblemError, Problem, SettingsError, UnreachableError
from asterion_shared.link.admission_check import check_admission
from asterion_shared.proxies import proxy_for


def site_of(link: Loopback, folder: Path, name: str = "north") -> Path:
    """A copy of the folder of a site that has joined; its settings' path."""
    return Path(shutil.copytree(papers_of(link.made, name), folder)) / "site.toml"


def problems(path: Path, **other: object) -> list[Problem]:
    settings = read_site_settings(path)
    assert settings.connection is not None
    connection = settings.connection.model_copy(update=other)
    return list(check_site_connection(connection, settings.name, path.parent))


def test_a_site_that_is_well_is_admitted_and_its_session_stays(
    link: Loopback, tmp_path: Path
) -> None:
    path = site_of(link, tmp_path / "north")
    session = link.site("north").attend()
    before = link.store.sessions()
    assert problems(path) == []
    assert link.store.sessions() == before
    assert session.is_active()


def _no_certificate(path: Path, link: Loopback) -> None:
    path.write_text(path.read_text().replace('certificate = "site.pem"', ""))


def _lost_certificate(path: Path, link: Loopback) -> None:
    (path.parent / "site.pem").unlink()


def _other_authority(path: Path, link: Loopback) -> None:
    other = provisioned(path.parent / "other", ["localhost"], ["north"])
    for file in ("site.pem", "site.key"):
        shutil.copy(papers_of(other, "north") / file, path.parent / file)
    shutil.copytree(papers_of(other, "north") / "peers", path.parent / "peers", dirs_exist_ok=True)


def _other_root(path: Path, link: Loopback) -> None:
    other = provisioned(path.parent / "other", ["localhost"], ["north"])
    shutil.copy(other.root_certificate, path.parent / "ca.pem")


def _other_key(path: Path, link: Loopback) -> None:
    shutil.copy(papers_of(link.made, "south") / "site.key", path.parent / "site.key")
    (path.parent / "peers" / "north.pem").write_bytes(link.made.public_key("south").read_bytes())


def _other_site(path: Path, link: Loopback) -> None:
    for file in ("site.pem", "site.key"):
        shutil.copy(papers_of(link.made, "south") / file, path.parent / file)
    path.write_text(path.read_text().replace('peers = "peers"', ""))


def _rubbish(path: Path, link: Loopback) -> None:
    (path.parent / "site.pem").write_text("rubbish")


def _not_enrolled(path: Path, link: Loopback) -> None:
    link.made.public_key("north").unlink()


def _revoked(path: Path, link: Loopback) -> None:
    found = x509.load_pem_x509_certificate((path.parent / "site.pem").read_bytes())
    link.made.revoked.write_text(f"0{found.serial_number:X}\n")  # as OpenSSL prints it


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_no_certificate, ["connection.certificate: is not set"]),
        (_lost_certificate, ["site.pem does not exist"]),
        (_other_authority, ["site.pem: was not issued by the authority"]),
        (_other_root, ["site.pem: was not issued", "was not issued by the authority in"]),
        (_other_key, ["site.key: does not belong to the certificate site.pem"]),
        (_other_site, ["is the certificate of site 'south', and site.toml says 'north'"]),
        (_rubbish, ["site.pem: is not a PEM certificate"]),
        (_not_enrolled, ["refuses this site (foreign); ask its operator to enrol this site"]),
        (_revoked, ["refuses this site (revoked); its certificate is revoked"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_is_wrong_with_a_sites_papers(
    link: Loopback, tmp_path: Path, spoil: Callable[[Path, Loopback], None], words: list[str]
) -> None:
    path = site_of(link, tmp_path / "north")
    spoil(path, link)
    found = problems(path)
    assert len(found) == len(words)
    for problem, expected in zip(found, words, strict=True):
        assert expected in str(problem)
        assert problem.fatal
        assert problem.fix


def test_dates_of_a_certificate(
    link: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = site_of(link, tmp_path / "north")
    made = link.made
    for days, words, fatal in ((30, "in 29 days", False), (0.02, "ended on", True)):
        monkeypatch.setattr(certificates, "LEAF_DAYS", days)
        init_coordinator(made.folder)
        requests = [read_request(made.request(site)) for site in made.settings.sites]
        enrol(made.folder, requests, lambda site, shown: False)  # nothing new, so no question
        shutil.copy(made.certificates("north"), path.parent / "site.pem")  # the newest is first
        found = problems(path)
        (own,) = [problem for problem in found if problem.where.endswith("site.pem")]
        assert words in own.what
        assert own.fatal == fatal
        assert own.fix.startswith("ask the coordinator's operator")
        told = [p for p in check_coordinator(made) if p.where.endswith(".pem")]
        files = [Path(problem.where).name for problem in told]
        assert files == ["server.pem", "north.pem", "south.pem", "west.pem"]
        assert all(words in problem.what and problem.fatal == fatal for problem in told)
    early = check_coordinator(made, datetime.now(UTC) - timedelta(days=3))
    assert "set the clock" in early[0].fix
    # What a check names, a start refuses, before any process is begun.
    with pytest.raises(FileProblemError, match=r"server\.pem: ended on"):
        LinkCoordinator(made).__enter__()
    with pytest.raises(FileProblemError, match=r"site\.pem: ended on"):
        run_site(path, wait_seconds=0, say=print, stop=Event())


def test_a_server_that_is_no_link_and_one_that_ends_the_handshake(
    link: Loopback, tmp_path: Path
) -> None:
    path = site_of(link, tmp_path / "north")
    (nobody,) = problems(path, address=f"localhost:{free_port()}")
    assert nobody.where == "connection.address"
    assert "cannot be reached" in nobody.what
    identity = link.identity("north")
    credentials = grpc.ssl_server_credentials([(
        link.made.private_key.read_bytes(), link.made.certificate.read_bytes()
    )])  # fmt: skip
    server = grpc.server(_executor())
    port = server.add_secure_port("localhost:0", credentials)
    server.start()
    try:
        (other,) = problems(path, address=f"localhost:{port}")
    finally:
        server.stop(None).wait()
    assert "does not speak the link (unimplemented)" in other.what
    assert "connection.carrier" in other.fix
    with pytest.raises(Exception, match="ended the connection when it saw"):
        check_admission(f"localhost:{free_port()}", identity)


def _executor():
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(1)


@contextmanager
def http_proxy(status: str) -> Iterator[tuple[str, list[str]]]:
    """A proxy that answers CONNECT with a status, and carries when that is 200."""
    listener, asked = socket.create_server(("127.0.0.1", 0)), list[str]()
    ends: list[socket.socket] = []

    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the test is over

    def serve() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            ends.append(near)
            head = b""
            while b"\r\n\r\n" not in head:
                head += near.recv(4096)
            asked.append(head.decode())
            near.sendall(f"HTTP/1.1 {status}\r\n\r\n".encode())
            if not status.startswith("200"):
                near.shutdown(socket.SHUT_RDWR)
                continue
            host, _, port = head.decode().split(" ")[1].rpartition(":")
            ends.append(socket.create_connection((host, int(port))))
            for way in ((near, ends[-1]), (ends[-1], near)):
                threading.Thread(target=pump, args=way, daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
        for end in ends:
            end.close()


def test_a_proxy_on_the_way(
    link: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = site_of(link, tmp_path / "north")
    with http_proxy("200 Connection established") as (way, asked):
        assert problems(path, proxy=way) == []
        assert len(asked) == 2  # our own look, and the link's call
        monkeypatch.setenv("https_proxy", way)
        assert problems(path) == []
        assert len(asked) == 4
        monkeypatch.setenv("no_proxy", "example.org,localhost")
        assert problems(path) == []
        assert len(asked) == 4
        secret = way.replace("http://", "http://me:p%40ss@")
        check_connection(link.address, path.parent / "ca.pem", proxy=secret)
        assert "Proxy-Authorization: Basic bWU6cEBzcw==" in asked[-1]
    (gone,) = problems(path, proxy=way)
    assert gone.where == "connection.proxy"
    assert "cannot be reached" in gone.what
    with http_proxy("407 Proxy Authentication Required") as (way, _):
        (refused,) = problems(path, proxy=way)
        assert "(407 Proxy Authentication Required)" in refused.what
        secret = way.replace("http://", "http://me:hush@")
        with pytest.raises(UnreachableError) as caught:
            check_connection(link.address, path.parent / "ca.pem", proxy=secret)
        assert "hush" not in str(caught.value)
    (wrong,) = problems(path, proxy="proxy:3128")
    assert "not as http://host:port" in wrong.what


@pytest.mark.parametrize(
    ("environment", "host", "expected"),
    [
        ({}, "h", None),
        ({"http_proxy": "http://c", "https_proxy": "http://b"}, "h", "http://b"),
        ({"https_proxy": "http://b", "grpc_proxy": "http://a"}, "h", "http://a"),
        ({"https_proxy": "http://b", "no_proxy": ".org, example.com"}, "x.example.COM", None),
        ({"https_proxy": "http://b", "no_proxy": "10.0.0.0/8"}, "10.1.2.3", None),
        ({"https_proxy": "http://b", "no_proxy": "10.0.0.0/8,"}, "11.1.2.3", "http://b"),
        ({"https_proxy": "http://b", "no_proxy": "10.0.0.0/8"}, "ten.org", "http://b"),
        ({"https_proxy": "http://b", "no_proxy": "h", "no_grpc_proxy": "g"}, "h", "http://b"),
    ],
)
def test_which_proxy_the_environment_names(
    environment: dict[str, str], host: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(host, None) == expected
    assert proxy_for(host, "http://given") == "http://given"


@pytest.fixture
def made(tmp_path: Path) -> Provisioned:
    return provisioned(
        tmp_path / "center", ["localhost"], ["north"], port=free_port(), listen="127.0.0.1"
    )


def test_a_coordinator_that_is_well_or_runs_already(
    made: Provisioned, link: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_check, "TIMEOUT_SECONDS", 1.0)
    assert fatal(check_coordinator(made)) == []
    assert fatal(check_coordinator(link.made)) == []  # its own link has the port
    with socket.create_server(("127.0.0.1", made.settings.port)):
        (taken,) = fatal(check_coordinator(made))
    assert taken.where == "port"


def fatal(found: list[Problem]) -> list[Problem]:
    return [problem for problem in found if problem.fatal]


def test_a_coordinators_papers(made: Provisioned, tmp_path: Path) -> None:
    made.private_key.chmod(0o640)
    made.folder.chmod(0o755)
    found = check_coordinator(made)
    assert [p.fix for p in found if p.where == str(made.private_key)] == [
        f"chmod 600 {made.private_key}"
    ]
    assert [p.fatal for p in found if p.where == str(made.folder)] == [False]
    other = provisioned(tmp_path / "other", ["localhost"], ["north"])
    shutil.copy(other.private_key, made.private_key)
    assert "does not belong to the certificate server.pem" in check_coordinator(made)[0].what
    shutil.copy(other.certificate, made.certificate)
    shutil.copy(other.certificates("north"), made.certificates("north"))
    words = [p.what for p in check_coordinator(made) if p.where.endswith(".pem")]
    assert words == ["was not issued by the authority in ca.pem"] * 2
    with pytest.raises(FileProblemError, match="was not issued"):
        LinkCoordinator(made).__enter__()


def test_the_command_names_all_and_ends_with_a_code(made: Provisioned) -> None:
    made.private_key.chmod(0o644)
    told = CliRunner().invoke(app, ["check", str(made.folder), "--json"])
    assert told.exit_code == 30
    assert [p["fatal"] for p in json.loads(told.stdout)["problems"]].count(True) == 1
    made.private_key.chmod(0o600)
    told = CliRunner().invoke(app, ["check", str(made.folder)])
    assert told.exit_code == 0
    assert str(made.folder) in told.stdout


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:////somewhere/queue.sqlite", ""),
        ("postgresql+psycopg://me@host/queue", ""),
        ("postgresql+psycopg://me:hush@host/queue", ""),
        ("postgresql+psycopg:///?service=asterion", ""),
        ("nonsense", "not a URL"),
        ("mysql://host/queue", "begins with 'mysql'"),
        ("postgresql://host/queue", "begins with 'postgresql'"),
        ("postgresql+psycopg://host/queue?password=hush", "after the '?'"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_urls_of_databases(url: str, words: str, made: Provisioned) -> None:
    found = problem_of_url(url)
    assert words in found
    assert bool(words) == bool(found)
    toml = made.folder / "coordinator.toml"
    toml.write_text(toml.read_text() + f'database = "{url}"\n')
    toml.chmod(0o600)
    if not words:
        assert open_provisioned(made.folder).settings.database == url
        return
    with pytest.raises(SettingsError, match="database") as caught:
        open_provisioned(made.folder)
    assert "hush" not in str(caught.value)


def test_a_password_that_others_can_read_is_refused(made: Provisioned) -> None:
    toml = made.folder / "coordinator.toml"
    url = "postgresql+psycopg://me:hush@host/queue"
    toml.write_text(toml.read_text() + f'database = "{url}"\n')
    toml.chmod(0o644)
    for refused in (
        lambda: open_provisioned(made.folder),
        lambda: provisioned(made.folder, ["localhost"], ["north", "south"]),
        lambda: check_database(url, toml),
    ):
        with pytest.raises(FileProblemError, match="others can read it; chmod 600") as caught:
            refused()
        assert "hush" not in str(caught.value)
    toml.chmod(0o600)
    again = provisioned(made.folder, ["localhost"], ["north", "south"], port=made.settings.port)
    assert again.settings.database == url
    assert toml.stat().st_mode & 0o777 == 0o600  # also after it was written anew
    with pytest.raises(Exception, match="postgresql") as problem:
        LinkStore("postgresql+psycopg://me:hush@127.0.0.1:1/queue")
    assert "hush" not in str(problem.value)


def test_a_database_that_cannot_be_reached_is_named(made: Provisioned) -> None:
    toml = made.folder / "coordinator.toml"
    toml.write_text(toml.read_text() + f'database = "sqlite:///{made.folder}/no/such/q.sqlite"\n')
    (problem,) = fatal(check_coordinator(open_provisioned(made.folder)))
    assert problem.where == "database"


@pytest.mark.skipif(not is_installed(), reason="no PostgreSQL server on this machine")
def test_libpqs_own_files_hold_what_the_url_leaves_out(
    made: Provisioned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgres() as url:
        port = url.rpartition(":")[2].partition("/")[0]
        services = tmp_path / "services.conf"
        services.write_text(
            f"[asterion]\nhost=127.0.0.1\nport={port}\nuser=asterion\ndbname=postgres\n"
        )
        monkeypatch.setenv("PGSERVICEFILE", str(services))
        toml = made.folder / "coordinator.toml"
        toml.write_text(toml.read_text() + 'database = "postgresql+psycopg:///?service=asterion"\n')
        assert fatal(check_coordinator(open_provisioned(made.folder))) == []
    (problem,) = fatal(check_coordinator(open_provisioned(made.folder)))
    assert problem.where == "database"
