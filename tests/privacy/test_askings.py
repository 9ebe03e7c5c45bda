"""What counts as one asking of a site in a private run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asterion_server.asked_rounds import asking_of, charge_asking, note_asked, times_asked
from asterion_server.rounds import run_rounds
from asterion_shared.errors import PrivacyProofError
from asterion_shared.messages import Order, SumOrder, order_sha256
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate

WHOLE = {"protects": "site", "clip_norm": 1.0, "noise_multiplier": 2.0, "epsilon_limit": 50.0}
CENTRE: dict[str, Any] = {
    "privacy": WHOLE | {"noise": "centre"},
    "algorithm": {"max_weight": 1},
    "rounds": {"count": 3, "sites_per_round": 3},
}
AT_SITE: dict[str, Any] = {"privacy": WHOLE | {"noise": "site"}, "rounds": {"count": 3}}
SHARES: dict[str, Any] = {
    "privacy": WHOLE | {"noise": "shares"},
    "algorithm": {"max_weight": 1},
    "rounds": {"count": 3, "sites_per_round": 3},
    "secure_sum": {"max_colluders": 0, "max_dropouts": 1},
}


def plan_of(**sections: Any) -> Plan:
    values: dict[str, Any] = {
        "name": "asked",
        "task": "classification",
        "data": {"kind": "table", "features": ["a"], "classes": ["well", "ill"]},
        "model": {"name": "logistic"},
    }
    return validate(Plan, values | sections, "plan")


def order_of(plan: Plan, **changes: Any) -> Order:
    values: dict[str, Any] = {
        "run": "r", "plan": plan, "round": 1, "phase": "train",
        "weights": np.array([1.0, 2.0], np.float32), "layout_sha256": "f" * 64,
    }  # fmt: skip
    return Order(**(values | changes))


def test_the_hash_of_an_order_is_of_what_it_asks() -> None:
    plan = plan_of(**AT_SITE)
    same = order_sha256(order_of(plan))
    assert same == order_sha256(order_of(plan, deadline_seconds=3.0, ledger_head="0" * 64))
    step = SumOrder(id="i", of="train", step="keys", sites=("a", "b"), size=2)
    others = [
        order_sha256(order_of(plan), "north"),
        order_sha256(order_of(plan, run="s")),
        order_sha256(order_of(plan, round=2)),
        order_sha256(order_of(plan, phase="evaluate")),
        order_sha256(order_of(plan, evaluate=False)),
        order_sha256(order_of(plan, layout_sha256="e" * 64)),
        order_sha256(order_of(plan, weights=np.array([1.0, 2.5], np.float32))),
        order_sha256(order_of(plan_of(**AT_SITE, seed=2))),
        order_sha256(order_of(plan, phase="sum", weights=None, sum=step), "a"),
    ]
    assert len({same, *others}) == 10
    with_word = SumOrder(id="i", of="train", step="keys", sites=("a", "b"), size=2,
                         content={"a": b"word"})  # fmt: skip
    for_a, for_b = (
        order_sha256(order_of(plan, phase="sum", weights=None, sum=with_word), site)
        for site in "ab"
    )
    assert for_a != others[-1]
    assert for_b == order_sha256(order_of(plan, phase="sum", weights=None, sum=step), "b")


@pytest.mark.parametrize(
    ("sections", "repeats", "counts_once"),
    [
        (AT_SITE, True, True),
        (AT_SITE, False, False),  # a site that restarted trains anew, with fresh noise
        (CENTRE, True, True),
        (CENTRE, False, True),  # what was noised before the crash was never sent
        (SHARES, True, False),  # another try has other shares of noise
        (SHARES, False, False),
    ],
)
def test_the_same_order_counts_once_where_it_releases_nothing_more(
    sections: dict[str, Any], repeats: bool, counts_once: bool, tmp_path: Path
) -> None:
    order, path = order_of(plan_of(**sections)), tmp_path / "asked.jsonl"
    for _ in range(3):
        charge_asking(path, 1, ["a", "b"], asking_of(order, repeats_answers=repeats), 3)
    assert times_asked(path) == dict.fromkeys("ab", 1 if counts_once else 3)
    again = order_of(order.plan, round=2)
    asking = asking_of(again, repeats_answers=repeats)
    if counts_once:
        charge_asking(path, 2, ["a"], asking, 2)
        assert times_asked(path) == {"a": 2, "b": 1}
    before = path.read_bytes()
    other = asking_of(order_of(order.plan, round=3), repeats_answers=repeats)
    with pytest.raises(PrivacyProofError, match=r"site [ab] was asked"):
        charge_asking(path, 3, ["b", "a"], other, 2 if counts_once else 3)
    assert path.read_bytes() == before
    if counts_once:  # the one that is known costs nothing more, also at the limit
        charge_asking(path, 2, ["a"], asking, 2)


def test_lines_of_an_older_version_count_each(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text('{"round": 1, "sites": ["a"]}\n' * 2)
    note_asked(path, 1, ["a"], "0" * 64)
    note_asked(path, 1, ["a"], "0" * 64)
    assert times_asked(path) == {"a": 3}


@pytest.mark.parametrize(("sections", "expected"), [(AT_SITE, 1), (CENTRE, 1)])
def test_a_round_that_was_cut_is_one_asking_over_a_carrier_that_keeps_answers(
    sections: dict[str, Any], expected: int, tmp_path: Path
) -> None:
    from tests.core.test_rounds import FakeCohort, PowerCutError, honest

    class Keeping(FakeCohort):
        repeats_answers = True

    def cut(order: Order, site: str, report: object) -> object:
        if (order.phase, order.round, site) == ("train", 2, "b"):
            raise PowerCutError
        return honest(order, site)

    def run(cohort: FakeCohort) -> object:
        return run_rounds(
            plan_of(**sections), cohort, tmp_path, run="r", expected_sites=("a", "b", "c"),
            carrier="flower",
        )  # fmt: skip

    for _ in range(2):
        with pytest.raises(PowerCutError):
            run(Keeping(cut))  # type: ignore[arg-type]
    result = run(Keeping(lambda order, site, report: report))
    lines = [json.loads(line) for line in (tmp_path / "asked.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 2, 2, 3]
    assert result.privacy_account.rounds == dict.fromkeys("abc", 2 + expected)  # type: ignore[attr-defined]
