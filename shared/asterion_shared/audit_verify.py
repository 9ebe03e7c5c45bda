"""Check audit trails as a stranger would: by their files alone, of one side or of both.

What the files of one side can show is that nothing in them was changed by anybody without the key.
That the tail was not cut off, and that the key's owner did not write all of it anew, is seen only
against what the other side was told meanwhile.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median_low, mode
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from asterion_shared.audit_key import read_public
from asterion_shared.audit_records import START, Head, Line, read_line
from asterion_shared.errors import FileProblemError

COORDINATOR = "coordinator"
"""How a site names whoever told it a head: it has one coordinator at a time."""

Word = Literal["edited", "deleted", "reordered", "duplicated", "inserted", "forged", "rewritten",
               "missing", "contradicted"]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """The first thing that is wrong with a trail.

    Attributes:
        word: which kind of change it is; ``docs/audit.md`` has what each means.
        file: where it stands, or should.
        number: of the record.
        what: the same in a sentence.
    """

    word: Word
    file: Path
    number: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}: record {self.number} is {self.word}: {self.what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the files show of one side.

    Attributes:
        side: whose trail it is.
        files: its files, oldest first.
        lines: its records up to the first problem.
        torn_bytes: of an unfinished line at the very end, which a power cut leaves; no record.
        told: the last of its heads that the other side wrote down; None: none is known.
        problem: the first that was found; None: there is none.
    """

    side: str
    files: tuple[Path, ...]
    lines: tuple[Line, ...] = field(repr=False)
    torn_bytes: int = 0
    told: int | None = None
    problem: Finding | None = None

    @property
    def last(self) -> Head | None:
        """The last record that is consistent; None where not even the first is."""
        return self.lines[-1].head if self.lines else None

    @property
    def keys(self) -> tuple[str, ...]:
        """Fingerprints of the keys it was signed with: compare the first with what you know."""
        named = (line.record.facts.get("public_key") for line in self.lines)
        found = (read_public(pem) for pem in named if isinstance(pem, str))
        return tuple(dict.fromkeys(fingerprint(key) for key in found if key is not None))


@dataclass(frozen=True, slots=True)
class _Place:
    """A line of a file; ``line`` is None where it is no record."""

    file: Path
    line: Line | None


@dataclass(slots=True)
class _Trail:
    side: str
    files: list[Path]
    places: list[_Place]
    first: int
    """The number at which it seems to begin."""

    torn_bytes: int


def verify_trails(
    files: Iterable[Path], *, key: Ed25519PublicKey | None = None, head: Head | None = None
) -> tuple[Verdict, ...]:
    """Check the files of one side or of several.

    Args:
        files: in any order; those of one side are told apart by what is in them.
        key: that the given files of each side must begin with; None: the one that they name.
        head: one that a side gave to somebody; it must be in one of the trails.

    Returns:
        A verdict for each side, sorted by its name.

    Raises:
        FileProblemError: a file cannot be read, or holds no audit record.
    """
    trails = sorted(_trails(files), key=lambda trail: trail.side)
    found = [_walked(trail, key) for trail in trails]
    found = [_against_told(verdict, found, head) for verdict in found]
    return tuple(_against_words(verdict, found) for verdict in found)


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of a public key (DER), 64 hex digits."""
    return hashlib.sha256(
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()


def _trails(files: Iterable[Path]) -> list[_Trail]:
    parts: dict[str, list[tuple[int, Path, list[_Place], int]]] = {}
    for path in dict.fromkeys(file.resolve() for file in files):
        try:
            content = path.read_bytes()
        except OSError as error:
            reason = (error.strerror or "unreadable").lower()
            raise FileProblemError(path, reason, "check the path") from None
        *lines, torn = content.split(b"\n")
        places = [_Place(path, read_line(line)) for line in lines]
        known = [(n, place.line) for n, place in enumerate(places) if place.line is not None]
        if not known:
            fix = "give files named audit-NUMBER.jsonl of a site or a coordinator"
            raise FileProblemError(path, "holds no audit record", fix)
        # What most lines say, as single ones may have been changed.
        start = median_low(line.record.number - n for n, line in known)
        side = mode(line.record.side for _, line in known)
        parts.setdefault(side, []).append((start, path, places, len(torn)))
    return [
        _joined(side, sorted(found, key=lambda part: part[:2])) for side, found in parts.items()
    ]


def _joined(side: str, parts: Sequence[tuple[int, Path, list[_Place], int]]) -> _Trail:
    places: list[_Place] = []
    for number, (_, path, found, torn) in enumerate(parts, 1):
        places += found
        if torn and number < len(parts):
            places.append(_Place(path, None))  # only the last file can end in a torn line
    first, torn_bytes = max(parts[0][0], 0), parts[-1][3]
    return _Trail(side, [path for _, path, _, _ in parts], places, first, torn_bytes)


def _walked(trail: _Trail, known: Ed25519PublicKey | None) -> Verdict:
    good: list[Line] = []
    problem = _walk(trail, known, good)
    return Verdict(
        side=trail.side,
        files=tuple(trail.files),
        lines=tuple(good),
        torn_bytes=trail.torn_bytes,
        problem=problem,
    )


def _walk(trail: _Trail, known: Ed25519PublicKey | None, good: list[Line]) -> Finding | None:
    """Gather the records until the first that is wrong."""
    places = trail.places
    begins = next((p for p in places if p.line and p.line.record.kind == "begun"), None)
    start = begins or places[0]
    number = 0 if begins else trail.first
    if start.line is None:
        return Finding("edited", start.file, number, "its line is no record")
    if start.line.record.kind not in ("begun", "continued"):
        if number == 0:
            return Finding("edited", start.file, 0, "a trail begins with a record of kind begun")
        what = "a file begins with its key, and this one does not"
        return Finding("deleted", start.file, number - 1, what)
    key = _key_named(start.line)
    previous = START if begins else start.line.record.previous
    if key is None:
        return Finding("edited", start.file, number, "it names no key")
    if known is not None and fingerprint(known) != fingerprint(key):
        what = f"it begins with the key {fingerprint(key)}, not with the given one"
        return Finding("forged", start.file, number, what)
    seen: set[str] = set()
    for index, place in enumerate(places):
        line = place.line
        if line is None or not line.is_signed_by(key):
            return _unsigned(places[index:], number, previous, key)
        if (line.record.number, line.record.previous) != (number, previous):
            return _misplaced(line, places[index:], number, seen)
        if line.record.side != trail.side:
            return Finding("forged", place.file, number, f"it is of {line.record.side}")
        if line.record.kind == "continued" and _key_named(line) != key:
            return Finding("rewritten", place.file, number, "it repeats another key")
        if line.record.kind == "key_changed":
            changed = _key_named(line)
            if changed is None:
                return Finding("edited", place.file, number, "it names no key")
            key = changed
        good.append(line)
        seen.add(line.sha256)
        number, previous = number + 1, line.sha256
    return None


def _key_named(line: Line) -> Ed25519PublicKey | None:
    named = line.record.facts.get("public_key")
    return read_public(named) if isinstance(named, str) else None


def _unsigned(
    places: Sequence[_Place], number: int, previous: str, key: Ed25519PublicKey
) -> Finding:
    """Of a line that is no record, or not signed with the trail's key: edited, or another's."""
    place, line = places[0], places[0].line
    after = places[1].line if len(places) > 1 else None
    fits = after is not None and (after.record.number, after.record.previous) == (number, previous)
    if fits and after is not None and after.is_signed_by(key):
        what = "a record that is not signed with the trail's key was put before it"
        return Finding("forged", place.file, number, what)
    if line is None:
        return Finding("edited", place.file, number, "its line is no record")
    if after is not None and after.record.previous == line.sha256:
        what = "it is not signed with the trail's key, and what follows was made to fit it"
        return Finding("forged", place.file, number, what)
    if after is None and (line.record.number, line.record.previous) == (number, previous):
        what = "it is not signed with the trail's key: it was changed, or added by somebody else"
        return Finding("forged", place.file, number, what)
    return Finding("edited", place.file, number, "it was changed after it was signed")


def _misplaced(line: Line, places: Sequence[_Place], number: int, seen: set[str]) -> Finding:
    """Of a record that is signed with the trail's key and stands where another should."""
    file, own = places[0].file, line.record.number
    if line.sha256 in seen:
        return Finding("duplicated", file, own, "it stands here a second time")
    if own > number:
        if any(p.line is not None and p.line.record.number == number for p in places[1:]):
            return Finding("reordered", file, number, f"record {own} stands in its place")
        gone = f"records {number} to {own - 1} are" if own > number + 1 else "it is"
        return Finding("deleted", file, number, f"{gone} not in these files")
    if own < number:
        what = "there are two of this number, and the trail's key signed both"
        return Finding("inserted", file, own, what)
    what = f"record {number} was written after another one than stands here"
    return Finding("rewritten", file, max(number - 1, 0), what)


@dataclass(frozen=True, slots=True)
class _Told:
    """A head that somebody was told: by whom it was written down, and with which record."""

    head: Head
    by: str
    line: Line | None


def _told_heads(verdict: Verdict, others: Iterable[Verdict]) -> Iterator[_Told]:
    """The heads of a trail that the other side wrote down."""
    is_coordinator = verdict.side.startswith(f"{COORDINATOR}:")
    name = COORDINATOR if is_coordinator else verdict.side
    for other in others:
        if other.side.startswith(f"{COORDINATOR}:") is not is_coordinator:
            for line in other.lines:
                text = line.record.other.get(name)
                if text is not None:
                    number, _, sha256 = text.partition(":")
                    yield _Told(Head(int(number), sha256), other.side, line)


def _against_told(verdict: Verdict, found: Sequence[Verdict], head: Head | None) -> Verdict:
    """Whether the trail has every head that the other side was told."""
    told = [*_told_heads(verdict, found)]
    if head is not None:
        told.append(_Told(head, "whoever gave the head", None))
    if not told or not verdict.lines:
        return verdict
    first = verdict.lines[0].record.number
    wrong: list[Finding] = []
    most: int | None = None
    for one in sorted(told, key=lambda one: one.head.number):
        index = one.head.number - first
        if index < 0 or any(_has(other, one.head) for other in found if other is not verdict):
            continue  # in an earlier file, which was not given; or another trail's
        if index >= len(verdict.lines):
            if verdict.problem is None:
                wrong.append(_missing(verdict, one))
        elif verdict.lines[index].sha256 != one.head.sha256:
            wrong.append(_differs(verdict, one))
        else:
            most = one.head.number
    return replace(verdict, told=most, problem=wrong[0] if wrong else verdict.problem)


def _by(one: _Told) -> str:
    return one.by if one.line is None else f"{one.by} (its record {one.line.record.number})"


def _missing(verdict: Verdict, one: _Told) -> Finding:
    last = verdict.lines[-1].record.number
    what = f"{_by(one)} was told {one.head}, and the trail ends at record {last}"
    return Finding("missing", verdict.files[-1], one.head.number, what)


def _differs(verdict: Verdict, one: _Told) -> Finding:
    what = f"{_by(one)} was told {one.head}, and another record stands there"
    return Finding("rewritten", _file_of(verdict, one.head.number), one.head.number, what)


def _file_of(verdict: Verdict, number: int) -> Path:
    """The file that holds a record: of a trail whose records are consistent so far."""
    starts = [
        line.record.number for line in verdict.lines if line.record.kind in ("begun", "continued")
    ]
    for (start, end), file in zip(pairwise([*starts, 2**63]), verdict.files, strict=False):
        if start <= number < end:
            return file
    return verdict.files[-1]


def _against_words(verdict: Verdict, found: Sequence[Verdict]) -> Verdict:
    """Whether both sides say the same of what crossed between them."""
    if verdict.problem is not None:
        return verdict
    for line in verdict.lines:
        for name, text in line.record.other.items():
            number = int(text.partition(":")[0])
            for other in found:
                if other.side != name and not (
                    name == COORDINATOR and other.side.startswith(f"{COORDINATOR}:")
                ):
                    continue
                theirs = _record(other, number)
                if theirs is None or str(theirs.head) != text:
                    continue  # found already, or not given
                what = _contradiction(line, theirs)
                if what:
                    file = _file_of(verdict, line.record.number)
                    problem = Finding("contradicted", file, line.record.number, what)
                    return replace(verdict, problem=problem)
    return verdict


def _record(verdict: Verdict, number: int) -> Line | None:
    index = number - verdict.lines[0].record.number if verdict.lines else -1
    return verdict.lines[index] if 0 <= index < len(verdict.lines) else None


def _has(verdict: Verdict, head: Head) -> bool:
    line = _record(verdict, head.number)
    return line is not None and line.head == head


def _contradiction(line: Line, theirs: Line) -> str:
    """What a record says otherwise than the other side's that it names; empty: nothing."""
    ours, other = line.record, theirs.record
    about = f"record {other.number} of {other.side}"
    if ours.kind == "order":
        names = ("order_sha256", "phase", "plan_sha256")
        same = [(ours.run, ours.round), *(ours.facts.get(name) for name in names)]
        sent = [(other.run, other.round), *(other.facts.get(name) for name in names)]
        if other.kind != "orders" or same != sent:
            return f"it says what order came, and {about}, which came with it, says another one"
    if ours.kind == "answers":
        said = ours.facts.get(other.side)
        left = answer_text(other.facts.get("sha256"), other.facts.get("code"))
        # A site that cannot read an order does not know of which run it was.
        unread = other.kind == "refusal" and not other.run
        same_run = unread or ours.run == other.run
        if other.kind not in ("report", "refusal") or said != left or not same_run:
            return f"it says {said!r} came, and {about} says {left!r} left"
    return ""


def answer_text(sha256: object, code: object) -> str:
    """What came of one site, as a fact of an ``answers`` record."""
    return f"refusal {code}" if code is not None else f"report {sha256}"
