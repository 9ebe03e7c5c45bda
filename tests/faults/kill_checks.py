"""What must hold of a run, whoever was killed in it."""

import json
import sqlite3
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.kill_cases import PRIVATE, ROUNDS, Case
from tests.faults.kill_harness import Harness, Played
from tests.live.conftest import SITES

from asterion_client.privacy_ledger_audit import export_ledger
from asterion_server.asked_rounds import times_asked
from asterion_server.link_paths import blobs_of_orders
from asterion_shared.audit import trail_files
from asterion_shared.audit_verify import verify_trails
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link.parcels import from_wire
from asterion_shared.result import Result

TRAININGS = ROUNDS + 1
"""How often a site takes S3 in an undisturbed run: the rounds, and the closing evaluation."""

REPORTS = ("query", "evaluate", *["train"] * ROUNDS)
"""What a site answers in a run."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of a run.

    Attributes:
        lost_rounds: rounds that are missing, or that a site is missing in.
        not_identical: whether the model or its metrics differ from the undisturbed run's.
        double_releases: releases beyond one for each site and round, on either side.
        faults: everything that does not hold, in words.
    """

    lost_rounds: int
    not_identical: bool
    double_releases: int
    faults: tuple[str, ...]


def judge(harness: Harness, case: Case, played: Played) -> Verdict:
    """Look at a run that has ended.

    Args:
        harness: where it ran; the undisturbed run of the same plan ran there too.
        case: who was to be killed.
        played: the run.
    """
    faults = [f"nobody came to {stop}" for stop in played.not_reached]
    result = played.result
    if result is None:
        return Verdict(ROUNDS + 1, False, 0, (*faults, played.problem))
    lost = _lost_rounds(result)
    if result.status != "finished" or lost:
        faults.append(f"{result.status}: {result.headline}")
    private = case.plan in PRIVATE
    differs = () if private else _differences(harness, case, played.run, result)
    doubled, wrong = _releases(harness, played.run) if private else (0, [])
    faults += [*differs, *wrong, *_reports(harness, played.run), *_left_over(harness, played.run)]
    faults += _trained_again(case, played)
    faults += _trail_problems(harness)
    return Verdict(lost, bool(differs), doubled, tuple(faults))


def _trail_problems(harness: Harness) -> list[str]:
    """What is wrong with the audit trails of all sides, beside each other."""
    sites = (harness.federation.root / "sites" / name / "state" for name in SITES)
    folders = [folder / "audit" for folder in (harness.made.folder, *sites)]
    found = verify_trails(file for folder in folders for file in trail_files(folder))
    return [str(verdict.problem) for verdict in found if verdict.problem is not None]


def _lost_rounds(result: Result) -> int:
    whole = {r.round for r in result.rounds if r.answered == tuple(SITES)}
    return len(set(range(ROUNDS + 1)) - whole)


def _differences(harness: Harness, case: Case, run: str, result: Result) -> tuple[str, ...]:
    runs, calm = harness.made.runs, f"{case.plan}-calm"
    ours = (runs / run / "model.safetensors").read_bytes()
    # The header names the run; the names are equally long.
    expected = (runs / calm / "model.safetensors").read_bytes()
    found = () if ours == expected.replace(calm.encode(), run.encode()) else ("another model",)
    before = harness.calm[case.plan]
    if [(r.pooled, r.sites) for r in result.rounds] != [(r.pooled, r.sites) for r in before.rounds]:
        found = (*found, "other metrics")
    return found


def _releases(harness: Harness, run: str) -> tuple[int, list[str]]:
    """Compare what each site charged with what came to the coordinator."""
    doubled, wrong = 0, []
    came = payloads(harness.queue_file, run)
    for site in SITES:
        charged: dict[int, list[str]] = {}
        for entry in ledger_entries(harness.federation.root / "sites" / site):
            if entry.get("run") == run:
                charged.setdefault(entry["round"], []).append(entry["payload_sha256"])
        rounds = set(range(1, ROUNDS + 1))
        if set(charged) != rounds:
            wrong.append(f"{site} charged the rounds {sorted(charged)}")
        doubled += sum(len(hashes) - 1 for hashes in charged.values())
        arrived = {n: came.get((site, n), []) for n in rounds}
        doubled += sum(len(set(hashes)) - 1 for hashes in arrived.values() if hashes)
        if arrived != charged:
            wrong.append(f"{site} charged other bytes than came: {charged} and {arrived}")
    if doubled:
        wrong.append(f"{doubled} releases too many")
    asked = times_asked(harness.made.runs / run / "asked.jsonl")
    if asked != dict.fromkeys(SITES, ROUNDS):
        wrong.append(f"askings on record: {asked}")
    return doubled, wrong


def ledger_entries(folder: Path) -> list[dict[str, Any]]:
    """The entries of a site's ledger, as ``asterion site ledger export`` writes them."""
    out = folder / "ledger.jsonl"
    export_ledger(folder / "state" / "ledger", out)
    return [json.loads(line) for line in out.read_text().splitlines()]


def payloads(queue_file: Path, run: str) -> dict[tuple[str, int], list[str]]:
    """SHA-256 of each update that was stored at the coordinator, by site and round.

    A parcel's first part holds its records, which may be large too; the one array is the update.
    The update of a private plan here is one chunk, so the chunk's hash is its own.
    """
    found: dict[tuple[str, int], list[str]] = {}
    for site, round_, kind, content in _witnessed(queue_file, run):
        if kind != "train":
            continue
        _, update = from_wire(wire.Parcel.FromString(content)).parts
        assert update.num_chunks == 1
        found.setdefault((site, round_), []).append(update.chunks.hex())
    return found


def _witnessed(queue_file: Path, run: str) -> list[tuple[str, int, str, bytes]]:
    query = "SELECT site, round, message_type, content FROM witness WHERE run = ?"
    with closing(sqlite3.connect(queue_file)) as queue:
        return queue.execute(query, (run,)).fetchall()


def _reports(harness: Harness, run: str) -> list[str]:
    """One report a site and order; none twice, none that was not asked for."""
    came = Counter((site, kind) for site, _, kind, _ in _witnessed(harness.queue_file, run))
    expected = Counter((site, kind) for site in SITES for kind in REPORTS)
    return [] if came == expected else [f"reports came otherwise: {dict(came)}"]


def _left_over(harness: Harness, run: str, seconds: float = 20.0) -> list[str]:
    """An ended run leaves nothing in the queue, and no weights beside it."""
    folder = blobs_of_orders(harness.made.folder, run)
    until = time.monotonic() + seconds
    while harness.orders_of(run) or folder.exists():
        if time.monotonic() > until:
            return [f"{harness.orders_of(run)} orders left; folder there: {folder.exists()}"]
        time.sleep(0.1)
    return []


def _trained_again(case: Case, played: Played) -> list[str]:
    """A site that was killed between S3 and S4, and no other, trains once more."""
    most = Counter(stop.group for stop in case.stops if stop.step == "S3")
    # Who is killed from outside may be there.
    most.update(SITES if case.struck == "all" else [r for r in case.struck if r in SITES])
    return [
        f"{site} trained {times} times, {TRAININGS} were asked for"
        for site, times in played.trained.items()
        if not TRAININGS <= times <= TRAININGS + most[site]
    ]
