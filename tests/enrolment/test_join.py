"""Requests, answers, and what a site or a coordinator refuses of them."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.papers import BARE, papers_of, provisioned

from asterion_client.join import Joined, join
from asterion_client.site_keys import init_site, read_key
from asterion_server.enrol import Enrolled, enrol, enrol_operator, revoke
from asterion_server.initialise import init_coordinator
from asterion_server.keys import Provisioned, open_provisioned
from asterion_shared.enrolment_files import (
    enrolment_from,
    read_enrolment,
    read_request,
    signed_enrolment,
)
from asterion_shared.errors import FileProblemError, SettingsError, UserInputError
from asterion_shared.fingerprints import fingerprint, public_pem


def yes(*_: str) -> bool:
    return True


def no(*_: str) -> bool:
    return False


def never(*shown: str) -> bool:
    raise AssertionError(shown)


@pytest.fixture
def made(tmp_path: Path) -> Provisioned:
    return provisioned(tmp_path / "center", ["localhost"], ["north", "south"])


def site_toml(made: Provisioned, site: str) -> Path:
    return papers_of(made, site) / "site.toml"


def new_site(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "site.toml").write_text(BARE.format(name=name))
    return folder / "site.toml"


def send(
    made: Provisioned, toml: Path, confirm: Callable[[str, str], bool] = yes, **given: object
) -> Enrolled:
    """What the coordinator does with a site's request as it lies there."""
    (request,) = toml.parent.glob("*.request.json")
    (done,) = enrol(made.folder, [read_request(request)], confirm, **given)  # type: ignore[arg-type]
    return done


def take(
    made: Provisioned, toml: Path, confirm: Callable[[str], bool] = never, **given: object
) -> Joined:
    """What a site does with its answer."""
    (request,) = toml.parent.glob("*.request.json")
    file = made.enrolment(read_request(request).site)
    return join(toml, read_enrolment(file), confirm, source=str(file), **given)  # type: ignore[arg-type]


def test_a_new_site_is_asked_about_on_both_sides(made: Provisioned, tmp_path: Path) -> None:
    toml = new_site(tmp_path / "west", "west")
    path, shown = init_site(toml)
    assert path == tmp_path / "west" / "west.request.json"
    assert b"PRIVATE" not in path.read_bytes()
    asked: list[tuple[str, ...]] = []
    with pytest.raises(UserInputError, match="was not enrolled"):
        send(made, toml, no)
    assert open_provisioned(made.folder).settings.sites == ("north", "south")
    send(made, toml, lambda *words: not asked.append(words))
    assert asked == [("west", shown)]
    with pytest.raises(UserInputError, match="did not join"):
        take(made, toml, no)
    assert not (tmp_path / "west" / "ca.pem").exists()
    done = take(made, toml, lambda *words: not asked.append(words))
    assert asked[1] == (done.authority,)
    assert set(done.new) == {"peers/north", "peers/south", "peers/west", "operators/local"}
    assert done.new["peers/west"] == shown
    assert "[connection]" in toml.read_text()
    again = take(made, toml)  # nothing new, so no question
    assert (again.new, again.changed, again.gone) == ({}, {}, ())
    assert toml.read_text().count("[connection]") == 1


def test_a_key_is_never_overwritten(made: Provisioned) -> None:
    toml = site_toml(made, "north")
    before = (toml.parent / "site.key").read_bytes()
    _, shown = init_site(toml)
    assert (toml.parent / "site.key").read_bytes() == before
    assert shown == fingerprint(made.public_key("north").read_text())


@pytest.mark.parametrize("field", ["site", "public_key", "audit_public_key", "asterion_version"])
def test_a_request_that_was_altered_is_refused(made: Provisioned, field: str) -> None:
    (path,) = site_toml(made, "north").parent.glob("*.request.json")
    (other,) = site_toml(made, "south").parent.glob("*.request.json")
    values, others = json.loads(path.read_text()), json.loads(other.read_text())
    values[field] = "other" if values[field] == others[field] else others[field]
    path.write_text(json.dumps(values))
    with pytest.raises(FileProblemError, match="changed after it was signed"):
        read_request(path)


@pytest.mark.parametrize("name", ["../north", "a/b", "", ".hidden", "North", "north\n"])
def test_a_name_with_other_characters_is_refused(made: Provisioned, name: str) -> None:
    (path,) = site_toml(made, "north").parent.glob("*.request.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"site": name}))
    with pytest.raises(SettingsError, match="site"):
        read_request(path)
    with pytest.raises(UserInputError, match="no site"):
        revoke(made.folder, name)


def test_rubbish_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.request.json"
    with pytest.raises(FileProblemError, match="No such file"):
        read_request(path)
    for text, words in (("{", "is not JSON"), ("[]", "schema_version None"),
                        ('{"schema_version": 2}', "schema_version 2")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(FileProblemError, match=words):
            read_request(path)
    path.write_text('{"schema_version": 1}')
    with pytest.raises(SettingsError, match="public_key: is missing"):
        read_request(path)


@pytest.mark.parametrize("field", ["root_certificate", "certificate", "addresses", "peers",
                                   "operators", "server_certificate"])  # fmt: skip
def test_an_answer_that_was_altered_is_refused(
    made: Provisioned, field: str, tmp_path: Path
) -> None:
    path, other = made.enrolment("north"), provisioned(tmp_path / "other", ["elsewhere"], ["west"])
    others = json.loads(other.enrolment("west").read_text())
    key = public_pem(Ed25519PrivateKey.generate().public_key())
    values = {"operators": {"mallory": key}, "peers": {"north": others["peers"]["west"]}}
    changed = json.loads(path.read_text()) | {field: values.get(field, others[field])}
    path.write_text(json.dumps(changed))
    with pytest.raises(FileProblemError, match="changed after it was signed"):
        read_enrolment(path)


def test_a_site_cannot_sign_an_answer(made: Provisioned) -> None:
    from asterion_shared.enrolment_files import signed_enrolment, text_of

    honest = read_enrolment(made.enrolment("north"))
    own = honest.model_copy(update={"server_certificate": honest.certificate})
    forged = signed_enrolment(own, read_key(papers_of(made, "north") / "site.key"))
    made.enrolment("north").write_bytes(text_of(forged))
    with pytest.raises(FileProblemError, match="not signed by a coordinator"):
        read_enrolment(made.enrolment("north"))


def test_another_sites_answer_and_another_keys_are_refused(made: Provisioned) -> None:
    toml = site_toml(made, "north")
    with pytest.raises(FileProblemError, match="is for site 'south'"):
        join(toml, read_enrolment(made.enrolment("south")), never, source="x")
    (toml.parent / "site.key").unlink()
    init_site(toml)
    with pytest.raises(FileProblemError, match="certificate of another key than"):
        take(made, toml)


def test_an_answer_that_has_ended_is_refused(made: Provisioned) -> None:
    toml = site_toml(made, "north")
    with pytest.raises(FileProblemError, match="ended on"):
        take(made, toml, now=datetime.now(UTC) + timedelta(days=900))


def test_a_key_that_a_site_knows_does_not_change_by_itself(
    made: Provisioned, tmp_path: Path
) -> None:
    north, south = site_toml(made, "north"), site_toml(made, "south")
    (south.parent / "site.key").unlink()
    _, shown = init_site(south)
    with pytest.raises(UserInputError, match="enrolled with another key"):
        send(made, south)
    with pytest.raises(UserInputError, match="was not enrolled"):
        send(made, south, no, replace=True)
    done = send(made, south, replace=True)
    assert (done.replaced, done.others) == (True, ("north",))
    before = (north.parent / "peers" / "south.pem").read_bytes()
    with pytest.raises(UserInputError, match="have changed, and nothing was taken") as refused:
        take(made, north)
    assert shown in str(refused.value)
    assert "--replace-peer south" in str(refused.value)
    assert (north.parent / "peers" / "south.pem").read_bytes() == before
    assert take(made, north, replace_peers=["south"]).changed == {"peers/south": shown}


def test_operators_keys_come_with_the_answer(made: Provisioned, tmp_path: Path) -> None:
    toml, file = site_toml(made, "north"), tmp_path / "ada.pem"
    file.write_text(public_pem(Ed25519PrivateKey.generate().public_key()))
    shown = enrol_operator(made.folder, "ada", file)
    assert take(made, toml).new == {"operators/ada": shown}
    assert (toml.parent / "operators" / "ada.pem").read_text() == file.read_text()
    file.write_text(public_pem(Ed25519PrivateKey.generate().public_key()))
    with pytest.raises(UserInputError, match="operator ada has another key"):
        enrol_operator(made.folder, "ada", file)
    file.write_bytes(made.public_key("north").read_bytes())
    with pytest.raises(FileProblemError, match="is not an Ed25519 public key"):
        enrol_operator(made.folder, "eve", file)
    with pytest.raises(SettingsError, match="operator"):
        enrol_operator(made.folder, "../eve", file)
    (made.operators / "ada.pem").unlink()
    init_coordinator(made.folder)
    assert take(made, toml).gone == ("operators/ada",)


def test_a_rotation_needs_no_question_and_ends_the_old_key(made: Provisioned) -> None:
    toml, other = site_toml(made, "north"), site_toml(made, "south")
    old = (toml.parent / "site.key").read_bytes()
    _, shown = init_site(toml, rotate=True)
    assert (toml.parent / "site.key").read_bytes() == old
    assert send(made, toml, never).replaced
    done = take(made, toml)
    assert done.rotated
    assert (toml.parent / "site.key").read_bytes() != old
    assert not (toml.parent / "site.key.next").exists()
    assert fingerprint(public_pem(read_key(toml.parent / "site.key").public_key())) == shown
    # The other site knew the old key.
    with pytest.raises(UserInputError, match="have changed"):
        take(made, other)
    # A request for a rotation that the enrolled key has not signed is a new key like any other.
    (other.parent / "site.key").unlink()
    init_site(other)
    init_site(other, rotate=True)
    with pytest.raises(UserInputError, match="enrolled with another key"):
        send(made, other, never)


def test_a_rotation_that_a_crash_cut_is_finished_by_joining_again(
    made: Provisioned, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asterion_client import join as joining

    toml = site_toml(made, "north")
    init_site(toml, rotate=True)
    send(made, toml, never)
    write = joining.write_atomically

    def dies(path: Path, content: bytes) -> None:
        if path.name == "site.pem":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(joining, "write_atomically", dies)
    with pytest.raises(KeyboardInterrupt):
        take(made, toml)
    monkeypatch.undo()
    take(made, toml)
    certificate = (toml.parent / "site.pem").read_text()
    assert certificate == read_enrolment(made.enrolment("north")).certificate


def test_one_key_is_one_site(made: Provisioned, tmp_path: Path) -> None:
    toml = new_site(tmp_path / "west", "west")
    key = tmp_path / "west" / "site.key"
    key.write_bytes((papers_of(made, "north") / "site.key").read_bytes())
    key.chmod(0o600)
    init_site(toml)
    with pytest.raises(UserInputError, match="is that of site north"):
        send(made, toml)


def test_init_again_keeps_what_a_person_set(made: Provisioned) -> None:
    toml = made.folder / "coordinator.toml"
    toml.write_text("# mine\n" + toml.read_text().replace("runs_at_once = 4", "runs_at_once = 7"))
    keys = [made.private_key, made.authority_key, made.secret, made.root_certificate]
    before, certificate = [path.read_bytes() for path in keys], made.certificate.read_bytes()
    again = init_coordinator(made.folder)
    assert again.settings.runs_at_once == 7
    assert again.settings.sites == ("north", "south")
    assert again.settings.hosts == ("localhost",)
    assert toml.read_text().startswith("# mine\n")
    assert [path.read_bytes() for path in keys] == before
    assert made.certificate.read_bytes() != certificate


def test_a_connection_that_differs_is_told_and_stays(made: Provisioned) -> None:
    toml = site_toml(made, "north")
    toml.write_text(toml.read_text().replace("localhost:8000", "elsewhere:8000"))
    (line,) = take(made, toml).differences
    assert line == "connection.address is elsewhere:8000, the coordinator's is localhost:8000"
    assert "elsewhere:8000" in toml.read_text()


def test_revoked_and_enrolled_again(made: Provisioned) -> None:
    serials = revoke(made.folder, "north")
    assert len(serials) == 1
    assert open_provisioned(made.folder).settings.sites == ("south",)
    assert not made.enrolment("north").exists()
    assert set(read_enrolment(made.enrolment("south")).peers) == {"south"}
    with pytest.raises(UserInputError, match="no site 'north' is enrolled"):
        revoke(made.folder, "north")
    toml = site_toml(made, "north")
    assert take(made, site_toml(made, "south")).gone == ("peers/north",)
    with pytest.raises(UserInputError, match="was not enrolled"):
        send(made, toml, no)  # its key is new again
    send(made, toml)
    take(made, toml)
    assert len(revoke(made.folder, "north")) == 1  # the old serial number is not listed twice


def test_a_key_that_was_taken_away_comes_back_as_it_was(made: Provisioned, tmp_path: Path) -> None:
    toml, file = site_toml(made, "north"), tmp_path / "ada.pem"
    first, second = (public_pem(Ed25519PrivateKey.generate().public_key()) for _ in range(2))

    def sent(pem: str | None) -> Joined:
        (made.operators / "ada.pem").unlink(missing_ok=True)
        if pem is not None:
            file.write_text(pem)
            enrol_operator(made.folder, "ada", file)
        init_coordinator(made.folder)
        return take(made, toml)

    sent(first)
    assert sent(None).gone == ("operators/ada",)
    assert sent(first).new == {"operators/ada": fingerprint(first)}
    sent(None)
    with pytest.raises(UserInputError, match="--replace-peer ada"):
        sent(second)
    assert not (toml.parent / "operators" / "ada.pem").exists()
    assert take(made, toml, replace_peers=["ada"]).changed == {"operators/ada": fingerprint(second)}


def test_operators_keys_go_where_consent_looks_for_them(made: Provisioned, tmp_path: Path) -> None:
    toml, file = site_toml(made, "north"), tmp_path / "ada.pem"
    file.write_text(public_pem(Ed25519PrivateKey.generate().public_key()))
    enrol_operator(made.folder, "ada", file)
    elsewhere = '[consent]\noperator_keys = "keys/operators"'
    toml.write_text(toml.read_text().replace("[consent]", elsewhere))
    take(made, toml)
    assert (toml.parent / "keys" / "operators" / "ada.pem").read_text() == file.read_text()


def _signed_anew(made: Provisioned, **changed: object) -> dict[str, object]:
    """An answer that the coordinator itself has made otherwise, and signed."""
    given = read_enrolment(made.enrolment("north")).model_copy(update={**changed, "signature": ""})
    key = read_key(made.private_key)
    return signed_enrolment(given, key).model_dump(mode="json")


@pytest.mark.parametrize(
    "address",
    ['c:1"\n[consent]\napproval = "auto"\n#', "c:1 ", "c", "c:1\n", "[::1]:1]:2", 'c":1'],
)
def test_an_address_cannot_write_into_the_settings(made: Provisioned, address: str) -> None:
    with pytest.raises(SettingsError, match="addresses"):
        enrolment_from(_signed_anew(made, addresses=(address,)), "answer")


@pytest.mark.parametrize("address", ["c.example.org:8000", "10.0.0.1:1", "[fe80::1]:443"])
def test_addresses_that_are_some(made: Provisioned, address: str) -> None:
    given = enrolment_from(_signed_anew(made, addresses=(address,)), "answer")
    assert given.addresses == (address,)


def test_an_answer_has_one_authority(made: Provisioned, tmp_path: Path) -> None:
    other = provisioned(tmp_path / "other", ["localhost"], [])
    both = made.root_certificate.read_text() + other.root_certificate.read_text()
    with pytest.raises(FileProblemError, match="several in place of one"):
        enrolment_from(_signed_anew(made, root_certificate=both), "answer")
