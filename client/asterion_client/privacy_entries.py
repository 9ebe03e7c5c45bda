"""What is charged, and how it stands in the ledger: a line of JSON in a chain of hashes.

The hash of an entry is the SHA-256 of its line, and the line holds the hash of the entry before
it. The people of a data set are not in it, only their number and a hash over all of them.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from asterion_shared.plan import Sha256
from asterion_shared.privacy.charges import Charge
from asterion_shared.settings_files import Positive, Settings

UnitKind = Literal["record", "patient", "site"]

_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Head:
    """Where a ledger ends: how many entries it has, and the hash of the last."""

    count: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.count} {self.sha256}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Bytes that are about to leave, and what they cost.

    Attributes:
        run: identity of the run.
        round: 0, 1, ...
        phase: of the round, such as ``train``.
        instance: of the secure sum; empty without one.
        payload_sha256: hash of the exact bytes.
        charges: what they cost, at least one.
        fingerprint: hash of the frozen data set.
        unit_kind: what the charges protect.
        units: hashed ids (:meth:`Ledger.unit_hash`) of every record or patient in the frozen data
            set, drawn in this round or not; empty when the unit is the site.
    """

    run: str
    round: int
    phase: str
    payload_sha256: str
    charges: tuple[Charge, ...]
    fingerprint: str
    unit_kind: UnitKind
    units: frozenset[str] = frozenset()
    instance: str = ""

    def __post_init__(self) -> None:
        for name in ("run", "phase", "instance"):
            text = getattr(self, name)
            if not text.isprintable() or len(text) > 200:
                msg = f"{name} of a release must be at most 200 printable characters: {text!r}"
                raise ValueError(msg)
        if self.round < 0 or not self.charges:
            msg = f"a release has a round >= 0 and a charge: {self.round}, {self.charges}"
            raise ValueError(msg)
        if bool(self.units) == (self.unit_kind == "site"):
            msg = f"a release that protects the {self.unit_kind} came with {len(self.units)} units"
            raise ValueError(msg)
        hashes = (self.payload_sha256, self.fingerprint, *self.units)
        if not all(_HEX.fullmatch(text) for text in hashes):
            # The text is not shown: it could be a patient's.
            msg = "payload, fingerprint and units of a release must be 64 hexadecimal digits"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Proof that a release is charged: it may leave.

    Attributes:
        entry: number and hash of the entry that charged it.
        free: whether it had been charged before.
    """

    entry: Head
    free: bool


class Told(Settings):
    """A head that a coordinator was told, and that the ledger did not have."""

    head: Sha256
    run: str
    """Whose order said so; a coordinator's word."""

    seen_at: str
    """UTC, ISO 8601, to the second."""


class Entry(Settings):
    """One charged release, as it is stored and exported."""

    number: Annotated[int, Field(ge=1)]
    previous: Sha256
    """Hash of the entry before; of the first, a hash that belongs to this ledger alone."""

    charged_at: str
    """UTC, ISO 8601, to the second."""

    run: str
    round: Annotated[int, Field(ge=0)]
    phase: str
    instance: str
    """Of the secure sum; empty without one."""

    payload_sha256: Sha256
    charges: tuple[Charge, ...]
    fingerprint: Sha256
    """Of the frozen data set."""

    unit_kind: UnitKind
    num_units: Annotated[int, Field(ge=1)]
    units_sha256: Sha256
    """Over the sorted hashed ids, each followed by a line's end."""

    epsilon_limit: Positive
    delta: Annotated[float, Field(gt=0, lt=1)]
    """What the site allowed when it was charged."""

    def line(self) -> str:
        """The canonical JSON that is hashed: keys sorted, no spaces, ASCII."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Row:
    """An entry as the database holds it, not yet believed."""

    number: int
    content: str
    sha256: str


def hash_units(units: Iterable[str]) -> str:
    """The hash over the people of a data set that its entries hold."""
    return hashlib.sha256("".join(f"{unit}\n" for unit in sorted(units)).encode()).hexdigest()


def hash_line(line: str) -> str:
    """The hash of an entry."""
    return hashlib.sha256(line.encode()).hexdigest()


def next_entry(row: Row, before: Head) -> Entry | str:
    """The entry that stands after ``before``, or what is wrong with it."""
    wanted = before.count + 1
    if row.number != wanted:
        return f"entry {wanted} is missing"
    if hash_line(row.content) != row.sha256:
        return f"entry {wanted} was changed after it was written"
    try:
        entry = Entry.model_validate_json(row.content)
    except ValueError:
        return f"entry {wanted} is not an entry of a ledger"
    if entry.number != wanted:
        return f"entry {entry.number} stands in the place of entry {wanted}"
    if entry.previous == before.sha256:
        return entry
    if wanted == 1:
        return "entry 1 belongs to another ledger, or the salt was changed"
    return f"entry {wanted} does not follow from the one before it, which was changed"
