"""Which method suits a network: found by trying them on one batch."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import get_args

import torch
from torch import Tensor, nn

from asterion_shared.clipped_gradients.convolution import ConvolutionUse, Kernel, convolve
from asterion_shared.clipped_gradients.losses import LossOf
from asterion_shared.clipped_gradients.methods import (
    Method,
    clipped_gradient_sum,
    refuse_mixing_layers,
    trainable,
)
from asterion_shared.clipped_gradients.recording import NoRuleError, record
from asterion_shared.clipped_gradients.stacked import examples
from asterion_shared.clipped_gradients.tape import Tape
from asterion_shared.tasks.batch import Batch

_REPETITIONS = 5


def choose_method(
    model: nn.Module,
    loss_of: LossOf,
    batch: Batch,
    parameters: Mapping[str, nn.Parameter] | None = None,
) -> Method:
    """Try the methods on a batch and name the fastest that is exact for this network.

    Book-keeping is exact if every operation on a parameter has a rule and the rules give the first
    two examples the norms that each has alone. (They would not where a layer mixes examples, or
    where the first axis of its inputs is not the batch.) The choice depends on the machine: store
    it with a run, so that the run can be repeated.

    Args:
        model: as for :func:`clipped_gradient_sum`; it and torch's generators are left as they are.
        loss_of: the loss of each example.
        batch: at least one example, of the shape and number that will come.
        parameters: as for :func:`clipped_gradient_sum`.

    Raises:
        PlanMismatchError: a layer mixes the examples of a batch.
    """
    refuse_mixing_layers(model)
    chosen = trainable(model) if parameters is None else dict(parameters)

    def norms(method: Method, batch: Batch = batch) -> Tensor:
        return clipped_gradient_sum(model, loss_of, batch, 1.0, method, chosen).norms

    def seconds(method: Method) -> float:
        return _seconds(lambda: norms(method), batch)

    with torch.random.fork_rng(_cuda_devices(batch)):
        if _rules_are_exact(model, norms, batch):
            kernels = _best_kernels(model, loss_of, batch, chosen)
            return min(Method(), Method(kernels=kernels), Method("loop"), key=seconds)
        if _vmap_works(norms, batch):
            return min(Method("vmap"), Method("loop"), key=seconds)
    return Method("loop")


def _rules_are_exact(
    model: nn.Module, norms: Callable[[Method, Batch], Tensor], batch: Batch
) -> bool:
    first = examples(batch, slice(0, 2))
    with _without_dropout(model):
        alone = norms(Method("loop"), first)
        try:
            together = norms(Method(), batch)[:2]
        except NoRuleError:
            return False
    return torch.allclose(together, alone, rtol=1e-3, equal_nan=True)


def _vmap_works(norms: Callable[[Method, Batch], Tensor], batch: Batch) -> bool:
    """Whether ``torch.func`` knows every operation; it raises RuntimeError where it does not."""
    try:
        norms(Method("vmap"), examples(batch, slice(0, 2)))
    except RuntimeError:
        return False
    return True


def _best_kernels(
    model: nn.Module, loss_of: LossOf, batch: Batch, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Kernel]:
    """The fastest kernel of each convolution, forward and backward, by its weight's name."""
    tape = record(
        lambda: model(batch.inputs),
        lambda outputs: loss_of(outputs, batch),
        parameters,
        len(batch.inputs),
        largest_formed_bytes=0,
    )
    uses = {name: tape.uses(parameter) for name, parameter in parameters.items()}
    return {
        name: _best_kernel(found[0], batch)
        for name, found in uses.items()
        if found and isinstance(found[0], ConvolutionUse)
    }


def _best_kernel(use: ConvolutionUse, batch: Batch) -> Kernel:
    inputs = use.inputs.detach().requires_grad_(use.inputs.requires_grad)

    def both_passes(kernel: Kernel) -> None:
        tape = Tape([use.weight], len(inputs))
        outputs = convolve(tape, kernel, use.settings, inputs, use.weight)
        torch.autograd.backward(outputs, use.gradients)

    kernels: tuple[Kernel, ...] = get_args(Kernel)
    return min(kernels, key=lambda kernel: _seconds(lambda: both_passes(kernel), batch))


def _seconds(work: Callable[[], object], batch: Batch) -> float:
    """The shortest of a few times; the first call, which warms up, does not count.

    On a CPU this is processor time, because others may use the machine.
    """
    on_device = batch.inputs.is_cuda
    clock = time.perf_counter if on_device else time.process_time
    times: list[float] = []
    for _ in range(1 + _REPETITIONS):
        started = clock()
        work()
        if on_device:
            torch.cuda.synchronize(batch.inputs.device)
        times.append(clock() - started)
    return min(times[1:])


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    modes = [(layer, layer.training) for layer in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def _cuda_devices(batch: Batch) -> list[int]:
    return [batch.inputs.device.index] if batch.inputs.is_cuda else []
