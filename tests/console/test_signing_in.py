"""Who comes in, for how long, and what stands before every page."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Ran
from tests.console.conftest import Browser
from tests.console.examples import COMMAND, PASSWORD, coordinator
from tests.link.loopback import free_port

from asterion_server.keys import CoordinatorSettings, Provisioned, check_key_files
from asterion_shared.console.people import People, hashed, person_with, read_people, set_person
from asterion_shared.console.sessions import (
    FORGET_SECONDS,
    FREE_TRIES,
    IDLE_SECONDS,
    LONGEST_SECONDS,
    LONGEST_WAIT_SECONDS,
    Attempts,
    Sessions,
)
from asterion_shared.console.settings import ConsoleSettings
from asterion_shared.errors import FileProblemError, SettingsError, UserInputError
from asterion_shared.settings_files import validate

Browse = Callable[[Provisioned], Browser]


class Watch:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_shown_to_strangers(stranger: Browser) -> None:
    for path in ("/", "/sites", "/runs/first-look", "/runs/first-look/report", "/live"):
        answer = stranger.client.get(path, follow_redirects=False)
        assert answer.status_code in (303, 403)
        assert "first-look" not in answer.text
        assert answer.headers.get("location", "/sign-in") == "/sign-in"


def test_a_wrong_password_and_an_unknown_name_look_alike(stranger: Browser) -> None:
    wrong, unknown = stranger.sign_in("anna", "x" * 20), stranger.sign_in("nina", "x" * 20)
    assert (wrong.status_code, unknown.status_code) == (403, 403)
    told = [re.sub(r'value="[^"]*"', "", answer.text) for answer in (wrong, unknown)]
    assert told[0] == told[1]
    assert "Name or password is wrong" in told[0]


def test_signing_in_and_out(stranger: Browser) -> None:
    assert "Runs" in stranger.sign_in().text
    (cookie,) = [c for c in stranger.client.cookies.jar if not c.name.endswith("-form")]
    token = cookie.value
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert cookie.get_nonstandard_attr("SameSite") == "strict"
    assert token is not None
    assert len(token) >= 43  # 256 bits
    stranger.client.post("/sign-out", data={"csrf": "of somebody else"})
    stranger.client.cookies.set(cookie.name, token)
    stranger.get("/sites")
    stranger.post("/sign-out")
    stranger.client.cookies.set(cookie.name, token)
    assert stranger.client.get("/", follow_redirects=False).status_code == 303


def test_signing_in_needs_the_form_of_this_browser(stranger: Browser) -> None:
    form = {"form": "made up", "name": "anna", "password": PASSWORD}
    assert stranger.client.post("/sign-in", data=form).status_code == 400
    token = stranger.hidden("/sign-in", "form")
    elsewhere = {"Sec-Fetch-Site": "cross-site"}
    answer = stranger.client.post("/sign-in", data=form | {"form": token}, headers=elsewhere)
    assert answer.status_code == 400
    token = stranger.hidden("/sign-in", "form")
    stranger.get("/sign-in")  # in another tab, or by a page whose session has ended
    assert stranger.client.post("/sign-in", data=form | {"form": token}).status_code == 200
    assert stranger.hidden("/sign-in", "form") != token


def test_many_tries_have_to_wait_and_the_right_password_too(stranger: Browser) -> None:
    for _ in range(FREE_TRIES):
        assert stranger.sign_in("anna", "x" * 20).status_code == 403
    answer = stranger.sign_in()
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) >= 1


def test_tries_are_counted_by_name_and_by_address() -> None:
    watch = Watch()
    attempts = Attempts(watch)
    for number in range(FREE_TRIES):
        assert attempts.begin(["name anna", f"address {number}"]) == 0.0
    assert attempts.begin(["name anna", "address 99"]) == 2.0
    assert attempts.begin(["name otto", "address 99"]) == 0.0
    watch.now += 2.0
    assert attempts.begin(["name anna", "address 99"]) == 0.0
    assert attempts.begin(["name anna", "address 99"]) == 4.0
    for _ in range(20):
        watch.now += LONGEST_WAIT_SECONDS
        assert attempts.begin(["name anna", "address 98"]) == 0.0
    assert attempts.begin(["name anna", "address 99"]) == LONGEST_WAIT_SECONDS
    watch.now += LONGEST_WAIT_SECONDS
    assert attempts.begin(["name anna", "address 99"]) == 0.0
    attempts.succeeded("name anna", ["address 99"])
    assert attempts.begin(["name anna", "address 97"]) == 0.0
    watch.now += FORGET_SECONDS + 1
    for _ in range(FREE_TRIES):
        assert attempts.begin(["address 98"]) == 0.0


def test_a_session_ends_when_idle_and_after_hours() -> None:
    watch, person = Watch(), People.model_validate(
        {"people": {"anna": {"role": "acts", "password": hashed(PASSWORD)}}}
    ).people["anna"]  # fmt: skip
    sessions = Sessions(watch)
    token = sessions.begin("anna", person)
    watch.now += IDLE_SECONDS - 1
    assert sessions.find(token, used=False) is not None  # a page that looks by itself
    watch.now += 2
    assert sessions.find(token, used=True) is None
    token = sessions.begin("anna", person)
    while watch.now < 1000 + IDLE_SECONDS + LONGEST_SECONDS:
        watch.now += IDLE_SECONDS / 2
        assert sessions.find(token, used=True) is not None
    watch.now += IDLE_SECONDS / 2
    assert sessions.find(token, used=True) is None
    assert sessions.find("made up", used=True) is None


def test_another_host_name_is_refused(stranger: Browser) -> None:
    for host in ("evil.example", f"evil.example:{stranger.client.base_url.port}", "127.0.0.1:1"):
        answer = stranger.client.get("/sign-in", headers={"Host": host})
        assert answer.status_code == 421
        assert "form" not in answer.text


def test_every_answer_has_the_headers(anna: Browser) -> None:
    for path in ("/", "/sign-in", "/nowhere", "/static/style.css", "/runs/first-look/report"):
        headers = anna.client.get(path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy or "sandbox" in policy
        assert "unsafe-inline" not in policy.replace("style-src 'unsafe-inline'", "")
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == ("max-age=300" if "static" in path else "no-store")


def test_a_large_body_and_one_of_unknown_length_are_refused(stranger: Browser) -> None:
    assert stranger.client.post("/sign-in", content=b"x" * 1_000_001).status_code == 413
    parts = iter([b"name=", b"anna"])
    assert stranger.client.post("/sign-in", content=parts).status_code == 411


def test_a_new_password_ends_the_sessions(tmp_path: Path, browse: Browse) -> None:
    made = coordinator(tmp_path / "centre", ["north"], free_port())
    browser = browse(made)
    browser.sign_in()
    browser.get("/sites")
    assert made.console_people is not None
    set_person(made.console_people, "anna", "acts", PASSWORD, COMMAND)
    assert browser.client.get("/", follow_redirects=False).status_code == 303


def test_console_password_on_the_command_line(tmp_path: Path, asterion: Callable[..., Ran]) -> None:
    made = coordinator(tmp_path / "centre", ["north"], free_port())
    path, words = made.console_people, ("server", "console-password", "maria", "--folder")
    assert path is not None
    ran = asterion(*words, made.folder, "--looks-only", typed="four words make one\n")
    assert ran.code == 0
    assert path.stat().st_mode & 0o777 == 0o600
    people = read_people(path, COMMAND)
    person = person_with(people, "maria", "four words make one")
    assert person is not None
    assert person.role == "looks"
    assert "four words" not in path.read_text() + ran.said
    assert asterion(*words, made.folder, typed="short\n").code == UserInputError.exit_code
    assert asterion(*words, made.folder, "--remove").code == 0
    assert person_with(read_people(path, COMMAND), "maria", "four words make one") is None
    assert asterion(*words, made.folder, "--remove").code == UserInputError.exit_code


def test_the_people_file_is_private(tmp_path: Path) -> None:
    made = coordinator(tmp_path / "centre", ["north"], free_port())
    assert made.console_people is not None
    made.console_people.chmod(0o644)
    with pytest.raises(FileProblemError, match="chmod 600"):
        read_people(made.console_people, COMMAND)
    with pytest.raises(FileProblemError, match="chmod 600"):
        check_key_files(made)


def test_settings_want_tls_beyond_this_machine() -> None:
    hosts = {"hosts": ["center"], "console": {"port": 8443, "address": "0.0.0.0"}}  # noqa: S104
    with pytest.raises(SettingsError, match="give a certificate"):
        validate(CoordinatorSettings, hosts, "coordinator.toml")
    half = {"port": 8443, "certificate": "console.pem"}
    with pytest.raises(SettingsError, match="belong together"):
        validate(ConsoleSettings, half, "console")
    with pytest.raises(SettingsError, match="of the link alone"):
        validate(CoordinatorSettings, {"hosts": ["center"], "carrier": "flower",
                 "console": {"port": 8443}}, "coordinator.toml")  # fmt: skip
    found = validate(ConsoleSettings, {"port": 443, "address": "10.0.0.2", "hosts": ["Console.Org"],
                     "certificate": "a.pem", "private_key": "a.key"}, "console")  # fmt: skip
    assert found.accepted_hosts() == {"10.0.0.2:443", "console.org:443", "10.0.0.2", "console.org"}


def test_no_console_and_nobody_who_may_sign_in(
    tmp_path: Path, asterion: Callable[..., Ran]
) -> None:
    made = coordinator(tmp_path / "centre", ["north"], free_port())
    assert made.console_people is not None
    made.console_people.unlink()
    ran = asterion("server", "console", made.folder)
    assert ran.code == FileProblemError.exit_code
    assert "asterion server console-password NAME" in ran.err
    toml = made.folder / "coordinator.toml"
    toml.write_text(toml.read_text().partition("[console]")[0])
    ran = asterion("server", "console", made.folder)
    assert ran.code == FileProblemError.exit_code
    assert "port = 8443" in ran.err
