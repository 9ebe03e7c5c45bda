"""The batched engines do the hospital's step: every network, optimiser and algorithm.

The tolerance: an update differs from the hospital's by at most 2e-5 of its largest number in
float32. Where the loss does not depend on a weight (a bias before an instance norm), its gradient
is rounding alone and Adam makes a full step of it: such a pair is compared by its losses.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from asterion_shared.errors import PlanMismatchError
from asterion_sim.engines.kernel import Kernel
from asterion_sim.engines.shared_base import SharedBase
from asterion_sim.engines.vectorised import Vectorised

sys.path.insert(0, str(Path(__file__).parent))
from engine_cases import (
    EPOCH,
    NETWORKS,
    WAYS,
    hospital_reports,
    order_of,
    plan_of,
    sites_of,
)

TOLERANCE = 2e-5
SHARED = ("cnn", "cnn 3d", "mlp of images", "logistic of images")


def compare(kernel: Kernel, network: str, way: str, folder: Path, tolerance: float) -> None:
    plan = plan_of(network, way)
    sites, order = sites_of(plan), order_of(plan)
    oracle = hospital_reports(plan, sites, order, folder)
    found = kernel.train(order, sites)
    assert found.num_steps.tolist() == [report.num_steps for report in oracle]
    weights = np.array([1.0, 0.0, 2.5, 3.0])
    total = np.zeros(len(order.weights))  # type: ignore[arg-type]
    for index, report in enumerate(oracle):
        assert report.update is not None
        scale = np.abs(report.update).max()
        update = found.updates.update(index)
        assert np.abs(update - report.update).max() <= tolerance * scale
        assert found.losses[index] == pytest.approx(report.train_loss, rel=1e-5)
        length = np.linalg.norm(report.update.astype(np.float64))
        assert found.norms[index] == pytest.approx(length, rel=tolerance)
        total += weights[index] * report.update.astype(np.float64)
    difference = np.abs(found.updates.weighted_sum(weights) - total).max()
    assert difference <= 2 * tolerance * np.abs(total).max()


@pytest.mark.parametrize("network", NETWORKS)
def test_vectorised_takes_every_network(network: str, tmp_path: Path) -> None:
    compare(Vectorised(plan_of(network)), network, "sgd", tmp_path, TOLERANCE)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("network", ["cnn", "mlp"])
def test_vectorised_takes_every_optimiser(network: str, way: str, tmp_path: Path) -> None:
    tolerance = 2e-4 if way.startswith("adam") else TOLERANCE
    compare(Vectorised(plan_of(network, way)), network, way, tmp_path, tolerance)


@pytest.mark.parametrize("way", [way for way in WAYS if not way.startswith("adam")])
@pytest.mark.parametrize("network", SHARED)
def test_shared_base(network: str, way: str, tmp_path: Path) -> None:
    compare(SharedBase(plan_of(network, way)), network, way, tmp_path, TOLERANCE)


def test_adam_on_a_network_with_idle_weights_loses_what_the_hospital_does(tmp_path: Path) -> None:
    plan = plan_of("unet", "adam")
    sites, order = sites_of(plan), order_of(plan)
    oracle = hospital_reports(plan, sites, order, tmp_path)
    found = Vectorised(plan).train(order, sites)
    assert found.losses == pytest.approx([report.train_loss for report in oracle], rel=1e-4)


@pytest.mark.parametrize("kernel", [Vectorised, SharedBase])
def test_drawn_patches_are_the_hospitals(kernel: type, tmp_path: Path) -> None:
    """Augmented patches go through the hospital's own drawing, batch by batch."""
    sections = {"local": EPOCH | {"augment": ["flip", "rotate90"]}}
    plan = plan_of("cnn", **sections)
    sites, order = sites_of(plan), order_of(plan)
    oracle = hospital_reports(plan, sites, order, tmp_path)
    found = kernel(plan).train(order, sites)
    for index, report in enumerate(oracle):
        assert report.update is not None
        difference = np.abs(found.updates.update(index) - report.update).max()
        assert difference <= TOLERANCE * np.abs(report.update).max()


@pytest.mark.parametrize("kernel", [Vectorised, SharedBase])
def test_bfloat16_stays_near(kernel: type, tmp_path: Path) -> None:
    """On noise and few weights: updates within a fifth of their length, losses within 1 %."""
    plan = plan_of("cnn")
    sites, order = sites_of(plan), order_of(plan)
    oracle = hospital_reports(plan, sites, order, tmp_path)
    found = kernel(plan, "cpu", torch.bfloat16).train(order, sites)
    for index, report in enumerate(oracle):
        assert report.update is not None
        distance = np.linalg.norm(found.updates.update(index) - report.update)
        assert 0 < distance <= 0.2 * np.linalg.norm(report.update)
        assert found.losses[index] == pytest.approx(report.train_loss, rel=0.01)


def test_a_site_that_diverges_does_not_touch_the_others() -> None:
    plan = plan_of("cnn")
    sites, order = sites_of(plan), order_of(plan)
    broken = sites_of(plan)
    broken[1].train[0].image[:] = np.nan
    weights = np.array([1.0, 0.0, 1.0, 1.0])
    for kernel in (Vectorised(plan), SharedBase(plan)):
        fine = kernel.train(order, sites).updates.weighted_sum(weights)
        found = kernel.train(order, broken)
        assert not np.isfinite(found.norms[1])
        assert np.isfinite(found.norms[[0, 2, 3]]).all()
        assert np.array_equal(found.updates.weighted_sum(weights), fine)


def test_what_cannot_be_run_exactly_is_refused_with_its_name() -> None:
    dropout = plan_of("mlp", model={"name": "mlp", "widths": [8], "dropout": 0.5})
    with pytest.raises(PlanMismatchError, match=r"layer 2 .*Dropout.* sequential"):
        Vectorised(dropout)
    dense = {"name": "densenet121"}
    norms = plan_of("residual", model=dense, data={"patch_size": [32, 32], "classes": ["a", "b"]})
    with pytest.raises(PlanMismatchError, match="stays at each site"):
        Vectorised(norms)
    with pytest.raises(PlanMismatchError, match=r"seconds_limit is 5\.0"):
        Vectorised(plan_of("cnn", local=EPOCH | {"seconds_limit": 5.0}))
    with pytest.raises(PlanMismatchError, match="'adam' and only 'sgd'"):
        SharedBase(plan_of("cnn", "adam"))
    with pytest.raises(PlanMismatchError, match=r"UNet\) is no chain"):
        SharedBase(plan_of("unet"))
    with pytest.raises(PlanMismatchError, match=r"layer 1 \(ResidualBlock\)"):
        SharedBase(plan_of("residual"))
