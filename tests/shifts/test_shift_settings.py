"""What a scenario may say about shifts, and what each site makes of it."""

import pickle
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from asterion_shared.errors import SettingsError
from asterion_shared.plan import Plan
from asterion_shared.settings_files import Settings, validate
from asterion_sim.shift_settings import ContrastCurve, LabelNoise, Noise, UvUndersampling
from asterion_sim.shifts import Shift, check_shifts, drawn_shifts

KINDS: list[dict[str, Any]] = [
    {"kind": "gain_offset", "gain": [1, 1000], "offset_percent": [-5, 5]},
    {"kind": "bias_field", "ratio": [1, 3]},
    {"kind": "noise", "sigma_percent": 3, "distribution": "rician"},
    {"kind": "resolution", "in_plane_mm": [1, 4]},
    {"kind": "gibbs", "alpha": 0.5},
    {"kind": "kspace_undersampling", "acceleration": [1, 4]},
    {"kind": "contrast_curve", "gamma": [0.5, 2]},
    {"kind": "annotation_style", "grow_mm": [-2, 2]},
    {"kind": "label_noise", "probability": 0.2},
    {"kind": "missing_labels", "probability": [0, 1], "test_too": True},
    {"kind": "psf", "seeing_arcsec": [0.5, 2]},
    {"kind": "sky", "level_sigma": 3, "gradient_sigma": [0, 9]},
    {"kind": "gain_read_noise"},
    {"kind": "pixel_scale", "scale_arcsec": 0.5},
    {"kind": "crowding", "per_arcmin2": [10, 1000], "fwhm_arcsec": 1},
    {"kind": "satellite_trails", "per_image": 0.3, "width_arcsec": 1},
    {"kind": "cosmic_rays", "hits_per_1000_pixels": 2},
    {"kind": "uv_undersampling", "antennas": [5, 30]},
]


class Scenario(Settings):
    shifts: tuple[Shift, ...] = ()


def read(*entries: dict[str, Any]) -> tuple[Shift, ...]:
    return validate(Scenario, {"shifts": list(entries)}, "scenario.toml").shifts


def plan_for(task: str = "segmentation", **data: Any) -> Plan:
    model = {"segmentation": "unet", "classification": "residual", "anomaly": "conv_autoencoder"}
    values = {"name": "p", "task": task, "seed": 5, "model": {"name": model[task]}, "data": data}
    return validate(Plan, values, "test")


def test_every_kind_is_read_by_its_name_and_survives_json() -> None:
    shifts = read(*KINDS)
    assert [s.kind for s in shifts] == [entry["kind"] for entry in KINDS]
    assert len({type(s) for s in shifts}) == 18
    adapter = TypeAdapter(tuple[Shift, ...])
    assert adapter.validate_json(adapter.dump_json(shifts)) == shifts


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"kind": "fog"}, "fog"),
        ({"kind": "noise", "sigma_percent": -1}, ">= 0"),
        ({"kind": "noise", "sigma_percent": [3, 1]}, "lower first"),
        ({"kind": "contrast_curve", "gamma": [0, 1]}, "> 0"),
        ({"kind": "bias_field", "ratio": 0.5}, ">= 1"),
        ({"kind": "gibbs", "alpha": 1.5}, "<= 1"),
        ({"kind": "noise", "sigma": 1}, "sigma"),
        ({"kind": "resolution"}, "neither in_plane_mm nor slice_mm"),
        ({"kind": "annotation_style", "grow_mm": 1, "grow_pixels": 1}, "both given"),
    ],
)
def test_a_wrong_entry_is_named(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        read(entry)
    assert "shifts" in str(caught.value)


def test_a_site_draws_its_own_strength_and_always_the_same() -> None:
    shifts = (Noise(sigma_percent=(1, 9)),)
    values = [drawn_shifts(shifts, 7, f"s{i}")[0].values["sigma_percent"] for i in range(300)]
    again = [drawn_shifts(shifts, 7, f"s{i}")[0].values["sigma_percent"] for i in range(300)]
    assert values == again
    numbers = np.array(values, float)
    assert len(set(values)) == 300
    assert numbers.min() > 1
    assert numbers.max() < 9
    # uniform: the mean of 300 lies within four standard errors, 4 * 8 / sqrt(12 * 300)
    assert abs(numbers.mean() - 5) < 0.54
    assert drawn_shifts(shifts, 8, "s0")[0].values != drawn_shifts(shifts, 7, "s0")[0].values


def test_decades_are_drawn_by_their_logarithm() -> None:
    drawn = [drawn_shifts((ContrastCurve(gamma=(0.1, 10)),), 1, f"s{i}")[0] for i in range(400)]
    gammas = np.array([d.values["gamma"] for d in drawn], float)
    assert 0.42 < (gammas < 1).mean() < 0.58  # by itself 9 % would lie below 1


def test_the_position_in_the_list_tells_two_equal_shifts_apart() -> None:
    twice = drawn_shifts((Noise(sigma_percent=(1, 9)),) * 2, 1, "a")
    assert twice[0].values != twice[1].values
    assert twice[0].draws("x").random() != twice[1].draws("x").random()
    assert twice[0].draws("x").random() == twice[0].draws("x").random()
    assert twice[0].draws("x").random() != twice[0].draws("y").random()


def test_patterns_and_share_choose_the_sites() -> None:
    shifts = (
        Noise(sigma_percent=1, sites=("north_*",)),
        LabelNoise(probability=0.1, share=0.3),
        Noise(sigma_percent=2, share=0.0),
    )
    kinds = {site: [d.position for d in drawn_shifts(shifts, 3, site)] for site in
             [f"{side}_{i}" for side in ("north", "south") for i in range(200)]}  # fmt: skip
    assert all((0 in found) == site.startswith("north") for site, found in kinds.items())
    affected = np.mean([1 in found for found in kinds.values()])
    assert abs(affected - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 400)
    assert not any(2 in found for found in kinds.values())


def test_words_have_units_and_whole_numbers_are_whole() -> None:
    (drawn,) = drawn_shifts((UvUndersampling(antennas=(5, 30), hours=2),), 1, "a")
    antennas = drawn.values["antennas"]
    assert antennas == round(float(str(antennas)))
    assert drawn.words == (
        f"uv undersampling: antennas {antennas:.0f}, 2 h, declination 45 deg, extent 0.8"
    )
    psf, crowding = drawn_shifts(
        read({"kind": "psf", "seeing_arcsec": 1.4},
             {"kind": "crowding", "per_arcmin2": 1500, "fwhm_arcsec": 1}), 1, "a"
    )  # fmt: skip
    assert psf.words == "psf: seeing 1.4 arcsec, beta 3, native 0 arcsec, moffat"
    assert crowding.words.startswith("crowding: 1500 per arcmin2, faintest 5 x noise")


def test_drawn_shifts_travel_to_worker_processes() -> None:
    drawn = drawn_shifts(read(*KINDS), 1, "a")
    assert pickle.loads(pickle.dumps(drawn)) == drawn  # noqa: S301


@pytest.mark.parametrize(
    ("entry", "plan", "words"),
    [
        ({"kind": "label_noise", "probability": 0.1}, plan_for(), "it is for classification"),
        ({"kind": "annotation_style", "grow_mm": 1}, plan_for("anomaly"), "for segmentation"),
        ({"kind": "resolution", "slice_mm": 5}, plan_for(), "2 dimensions"),
        ({"kind": "psf", "seeing_arcsec": 1}, plan_for(spacing_mm=[1, 1]), "in arcsec"),
        ({"kind": "resolution", "in_plane_mm": 2}, plan_for(pixel_scale_arcsec=1), "in mm"),
        (
            {"kind": "crowding", "per_arcmin2": 1, "fwhm_arcsec": 1, "class_name": "moon"},
            plan_for(),
            "must be one of object",
        ),
    ],
)
def test_a_shift_that_does_not_fit_the_plan_is_refused(
    entry: dict[str, Any], plan: Plan, words: str
) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        check_shifts(read({"kind": "noise", "sigma_percent": 1}, entry), plan)
    assert "shifts.1" in str(caught.value)


def test_an_image_shift_is_refused_for_a_table() -> None:
    values = {
        "name": "t",
        "task": "classification",
        "data": {"kind": "table", "features": ["age"]},
        "model": {"name": "logistic"},
    }
    plan = validate(Plan, values, "test")
    check_shifts(read({"kind": "label_noise", "probability": 0.1}), plan)
    with pytest.raises(SettingsError, match="table"):
        check_shifts(read({"kind": "noise", "sigma_percent": 1}), plan)


def test_settings_made_in_code_are_checked_too() -> None:
    with pytest.raises(ValidationError):
        Noise(sigma_percent=(2, -1))
