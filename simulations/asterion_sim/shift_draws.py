"""What each site makes of a scenario's shifts: its own numbers, and its streams."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from asterion_shared.randomness import stream
from asterion_sim.shift_settings import LabelShiftSettings, Shift

Value = float | str | None

_UNITS = {
    "_electrons_per_adu": " e-/ADU",
    "_per_1000_pixels": " per 1000 pixels",
    "per_arcmin2": " per arcmin2",
    "_electrons": " e-",
    "_percent": " %",
    "_arcsec": " arcsec",
    "_pixels": " pixels",
    "_sigma": " x noise",
    "_deg": " deg",
    "_mm": " mm",
    "hours": " h",
}
"""Unit behind a number, by the end of its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnShift:
    """One shift as one site has it.

    Attributes:
        kind: which shift.
        seed: the run's seed.
        site: the site's name.
        position: of the shift in the scenario's list, from 0.
        values: the site's own number of each setting, and options as they are.
        test_too: whether labels of test cases are changed.
    """

    kind: str
    seed: int
    site: str
    position: int
    values: Mapping[str, Value]
    test_too: bool = False

    @property
    def words(self) -> str:
        """Kind and numbers with their units: ``psf: seeing 1.4 arcsec, beta 3``."""
        parts = [_words(name, value) for name, value in self.values.items() if value is not None]
        return f"{self.kind.replace('_', ' ')}: {', '.join(part for part in parts if part)}"

    def draws(self, case_id: str) -> np.random.Generator:
        """The stream of this shift for one case."""
        purpose = f"shift {self.position} case {case_id}"
        return stream(self.seed, round_=0, site=self.site, purpose=purpose)


def drawn_shifts(shifts: Sequence[Shift], plan_seed: int, site: str) -> tuple[DrawnShift, ...]:
    """Draw a site's own strength of each shift that affects it.

    Args:
        shifts: the scenario's list.
        plan_seed: the run's seed.
        site: the site's name.

    Returns:
        The shifts that affect the site, in the list's order. Ranges are drawn uniformly, those
        of quantities that span decades (gain, gamma, density) uniformly in their logarithm.
    """
    drawn = []
    for position, shift in enumerate(shifts):
        if not any(fnmatchcase(site, pattern) for pattern in shift.sites):
            continue
        draws = stream(plan_seed, round_=0, site=site, purpose=f"shift {position}")
        if draws.random() >= shift.share:
            continue
        values = {
            name: _drawn(shift, name, draws)
            for name in type(shift).model_fields
            if name not in LabelShiftSettings.model_fields and name != "kind"
        }
        drawn.append(
            DrawnShift(
                kind=shift.kind,
                seed=plan_seed,
                site=site,
                position=position,
                values=values,
                test_too=isinstance(shift, LabelShiftSettings) and shift.test_too,
            )
        )
    return tuple(drawn)


def _drawn(shift: Shift, name: str, draws: np.random.Generator) -> Value:
    """A site's own value of one setting; a range costs one draw, anything else none."""
    value = getattr(shift, name)
    if isinstance(value, tuple):
        low, high = np.log(value) if name in shift.LOGARITHMIC else value
        value = draws.uniform(low, high)
        value = np.exp(value) if name in shift.LOGARITHMIC else value
    if value is None or isinstance(value, str):
        return value
    return float(round(value)) if name in shift.WHOLE else float(value)


def _words(name: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    ending = next((end for end in _UNITS if name.endswith(end)), "")
    stem = name.removesuffix(ending).replace("_", " ").strip()
    number = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{stem} {number}{_UNITS.get(ending, '')}".strip()
