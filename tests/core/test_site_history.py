"""What a site remembers of a run for its own report, round by round."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.core.test_local_round import order, plan, site

from asterion_client.local_round import make_workspace, work
from asterion_client.site_history import HISTORY, read_history, remember
from asterion_shared.messages import Order, Report


@pytest.fixture(scope="module")
def first() -> Order:
    return order(plan(), make_workspace(plan()))


@pytest.fixture(scope="module")
def answer(first: Order, tmp_path_factory: pytest.TempPathFactory) -> Report:
    space = make_workspace(plan())
    return work(first, site("s", 10, 1), space, tmp_path_factory.mktemp("site"))


def test_training_and_the_later_metrics_of_a_round_come_together(
    first: Order, answer: Report, tmp_path: Path
) -> None:
    assert read_history(tmp_path) == []
    remember(tmp_path, first, answer)
    remember(tmp_path, replace(first, round=2), replace(answer, train_loss=0.25, num_test=7))
    before, one, two = read_history(tmp_path)
    assert (before.round, one.round, two.round) == (0, 1, 2)
    assert before.metrics
    assert (before.num_steps, before.num_test) == (0, answer.num_test)
    assert one.metrics == before.metrics  # the same model was measured in this test
    assert (one.num_steps, one.train_loss, one.num_test) == (3, answer.train_loss, 7)
    assert (two.metrics, two.train_loss) == ({}, 0.25)
    closing = replace(first, round=3, phase="evaluate")
    remember(tmp_path, closing, replace(answer, update=None, num_steps=0))
    last = read_history(tmp_path)[-1]
    assert (last.round, last.train_loss, bool(last.metrics)) == (2, 0.25, True)


def test_an_order_that_is_answered_again_changes_nothing_and_a_torn_line_is_skipped(
    first: Order, answer: Report, tmp_path: Path
) -> None:
    remember(tmp_path, first, answer)
    whole = read_history(tmp_path)
    path = tmp_path / HISTORY
    lines = path.read_bytes()
    for length in (0, 1, 30, len(lines) // 2, len(lines) - 2, len(lines) - 1):
        path.write_bytes(lines[:length])
        remember(tmp_path, first, answer)
        assert read_history(tmp_path) == whole
    path.write_bytes(lines[:-9] + b"\xff\x00\n")
    remember(tmp_path, first, answer)
    assert read_history(tmp_path) == whole
