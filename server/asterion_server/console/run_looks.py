"""What a page says of a run: its files, read again only when they have changed."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from asterion_server.asked_rounds import times_asked
from asterion_server.keys import Provisioned
from asterion_server.launch import run_status
from asterion_server.run_folder import Launch, RunFolder
from asterion_server.run_queue import LinkQueue
from asterion_shared.absences import absences, quarantine_sentences
from asterion_shared.errors import AsterionError
from asterion_shared.events import Event, RoundFinished, read_events_from
from asterion_shared.plan import Plan
from asterion_shared.privacy.account import PrivacyAccount, account_of, in_one_line
from asterion_shared.result import Result, RoundResult, SiteSummary, read_result

MOST_KEPT = 200
"""Runs whose look is kept; more are read anew each time."""

MEASURED_ROUNDS = 10
"""Rounds behind the forecast of the end."""

STATES: dict[str, tuple[str, str]] = {
    "waiting": ("waiting", "idle"),
    "running": ("running", "busy"),
    "stopping": ("stopping", "busy"),
    "finished": ("finished", ""),
    "stopped": ("stopped", "partial"),
    "interrupted": ("interrupted", "lost"),
    "quorum_lost": ("quorum lost", "lost"),
    "failed": ("failed", "lost"),
}
"""How a run stands: in words, and the class of its badge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLook:
    """A run as its files have it.

    Attributes:
        name: of the run.
        status: one of :data:`STATES`.
        launch: how it was asked for.
        launched: seconds since 1970.
        plan: of the run.
        signed_by: the operator whose signature it has; empty without one.
        result: its result, or while it goes on what that would be now.
        headline: one sentence on how far it came and who was missing.
        since_round: events after the last finished round.
        last_word: of the newest event, seconds since 1970; None before the first.
        problem: why it ended early; empty when it did not.
    """

    name: str
    status: str
    launch: Launch
    launched: float
    plan: Plan
    signed_by: str
    result: Result
    headline: str
    since_round: tuple[Event, ...]
    last_word: float | None
    problem: str

    @property
    def goes_on(self) -> bool:
        """Whether it has not ended."""
        return self.status in ("waiting", "running", "stopping")

    @property
    def words(self) -> str:
        """How it stands."""
        return STATES[self.status][0]

    @property
    def kind(self) -> str:
        """The class of its badge; a finished run that lacked somebody is not whole."""
        if self.status == "finished" and any(r.missing for r in self.result.rounds):
            return "partial"
        return STATES[self.status][1]

    @property
    def rounds_done(self) -> int:
        """Finished rounds of training; the one that lost the quorum is none."""
        done = [r for r in self.result.rounds if r.round > 0 and r.answered]
        lost = self.status == "quorum_lost" and done and done[-1] is self.result.rounds[-1]
        return len(done) - bool(lost)

    @property
    def end(self) -> float | None:
        """When it will end if rounds go on as the last ones did, UTC since 1970; None: unknown."""
        taken = [r.seconds for r in self.result.rounds if r.round > 0][-MEASURED_ROUNDS:]
        left = self.result.rounds_planned - self.rounds_done
        if self.status != "running" or not taken or self.last_word is None:
            return None
        return self.last_word + left * median(taken)


@dataclass
class _Tail:
    events: list[Event] = field(default_factory=list)
    end: int = 0


Stamp = tuple[object, ...]


class RunLooks:
    """Reads runs, and keeps what has not changed. Any thread may use it.

    Args:
        made: the coordinator's folder.
    """

    def __init__(self, made: Provisioned) -> None:
        self._made, self._queue = made, LinkQueue(made)
        self._kept: OrderedDict[str, tuple[Stamp, RunLook | str]] = OrderedDict()
        self._tails: dict[str, _Tail] = {}
        self._lock = threading.RLock()

    def stamp(self, folder: RunFolder) -> Stamp:
        """Changes when the look does."""
        files = (folder.launch_file, folder.events, folder.result, folder.problem_file,
                 folder.stop_file, folder.path / "asked.jsonl")  # fmt: skip
        return (*map(_stat, files), folder.is_carried_out)

    def look(self, folder: RunFolder) -> RunLook | str:
        """The run; where its files cannot be read, why not."""
        with self._lock:
            name, stamp = folder.path.name, self.stamp(folder)
            kept = self._kept.get(name)
            if kept is not None and kept[0] == stamp:
                self._kept.move_to_end(name)
                return kept[1]
            try:
                found: RunLook | str = self._read(folder)
            except AsterionError as error:
                found = str(error)
            self._kept[name] = stamp, found
            while len(self._kept) > MOST_KEPT:
                forgotten, _ = self._kept.popitem(last=False)
                self._tails.pop(forgotten, None)
            return found

    def _read(self, folder: RunFolder) -> RunLook:
        plan, launch = folder.read_plan(), folder.read_launch()
        status = run_status(folder, self._queue.standing(folder))
        if status in ("running", "waiting") and folder.stop_file.exists():
            status = "stopping"
        launched = folder.launch_file.stat().st_mtime
        goes_on = status in ("waiting", "running", "stopping")
        since: tuple[Event, ...] = ()
        if not goes_on and folder.result.exists():
            self._tails.pop(folder.path.name, None)
            result = read_result(folder.result)
            said = result.headline
        else:
            events = self._events(folder)
            result = progress(plan, launch, folder, events, launched)
            said, since = _headline_so_far(result), _since_round(events)
        signature, problem = folder.read_signature(), folder.problem()
        return RunLook(
            name=folder.path.name,
            status=status,
            launch=launch,
            launched=launched,
            plan=plan,
            signed_by="" if signature is None else signature.operator,
            result=result,
            headline=said,
            since_round=since,
            last_word=folder.events.stat().st_mtime if folder.events.exists() else None,
            problem="" if problem is None or goes_on else str(problem),
        )

    def _events(self, folder: RunFolder) -> Sequence[Event]:
        tail = self._tails.setdefault(folder.path.name, _Tail())
        size = folder.events.stat().st_size if folder.events.exists() else 0
        if size < tail.end:
            tail.events, tail.end = [], 0
        new, tail.end = read_events_from(folder.events, tail.end)
        tail.events += new
        return tail.events


def progress(
    plan: Plan, launch: Launch, folder: RunFolder, events: Sequence[Event], launched: float
) -> Result:
    """What the result of a run would be if it ended now; its status says nothing yet.

    Args:
        plan: of the run.
        launch: how it was asked for.
        folder: the run's.
        events: all of its events so far.
        launched: seconds since 1970.
    """
    rounds = {e.round_result.round: e.round_result for e in events if isinstance(e, RoundFinished)}
    in_order = tuple(rounds[number] for number in sorted(rounds))
    account = account_now(plan, folder)
    return Result(
        run=folder.path.name,
        name=plan.name,
        kind=plan.kind,
        task=plan.task,
        plan_sha256=plan.sha256,
        status="stopped",
        started=_utc(launched),
        finished=_utc(launched),
        carrier="link",
        privacy=in_one_line(account, secure_sum=plan.secure_sum is not None),
        privacy_account=account,
        secure_sum=plan.secure_sum is not None,
        rounds_planned=plan.rounds.count if plan.kind == "train" else 0,
        rounds=in_order,
        final_metrics=next((r.pooled for r in reversed(in_order) if r.pooled), {}),
        sites=tuple(_summary(site, in_order) for site in sorted(launch.sites)),
    )


def account_now(plan: Plan, folder: RunFolder) -> PrivacyAccount | None:
    """What the sites of a run have spent by what they were asked; None without ``[privacy]``."""
    if plan.privacy is None:
        return None
    return account_of(plan, times_asked(folder.path / "asked.jsonl"))


def _summary(site: str, rounds: Sequence[RoundResult]) -> SiteSummary:
    told = [r.outcomes[site] for r in rounds if site in r.outcomes]
    return SiteSummary(
        name=site,
        num_examples=next((o.num_examples for o in reversed(told) if o.num_examples), 0),
        num_test=next((o.num_test for o in reversed(told) if o.num_test), 0),
        num_bad_files=max((o.num_bad_files for o in told), default=0),
    )


def _headline_so_far(result: Result) -> str:
    done = sum(1 for r in result.rounds if r.round > 0 and r.answered)
    if not result.rounds:
        return "no round is finished yet"
    told = [*absences(result), *quarantine_sentences(result.rounds)]
    if result.kind != "train":
        return "; ".join(told)
    return "; ".join([f"{done} of {result.rounds_planned} rounds so far", *told])


def _since_round(events: Sequence[Event]) -> tuple[Event, ...]:
    begin = next(
        (i + 1 for i in reversed(range(len(events))) if isinstance(events[i], RoundFinished)), 0
    )
    return tuple(events[begin:])


def _utc(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size
