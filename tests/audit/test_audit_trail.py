"""Writing a trail: torn lines, several processes, files, keys, and what stops it."""

import base64
import hashlib
import json
import multiprocessing
import os
import stat
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.audit.trails import SITE, Pair, lines_of, make_pair

from asterion_shared import audit
from asterion_shared.audit import AuditTrail, audit_public_key, trail_files
from asterion_shared.audit_key import NEXT_KEY, write_key
from asterion_shared.audit_verify import Verdict, verify_trails
from asterion_shared.errors import AuditBrokenError, DiskProblemError, FileProblemError


@pytest.fixture
def trail(tmp_path: Path) -> AuditTrail:
    return AuditTrail(tmp_path / "audit", SITE)


def verdict(trail: AuditTrail) -> Verdict:
    [found] = verify_trails(trail_files(trail.folder))
    return found


def test_each_record_names_the_line_before_it(trail: AuditTrail) -> None:
    heads = [trail.append("order", run="r1", round_=n, facts={"phase": "train"}) for n in range(3)]
    lines = lines_of(trail.folder)
    assert [json.loads(line)["record"]["kind"] for line in lines] == ["begun", *["order"] * 3]
    assert [head.number for head in heads] == [1, 2, 3]
    hashes = [hashlib.sha256(line).hexdigest() for line in lines]
    assert [head.sha256 for head in heads] == hashes[1:]
    assert [json.loads(line)["record"]["previous"] for line in lines] == ["0" * 64, *hashes[:-1]]
    assert trail.head() == heads[-1]
    assert verdict(trail).last == heads[-1]


def test_only_the_owner_can_read_key_and_records(trail: AuditTrail) -> None:
    modes: list[int] = []
    touch = Path.touch

    def seen(path: Path, *words: int, **options: bool) -> None:
        touch(path, *words, **options)
        modes.append(stat.S_IMODE(path.stat().st_mode))

    with mock.patch.object(Path, "touch", seen):
        trail.append("order")
    assert modes == [0o600, 0o600]
    assert stat.S_IMODE((trail.folder / "audit.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(trail.folder.stat().st_mode) == 0o700


def test_a_key_that_others_can_read_stops_the_trail(trail: AuditTrail) -> None:
    trail.append("order")
    (trail.folder / "audit.key").chmod(0o640)
    with pytest.raises(FileProblemError, match="others can read it; chmod 600"):
        trail.append("order")
    assert len(lines_of(trail.folder)) == 2
    (trail.folder / "audit.key").chmod(0o600)
    assert trail.append("order").number == 2


def test_a_key_that_is_gone_or_another_stops_the_trail(trail: AuditTrail) -> None:
    trail.append("order")
    key = trail.folder / "audit.key"
    own = key.read_bytes()
    key.unlink()
    with pytest.raises(FileProblemError, match="the key is gone, its trail is here"):
        trail.append("order")
    write_key(key, Ed25519PrivateKey.generate())
    with pytest.raises(AuditBrokenError, match=r"record 1 is not signed with the key audit.key"):
        trail.append("order")
    key.write_text("no key")
    with pytest.raises(FileProblemError, match="is not an Ed25519 key in PEM"):
        trail.append("order")
    key.write_bytes(own)
    assert trail.append("order").number == 2


def test_the_key_is_there_before_the_first_record(trail: AuditTrail) -> None:
    pem = audit_public_key(trail.folder)
    trail.append("order")
    assert json.loads(lines_of(trail.folder)[0])["record"]["facts"] == {"public_key": pem}


def test_a_changed_last_line_stops_the_trail(trail: AuditTrail) -> None:
    trail.append("order", facts={"phase": "train"})
    [file] = trail_files(trail.folder)
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"train", b"count"))
    with pytest.raises(AuditBrokenError, match="record 1 is not signed"):
        trail.append("order")
    file.write_bytes(whole + b"{}\n")
    with pytest.raises(AuditBrokenError, match="its last line is no audit record"):
        trail.append("order")
    file.write_bytes(whole)
    with pytest.raises(AuditBrokenError, match="is the trail of site:clinic, not of site:coast"):
        AuditTrail(trail.folder, "site:coast").append("order")


@pytest.mark.parametrize("where", ["begun", "order", "continued"])
def test_a_torn_line_is_cut_off_wherever_the_power_went(where: str, tmp_path: Path) -> None:
    whole = AuditTrail(tmp_path / "whole", SITE)
    whole.append("order")
    if where == "continued":
        whole.rotate()
    if where == "begun":
        [file] = trail_files(whole.folder)
        file.write_bytes(file.read_bytes().splitlines(keepends=True)[0])
    last = trail_files(whole.folder)[-1]
    content = last.read_bytes()
    start = content.rfind(b"\n", 0, len(content) - 1) + 1
    before = {"begun": -1, "order": 0, "continued": 1}[where]
    for torn in range(start, len(content), 7):
        last.write_bytes(content[:torn])
        number = 1 if where == "begun" else before + (2 if where == "continued" else 1)
        assert whole.append("refusal", facts={"code": "no_data"}).number == number
        assert verdict(whole).problem is None
        assert verdict(whole).last is not None
        assert len(lines_of(whole.folder)) == number + 1


def test_a_full_disk_leaves_the_trail_as_it_was(trail: AuditTrail) -> None:
    trail.append("order")
    full = mock.patch("os.fsync", side_effect=OSError(28, "No space left on device"))
    with full, pytest.raises(DiskProblemError, match="No space left on device"):
        trail.append("order")
    assert len(lines_of(trail.folder)) == 2
    assert trail.append("order").number == 2
    assert verdict(trail).problem is None


def _write(folder: Path, count: int) -> None:
    for number in range(count):
        AuditTrail(folder, SITE).append("order", round_=number, facts={"process": os.getpid()})


def test_several_processes_write_one_trail(trail: AuditTrail) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(trail.folder, 40)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    found = verdict(trail)
    assert (found.problem, found.last and found.last.number) == (None, 160)
    assert len({line.record.facts.get("process") for line in found.lines}) == 5


def test_a_new_file_goes_on_with_the_chain(
    trail: AuditTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    trail.append("order")
    assert trail.rotate().name == "audit-000002.jsonl"
    monkeypatch.setattr(audit, "FILE_BYTES", 3000)
    for _ in range(20):
        trail.append("order")
    files = trail_files(trail.folder)
    assert len(files) > 3
    assert max(file.stat().st_size for file in files) < 4000
    [found] = verify_trails(reversed(files))
    assert found.problem is None
    assert found.last == trail.head()
    [later] = verify_trails(files[2:])
    assert later.problem is None
    assert later.lines[0].record.number > 5
    [gap] = verify_trails([files[0], *files[2:]])
    assert gap.problem is not None
    assert (gap.problem.word, gap.problem.number) == ("deleted", 2)


def test_a_changed_key_is_signed_by_the_old_one(trail: AuditTrail) -> None:
    trail.append("order")
    old, new = audit_public_key(trail.folder), trail.change_key()
    assert audit_public_key(trail.folder) == new != old
    trail.append("order")
    trail.change_key()
    trail.rotate()
    assert len(verdict(trail).keys) == 3
    assert verdict(trail).problem is None


@pytest.mark.parametrize("step", ["before the record", "after the record"])
def test_a_change_of_keys_that_was_killed(step: str, trail: AuditTrail) -> None:
    trail.append("order")
    trail.change_key()
    target = "_finish_change" if step == "after the record" else "_append"
    before = audit_public_key(trail.folder)
    calls = 0
    real = getattr(audit, target)

    def killed(*words: object) -> None:
        nonlocal calls
        calls += 1
        if target == "_append" or calls == 2:  # the first is when the trail is opened
            raise KeyboardInterrupt
        real(*words)

    with mock.patch.object(audit, target, killed), pytest.raises(KeyboardInterrupt):
        trail.change_key()
    assert (trail.folder / NEXT_KEY).exists()
    trail.append("order")
    assert not (trail.folder / NEXT_KEY).exists()
    assert (audit_public_key(trail.folder) == before) is (step == "before the record")
    assert verdict(trail).problem is None


def test_a_kind_that_nobody_knows_is_a_mistake_of_ours(trail: AuditTrail) -> None:
    with pytest.raises(ValueError, match="'sent' is no kind of audit record"):
        trail.append("sent")


# A verifier written from docs/audit.md alone, by somebody who trusts nothing of ours.


def is_whole(files: list[Path]) -> bool:
    """Whether the files, in order, are the beginning of one side's trail."""

    def canonical(value: object) -> bytes:
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")

    number, previous, key = 0, "0" * 64, None
    for file in files:
        content = file.read_bytes()
        for line in content.split(b"\n")[:-1]:
            try:
                value = json.loads(line)
                record = value["record"]
                if canonical(value) != line or set(value) != {"record", "signature"}:
                    return False
                if (record["format"], record["number"], record["previous"]) != (
                    1,
                    number,
                    previous,
                ):
                    return False
                if key is None:
                    key = load_pem_public_key(record["facts"]["public_key"].encode())
                assert isinstance(key, Ed25519PublicKey)
                signature = base64.b64decode(value["signature"])
                if base64.b64encode(signature).decode() != value["signature"]:
                    return False
                key.verify(signature, b"asterion audit record 1\n" + canonical(record))
                if record["kind"] == "key_changed":
                    key = load_pem_public_key(record["facts"]["public_key"].encode())
            except (
                ValueError, KeyError, TypeError, AttributeError, AssertionError,
                InvalidSignature, UnsupportedAlgorithm,
            ):  # fmt: skip
                return False
            number, previous = number + 1, hashlib.sha256(line).hexdigest()
    return number > 0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("pair"))


def test_a_stranger_s_verifier_finds_a_trail_with_two_keys_whole(trail: AuditTrail) -> None:
    trail.append("order", facts={"text": "gr\u00fc\u00df", "share": 0.1, "none": None})
    trail.change_key()
    trail.rotate()
    trail.append("order")
    assert is_whole(trail_files(trail.folder))
    assert verdict(trail).problem is None


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_stranger_s_verifier_agrees(pair: Pair, data: st.DataObject) -> None:
    lines = list(data.draw(st.sampled_from([pair.site, pair.centre])))
    content = bytearray(b"".join(line + b"\n" for line in lines))
    match data.draw(st.sampled_from(["nothing", "byte", "delete", "swap", "double"])):
        case "byte":
            place = data.draw(st.integers(0, len(content) - 2))
            content[place] = data.draw(st.integers(0, 255))
        case "delete":
            start = data.draw(st.integers(0, len(content) - 2))
            del content[start : data.draw(st.integers(start + 1, len(content)))]
        case "swap":
            one, two = (data.draw(st.integers(0, len(lines) - 1)) for _ in range(2))
            lines[one], lines[two] = lines[two], lines[one]
            content[:] = b"".join(line + b"\n" for line in lines)
        case "double":
            place = data.draw(st.integers(0, len(lines) - 1))
            lines.insert(data.draw(st.integers(0, len(lines))), lines[place])
            content[:] = b"".join(line + b"\n" for line in lines)
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "audit-000001.jsonl"
        file.write_bytes(bytes(content))
        try:
            [found] = verify_trails([file])
            ours = found.problem is None and found.lines[0].record.number == 0
        except FileProblemError:
            ours = False
        assert is_whole([file]) is ours
