"""What survives a cut, on records written by hand."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.power.effects import (
    ROOT,
    Effect,
    Entered,
    Mapped,
    Moved,
    Record,
    Removed,
    Resized,
    Said,
    Synced,
    Wrote,
)
from tests.power.power_cut import PAGE_BYTES, Disk, Keep

SEEDS = range(200)


def disk_after(*effects: Effect, before: dict[str, bytes | None] | None = None) -> Disk:
    record = Record(before or {}, effects, tuple(float(n) for n in range(len(effects))))
    disk = Disk(record)
    disk.advance_to(len(effects))
    return disk


def outcomes(
    disk: Disk, keeps: Iterable[Keep] = SEEDS
) -> set[tuple[tuple[str, bytes | None], ...]]:
    return {tuple(sorted(disk.contents(keep).items())) for keep in keeps}


def test_written_and_never_synced_survives_in_no_guaranteed_way() -> None:
    new = Wrote(1, 0, b"new", synced=False)
    disk = disk_after(new, before={"a": b"old!"})
    assert disk.contents("synced") == {"a": b"old!"}
    assert disk.contents("everything") == {"a": b"new!"}
    assert outcomes(disk) == {(("a", b"old!"),), (("a", b"new!"),)}


def test_a_sync_covers_what_had_returned_before_it_was_called() -> None:
    first, second = Wrote(1, 0, b"1", synced=False), Wrote(1, 1, b"2", synced=False)
    early = disk_after(first, second, Synced(1, before=1), before={"a": b"--"})
    assert early.contents("synced") == {"a": b"1-"}
    late = disk_after(first, second, Synced(1, before=2), before={"a": b"--"})
    assert outcomes(late) == {(("a", b"12"),)}


def test_a_sync_of_one_file_covers_no_other() -> None:
    writes = Wrote(1, 0, b"x", synced=False), Wrote(2, 0, b"y", synced=False)
    disk = disk_after(*writes, Synced(2, before=2), before={"a": b"", "b": b""})
    assert disk.contents("synced") == {"a": b"", "b": b"y"}
    whole = disk_after(*writes, Synced(None, before=2), before={"a": b"", "b": b""})
    assert outcomes(whole, ["synced"]) == outcomes(whole) == outcomes(whole, ["everything"])


def test_a_synchronous_write_survives_alone() -> None:
    disk = disk_after(
        Wrote(1, 0, b"aaaa", synced=False), Wrote(1, 2, b"bb", synced=True), before={"a": b"...."}
    )
    assert disk.contents("synced") == {"a": b"..bb"}
    assert disk.contents("everything") == {"a": b"aabb"}
    assert all(content.endswith(b"bb") for ((_, content),) in outcomes(disk) if content)


def test_a_new_file_needs_its_folder_synced() -> None:
    made = Entered(ROOT, "a", 1, is_folder=False), Wrote(1, 0, b"new", synced=False)
    assert disk_after(*made, Synced(1, 2)).contents("synced") == {}
    assert disk_after(*made, Synced(ROOT, 2)).contents("synced") == {"a": b""}
    assert disk_after(*made, Synced(1, 2), Synced(ROOT, 3)).contents("synced") == {"a": b"new"}


def test_a_file_in_a_new_folder_needs_both_folders_synced() -> None:
    made = Entered(ROOT, "d", 1, is_folder=True), Entered(1, "a", 2, is_folder=False)
    assert disk_after(*made, Synced(1, 2)).contents("synced") == {}
    assert disk_after(*made, Synced(ROOT, 2)).contents("synced") == {"d": None}
    assert disk_after(*made, Synced(1, 2), Synced(ROOT, 2)).contents("synced") == {
        "d": None,
        "d/a": b"",
    }


def test_a_rename_needs_its_folder_synced_and_is_one_step() -> None:
    before: dict[str, bytes | None] = {"new": b"new", "old": b"old"}
    moved = Moved(ROOT, "new", ROOT, "old", 1)
    disk = disk_after(moved, before=before)
    assert disk.contents("synced") == before
    assert outcomes(disk) == {tuple(sorted(before.items())), (("old", b"new"),)}
    assert disk_after(moved, Synced(ROOT, 1), before=before).contents("synced") == {"old": b"new"}


def test_a_move_between_folders_needs_both_synced() -> None:
    before: dict[str, bytes | None] = {"d": None, "d/a": b"a", "e": None}
    moved = Moved(1, "a", 3, "b", 2)
    assert disk_after(moved, Synced(3, 1), before=before).contents("synced") == {
        "d": None,
        "d/a": b"a",
        "e": None,
        "e/b": b"a",
    }
    assert disk_after(moved, Synced(1, 1), before=before).contents("synced") == {
        "d": None,
        "e": None,
    }


def test_a_removal_needs_its_folder_synced() -> None:
    before: dict[str, bytes | None] = {"a": b"a"}
    assert disk_after(Removed(ROOT, "a"), before=before).contents("synced") == before
    gone = disk_after(Removed(ROOT, "a"), Synced(ROOT, 1), before=before)
    assert outcomes(gone) == {()}


def test_a_link_is_a_second_name_of_one_file(tmp_path: Path) -> None:
    linked = Entered(ROOT, "b", 1, is_folder=False), Synced(ROOT, 1)
    disk = disk_after(*linked, Removed(ROOT, "a"), before={"a": b"a"})
    assert disk.contents("synced") == {"a": b"a", "b": b"a"}
    assert disk.contents("everything") == {"b": b"a"}
    disk.rebuild(tmp_path / "after", "synced")
    assert (tmp_path / "after" / "a").samefile(tmp_path / "after" / "b")


def test_lengths_may_survive_without_content_and_the_other_way_round() -> None:
    disk = disk_after(Resized(1, 0), Wrote(1, 0, b"new", synced=False), before={"a": b"older"})
    found = {content for ((_, content),) in outcomes(disk)}
    assert found == {b"older", b"", b"new", b"newer", b"\0\0\0"}
    assert disk.contents("synced") == {"a": b"older"}


def test_writes_are_torn_at_pages() -> None:
    pages = 5
    disk = disk_after(
        Wrote(1, 100, b"n" * (pages * PAGE_BYTES - 200), synced=False),
        before={"a": b"o" * (pages * PAGE_BYTES)},
    )
    seen = set()
    for ((_, content),) in outcomes(disk):
        assert content is not None
        assert len(content) == pages * PAGE_BYTES
        inner = content[100:-100]
        starts = [0, *(n * PAGE_BYTES - 100 for n in range(1, pages))]
        torn = [inner[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
        assert all(piece in (b"n" * len(piece), b"o" * len(piece)) for piece in torn)
        seen.add(tuple(piece[:1] for piece in torn))
    assert (b"n",) * pages in seen
    assert (b"o",) * pages in seen
    # Also a last page without the ones before it.
    assert any(s[-1] == b"n" and b"o" in s[:-1] for s in seen)


def test_appended_pages_may_leave_a_hole() -> None:
    disk = disk_after(Wrote(1, 0, b"n" * 2 * PAGE_BYTES, synced=False), before={"a": b""})
    found = {content for ((_, content),) in outcomes(disk)}
    assert b"\0" * PAGE_BYTES + b"n" * PAGE_BYTES in found
    assert b"n" * PAGE_BYTES in found


def test_a_mapped_file_is_left_away() -> None:
    disk = disk_after(Mapped(1), before={"x-shm": b"?", "y": b"y"})
    assert disk.contents("everything") == {"y": b"y"}


def test_rebuilt_is_what_contents_says(tmp_path: Path) -> None:
    before: dict[str, bytes | None] = {"d": None, "d/e": None, "d/e/f": b"f", "g": b""}
    disk = disk_after(before=before)
    (tmp_path / "after").mkdir()
    (tmp_path / "after" / "rest of an earlier cut").touch()
    disk.rebuild(tmp_path / "after", "synced")
    found = {
        str(path.relative_to(tmp_path / "after")): None if path.is_dir() else path.read_bytes()
        for path in (tmp_path / "after").rglob("*")
    }
    assert found == before == disk.contents("synced")


def test_time_goes_forward_only() -> None:
    disk = disk_after(Removed(ROOT, "a"), before={"a": b""})
    with pytest.raises(ValueError, match="moment 0 is not between now, 1, and the end, 1"):
        disk.advance_to(0)
    with pytest.raises(ValueError, match="moment 2"):
        disk.advance_to(2)
    assert list(disk.moments()) == [0, 1]


def test_what_was_said_until_when() -> None:
    record = Record({}, (Said(1, b"a"), Said(2, b"x"), Said(1, b"b")), (1.0, 2.0, 3.0))
    assert [record.said(moment) for moment in range(4)] == ["", "a", "a", "ab"]
    assert record.said(3, stream=2) == "x"
    assert [record.moment_at(time) for time in (0.5, 1.0, 2.5, 9.0)] == [0, 1, 2, 3]


changes = st.lists(
    st.one_of(
        st.builds(
            Wrote,
            st.just(1),
            st.integers(0, 9000),
            st.binary(min_size=1, max_size=9000),
            st.booleans(),
        ),
        st.builds(Resized, st.just(1), st.integers(0, 9000)),
        st.just(Removed(ROOT, "a")),
        st.just(Moved(ROOT, "b", ROOT, "c", 2)),
    ),
    max_size=6,
)


@given(changes=changes, seed=st.integers(0, 2**32))
def test_after_syncing_everything_nothing_is_lost(changes: list[Effect], seed: int) -> None:
    before: dict[str, bytes | None] = {"a": b"first", "b": b"second"}
    disk = disk_after(*changes, Synced(None, len(changes)), before=before)
    unsynced = disk_after(*changes, before=before)
    assert disk.contents("synced") == disk.contents(seed) == disk.contents("everything")
    assert disk.contents("everything") == unsynced.contents("everything")
    # Whatever else survives, it is bytes that were there, written, or zeros in their place.
    for path, content in unsynced.contents(seed).items():
        assert path in {"a", "b", "c"}
        assert content is not None
