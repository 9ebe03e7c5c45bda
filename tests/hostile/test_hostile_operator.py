"""An operator or a coordinator that is hostile: each wrong order has a code and costs nothing.

``tests/consent`` has each line of ``[consent]`` with its bounds, ``tests/link`` a coordinator that
breaks the protocol. Here whole processes are asked, and what both sides wrote down is looked at.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.hostile.conftest import (
    BYTES_A_DAY,
    NO_DATA,
    PLANS_A_DAY,
    ROUNDS_A_DAY,
    Hostile,
    plan_of,
    private_plan,
    summed_plan,
)
from tests.live.conftest import said

from asterion_shared.audit import trail_files
from asterion_shared.messages import Order, Report, SumOrder
from asterion_shared.parameters import layout_of
from asterion_shared.plan import Plan
from asterion_shared.result import read_result
from asterion_shared.signed_plan import sign_plan
from asterion_shared.tasks import initial_model
from asterion_sim.local_federation import OPERATOR

pytestmark = pytest.mark.live
DAY = 86_400
INIT = {"file": "model.safetensors", "sha256": "0" * 64}
ONE = SumOrder(id="s", of="train", step="keys", sites=("north",), size=5)
WEIGHTS = np.zeros(5, "<f4")

Attack = Callable[[Hostile, Plan], str]


def forged(plan: Plan, operator: str, **given: Any) -> Any:
    return sign_plan(plan, plan.name, operator, Ed25519PrivateKey.generate(), **given)


def dated(hostile: Hostile, plan: Plan, days: float) -> Any:
    from asterion_shared.signed_plan import read_operator_key
    from asterion_sim.local_federation import operator_key

    key = read_operator_key(operator_key(hostile.center))
    return sign_plan(plan, plan.name, OPERATOR, key, now=time.time() + days * DAY)


SIGNATURES: dict[str, tuple[str, Callable[[Hostile, Plan], Any]]] = {
    "nobody-signed": ("unsigned_plan", lambda hostile, plan: None),
    "a-stranger": ("unknown_operator", lambda hostile, plan: forged(plan, "mallory")),
    "forged": ("signature_invalid", lambda hostile, plan: forged(plan, OPERATOR)),
    "altered": ("plan_altered", lambda hostile, plan: hostile.signed(
        private_plan(plan.name, seed=7))),
    "another-run": ("plan_altered", lambda hostile, plan: hostile.signed(plan, "other")),
    "ended": ("signature_ended", lambda hostile, plan: dated(hostile, plan, -31)),
    "not-yet": ("signature_ended", lambda hostile, plan: dated(hostile, plan, 1)),
}  # fmt: skip
PLANS: dict[str, tuple[str, dict[str, Any]]] = {
    "model": ("model_not_allowed", {"model": {"name": "logistic"}}),
    "cohort": ("cohort_too_small", {"rounds": {"count": 1, "quorum": 1}}),
    "epsilon": ("epsilon_too_large", {"rounds": {"count": 2, "quorum": 2}}),
}
ORDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "one-round-more": ("not_in_plan", {"phase": "train", "round": 2, "weights": WEIGHTS}),
    "a-sum-of-one": ("cohort_too_small", {"phase": "sum", "round": 1, "sum": ONE}),
    "path-in-the-run": ("plan_invalid", {"run": "../../../outside"}),
}


@pytest.fixture
def charged_nothing(hostile: Hostile) -> Any:
    before = {name: hostile.ledger(name) for name in ("north", "south", "east")}
    yield
    assert {name: hostile.ledger(name) for name in before} == before


def on_both_records(hostile: Hostile, site: str, run: str, code: str) -> None:
    own = [r for r in hostile.records(site, "refusal") if r["run"] == run]
    assert own[-1]["facts"]["code"] == code
    theirs = [r for r in hostile.records("", "answers") if r["run"] == run]
    assert code in theirs[-1]["facts"][f"site:{site}"]


def test_what_consent_agrees_to_is_looked_for(hostile: Hostile) -> None:
    """So that no refusal below is of anything but what it names."""
    plan = private_plan("control")
    assert hostile.code(plan, "north", hostile.signed(plan)) == NO_DATA


@pytest.mark.usefixtures("charged_nothing")
@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(hostile: Hostile, name: str) -> None:
    code, signature = SIGNATURES[name]
    plan = private_plan(f"signature-{name}")
    assert hostile.code(plan, "north", signature(hostile, plan)) == code
    on_both_records(hostile, "north", plan.name, code)
    assert plan.name not in hostile.today("north").runs


@pytest.mark.usefixtures("charged_nothing")
@pytest.mark.parametrize("name", PLANS)
def test_plans_outside_consent(hostile: Hostile, name: str) -> None:
    code, sections = PLANS[name]
    plan = private_plan(f"plan-{name}", **sections)
    assert hostile.code(plan, "north", hostile.signed(plan)) == code
    on_both_records(hostile, "north", plan.name, code)
    assert plan.name not in hostile.today("north").runs


@pytest.mark.usefixtures("charged_nothing")
@pytest.mark.parametrize("name", ORDERS)
def test_orders_outside_their_plan(hostile: Hostile, name: str) -> None:
    code, fields = ORDERS[name]
    plan = private_plan(f"order-{name}")
    assert hostile.code(plan, "north", hostile.signed(plan), **fields) == code
    assert hostile.records("north", "refusal")[-1]["facts"]["code"] == code
    assert code in hostile.records("", "answers")[-1]["facts"]["site:north"]
    assert not list(hostile.running.root.rglob("outside*"))


@pytest.mark.usefixtures("charged_nothing")
def test_an_order_for_another_site(hostile: Hostile) -> None:
    plan = private_plan("misdirected")
    order = Order(run=plan.name, plan=plan, round=0, phase="count", signature=hostile.signed(plan))
    before = hostile.today("north").runs | set()
    assert hostile.send(order, "north", "south") == "settings_invalid"
    assert hostile.today("north").runs == before
    refused = hostile.records("north", "refusal")[-1]
    assert (refused["run"], refused["facts"]["code"]) == ("misdirected", "settings_invalid")
    assert all(r["run"] != "misdirected" for r in hostile.records("south", "order"))


@pytest.mark.usefixtures("charged_nothing")
@pytest.mark.parametrize(
    ("code", "more"),
    [("noise_not_allowed", {}), ("kind_not_allowed", {"kind": "evaluate", "init": INIT})],
)
def test_plans_without_noise(hostile: Hostile, code: str, more: dict[str, Any]) -> None:
    plan = plan_of(code.replace("_", "-"), 1, rounds={"count": 1, "quorum": 2}, **more)
    assert hostile.code(plan, "north", hostile.signed(plan)) == code
    on_both_records(hostile, "north", plan.name, code)


@pytest.mark.usefixtures("charged_nothing")
def test_a_plan_that_a_person_approves(hostile: Hostile) -> None:
    """Not yet, then not this one, then no longer; only the plan that was read is looked at."""
    clear = plan_of("clear", 1, rounds={"count": 1, "quorum": 3})
    assert hostile.code(clear, "east", hostile.signed(clear)) == "secure_sum_needed"
    plan, altered = summed_plan("approved"), summed_plan("approved", seed=7)
    assert hostile.code(plan, "east", hostile.signed(plan)) == "approval_missing"
    hostile.approve("east", plan)
    assert hostile.code(plan, "east", hostile.signed(plan), round=1) == NO_DATA
    assert hostile.code(altered, "east", hostile.signed(altered), round=2) == "approval_missing"
    on_both_records(hostile, "east", "approved", "approval_missing")
    hostile.approve("east", plan, now=time.time() - 31 * DAY)
    assert hostile.code(plan, "east", hostile.signed(plan), round=3) == "approval_ended"
    on_both_records(hostile, "east", "approved", "approval_ended")


def test_sites_that_refuse_are_named_and_the_others_go_on(hostile: Hostile) -> None:
    """A whole run, launched as people do: one site of three agrees to it."""
    launch = hostile.running.launch(plan_of("alone", 1))
    assert launch.end() == (0, "")
    result = read_result(launch.folder / "result.json")
    assert result.status == "finished"
    for round_ in result.rounds:
        assert round_.answered == ("south",)
        assert round_.missing == {"east": "secure_sum_needed", "north": "cohort_too_small"}
    on_both_records(hostile, "north", "alone", "cohort_too_small")


def test_a_plan_altered_on_the_coordinators_disk(hostile: Hostile) -> None:
    """Whoever holds the coordinator's folder changes a signed plan of a run that has ended."""
    folder = hostile.running.made.runs / "changed"
    plan, other = plan_of("changed", 1), plan_of("changed", 1, seed=7)
    folder.mkdir(parents=True)
    (folder / "signature.json").write_text(hostile.signed(plan).model_dump_json())
    (folder / "plan.json").write_text(other.canonical())
    (folder / "launch.json").write_text(
        (hostile.running.made.runs / "alone" / "launch.json").read_text()
    )
    problem = folder / "problem.json"
    until = time.monotonic() + 90
    while not problem.exists():
        assert time.monotonic() < until
        time.sleep(0.2)
    on_both_records(hostile, "south", "changed", "plan_altered")
    assert "plan_altered" in problem.read_text()


def weights_of(plan: Plan) -> tuple[Any, str]:
    model = initial_model(plan)
    layout = layout_of(model, plan.parameters)
    vector = np.zeros(layout.size, "<f4")
    return vector, layout.sha256


def test_the_same_round_with_other_weights_again_and_again(hostile: Hostile) -> None:
    plan = private_plan("again")
    vector, layout = weights_of(plan)

    def asked(offset: float) -> Any:
        step = {"phase": "train", "round": 1, "weights": vector + offset, "layout_sha256": layout}
        return hostile.ask(plan, "south", hostile.signed(plan), **step)["south"]

    before = hostile.ledger("south")
    assert isinstance(asked(0.0), Report)
    once = hostile.ledger("south")
    assert once != before
    for offset in (0.125, 0.25, 0.5):
        assert asked(offset).code == "epsilon_too_large"
    assert hostile.ledger("south") == once
    on_both_records(hostile, "south", "again", "epsilon_too_large")


@pytest.mark.usefixtures("charged_nothing")
def test_a_flood_of_cheap_plans(hostile: Hostile) -> None:
    codes = []
    for number in range(PLANS_A_DAY + 3):
        plan = private_plan(f"cheap-{number}")
        codes.append(hostile.code(plan, "south", hostile.signed(plan)))
    assert len(hostile.today("south").runs) == PLANS_A_DAY
    assert codes[-3:] == ["plans_spent"] * 3
    assert set(codes) == {"", "plans_spent"}
    begun = private_plan("cheap-0")
    rounds = [
        hostile.code(begun, "south", hostile.signed(begun), round=number)
        for number in range(1, ROUNDS_A_DAY)
    ]
    assert len(hostile.today("south").rounds) == ROUNDS_A_DAY
    assert rounds[-1] == "rounds_spent"
    assert sorted(set(rounds)) == ["", "rounds_spent"]
    on_both_records(hostile, "south", "cheap-0", "rounds_spent")


@pytest.mark.usefixtures("charged_nothing")
def test_weights_beyond_the_bytes_of_a_day_are_not_fetched(hostile: Hostile) -> None:
    plan = private_plan("heavy")
    before = hostile.today("south").num_bytes
    step = {"phase": "train", "round": 1, "weights": np.ones(BYTES_A_DAY // 4, "<f4")}
    assert hostile.code(plan, "south", hostile.signed(plan), **step) == "bytes_spent"
    on_both_records(hostile, "south", "heavy", "bytes_spent")
    assert hostile.today("south").num_bytes - before < 20_000


def test_both_sides_trails_hold(hostile: Hostile) -> None:
    folders = [hostile.center, *(hostile.site(name) / "state" for name in ("north", "south"))]
    files = [str(path) for folder in folders for path in trail_files(folder / "audit")]
    assert said("audit", "verify", *files) == (0, "")


def test_the_data_of_who_refused_were_never_there(hostile: Hostile) -> None:
    """The folders that were removed are still missing: every code above was given without them."""
    for name in ("north", "east"):
        assert not list(hostile.site(name).rglob("rows.csv"))
        folder: Path = hostile.site(name) / "state" / "runs"
        assert not list(folder.rglob("*.report"))
