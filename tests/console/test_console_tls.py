"""The operator's console over TLS: its real process, and a client that checks the certificate."""

import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from tests.console.conftest import Browser
from tests.console.examples import coordinator
from tests.link.loopback import free_port

from asterion_server.keys import Provisioned
from asterion_shared.console.settings import GREETING

CONSOLE = [sys.executable, "-m", "asterion_shared.command_line", "server", "console"]


def console_settings(made: Provisioned, port: int, key: str) -> None:
    path = made.folder / "coordinator.toml"
    before, _, _ = path.read_text().partition("[console]")
    path.write_text(
        f'{before}[console]\nport = {port}\ncertificate = "server.pem"\nprivate_key = "{key}"\n'
    )


@pytest.fixture
def made(tmp_path: Path) -> Provisioned:
    return coordinator(tmp_path / "centre", ["north"], free_port())


def test_pages_go_over_tls_alone_and_the_cookie_with_them(made: Provisioned) -> None:
    port = free_port()
    console_settings(made, port, "server.key")
    with (made.folder / "console.log").open("w") as log:
        process = subprocess.Popen([*CONSOLE, str(made.folder)], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 60
        while GREETING not in (said := (made.folder / "console.log").read_text()):
            assert process.poll() is None, said
            assert time.monotonic() < until, said
            time.sleep(0.1)
        address = f"https://127.0.0.1:{port}"
        assert f"{GREETING}{address}/" in said
        trusted = ssl.create_default_context(cafile=made.root_certificate)
        with httpx.Client(base_url=address, verify=trusted, follow_redirects=True) as client:
            anna = Browser(client)
            assert anna.sign_in().status_code == 200
            assert "Runs" in anna.get("/")
            cookies = [c for c in client.cookies.jar if not c.name.endswith("-form")]
            assert [(c.secure, c.has_nonstandard_attr("HttpOnly")) for c in cookies] == [
                (True, True)
            ]
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(address)
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(20)


def test_a_key_of_another_certificate_is_one_clear_line(made: Provisioned) -> None:
    console_settings(made, free_port(), "ca.key")
    ended = subprocess.run(
        [*CONSOLE, str(made.folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode > 1
    assert "Traceback" not in ended.stderr
    assert "the private key is not its own" in ended.stderr
