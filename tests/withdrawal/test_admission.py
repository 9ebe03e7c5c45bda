"""Records without a consent, and observations under embargo, are in no new data set."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from asterion_client.check import check_site
from asterion_client.consent_settings import EmbargoSettings
from asterion_client.data.embargo import under_embargo
from asterion_client.data.site_data import load_site_data
from asterion_client.settings import SiteDataSettings, SiteSettings
from asterion_shared.errors import Problem, SettingsError
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate

TABLE = {"kind": "table", "features": ["a"], "classes": ["well", "ill"]}
IMAGES = {"classes": ["well", "ill"], "patch_size": [8, 8]}
CONSENTS = ("broad", "heart; broad", "", "other", "heart", "broadly")
"""Of six records: the first, second and fifth name one of broad and heart."""


def plan_of(data: dict[str, Any], model: str) -> Plan:
    values = {"name": "p", "task": "classification", "data": data, "model": {"name": model}}
    return validate(Plan, values, "plan")


def site_of(data: dict[str, Any], consent: dict[str, Any]) -> SiteSettings:
    values = {"name": "s", "task": "classification", "data": data, "consent": consent}
    return validate(SiteSettings, values, "site.toml")


def write_table(folder: Path, column: str = "consent") -> None:
    rows = [f"0.{i},{('well', 'ill')[i % 2]},{c}" for i, c in enumerate(CONSENTS)]
    (folder / "a.csv").write_text("\n".join([f"a,label,{column}", *rows]) + "\n")


def write_manifest(folder: Path, column: str = "consent") -> None:
    rows = [f"path,label,{column}"]
    for number, consent in enumerate(CONSENTS):
        write_sky(folder / f"{number}.fits", {}, {"DATE-OBS": "2001-01-01"}, seed=number)
        rows.append(f"{number}.fits,{('well', 'ill')[number % 2]},{consent}")
    (folder / "list.csv").write_text("\n".join(rows) + "\n")


def write_arrays(folder: Path, column: str = "consent") -> None:
    images = np.random.default_rng(0).normal(size=(6, 8, 8))
    more: dict[str, Any] = {column: np.array(CONSENTS)}
    np.savez(folder / "a.npz", images=images, labels=np.arange(6) % 2, **more)


def write_sky(path: Path, first: dict[str, Any], image: dict[str, Any], *, seed: int = 0) -> None:
    pixels = np.random.default_rng(seed).normal(0, 1, (9, 9)).astype(np.float32)
    hdus = [fits.PrimaryHDU(header=fits.Header(first)),
            fits.ImageHDU(pixels, header=fits.Header(image), name="SCI")]  # fmt: skip
    fits.HDUList(hdus).writeto(path)


@pytest.mark.parametrize(
    ("write", "data", "plan"),
    [
        (write_table, {"format": "table"}, plan_of(TABLE, "logistic")),
        (write_manifest, {"format": "fits", "manifest": "list.csv"}, plan_of(IMAGES, "residual")),
        (write_arrays, {"format": "npz"}, plan_of(IMAGES, "residual")),
    ],
)
def test_only_records_of_a_protocol_are_in_a_data_set(
    tmp_path: Path, write: Callable[..., None], data: dict[str, Any], plan: Plan
) -> None:
    write(tmp_path)
    consent = {"protocols": ["broad", "heart"]}
    found = load_site_data(site_of(data, consent), tmp_path, plan, run="r")
    assert len(found.train) + len(found.test) == 3
    everybody = load_site_data(site_of(data, {}), tmp_path, plan)
    assert len(everybody.train) + len(everybody.test) == 6
    ids = {case.id for part in (everybody.train, everybody.test) for case in part}
    data_of_table = {case.id for part in (found.train, found.test) for case in part}
    assert len(data_of_table & ids) >= 1  # a record is the same record, whoever is admitted


@pytest.mark.parametrize(
    ("write", "data", "fix"),
    [
        (write_table, {"format": "table"}, "data.consent_column"),
        (write_manifest, {"format": "fits", "manifest": "list.csv"}, "data.consent_column"),
        (write_arrays, {"format": "npz"}, "store an array 'consent'"),
    ],
)
def test_protocols_without_a_column_are_a_problem_of_the_settings(
    tmp_path: Path, write: Callable[..., None], data: dict[str, Any], fix: str
) -> None:
    write(tmp_path, "einwilligung")
    consent = {"protocols": ["broad"]}
    model, section = ("logistic", TABLE) if data["format"] == "table" else ("residual", IMAGES)
    plan = plan_of(section, model)
    with pytest.raises(SettingsError, match=r"6 of 6 records have no column") as caught:
        load_site_data(site_of(data, consent), tmp_path, plan)
    assert fix in str(caught.value)
    if data["format"] != "npz":
        named = site_of(data | {"consent_column": "einwilligung"}, consent)
        load_site_data(named, tmp_path, plan)


def test_a_folder_without_a_manifest_cannot_name_consents(tmp_path: Path) -> None:
    for number in range(4):
        place = tmp_path / ("well", "ill")[number % 2]
        place.mkdir(exist_ok=True)
        write_sky(place / f"{number}.fits", {}, {})
    with pytest.raises(SettingsError, match=r"data\.manifest, a CSV with the columns path and con"):
        load_site_data(site_of({"format": "fits"}, {"protocols": ["broad"]}), tmp_path,
                       plan_of(IMAGES, "residual"))  # fmt: skip


NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
PERIODS = {"101": 365, "open": 0, "*": 30}


@pytest.mark.parametrize(
    ("first", "image", "days", "embargoed"),
    [
        ({"PROPOSID": 101, "DATE-OBS": "2025-03-11"}, {}, PERIODS, True),
        ({"PROPOSID": 101, "DATE-OBS": "2025-03-09"}, {}, PERIODS, False),
        # A date alone is the end of its day, a time counts to the second.
        ({"PROPOSID": 101, "DATE-OBS": "2025-03-10"}, {}, PERIODS, True),
        ({"PROPOSID": 101, "DATE-OBS": "2025-03-10T11:59:59"}, {}, PERIODS, False),
        ({"PROPOSID": 101, "DATE-OBS": "2025-03-10T12:00:01.5"}, {}, PERIODS, True),
        ({"PROPOSID": "open", "DATE-OBS": "2026-03-10T11:00:00"}, {}, PERIODS, False),
        ({"PROPOSID": "other", "DATE-OBS": "2026-02-01"}, {}, PERIODS, False),
        ({"PROPOSID": "other", "DATE-OBS": "2026-02-20"}, {}, PERIODS, True),
        ({"DATE-OBS": "2026-02-01"}, {}, PERIODS, False),
        ({"DATE-OBS": "2026-02-01"}, {}, {"101": 0}, True),
        ({"PROPOSID": "other", "DATE-OBS": "1990-01-01"}, {}, {"101": 0}, True),
        ({"PROPOSID": "open"}, {}, PERIODS, True),
        ({"PROPOSID": "open", "DATE-OBS": "soon"}, {}, PERIODS, True),
        ({"PROPOSID": "open", "DATE-OBS": "9999-12-31"}, {}, PERIODS, True),
        ({"PROPOSID": 101, "DATE-OBS": "9999-12-30"}, {}, PERIODS, True),
        # No header may name a time zone; of this one the period has half an hour left.
        ({"PROPOSID": 101, "DATE-OBS": "2025-03-10T11:30:00-01:00"}, {}, PERIODS, True),
        ({"PROPOSID": "open", "DATE-OBS": "11/03/98"}, {}, PERIODS, False),
        # The stricter of two headers counts.
        ({"PROPOSID": "open", "DATE-OBS": "2026-02-01"}, {"PROPOSID": 101}, PERIODS, True),
        ({"PROPOSID": 101, "DATE-OBS": "2001-01-01"}, {"DATE-OBS": "2026-02-01"}, PERIODS, True),
    ],
)
def test_an_embargo_by_hand(
    tmp_path: Path, first: dict[str, Any], image: dict[str, Any], days: dict[str, int],
    embargoed: bool,
) -> None:  # fmt: skip
    write_sky(tmp_path / "a.fits", first, image)
    settings = SiteDataSettings(format="fits")
    got = under_embargo(tmp_path / "a.fits", EmbargoSettings(days=days), settings, NOW)
    assert got is embargoed


def test_other_keys_and_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    write_sky(tmp_path / "a.fits", {"OBSID": "x", "MYDATE": "2020-01-01"}, {})
    (tmp_path / "b.fits").write_bytes(b"no header")
    settings, days = SiteDataSettings(format="fits"), {"x": 10}
    keys = EmbargoSettings(days=days, programme_key="OBSID", date_key="MYDATE")
    assert not under_embargo(tmp_path / "a.fits", keys, settings, NOW)
    assert under_embargo(tmp_path / "a.fits", EmbargoSettings(days=days), settings, NOW)
    assert under_embargo(tmp_path / "b.fits", keys, settings, NOW)


def test_an_embargoed_file_is_in_no_new_data_set_and_waits_for_the_next(tmp_path: Path) -> None:
    for number in range(6):
        date = "2999-01-01" if number == 2 else "2001-01-01"
        place = tmp_path / ("well", "ill")[number % 2]
        place.mkdir(exist_ok=True)
        write_sky(place / f"{number}.fits", {"PROPOSID": 1, "DATE-OBS": date}, {}, seed=number)
    plan, data = plan_of(IMAGES, "residual"), {"format": "fits"}
    strict = site_of(data, {"embargo": {"days": {"1": 10}}})
    found = load_site_data(strict, tmp_path, plan, run="r")
    assert len(found.train) + len(found.test) == 5
    # What was frozen goes on as it was, whatever the settings say of embargoes since.
    free = site_of(data, {})
    assert load_site_data(free, tmp_path, plan, run="r").manifest_sha256 == found.manifest_sha256
    assert len(load_site_data(free, tmp_path, plan, run="next").train) == 4


def about(problems: list[Problem], where: str) -> Problem:
    (found,) = [problem for problem in problems if problem.where == where]
    return found


def test_the_check_counts_who_is_left_out_and_names_nobody(tmp_path: Path) -> None:
    head = 'name = "s"\ntask = "classification"\n'
    table = f'{head}[data]\nformat = "table"\n[consent]\nprotocols = ["broad", "heart"]\n'
    (tmp_path / "site.toml").write_text(table)
    write_table(tmp_path)
    for plan in (None, plan_of(TABLE, "logistic")):
        told = about(check_site(tmp_path / "site.toml", plan), "consent.protocols")
        assert (told.what.split(" are ")[0], told.fatal) == ("3 of 6 records", False)
    (tmp_path / "site.toml").write_text(table.replace('"broad", "heart"', '"none"'))
    assert about(check_site(tmp_path / "site.toml"), "consent").fatal
    write_table(tmp_path, "einwilligung")
    missing = about(check_site(tmp_path / "site.toml"), "consent.protocols")
    assert missing.fatal
    assert "data.consent_column" in missing.fix


def test_the_check_counts_embargoes(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(
        'name = "s"\ntask = "classification"\n[data]\nformat = "fits"\n'
        "[consent.embargo]\ndays = { Secret = 10 }\n"
    )
    for number, programme in enumerate(("Secret", "Secret", "Other")):
        place = tmp_path / ("well", "ill")[number % 2]
        place.mkdir(exist_ok=True)
        write_sky(place / f"{number}.fits", {"PROPOSID": programme, "DATE-OBS": "2001-01-01"}, {})
    told = about(check_site(tmp_path / "site.toml"), "consent.embargo")
    assert (told.what.split(" are ")[0], told.fatal) == ("1 of 3 records", False)
    assert "Secret" not in str(told)
    assert "Other" not in str(told)
