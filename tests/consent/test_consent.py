"""What a site agrees to, and the code of each refusal."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as with_settings
from hypothesis import strategies as st
from tests.consent.conftest import PLAN, PRIVATE, Clinic

from asterion_client import consent as consent_module
from asterion_client.approvals import approve, waiting, withdraw_approval
from asterion_client.consent import MOST_ORDERS, PAUSED, Consent
from asterion_client.consent_settings import ConsentSettings
from asterion_client.day_book import DayBook, read_day
from asterion_client.settings import ConnectionSettings, SiteSettings
from asterion_shared.errors import OrderRefusedError, SettingsError
from asterion_shared.messages import REASON_CODES, Order, SumOrder
from asterion_shared.plan import Plan
from asterion_shared.settings_files import Settings, validate
from asterion_shared.signed_plan import read_operator_key, sign_plan

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC).timestamp()


@pytest.fixture
def clinic(clinic: Clinic) -> Clinic:
    """One whose operator signs two days before the moments of these tests."""
    clinic.signs_at = NOON - 2 * 86_400
    return clinic


def code_of(settings: SiteSettings, clinic: Clinic, order: Order, now: float = NOON) -> str:
    days = DayBook(clinic.folder / settings.state_folder, lambda: now)
    code = ""
    try:
        Consent(settings, clinic.folder, days).require(order, now)
    except OrderRefusedError as error:
        code = error.code
    assert code in {"", *REASON_CODES}
    return code


def plan_of(**changes: Any) -> Plan:
    return validate(Plan, PLAN | changes, "plan")


def test_what_fits_is_agreed_to(clinic: Clinic) -> None:
    assert code_of(clinic.settings(), clinic, clinic.order()) == ""


def test_a_site_without_consent_agrees_to_nothing(clinic: Clinic) -> None:
    silent = clinic.settings().model_copy(update={"consent": None})
    assert code_of(silent, clinic, clinic.order()) == "no_consent"


@pytest.mark.parametrize(
    ("consent", "plan", "code"),
    [
        ({"kinds": ("count",)}, {}, "kind_not_allowed"),
        ({"models": ("mlp",)}, {}, "model_not_allowed"),
        ({"models": ("mlp", "logistic")}, {}, ""),
        ({"noise": ("site", "centre")}, {}, "noise_not_allowed"),
        ({"noise": ("none", "centre")}, PRIVATE, "noise_not_allowed"),
        ({"noise": ("site",)}, PRIVATE, ""),
        ({"largest_epsilon": 0.05}, PRIVATE, "epsilon_too_large"),
        ({"largest_epsilon": 0.05}, {}, ""),
        ({"smallest_cohort": 3}, {}, "cohort_too_small"),
        ({"secure_sum": "required"}, {}, "secure_sum_needed"),
        ({}, {"task": "anomaly", "data": {}, "model": {"name": "conv_autoencoder"}}, "wrong_task"),
    ],
)
def test_each_line_of_consent_has_its_code(
    clinic: Clinic, consent: dict[str, Any], plan: dict[str, Any], code: str
) -> None:
    order = clinic.order(plan=plan_of(**plan))
    assert code_of(clinic.settings(**consent), clinic, order) == code


def test_only_the_operators_that_are_named_may_have_plans_run(clinic: Clinic) -> None:
    settings = clinic.settings()
    assert code_of(settings, clinic, clinic.order(signed=False)) == "unsigned_plan"
    assert code_of(clinic.settings(operators=()), clinic, clinic.order()) == "unknown_operator"
    other = sign_plan(clinic.plan, "other", "anna", read_operator_key(clinic.key))
    assert code_of(settings, clinic, clinic.order(signature=other)) == "plan_altered"


def test_an_order_beyond_its_plan_is_refused(clinic: Clinic) -> None:
    settings, weights = clinic.settings(), np.zeros(4, np.float32)
    train = clinic.order(phase="train", round=3, weights=weights)
    assert code_of(settings, clinic, train) == ""
    assert code_of(settings, clinic, clinic.order(phase="train", round=4)) == "not_in_plan"
    assert code_of(settings, clinic, clinic.order(phase="evaluate", round=4)) == ""
    counts = plan_of(kind="count")
    for phase in "train", "evaluate":
        order = clinic.order(plan=counts, phase=phase)
        assert code_of(settings, clinic, order) == "not_in_plan"


def test_a_sum_over_too_few_sites_is_refused(clinic: Clinic) -> None:
    step = SumOrder(id="a", of="train", step="keys", sites=("a", "clinic"), size=4)
    order = clinic.order(phase="sum", sum=step)
    assert code_of(clinic.settings(), clinic, order) == ""
    few = SumOrder(id="a", of="train", step="keys", sites=("clinic",), size=4)
    assert code_of(clinic.settings(), clinic, clinic.order(phase="sum", sum=few)) == (
        "cohort_too_small"
    )


def test_a_private_run_is_not_asked_more_often_than_its_epsilon_allows(clinic: Clinic) -> None:
    noisy = PRIVATE["privacy"] | {"noise_multiplier": 8.0}
    plan, epsilon = plan_of(**(PRIVATE | {"privacy": noisy})), 2.0
    settings = clinic.settings(largest_epsilon=epsilon)
    allowed = consent_module._most_rounds(plan.canonical(), epsilon, 1e-6)
    assert 3 < allowed < 200
    codes = []
    for number in range(allowed + 1):
        weights = np.full(4, number, np.float32)
        # a coordinator that lost its place asks for the same rounds with other weights
        order = clinic.order(plan=plan, phase="train", round=1 + number % 3, weights=weights)
        codes += [code_of(settings, clinic, order)] * 2  # the same order again is no other
    assert set(codes[:-2]) == {""}
    assert codes[-1] == "epsilon_too_large"


SUMMED: dict[str, Any] = {
    "rounds": {"count": 3, "quorum": 3, "sites_per_round": 4, "deadline_seconds": 30.0},
    "algorithm": {"max_weight": 20},
    "secure_sum": {"max_colluders": 0, "max_dropouts": 1},
    "privacy": {"protects": "site", "noise": "shares", "clip_norm": 0.5,
                "noise_multiplier": 8.0, "epsilon_limit": 20.0},
}  # fmt: skip


def test_each_sum_over_one_training_counts_against_its_epsilon(clinic: Clinic) -> None:
    plan, epsilon = plan_of(**SUMMED), 2.0
    settings = clinic.settings(noise=("shares",), largest_epsilon=epsilon)
    allowed = consent_module._most_rounds(plan.canonical(), epsilon, 1e-6)
    assert 3 < allowed < 200
    train = clinic.order(plan=plan, phase="train", weights=np.zeros(4, np.float32))

    def step(number: int, name: str) -> str:
        sites = ("a", "b", "c", "clinic")
        told = SumOrder(
            id=str(number), of="train", step=name, sites=sites, size=4,  # type: ignore[arg-type]
            content={"clinic": b"x"},
        )  # fmt: skip
        return code_of(settings, clinic, clinic.order(plan=plan, phase="sum", sum=told))

    for number in range(allowed):
        assert code_of(settings, clinic, train) == ""
        assert {step(number, name) for name in ("keys", "masked", "masked", "agree")} == {""}
    assert step(allowed, "masked") == "epsilon_too_large"
    assert step(allowed - 1, "unmask") == ""  # what has left is summed
    assert code_of(settings, clinic, train) == "epsilon_too_large"


def test_quotas_of_a_day(clinic: Clinic) -> None:
    settings = clinic.settings(plans_a_day=2, rounds_a_day=3)
    for run, round_, code in [
        ("a", 1, ""), ("b", 1, ""), ("c", 1, "plans_spent"), ("a", 1, ""), ("a", 2, ""),
        ("a", 3, "rounds_spent"), ("a", 2, ""), ("b", 1, ""),
    ]:  # fmt: skip
        order = clinic.order(run, round=round_)
        assert code_of(settings, clinic, order, NOON) == code, (run, round_)
    assert code_of(settings, clinic, clinic.order("a", round=3), NOON + 86_400) == ""


def test_bytes_and_hours_of_a_day(clinic: Clinic) -> None:
    settings = clinic.settings(bytes_a_day=1_000_000, device_hours_a_day=0.5)
    days = DayBook(clinic.folder / "state", lambda: NOON)
    order = clinic.order(phase="train", weights=np.zeros(1000, np.float32))
    days.moved(996_001)
    assert code_of(settings, clinic, order) == "bytes_spent"
    small = clinic.order("b", phase="train", weights=np.zeros(900, np.float32))
    assert code_of(settings, clinic, small) == ""
    days.worked(1799.0)
    assert code_of(settings, clinic, clinic.order("c")) == ""
    days.worked(1.0)
    assert code_of(settings, clinic, clinic.order("d")) == "device_hours_spent"
    assert code_of(settings, clinic, clinic.order("c", phase="evaluate")) == ""  # it has begun


def test_other_orders_of_a_round_that_has_begun_are_no_way_around_the_quotas(
    clinic: Clinic,
) -> None:
    settings = clinic.settings(device_hours_a_day=0.5, rounds_a_day=1)

    def train(weight: float) -> str:
        weights = np.full(10, weight, np.float32)
        return code_of(settings, clinic, clinic.order("a", phase="train", weights=weights))

    assert [train(n) for n in range(MOST_ORDERS + 1)] == [""] * (MOST_ORDERS + 1)
    DayBook(clinic.folder / "state", lambda: NOON).worked(1800.0)
    assert train(0.0) == ""  # once more the same
    assert train(9.0) == "device_hours_spent"
    step = SumOrder(id="s", of="train", step="keys", sites=("a", "clinic"), size=10)
    assert code_of(settings, clinic, clinic.order("a", phase="sum", sum=step)) == ""


def test_hours_hold_for_the_beginning_of_a_round(clinic: Clinic) -> None:
    moment = datetime(2026, 11, 22, 12, 0).astimezone()
    settings = clinic.settings(hours=("19:00-07:00",))
    night = moment.replace(hour=23).timestamp()
    order = clinic.order()
    assert code_of(settings, clinic, order, moment.timestamp()) == "outside_hours"
    assert code_of(settings, clinic, order, night) == ""
    assert code_of(clinic.settings(hours=("11:00-13:00",)), clinic, order, night) == ""  # has begun


@pytest.mark.parametrize("section", [ConsentSettings, ConnectionSettings])
def test_hours_without_time_are_told_when_the_settings_are_read(section: type[Settings]) -> None:
    given = {"address": "a:1", "root_certificate": "ca.pem", "private_key": "site.key"}
    values = (given if section is ConnectionSettings else {}) | {"hours": ["08:00-08:00"]}
    with pytest.raises(SettingsError, match="ends when it begins"):
        validate(section, values, "site.toml")


def test_midnight_does_not_end_a_round_that_has_begun(clinic: Clinic) -> None:
    settings = clinic.settings()
    late = datetime(2026, 11, 22, 23, 59, 59, tzinfo=UTC).timestamp()
    assert code_of(settings, clinic, clinic.order(), late) == ""
    paused = clinic.folder / "state" / PAUSED
    paused.touch()
    evaluate = clinic.order(phase="evaluate")
    assert code_of(settings, clinic, evaluate, late + 2) == ""
    assert code_of(settings, clinic, clinic.order(round=2), late + 2) == "site_paused"
    assert code_of(settings, clinic, evaluate, late + 3 * 86_400) == "site_paused"


def test_a_paused_or_busy_site_begins_nothing(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = clinic.settings(busy_percent=50.0)
    monkeypatch.setattr(consent_module, "percent_of_others", lambda: 51.0)
    assert code_of(settings, clinic, clinic.order()) == "site_busy"
    monkeypatch.setattr(consent_module, "percent_of_others", lambda: 50.0)
    paused = clinic.folder / "state" / PAUSED
    paused.parent.mkdir(parents=True)
    paused.touch()
    assert code_of(settings, clinic, clinic.order()) == "site_paused"
    paused.unlink()
    assert code_of(settings, clinic, clinic.order()) == ""


def test_a_person_approves_one_plan_as_one_run_for_a_time(clinic: Clinic) -> None:
    settings, state = clinic.settings(approval="person"), clinic.folder / "state"
    assert code_of(settings, clinic, clinic.order(), NOON) == "approval_missing"
    assert [(one.run, one.operator) for one in waiting(state)] == [("r", "anna")]
    approve(settings, clinic.folder, clinic.plan, "r", NOON)
    assert waiting(state) == []
    long = sign_plan(clinic.plan, "r", "anna", read_operator_key(clinic.key), now=NOON, days=99)
    order = clinic.order(signature=long)
    assert code_of(settings, clinic, order, NOON + 30 * 86_400) == ""
    assert code_of(settings, clinic, order, NOON + 30 * 86_400 + 1) == "approval_ended"
    assert code_of(settings, clinic, clinic.order("s")) == "approval_missing"
    other = clinic.order(plan=plan_of(seed=2))
    assert code_of(settings, clinic, other) == "approval_missing"
    assert withdraw_approval(settings, clinic.folder, "r")
    assert code_of(settings, clinic, order, NOON) == "approval_missing"


def test_an_approval_that_somebody_edited_approves_nothing(clinic: Clinic) -> None:
    settings = clinic.settings(approval="person")
    approve(settings, clinic.folder, clinic.plan, "r", NOON)
    path = clinic.folder / "state" / "consent" / "approvals" / "r.json"
    text = path.read_text()
    ends = int(NOON) + 30 * 86_400
    path.write_text(text.replace(str(ends), str(ends + 1)))
    assert code_of(settings, clinic, clinic.order()) == "approval_missing"
    path.write_text(text)
    (path.parent / "s.json").write_text(text)  # of another run
    assert code_of(settings, clinic, clinic.order("s")) == "approval_missing"
    assert code_of(settings, clinic, clinic.order()) == ""


def test_a_flood_of_plans_does_not_fill_the_disk(clinic: Clinic) -> None:
    settings = clinic.settings(approval="person")
    for number in range(60):
        assert code_of(settings, clinic, clinic.order(f"r{number}")) == "approval_missing"
    assert len(waiting(clinic.folder / "state")) == 50


def test_the_book_of_a_day_outlives_its_process_and_a_torn_line(tmp_path: Path) -> None:
    book = DayBook(tmp_path, lambda: NOON)
    book.begin("a", 1)
    book.begin("a", 1)
    book.begin("a", 1, "f00")
    book.moved(7)
    book.worked(1.5)
    path = tmp_path / "consent" / "days" / "2026-11-22.jsonl"
    assert len(path.read_text().split()) == 14
    with path.open("a") as file:
        file.write('{"bytes": 1')
    again = DayBook(tmp_path, lambda: NOON)
    again.begin("b", 2)
    day = read_day(path)
    assert (day.runs, day.num_bytes, day.seconds) == ({"a", "b"}, 7, 1.5)
    assert day.rounds == {("a", 1): {"f00"}, ("b", 2): set()}
    assert again.today() == day


@with_settings(deadline=None)  # it waits for the disk
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3), st.integers(0, 99))))
def test_a_book_that_is_read_says_what_the_one_that_wrote_said(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, int, int]]
) -> None:
    state = tmp_path_factory.mktemp("state")
    book = DayBook(state, lambda: NOON)
    for run, round_, size in entries:
        book.begin(run, round_)
        book.moved(size)
    assert DayBook(state, lambda: NOON).today() == book.today()
