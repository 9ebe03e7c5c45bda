"""DP-SGD at a site against a plain loop, and what must not show in anything that leaves."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asterion_client import private_round
from asterion_client.local_round import Workspace, make_workspace, work
from asterion_client.private_round import (
    clipped,
    private_step_of,
    release_privately,
    train_privately,
)
from asterion_shared.blocks import length
from asterion_shared.cases import Case, CaseList, SiteData
from asterion_shared.clipped_gradients import example_losses
from asterion_shared.errors import DataProblemError, PlanMismatchError
from asterion_shared.messages import Order, Report
from asterion_shared.plan import Plan
from asterion_shared.privacy.network_check import private_method
from asterion_shared.privacy.secret_stream import SecretStream
from asterion_shared.settings_files import validate
from asterion_shared.tasks import initial_model
from asterion_shared.tasks.batches import batch_of

KEY = bytes(range(32))


def plan_of(**sections: Any) -> Plan:
    values: dict[str, Any] = {
        "name": "private",
        "task": "classification",
        "data": {"channels": ["x"], "classes": ["a", "b"], "patch_size": [6, 6]},
        "model": {"name": "logistic"},
        "local": {"unit": "steps", "amount": 3, "batch_size": 4, "optimiser": "sgd",
                  "learning_rate": 0.5},
        "privacy": {"protects": "record", "noise": "site", "clip_norm": 0.7,
                    "noise_multiplier": 1e-7, "sampling_rate": 1.0, "epsilon_limit": 1e300},
    }  # fmt: skip
    for name, section in sections.items():
        known = values.get(name, {})
        values[name] = known | section if isinstance(section, dict) else section
    return validate(Plan, values, "test")


def cases(count: int, groups: int | None = None, seed: int = 0) -> list[Case]:
    draw = np.random.default_rng(seed)
    return [
        Case(
            id=f"{n:012x}",
            image=draw.standard_normal((1, 6, 6)).astype(np.float32) * (1 + 5 * (n % 3 == 0)),
            label=n % 2,
            group="" if groups is None else f"{n % groups:012x}",
            group_named=groups is not None,
        )
        for n in range(count)
    ]


def site(examples: list[Case]) -> SiteData:
    return SiteData(site="s", train=CaseList.of(examples), test=CaseList(()))


def order_of(plan: Plan, space: Workspace) -> Order:
    return Order(run="r", plan=plan, round=1, phase="train", weights=space.initial_weights,
                 layout_sha256=space.layout.sha256, evaluate=False)  # fmt: skip


def reported(plan: Plan, data: SiteData, folder: Path) -> Report:
    space = make_workspace(plan)
    return work(order_of(plan, space), data, space, folder)


def trained(plan: Plan, data: SiteData, pull: float = 0.0) -> torch.nn.Module:
    """The network after a private round whose gradients get ``pull`` on every number."""
    model = initial_model(plan)
    optimiser = torch.optim.SGD(model.parameters(), plan.local.learning_rate)
    step = private_step_of(plan, model)
    assert step is not None
    assert plan.privacy is not None

    def add() -> None:
        for weight in model.parameters():
            assert weight.grad is not None
            weight.grad += pull

    train_privately(plan, plan.privacy, data, model, optimiser, step, add, SecretStream(KEY))
    return model


def plain_loop(plan: Plan, examples: list[Case]) -> torch.nn.Module:
    """Each example's gradient by itself, clipped, added, divided by their number."""
    assert plan.privacy is not None
    model, losses = initial_model(plan), example_losses(plan)
    for _ in range(plan.local.amount):
        sums = [torch.zeros_like(weight) for weight in model.parameters()]
        for number in range(len(examples)):
            one = batch_of(plan, CaseList.of(examples), np.array([number]), np.random.default_rng())
            model.zero_grad()
            losses(model(one.inputs), one).sum().backward()
            gradients = [weight.grad for weight in model.parameters()]
            norm = torch.sqrt(sum((g.double() ** 2).sum() for g in gradients)).item()
            clip = plan.privacy.clip_norm * (1 - private_round.ROUNDING_MARGIN)
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient * min(1.0, clip / norm)
        with torch.no_grad():
            for weight, total in zip(model.parameters(), sums, strict=True):
                weight -= plan.local.learning_rate * total / len(examples)
    return model


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def test_without_noise_and_with_everybody_it_is_the_clipped_mean_gradient() -> None:
    plan, examples = plan_of(), cases(11)
    assert torch.allclose(flat(trained(plan, site(examples))), flat(plain_loop(plan, examples)),
                          atol=2e-6)  # fmt: skip


def test_a_step_whose_sample_is_empty_moves_by_noise_and_by_the_unscaled_pull() -> None:
    plan = plan_of(privacy={"sampling_rate": 1e-12}, local={"amount": 2})
    moved = flat(trained(plan, site(cases(3)), pull=0.25)) - flat(initial_model(plan))
    noise = 0.5 * 2 * 0.7e-7 / (3e-12)  # learning rate, steps, deviation over the expected number
    assert torch.allclose(moved.mean(), torch.tensor(-0.5 * 0.25 * 2), atol=3 * noise)
    quiet = plan_of(
        privacy={"sampling_rate": 1e-12, "noise_multiplier": 1e-30}, local={"amount": 2}
    )
    moved = flat(trained(quiet, site(cases(3)), pull=0.25)) - flat(initial_model(quiet))
    assert torch.allclose(moved, torch.tensor(-0.25), atol=1e-6)


def test_the_noise_has_the_deviation_that_is_charged() -> None:
    plan = plan_of(
        privacy={"noise_multiplier": 2.0, "sampling_rate": 0.5},
        local={"amount": 1},
        data={"patch_size": [48, 48]},
    )
    empty = [
        Case(id="0" * 12, image=np.zeros((1, 48, 48), np.float32), label=n % 2) for n in range(8)
    ]
    moved = flat(trained(plan, site(empty))) - flat(initial_model(plan))
    weights = moved[: 2 * 48 * 48].numpy()  # of an empty image only the biases have a gradient
    expected = 0.5 * 2.0 * 0.7 / (0.5 * 8)
    assert weights.std() == pytest.approx(expected, rel=0.05)
    assert abs(weights.mean()) < 4 * expected / np.sqrt(weights.size)


def test_one_record_more_changes_the_sum_by_at_most_the_clip_norm() -> None:
    plan = plan_of(model={"name": "residual"}, data={"patch_size": [8, 8]})
    model = initial_model(plan)
    model.train()
    step = private_step_of(plan, model)
    assert step is not None
    assert plan.privacy is not None
    examples = [
        Case(id=f"{n:012x}", image=100.0 * np.random.default_rng(n).random((1, 8, 8), np.float32),
             label=n % 2) for n in range(9)
    ]  # fmt: skip

    def summed(rows: list[int]) -> np.ndarray:
        assert plan.privacy is not None
        total = np.full(sum(weight.numel() for weight in model.parameters()), np.nan)
        private_round._clipped_sum(
            plan, plan.privacy, site(examples), model, step, np.array(rows),
            np.random.default_rng(0), total,
        )  # fmt: skip
        return total

    whole = summed(list(range(9)))
    changes = [length(whole - summed([m for m in range(9) if m != n])) for n in range(9)]
    assert max(changes) <= plan.privacy.clip_norm
    assert max(changes) > 0.98 * plan.privacy.clip_norm  # or this test could not fail


def test_a_poisoned_example_is_left_out() -> None:
    plan, examples = plan_of(), cases(5)
    bad = Case(id="f" * 12, image=np.full((1, 6, 6), np.nan, np.float32), label=0)
    moved = flat(trained(plan, site([*examples, bad])))
    assert moved.isfinite().all()


def test_nothing_that_is_not_noised_is_reported(tmp_path: Path) -> None:
    report = reported(plan_of(), site(cases(9)), tmp_path)
    assert report.train_loss is None
    assert report.num_steps == 3
    assert report.statistics == {}


@pytest.mark.parametrize("protects", ["record", "site"])
def test_seeding_every_generator_changes_nothing(protects: str, tmp_path: Path) -> None:
    privacy: dict[str, Any] = {"protects": protects, "noise_multiplier": 1.0}
    privacy["sampling_rate"] = 0.5 if protects == "record" else None
    plan, data = plan_of(privacy=privacy), site(cases(9))
    updates = []
    for number in range(2):
        torch.manual_seed(1)
        np.random.seed(1)  # the old global generator is what is meant
        random.seed(1)
        update = reported(plan, data, tmp_path / str(number)).update
        assert update is not None
        updates.append(update)
    # With noise that followed a seed the two would be equal, numbers or bytes.
    assert not np.isclose(updates[0], updates[1], rtol=1e-6).any()


def test_a_patient_takes_part_with_one_image() -> None:
    plan = plan_of(privacy={"protects": "patient"}, local={"amount": 1})
    seen: list[int] = []
    original = private_round.batch_of

    def noting(plan: Plan, found: CaseList, rows: np.ndarray, patches: Any) -> Any:
        seen.extend(rows.tolist())
        return original(plan, found, rows, patches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private_round, "batch_of", noting)
        trained(plan, site(cases(12, groups=4)))
    assert sorted(row % 4 for row in seen) == [0, 1, 2, 3]


def test_patients_are_not_protected_where_nobody_knows_them() -> None:
    plan = plan_of(privacy={"protects": "patient"})
    with pytest.raises(DataProblemError, match="5 of 5") as caught:
        trained(plan, site(cases(5)))
    assert caught.value.code == "unknown_patients"


@given(
    st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=1, max_size=30),
    st.floats(1e-6, 1e6),
)
def test_a_clipped_update_is_never_longer(numbers: list[float], clip_norm: float) -> None:
    update = np.array(numbers, np.float32)
    bounded = clipped(update, clip_norm)
    assert length(bounded) <= clip_norm
    if length(update) <= clip_norm:
        assert np.array_equal(bounded, update)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_released_as_noise(bad: float) -> None:
    plan = plan_of(privacy={"protects": "site", "sampling_rate": None, "noise_multiplier": 1.0})
    assert plan.privacy is not None
    update = np.full(4000, 3.0, np.float32)
    update[7] = bad
    released = release_privately(update, plan.privacy, SecretStream(KEY))
    assert released.std() == pytest.approx(0.7, rel=0.1)
    assert abs(released.mean()) < 0.05


PRIVATE_NETWORKS = {
    "residual": {},
    "cnn": {},
    "mlp": {},
    "logistic": {},
    "unet": {"task": "segmentation"},
    "small_unet": {"task": "segmentation"},
    "conv_autoencoder": {"task": "anomaly"},
}


@pytest.mark.parametrize("name", PRIVATE_NETWORKS)
def test_the_catalogue_says_by_a_backward_pass_what_trains_privately(name: str) -> None:
    plan = plan_of(model={"name": name}, data={"patch_size": [32, 32]}, **PRIVATE_NETWORKS[name])
    model = initial_model(plan)
    before = flat(model)
    assert private_method(plan, model).name in ("book_keeping", "vmap", "loop")
    assert torch.equal(flat(model), before)


def test_batch_norm_is_refused_by_name() -> None:
    plan = plan_of(model={"name": "densenet121"}, data={"patch_size": [32, 32]})
    with pytest.raises(PlanMismatchError, match=r"'densenet121'.*record.*BatchNorm2d"):
        make_workspace(plan)
