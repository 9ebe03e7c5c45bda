"""Predictions: one a case, in order, on the case's own grid."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from asterion_client.data.raw_image import RawImage
from asterion_client.data.transforms import prepare
from asterion_shared.cases import Case
from asterion_shared.errors import OrderRefusedError
from asterion_shared.plan import Plan, TaskName
from asterion_shared.settings_files import validate
from asterion_shared.tasks.prediction import model_predictor

MODELS: dict[TaskName, str] = {
    "segmentation": "unet",
    "classification": "residual",
    "anomaly": "conv_autoencoder",
}


def plan_of(task: TaskName, patch: tuple[int, ...] = (8, 8), **data: Any) -> Plan:
    values = {
        "name": "test",
        "task": task,
        "model": {"name": MODELS[task]},
        "data": {"patch_size": patch, "dimensions": len(patch), "normalisation": "none"} | data,
    }
    return validate(Plan, values, "test")


class Threshold(nn.Module):
    """Logits whose second probability is the first channel of the image, in (0, 1)."""

    def forward(self, inputs: Tensor) -> Tensor:
        first = inputs[:, :1].clamp(1e-6, 1 - 1e-6)
        return torch.cat([(1 - first).log(), first.log()], 1)


class MeanThreshold(Threshold):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.flatten(1).mean(1, keepdim=True))


class Nothing(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return torch.zeros_like(inputs)


def case_of(image: np.ndarray, number: int = 0, **kwargs: Any) -> Case:
    return Case(id=f"{number:012x}", image=image.astype(np.float32), **kwargs)


SHAPES = [(8, 8), (20, 13), (5, 6), (3, 30)]


@pytest.mark.parametrize("shape", SHAPES)
def test_windows_give_every_point_its_own_value(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).uniform(0.1, 0.9, (1, *shape))
    (got,) = model_predictor(Threshold(), plan_of("segmentation"))([case_of(image)])
    assert got.shape == (2, *shape)
    assert got.dtype == np.float32
    assert np.allclose(got[1], image[0], atol=1e-5)
    assert np.allclose(got.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "spacing", "wanted"),
    [((40, 30), (1.0, 1.0), (2.0, 1.5)), ((21, 16), (3.0, 2.0), (1.0, 2.0))],
)
def test_the_way_back_undoes_the_way_there(
    shape: tuple[int, int], spacing: tuple[float, float], wanted: tuple[float, float]
) -> None:
    # a slope is kept by linear interpolation, so a shift of the grids would show
    rows, columns = np.indices(shape)
    image = (0.2 + 0.5 * rows / shape[0] + 0.2 * columns / shape[1])[None].astype(np.float32)
    plan = plan_of("segmentation", spacing_mm=wanted)
    raw = RawImage(image=image, spacing=spacing, unit="mm", mask=None)
    there = prepare(raw, None, plan.data).image
    assert there.shape[1:] != shape
    case = case_of(there, native_shape=shape, native_spacing=spacing)
    (back,) = model_predictor(Threshold(), plan)([case])
    assert back.shape == (2, *shape)
    # one point of the plan's grid at each end is held, not sloped, and the next leans on it
    rims = [2 * int(np.ceil(w / s)) for w, s in zip(wanted, spacing, strict=True)]
    inner = np.s_[rims[0] : -rims[0], rims[1] : -rims[1]]
    assert np.abs(back[1][inner] - image[0][inner]).max() < 1e-4


def test_the_way_back_of_a_volume_by_hand() -> None:
    # two points side by side, stretched to four: their centres lie at 0.5 and 2.5
    image = np.array([0.2, 0.6])[:, None, None] * np.ones((2, 4, 6))
    case = case_of(image[None], native_shape=(4, 4, 6), native_spacing=(1.0, 2.0, 2.0))
    plan = plan_of("segmentation", (8, 8, 8), spacing_mm=(2.0, 2.0, 2.0))
    (back,) = model_predictor(Threshold(), plan)([case])
    assert np.allclose(back[1][:, 1, 2], [0.2, 0.3, 0.5, 0.6], atol=1e-5)


def test_classification_in_order_over_several_batches() -> None:
    values = np.random.default_rng(1).uniform(0.1, 0.9, 600)
    cases = [case_of(np.full((1, 8, 8), v), n) for n, v in enumerate(values)]
    got = np.array(list(model_predictor(MeanThreshold(), plan_of("classification"))(iter(cases))))
    assert got.shape == (600, 2)
    assert np.allclose(got[:, 1], values, atol=1e-5)


def test_anomaly_maps_are_squared_errors_of_every_size_in_order() -> None:
    generator = np.random.default_rng(2)
    shapes = [(8, 8), (8, 8), (20, 9), (4, 5), (8, 8), (16, 16)]
    cases = [case_of(generator.normal(size=(2, *s)), n) for n, s in enumerate(shapes)]
    plan = plan_of("anomaly", channels=("g", "r"))
    for case, got in zip(cases, model_predictor(Nothing(), plan)(cases), strict=True):
        assert got.shape == case.image.shape[1:]
        assert np.allclose(got, np.square(case.image).mean(0), rtol=1e-5)


def test_prediction_uses_evaluation_mode_and_makes_no_gradient() -> None:
    class Watch(MeanThreshold):
        def forward(self, inputs: Tensor) -> Tensor:
            assert not self.training
            assert not torch.is_grad_enabled()
            return super().forward(inputs)

    model = Watch().train()
    predictions = model_predictor(model, plan_of("classification"))
    for got in predictions(case_of(np.full((1, 8, 8), 0.5), n) for n in range(3)):
        assert torch.is_grad_enabled()  # the caller's own code between two predictions
        assert got[1] == pytest.approx(0.5)


def test_no_case_no_prediction() -> None:
    for task, model in (("segmentation", Threshold()), ("classification", MeanThreshold())):
        assert list(model_predictor(model, plan_of(task))([])) == []  # type: ignore[arg-type]
    assert list(model_predictor(Nothing(), plan_of("anomaly"))([])) == []


def test_a_diverged_network_is_named() -> None:
    case = case_of(np.full((1, 8, 8), np.inf))
    with pytest.raises(OrderRefusedError, match="not finite") as caught:
        list(model_predictor(Nothing(), plan_of("anomaly"))([case]))
    assert caught.value.code == "diverged"
