"""What a release costs whom, and when the ledger says no."""

import hashlib
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asterion_client.privacy_composition import as_exchange, compose, largest, totals_of
from asterion_shared.errors import BudgetSpentError, SettingsError, UserInputError
from asterion_shared.privacy.charges import DiscreteGaussianSumCharge, GaussianCharge

DELTA = 1e-6


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def people(*numbers: int) -> frozenset[str]:
    return frozenset(digest(f"patient {number}") for number in numbers)


def gaussian(noise: float, relation="add_or_remove_one", **more) -> GaussianCharge:
    return GaussianCharge(relation=relation, noise_multiplier=noise, **more)


def epsilon_of_rho(rho: float) -> float:
    return rho + 2 * math.sqrt(rho * math.log(1 / DELTA))


def test_identical_bytes_are_free_in_their_place_only(open_ledger, release) -> None:
    ledger = open_ledger()
    first = ledger.charge(release("a"))
    again = ledger.charge(release("a"))
    assert (first.free, again.free) == (False, True)
    assert again.entry == first.entry == ledger.head()
    for other in (
        release("b"),
        release("a", phase="unmask"),
        release("a", instance="2"),
        release("a", round=2),
        release("a", run="run-2"),
    ):
        assert not ledger.charge(other).free
    assert ledger.head().count == 6
    assert open_ledger().charge(release("a")).free


def test_epsilon_adds_up_over_runs_and_stops_at_the_limit(open_ledger, release) -> None:
    # rho is 1/200 a release; four of them are allowed, five are not.
    limit = epsilon_of_rho(4 / 200) * (1 + 1e-12)
    ledger = open_ledger(limit)
    for number in range(4):
        ledger.charge(release(f"{number}", run=f"run-{number}"))
    assert ledger.exposure().epsilon == pytest.approx(epsilon_of_rho(4 / 200))
    head = ledger.head()
    with pytest.raises(BudgetSpentError, match="most exposed patient") as caught:
        ledger.charge(release("last"))
    assert caught.value.epsilon == pytest.approx(epsilon_of_rho(5 / 200))
    assert caught.value.code == "budget_spent"
    assert ledger.head() == head
    assert ledger.charge(release("0", run="run-0")).free


def test_people_are_counted_over_data_sets_and_a_new_one_resets_nothing(
    open_ledger, release
) -> None:
    limit = epsilon_of_rho(2 / 200) * (1 + 1e-12)
    ledger = open_ledger(limit)
    ledger.charge(release("1", units=people(1, 2), fingerprint=digest("A")))
    ledger.charge(release("2", units=people(2, 3), fingerprint=digest("B")))
    # Patient 2 was in both; a data set with one more patient is another data set.
    with pytest.raises(BudgetSpentError):
        ledger.charge(release("3", units=people(1, 2, 3, 4), fingerprint=digest("C")))
    ledger.charge(release("4", units=people(1, 3, 4), fingerprint=digest("D")))
    with pytest.raises(BudgetSpentError):
        ledger.charge(release("5", units=people(3), fingerprint=digest("E")))
    ledger.charge(release("6", units=people(4, 5), fingerprint=digest("F")))
    assert ledger.exposure().epsilon == pytest.approx(epsilon_of_rho(2 / 200))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.frozensets(st.integers(0, 7), min_size=1), st.sampled_from([5.0, 10.0, 20.0])),
        min_size=1, max_size=8,
    )
)  # fmt: skip
def test_groups_give_what_counting_each_person_gives(tmp_path_factory, sets) -> None:
    from asterion_client.privacy_entries import Release
    from asterion_client.privacy_ledger import Ledger
    from asterion_client.privacy_ledger_audit import verify_ledger
    from asterion_client.settings import PrivacySettings

    limit = epsilon_of_rho(0.03)
    folder = tmp_path_factory.mktemp("groups") / "ledger"
    rho = Counter[int]()
    privacy = PrivacySettings(epsilon_limit=limit, delta=DELTA)
    accountant = lambda charges, _: epsilon_of_rho(  # noqa: E731
        sum(charge.times / (2 * charge.noise_multiplier**2) for charge in charges)
    )
    with Ledger(folder, privacy, bounds=[accountant]) as ledger:
        for number, (members, noise) in enumerate(sets):
            cost = 1 / (2 * noise**2)
            one = Release(
                run="r", round=number, phase="train", payload_sha256=digest("x"),
                charges=(gaussian(noise),), fingerprint=digest(str(sorted(members))),
                unit_kind="patient", units=people(*members),
            )  # fmt: skip
            if max(rho[m] for m in members) + cost > 0.03 + 1e-12:
                with pytest.raises(BudgetSpentError):
                    ledger.charge(one)
                continue
            ledger.charge(one)
            rho.update(dict.fromkeys(members, cost))
        worst = max(rho.values(), default=0.0)
        assert ledger.exposure().epsilon == pytest.approx(epsilon_of_rho(worst) if worst else 0.0)
    assert verify_ledger(folder)[1] == []


def test_without_a_privacy_section_nothing_is_charged(open_ledger, release) -> None:
    ledger = open_ledger(None)
    with pytest.raises(SettingsError, match=r"privacy: is missing.*no privacy budget"):
        ledger.charge(release())
    assert ledger.head().count == 0


def test_records_and_patients_are_not_mixed(open_ledger, release) -> None:
    ledger = open_ledger()
    ledger.charge(release("1"))
    with pytest.raises(UserInputError, match="protects each patient and run run-1 protects each"):
        ledger.charge(release("2", unit_kind="record"))
    assert ledger.head().count == 1


def test_site_releases_count_for_the_site_and_doubled_for_each_patient(
    open_ledger, release
) -> None:
    site = {"unit_kind": "site", "units": frozenset()}
    ledger = open_ledger()
    ledger.charge(release("1", **site))
    found = ledger.exposure()
    assert (found.unit_kind, found.relation) == ("site", "add_or_remove_one")
    assert found.epsilon == pytest.approx(epsilon_of_rho(1 / 200))
    ledger.charge(release("2"))
    # Twice the sensitivity is four times rho, beside the patient's own.
    found = ledger.exposure()
    assert found.unit_kind == "patient"
    assert found.epsilon == pytest.approx(epsilon_of_rho(5 / 200))


def test_a_site_release_is_refused_for_the_sake_of_a_patient(open_ledger, release) -> None:
    ledger = open_ledger(epsilon_of_rho(4.5 / 200))
    ledger.charge(release("1"))
    with pytest.raises(BudgetSpentError, match="most exposed patient"):
        ledger.charge(release("2", unit_kind="site", units=frozenset()))
    assert ledger.head().count == 1


def test_two_relations_are_joined_as_exchanges(open_ledger, release) -> None:
    ledger = open_ledger()
    ledger.charge(release("1"))
    ledger.charge(release("2", charges=(gaussian(10, "replace_one"),)))
    found = ledger.exposure()
    assert found.relation == "replace_one"
    assert found.epsilon == pytest.approx(epsilon_of_rho((4 + 1) / 200))


def test_an_exchange_gives_up_amplification_and_doubles_the_sensitivity() -> None:
    sampled = gaussian(1.0, sampling_rate=0.01, times=7)
    assert as_exchange(sampled) == gaussian(0.5, "replace_one", times=7)
    already = gaussian(1.0, "replace_one", sampling_rate=0.01)
    assert as_exchange(already) is already
    shares = DiscreteGaussianSumCharge(
        relation="add_or_remove_one", l2_sensitivity=3.0, share_sigma=2.0, num_shares=4,
        dimension=10, wrap_delta=1e-9,
    )  # fmt: skip
    doubled = shares.model_copy(update={"relation": "replace_one", "l2_sensitivity": 6.0})
    assert as_exchange(shares) == doubled
    # A person in a site with one relation keeps it, whatever the site's is.
    person = compose(totals_of([gaussian(2.0)]), totals_of([already]))
    assert set(person) == {gaussian(2.0), gaussian(1.0)}
    assert compose(Counter(), totals_of([already])) == ()


def test_equal_charges_are_joined() -> None:
    charges = [gaussian(2.0, times=3), gaussian(2.0), gaussian(3.0)]
    assert set(compose(totals_of(charges), Counter())) == {gaussian(2.0, times=4), gaussian(3.0)}


def test_only_the_largest_sets_are_kept() -> None:
    assert sorted(largest([0b011, 0b001, 0b110, 0b011, 0])) == [0b011, 0b110]
    assert largest([0]) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"charges": ()},
        {"units": frozenset()},
        {"units": frozenset(["Mr Smith"])},
        {"unit_kind": "site"},
        {"payload_sha256": "00"},
        {"run": "a\x1b[31m"},
        {"round": -1},
    ],
)
def test_a_wrong_release_is_refused_and_shows_no_unit(release, wrong) -> None:
    with pytest.raises(ValueError, match="release") as caught:
        release("a", **wrong)
    assert "Smith" not in str(caught.value)


def test_no_bound_is_over_every_limit(open_ledger, release) -> None:
    for value in (math.inf, math.nan):
        ledger = open_ledger(bounds=[lambda charges, delta, value=value: value])
        with pytest.raises(BudgetSpentError):
            ledger.charge(release())
        assert ledger.head().count == 0


def test_unit_hashes_are_salted_and_stay(open_ledger, tmp_path) -> None:
    ledger = open_ledger()
    one = ledger.unit_hash("Mr Smith")
    assert len(one) == 64
    assert one != digest("Mr Smith")
    assert open_ledger().unit_hash("Mr Smith") == one
    assert ledger.unit_hash("Mrs Smith") != one


def test_the_accountant_of_asterion_is_the_default(tmp_path, release) -> None:
    from asterion_client.privacy_ledger import Ledger
    from asterion_client.settings import PrivacySettings
    from asterion_shared.privacy.accounting import spent

    charge = gaussian(1.0, sampling_rate=0.01, times=200)
    with Ledger(tmp_path / "l", PrivacySettings()) as ledger:
        ledger.charge(release("a", charges=(charge,)))
        ledger.charge(release("b", charges=(charge,)))
        twice = charge.model_copy(update={"times": 400})
        assert ledger.exposure().epsilon == spent((twice,), 1e-6).epsilon


def test_a_quick_bound_spares_the_tight_one_and_never_refuses(open_ledger, release) -> None:
    asked: list[str] = []

    def quick(charges, delta) -> float:
        asked.append("quick")
        return 3.0 * charges[0].times

    def tight(charges, delta) -> float:
        asked.append("tight")
        return 2.0 * charges[0].times

    ledger = open_ledger(4.0, bounds=(quick, tight))
    ledger.charge(release("1"))
    assert asked == ["quick"]
    ledger.charge(release("2"))
    assert asked == ["quick", "quick", "tight"]
    with pytest.raises(BudgetSpentError) as caught:
        ledger.charge(release("3"))
    assert caught.value.epsilon == 6.0
    assert ledger.exposure().epsilon == 4.0
