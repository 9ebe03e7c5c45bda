"""An image rebuilt from an update: exact without protection, noise with it."""

from pathlib import Path

import numpy as np
import pytest

from asterion_client.local_round import make_workspace
from asterion_shared.errors import PlanMismatchError
from asterion_shared.plan import Plan
from asterion_sim.gradient_leakage import (
    BATCH,
    SIDE,
    Leak,
    demonstration_images,
    demonstration_plan,
    images_rebuilt_from_a_batch,
    leak,
    rebuild,
)
from asterion_sim.leak_pictures import write_leaks

HIDDEN = 0.06
"""Correlations of a protected guess stay below: noise alone has a deviation of 1 / SIDE, 0.008."""


@pytest.mark.parametrize("model", ["mlp", "logistic"])
@pytest.mark.parametrize("name", ["Hubble field", "drawn body"])
def test_the_same_attack_with_and_without_protection(model: str, name: str) -> None:
    image = demonstration_images()[name]
    assert image.shape == (1, SIDE, SIDE)
    bare = leak(demonstration_plan(model=model), name, image)
    assert bare.correlation > 0.99
    # Brightness comes back as well, not only the pattern.
    np.testing.assert_allclose(bare.rebuilt, bare.truth, atol=1e-3 * float(np.ptp(image)))
    assert abs(leak(demonstration_plan(8.0, model=model), name, image).correlation) < HIDDEN


def test_the_protected_plan_spends_no_more_than_it_says() -> None:
    from asterion_shared.privacy.account import planned_account

    account = planned_account(demonstration_plan(8.0))
    assert account is not None
    assert account.epsilon is not None
    assert 7.9 < account.epsilon <= 8.0


def test_a_batch_is_given_away_too_and_not_with_protection() -> None:
    assert images_rebuilt_from_a_batch() == BATCH
    assert images_rebuilt_from_a_batch(8.0) == 0


def test_several_steps_on_one_image_hide_nothing() -> None:
    plan = demonstration_plan(side=32)
    local = plan.local.model_dump() | {"amount": 5}
    plan = Plan.model_validate(plan.model_dump() | {"local": local})
    image = np.random.default_rng(0).standard_normal((1, 32, 32)).astype(np.float32)
    assert leak(plan, "noise", image).correlation > 0.99


def test_the_smaller_the_image_the_less_the_noise_hides() -> None:
    # One logistic unit, n pixels: signal of length 1, noise of n z^2. Said in docs/privacy.md.
    noise = demonstration_plan(8.0).privacy
    assert noise is not None
    found = []
    draw = np.random.default_rng(1)
    for _ in range(40):
        image = draw.standard_normal((1, 8, 8)).astype(np.float32)
        plan = demonstration_plan(8.0, model="logistic", side=8)
        found.append(abs(leak(plan, "small", image).correlation))
    expected = 1 / np.sqrt(1 + 64 * noise.noise_multiplier**2)
    assert 0.5 * expected < np.mean(found) < 1.5 * expected


def test_an_update_of_zeros_gives_nothing() -> None:
    workspace = make_workspace(demonstration_plan(side=8))
    assert not rebuild(workspace, np.zeros(workspace.layout.size, np.float32)).any()
    flat = Leak("flat", np.ones((1, 2, 2), np.float32), np.zeros((1, 2, 2), np.float32))
    assert flat.correlation == 0.0


def test_a_plan_that_it_does_not_fit_is_refused() -> None:
    values = demonstration_plan(side=32).model_dump() | {"model": {"name": "cnn"}}
    with pytest.raises(PlanMismatchError, match="'cnn'"):
        leak(Plan.model_validate(values), "x", np.zeros((1, 32, 32), np.float32))


def test_the_picture_is_the_same_again(tmp_path: Path) -> None:
    image = np.random.default_rng(0).standard_normal((1, 16, 16)).astype(np.float32)
    one = leak(demonstration_plan(side=16), "x", image)
    for name in ("a.png", "b.png"):
        write_leaks([one, one], "title", tmp_path / name)
    written = (tmp_path / "a.png").read_bytes()
    assert written == (tmp_path / "b.png").read_bytes()
    assert written.startswith(b"\x89PNG")
