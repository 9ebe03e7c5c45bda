"""What a site tells of its cases: the plan's words, where its consent names the attribute."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from asterion_client.check_data import check_data
from asterion_client.data.site_data import load_site_data
from asterion_client.plan_review import in_plain_words, review_of
from asterion_client.settings import SiteSettings
from asterion_shared.cases import SiteData
from asterion_shared.errors import SettingsError
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate

ASKED = {"scanner": ["ge", "siemens"], "sex": ["female", "male"]}
TABLE = {"kind": "table", "features": ["age"], "classes": ["well", "ill"]}


def plan_of(data: dict[str, Any], model: str, subgroups: dict[str, Any] = ASKED) -> Plan:
    values = {"name": "p", "task": "classification", "model": {"name": model}, "data": data,
              "evaluation": {"subgroups": subgroups}}  # fmt: skip
    return validate(Plan, values, "plan")


ROWS = plan_of(TABLE, "logistic")
IMAGES = plan_of({"classes": ["well", "ill"], "patch_size": [8, 8]}, "cnn")


def site(format_: str, tells: tuple[str, ...] | None, group: int = 1, **data: Any) -> SiteSettings:
    values = {
        "name": "north", "task": "classification", "data": {"format": format_} | data,
        "egress": {"smallest_group": group},
    }  # fmt: skip
    consent = {} if tells is None else {"consent": {"subgroups": list(tells)}}
    return validate(SiteSettings, values | consent, "site.toml")


def told(data: SiteData) -> list[dict[str, str]]:
    """Of the held-out cases, in order; those to train on tell nothing."""
    assert len(data.train) > 0
    assert not any(case.subgroups for case in data.train)
    return [dict(case.subgroups) for case in data.test]


def table(folder: Path) -> None:
    lines = ["age,label,split,Geschlecht,scanner", "50,well,train,W,GE", "61,ill,train,M,GE",
             "40,well,test, w ,GE MEDICAL SYSTEMS", "41,ill,test,m,Siemens ",
             "42,ill,test,Erika Mustermann,Secret-Prototype 7", "43,well,test,,"]  # fmt: skip
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")


WORDS = {
    "columns": {"Geschlecht": "sex"},
    "subgroup_values": {"W": "female", "m": "male", "GE Medical Systems": "ge"},
}
OTHERS = {"scanner": "other", "sex": "other"}


def test_a_table_is_told_in_the_words_of_the_plan_and_no_others(tmp_path: Path) -> None:
    table(tmp_path)
    found = told(load_site_data(site("table", ("sex", "scanner"), **WORDS), tmp_path, ROWS))
    assert found == [{"scanner": "ge", "sex": "female"}, {"scanner": "siemens", "sex": "male"},
                     OTHERS, OTHERS]  # fmt: skip


@pytest.mark.parametrize(
    ("tells", "group", "attributes"),
    [
        ((), 1, set()),
        (("sex",), 1, {"sex"}),
        (("sex", "age"), 1, {"sex"}),
        (("sex", "scanner"), 2, {"sex", "scanner"}),
        (None, 5, {"sex", "scanner"}),  # a simulation: without [consent] every order is refused
    ],
)
def test_only_what_the_consent_names_is_told(
    tmp_path: Path, tells: tuple[str, ...] | None, group: int, attributes: set[str]
) -> None:
    table(tmp_path)
    found = told(load_site_data(site("table", tells, group, **WORDS), tmp_path, ROWS))
    assert len(found) == 4
    assert all(set(one) == attributes for one in found)


def test_into_a_secure_sum_a_site_that_holds_small_groups_back_tells_none(tmp_path: Path) -> None:
    table(tmp_path)
    summed = {
        "secure_sum": {"max_dropouts": 1, "max_colluders": 1},
        "algorithm": {"max_weight": 20, "clip_norm": 50.0},
        "rounds": {"sites_per_round": 5, "quorum": 3},
    }
    plan = validate(Plan, ROWS.model_dump(exclude_none=True) | summed, "plan")
    for group, attributes in ((1, {"sex"}), (2, set())):
        settings = site("table", ("sex",), group, **WORDS)
        assert all(set(one) == attributes for one in told(load_site_data(settings, tmp_path, plan)))
        said = in_plain_words(review_of(settings, tmp_path, plan, "r", None), settings)
        assert ("as asked: small groups (2) are not held back" in said) == (group == 2)


def test_a_site_with_a_connection_and_no_consent_tells_nothing(tmp_path: Path) -> None:
    table(tmp_path)
    way = {"address": "c:1", "root_certificate": "ca.pem", "private_key": "site.key"}
    settings = site("table", None, **WORDS).model_dump() | {"connection": way}
    found = told(load_site_data(validate(SiteSettings, settings, "s"), tmp_path, ROWS))
    assert found == [{}, {}, {}, {}]


def test_a_manifest_has_columns_for_them(tmp_path: Path) -> None:
    lines = ["path,label,split,sex"]
    for number, (split, sex) in enumerate([("train", "male"), ("train", "female"), ("test", "Male"),
                                           ("test", "diverse")]):  # fmt: skip
        hdu = fits.PrimaryHDU(np.random.default_rng(number).normal(size=(8, 8)))
        hdu.writeto(tmp_path / f"f{number}.fits")
        lines.append(f"f{number}.fits,{('well', 'ill')[number % 2]},{split},{sex}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    settings = site("fits", ("sex", "scanner"), manifest="list.csv")
    assert told(load_site_data(settings, tmp_path, IMAGES)) == [
        {"scanner": "other", "sex": "male"}, OTHERS]  # fmt: skip


def test_a_header_of_fits_says_the_instrument_of_the_image(tmp_path: Path) -> None:
    plan = plan_of(dict(IMAGES.data), "cnn", {"instrument": ["acs", "wfc3"]})
    lines = ["path,label,split"]
    for number, instrument in enumerate(["", "", "", " wfc3 ", "PRIVATE CAMERA"]):
        first, image = fits.PrimaryHDU(), fits.ImageHDU(np.eye(8) + number, name="SCI")
        first.header["INSTRUME"] = "ACS"
        if instrument:
            image.header["INSTRUME"] = instrument
        fits.HDUList([first, image]).writeto(tmp_path / f"{number}.fits")
        side = "train" if number < 2 else "test"
        lines.append(f"{number}.fits,{('well', 'ill')[number % 2]},{side}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    keys = {"instrument": "INSTRUME"}
    settings = site("fits", ("instrument",), manifest="list.csv", subgroup_keys=keys)
    found = told(load_site_data(settings, tmp_path, plan))
    assert [one["instrument"] for one in found] == ["acs", "wfc3", "other"]


def dicom(path: Path, manufacturer: str, value: int) -> None:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"1.2.3.{value + 1}"
    data.PatientName, data.Manufacturer = "Doe^Jane", manufacturer
    data.Rows = data.Columns = 8
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelData = (np.arange(64, dtype=np.uint16) + value).tobytes()
    data.save_as(path, enforce_file_format=True)


def test_a_header_of_dicom_says_the_scanner(tmp_path: Path) -> None:
    lines = ["path,label,split"]
    made = ["GE MEDICAL SYSTEMS", "SIEMENS", "ge", "SIEMENS", "Doe^Jane's own"]
    for number, manufacturer in enumerate(made):
        dicom(tmp_path / f"{number}.dcm", manufacturer, number)
        lines.append(
            f"{number}.dcm,{('well', 'ill')[number % 2]},{'train' if number < 2 else 'test'}"
        )
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    keys = {"scanner": "Manufacturer"}
    settings = site("dicom", ("scanner",), manifest="list.csv", subgroup_keys=keys)
    found = [one["scanner"] for one in told(load_site_data(settings, tmp_path, IMAGES))]
    assert found == ["ge", "siemens", "other"]


def test_an_npz_has_arrays_for_them(tmp_path: Path) -> None:
    arrays = {"images": np.zeros((4, 8, 8), np.float32) + np.arange(4)[:, None, None],
              "labels": np.array([0, 1, 0, 1]),
              "split": np.array(["train", "train", "test", "test"]),
              "sex": np.array(["male", "male", "FEMALE", "x"])}  # fmt: skip
    np.savez(tmp_path / "all.npz", **arrays)
    found = told(load_site_data(site("npz", ("sex", "scanner")), tmp_path, IMAGES))
    assert found == [{"scanner": "other", "sex": "female"}, OTHERS]


def test_keys_are_for_files_with_headers() -> None:
    with pytest.raises(SettingsError, match=r"subgroup_keys is given and data.format is 'table'"):
        site("table", (), subgroup_keys={"sex": "PatientSex"})
    with pytest.raises(SettingsError, match=r"gives two attributes one key"):
        site("dicom", (), subgroup_keys={"sex": "PatientSex", "gender": "PatientSex"})


def test_a_check_says_where_no_record_has_a_value_of_the_plan(tmp_path: Path) -> None:
    table(tmp_path)
    bare = site("table", ("sex", "scanner"), label_column="label")
    said = [str(p) for p in check_data(bare, tmp_path, ROWS) if "subgroups by" in str(p)]
    assert len(said) == 1
    assert "subgroups by sex: none of 6 records says one of: female, male" in said[0]
    mapped = site("table", ("sex", "scanner"), **WORDS)
    assert not [p for p in check_data(mapped, tmp_path, ROWS) if "subgroups by" in str(p)]


def test_a_review_says_what_is_told_and_what_is_not(tmp_path: Path) -> None:
    def review(settings: SiteSettings) -> str:
        return in_plain_words(review_of(settings, tmp_path, ROWS, "r", None), settings)

    said = review(site("table", ("sex",)))
    assert "the same for held-out cases by sex (female, male, other)" in said
    assert "not by scanner (ge, siemens, other), as asked: consent.subgroups does not" in said
