"""Power cuts over a whole small federation at the coordinator: every promise holds, it goes on.

`coordinator_play` is recorded once. The folder is then cut at every moment, looked through for what
had been promised, and the run is carried on from it: to the same model bytes, and without asking a
site to work again on what it has a receipt for.
"""

import hashlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.power.coordinator_play import carry_on, folder_of_run, plan_of, small_chunks
from tests.power.effects import Record
from tests.power.link_promises import Told, broken_promises, told_of
from tests.power.power_cut import Disk, Keep
from tests.power.recording import record_run, require

from asterion_server.asked_rounds import times_asked
from asterion_shared.link.parcels import Part
from asterion_shared.result import read_result

PROGRAM = "from tests.power.coordinator_play import main; main()"
PLANS = {
    "plain": plan_of(),
    "rounded": plan_of(transport={"update": "bf16", "lossless": True}),
    "asked": plan_of(
        privacy={
            "protects": "site",
            "noise": "site",
            "clip_norm": 1.0,
            "noise_multiplier": 4.0,
            "epsilon_limit": 100.0,
        },
    ),
    # One of five sites is suspicious.
    "held": plan_of(
        quarantine={"on_suspicion": "hold"},
        rounds={"count": 2, "deadline_seconds": 600.0, "late": "wait", "quorum": 4},
    ),
}


def recorded(folder: Path, plan: str) -> Record:
    """Record a run whose plan lies there already."""
    require()
    run = folder_of_run(folder)
    run.path.mkdir(parents=True)
    run.plan_file.write_text(PLANS[plan].canonical())
    words = [sys.executable, "-c", PROGRAM, str(folder)]
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    notes = folder.parent / "notes"
    return record_run(
        words, folder, notes, cwd=root, env=os.environ | {"PYTHONPATH": paths}, timeout_seconds=300
    )


class Cuts:
    """A recorded run that is cut and carried on.

    Attributes:
        tried: how many cuts were judged.
        resumed: how many different folders were carried on from.
        wrong: what was found wrong.
    """

    def __init__(self, folder: Path, after: Path, record: Record) -> None:
        self.tried, self.wrong = 0, list[str]()
        self._record, self._after = record, after
        self._model = (folder_of_run(folder).path / "model.safetensors").read_bytes()
        self._norms, self._asked = self._norms_of(folder), self._asked_of(folder)
        self._held = self._held_of(folder)
        everything = told_of(record.said(len(record.effects)))
        self._parts: dict[str, Part] = {part.id: part for _, _, part, _ in everything.held}
        self._outcomes: dict[bytes, tuple[str, frozenset[str]]] = {}

    @property
    def resumed(self) -> int:
        return len(self._outcomes)

    def look(self, moments: Iterable[int], keeps: Iterable[Keep], *, resume_each: int) -> None:
        """Cut at these moments; carry on from each ``resume_each``-th."""
        disk = Disk(self._record)
        for moment in moments:
            disk.advance_to(moment)
            told = told_of(self._record.said(moment))
            for keep in keeps:
                self.tried += 1
                where = f"after effect {moment}, kept {keep}: "
                disk.rebuild(self._after, keep)
                found = broken_promises(self._after, told, self._parts)
                self.wrong += [where + complaint for complaint in found]
                if self.tried % resume_each == 0:
                    complaint = self._resumed(disk, keep, told)
                    self.wrong += [where + complaint] if complaint else []

    def _resumed(self, disk: Disk, keep: Keep, told: Told) -> str:
        digest = hashlib.sha256(repr(sorted(disk.contents(keep).items())).encode()).digest()
        if digest not in self._outcomes:
            disk.rebuild(self._after, keep)
            self._outcomes[digest] = self._carried_on()
        complaint, worked = self._outcomes[digest]
        again = {key for key, (_, round_, _) in told.receipts.items() if round_ > told.checkpoint}
        if worked & again:
            complaint += "a site worked again on what it has a receipt for"
        return complaint

    def _carried_on(self) -> tuple[str, frozenset[str]]:
        try:
            worked = carry_on(self._after, lambda *_: None)
        except Exception as error:  # whatever stops a run for good is to be reported
            return f"the run cannot go on: {type(error).__name__}: {error}", frozenset()
        model = (folder_of_run(self._after).path / "model.safetensors").read_bytes()
        if model != self._model or self._norms_of(self._after) != self._norms:
            return "the run ends with another model", frozenset(worked)
        left = [*self._after.glob("runs/*/checkpoints/.*"), *self._after.glob("link/orders/*")]
        if left:
            return "something is left that nobody needs", frozenset(worked)
        if self._asked_of(self._after) != self._asked:
            return "sites were asked more often, or less", frozenset(worked)
        if self._held_of(self._after) != self._held:
            return "something else is in quarantine", frozenset(worked)
        return "", frozenset(worked)

    def _held_of(self, folder: Path) -> dict[str, bytes]:
        """What lies in quarantine."""
        place = folder_of_run(folder).path / "quarantine"
        return {str(p.relative_to(place)): p.read_bytes() for p in place.glob("round-*/*")}

    def _asked_of(self, folder: Path) -> dict[str, int]:
        return times_asked(folder_of_run(folder).path / "asked.jsonl")

    def _norms_of(self, folder: Path) -> list[float | None]:
        rounds = read_result(folder_of_run(folder).result).rounds
        return [one.update_norm for one in rounds]


def cut(place: Path, plan: str, step: int, keeps: tuple[Keep, ...], resume_each: int) -> Cuts:
    (folder := place / "recorded").mkdir()
    record = recorded(folder, plan)
    with small_chunks():
        cuts = Cuts(folder, place / "after", record)
        cuts.look(range(0, len(record.effects) + 1, step), keeps, resume_each=resume_each)
    return cuts


def test_the_coordinator_keeps_its_promises_over_some_cuts(place: Path) -> None:
    cuts = cut(place, "plain", 11, ("synced", "everything", 1), resume_each=11)
    assert cuts.wrong == []
    assert cuts.resumed >= 10


@pytest.mark.nightly
@pytest.mark.parametrize("plan", PLANS)
def test_the_coordinator_keeps_its_promises_over_every_cut(place: Path, plan: str) -> None:
    cuts = cut(place, plan, 1, ("synced", "everything", *range(4)), resume_each=5)
    assert cuts.wrong == []
    assert cuts.resumed >= 200
