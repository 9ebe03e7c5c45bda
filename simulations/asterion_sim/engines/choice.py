"""Which engine does the work, and how: what a person asks for, and what was decided."""

import os
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from asterion_shared.errors import UserInputError
from asterion_shared.settings_files import Rule, Settings, rule, validate

KernelName = Literal["sequential", "vectorised", "shared-base"]
KERNELS: tuple[KernelName, ...] = ("sequential", "vectorised", "shared-base")
"""Ways to train a chunk of sites."""

Carrier = Literal["here", "processes", "ray"]
"""Where chunks are trained: in this process, in worker processes, or in Ray actors."""

DtypeName = Literal["f32", "bf16"]
DTYPES: dict[str, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16}


class Engine(Settings):
    """A decided engine. Stored in the checkpoint, so that a resumed run forms the same numbers."""

    kernel: KernelName
    over: Carrier = "here"
    chunk: Annotated[int, Field(ge=1)] = 1
    """Sites that train together."""

    workers: Annotated[int, Field(ge=1)] = 1
    """Processes or actors. The numbers do not depend on it."""

    threads: Literal[1] = 1
    """Threads of each worker. Fixed: a second one changes the order of sums."""

    dtype: DtypeName = "f32"
    """Of activations and large products; weights, updates and sums are float32 or wider."""

    device: str = "cpu"

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda e: e.kernel != "sequential" or e.dtype == "f32",
            lambda e: (
                f"dtype is {e.dtype!r} and kernel is 'sequential', the hospital's own step; use "
                "f32 or another engine"
            ),
        ),
    )


class EngineWish(Settings):
    """What a person asks for; what is absent is measured."""

    kernel: KernelName | None = None
    over: Carrier | None = None
    chunk: Annotated[int, Field(ge=1)] | None = None
    workers: Annotated[int, Field(ge=1)] | None = None
    dtype: DtypeName = "f32"
    device: str = "cpu"

    @property
    def most_workers(self) -> int:
        """Workers to start when there may be several: as many as asked for, or as cores."""
        if self.over == "here":
            return 1
        return self.workers or len(os.sched_getaffinity(0))


def read_wish(
    name: str,
    *,
    chunk: int | None = None,
    workers: int | None = None,
    dtype: str = "f32",
    device: str = "cpu",
) -> EngineWish:
    """What ``--engine NAME`` means: ``auto``, a kernel, a carrier, or ``CARRIER:KERNEL``.

    >>> read_wish("processes:vectorised").over
    'processes'

    Raises:
        UserInputError: the name is not known.
        SettingsError: a number is out of range.
    """
    carrier, _, kernel = name.rpartition(":")
    known = {"auto", *KERNELS, "processes", "ray"}
    if name in ("processes", "ray"):
        carrier, kernel = name, "auto"
    if kernel not in {"auto", *KERNELS} or carrier not in {"", "here", "processes", "ray"}:
        msg = (
            f"no engine is named {name!r}; the engines are {', '.join(sorted(known))}, or both "
            "ways together, such as processes:vectorised"
        )
        raise UserInputError(msg)
    if kernel != "auto" and not carrier and workers is None:
        carrier = "here"
    values = {
        "kernel": None if kernel == "auto" else kernel,
        "over": carrier or None,
        "chunk": chunk,
        "workers": workers,
        "dtype": dtype,
        "device": device,
    }
    return validate(EngineWish, values, "the engine's options")
