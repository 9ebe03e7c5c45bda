"""Trails changed at random: the verifier names the first wrong record by its number and word."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.audit.trails import (
    COORDINATOR,
    SITE,
    Pair,
    head_after,
    make_pair,
    resigned,
    rewritten_from,
    told_numbers,
    write_lines,
)

from asterion_shared.audit import AuditTrail, trail_files
from asterion_shared.audit_records import START, hash_of, read_line
from asterion_shared.audit_verify import Verdict, verify_trails

STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CUTS = st.sampled_from([(), (3,), (4,), (5,), (6,)])
"""Where a second file begins: each has some lines, or nobody could tell whose it is."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("pair"))


@dataclass(frozen=True)
class Played:
    """A verdict without the other side's files, and one with them."""

    alone: Verdict
    beside: Verdict

    def problem(self) -> tuple[str, int]:
        assert self.alone.problem is not None
        assert self.beside.problem is not None
        return self.alone.problem.word, self.alone.problem.number


@contextmanager
def files(lines: list[bytes], other: tuple[bytes, ...], cuts: tuple[int, ...]) -> Iterator[Played]:
    with tempfile.TemporaryDirectory() as name:
        ours = write_lines(Path(name) / "ours", lines, cuts)
        theirs = write_lines(Path(name) / "theirs", list(other))
        side = read_side(lines)
        [alone] = [v for v in verify_trails(reversed(ours)) if v.side == side]
        [beside] = [v for v in verify_trails([*theirs, *ours]) if v.side == side]
        yield Played(alone, beside)


def read_side(lines: list[bytes]) -> str:
    sides = [line.record.side for line in map(read_line, lines) if line is not None]
    return max(set(sides), key=sides.count)


def sides_of(pair: Pair) -> dict[str, tuple[tuple[bytes, ...], tuple[bytes, ...], str]]:
    """Lines of a side, those of the other, and the name under which it knows this one."""
    return {
        SITE: (pair.site, pair.centre, SITE),
        COORDINATOR: (pair.centre, pair.site, "coordinator"),
    }


EITHER = st.sampled_from([SITE, COORDINATOR])


@settings(max_examples=60, deadline=None)
@given(side=EITHER, cuts=CUTS, data=st.data())
def test_an_edited_byte(pair: Pair, side: str, cuts: tuple[int, ...], data: st.DataObject) -> None:
    lines, other, _ = sides_of(pair)[side]
    number = data.draw(st.integers(0, len(lines) - 1))
    place = data.draw(st.integers(0, len(lines[number]) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b not in (lines[number][place], 10)))
    changed = list(lines)
    changed[number] = lines[number][:place] + bytes([byte]) + lines[number][place + 1 :]
    with files(changed, other, cuts) as played:
        word, found = played.problem()
        # Of the last line nobody can tell whether it was changed or added.
        allowed = {"edited", "forged"} if number == len(lines) - 1 else {"edited"}
        assert (found, word in allowed) == (number, True), word


@settings(max_examples=40, deadline=None)
@given(side=EITHER, cuts=CUTS, data=st.data())
def test_a_deleted_record(
    pair: Pair, side: str, cuts: tuple[int, ...], data: st.DataObject
) -> None:
    lines, other, _ = sides_of(pair)[side]
    number = data.draw(st.integers(1, len(lines) - 2))
    with files([*lines[:number], *lines[number + 1 :]], other, cuts) as played:
        assert played.problem() == ("deleted", number)


def test_a_deleted_beginning(pair: Pair) -> None:
    with files(list(pair.site[1:]), pair.centre, ()) as played:
        assert played.problem() == ("deleted", 0)


@settings(max_examples=40, deadline=None)
@given(side=EITHER, cuts=CUTS, data=st.data())
def test_two_records_that_changed_places(
    pair: Pair, side: str, cuts: tuple[int, ...], data: st.DataObject
) -> None:
    lines, other, _ = sides_of(pair)[side]
    one = data.draw(st.integers(0, len(lines) - 2))
    two = data.draw(st.integers(one + 1, len(lines) - 1))
    changed = list(lines)
    changed[one], changed[two] = lines[two], lines[one]
    with files(changed, other, cuts) as played:
        assert played.problem() == ("reordered", one)


@settings(max_examples=40, deadline=None)
@given(side=EITHER, cuts=CUTS, data=st.data())
def test_a_record_twice(pair: Pair, side: str, cuts: tuple[int, ...], data: st.DataObject) -> None:
    lines, other, _ = sides_of(pair)[side]
    number = data.draw(st.integers(0, len(lines) - 1))
    place = data.draw(st.integers(number + 1, len(lines)))
    with files([*lines[:place], lines[number], *lines[place:]], other, cuts) as played:
        assert played.problem() == ("duplicated", number)


@settings(max_examples=40, deadline=None)
@given(side=EITHER, cuts=CUTS, data=st.data())
def test_a_record_of_a_stranger(
    pair: Pair, side: str, cuts: tuple[int, ...], data: st.DataObject
) -> None:
    lines, other, _ = sides_of(pair)[side]
    place = data.draw(st.integers(0, len(lines)))
    previous = hash_of(lines[place - 1]) if place else START
    forged = resigned(lines[2], STRANGER, number=place, previous=previous, round=77)
    rest = lines[place:]
    if data.draw(st.booleans()) and place:  # he makes all that follows fit
        rest = tuple(
            rewritten_from((*lines[:place], forged, *rest), place + 1, STRANGER)[place + 1 :]
        )
    with files([*lines[:place], forged, *rest], other, cuts) as played:
        assert played.problem() == ("forged", place)


@settings(max_examples=40, deadline=None)
@given(side=EITHER, cuts=CUTS, data=st.data())
def test_a_cut_tail_needs_the_other_side(
    pair: Pair, side: str, cuts: tuple[int, ...], data: st.DataObject
) -> None:
    lines, other, name = sides_of(pair)[side]
    left = data.draw(st.integers(1, len(lines) - 1))
    torn = data.draw(st.integers(0, len(lines[left])))
    with files(list(lines[:left]), other, cuts) as played, tempfile.TemporaryDirectory() as place:
        assert (played.alone.problem, played.alone.told) == (None, None)
        assert played.alone.last == head_after(lines, left - 1)
        gone = [n for n in told_numbers(other, name) if n >= left]
        found = played.beside.problem
        assert (found and (found.word, found.number)) == (("missing", gone[0]) if gone else None)
        # A line that a power cut tore is no record, whole as it may seem.
        [file] = write_lines(Path(place), list(lines[:left]))
        file.write_bytes(file.read_bytes() + lines[left][:torn])
        [again] = verify_trails([file])
        assert (again.problem, again.torn_bytes) == (None, torn)
        assert again.last == played.alone.last


@settings(max_examples=40, deadline=None)
@given(side=EITHER, cuts=CUTS, data=st.data())
def test_a_rewrite_by_the_key_s_owner_needs_the_other_side(
    pair: Pair, side: str, cuts: tuple[int, ...], data: st.DataObject
) -> None:
    lines, other, name = sides_of(pair)[side]
    key = pair.site_key if side == SITE else pair.centre_key
    start = data.draw(st.integers(1, len(lines) - 1))
    changed = rewritten_from(lines, start, key)
    with files(changed, other, cuts) as played:
        assert played.alone.problem is None
        later = [n for n in told_numbers(other, name) if n >= start]
        found = played.beside.problem
        assert (found and (found.word, found.number)) == (
            ("rewritten", later[0]) if later else None
        )
        with tempfile.TemporaryDirectory() as place:
            known = head_after(lines, start)
            [verdict] = verify_trails(write_lines(Path(place), changed), head=known)
            assert verdict.problem is not None
            assert (verdict.problem.word, verdict.problem.number) == ("rewritten", start)


@settings(max_examples=20, deadline=None)
@given(side=EITHER, data=st.data())
def test_one_record_replaced_by_the_key_s_owner(pair: Pair, side: str, data: st.DataObject) -> None:
    lines, other, _ = sides_of(pair)[side]
    key = pair.site_key if side == SITE else pair.centre_key
    number = data.draw(st.integers(1, len(lines) - 2))
    changed = [*lines[:number], resigned(lines[number], key, round=77), *lines[number + 1 :]]
    with files(changed, other, ()) as played:
        assert played.problem() == ("rewritten", number)
    both = [*lines[: number + 1], resigned(lines[number], key, round=77), *lines[number + 1 :]]
    with files(both, other, ()) as played:
        assert played.problem() == ("inserted", number)


def test_a_trail_made_anew_by_a_stranger_needs_the_key_or_the_other_side(
    pair: Pair, tmp_path: Path
) -> None:
    from asterion_shared.audit_key import public_pem

    own = {"public_key": public_pem(STRANGER)}
    first = resigned(pair.site[0], STRANGER, facts=own)
    continued = next(n for n, line in enumerate(pair.site) if b'"continued"' in line)
    rest = [*pair.site[1:continued], resigned(pair.site[continued], STRANGER, facts=own),
            *pair.site[continued + 1 :]]  # fmt: skip
    changed = [first, *rewritten_from((first, *rest), 1, STRANGER)[1:]]
    with files(changed, pair.centre, ()) as played:
        assert played.alone.problem is None
        assert played.beside.problem is not None
        assert played.beside.problem.word == "rewritten"
    made = write_lines(tmp_path, changed)
    [verdict] = verify_trails(made, key=pair.site_key.public_key())
    assert verdict.problem is not None
    assert (verdict.problem.word, verdict.problem.number) == ("forged", 0)
    [verdict] = verify_trails(made, key=STRANGER.public_key())
    assert verdict.problem is None


def test_sides_that_contradict_each_other(pair: Pair, tmp_path: Path) -> None:
    """The coordinator's owner says of a report that another one came."""
    number = next(n for n, line in enumerate(pair.centre) if b'"answers"' in line)
    lie = {SITE: f"report {'e' * 64}"}
    lied = resigned(pair.centre[number], pair.centre_key, facts=lie)
    changed = rewritten_from((*pair.centre[:number], lied), number, pair.centre_key)[:number]
    made = [
        *write_lines(tmp_path / "c", [*changed, lied]),
        *write_lines(tmp_path / "s", [*pair.site]),
    ]
    words = {v.side: v.problem and (v.problem.word, v.problem.number) for v in verify_trails(made)}
    assert words[COORDINATOR] == ("missing", told_numbers(pair.site, "coordinator")[1])
    # Only what the site had been told before it: then nothing is missing, and the lie is seen.
    made[1:] = write_lines(tmp_path / "s", list(pair.site[:3]))
    words = {v.side: v.problem and (v.problem.word, v.problem.number) for v in verify_trails(made)}
    assert words == {COORDINATOR: ("contradicted", number), SITE: None}


@pytest.mark.parametrize(("said", "problem"), [("plan_invalid", None), ("no_data", "contradicted")])
def test_a_refusal_of_an_order_that_was_not_read_names_no_run(
    tmp_path: Path, said: str, problem: str | None
) -> None:
    site, centre = AuditTrail(tmp_path / "s", SITE), AuditTrail(tmp_path / "c", COORDINATOR)
    head = site.append("refusal", run="", facts={"code": "plan_invalid", "stage": "receiving"})
    centre.append("answers", run="r1", facts={SITE: f"refusal {said}"}, other={SITE: head})
    files = [path for name in "sc" for path in trail_files(tmp_path / name)]
    found = {v.side: v.problem and v.problem.word for v in verify_trails(files)}
    assert found == {COORDINATOR: problem, SITE: None}


def test_whole_trails_are_proven_as_far_as_the_other_side_was_told(
    pair: Pair, tmp_path: Path
) -> None:
    made = [
        *write_lines(tmp_path / "s", [*pair.site], (5,)),
        *write_lines(tmp_path / "c", [*pair.centre]),
    ]
    found = {verdict.side: verdict for verdict in verify_trails(reversed(made))}
    assert [v.problem for v in found.values()] == [None, None]
    assert found[SITE].told == len(pair.site) - 1
    assert found[COORDINATOR].told == len(pair.centre) - 2
    assert found[SITE].last == head_after(pair.site, len(pair.site) - 1)
