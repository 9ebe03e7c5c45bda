"""The network matrix: what bad networks do to a run over the link, a line a case.

    python -m tests.network.matrix --out runs/faults/network.json

Root, Linux and /dev/net/tun are needed. One federation serves all cases. Each is a run of its own
that nobody helps; it must end by itself in the bytes of the run that nobody disturbed.

- Bytes are those of IP packets that a side sent, lost ones and TCP's repeats included. What a case
  sends beyond the undisturbed run is its ``extra_bytes``, of the worst site and direction.
- ``trained_again``: trainings and evaluations at sites beyond those of the undisturbed run.
- ``double_releases``: charges in sites' ledgers beyond one a round (the private plan).
"""

import argparse
import fnmatch
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tests.network.conditions import UNDISTURBED, Condition, cut_for
from tests.network.connect_proxy import proxy
from tests.network.federation import (
    INNER,
    ROUNDS,
    SITES,
    Federation,
    Launched,
    federation,
    plan_of,
    wait_for,
)
from tests.network.matrix_cases import HIT, SLOW, Case, Moment, cases

from asterion_shared.link.parcels import CHUNK_BYTES
from asterion_shared.plan import Plan
from asterion_shared.result import Result

END_SECONDS = 300.0
"""A run that has not ended so long after its disturbance has not ended."""

BACK_SECONDS = 30.0
"""How long after the end of a cut a run may take to notice it, at most."""

AWAY_SECONDS = 70.0
"""A site behind a dead line is known to be away by then: keepalive, grace, and some room."""

WAITED, CLOSED = "cable-wait", "cable-quorum"


@dataclass(frozen=True, slots=True)
class Calm:
    """An undisturbed run: what the others are compared with.

    Attributes:
        weights: bytes of the final model's tensors.
        seconds: from the launch to the end.
        works: how often a site trained or evaluated.
        sent: bytes up and down by site.
    """

    weights: bytes
    seconds: float
    works: int
    sent: dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Line:
    """What became of a case."""

    case: str
    seconds: float
    lost_rounds: int = 0
    not_identical: int = 0
    double_releases: int = 0
    trained_again: int = 0
    extra_bytes: int = 0
    waited_seconds: float = 0.0
    problems: tuple[str, ...] = field(default=())


class Matrix:
    """Plays cases on a running federation.

    Args:
        running: it.
    """

    def __init__(self, running: Federation) -> None:
        self.running = running
        self._calm: dict[str, Calm] = {}
        self._number = 0
        self._kind = ""

    def calm(self, kind: str) -> Calm:
        """The undisturbed run of a kind of plan, made once."""
        if kind not in self._calm:
            running = self.running
            running.net.set_all(SLOW[kind])
            launched, began = self._launch(plan_of(kind), f"calm-{kind}")
            sent = running.sent_bytes()
            launched.end(END_SECONDS)
            self._calm[kind] = Calm(
                launched.weights,
                time.monotonic() - began,
                running.count(HIT, "S3"),
                _difference(running.sent_bytes(), sent),
            )
        return self._calm[kind]

    def play(self, case: Case) -> Line:
        """Disturb a run as a case says."""
        running, calm = self.running, self.calm(case.plan)
        throughout = case.moment == "throughout"
        running.net.set_all(UNDISTURBED if throughout else SLOW[case.plan])
        if throughout:
            self._set(case.sites, case.condition)
        launched, began = self._launch(plan_of(case.plan), f"{case.name}-{self._number}")
        sent = running.sent_bytes()
        if not throughout:
            self.until(case.moment, launched)
            self._endure(case.sites, case.condition, SLOW[case.plan])
        line, _ = self._judge(case.name, launched, began, calm)
        running.net.set_all(UNDISTURBED)
        worst = self._extra_bytes(sent, calm)
        allowed = CHUNK_BYTES + case.spare * max(max(pair) for pair in calm.sent.values())
        problems = line.problems
        if worst > allowed:
            problems += (f"{worst} bytes beyond the undisturbed run, allowed are {allowed:.0f}",)
        if case.plan == "private":
            line = replace(line, double_releases=self._double_releases(launched))
        return replace(line, extra_bytes=worst, problems=problems)

    def pull_cable(self, seconds: float) -> Line:
        """A cable is pulled in the middle of a round that waits."""
        running, calm = self.running, self.calm("large")
        running.net.set_all(SLOW["large"])
        launched, began = self._launch(plan_of("large"), f"{WAITED}-{self._number}")
        sent = running.sent_bytes()
        self.until("upload", launched)
        self._endure((HIT,), cut_for(seconds), SLOW["large"])
        line, result = self._judge(f"{WAITED}-{seconds:.0f}-s", launched, began, calm)
        extra = self._extra_bytes(sent, calm)
        later = line.seconds - calm.seconds
        problems = list(line.problems)
        if not seconds - BACK_SECONDS <= later <= seconds + BACK_SECONDS:
            problems.append(f"the run took {later:.0f} s more, the cable was gone {seconds:.0f} s")
        if HIT not in result.rounds[2].waited_for or HIT not in result.headline:
            problems.append(f"nothing says that {HIT} was waited for: {result.headline}")
        told = [e["state"] for e in launched.events() if "state" in e and e.get("site") == HIT]
        # A cable that is back before the coordinator could notice only makes the site late.
        expected = "away" if seconds > AWAY_SECONDS else "late"
        if expected not in told:
            problems.append(f"events say of the site {told}, not that it was {expected}")
        if extra > 2 * CHUNK_BYTES:
            problems.append(f"{extra} bytes beyond the undisturbed run, allowed are two chunks")
        return replace(
            line, extra_bytes=extra, waited_seconds=round(later, 1), problems=tuple(problems)
        )

    def close_at_deadline(self, seconds: float) -> Line:
        """The cable is pulled in the middle of a round that closes at its deadline."""
        running = self.running
        rounds = {"count": ROUNDS, "quorum": 2, "late": "quorum", "deadline_seconds": 20.0}
        plan = plan_of("large", rounds=rounds)
        running.net.set_all(SLOW["large"])
        launched, began = self._launch(plan, f"{CLOSED}-{self._number}")
        self.until("training", launched)
        running.net.set(HIT, cut_for(seconds))
        pulled, problems = time.monotonic(), []
        try:
            result = launched.end(END_SECONDS)
        finally:
            running.net.set_all(UNDISTURBED)
        second = result.rounds[2]
        if time.monotonic() - pulled > seconds:
            problems.append("the run ended after the cable was back")
        if set(second.missing) != {HIT} or HIT not in result.headline:
            problems.append(f"round 2 misses {second.missing}: {result.headline}")
        if not 19.0 <= second.seconds <= 30.0:
            problems.append(f"round 2 took {second.seconds:.1f} s, its deadline is at 20 s")
        if any(set(r.answered) | {HIT} != set(SITES) for r in result.rounds):
            problems.append("another site is missing")
        running.wait_until_connected(seconds=BACK_SECONDS)
        took = round(second.seconds, 1)
        return Line(
            f"{CLOSED}-{seconds:.0f}-s", round(time.monotonic() - began, 1),
            waited_seconds=took, problems=tuple(problems),
        )  # fmt: skip

    def pass_proxy(self, way: Literal["setting", "environment"]) -> Line:
        """A site whose only way leads through a proxy; its tunnel is cut during an upload."""
        running, calm = self.running, self.calm("small")
        running.net.set_all(SLOW["small"])
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            with proxy(running.net.coordinator, place, port=3128) as middle:
                running.stop(HIT)
                if way == "setting":
                    running.start_site(HIT, address=INNER, proxy=middle.url)
                else:
                    running.start_site(HIT, address=INNER, https_proxy=middle.url)
                running.wait_until_connected(HIT)
                launched, began = self._launch(plan_of("small"), f"proxy-{way}-{self._number}")
                self.until("upload", launched)
                num_cut = middle.cut()
                line, _ = self._judge(f"proxy-{way}", launched, began, calm)
                passed = middle.counters()
                running.stop(HIT)
        running.start_site(HIT)
        running.wait_until_connected(HIT)
        problems = line.problems
        if not num_cut or passed.opened < 2 or min(passed.up_bytes, passed.down_bytes) < 1_000_000:
            problems += (f"not everything went through the proxy: {passed}",)
        return replace(line, problems=problems)

    def until(self, moment: Moment, launched: Launched) -> None:
        """Wait for a moment of round 2 at the site that is hit."""
        running = self.running
        # The count of examples is the first order that a site gets, and trains nothing.
        step, times = {"download": ("S1", 3), "training": ("S2", 3), "upload": ("S6", 2)}[moment]
        wait_for(lambda: running.count(HIT, step) >= times or not launched.goes_on, 120, moment)
        if moment == "training":
            return
        way = 0 if moment == "upload" else 1
        begun = running.sent_bytes()[HIT][way]
        half = len(self._calm[self._kind].weights) // 2
        wait_for(
            lambda: running.sent_bytes()[HIT][way] - begun > half or not launched.goes_on,
            60, f"half of the {moment}",
        )  # fmt: skip

    def _launch(self, plan: Plan, run: str) -> tuple[Launched, float]:
        self._number += 1
        self._kind = plan.name
        self.running.wait_until_connected()
        self.running.reset_counts()
        return self.running.launch(plan, run), time.monotonic()

    def _extra_bytes(self, before: dict[str, tuple[int, int]], calm: Calm) -> int:
        """Bytes sent since ``before`` beyond the undisturbed run's, of the worst site and way."""
        sent = _difference(self.running.sent_bytes(), before)
        return max(sent[site][way] - calm.sent[site][way] for site in SITES for way in (0, 1))

    def _set(self, sites: Sequence[str], condition: Condition) -> None:
        for site in sites:
            self.running.net.set(site, condition)

    def _endure(self, sites: Sequence[str], condition: Condition, after: Condition) -> None:
        self._set(sites, condition)
        time.sleep(condition.lasts_seconds)
        self._set(sites, after)

    def _judge(
        self, name: str, launched: Launched, began: float, calm: Calm
    ) -> tuple[Line, Result]:
        result = launched.end(END_SECONDS)
        seconds = time.monotonic() - began
        whole = [r for r in result.rounds if set(r.answered) == set(SITES)]
        works = {site: self.running.count(site, "S3") for site in SITES}
        problems: tuple[str, ...] = ()
        if result.status != "finished":
            problems = (result.headline,)
        line = Line(
            name,
            round(seconds, 1),
            lost_rounds=ROUNDS + 1 - len(whole),
            # Noise is drawn anew in each run: no two private ones are alike.
            not_identical=int(result.privacy_account is None and launched.weights != calm.weights),
            trained_again=sum(abs(found - calm.works) for found in works.values()),
            problems=problems,
        )
        return line, result

    def _double_releases(self, launched: Launched) -> int:
        charges = [self.running.charges(site, launched.run) for site in SITES]
        return sum(abs(found - ROUNDS) for found in charges)


def unreachable_sites(running: Federation) -> Line:
    """The coordinator tries to open a connection to each site and must not get one."""
    began, problems = time.monotonic(), []
    stopped = running.net.stopped_by_firewall()
    if stopped:
        problems.append(f"the coordinator itself tried to dial a site, {stopped} times")
    for name, host in running.net.sites.items():
        dial = f"import socket; socket.create_connection(({host.address!r}, 22), 1.5)"
        done = running.net.coordinator.run([sys.executable, "-I", "-S", "-c", dial], check=False)
        if "TimeoutError" not in done.stderr:
            problems.append(f"{name} can be dialled: {done.stderr[-100:]}")
    if running.net.stopped_by_firewall() < stopped + len(SITES):
        problems.append("the firewall stopped nothing")
    return Line("sites-behind-nat", round(time.monotonic() - began, 1), problems=tuple(problems))


def _difference(
    now: dict[str, tuple[int, int]], before: dict[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    return {site: (up - before[site][0], down - before[site][1])
            for site, (up, down) in now.items()}  # fmt: skip


def is_good(line: Line) -> bool:
    """Whether a case came out as it must."""
    counts = (line.lost_rounds, line.not_identical, line.double_releases, line.trained_again)
    return not line.problems and not any(counts)


def plays(matrix: Matrix) -> Iterator[tuple[str, Callable[[], Line]]]:
    """Every case by name, and how it is played."""
    for case in cases():
        yield case.name, lambda case=case: matrix.play(case)
    yield "proxy-setting", lambda: matrix.pass_proxy("setting")
    yield "proxy-environment", lambda: matrix.pass_proxy("environment")
    yield "sites-behind-nat", lambda: unreachable_sites(matrix.running)
    yield CLOSED, lambda: matrix.close_at_deadline(360.0)
    yield WAITED, lambda: matrix.pull_cable(360.0)


def main() -> int:
    """Play the cases and write what became of them; 1 when one did not come out as it must."""
    parser = argparse.ArgumentParser(description="The network matrix over the link.")
    parser.add_argument("--out", type=Path, default=Path("runs/faults/network.json"))
    parser.add_argument("--only", default="*", help="names of cases, with * and ?")
    parser.add_argument("--into", type=Path, help="summary.json to which the figures are added")
    given = parser.parse_args()
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder, federation(Path(folder)) as running:
        for name, play in plays(Matrix(running)):
            if not fnmatch.fnmatch(name, given.only):
                continue
            try:
                lines.append(play())
            except (AssertionError, TimeoutError, OSError) as error:
                lines.append(Line(name, 0.0, lost_rounds=ROUNDS, problems=(repr(error)[:2000],)))
            _say(lines[-1])
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(summary(lines), indent=2) + "\n")
    if given.into is not None:
        add_to(given.into, lines)
    return int(not all(map(is_good, lines)))


def add_to(path: Path, lines: Sequence[Line]) -> None:
    """Add the cases to the summary that the kill matrix wrote, or begin one."""
    before = json.loads(path.read_text()) if path.exists() else {"failures": []}
    own = summary(lines)
    for name in ("cases", "lost_rounds", "not_identical", "double_releases", "seconds"):
        before[name] = before.get(name, 0) + own[name]
    before["of"] = before.get("of", 0) + own["cases"]
    before["failures"] += [asdict(line) for line in lines if not is_good(line)]
    path.write_text(json.dumps(before, indent=2) + "\n")


def summary(lines: Sequence[Line]) -> dict[str, Any]:
    """The figures of ``network.json``."""
    counted = ("lost_rounds", "not_identical", "double_releases", "trained_again")
    return {
        "cases": len(lines),
        **{name: sum(getattr(line, name) for line in lines) for name in counted},
        "failed": [line.case for line in lines if not is_good(line)],
        "seconds": round(sum(line.seconds for line in lines), 1),
        "lines": [asdict(line) for line in lines],
    }


def _say(line: Line) -> None:
    words = "" if is_good(line) else f"  FAILED {line}"
    sys.stdout.write(
        f"{line.case:40} {line.seconds:6.1f} s  {line.extra_bytes / 1e6:6.2f} MB again{words}\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
