"""The workloads are those of the independent measurement beside this repository, byte for byte."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from bench.workloads import (
    ROOT,
    WORKLOADS,
    cohort,
    draw_examples,
    final_loss,
    flops_per_site,
    initial_network,
    mean_loss,
    prepare,
    site_tensors,
)

INDEPENDENT = ROOT.parent / "shared" / "simbench"
TRAINED = ("cnn", "mlp", "logreg", "unet")


@pytest.fixture
def independent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if not INDEPENDENT.exists():
        pytest.skip(f"{INDEPENDENT} is not here: nothing to compare with")
    monkeypatch.setenv("SIMBENCH_CACHE", str(tmp_path / "cache"))
    spec = importlib.util.spec_from_file_location("simbench", INDEPENDENT / "workloads.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", TRAINED)
def test_same_bytes(independent: ModuleType, name: str) -> None:
    # 6000 examples: more than are drawn at a time
    few = replace(WORKLOADS[name], num_sites=120, num_evaluation=20)
    numbers, kind = independent.load_params(
        workload=name, overrides={"clients": 120, "eval_samples": 20}
    )
    inputs, targets, evaluated, evaluated_targets = independent.make_data(numbers, kind)
    *chunks, held_out = draw_examples(few)
    assert [len(chunk.images) for chunk in chunks] == [5000, 1000]
    images = np.concatenate([chunk.images for chunk in chunks])
    np.testing.assert_array_equal(images.reshape(inputs.shape), inputs)
    learnt = np.concatenate([chunk.targets for chunk in chunks])
    np.testing.assert_array_equal(learnt.reshape(targets.shape), targets)
    np.testing.assert_array_equal(held_out.images.reshape(evaluated.shape), evaluated)
    np.testing.assert_array_equal(held_out.targets, evaluated_targets)
    assert images.dtype == np.float32


@pytest.mark.parametrize("name", TRAINED)
def test_same_order_first_weights_loss_and_cost(independent: ModuleType, name: str) -> None:
    ours = WORKLOADS[name]
    numbers, kind = independent.load_params(workload=name)
    for round_ in (0, 1, 17):
        assert cohort(ours, round_) == independent.cohort_ids(numbers, round_)
    theirs, network = independent.build_model(numbers, kind), initial_network(ours)
    pairs = zip(theirs.state_dict().values(), network.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    inputs = torch.randn(4, *ours.input_shape)
    torch.testing.assert_close(network(inputs), theirs(inputs))
    logits = network(inputs)
    targets = torch.ones_like(logits) if ours.segmentation else torch.arange(4)
    assert torch.equal(mean_loss(ours, logits, targets), independent.loss_fn(kind, logits, targets))
    assert flops_per_site(ours) == independent.flops_per_client(numbers, kind)


@pytest.mark.parametrize("name", ["logreg", "unet"])
def test_prepared_files(name: str, tmp_path: Path) -> None:
    few = replace(WORKLOADS[name], num_sites=3, examples_per_site=4, num_evaluation=5)
    folder = prepare(few, tmp_path)
    assert list(tmp_path.iterdir()) == [folder]
    images = np.load(folder / "pool" / "images.npy")
    assert images.shape == (12, *few.image_shape)
    drawn, held_out = draw_examples(few)
    np.testing.assert_array_equal(images, drawn.images)
    np.testing.assert_array_equal(np.load(folder / "targets.npy"), drawn.targets)
    np.testing.assert_array_equal(np.load(folder / "evaluation" / "images.npy"), held_out.images)
    sites = np.load(folder / "pool" / "site.npy")
    assert sites.tolist() == [site for site in few.site_names for _ in range(4)]
    if name == "unet":
        masks = np.load(folder / "pool" / "masks.npy")
        assert masks.dtype == np.int16
        np.testing.assert_array_equal(masks, drawn.targets[:, 0])
    else:
        labels = np.load(folder / "pool" / "labels.npy")
        assert labels.dtype == np.int64
    written = (folder / "targets.npy").stat().st_mtime_ns
    assert prepare(few, tmp_path) == folder
    assert (folder / "targets.npy").stat().st_mtime_ns == written


def test_a_sites_tensors_are_its_rows_of_the_pool(tmp_path: Path) -> None:
    empty = WORKLOADS["empty"]
    inputs, targets = site_tensors(empty, tmp_path)
    assert inputs.shape == (1000, 1, 2)
    assert targets.shape == (1000, 1)
    pool = np.load(prepare(empty, tmp_path) / "pool" / "images.npy")
    np.testing.assert_array_equal(inputs[7, 0].numpy(), pool[7].ravel())


def test_final_loss_of_a_network_that_knows_nothing(tmp_path: Path) -> None:
    network = initial_network(WORKLOADS["empty"])
    for weight in network.parameters():
        torch.nn.init.zeros_(weight)
    loss = final_loss(WORKLOADS["empty"], network, tmp_path)
    assert loss == pytest.approx(np.log(2), rel=1e-6)


def test_flops_by_hand() -> None:
    # 784 x 10 multiply-adds forward and as many for the weights' gradient, 50 examples
    assert flops_per_site(WORKLOADS["logreg"]) == 2 * 2 * 784 * 10 * 50
