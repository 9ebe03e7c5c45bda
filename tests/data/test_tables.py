"""Tables: missing columns and cells, codes, standardisation, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asterion_client.data.raw_image import UnreadableFileError
from asterion_client.data.site_data import load_site_data
from asterion_client.data.table import feature_values, read_rows
from asterion_client.settings import SiteDataSettings, SiteSettings
from asterion_shared.errors import DataProblemError, FileProblemError
from asterion_shared.plan import DataContract, Plan
from asterion_shared.settings_files import validate
from asterion_shared.table_columns import Scale, column_names, scale_of, table_width, to_columns

CONTRACT = DataContract(
    kind="table",
    features=("age", "cp", "chol"),
    categorical=("cp=1|2|4",),
    classes=("well", "ill"),
)
TABLE = SiteDataSettings(format="table")
NAN = np.nan


def store(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding)
    return path


def test_columns_by_name_whatever_their_order(tmp_path: Path) -> None:
    path = store(tmp_path / "a.csv", "chol, other,age,label,cp\n200,x,50,ill,2\n")
    np.testing.assert_array_equal(feature_values(path, 0, CONTRACT, TABLE), [50, 2, 200])


def test_the_sites_own_column_names(tmp_path: Path) -> None:
    path = store(tmp_path / "a.csv", "Alter,cp,chol\n50,2,200\n")
    mapped = SiteDataSettings(format="table", columns={"Alter": "age"})
    np.testing.assert_array_equal(feature_values(path, 0, CONTRACT, mapped), [50, 2, 200])


@pytest.mark.parametrize("cell", ["", " ", "NA", "?", "NaN", "null", "inf"])
def test_missing_cells_and_columns_are_missing(tmp_path: Path, cell: str) -> None:
    path = store(tmp_path / "a.csv", f"age,cp\n{cell},2\n")
    np.testing.assert_array_equal(feature_values(path, 0, CONTRACT, TABLE), [NAN, 2, NAN])


@pytest.mark.parametrize("cell", ["old", "5O", "1,5", "0x10"])
def test_a_cell_that_is_no_number_is_named_by_column_and_row_only(
    tmp_path: Path, cell: str
) -> None:
    path = store(tmp_path / "a.csv", f'age,cp,chol\n1,1,1\n"{cell}",2,3\n')
    with pytest.raises(UnreadableFileError, match="column age of row 2") as caught:
        feature_values(path, 1, CONTRACT, TABLE)
    assert cell not in str(caught.value)


def test_a_mark_before_the_header_is_no_part_of_it(tmp_path: Path) -> None:
    path = store(tmp_path / "a.csv", "age,cp\n50,1\n\n60,2\n", encoding="utf-8-sig")
    assert [row["age"] for row in read_rows(path)] == ["50", "60"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "columns"),
        ("age,age\n1,2\n", "name of its own"),
        ("age,cp\n1\n", "line 2 has 1 cells"),
        ("age,cp\n1,2\n1,2,3\n", "line 3 has 3 cells"),
    ],
)
def test_a_broken_table_is_a_problem_of_the_file(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(FileProblemError, match=words):
        read_rows(store(tmp_path / "a.csv", text))


def test_another_encoding_or_no_file_is_a_problem_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileProblemError, match="UTF-8"):
        read_rows(store(tmp_path / "a.csv", "größe\n1\n", encoding="latin-1"))
    with pytest.raises(FileProblemError):
        read_rows(tmp_path / "missing.csv")


def test_numbers_get_a_missing_column_and_codes_a_column_each() -> None:
    assert column_names(CONTRACT) == (
        "age", "age is missing", "cp=1", "cp=2", "cp=4", "chol", "chol is missing",
    )  # fmt: skip
    assert table_width(CONTRACT) == 7
    rows = np.array([[50, 2, NAN], [70, 4, 200], [NAN, 3, 100], [60, NAN, 300]])
    scale = Scale(np.array([60.0, 0, 200]), np.array([10.0, 1, 50]))
    expected = [
        [-1, 0, 0, 1, 0, 0, 1],
        [1, 0, 0, 0, 1, 0, 0],
        [0, 1, 0, 0, 0, -2, 0],
        [0, 0, 0, 0, 0, 2, 0],
    ]
    np.testing.assert_array_equal(to_columns(rows, CONTRACT, scale), expected)


def test_mean_and_deviation_by_hand() -> None:
    rows = np.array([[1, 5, NAN], [3, 5, NAN], [NAN, 5, NAN]])
    scale = scale_of(rows, CONTRACT)
    np.testing.assert_allclose(scale.mean, [2, 5, 0])
    np.testing.assert_allclose(scale.deviation, [1, 1, 1])
    empty = scale_of(np.empty((0, 3)), CONTRACT)
    np.testing.assert_array_equal(empty.mean, [0, 0, 0])
    np.testing.assert_array_equal(empty.deviation, [1, 1, 1])


def test_the_plans_scale_wins_so_that_no_row_changes_another() -> None:
    fixed = CONTRACT.model_copy(update={"scale": {"age": (50.0, 10.0)}})
    rows = np.array([[1.0, 5, 7], [3, 5, 9]])
    for some in (rows, rows[:1], rows[:0]):
        scale = scale_of(some, fixed)
        assert (scale.mean[0], scale.deviation[0]) == (50.0, 10.0)
    np.testing.assert_allclose(scale_of(rows, fixed).mean, [50, 5, 8])


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(*[st.one_of(st.just(NAN), st.floats(-1e6, 1e6))] * 3), min_size=1, max_size=20
    )
)
def test_whatever_the_rows_the_columns_are_finite(rows: list[tuple[float, ...]]) -> None:
    values = np.array(rows)
    columns = to_columns(values, CONTRACT, scale_of(values, CONTRACT))
    assert columns.shape == (len(rows), 7)
    assert np.isfinite(columns).all()
    np.testing.assert_array_equal(columns[:, 1] == 1, np.isnan(values[:, 0]))


def plan() -> Plan:
    values = {
        "name": "t",
        "task": "classification",
        "data": CONTRACT.model_dump(),
        "model": {"name": "logistic"},
    }
    return validate(Plan, values, "plan")


def site(**data: object) -> SiteSettings:
    values = {"name": "s", "task": "classification", "data": {"format": "table"} | data}
    return validate(SiteSettings, values, "site.toml")


ROWS = ["50,1,100,well,train", "70,2,300,ill,train", "90,4,500,ill,test"]


def store_site(folder: Path, *rows: str, header: str = "age,cp,chol,label,split") -> None:
    store(folder / "a.csv", "\n".join([header, *rows]) + "\n")


def test_standardised_by_the_training_rows_alone(tmp_path: Path) -> None:
    store_site(tmp_path, *ROWS)
    data = load_site_data(site(), tmp_path, plan())
    found = np.stack([case.image for case in data.train])
    np.testing.assert_allclose(found[:, 0], [-1, 1])  # mean 60, deviation 10
    np.testing.assert_allclose(found[:, 5], [-1, 1])
    (held_out,) = data.test
    np.testing.assert_allclose(held_out.image, [3, 0, 0, 0, 1, 3, 0])
    assert [case.label for case in data.train] == [0, 1]


def test_a_bad_cell_is_skipped_counted_and_kept_out_of_the_scale(tmp_path: Path) -> None:
    store_site(tmp_path, *ROWS, "oops,1,100,well,train", *ROWS[:2])
    with pytest.raises(DataProblemError) as caught:
        load_site_data(site(), tmp_path, plan())
    assert caught.value.code == "too_many_bad_files"
    data = load_site_data(site(max_bad_fraction=0.2), tmp_path, plan())
    assert data.num_bad_files == 1
    assert len(data.train) == 4
    assert [round(float(case.image[0]), 5) for case in data.train] == [-1, 1, -1, 1]
    ((key, reason),) = data.bad_files.items()
    assert len(key) == 12
    assert "row 4" in reason


def test_patients_stay_together_and_a_wrong_column_name_is_said(tmp_path: Path) -> None:
    header = "age,cp,chol,label,patient"
    rows = [f"{40 + i},1,100,{'ill' if i % 2 else 'well'},p{i // 2 % 6}" for i in range(24)]
    store_site(tmp_path, *rows, header=header)
    data = load_site_data(site(group_column="patient"), tmp_path, plan())
    assert len(data.train) + len(data.test) == 24
    assert len(data.train) % 4 == len(data.test) % 4 == 0
    assert len(data.test) > 0
    for wrong in ({"group_column": "patent"}, {"label_column": "outcome"}):
        with pytest.raises(FileProblemError, match="no column"):
            load_site_data(site(**wrong), tmp_path, plan())


def test_a_split_of_another_name_is_refused(tmp_path: Path) -> None:
    store_site(tmp_path, ROWS[0].replace("train", "validation"))
    with pytest.raises(FileProblemError, match="validation"):
        load_site_data(site(), tmp_path, plan())
