"""The whole kill matrix: ``python -m tests.faults.kill_matrix --out runs/faults``.

A line a case; ``summary.json`` is written anew after each, so that nothing is lost when it is
stopped. The exit code is 1 when anything failed.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.faults.kill_cases import PLANS, PRIVATE, Case, few_cases, whole_matrix
from tests.faults.kill_checks import Verdict, judge
from tests.faults.kill_harness import Harness, stopped_federation


def play_all(
    harness: Harness,
    cases: Sequence[Case],
    out: Path | None = None,
    before: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Play cases one after the other.

    Args:
        harness: a federation.
        cases: in their order.
        out: folder of ``summary.json``; None: it is not written.
        before: the summary of the same cases' first ones, which are not played again.

    Returns:
        The summary: ``cases``, ``lost_rounds``, ``not_identical``, ``double_releases``, seconds of
        all and of each, and ``failures`` with what was found.
    """
    began = time.monotonic()
    for kind in undisturbed_kinds(cases):
        harness.undisturbed(kind)
    summary = before or {"cases": 0, "of": len(cases), "lost_rounds": 0, "not_identical": 0,
                         "double_releases": 0, "seconds": 0.0, "daemon_starts": 0,
                         "failures": [], "played": []}  # fmt: skip
    seconds, starts = summary["seconds"], summary["daemon_starts"]
    for number, case in list(enumerate(cases, start=1))[summary["cases"] :]:
        played = harness.play(case, harness.name_of(case.plan, number))
        verdict = judge(harness, case, played)
        _add(summary, case, verdict, played.seconds)
        summary["seconds"] = round(seconds + time.monotonic() - began, 1)
        summary["daemon_starts"] = starts + harness.num_daemon_starts
        found = "; ".join(verdict.faults) or "exact"
        print(f"{number:4d}/{len(cases)} {case}: {played.seconds:.1f} s, {found}", flush=True)  # noqa: T201
        if out is not None:
            (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def undisturbed_kinds(cases: Sequence[Case]) -> list[str]:
    """Plans that run undisturbed first: for their bytes, and one private one for its steps."""
    wanted = [kind for kind in PLANS if any(case.plan == kind for case in cases)]
    private = [kind for kind in wanted if kind in PRIVATE]
    return [kind for kind in wanted if kind not in private[1:]]


def _add(summary: dict[str, Any], case: Case, verdict: Verdict, seconds: float) -> None:
    summary["cases"] += 1
    summary["lost_rounds"] += verdict.lost_rounds
    summary["not_identical"] += verdict.not_identical
    summary["double_releases"] += verdict.double_releases
    summary["played"].append({"case": str(case), "seconds": round(seconds, 1)})
    if verdict.faults:
        summary["failures"].append({"case": str(case), **asdict(verdict)})


def main() -> None:
    """Play the matrix, or a part of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    parser.add_argument("--few", action="store_true", help="only what every change is tested with")
    parser.add_argument("--only", default="", help="only cases that have this in their name")
    parser.add_argument("--resume", action="store_true", help="go on after what summary.json has")
    parser.add_argument("--keep", action="store_true", help="keep the federation's folder")
    given = parser.parse_args()
    cases = [c for c in (few_cases() if given.few else whole_matrix()) if given.only in str(c)]
    given.out.mkdir(parents=True, exist_ok=True)
    known = given.out / "summary.json"
    before = json.loads(known.read_text()) if given.resume and known.exists() else None
    root = Path(tempfile.mkdtemp(prefix="asterion-faults-"))
    try:
        with stopped_federation(root) as harness:
            summary = play_all(harness, cases, given.out, before)
    finally:
        if given.keep:
            print(root)  # noqa: T201
        else:
            shutil.rmtree(root, ignore_errors=True)
    told = {name: value for name, value in summary.items() if name not in ("failures", "played")}
    print(json.dumps(told))  # noqa: T201
    raise SystemExit(1 if summary["failures"] else 0)


if __name__ == "__main__":
    main()
