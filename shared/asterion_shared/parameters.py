"""Parameters: one flat float32 vector and a layout that says which tensor is where, and whose.

Only *shared* tensors are in the vector. *Kept* tensors stay at each site (batch-norm statistics,
personal layers, integer counters) and never travel. Clipping, noise, folding and checkpoints all
work on the vector, so none of them can average an integer by accident.
"""

import fnmatch
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
import torch
from torch import nn

from asterion_shared.blocks import length, through
from asterion_shared.errors import PlanMismatchError
from asterion_shared.plan import ParameterPolicy

Vector = npt.NDArray[np.float32]
"""A flat float32 vector, shape ``(layout.size,)``."""

Kept = dict[str, npt.NDArray[Any]]
"""Kept tensors by name: what a site stores between rounds and never sends."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named tensor of a model.

    Attributes:
        name: as in ``state_dict``.
        shape: its shape; ``()`` for a scalar.
        dtype: such as ``float32`` or ``int64``.
        policy: ``share`` (in the vector) or ``keep`` (stays at the site).
        offset: first index in the vector; -1 when kept.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    policy: Literal["share", "keep"]
    offset: int

    @property
    def size(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each tensor of a model stands in the flat vector."""

    tensors: tuple[Tensor, ...]

    @property
    def shared(self) -> tuple[Tensor, ...]:
        """The tensors in the vector, in its order."""
        return tuple(t for t in self.tensors if t.policy == "share")

    @property
    def kept(self) -> tuple[Tensor, ...]:
        """The tensors that stay at the site."""
        return tuple(t for t in self.tensors if t.policy == "keep")

    @property
    def size(self) -> int:
        """Length of the vector."""
        last = next((t for t in reversed(self.tensors) if t.policy == "share"), None)
        return 0 if last is None else last.offset + last.size

    @property
    def sha256(self) -> str:
        """Hash of names, shapes, dtypes and policies: both sides must have the same."""
        rows = [[t.name, list(t.shape), t.dtype, t.policy] for t in self.tensors]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


_STATISTICS = ("running_mean", "running_var")


def layout_of(model: nn.Module, policy: ParameterPolicy) -> Layout:
    """Lay out a model's tensors under a plan's policy.

    Raises:
        PlanMismatchError: the policy forbids batch-norm statistics and the model has some, a
            ``keep`` pattern matches nothing, or nothing is left to share.
    """
    tensors: list[Tensor] = []
    offset = 0
    unmatched = set(policy.keep)
    for name, value in model.state_dict().items():
        statistic = name.rpartition(".")[2] in _STATISTICS
        if statistic and policy.batch_norm_statistics == "forbid":
            msg = (
                f"the network has batch-norm statistics ({name}) and the plan forbids them; set "
                "parameters.batch_norm_statistics = 'keep' or choose a network with group norm"
            )
            raise PlanMismatchError(msg)
        matches = {pattern for pattern in policy.keep if fnmatch.fnmatchcase(name, pattern)}
        unmatched -= matches
        keep = (
            bool(matches)
            or not value.dtype.is_floating_point
            or (statistic and policy.batch_norm_statistics == "keep")
        )
        dtype = str(value.dtype).removeprefix("torch.")
        shape = tuple(value.shape)
        tensors.append(
            Tensor(name, shape, dtype, "keep" if keep else "share", -1 if keep else offset)
        )
        offset += 0 if keep else tensors[-1].size
    if unmatched:
        msg = f"parameters.keep names {sorted(unmatched)}, which match no tensor of the network"
        raise PlanMismatchError(msg)
    if offset == 0:
        msg = "parameters.keep leaves no tensor to share; keep fewer"
        raise PlanMismatchError(msg)
    return Layout(tuple(tensors))


def read_vector(model: nn.Module, layout: Layout) -> Vector:
    """Copy the shared tensors of a model into a new vector, shape ``(layout.size,)``."""
    vector = np.empty(layout.size, np.float32)
    state = model.state_dict()
    for tensor in layout.shared:
        value = state[tensor.name].detach().to("cpu", torch.float32).numpy()
        vector[tensor.offset : tensor.offset + tensor.size] = value.ravel()
    return vector


def take_vector(model: nn.Module, layout: Layout) -> Vector:
    """Move the shared tensors of a model into a new vector, shape ``(layout.size,)``.

    Each tensor's memory is given back as soon as it is copied, so that vector and model are never
    both whole; the model, which nobody else may hold, is of no use afterwards.
    """
    vector = np.empty(layout.size, np.float32)
    state = model.state_dict()
    uses = Counter(state[t.name].untyped_storage().data_ptr() for t in layout.shared)
    for tensor in layout.shared:
        value = state[tensor.name]
        part = torch.from_numpy(vector[tensor.offset : tensor.offset + tensor.size])
        part.copy_(value.detach().reshape(-1))
        storage = value.untyped_storage()
        uses[storage.data_ptr()] -= 1
        # Tied weights share one, and one that was shown as a numpy array stays.
        if not uses[storage.data_ptr()] and storage.resizable():
            storage.resize_(0)
    return vector


def write_vector(model: nn.Module, layout: Layout, vector: Vector) -> None:
    """Copy a vector into the shared tensors of a model, in place.

    Raises:
        PlanMismatchError: the vector's length is not ``layout.size``.
    """
    state = model.state_dict()
    with torch.no_grad():
        for name, part in named_parts(vector, layout).items():
            # torch has no read-only tensors; a mapped vector's part is copied first
            state[name].copy_(torch.from_numpy(np.require(part, requirements="W")))


def read_kept(model: nn.Module, layout: Layout) -> Kept:
    """Copies of the kept tensors, by name: what a site stores between rounds."""
    state = model.state_dict()
    return {t.name: state[t.name].detach().cpu().numpy().copy() for t in layout.kept}


def write_kept(model: nn.Module, layout: Layout, kept: Kept) -> None:
    """Put kept tensors back, in place."""
    state = model.state_dict()
    with torch.no_grad():
        for tensor in layout.kept:
            state[tensor.name].copy_(torch.from_numpy(np.asarray(kept[tensor.name])))


def clipped(update: Vector, clip_norm: float) -> npt.NDArray[np.float64]:
    """The update in float64, no longer than ``clip_norm``; zero where it is not finite."""
    norm = length(update)
    if not np.isfinite(norm):
        return np.zeros(update.shape, np.float64)
    bounded = update.astype(np.float64)
    while length(bounded) > clip_norm:  # rounding may leave the first result an ulp too long
        bounded *= min(clip_norm / length(bounded), 1 - 2**-50)
    return bounded


def named_parts(vector: Vector, layout: Layout) -> dict[str, Vector]:
    """The shared tensors by name, in the layout's order, each a view of the vector.

    Raises:
        PlanMismatchError: the vector's length is not ``layout.size``.
    """
    _check_length(vector, layout)
    return {t.name: vector[t.offset : t.offset + t.size].reshape(t.shape) for t in layout.shared}


def from_bytes(data: bytes, layout: Layout) -> Vector:
    """A vector from safetensors; names and shapes must be those of the layout.

    Raises:
        PlanMismatchError: not safetensors, or a tensor is missing, unknown, or of another shape.
    """
    try:
        named = safetensors.numpy.load(data)
    except safetensors.SafetensorError as error:
        msg = f"the parameters are not safetensors ({error}); send a file this project wrote"
        raise PlanMismatchError(msg) from None
    return vector_of(named, layout)


def vector_of(named: Mapping[str, npt.NDArray[Any]], layout: Layout) -> Vector:
    """A new vector from tensors by name; those that are mapped files are let go as they are read.

    Raises:
        PlanMismatchError: a tensor is missing, unknown, or of another shape or type.
    """
    expected = {t.name: t for t in layout.shared}
    if named.keys() != expected.keys():
        missing, unknown = expected.keys() - named.keys(), named.keys() - expected.keys()
        msg = f"the parameters do not fit: missing {sorted(missing)}, unknown {sorted(unknown)}"
        raise PlanMismatchError(msg)
    vector = np.empty(layout.size, np.float32)
    for name, tensor in expected.items():
        value = named[name]
        if value.shape != tensor.shape or value.dtype != np.float32:
            msg = (
                f"tensor {name} is {value.dtype}{value.shape}; "
                f"the network has float32{tensor.shape}"
            )
            raise PlanMismatchError(msg)
        target, flat = vector[tensor.offset : tensor.offset + tensor.size], value.reshape(-1)
        for part in through(tensor.size, flat):
            target[part] = flat[part]
    return vector


def _check_length(vector: Vector, layout: Layout) -> None:
    if vector.shape != (layout.size,):
        msg = f"the vector has shape {vector.shape}; the network needs ({layout.size},)"
        raise PlanMismatchError(msg)
