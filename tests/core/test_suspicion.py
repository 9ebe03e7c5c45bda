"""Which updates are unlike the others': by hand, against plain formulas, with blocks and liars."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.test_stored_folds import stored

from asterion_server import robust_fold
from asterion_server.fold import Part
from asterion_server.suspicion import LARGEST_Z, layer_figures, robust_z, suspicious
from asterion_shared.fold_rules import QuarantineSettings
from asterion_shared.parameters import Layout, Vector, layout_of
from asterion_shared.plan import ParameterPolicy

SETTINGS = QuarantineSettings()


def layout() -> Layout:
    """Layers ``0`` (20 x 20 + 20 numbers), ``1`` (20 x 30 + 30) and ``2`` (30 x 3 + 3)."""
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 20), torch.nn.Linear(20, 30), torch.nn.Linear(30, 3)
    )
    return layout_of(model, ParameterPolicy())


LAYOUT = layout()


def updates(count: int, spread: float = 0.5, seed: int = 0) -> dict[str, Vector]:
    """Honest sites: a common direction and each site's own, of lengths between 1 and 2."""
    draws = np.random.default_rng(seed)
    common = draws.standard_normal(LAYOUT.size)
    return {
        f"s{i}": (
            draws.uniform(1, 2) * (common + spread * draws.standard_normal(LAYOUT.size))
        ).astype(np.float32)
        for i in range(count)
    }


def judged(found: dict[str, Vector], limits: QuarantineSettings = SETTINGS) -> dict[str, list[str]]:
    parts = {site: Part(update, 1.0, 1.0) for site, update in found.items()}
    return {s: [f.layer for f in fs] for s, fs in suspicious(parts, LAYOUT, limits).items()}


def place(layer: str) -> slice:
    tensors = [t for t in LAYOUT.shared if t.name.startswith(layer)]
    return slice(tensors[0].offset, tensors[-1].offset + tensors[-1].size)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(4, 12))
def test_honest_sites_are_not_suspicious(seed: int, count: int) -> None:
    assert judged(updates(count, seed=seed)) == {}


@pytest.mark.parametrize("count", [4, 7])
@pytest.mark.parametrize("factor", [-1.0, 100.0, -100.0])
def test_a_site_that_lies_in_one_layer_is_named_with_it(count: int, factor: float) -> None:
    found = updates(count)
    found["s1"][place("1")] *= np.float32(factor)
    assert judged(found) == {"s1": ["1"]}


def test_two_liars_of_seven_are_named_each_with_its_own_layers() -> None:
    found = updates(7)
    found["s0"] *= np.float32(-1)
    found["s5"][place("2")] = 1e30
    assert judged(found) == {"s0": ["0", "1", "2"], "s5": ["2"]}


def test_a_site_that_does_not_move_what_all_others_move_is_told_from_them() -> None:
    found = updates(7)
    found["s3"][place("0")] = 0
    assert judged(found, QuarantineSettings(cosine_z=3)) == {"s3": ["0"]}


def test_a_layer_that_nobody_moves_is_no_reason_and_one_that_a_single_site_moves_is() -> None:
    found = updates(5)
    for update in found.values():
        update[place("1")] = 0
    assert judged(found) == {}
    found["s2"][place("1")] = 1e-6
    assert judged(found) == {"s2": ["1"]}


def test_equal_updates_and_too_few_are_not_suspicious() -> None:
    one = updates(1)["s0"]
    assert judged({f"s{i}": one for i in range(5)}) == {}
    found = updates(3)
    found["s0"] *= np.float32(1e6)
    assert judged(found) == {}


def test_the_thresholds_are_the_plans() -> None:
    found = updates(7)
    found["s1"] *= np.float32(4)
    low, high = QuarantineSettings(norm_z=3, cosine_z=1e6), QuarantineSettings(norm_z=1e6)
    assert "s1" in judged(found, low)
    assert judged(found, high) == {}


def test_figures_are_those_of_the_plain_formulas_whatever_the_blocks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = updates(6, seed=3)
    parts = [Part(update, 1.0, 1.0) for update in found.values()]
    whole = layer_figures(parts, LAYOUT)
    stack = np.stack(list(found.values())).astype(float)
    middle = np.median(stack, axis=0)
    assert list(whole) == ["0", "1", "2"]
    for layer, figures in whole.items():
        where = place(layer)
        norms = np.linalg.norm(stack[:, where], axis=1)
        cosines = stack[:, where] @ middle[where] / norms / np.linalg.norm(middle[where])
        size = where.stop - where.start
        assert [f.norm for f in figures] == pytest.approx(norms, rel=1e-6)
        assert [f.cosine for f in figures] == pytest.approx(cosines, rel=1e-6)
        apart = np.abs(norms - np.median(norms))
        scale = max(1.4826 * np.median(apart), np.median(norms) * max(0.25, (2 * size) ** -0.5))
        assert [f.norm_z for f in figures] == pytest.approx(apart / scale, rel=1e-4, abs=1e-4)
        assert figures[0].median_cosine == pytest.approx(np.median(cosines))
        least = max(0.1, size**-0.5)
        below = (np.median(cosines) - cosines) / least  # they lie closer than the floor
        assert [f.cosine_z for f in figures] == pytest.approx(below, rel=1e-4, abs=1e-4)
    monkeypatch.setattr(robust_fold, "MOST_STACKED", 1)
    monkeypatch.setattr(robust_fold, "FEWEST_STACKED", 17)
    mapped = [Part(stored(tmp_path, part.update), 1.0, 0.5) for part in parts]
    by_blocks = layer_figures(mapped, LAYOUT)
    for layer, figures in whole.items():
        for one, other in zip(figures, by_blocks[layer], strict=True):
            assert one.norm_z == pytest.approx(other.norm_z, abs=1e-9)
            assert one.cosine_z == pytest.approx(other.cosine_z, abs=1e-9)


def test_robust_z_by_hand() -> None:
    # median 3, distances 2 1 0 1 97, their median 1
    values = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
    assert robust_z(values, 0.0)[-1] == pytest.approx(97 / 1.4826)
    assert robust_z(values, 10.0).tolist() == pytest.approx([-0.2, -0.1, 0, 0.1, 9.7])
    assert robust_z(np.array([0.0, 0, 0, 5]), 0.0).tolist() == [0, 0, 0, LARGEST_Z]
