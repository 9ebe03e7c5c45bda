"""Quarantined reports of a run, on disk: what was found, what a person decided.

Below the run's folder, for round N::

    quarantine/round-N/SITE.json             what made the report suspicious (HeldReport)
    quarantine/round-N/SITE.safetensors      its update by tensor, while it may still be folded
    quarantine/round-N/_decision-SITE.json   what a person decided (Decision)
    quarantine/round-N/_taken.json           released reports of earlier rounds that round N folds
    quarantine/_begun.json                   the last round that has fixed what it folds (Begun)

No site's name begins with ``_``. The last two are written before round N asks anybody, so that a
round that is begun again after a crash folds the same reports, whatever was decided meanwhile.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from asterion_shared.errors import DiskProblemError, FileProblemError, UserInputError
from asterion_shared.files import make_folder, write_atomically
from asterion_shared.fold_rules import OnSuspicion
from asterion_shared.plan import Name, Sha256
from asterion_shared.settings_files import AnySettings, Settings, validate

FOLDER = "quarantine"

Verdict = Literal["release", "drop"]
State = Literal["held", "released", "folded", "dropped", "reported"]
RoundNumber = Annotated[int, Field(ge=1)]


class SuspiciousLayer(Settings):
    """A layer that made a report suspicious; :mod:`asterion_server.suspicion` says how."""

    layer: str
    norm: float
    median_norm: float
    norm_z: float
    cosine: float
    median_cosine: float
    cosine_z: float


class HeldReport(Settings):
    """``SITE.json``: a suspicious report."""

    run: str
    round: RoundNumber
    site: Name
    policy: OnSuspicion
    """What the plan said of suspicious reports."""

    num_reports: Annotated[int, Field(ge=1)]
    """Reports of the round that were compared."""

    weight: Annotated[float, Field(gt=0)]
    """That it had in the fold, or would have."""

    clip_factor: Annotated[float, Field(gt=0, le=1)]
    """What its update is multiplied by, as the plan's clip norm wants."""

    update_sha256: Sha256 | Literal[""] = ""
    """Of ``SITE.safetensors``; empty where the update was not kept."""

    layers: Annotated[tuple[SuspiciousLayer, ...], Field(min_length=1)]
    """The layers that made it suspicious."""


class Decision(Settings):
    """``_decision-SITE.json``: what a person decided."""

    verdict: Verdict
    update_sha256: Sha256 | Literal[""]
    """Of the update it is about: it does not hold for another."""


class Taken(Settings):
    """``_taken.json``: released reports that a round folds, sorted by site and round."""

    reports: tuple[tuple[Name, RoundNumber], ...] = ()


class Begun(Settings):
    """``_begun.json``: the last round that has fixed which released reports it folds."""

    round: RoundNumber


@dataclass(frozen=True, slots=True)
class QuarantineFiles:
    """Reading and writing these files; ``path`` is the run's folder."""

    path: Path

    def round_folder(self, round_: int) -> Path:
        """Where a round's files are."""
        return self.path / FOLDER / f"round-{round_}"

    def report_file(self, round_: int, site: str) -> Path:
        """See :class:`HeldReport`."""
        return self.round_folder(round_) / f"{site}.json"

    def update_file(self, round_: int, site: str) -> Path:
        """The update, by tensor."""
        return self.round_folder(round_) / f"{site}.safetensors"

    def decision_file(self, round_: int, site: str) -> Path:
        """See :class:`Decision`."""
        return self.round_folder(round_) / f"_decision-{site}.json"

    def taken_file(self, round_: int) -> Path:
        """See :class:`Taken`."""
        return self.round_folder(round_) / "_taken.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a person's decision and the run's taking of it apart.

        Raises:
            DiskProblemError: the folder is not writable.
        """
        path = self.path / FOLDER / ".lock"
        try:
            make_folder(path.parent)
            file = path.open("w")
        except OSError as error:
            raise DiskProblemError(path, error.strerror or "not writable") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def reports(self) -> tuple[HeldReport, ...]:
        """All suspicious reports, sorted by round and site.

        Raises:
            FileProblemError: a file was edited and does not hold.
        """
        found = [
            _load(HeldReport, path)
            for path in (self.path / FOLDER).glob("round-*/*.json")
            if not path.name.startswith("_")
        ]
        return tuple(sorted(found, key=lambda report: (report.round, report.site)))

    def decision(self, report: HeldReport) -> Verdict | None:
        """What a person decided of a report as it is now; None: nothing yet."""
        path = self.decision_file(report.round, report.site)
        if not path.exists():
            return None
        decision = _load(Decision, path)
        return decision.verdict if decision.update_sha256 == report.update_sha256 else None

    def taken(self) -> dict[tuple[str, int], int]:
        """The rounds that took released reports, by the report's site and round."""
        found: dict[tuple[str, int], int] = {}
        for path in (self.path / FOLDER).glob("round-*/_taken.json"):
            by = int(path.parent.name.removeprefix("round-"))
            found |= dict.fromkeys(_load(Taken, path).reports, by)
        return found

    def state(self, report: HeldReport) -> State:
        """How a report stands."""
        if report.policy == "report":
            return "reported"
        if (report.site, report.round) in self.taken():
            return "folded"
        decided = self.decision(report)
        if report.policy == "drop" or decided == "drop":
            return "dropped"
        return "held" if decided is None else "released"

    def take(self, round_: int) -> tuple[tuple[str, int], ...]:
        """The released reports that a round folds, fixed durably the first time it is asked.

        Raises:
            DiskProblemError: the folder is not writable.
            FileProblemError: a file was edited and does not hold.
        """
        with self.locked():
            path, begun = self.taken_file(round_), self.path / FOLDER / "_begun.json"
            known = begun.exists() and _load(Begun, begun).round == round_
            if not known and not path.exists():
                due = [
                    (report.site, report.round)
                    for report in self.reports()
                    if report.round < round_ and self.state(report) == "released"
                ]
                if due:
                    self._write(path, Taken(reports=tuple(sorted(due))))
            if not known:
                self._write(begun, Begun(round=round_))
            return _load(Taken, path).reports if path.exists() else ()

    def put(self, report: HeldReport) -> None:
        """Store what made a report suspicious; a decision about another update is void."""
        self._write(self.report_file(report.round, report.site), report)
        decided = self.decision(report)
        if decided is None:
            self.decision_file(report.round, report.site).unlink(missing_ok=True)
        elif decided == "drop":
            self.update_file(report.round, report.site).unlink(missing_ok=True)

    def forget_others(self, round_: int, sites: tuple[str, ...]) -> None:
        """Remove reports of an interrupted try of a round that are not suspicious this time."""
        for report in self.reports():
            if report.round == round_ and report.site not in sites:
                self.update_file(round_, report.site).unlink(missing_ok=True)
                self.decision_file(round_, report.site).unlink(missing_ok=True)
                self.report_file(round_, report.site).unlink(missing_ok=True)

    def forget_folded(self, round_: int) -> None:
        """Remove the updates that rounds before this one folded: those rounds are stored."""
        for (site, number), by in self.taken().items():
            if by < round_:
                self.update_file(number, site).unlink(missing_ok=True)

    def decide(self, report: HeldReport, verdict: Verdict) -> None:
        """Store what a person decided; a dropped update is removed.

        Raises:
            UserInputError: the report is folded or gone, or the plan decides.
            DiskProblemError: the folder is not writable.
        """
        with self.locked():
            state = self.state(report)
            if state not in ("held", "released"):
                what = {"folded": "is in the model already", "dropped": "is dropped",
                        "reported": "is in the model, as the plan says"}[state]  # fmt: skip
                msg = (
                    f"the report of site {report.site} of round {report.round} {what}; only a "
                    "report that is held can be decided on: asterion server quarantine list"
                )
                raise UserInputError(msg)
            decision = Decision(verdict=verdict, update_sha256=report.update_sha256)
            self._write(self.decision_file(report.round, report.site), decision)
            if verdict == "drop":
                self.update_file(report.round, report.site).unlink(missing_ok=True)

    def _write(self, path: Path, value: Settings) -> None:
        write_atomically(path, value.model_dump_json(indent=1).encode())


def _load(kind: type[AnySettings], path: Path) -> AnySettings:
    try:
        return validate(kind, json.loads(path.read_bytes()), str(path))
    except (OSError, ValueError) as error:
        what = f"cannot be read ({type(error).__name__})"
        raise FileProblemError(path, what, "take back the change, or remove the file") from None
