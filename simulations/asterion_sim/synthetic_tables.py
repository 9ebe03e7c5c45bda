"""Generated rows of a table: classes that differ in their means, with missing cells."""

import numpy as np
import numpy.typing as npt

from asterion_shared.plan import Plan
from asterion_shared.randomness import stream
from asterion_shared.table_columns import codes_of

CLASS_DISTANCE = 2.5
"""Distance between the means of two classes, in units of the deviation within one, over all
numeric columns together."""


def make_row(
    plan: Plan, label: int, missing: float, draws: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Draw one patient or source.

    A numeric column is Gaussian with a mean that depends on the class, in its own unit. A
    categorical one takes one of its codes, with probabilities that depend on the class.

    Args:
        plan: its features and categorical columns.
        label: the class.
        missing: share of cells that are missing.
        draws: where the row comes from.

    Returns:
        float64, shape (F,), codes as numbers, NaN where missing.
    """
    features = plan.data.features
    known = stream(plan.seed, round_=0, site="", purpose="columns")
    directions = known.standard_normal((len(plan.data.classes), len(features)))
    norms = np.linalg.norm(directions, axis=1, keepdims=True)
    means = directions / norms * CLASS_DISTANCE / np.sqrt(2)
    units = 10 ** known.uniform(-1, 2, len(features))
    codes = codes_of(plan.data)
    row = np.zeros(len(features))
    for index, name in enumerate(features):
        if name in codes:
            values = np.array([float(code) for code in codes[name]])
            row[index] = draws.choice(values, p=_shares(means[label, index], len(values)))
        else:
            row[index] = units[index] * (means[label, index] + draws.standard_normal())
    row[draws.random(len(features)) < missing] = np.nan
    return row


def _shares(lean: float, count: int) -> npt.NDArray[np.float64]:
    """Probabilities of codes; the first codes for a negative lean, the last for a positive one."""
    weights = np.exp(lean * np.linspace(-1, 1, count))
    return np.asarray(weights / weights.sum())
