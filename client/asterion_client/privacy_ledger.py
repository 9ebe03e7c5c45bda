"""The site's privacy ledger: every release is charged here before it leaves.

One ledger for all runs and coordinators. It adds up, for every person, the charges of all releases
whose data held that person (:mod:`asterion_client.privacy_composition` has the rules), and stops
hard at the site's limit.

Releases that protect records and releases that protect patients cannot be added up without
knowing whose record is whose: a ledger takes the kind it saw first and refuses the other. What
the site as a whole has lost is counted over the releases that protect the site; the others say
nothing of it.
"""

import hmac
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from asterion_client.privacy_composition import (
    EpsilonOf,
    Totals,
    accounted_epsilon,
    charges_of,
    compose,
    largest,
    renyi_epsilon,
    totals_of,
)
from asterion_client.privacy_entries import (
    Entry,
    Head,
    Receipt,
    Release,
    Told,
    UnitKind,
    hash_units,
    next_entry,
)
from asterion_client.privacy_ledger_store import RESTORE, Group, Store
from asterion_client.settings import PrivacySettings, SiteSettings
from asterion_shared.errors import (
    BudgetSpentError,
    LedgerStoppedError,
    Problem,
    SettingsError,
    UserInputError,
)
from asterion_shared.privacy.charges import Charge, Relation

Charges = tuple[Charge, ...]
MOST_RUN_LETTERS = 200
"""Of the name of a run, which a coordinator may choose as it likes, in a note about it."""

_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """What the most exposed unit has lost.

    Attributes:
        unit_kind: what it is; None when nothing was charged.
        epsilon: of all its charges; infinite where there is no bound.
        relation: under which neighbouring relation.
    """

    unit_kind: UnitKind | None = None
    epsilon: float = 0.0
    relation: Relation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpending:
    """What a phase of a run has charged.

    Attributes:
        last_entry: its newest entry.
        first_round, last_round: of its releases.
        num_releases: charged, not counting those that were free.
        charges: of its releases, equal ones joined.
        exposure: of the most exposed unit over all runs, up to ``last_entry``.
    """

    last_entry: Entry
    first_round: int
    last_round: int
    num_releases: int
    charges: tuple[Charge, ...]
    exposure: Exposure


class _Book:
    """What the entries say, added up. Grows by what this and other processes have written."""

    def __init__(self, start: Head) -> None:
        self.hashes = [start.sha256]
        self.data_sets: dict[str, int] = {}
        self.totals: list[Totals] = []
        self.site: Totals = Counter()
        self.person_kind: UnitKind | None = None
        self.charged: dict[tuple[object, ...], Head] = {}
        self.last: Entry | None = None

    @property
    def head(self) -> Head:
        return Head(len(self.hashes) - 1, self.hashes[-1])

    def take(self, entry: Entry, sha256: str) -> None:
        self.hashes.append(sha256)
        self.charged[_key(entry)] = self.head
        self.last = entry
        if entry.unit_kind == "site":
            self.site += totals_of(entry.charges)
            return
        self.person_kind = entry.unit_kind
        number = self.data_sets.setdefault(entry.units_sha256, len(self.totals))
        if number == len(self.totals):
            self.totals.append(Counter())
        self.totals[number] += totals_of(entry.charges)


class Ledger:
    """A site's ledger, open. Serves one thread; any number of processes may have it open.

    Args:
        folder: of the ledger (:func:`ledger_folder`); made when missing.
        privacy: the site's limit; None: nothing can be charged.
        bounds: upper bounds on epsilon, the quick ones first; a release may leave as soon as one
            of them keeps to the limit, and the last is what is reported.
        create: whether to start a ledger where there is none.

    Raises:
        LedgerStoppedError: it is not a whole ledger, its witness does not fit, or a coordinator
            was told what is not in it: it was changed, or put back from a backup.
        FileProblemError: others can read it.
        DiskProblemError: the folder is not writable.
    """

    def __init__(
        self,
        folder: Path,
        privacy: PrivacySettings | None,
        *,
        bounds: Sequence[EpsilonOf] = (renyi_epsilon, accounted_epsilon),
        create: bool = True,
    ) -> None:
        self._privacy, self._bounds = privacy, tuple(bounds)
        self._store = Store(folder, create=create)
        self._book = _Book(self._store.start)
        try:
            self.head()
            self._store.keep_witness()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._store.close()

    def unit_hash(self, text: str) -> str:
        """The hashed id of a record or patient: HMAC-SHA256 under this ledger's secret salt."""
        return hmac.digest(self._store.salt, text.encode(), "sha256").hex()

    def head(self) -> Head:
        """How many entries there are, and the hash of the last."""
        with self._store.transaction():
            self._catch_up()
        return self._book.head

    def require_head(self, told: str, *, run: str) -> None:
        """Check that a head which the coordinator was told is in this ledger.

        If it is not, that is kept beside the ledger, and nothing more is charged, for whichever
        coordinator, until the ledger has it or a person removes the note.

        Args:
            told: 64 hex digits.
            run: whose order said so.

        Raises:
            LedgerStoppedError: it is not: the ledger was put back from a backup, or is another.
        """
        self.head()
        if told in self._book.hashes:
            return
        now = datetime.now(UTC).strftime(_TIME)
        self._store.write_told(Told(head=told, run=run[:MOST_RUN_LETTERS], seen_at=now))
        what = self._store.told_problem(self._book.hashes)
        raise LedgerStoppedError(self._store.path, what, RESTORE)

    def charge(self, release: Release) -> Receipt:
        """Charge a release; only then may its bytes leave.

        The same bytes again in the same phase and instance of the same round and run are free.

        Raises:
            BudgetSpentError: some unit would lose more than the site allows; nothing is written.
            SettingsError: the site has no ``[privacy]``.
            UserInputError: it protects records in a ledger of patients, or the reverse.
            DiskProblemError: the disk is full or not writable. The charge may stand nevertheless,
                the same bytes can then be charged again and are free.
            LedgerStoppedError: the ledger is not whole, or was put back from a backup.
        """
        with self._store.transaction():
            self._catch_up()
            before = self._book.charged.get(_key(release))
            entry = before or self._append(release, self._limits())
        # A release leaves only once the witness has seen its charge.
        self._store.keep_witness()
        return Receipt(entry=entry, free=before is not None)

    def exposure(self) -> Exposure:
        """What the most exposed unit has lost so far, under the site's delta.

        Raises:
            SettingsError: the site has no ``[privacy]`` and the ledger has no entry.
        """
        with self._store.transaction():
            self._catch_up()
            return self._worst(_everybody(self._book, self._store.groups()), self._delta())

    def runs(self, most: int | None = None) -> list[RunSpending]:
        """What each phase of each run has charged, the one with the newest entry last.

        Args:
            most: how many of the newest to return; None: all.
        """
        with self._store.transaction():
            self._catch_up()
            rows = list(self._store.rows())
            groups = self._store.groups()
        entries = [Entry.model_validate_json(row.content) for row in rows]
        parts: dict[tuple[str, str, str], list[Entry]] = {}
        for entry in entries:
            parts.setdefault((entry.run, entry.phase, entry.unit_kind), []).append(entry)
        newest = sorted(parts.values(), key=lambda part: part[-1].number)
        wanted = {part[-1].number for part in (newest if most is None else newest[-most:])}
        book, exposure_at = _Book(self._store.start), {}
        for entry, row in zip(entries, rows, strict=True):
            book.take(entry, row.sha256)
            if entry.number in wanted:
                exposure_at[entry.number] = self._worst(_everybody(book, groups), self._delta())
        return [
            RunSpending(
                last_entry=part[-1],
                first_round=min(entry.round for entry in part),
                last_round=max(entry.round for entry in part),
                num_releases=len(part),
                charges=charges_of(totals_of(c for entry in part for c in entry.charges)),
                exposure=exposure_at[part[-1].number],
            )
            for part in newest
            if part[-1].number in wanted
        ]

    def _catch_up(self) -> None:
        """Read what was added since, check that it follows, and that nothing is missing."""
        for row in self._store.rows(after=self._book.head.count):
            entry = next_entry(row, self._book.head)
            if isinstance(entry, str):
                raise LedgerStoppedError(self._store.path, entry, RESTORE)
            self._book.take(entry, row.sha256)
        hashes = self._book.hashes
        if problem := self._store.witness_problem(hashes) or self._store.told_problem(hashes):
            raise LedgerStoppedError(self._store.path, problem, RESTORE)

    def _limits(self) -> PrivacySettings:
        if self._privacy is not None:
            return self._privacy
        source = "site.toml"
        what = "is missing, so the site has no privacy budget and takes part in no private run"
        fix = "add the section with epsilon_limit and delta"
        raise SettingsError(source, [Problem(where="privacy", what=what, fix=fix)])

    def _delta(self) -> float:
        if self._privacy is None and self._book.last is not None:
            return self._book.last.delta
        return self._limits().delta

    def _append(self, release: Release, limits: PrivacySettings) -> Head:
        book = self._book
        entry = Entry(
            number=book.head.count + 1,
            previous=book.head.sha256,
            charged_at=datetime.now(UTC).strftime(_TIME),
            run=release.run,
            round=release.round,
            phase=release.phase,
            instance=release.instance,
            payload_sha256=release.payload_sha256,
            charges=release.charges,
            fingerprint=release.fingerprint,
            unit_kind=release.unit_kind,
            num_units=len(release.units) or 1,
            units_sha256=hash_units(release.units),
            epsilon_limit=limits.epsilon_limit,
            delta=limits.delta,
        )
        touched: list[tuple[UnitKind, Charges]] = [
            (kind, charges)
            for kind, charges in self._after(release, entry)
            if not any(
                bound(charges, limits.delta) <= limits.epsilon_limit for bound in self._bounds[:-1]
            )
        ]
        worst = self._worst(touched, limits.delta)
        if worst.epsilon > limits.epsilon_limit:
            raise BudgetSpentError(
                what=f"round {release.round} of run {release.run} ({release.phase})",
                unit_kind=worst.unit_kind or release.unit_kind,
                epsilon=worst.epsilon,
                epsilon_limit=limits.epsilon_limit,
                delta=limits.delta,
            )
        return self._store.append(entry.line(), entry.number)

    def _after(self, release: Release, entry: Entry) -> Iterator[tuple[UnitKind, Charges]]:
        """Everybody whose loss a release raises, with all their charges, its own included."""
        book, new = self._book, totals_of(release.charges)
        if release.unit_kind == "site":
            site = book.site + new
            yield from _people(book, book.totals, site, self._store.groups())
            yield "site", compose(site, Counter())
            return
        if book.person_kind not in (None, release.unit_kind):
            msg = (
                f"this site's ledger protects each {book.person_kind} and run {release.run} "
                f"protects each {release.unit_kind}; the two cannot be added up: ask for a plan "
                f"that protects each {book.person_kind}"
            )
            raise UserInputError(msg)
        totals, number = list(book.totals), book.data_sets.get(entry.units_sha256)
        if number is None:
            number = len(totals)
            self._store.add_data_set(number, release.units)
            totals.append(Counter())
        totals[number] = totals[number] + new
        groups = [group for group in self._store.groups() if group.data_sets >> number & 1]
        if sum(group.num_units for group in groups) != entry.num_units:
            what = "its tables of units do not fit its entries"
            raise LedgerStoppedError(self._store.path, what, RESTORE)
        for _, charges in _people(book, totals, book.site, groups):
            yield release.unit_kind, charges

    def _worst(self, units: Iterable[tuple[UnitKind, Charges]], delta: float) -> Exposure:
        """The most exposed unit; the first of several."""
        found = Exposure()
        for kind, charges in units:
            epsilon = self._bounds[-1](charges, delta)
            epsilon = math.inf if math.isnan(epsilon) else epsilon
            if found.unit_kind is None or epsilon > found.epsilon:
                found = Exposure(unit_kind=kind, epsilon=epsilon, relation=charges[0].relation)
        return found


def ledger_folder(settings: SiteSettings, folder: Path) -> Path:
    """Where a site's ledger lies; ``folder`` is that of ``site.toml``."""
    return folder / settings.state_folder / "ledger"


def _key(of: Release | Entry) -> tuple[object, ...]:
    """What makes a release the same as one before."""
    return of.run, of.round, of.phase, of.instance, of.payload_sha256


def _everybody(book: _Book, groups: Iterable[Group]) -> Iterator[tuple[UnitKind, Charges]]:
    """Every unit with charges, the site included."""
    yield from _people(book, book.totals, book.site, groups)
    if book.site:
        yield "site", compose(book.site, Counter())


def _people(
    book: _Book, totals: Sequence[Totals], site: Totals, groups: Iterable[Group]
) -> Iterator[tuple[UnitKind, Charges]]:
    """The charges of the most exposed people among the groups."""
    known = (1 << len(totals)) - 1
    for data_sets in largest(group.data_sets & known for group in groups):
        own: Totals = Counter()
        for number, part in enumerate(totals):
            if data_sets >> number & 1:
                own.update(part)
        yield book.person_kind or "record", compose(own, site)
