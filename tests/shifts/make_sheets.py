"""Draws the contact sheets of docs/pictures: ``python tests/shifts/make_sheets.py docs/pictures``.

The medical one is of generated phantoms, by the scenario beside it. The sky one shows the same
pieces of the Hubble field through each site's instruments; the file says nothing of its pixel
size, and 0.1 arcsec is assumed.
"""

import sys
from pathlib import Path

import numpy as np
from pydantic import Field

from asterion_client.data.transforms import normalise
from asterion_shared.cases import Case, CaseList, SiteData
from asterion_shared.plan import Plan
from asterion_shared.settings_files import Settings, read_toml, validate
from asterion_sim import sky_field
from asterion_sim.preview import seen_by_each, shift_notes, write_preview
from asterion_sim.shifts import Shift
from asterion_sim.synthetic import generated_sites

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
FIELD = ROOT / "simulations" / "asterion_sim" / "assets" / "hst_xdf.fits"
PIECES = ((60, 100), (320, 560), (500, 240))
"""Upper left corner of each piece, 60 pixels wide."""


class Shifts(Settings):
    """What is used of the two scenarios."""

    source: dict[str, str | int] = Field(default_factory=dict)
    shifts: tuple[Shift, ...]


def medical(out: Path) -> None:
    data = {"classes": ["background", "organ", "lesion"], "patch_size": [64, 64]}
    plan, scenario = _plan("phantoms", data), _scenario("shifts-medical")
    sites = generated_sites(
        plan,
        int(scenario.source["num_sites"]),
        cases_per_site=int(scenario.source["cases_per_site"]),
        shifts=scenario.shifts,
    )
    notes = shift_notes(plan, scenario.shifts, sites)
    write_preview(plan, sites, out / "shifts-medical.png", cases_per_site=4, notes=notes)


def sky(out: Path) -> None:
    data = {"classes": ["sky", "source"], "normalisation": "asinh", "pixel_scale_arcsec": 0.1}
    plan, scenario = _plan("hubble", data), _scenario("shifts-sky")
    field = sky_field.read_sky_field(FIELD)
    cases = []
    for row, column in PIECES:
        part = (slice(row, row + 60), slice(column, column + 60))
        image = np.ascontiguousarray(field.image[part][np.newaxis])
        mask = (field.segments[part] > 0).astype(np.int16)
        name = f"{row:06d}{column:06d}"
        cases.append(Case(id=name, image=normalise(image, "asinh"), mask=mask))
    site = SiteData(site="hubble", train=CaseList.of(cases), test=CaseList([]))
    names = ["as_recorded", *(name for shift in scenario.shifts for name in shift.sites)]
    sites = seen_by_each(site, names, scenario.shifts, plan)
    notes = shift_notes(plan, scenario.shifts, sites)
    write_preview(plan, sites, out / "shifts-sky.png", notes=notes)


def _plan(name: str, data: dict[str, object]) -> Plan:
    values = {"name": name, "task": "segmentation", "seed": 4, "model": {"name": "unet"}}
    return validate(Plan, values | {"data": data}, name)


def _scenario(name: str) -> Shifts:
    path = PICTURES / f"{name}.toml"
    return validate(Shifts, read_toml(path), str(path))


if __name__ == "__main__":
    medical(Path(sys.argv[1]))
    sky(Path(sys.argv[1]))
