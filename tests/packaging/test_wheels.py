"""The three wheels, as a hospital gets them: built, installed without the server, and run."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("dist")
    for folder in ("shared", "client", "."):
        run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out),
             str(ROOT / folder)])  # fmt: skip
    return {path.name.partition("-")[0]: path for path in out.glob("*.whl")}


def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def files_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_no_file_is_in_two_wheels_and_all_have_one_version(wheels: dict[str, Path]) -> None:
    assert set(wheels) == {"asterion_shared", "asterion_client", "asterion"}
    contents = {name: files_of(path) for name, path in wheels.items()}
    assert sum(map(len, contents.values())) == len(set.union(*contents.values()))
    tops = {name: {f.partition("/")[0] for f in files} for name, files in contents.items()}
    assert tops == {
        "asterion_shared": {"asterion_shared"},
        "asterion_client": {"asterion_client"},
        "asterion": {"asterion_server", "asterion_sim"},
    }
    assert len({path.name.split("-")[1] for path in wheels.values()}) == 1


def test_a_site_runs_its_check_without_the_server_installed(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    environment = tmp_path / "site"
    run([sys.executable, "-m", "venv", str(environment)])
    pip = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet", "--constraint",
           str(ROOT / "constraints.txt")]  # fmt: skip
    run([*pip, "torch==2.13.0"])
    run([*pip, str(wheels["asterion_shared"]), str(wheels["asterion_client"])])
    asterion = str(environment / "bin/asterion")
    help_text = run([asterion, "--help"]).stdout
    assert "site" in help_text
    assert "server" not in help_text
    folder = tmp_path / "data"
    folder.mkdir()
    rows = "age,label,patient\n" + "".join(f"{30 + i},{i % 2},p{i}\n" for i in range(20))
    (folder / "patients.csv").write_text(rows)
    (tmp_path / "site.toml").write_text(
        'name = "clinic"\ntask = "classification"\n'
        '[data]\nformat = "table"\nfolder = "data"\ngroup_column = "patient"\n'
    )
    done = run([asterion, "site", "check", str(tmp_path / "site.toml")], cwd=tmp_path)
    assert "Traceback" not in done.stderr
