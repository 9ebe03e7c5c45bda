"""What can go wrong, and the exit code each kind ends in.

AsterionError                  1
├── UserInputError             2    a command was asked for something that cannot be
│   ├── SettingsError         10    a plan or a site.toml is wrong; lists every problem
│   ├── FileProblemError      11    a file is missing, unreadable or not what it says
│   │   ├── LedgerStoppedError 25    a site's privacy ledger lacks what it once had
│   │   └── AuditBrokenError  26    an audit trail was changed, or is none
│   ├── ReleaseBrokenError    27    a release is not as it was signed, or is none
│   ├── ReleaseHeldError      28    the release gate holds a model back
│   ├── DataProblemError      12    a site's data break the contract of the plan
│   ├── PlanMismatchError     13    a plan, a model or an earlier run do not fit together
│   ├── MissingExtraError     14    an optional package is needed and not installed
│   └── PrivacyProofError     15    no proof covers what was asked, so no epsilon is given
├── QuorumLostError           20    too few sites answered
├── ReportRejectedError       21    a site's report broke the contract (layout, range, finite)
├── OrderRefusedError         22    a site said no, with a reason code
├── BudgetSpentError          23    a release would cost more privacy than the site allows
├── ClaimBrokenError          24    an attack shows more than the epsilon that is claimed
├── ConnectionProblemError    30    an address, port, key or certificate does not work
│   ├── ProofRefusedError     33    stock Flower's control interface takes no proof of this caller
│   ├── PortInUseError        31    another process holds the port
│   └── UnreachableError      32    nobody answers at the address, perhaps not yet
├── DiskProblemError          40    a disk is full or not writable; nothing done before is lost
├── RunStoppedError           50    somebody stopped the run; it can be resumed
└── EngineFailedError         60    a worker of a simulation died or failed
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


class AsterionError(Exception):
    """The root of every error that a person may cause or must know about."""

    exit_code = 1


class UserInputError(AsterionError):
    """A command was asked for something that cannot be."""

    exit_code = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong, in the words of the person who can mend it.

    Attributes:
        where: the path of the setting (``rounds.count``) or a file's name as the reader knows it.
        what: what is wrong, with the value that was found.
        fix: what would make it right: the allowed range, or the next step.
        fatal: False for a warning that does not stop the work.
    """

    where: str
    what: str
    fix: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.fix}"


class SettingsError(UserInputError):
    """A plan or a site's settings are wrong. Carries every problem at once."""

    exit_code = 10

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.source, self.problems = source, tuple(problems)
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        count = len(self.problems)
        super().__init__(f"{source} has {count} problem{'s' if count != 1 else ''}:\n{lines}")


class FileProblemError(UserInputError):
    """A file is missing, cannot be read, or is not what it says."""

    exit_code = 11

    def __init__(self, path: Path | str, what: str, fix: str) -> None:
        self.path, self.what, self.fix = str(path), what, fix
        super().__init__(f"{path}: {what}; {fix}")


class LedgerStoppedError(FileProblemError):
    """A site's privacy ledger is damaged, or lacks an entry that it once had.

    ``code`` is safe to send away from the site.
    """

    code = "ledger_stopped"
    exit_code = 25


class AuditBrokenError(FileProblemError):
    """An audit trail was changed after it was written, contradicts the other side's, or is none.

    ``code`` is safe to send away from the site.
    """

    code = "audit_broken"
    exit_code = 26


class ReleaseBrokenError(UserInputError):
    """A release of a model is not as it was signed, or is none. Carries every problem at once."""

    exit_code = 27

    def __init__(self, release: Path | str, problems: Iterable[Problem]) -> None:
        self.release, self.problems = str(release), tuple(problems)
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{release} is not a release as it was signed:\n{lines}")


class ReleaseHeldError(UserInputError):
    """The release gate holds a model back. Carries every reason."""

    exit_code = 28

    def __init__(self, what: str, reasons: Iterable[str], *, fix: str) -> None:
        self.reasons = tuple(reasons)
        lines = "\n".join(f"  {reason}" for reason in self.reasons)
        super().__init__(f"{what} is held back:\n{lines}\nnothing was done; {fix}")


class DataProblemError(UserInputError):
    """A site's data break the contract of the plan.

    ``code`` is safe to send away from the site; the message is for the site's own eyes.
    """

    exit_code = 12

    def __init__(self, message: str, *, code: str) -> None:
        self.code = code
        super().__init__(message)


class PlanMismatchError(UserInputError):
    """Two things that must belong together do not: a plan, a model, an earlier run."""

    exit_code = 13


class MissingExtraError(UserInputError):
    """An optional package is needed and not installed."""

    exit_code = 14

    def __init__(self, *, package: str, extra: str, distribution: str = "asterion-client") -> None:
        self.package, self.extra = package, extra
        super().__init__(
            f"{package} is needed for this and is not installed; "
            f"install it with: pip install '{distribution}[{extra}]'"
        )


class PrivacyProofError(UserInputError):
    """No proof of differential privacy covers what was asked, so no figure is given."""

    exit_code = 15

    def __init__(self, *, what: str, fix: str) -> None:
        self.what, self.fix = what, fix
        super().__init__(f"{what}; {fix}")


class QuorumLostError(AsterionError):
    """Too few sites answered for the round to count."""

    exit_code = 20

    def __init__(self, *, round_: int, answered: int, asked: int, needed: int, why: str) -> None:
        self.round, self.answered, self.asked, self.needed = round_, answered, asked, needed
        super().__init__(
            f"round {round_}: {answered} of {asked} sites answered, {needed} are needed ({why}); "
            "the finished rounds are stored: bring the sites back and start the same run again"
        )


class ReportRejectedError(AsterionError):
    """A site's report broke the contract; it is left out of the fold."""

    exit_code = 21

    def __init__(self, site: str, code: str, message: str) -> None:
        self.site, self.code = site, code
        super().__init__(f"report of site {site!r} rejected ({code}): {message}")


class OrderRefusedError(AsterionError):
    """A site said no. ``code`` is one of :data:`asterion_shared.messages.REASON_CODES`."""

    exit_code = 22

    def __init__(self, message: str, *, code: str) -> None:
        self.code = code
        super().__init__(message)


class BudgetSpentError(AsterionError):
    """A release would cost more privacy than the site allows; nothing was charged or sent.

    ``code`` is safe to send away from the site.
    """

    exit_code = 23
    code = "budget_spent"

    def __init__(
        self, *, what: str, unit_kind: str, epsilon: float, epsilon_limit: float, delta: float
    ) -> None:
        self.epsilon, self.epsilon_limit, self.delta = epsilon, epsilon_limit, delta
        super().__init__(
            f"{what} would bring the most exposed {unit_kind} to epsilon {epsilon:.4g} at delta "
            f"{delta:.2g}, and the site allows {epsilon_limit:.4g}; nothing was charged or sent: "
            "ask for a plan with more noise or fewer rounds; only the site sets its limit"
        )


class ClaimBrokenError(AsterionError):
    """An attack shows more than the epsilon that is claimed: code and proof do not agree."""

    exit_code = 24

    def __init__(self, verdict: str) -> None:
        super().__init__(f"{verdict}; report it to those who maintain Asterion, with the plan")


class ConnectionProblemError(AsterionError):
    """An address, port, key or certificate does not work."""

    exit_code = 30


class ProofRefusedError(ConnectionProblemError):
    """A call to the coordinator was not proven. ``code`` is safe to tell to whoever called."""

    exit_code = 33

    def __init__(self, *, code: str) -> None:
        self.code = code
        super().__init__(f"the proof of a call was refused: {code}")


class PortInUseError(ConnectionProblemError):
    """Another process holds the port."""

    exit_code = 31

    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__(
            f"{address} is already in use; stop the process that holds it or choose another port"
        )


class UnreachableError(ConnectionProblemError):
    """Nobody answers at an address: perhaps not yet."""

    exit_code = 32


class DiskProblemError(AsterionError):
    """A disk is full or not writable."""

    exit_code = 40

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path = str(path)
        super().__init__(
            f"cannot write {path}: {reason}; free some space or choose another folder, then start "
            "the same run again: everything finished before is kept"
        )


class RunStoppedError(AsterionError):
    """Somebody stopped the run. Starting it again resumes it."""

    exit_code = 50


class EngineFailedError(AsterionError):
    """A worker of a simulation died, or failed in a way that is no site's own."""

    exit_code = 60

    def __init__(self, what: str) -> None:
        super().__init__(
            f"a simulation's worker failed: {what}\nfinished rounds are stored: start the same "
            "run again, or with --engine sequential to see whether the engine is at fault"
        )
