"""Tables as a site's training sees them: its own scale, missing cells and columns, bad cells."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asterion_client.data.site_data import load_site_data
from asterion_client.settings import SiteSettings
from asterion_shared.errors import DataProblemError, FileProblemError
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate
from asterion_shared.table_columns import column_names

TABLE = validate(
    Plan,
    {
        "name": "t",
        "task": "classification",
        "data": {
            "kind": "table",
            "features": ["age", "cp", "chol", "gone"],
            "categorical": ["cp=1|2|3"],
            "classes": ["well", "ill"],
        },
        "model": {"name": "logistic"},
    },
    "plan",
)


def rows(folder: Path, *lines: str) -> None:
    header = "years,cp,chol,outcome,patient,split"
    (folder / "t.csv").write_text("\n".join([header, *lines]) + "\n")


COLUMNS = {"label_column": "outcome", "group_column": "patient", "columns": {"years": "age"}}


def site(format_: str, **data: Any) -> SiteSettings:
    values = {"name": "site", "task": "classification", "data": {"format": format_} | data}
    return validate(SiteSettings, values, "site")


def test_a_table_with_missing_columns_and_cells(tmp_path: Path) -> None:
    rows(
        tmp_path,
        "40,1,200,well,a,train",
        "60,3,,ill,b,train",
        "50,,NA,well,c,train",
        "90,2,300,ill,d,test",
    )
    data = load_site_data(site("table", **COLUMNS), tmp_path, TABLE)
    names = column_names(TABLE.data)
    assert names == ("age", "age is missing", "cp=1", "cp=2", "cp=3", "chol", "chol is missing",
                     "gone", "gone is missing")  # fmt: skip
    table = np.stack([case.image for case in (*data.train, *data.test)])
    spread = np.sqrt(200 / 3)  # of 40, 60, 50 alone: the test row has no say
    np.testing.assert_allclose(table[:, 0], (np.array([40, 60, 50, 90]) - 50) / spread, rtol=1e-6)
    assert table[:, 2:5].tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert table[:, 6].tolist() == [0, 1, 1, 0]
    assert table[1:3, 5].tolist() == [0, 0], "a missing number is the mean"
    assert (table[:, 7] == 0).all(), "a column the site lacks says nothing"
    assert (table[:, 8] == 1).all()
    assert [case.label for case in data.train] == [0, 1, 0]


def test_a_cell_that_is_no_number_counts_as_a_bad_record(tmp_path: Path) -> None:
    rows(tmp_path, *[f"{40 + i},1,200,well,a{i},train" for i in range(11)], "old,1,2,ill,z,train")
    data = load_site_data(site("table", **COLUMNS), tmp_path, TABLE)
    assert (len(data.train), data.num_bad_files) == (11, 1)
    assert "age of row 12" in next(iter(data.bad_files.values()))


def test_a_label_column_that_is_not_there(tmp_path: Path) -> None:
    rows(tmp_path, "40,1,200,well,a,train")
    settings = site("table", label_column="diagnosis")
    with pytest.raises(FileProblemError, match=r"diagnosis.*label_column"):
        load_site_data(settings, tmp_path, TABLE)


def test_tables_and_images_are_not_taken_for_each_other(tmp_path: Path) -> None:
    rows(tmp_path, "40,1,200,well,a,train")
    table = site("table", **COLUMNS)
    images = {"name": "t", "task": "classification", "model": {"name": "residual"}}
    for settings, plan in ((table, validate(Plan, images, "plan")), (site("npz"), TABLE)):
        with pytest.raises(DataProblemError) as caught:
            load_site_data(settings, tmp_path, plan)
        assert caught.value.code == "wrong_task"
