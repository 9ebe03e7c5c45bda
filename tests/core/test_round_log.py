"""The rounds that will not change: carried by the checkpoint, then in a file that only grows."""

from pathlib import Path

import pytest

from asterion_server import round_log
from asterion_server.round_log import FinalRounds, logged, read_final
from asterion_shared.errors import DiskProblemError
from asterion_shared.result import RoundResult


def one_round(number: int) -> RoundResult:
    return RoundResult(
        round=number, asked=(), outcomes={}, seconds=0.5, bytes_down=0, bytes_up=0
    )  # fmt: skip


@pytest.mark.parametrize("most_pending", [1, 400, 10**6], ids=["at once", "a few", "never"])
def test_every_round_is_there_once_whenever_the_log_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_pending: int
) -> None:
    monkeypatch.setattr(round_log, "MOST_PENDING", most_pending)
    path = tmp_path / "new" / "rounds.jsonl"
    rounds, final = [one_round(number) for number in range(20)], FinalRounds()
    assert read_final(final, path) == ()
    for number, one in enumerate(rounds):
        before = final
        final = logged(final.followed_by(one), path)
        assert list(read_final(final, path)) == rounds[: number + 1]
        # A run that died before its checkpoint was written goes on from the one before.
        assert list(read_final(before, path)) == rounds[:number]
    assert path.exists() == (most_pending < 10**6)


def test_what_an_interrupted_run_left_in_the_log_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(round_log, "MOST_PENDING", 1)
    path = tmp_path / "rounds.jsonl"
    first = logged(FinalRounds().followed_by(one_round(0)), path)
    logged(first.followed_by(one_round(1)), path)
    with path.open("ab") as file:
        file.write(b'{"round": 2, "ask')
    final = logged(first.followed_by(one_round(7)), path)
    assert [one.round for one in read_final(final, path)] == [0, 7]
    assert len(path.read_bytes()) == final.log_bytes


def test_a_log_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(round_log, "MOST_PENDING", 1)
    (tmp_path / "rounds.jsonl").mkdir()
    with pytest.raises(DiskProblemError, match=r"rounds\.jsonl"):
        logged(FinalRounds().followed_by(one_round(0)), tmp_path / "rounds.jsonl")
