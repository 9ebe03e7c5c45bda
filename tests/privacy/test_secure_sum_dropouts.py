"""The sum is exact whoever drops out, and nothing is unmasked when too few remain."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asterion_shared.errors import QuorumLostError
from asterion_shared.privacy.masks import Words, word_type
from asterion_shared.privacy.secure_sum import Instance
from asterion_shared.privacy.secure_sum_graph import choose_sharing
from asterion_shared.privacy.secure_sum_rehearsal import Phase, rehearse

PHASES: tuple[Phase, ...] = ("keys", "shares", "masked", "agree", "unmask")


def instance_of(
    num_sites: int, colluders: int = 0, dropouts: int = 0, *, bits: int = 32, length: int = 50
) -> Instance:
    sharing = choose_sharing(num_sites, max_colluders=colluders, max_dropouts=dropouts)
    sites = tuple(f"site{i:03}" for i in range(num_sites))
    return Instance(
        run="run", id="run/1/1", round=1, sites=sites, sharing=sharing, bits=bits, length=length,
        order_sha256="",
    )  # fmt: skip


def vectors_of(instance: Instance, seed: int = 0) -> dict[str, Words]:
    """Uniform, and at magnitudes from nothing to the whole modulus."""
    rng = np.random.default_rng(seed)
    most = 1 << rng.integers(1, instance.bits, instance.length, endpoint=True).astype(object)
    return {
        site: np.array([int(rng.integers(0, int(m), dtype=np.uint64, endpoint=False)) if m < 1 << 64
                        else int(rng.integers(0, 1 << 63)) * 2 + 1 for m in most],
                       word_type(instance.bits))
        for site in instance.sites
    }  # fmt: skip


def plain_sum(instance: Instance, vectors: dict[str, Words], sites: tuple[str, ...]) -> list[int]:
    """In Python's whole numbers."""
    return [
        sum(int(vectors[site][i]) for site in sites) % (1 << instance.bits)
        for i in range(instance.length)
    ]


def reached(lost: dict[str, Phase], phase: Phase, sites: tuple[str, ...]) -> tuple[str, ...]:
    """The sites that sent their message of a phase."""
    return tuple(s for s in sites if s not in lost or PHASES.index(lost[s]) > PHASES.index(phase))


@settings(max_examples=40, deadline=None)
@given(
    num_sites=st.integers(3, 9),
    bits=st.sampled_from([8, 17, 32, 33, 64]),
    length=st.integers(1, 70),
    seed=st.integers(0, 1 << 30),
    data=st.data(),
)
def test_equal_to_the_plain_sum_with_any_drop_outs(
    num_sites: int, bits: int, length: int, seed: int, data: st.DataObject
) -> None:
    most = num_sites - (num_sites // 2 + 1)
    instance = instance_of(num_sites, 0, most, bits=bits, length=length)
    lost: dict[str, Phase] = data.draw(
        st.dictionaries(st.sampled_from(instance.sites), st.sampled_from(PHASES), max_size=most)
    )
    vectors = vectors_of(instance, seed)
    done = rehearse(instance, vectors.__getitem__, lost=lost, verify_once=True)
    assert done.survivors == reached(lost, "masked", instance.sites)
    assert done.total.tolist() == plain_sum(instance, vectors, done.survivors)


@pytest.mark.parametrize("phase", PHASES)
def test_the_most_sites_may_be_lost_in_any_phase(phase: Phase) -> None:
    instance = instance_of(7, 2, 2)  # 5 must stay
    vectors = vectors_of(instance)
    lost: dict[str, Phase] = dict.fromkeys(("site000", "site005"), phase)
    done = rehearse(instance, vectors.__getitem__, lost=lost, verify_once=True)
    assert done.survivors == reached(lost, "masked", instance.sites)
    assert done.total.tolist() == plain_sum(instance, vectors, done.survivors)


@pytest.mark.parametrize("phase", PHASES)
def test_one_more_lost_is_refused_loudly(phase: Phase) -> None:
    instance = instance_of(7, 2, 2)
    vectors = vectors_of(instance)
    lost: dict[str, Phase] = dict.fromkeys(("site000", "site003", "site005"), phase)
    with pytest.raises(QuorumLostError, match=r"4 of \d sites answered, 5 are needed"):
        rehearse(instance, vectors.__getitem__, lost=lost, verify_once=True)


def test_losses_in_several_phases_add_up() -> None:
    instance = instance_of(7, 2, 2)
    vectors = vectors_of(instance)
    lost: dict[str, Phase] = {"site000": "keys", "site003": "masked", "site005": "unmask"}
    with pytest.raises(QuorumLostError, match="to have the shares of"):
        rehearse(instance, vectors.__getitem__, lost=lost, verify_once=True)


def test_a_hundred_sites_of_which_twenty_drop_out() -> None:
    instance = instance_of(100, 10, 20, length=300)
    assert not instance.sharing.complete
    phases: tuple[Phase, ...] = ("shares", "masked", "agree", "unmask")
    lost: dict[str, Phase] = {f"site{5 * i:03}": phases[i % 4] for i in range(20)}
    vectors = vectors_of(instance)
    done = rehearse(instance, vectors.__getitem__, lost=lost, verify_once=True)
    assert len(done.survivors) == 90
    assert done.total.tolist() == plain_sum(instance, vectors, done.survivors)


def test_drop_outs_after_the_keys_of_a_sparse_graph() -> None:
    instance = instance_of(40, 3, 6)
    assert not instance.sharing.complete
    vectors = vectors_of(instance)
    lost: dict[str, Phase] = {"site007": "keys", "site008": "shares", "site009": "masked"}
    done = rehearse(instance, vectors.__getitem__, lost=lost, verify_once=True)
    assert done.total.tolist() == plain_sum(instance, vectors, done.survivors)
    # The ring needs every nonce; the next instance does without the site.
    with pytest.raises(QuorumLostError, match="another instance without site007"):
        rehearse(instance, vectors.__getitem__, lost={"site007": "reveal"}, verify_once=True)


def test_signatures_and_costs_of_a_real_instance() -> None:
    """Every site verifies all signatures; bytes and seconds of each are counted."""
    instance = instance_of(5, 1, 1, length=1000)
    vectors = vectors_of(instance)
    done = rehearse(instance, vectors.__getitem__, lost={"site004": "masked"})
    assert done.total.tolist() == plain_sum(instance, vectors, instance.sites[:4])
    assert min(done.cost.bytes_up[site] for site in done.survivors) > 4000
    assert done.cost.bytes_up["site004"] < 4000
    assert set(done.cost.site_seconds) == set(instance.sites)
    assert set(done.cost.centre_seconds) == set(PHASES)


@pytest.mark.nightly
def test_five_hundred_sites_of_which_a_hundred_drop_out() -> None:
    instance = instance_of(500, 50, 100, length=20)
    phases: tuple[Phase, ...] = ("shares", "masked", "agree", "unmask")
    lost: dict[str, Phase] = {f"site{5 * i:03}": phases[i % 4] for i in range(100)}
    vectors = vectors_of(instance)
    done = rehearse(instance, vectors.__getitem__, lost=lost, verify_once=True)
    assert len(done.survivors) == 450
    assert done.total.tolist() == plain_sum(instance, vectors, done.survivors)
