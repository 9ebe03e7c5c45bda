"""Power cuts at a site over some rounds: what was sent or charged is what it sends again.

`site_play` is recorded once for each kind of plan. At each cut the site starts anew and is asked
for the round that it answered last, and then for the others.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
from tests.power.coordinator_play import small_chunks
from tests.power.effects import Record
from tests.power.power_cut import Disk, Keep
from tests.power.recording import contents_of, record_run, require
from tests.power.site_play import (
    PRIVATE,
    ROUNDS,
    SECTIONS,
    Answered,
    carry_on,
    charged,
    make_site,
    orders_of,
    plan_of,
)

from asterion_shared.messages import Order

PROGRAM = "from tests.power.site_play import main; main()"


def recorded(folder: Path, plans: Sequence[str]) -> Record:
    """Record a site for each plan, one after another in one process."""
    require()
    for plan in plans:
        make_site(folder / plan)
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    return record_run(
        [sys.executable, "-c", PROGRAM, str(folder), *plans], folder, folder.parent / "notes",
        cwd=root, env=os.environ | {"PYTHONPATH": paths}, timeout_seconds=300,
    )  # fmt: skip


def told_of(said: str, plan: str) -> list[Answered]:
    rows = (line.split() for line in said.splitlines())
    return [Answered(int(number), *rest) for name, number, *rest in rows if name == plan]


class SiteCuts:
    """A recorded site that is cut and started again.

    Attributes:
        tried: how many cuts were judged.
        resumed: from how many different folders and orders the site was started.
        wrong: what was found wrong.
    """

    def __init__(self, plan: str, folder: Path, after: Path, record: Record) -> None:
        self.tried, self.wrong = 0, list[str]()
        self._private, self._plan, self._record = plan in PRIVATE, plan, record
        self._rebuilt, self._after = after, after / plan
        self._order: Callable[[int], Order] = orders_of(plan_of(plan))
        self._undisturbed = told_of(record.said(len(record.effects)), plan)
        self._kept = _kept(folder / plan)
        self._judged = dict[bytes, list[str]]()

    @property
    def resumed(self) -> int:
        return len(self._judged)

    def look(self, moments: Iterable[int], keeps: Iterable[Keep]) -> None:
        """Cut at these moments and let the site go on."""
        disk = Disk(self._record)
        for moment in moments:
            disk.advance_to(moment)
            told = told_of(self._record.said(moment), self._plan)
            for keep in keeps:
                self.tried += 1
                mine = [
                    (path, content)
                    for path, content in sorted(disk.contents(keep).items())
                    if path.startswith(f"{self._plan}/")
                ]
                digest = hashlib.sha256(repr((len(told), mine)).encode()).digest()
                if digest not in self._judged:
                    disk.rebuild(self._rebuilt, keep)
                    self._judged[digest] = list(self._judge(told))
                where = f"after effect {moment}, kept {keep}: "
                self.wrong += [where + complaint for complaint in self._judged[digest]]

    def _judge(self, told: list[Answered]) -> Iterable[str]:
        before = dict(charged(self._after))
        again = carry_on(self._after, self._order, max(len(told), 1), lambda _: None)
        if told and again[0].sent != told[-1].sent:
            yield f"round {again[0].round} has another answer than was sent"
        answers = {one.round: one.payload for one in (*told[:-1], *again)}
        for round_, payload in before.items():
            if answers[round_] != payload:
                yield f"round {round_} was charged, and something else is sent"
        if self._private and charged(self._after) != sorted(answers.items()):
            yield f"the ledger has rounds {[round_ for round_, _ in charged(self._after)]}"
        if not self._private:
            if [one.work for one in again] != [one.work for one in self._undisturbed][
                -len(again) :
            ]:
                yield "the answers are not those of an undisturbed site"
            if _kept(self._after) != self._kept:
                yield "what the site keeps is not what an undisturbed site keeps"


def _kept(folder: Path) -> dict[str, bytes | None]:
    """What a site keeps from the last round to the next."""
    return {
        path: content
        for path, content in contents_of(folder / "state").items()
        if path.endswith(f"-{ROUNDS:06d}.safetensors")
    }


def cut(place: Path, plans: Sequence[str], step: int, keeps: tuple[Keep, ...]) -> list[SiteCuts]:
    (folder := place / "recorded").mkdir()
    record = recorded(folder, plans)
    found = [SiteCuts(plan, folder, place / "after", record) for plan in plans]
    with small_chunks():
        for cuts in found:
            cuts.look(range(0, len(record.effects) + 1, step), keeps)
    return found


def test_a_site_sends_again_what_it_sent_or_charged(place: Path) -> None:
    for cuts in cut(place, ["rounded", "noised-rounded"], 17, ("synced", "everything", 1)):
        assert cuts.wrong == []
        assert cuts.resumed >= 15


@pytest.mark.nightly
@pytest.mark.parametrize("plan", SECTIONS)
def test_a_site_sends_it_again_after_every_cut(place: Path, plan: str) -> None:
    (cuts,) = cut(place, [plan], 1, ("synced", "everything", *range(6)))
    assert cuts.wrong == []
    assert cuts.resumed >= 150
