"""Statistics: named arrays of numbers that add over cases and over sites."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
"""Float64, one-dimensional."""


@dataclass(frozen=True, slots=True)
class Statistic:
    """Numbers that add over cases and sites.

    Attributes:
        kind: how the numbers are read; one of :data:`asterion_shared.metrics.KINDS`.
        values: float64, one-dimensional, finite; its length is fixed by the kind and the plan.
    """

    kind: str
    values: Values


Statistics = Mapping[str, Statistic]


def merge(parts: Iterable[Statistics]) -> dict[str, Statistic]:
    """Add statistics by name; the empty case is an empty dictionary.

    Raises:
        ValueError: one name comes with two kinds or lengths.
    """
    total: dict[str, Statistic] = {}
    for part in parts:
        for name, statistic in part.items():
            known = total.get(name)
            if known is None:
                total[name] = statistic
                continue
            if known.kind != statistic.kind or known.values.shape != statistic.values.shape:
                msg = (
                    f"statistic {name} comes as {known.kind} of {known.values.shape} and as "
                    f"{statistic.kind} of {statistic.values.shape}; all sites must use one plan"
                )
                raise ValueError(msg)
            total[name] = Statistic(known.kind, known.values + statistic.values)
    return total


def encode(statistics: Statistics) -> dict[str, dict[str, Any]]:
    """Statistics as plain JSON values: ``{name: {"kind": ..., "values": [...]}}``."""
    return {
        name: {"kind": statistic.kind, "values": statistic.values.tolist()}
        for name, statistic in statistics.items()
    }


def decode(values: object) -> dict[str, Statistic]:
    """Statistics from what :func:`encode` gave; whether they fit a plan is not checked here.

    Raises:
        ValueError: the value is not of that form.
    """
    if not isinstance(values, dict):
        msg = f"statistics are a {type(values).__name__}; they must be a table of names"
        raise ValueError(msg)  # noqa: TRY004  # callers reject a report for one kind of error
    return {str(name): _decode_one(str(name), part) for name, part in values.items()}


def _decode_one(name: str, part: object) -> Statistic:
    match part:
        case {"kind": str(kind), "values": list(numbers), **rest} if not rest:
            if all(type(number) in (int, float) for number in numbers):
                with suppress(OverflowError):  # an integer beyond float64 is refused below
                    return Statistic(kind, np.array(numbers, np.float64))
    msg = f"statistic {name} is not a kind and a list of numbers; write it with encode"
    raise ValueError(msg)


def place(values: npt.ArrayLike, edges: Values) -> Values:
    """Count values between fixed edges, with what lies below and above counted apart.

    Args:
        values: any shape, finite.
        edges: shape ``(B + 1,)``, rising. A bin holds its lower edge; the last also its upper.

    Returns:
        Counts, shape ``(B + 2,)``: below, the B bins, above.

    Raises:
        ValueError: a value is not finite.
    """
    flat = np.asarray(values, np.float64).ravel()
    if not np.isfinite(flat).all():
        msg = "a value to be counted is not finite; leave undefined values out"
        raise ValueError(msg)
    index = np.searchsorted(edges, flat, side="right")
    index[flat == edges[-1]] = len(edges) - 1
    return np.bincount(index, minlength=len(edges) + 1).astype(np.float64)
