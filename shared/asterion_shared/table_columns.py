"""A row of a table as a network sees it: numbers, codes as one-hot columns, nothing missing.

A number becomes two columns: its standardised value (0 when missing) and 1 when it is missing. A
code becomes one column a value, all 0 when it is missing. Mean and deviation are the plan's, or the
site's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from asterion_shared.plan import DataContract


@dataclass(frozen=True, slots=True)
class Scale:
    """Mean and deviation of each feature over a site's training rows; shapes ``(F,)``."""

    mean: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]


def codes_of(contract: DataContract) -> dict[str, tuple[str, ...]]:
    """The values of each categorical feature, in order: ``cp=1|2`` gives ``("1", "2")``."""
    pairs = (text.partition("=") for text in contract.categorical)
    return {name: tuple(values.split("|")) for name, _, values in pairs}


def column_names(contract: DataContract) -> tuple[str, ...]:
    """Names of the network's input columns, in order."""
    codes = codes_of(contract)
    names: list[str] = []
    for feature in contract.features:
        if feature in codes:
            names += [f"{feature}={value}" for value in codes[feature]]
        else:
            names += [feature, f"{feature} is missing"]
    return tuple(names)


def table_width(contract: DataContract) -> int:
    """Number of the network's input columns."""
    return len(column_names(contract))


def scale_of(rows: npt.NDArray[np.float64], contract: DataContract) -> Scale:
    """Mean and deviation of each feature: the plan's where it has them, else of these rows.

    Args:
        rows: a site's training rows ``(N, F)``, NaN where missing. A constant or absent feature
            has deviation 1; no row at all gives mean 0 and deviation 1.
        contract: names the features.
    """
    known = np.isfinite(rows)
    count = known.sum(axis=0)
    some = np.maximum(count, 1)
    mean = np.where(known, rows, 0).sum(axis=0) / some
    squares = np.where(known, (rows - mean) ** 2, 0).sum(axis=0) / some
    deviation = np.sqrt(squares)
    deviation = np.where(deviation > 0, deviation, 1.0)
    for index, feature in enumerate(contract.features):
        if feature in contract.scale:
            mean[index], deviation[index] = contract.scale[feature]
    return Scale(mean, deviation)


def to_columns(
    rows: npt.NDArray[np.float64], contract: DataContract, scale: Scale
) -> npt.NDArray[np.float32]:
    """Turn rows into the network's columns.

    Args:
        rows: shape ``(N, F)`` in the order of ``contract.features``, NaN where missing; codes as
            numbers.
        contract: names the features and their codes.
        scale: of the site's training rows.

    Returns:
        float32, finite, shape ``(N, table_width(contract))``. A code that the contract does not
        list counts as missing.
    """
    codes = codes_of(contract)
    columns: list[npt.NDArray[np.float64]] = []
    for index, feature in enumerate(contract.features):
        values = rows[:, index]
        if feature in codes:
            columns += _one_hot(values, codes[feature])
        else:
            missing = ~np.isfinite(values)
            standard = (values - scale.mean[index]) / scale.deviation[index]
            columns += [np.where(missing, 0.0, standard), missing.astype(np.float64)]
    return np.stack(columns, axis=1).astype(np.float32)


def _one_hot(
    values: npt.NDArray[np.float64], codes: Sequence[str]
) -> list[npt.NDArray[np.float64]]:
    return [(values == float(code)).astype(np.float64) for code in codes]
