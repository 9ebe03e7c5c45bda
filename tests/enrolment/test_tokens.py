"""Invitations by token, over real TLS on the loopback interface."""

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from tests.conftest import Ran
from tests.link.loopback import free_port
from tests.papers import BARE, provisioned

from asterion_client.enrolment_command_line import join
from asterion_client.join_by_token import _problem, enrolment_by_token
from asterion_client.site_keys import init_site
from asterion_server.invite import MOST_WRONG, invite
from asterion_server.keys import Provisioned, open_provisioned
from asterion_shared.enrolment_files import EnrolmentRequest, read_request
from asterion_shared.enrolment_tokens import Token, new_token, read_token
from asterion_shared.errors import (
    AsterionError,
    ConnectionProblemError,
    SettingsError,
    UnreachableError,
    UserInputError,
)


class Invitation:
    """An invitation on a thread of its own."""

    def __init__(self, made: Provisioned, site: str, seconds: float) -> None:
        self.port, self.ended = free_port(), ""
        self._stop, told = threading.Event(), threading.Event()

        def say(token: Token) -> None:
            self.token = token
            told.set()

        def wait() -> None:
            try:
                self.ended = invite(
                    made, site, say, port=self.port, seconds=seconds, stop=self._stop
                )
            except AsterionError as error:
                self.ended = str(error)
                told.set()

        self._thread = threading.Thread(target=wait)
        self._thread.start()
        assert told.wait(20)

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    def end(self, *, at_once: bool = False) -> str:
        if at_once:
            self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.ended


@pytest.fixture
def made(tmp_path: Path) -> Provisioned:
    return provisioned(tmp_path / "center", ["localhost"], ["north"], listen="127.0.0.1")


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    folder = tmp_path / "west"
    folder.mkdir()
    (folder / "site.toml").write_text(BARE.format(name="west"))
    return folder / "site.toml"


@pytest.fixture
def request_(toml: Path) -> EnrolmentRequest:
    return read_request(init_site(toml)[0])


@contextmanager
def inviting(made: Provisioned, site: str = "west", seconds: float = 60.0) -> Iterator[Invitation]:
    invitation = Invitation(made, site, seconds)
    try:
        yield invitation
    finally:
        invitation.end(at_once=True)


def test_a_site_joins_with_a_token_and_it_works_once(made: Provisioned, toml: Path) -> None:
    with inviting(made) as here:
        text = here.token.text().lower().replace("-", " ")
        join(toml, None, token=text, address=here.address)
        shown = here.end()
    assert shown == init_site(toml)[1]
    assert open_provisioned(made.folder).settings.sites == ("north", "west")
    assert "[connection]" in toml.read_text()
    request = read_request(init_site(toml)[0])
    with pytest.raises(UnreachableError, match="may be over"):
        enrolment_by_token(here.address, here.token, request)


def test_the_token_is_asked_for(
    made: Provisioned, toml: Path, asterion: Callable[..., Ran]
) -> None:
    with inviting(made) as here:
        join_there = ("site", "join", toml, "--address", here.address)
        wrong = asterion(*join_there, typed="ABCD-EFGH\n")
        assert (wrong.code, "ABCD" in wrong.said, "mistyped" in wrong.err) == (2, False, True)
        joined = asterion(*join_there, typed=f"{here.token.text()}\n")
        assert (joined.code, joined.out.startswith("site west has joined")) == (0, True)
        here.end()


def test_what_a_stranger_answers_is_only_shown() -> None:
    told = _problem(json.dumps({"problem": "gone\x1b[2J\nfine"}).encode())
    assert told == "gone [2J fine"


def test_wrong_tokens_end_the_invitation(made: Provisioned, request_: EnrolmentRequest) -> None:
    with inviting(made) as here:
        wrong = Token(here.token.authority, "A" * 16)
        for _ in range(MOST_WRONG):
            with pytest.raises(ConnectionProblemError, match="the token is wrong"):
                enrolment_by_token(here.address, wrong, request_)
        assert "5 wrong tokens" in here.end()
        with pytest.raises(ConnectionProblemError):
            enrolment_by_token(here.address, here.token, request_)
    assert open_provisioned(made.folder).settings.sites == ("north",)


def test_an_invitation_ends_by_time(made: Provisioned, request_: EnrolmentRequest) -> None:
    with inviting(made, seconds=0.3) as here:
        assert "did not come in time" in here.end()
        with pytest.raises(UnreachableError):
            enrolment_by_token(here.address, here.token, request_)


def test_another_authority_is_sent_nothing(
    made: Provisioned, request_: EnrolmentRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asterion_server import invite as inviter

    asked: list[bytes] = []
    monkeypatch.setattr(inviter._Invitation, "answer", lambda self, body: asked.append(body))
    other = provisioned(tmp_path / "other", ["localhost"], [])
    mine = new_token(_shown(other))
    with inviting(made) as here, pytest.raises(ConnectionProblemError, match="nothing was sent"):
        enrolment_by_token(here.address, mine, request_)
    assert asked == []


def test_a_second_authority_behind_the_right_one_is_not_believed(
    made: Provisioned, request_: EnrolmentRequest, tmp_path: Path
) -> None:
    """Whoever stands in between sends the real certificate, which is no secret, and their own."""
    other = provisioned(tmp_path / "other", ["localhost"], [])
    both = made.root_certificate.read_bytes() + other.root_certificate.read_bytes()
    asked: list[str] = []

    class Between(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(both)

        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_error(400)

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(other.certificate, other.private_key)
    with HTTPServer(("127.0.0.1", 0), Between) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(ConnectionProblemError, match="nothing was sent"):
                enrolment_by_token(
                    f"localhost:{server.server_port}", new_token(_shown(made)), request_
                )
        finally:
            server.shutdown()
            thread.join()
    assert asked == []


def test_an_invitation_is_for_one_site(made: Provisioned, request_: EnrolmentRequest) -> None:
    with inviting(made, "east") as here:
        with pytest.raises(ConnectionProblemError, match="for site east, not for west"):
            enrolment_by_token(here.address, here.token, request_)
        altered = request_.model_copy(update={"site": "east"})
        with pytest.raises(ConnectionProblemError, match="changed after it was signed"):
            enrolment_by_token(here.address, here.token, altered)
    assert open_provisioned(made.folder).settings.sites == ("north",)
    with pytest.raises(SettingsError, match="site"):
        invite(made, "../east", print)


def _shown(made: Provisioned) -> str:
    from asterion_shared.fingerprints import certificate_fingerprint

    return certificate_fingerprint(made.root_certificate.read_bytes())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t[:-1],
        lambda t: t + "A",
        lambda t: ("B" if t[0] == "A" else "A") + t[1:],
        lambda t: "",
    ],
)
def test_a_slip_of_the_pen_is_seen(made: Provisioned, spoil: Callable[[str], str]) -> None:
    token = new_token(_shown(made))
    assert read_token(token.text()) == token
    with pytest.raises(UserInputError, match="mistyped"):
        read_token(spoil(token.text()))
