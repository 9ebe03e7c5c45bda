"""From a network to predictions on each case's own grid."""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from asterion_shared.cases import Case, Predict
from asterion_shared.errors import OrderRefusedError
from asterion_shared.plan import Plan, TaskName
from asterion_shared.tasks.batches import fit_to_patch
from asterion_shared.tasks.patches import centre_start, put

Floats = npt.NDArray[np.float32]
Item = TypeVar("Item")

_CASES_AT_ONCE = 256
_WINDOW_POINTS_AT_ONCE = 2**16
_OVERLAP = 0.25


def model_predictor(model: nn.Module, plan: Plan, device: str = "cpu") -> Predict:
    """Predict with a network; see :data:`asterion_shared.cases.Predict`.

    The network is put into evaluation mode whenever it is used and left so. Predictions come one
    by one, in the order of the cases.

    Args:
        model: the plan's network, on ``device``.
        plan: says the task and the patch. Segmentation slides a window of the patch's size with
            a quarter of overlap over the plan's grid and brings the probabilities back to the
            native one; anomaly does so with the squared error where an image is larger than the
            patch; classification sees the middle of an image.
        device: ``cpu`` or ``cuda[:N]``.

    Raises:
        OrderRefusedError: ``diverged``, while predicting: an output is not finite.
    """
    predictions = _PREDICTIONS[plan.task]

    def predict(cases: Iterable[Case]) -> Iterator[Floats]:
        for values in predictions(model, plan, device, cases):
            if not np.isfinite(values).all():
                msg = "the network's output is not finite; lower local.learning_rate"
                raise OrderRefusedError(msg, code="diverged")
            yield values

    return predict


def _segmentation(
    model: nn.Module, plan: Plan, device: str, cases: Iterable[Case]
) -> Iterator[Floats]:
    def probabilities(windows: Tensor) -> Tensor:
        logits: Tensor = model(windows)
        return logits.softmax(1)

    for case in cases:
        with _evaluating(model):
            found = _slide(probabilities, case.image, plan, device)
            native = case.native_shape or case.image.shape[1:]
            if tuple(native) != tuple(found.shape[2:]):
                # the two grids cover the same extent, edge to edge, so stretching is exact
                mode = "bilinear" if len(native) == 2 else "trilinear"
                found = functional.interpolate(found, tuple(native), mode=mode)
            values: Floats = found[0].cpu().numpy()
        yield values


def _classification(
    model: nn.Module, plan: Plan, device: str, cases: Iterable[Case]
) -> Iterator[Floats]:
    for some in _chunks(cases):
        inputs = np.stack([fit_to_patch(plan, case.image) for case in some])
        with _evaluating(model):
            logits: Tensor = model(torch.from_numpy(inputs).to(device))
            values: Floats = logits.softmax(1).cpu().numpy()
        yield from values


def _anomaly(model: nn.Module, plan: Plan, device: str, cases: Iterable[Case]) -> Iterator[Floats]:
    def errors(windows: Tensor) -> Tensor:
        rebuilt: Tensor = model(windows)
        return (rebuilt - windows).square().mean(1, keepdim=True)

    size = plan.data.patch_size

    def fits(case: Case) -> bool:
        return all(length <= most for length, most in zip(case.image.shape[1:], size, strict=True))

    for small, group in groupby(cases, fits):
        for some in _chunks(group) if small else ([case] for case in group):
            with _evaluating(model):
                if small:
                    inputs = np.stack([fit_to_patch(plan, case.image) for case in some])
                    found = errors(torch.from_numpy(inputs).to(device))
                else:
                    found = _slide(errors, some[0].image, plan, device)
                maps: Floats = found[:, 0].cpu().numpy()
            yield from (_unpad(each, case) for each, case in zip(maps, some, strict=True))


def _unpad(padded: Floats, case: Case) -> Floats:
    """An error map without the margin that filled the patch up."""
    shape = case.image.shape[1:]
    if padded.shape == shape:
        return padded
    values = np.empty(shape, np.float32)
    put(values, centre_start(shape, padded.shape), padded)
    return values


def _slide(predict: Callable[[Tensor], Tensor], image: Floats, plan: Plan, device: str) -> Tensor:
    """Predict (1, channels, *S) for an image (C, *S), window by window; smaller ones are padded."""
    from monai.inferers.utils import sliding_window_inference  # seconds to load: only who slides

    size = plan.data.patch_size
    inputs = torch.from_numpy(np.ascontiguousarray(image))[None].to(device)
    found = sliding_window_inference(
        inputs,
        roi_size=size,
        sw_batch_size=max(1, _WINDOW_POINTS_AT_ONCE // int(np.prod(size))),
        predictor=predict,
        overlap=_OVERLAP,
        mode="gaussian",
    )
    if not isinstance(found, Tensor):
        msg = f"sliding_window_inference gave a {type(found).__name__}, not a tensor"
        raise TypeError(msg)
    return found


def _evaluating(model: nn.Module) -> torch.no_grad:
    model.eval()
    return torch.no_grad()


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    rest = iter(items)
    while some := list(islice(rest, _CASES_AT_ONCE)):
        yield some


_PREDICTIONS: dict[TaskName, Callable[[nn.Module, Plan, str, Iterable[Case]], Iterator[Floats]]] = {
    "segmentation": _segmentation,
    "classification": _classification,
    "anomaly": _anomaly,
}
