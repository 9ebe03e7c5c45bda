"""Changes of who is enrolled that are cut, cross each other, or meet a broken file."""

import fcntl
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from tests.enrolment.test_tokens import inviting
from tests.papers import BARE, papers_of, provisioned

from asterion_client.join_by_token import enrolment_by_token
from asterion_client.site_keys import init_site
from asterion_server import superlink
from asterion_server.coordinator_toml import set_values
from asterion_server.enrol import enrol, revoke
from asterion_server.flower_server_compat import FlowerNode
from asterion_server.initialise import init_coordinator
from asterion_server.keys import Provisioned, open_provisioned
from asterion_server.superlink import FlowerCoordinator
from asterion_shared.enrolment_files import EnrolmentRequest, read_request
from asterion_shared.errors import ConnectionProblemError, FileProblemError


@pytest.fixture
def made(tmp_path: Path) -> Provisioned:
    center = tmp_path / "center"
    return provisioned(center, ["localhost"], ["north", "south"], listen="127.0.0.1")


@pytest.fixture
def north(made: Provisioned) -> EnrolmentRequest:
    return read_request(init_site(papers_of(made, "north") / "site.toml")[0])


@pytest.fixture
def west(tmp_path: Path) -> EnrolmentRequest:
    toml = tmp_path / "west" / "site.toml"
    toml.parent.mkdir()
    toml.write_text(BARE.format(name="west"))
    return read_request(init_site(toml)[0])


def trail_of(made: Provisioned) -> str:
    return (made.audit / "audit-000001.jsonl").read_text()


def test_a_broken_file_of_another_keeps_no_site_admitted(made: Provisioned) -> None:
    (made.operators / "anna.pem").write_text("no key")
    with pytest.raises(FileProblemError, match="is not an Ed25519 public key"):
        revoke(made.folder, "north")
    assert not made.public_key("north").exists()
    assert not made.enrolment("north").exists()
    assert open_provisioned(made.folder).settings.sites == ("south",)
    assert '"kind":"revoked"' in trail_of(made)


def test_a_site_whose_certificates_are_lost_is_revoked_by_its_key(made: Provisioned) -> None:
    made.certificates("north").unlink()
    assert revoke(made.folder, "north") == ()
    assert not made.public_key("north").exists()
    assert open_provisioned(made.folder).settings.sites == ("south",)


def test_a_question_to_a_person_keeps_no_revocation_waiting(
    made: Provisioned, west: EnrolmentRequest
) -> None:
    asked: list[str] = []

    def confirm(site: str, shown: str) -> bool:
        with (made.folder / "enrolments" / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # or it raises
        asked.append(shown)
        return True

    enrol(made.folder, [west], confirm)
    assert open_provisioned(made.folder).settings.sites == ("north", "south", "west")
    assert len(asked) == 1


@pytest.mark.parametrize("revoked_at", ["before the site came", "while it was looked at"])
def test_a_revocation_ends_an_open_invitation(
    made: Provisioned,
    north: EnrolmentRequest,
    revoked_at: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from asterion_server import enrol as enrolling

    with inviting(made, "north") as here:
        if revoked_at == "before the site came":
            revoke(made.folder, "north")
        else:
            first, looked = enrolling._check_key_is_free, list[str]()

            def look(made: Provisioned, site: str, key: str) -> None:
                first(made, site, key)
                if not looked:  # outside of the lock
                    looked.append(site)
                    revoke(made.folder, site)

            monkeypatch.setattr(enrolling, "_check_key_is_free", look)
        with pytest.raises(ConnectionProblemError, match="was revoked since it was invited"):
            enrolment_by_token(here.address, here.token, north)
        assert "revoked meanwhile" in here.end()
    assert open_provisioned(made.folder).settings.sites == ("south",)
    with inviting(made, "north") as here:  # a new one admits it again
        enrolment_by_token(here.address, here.token, north)
    assert open_provisioned(made.folder).settings.sites == ("north", "south")


def test_init_writes_back_no_site_that_is_revoked_meanwhile(made: Provisioned) -> None:
    again = threading.Thread(target=init_coordinator, args=(made.folder,))
    with (made.folder / "enrolments" / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        again.start()
        again.join(1.0)
        assert again.is_alive()
        set_values(made.folder / "coordinator.toml", {"sites": ("south",)})
    again.join(30.0)
    assert open_provisioned(made.folder).settings.sites == ("south",)


def test_a_setting_that_cannot_be_changed_is_told_in_a_line(made: Provisioned) -> None:
    path = made.folder / "coordinator.toml"
    text = path.read_text().replace("sites = ", '"sites" = ')
    path.write_text(text)
    with pytest.raises(FileProblemError, match="sites cannot be set in it"):
        set_values(path, {"sites": ()})
    assert path.read_text() == text


class SuperLink:
    """What a SuperLink knows, and how often it still fails to do what it is told."""

    def __init__(self) -> None:
        self.known: dict[bytes, str] = {}
        self.failures = 0
        self.while_busy: Callable[[], object] = lambda: None
        self.refuses = ""

    def __call__(self, *_: object) -> "SuperLink":
        return self

    def nodes(self) -> list[FlowerNode]:
        return [FlowerNode(n, k, True, "", "", i) for i, (k, n) in enumerate(self.known.items())]

    def enrol(self, name: str, key: bytes) -> None:
        if name == self.refuses:
            raise _status(409)
        self.known[key] = name
        self.while_busy()

    def remove(self, number: int) -> None:
        if self.failures:
            self.failures -= 1
            raise _status(500)
        del self.known[list(self.known)[number]]

    def close(self) -> None:
        """Nothing is open."""

    @property
    def sites(self) -> list[str]:
        return sorted(self.known.values())


def _status(code: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://localhost")
    return httpx.HTTPStatusError("", request=request, response=httpx.Response(code))


@pytest.fixture
def flower(
    made: Provisioned, monkeypatch: pytest.MonkeyPatch
) -> tuple[FlowerCoordinator, SuperLink]:
    known = SuperLink()
    monkeypatch.setattr(superlink, "Control", known)
    monkeypatch.setattr(superlink, "AGAIN_SECONDS", 0.0)
    coordinator = FlowerCoordinator(made)
    coordinator._enrol_anew(print)
    assert known.sites == ["north", "south"]
    return coordinator, known


def test_a_revocation_that_flower_did_not_take_is_told_again_until_it_does(
    made: Provisioned, flower: tuple[FlowerCoordinator, SuperLink]
) -> None:
    coordinator, known = flower
    said: list[str] = []
    known.failures = 2
    revoke(made.folder, "north")
    for _ in range(4):
        coordinator._enrol_anew(said.append)
    assert known.sites == ["south"]
    assert len(said) == 1
    assert "not taken up yet (HTTPStatusError)" in said[0]


def test_a_change_that_comes_while_flower_is_told_another_is_not_lost(
    made: Provisioned, flower: tuple[FlowerCoordinator, SuperLink], west: EnrolmentRequest
) -> None:
    coordinator, known = flower
    known.while_busy = lambda: revoke(made.folder, "north")
    enrol(made.folder, [west], lambda *_: True)
    for _ in range(2):
        coordinator._enrol_anew(print)
        known.while_busy = lambda: None
    assert known.sites == ["south", "west"]


def test_a_key_that_flower_refuses_keeps_no_other_site_out(
    made: Provisioned, flower: tuple[FlowerCoordinator, SuperLink], west: EnrolmentRequest
) -> None:
    coordinator, known = flower
    said: list[str] = []
    known.refuses = "west"
    enrol(made.folder, [west], lambda *_: True)
    revoke(made.folder, "north")
    for _ in range(3):
        coordinator._enrol_anew(said.append)
    assert known.sites == ["south"]
    assert len(said) == 1
    assert "does not take the keys of west" in said[0]


def test_settings_that_are_being_edited_do_not_end_the_coordinator(
    made: Provisioned, flower: tuple[FlowerCoordinator, SuperLink]
) -> None:
    coordinator, known = flower
    said: list[str] = []
    path = made.folder / "coordinator.toml"
    right = path.read_text()
    path.write_text(right + "port = \n")
    coordinator._enrol_anew(said.append)
    path.unlink()
    coordinator._enrol_anew(said.append)
    assert len(said) == 2
    path.write_text(right.replace('"north", ', ""))
    coordinator._enrol_anew(said.append)
    assert known.sites == ["south"]
    assert len(said) == 2
