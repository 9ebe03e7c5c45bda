"""Thresholds and the sparse graph: their bounds against other ways to compute them."""

from collections.abc import Set

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

from asterion_shared.errors import UserInputError
from asterion_shared.privacy.secure_sum_graph import (
    Sharing,
    choose_sharing,
    neighbours_of,
    ring_order,
    survivor_problem,
)


def is_connected(edges: dict[str, tuple[str, ...]], kept: Set[str]) -> bool:
    start = min(kept)
    found, waiting = {start}, [start]
    while waiting:
        for peer in edges[waiting.pop()]:
            if peer in kept and peer not in found:
                found.add(peer)
                waiting.append(peer)
    return found == kept


@pytest.mark.parametrize(("num_sites", "colluders", "dropouts"), [
    (3, 0, 1), (3, 1, 0), (4, 1, 1), (10, 3, 3), (32, 8, 8), (33, 3, 6), (100, 10, 20),
    (101, 30, 10), (500, 50, 100),
])  # fmt: skip
def test_the_graph_is_regular_symmetric_and_connected(
    num_sites: int, colluders: int, dropouts: int
) -> None:
    sharing = choose_sharing(num_sites, max_colluders=colluders, max_dropouts=dropouts)
    assert sharing.complete == (num_sites <= 32)
    names = [f"site{i}" for i in range(num_sites)]
    ring = ring_order(names, b"seed")
    assert sorted(ring) == sorted(names)
    edges = {name: neighbours_of(ring, name, sharing) for name in names}
    assert {len(set(peers)) for peers in edges.values()} == {sharing.neighbours}
    assert all(one in edges[peer] and peer != one for one in names for peer in edges[one])
    assert is_connected(edges, set(names))


def test_another_seed_gives_another_order() -> None:
    names = [f"site{i}" for i in range(50)]
    assert ring_order(names, b"a") == ring_order(names[::-1], b"a")
    assert ring_order(names, b"a") != ring_order(names, b"b")


def test_every_order_is_as_likely() -> None:
    counts: dict[tuple[str, ...], int] = {}
    for i in range(6000):
        order = ring_order(["a", "b", "c"], i.to_bytes(4, "big"))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 30  # chi2, 5: p = 1e-5


def test_smallest_thresholds_of_a_complete_graph() -> None:
    """More than (n + c) / 2: two sets would need an honest site's word twice."""
    for n, c, wanted in [(3, 0, 2), (3, 1, 3), (4, 0, 3), (10, 0, 6), (10, 3, 7), (32, 8, 21)]:
        sharing = choose_sharing(n, max_colluders=c, max_dropouts=0)
        assert (sharing.share_threshold, sharing.min_survivors) == (wanted, wanted)
        honest = n - c
        assert 2 * wanted > honest + 2 * c
        assert 2 * (wanted - 1) <= honest + 2 * c


@pytest.mark.parametrize(("num_sites", "colluders", "dropouts"), [
    (100, 10, 20), (200, 40, 40), (500, 25, 150), (1000, 100, 200),
])  # fmt: skip
def test_the_failure_probabilities_hold(num_sites: int, colluders: int, dropouts: int) -> None:
    """The same union bounds by scipy's tails; and the next smaller graph does not hold."""

    def privacy_and_recovery(sharing: Sharing) -> tuple[float, float]:
        n, k, half = num_sites, sharing.neighbours, sharing.neighbours // 2
        both_secrets = 2 * sharing.share_threshold - k - 2  # most colluding neighbours allowed
        privacy = n * hypergeom.sf(both_secrets, n - 1, colluders, k)
        privacy += n * hypergeom.sf(sharing.window_survivors - 1, n, colluders, half)
        recovery = n * hypergeom.sf(k - sharing.share_threshold, n - 1, dropouts, k)
        recovery += n * hypergeom.sf(half - sharing.window_survivors, n, dropouts, half)
        return float(privacy), float(recovery)

    sharing = choose_sharing(num_sites, max_colluders=colluders, max_dropouts=dropouts)
    assert not sharing.complete
    privacy, recovery = privacy_and_recovery(sharing)
    assert privacy <= 2.0**-40 * (1 + 1e-6)
    assert recovery <= 2.0**-20 * (1 + 1e-6)
    laxer = choose_sharing(
        num_sites, max_colluders=colluders, max_dropouts=dropouts,
        privacy_failure=2.0**-10, recovery_failure=2.0**-5,
    )  # fmt: skip
    assert laxer.neighbours < sharing.neighbours


def test_drop_outs_at_random_are_survived_as_often_as_said() -> None:
    sharing = choose_sharing(
        100, max_colluders=10, max_dropouts=20, privacy_failure=0.01, recovery_failure=0.1
    )
    assert not sharing.complete
    rng, failures = np.random.default_rng(1), 0
    names = [f"{i:02}" for i in range(100)]
    for _ in range(500):
        survivors = set(rng.permutation(names)[:80].tolist())
        holders = [
            1 + len(survivors & set(neighbours_of(names, name, sharing))) for name in survivors
        ]
        failed = min(holders) < sharing.share_threshold
        failures += failed or bool(survivor_problem(names, survivors, sharing))
    assert failures / 500 <= 0.1


RING = [f"{i:02}" for i in range(40)]
SPARSE = Sharing(
    num_sites=40, max_colluders=6, max_dropouts=10, neighbours=12, share_threshold=8,
    min_survivors=24, window_survivors=3,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(dropped=st.sets(st.sampled_from(RING), max_size=16), data=st.data())
def test_honest_survivors_are_connected_whatever_the_server_drops(
    dropped: set[str], data: st.DataObject
) -> None:
    """Where no run of half the neighbours holds as many colluders as it must have survivors."""
    survivors = set(RING) - dropped
    colluders = data.draw(st.sets(st.sampled_from(RING), max_size=6))
    doubled = [name in colluders for name in RING * 2]
    most = max(sum(doubled[i : i + 6]) for i in range(40))
    if survivor_problem(RING, survivors, SPARSE) or most >= SPARSE.window_survivors:
        return
    edges = {name: neighbours_of(RING, name, SPARSE) for name in RING}
    assert is_connected(edges, survivors - colluders)


def test_a_gap_along_the_ring_is_noticed_also_where_it_closes() -> None:
    assert survivor_problem(RING, set(RING), SPARSE) == ""
    for start in (0, 10, 36):
        gap = {RING[(start + i) % 40] for i in range(4)}  # a run of 6 keeps 2
        assert "are needed" in survivor_problem(RING, set(RING) - gap, SPARSE)
        gap.pop()
        assert survivor_problem(RING, set(RING) - gap, SPARSE) == ""
    assert "23 survivors, 24" in survivor_problem(RING, set(RING[:23]), SPARSE)


@pytest.mark.parametrize(("sites", "colluders", "dropouts", "words"), [
    (2, 0, 0, "works for 3"), (3, 2, 0, "needed"), (3, 1, 1, "leave 2"), (10, 9, 0, "needed"),
    (10, -1, 0, "0 or more"), (1001, 0, 0, "3 to 1000"), (100, 40, 40, "leave 60"),
])  # fmt: skip
def test_what_cannot_hold_is_refused(sites: int, colluders: int, dropouts: int, words: str) -> None:
    with pytest.raises(UserInputError, match=words):
        choose_sharing(sites, max_colluders=colluders, max_dropouts=dropouts)


@pytest.mark.parametrize("values", [
    {"neighbours": 13}, {"neighbours": 40}, {"share_threshold": 6}, {"share_threshold": 14},
    {"min_survivors": 23}, {"window_survivors": 0}, {"window_survivors": 7}, {"num_sites": 48},
])  # fmt: skip
def test_thresholds_written_by_hand_are_checked(values: dict[str, int]) -> None:
    fields = {name: getattr(SPARSE, name) for name in Sharing.__slots__}
    with pytest.raises(UserInputError):
        Sharing(**(fields | values))


def test_without_an_answer_in_the_ring_there_are_no_neighbours() -> None:
    assert neighbours_of(RING, "nobody", SPARSE) == ()
