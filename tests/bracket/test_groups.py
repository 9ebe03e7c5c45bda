"""Which cases belong to one patient: known to the bootstrap, readable by nobody."""

import csv
from pathlib import Path

import numpy as np

from asterion_shared.cases import SiteData
from asterion_shared.plan import Plan, parse_plan
from asterion_sim.prepare_common import write_arrays, write_csv, write_site
from asterion_sim.virtual_cohort import read_virtual_sites

IMAGES = parse_plan(
    '{"name": "i", "task": "classification", "model": {"name": "residual"},'
    ' "data": {"patch_size": [8, 8]}}'
)
NAMES = ["mueller", "mueller", "smith", "smith", "jones", "jones"]


def read(plan: Plan, folder: Path) -> SiteData:
    (data,) = read_virtual_sites(plan, [folder]).data.values()
    return data


def groups(data: SiteData) -> list[str]:
    return [case.group for part in (data.train, data.test) for case in part]


def npz_site(folder: Path, seed: int) -> Path:
    images = np.random.default_rng(seed).integers(0, 255, (6, 8, 8)).astype(np.uint8)
    split = ["train", "train", "train", "train", "test", "test"]
    write_arrays(
        folder / "a.npz",
        {"images": images, "labels": np.array([0, 1] * 3), "group": np.array(NAMES),
         "split": np.array(split)},
    )  # fmt: skip
    return write_site(folder, name=folder.name, task="classification", data={"format": "npz"})


def test_cases_of_a_patient_share_a_hash_that_names_nobody(tmp_path: Path) -> None:
    found = groups(read(IMAGES, npz_site(tmp_path / "a", 1)))
    assert [found.index(group) for group in found] == [0, 0, 2, 2, 4, 4]
    assert all(len(group) == 12 and int(group, 16) >= 0 for group in found)
    assert found == groups(read(IMAGES, tmp_path / "a"))
    # the same names elsewhere: nothing in common
    assert not set(found) & set(groups(read(IMAGES, npz_site(tmp_path / "b", 2))))


def test_rows_of_a_table_have_their_group(tmp_path: Path, plan: Plan) -> None:
    rows = [[n, n * 2, -n, n % 2, name] for n, name in enumerate(NAMES)]
    write_csv(tmp_path / "a" / "t.csv", ("a", "b", "c", "label", "patient"), rows)
    with (tmp_path / "a" / "t.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    write_site(
        tmp_path / "a", name="a", task="classification",
        data={"format": "table", "label_column": "label", "group_column": "patient",
              "labels": {"0": "well", "1": "ill"}},
    )  # fmt: skip
    data = read(plan, tmp_path / "a")
    train, test = ({case.group for case in part} for part in (data.train, data.test))
    assert len(train | test) == 3
    assert not train & test
