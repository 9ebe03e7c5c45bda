"""The self-check tells everything in one visit, each with its fix."""

import socket
from pathlib import Path

import nibabel
import numpy as np
import pytest
from astropy.io import fits

from asterion_client.check import check_site
from asterion_shared.errors import FileProblemError, Problem
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate

SKY = """name = "s"
task = "segmentation"
[data]
format = "fits"
folder = "data"
"""
VOLUMES = SKY.replace("fits", "nifti")
PICTURES = SKY.replace("fits", "nifti").replace("segmentation", "classification")
NOISE = np.random.default_rng(1).normal(0, 1, (96, 96)).astype(np.float32)


def site(folder: Path, text: str) -> Path:
    (folder / "data").mkdir(exist_ok=True)
    (folder / "site.toml").write_text(text)
    return folder / "site.toml"


def volume(path: Path, shape: tuple[int, ...] = (6, 6, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.ones(shape, np.int16), np.eye(4)), path)


def plan(**sections: object) -> Plan:
    values: dict[str, object] = {
        "name": "p",
        "task": "segmentation",
        "data": {"patch_size": [16, 16]},
        "model": {"name": "unet"},
    }
    return validate(Plan, values | sections, "plan")


def fatal(problems: list[Problem]) -> list[str]:
    return [problem.where for problem in problems if problem.fatal]


def mentioning(problems: list[Problem], *words: str) -> list[Problem]:
    return [p for p in problems if all(word in str(p) for word in words)]


def sky(path: Path) -> None:
    mask = (NOISE > 1).astype(np.uint8)
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(NOISE, name="SCI"), fits.ImageHDU(mask, name="SEG")]
    fits.HDUList(hdus).writeto(path)


@pytest.mark.parametrize("wanted", [None, plan()])
def test_a_clean_site_has_warnings_alone(tmp_path: Path, wanted: Plan | None) -> None:
    path = site(tmp_path, SKY)
    sky(tmp_path / "data" / "field.fits")
    problems = check_site(path, wanted)
    assert fatal(problems) == []
    assert mentioning(problems, "connection")


def test_a_site_with_many_problems_hears_them_all_at_once(tmp_path: Path) -> None:
    key = tmp_path / "site.key"
    key.write_text("key")
    key.chmod(0o644)
    path = site(
        tmp_path,
        VOLUMES
        + """max_bad_fraction = 7
manifest = "list.csv"
colour = "red"
[connection]
address = "nowhere"
root_certificate = "ca.pem"
private_key = "site.key"
[compute]
device = "cuda:99"
threads = 0
""",
    )
    for name in ("a", "b", "c", "d"):
        volume(tmp_path / "data" / f"{name}.nii")
        volume(tmp_path / "data" / f"{name}_mask.nii", (6, 6, 5) if name == "b" else (6, 6, 6))
    (tmp_path / "data" / "c.nii").write_bytes(b"no image")
    (tmp_path / "data" / "list.csv").write_text(
        "path,label,group,split\n"
        "a.nii,a_mask.nii,p1,train\n"
        "b.nii,b_mask.nii,p2,train\n"
        "c.nii,c_mask.nii,p3,train\n"
        "d.nii,d_mask.nii,p1,test\n"
        "gone.nii,a_mask.nii,p4,test\n"
    )
    problems = check_site(path)
    for words in (
        ("data.max_bad_fraction", "7"),
        ("data.colour", "unknown key"),
        ("compute.threads", "0"),
        ("compute.device", "cuda:99"),
        ("connection.private_key", "0644", "chmod 600"),
        ("connection.root_certificate", "ca.pem"),
        ("'p1'", "more than one split"),
        ("b.nii", "mask", "(6, 6, 5)"),
        ("c.nii", "readable"),
        ("gone.nii", "does not exist"),
    ):
        assert mentioning(problems, *words), words
    assert all(problem.fix for problem in problems)


def test_every_wrong_line_of_a_manifest_is_told(tmp_path: Path) -> None:
    path = site(tmp_path, VOLUMES + 'manifest = "list.csv"\n')
    volume(tmp_path / "data" / "a.nii")
    (tmp_path / "data" / "list.csv").write_text(
        "path,label,split\nx.nii,,train\ny.nii,,train\na.nii,nomask.nii,test\n"
    )
    problems = check_site(path)
    for name in ("x.nii", "y.nii", "nomask.nii"):
        assert mentioning(problems, name, "does not exist"), name
    assert mentioning(problems, "max_bad_fraction", "3 of 3")


def test_without_a_format_the_rest_is_still_checked(tmp_path: Path) -> None:
    text = SKY.replace('format = "fits"\n', "") + '[compute]\ndevice = "cuda:99"\n'
    problems = check_site(site(tmp_path, text))
    assert {"data.format", "compute.device"} <= set(fatal(problems))
    assert not mentioning(problems, "holds no")


def test_no_settings_at_all_is_told(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text("")
    assert {"name", "task", "data"} <= set(fatal(check_site(tmp_path / "site.toml")))
    with pytest.raises(FileProblemError):
        check_site(tmp_path / "other.toml")


def test_a_missing_folder_and_an_empty_one(tmp_path: Path) -> None:
    path = site(tmp_path, SKY)
    assert fatal(check_site(path)) == ["data.folder"]
    (tmp_path / "data").rmdir()
    (problem,) = [p for p in check_site(path) if p.fatal]
    assert "data" in problem.where
    assert "no such folder" in problem.what


def test_one_class_is_a_warning(tmp_path: Path) -> None:
    path = site(tmp_path, PICTURES)
    for name in "abc":
        volume(tmp_path / "data" / "well" / f"{name}.nii")
    problems = check_site(path)
    assert fatal(problems) == []
    assert mentioning(problems, "all 3 records", "'well'")
    wanted = plan(
        task="classification",
        data={"classes": ["well", "ill"], "dimensions": 3, "patch_size": [4, 4, 4]},
        model={"name": "residual"},
    )
    problems = check_site(path, wanted)
    assert fatal(problems) == []
    assert mentioning(problems, "no training record is of class ill")


def test_unmapped_labels_are_told_once_each(tmp_path: Path) -> None:
    path = site(tmp_path, PICTURES + '[data.labels]\nwell = "healthy"\n')
    for label in ("well", "ill", "odd"):
        for name in "ab":
            volume(tmp_path / "data" / label / f"{label}{name}.nii")
    problems = check_site(path)
    assert len(mentioning(problems, "data.labels", "not mapped")) == 2


def test_a_key_that_is_missing_or_open_to_others(tmp_path: Path) -> None:
    connection = (
        '[connection]\ncarrier = "flower"\naddress = "h:1"\n'
        'root_certificate = "ca"\nprivate_key = "key"\n'
    )
    path = site(tmp_path, SKY + connection)
    sky(tmp_path / "data" / "field.fits")
    assert fatal(check_site(path)) == ["connection.root_certificate", "connection.private_key"]
    (tmp_path / "key").write_text("key")
    (tmp_path / "key").chmod(0o600)
    assert fatal(check_site(path)) == ["connection.root_certificate"]
    (tmp_path / "ca").write_text("no certificate")
    assert fatal(check_site(path)) == ["connection.root_certificate"]


def test_an_address_where_nobody_answers(tmp_path: Path, certificate: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    path = site(
        tmp_path,
        f'{SKY}[connection]\ncarrier = "flower"\naddress = "127.0.0.1:{port}"\n'
        f'root_certificate = "{certificate}"\nprivate_key = "key"\n',
    )
    sky(tmp_path / "data" / "field.fits")
    (tmp_path / "key").write_text("key")
    (tmp_path / "key").chmod(0o600)
    (problem,) = [p for p in check_site(path) if p.fatal]
    assert problem.where == "connection.address"
    assert str(port) in problem.what
    assert problem.fix


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate that signs itself."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "ca.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return path


def test_a_state_folder_that_is_a_file(tmp_path: Path) -> None:
    path = site(tmp_path, 'state_folder = "taken"\n' + SKY)
    sky(tmp_path / "data" / "field.fits")
    (tmp_path / "taken").write_text("")
    assert fatal(check_site(path)) == ["state_folder"]


def test_a_plan_for_another_task_or_kind_of_data(tmp_path: Path) -> None:
    path = site(tmp_path, SKY)
    sky(tmp_path / "data" / "field.fits")
    other = plan(task="classification", model={"name": "residual"})
    assert fatal(check_site(path, other)) == ["task"]
    table = plan(
        task="classification",
        data={"kind": "table", "features": ["age"]},
        model={"name": "logistic"},
    )
    (tmp_path / "site.toml").write_text(SKY.replace("segmentation", "classification"))
    (tmp_path / "data" / "well").mkdir()
    sky(tmp_path / "data" / "well" / "field.fits")
    assert fatal(check_site(path, table)) == ["data.format"]


def test_a_field_too_short_for_the_plan_and_its_other_problems(tmp_path: Path) -> None:
    path = site(tmp_path, SKY)
    sky(tmp_path / "data" / "field.fits")
    problems = check_site(path, plan(data={"patch_size": [96, 96], "channels": ["g", "r"]}))
    assert mentioning(problems, "too short")
    assert mentioning(problems, "1 channels")
    assert mentioning(problems, "no record is left")


TABLE = """name = "s"
task = "classification"
[data]
format = "table"
folder = "data"
"""
TABLE_PLAN = plan(
    task="classification",
    data={"kind": "table", "features": ["age", "chol"], "classes": ["well", "ill"]},
    model={"name": "logistic"},
)


def test_a_table_with_strange_cells_labels_and_columns(tmp_path: Path) -> None:
    path = site(tmp_path, TABLE)
    (tmp_path / "data" / "a.csv").write_text(
        "age,label\n40,well\nforty,ill\n50,ill\n60,dead\n70,dead\n"
    )
    problems = check_site(path, TABLE_PLAN)
    assert mentioning(problems, "age", "row 2")
    assert mentioning(problems, "no column 'chol'")
    assert mentioning(problems, "1 of 5")
    assert len(mentioning(problems, "'dead'")) == 1
    assert fatal(check_site(path)) == []


def test_a_table_without_its_label_column(tmp_path: Path) -> None:
    path = site(tmp_path, TABLE)
    (tmp_path / "data" / "a.csv").write_text("age,outcome\n40,well\n")
    (problem,) = [p for p in check_site(path) if p.fatal]
    assert "label_column" in problem.fix
