"""Judge a program by what it told: at every moment, with every kind of cut."""

from collections.abc import Callable, Iterator
from pathlib import Path

from tests.power.effects import Record
from tests.power.power_cut import Disk, Keep

Judge = Callable[[Path, list[int]], str | None]


def broken(record: Record, after: Path, keeps: tuple[Keep, ...], judge: Judge) -> Iterator[str]:
    """What a judge finds wrong, cut after cut.

    Args:
        record: of a program that prints whole numbers, one a line, as it stores things.
        after: where the folder is rebuilt for each cut.
        keeps: the kinds of cut, see `power_cut`.
        judge: is given the folder and the numbers told before the cut; None when all is well.
    """
    disk = Disk(record)
    for moment in disk.moments():
        disk.advance_to(moment)
        told = [int(word) for word in record.said(moment).splitlines()]
        for keep in keeps:
            disk.rebuild(after, keep)
            complaint = judge(after, told)
            if complaint is not None:
                yield f"after effect {moment}, kept {keep}, told {told[-1:]}: {complaint}"
