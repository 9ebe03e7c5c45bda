"""The installer of a site, run for real: below a folder, and as root on a machine of its own."""

import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import typer.main

from asterion_client.command_line import app
from asterion_client.settings import read_site_settings

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy/install-site.sh"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("dist")
    for folder in ("shared", "client"):
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
        subprocess.run([*command, str(ROOT / folder)], check=True, capture_output=True)
    return sorted(out.glob("*.whl"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheels need, as it is installed here; nothing of Asterion."""
    folder = tmp_path_factory.mktemp("others")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "asterion" not in path.name and path.suffix != ".pth" and path.name[:3] != "pip":
            (folder / path.name).symlink_to(path)
    return folder


def install(
    root: Path, others: Path, *words: object, before: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    given = ["--root", str(root), "--python", sys.executable] if not before else []
    return subprocess.run(
        [*before, "sh", str(SCRIPT), *given, *map(str, words)], capture_output=True, text=True,
        check=False, cwd="/", env=os.environ | {"PYTHONPATH": str(others), "PIP_NO_INDEX": "1"},
    )  # fmt: skip


def with_requirement(wheel: Path, folder: Path, requirement: str) -> Path:
    """The same wheel, asking for one more package."""
    changed = folder / wheel.name
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("/METADATA"):
                more = f"\nRequires-Dist: {requirement}\nRequires-Dist:".encode()
                content = content.replace(b"\nRequires-Dist:", more, 1)
            new.writestr(name, content)
    return changed


def test_two_wheels_make_a_site_and_once_more_changes_nothing(
    wheels: list[Path], others: Path, tmp_path: Path
) -> None:
    done = install(tmp_path, others, "--task", "classification", "--format", "table", *wheels)
    assert done.returncode == 0, done.stderr
    program = tmp_path / "opt/asterion"
    assert program.is_symlink()
    units = tmp_path / "etc/systemd/system"
    assert {path.name for path in units.iterdir()} == {
        "asterion-site.service", "asterion-site-status.service", "asterion-site-status.timer"
    }  # fmt: skip
    for path in units.iterdir():
        assert path.read_bytes() == (ROOT / "deploy/systemd" / path.name).read_bytes()
    site = tmp_path / "etc/asterion/site"
    settings = read_site_settings(site / "site.toml")
    assert (settings.task, settings.data.format) == ("classification", "table")
    assert settings.state_folder == "/var/lib/asterion"
    for folder in (site, tmp_path / "var/lib/asterion"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((site / "site.toml").stat().st_mode) == 0o600
    assert "enable --now asterion-site.service asterion-site-status.timer" in done.stdout
    told_next = re.findall(r"sudo -u asterion /opt/asterion/bin/asterion site (.*)", done.stdout)
    assert [words.split()[0] for words in told_next] == ["init", "join", "check"]
    for words in told_next:
        name, *rest = words.split()
        typer.main.get_command(app).commands[name].make_context(name, rest)  # type: ignore[attr-defined]
    told = subprocess.run(
        [program / "bin/asterion", "site", "check", site / "site.toml"],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(others)},
    )  # fmt: skip
    assert told.returncode == 12  # it has not joined yet
    assert "no such folder" in told.stdout

    (site / "site.toml").write_text("# mine\n")
    began = (program / "complete").stat().st_mtime_ns
    done = install(tmp_path, others, "--gpu", *wheels)
    assert done.returncode == 0, done.stderr
    assert (site / "site.toml").read_text() == "# mine\n"
    assert (program / "complete").stat().st_mtime_ns == began
    assert "char-nvidia" in (units / "asterion-site.service.d/gpu.conf").read_text()


def test_an_upgrade_that_fails_leaves_what_was_there(
    wheels: list[Path], others: Path, tmp_path: Path
) -> None:
    assert install(tmp_path, others, *wheels).returncode == 0
    link = tmp_path / "opt/asterion"
    before = link.readlink()
    client, shared = wheels
    assert client.name.startswith("asterion_client")
    broken = with_requirement(client, tmp_path, "no-package-of-this-name-asterion")
    failed = install(tmp_path, others, broken, shared)
    assert failed.returncode != 0
    assert "no-package-of-this-name-asterion" in failed.stderr
    assert link.readlink() == before
    newer = with_requirement(client, tmp_path, "numpy")
    done = install(tmp_path, others, newer, shared)
    assert done.returncode == 0, done.stderr
    assert link.readlink() != before
    assert (link.parent / before / "complete").exists()  # the way back


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "give the two wheels once each"),
        (["absent/asterion_client-0.1.0-py3-none-any.whl"], "does not exist"),
        (["other-1.0.whl"], "neither"),
        (["--color"], "unknown option --color"),
        (["--python"], "--python needs a value"),
    ],
)
def test_mistakes_are_named_and_nothing_is_made(
    words: list[str], problem: str, others: Path, tmp_path: Path
) -> None:
    done = install(tmp_path / "root", others, *words)
    assert done.returncode == 2
    assert problem in done.stderr
    assert not (tmp_path / "root").exists()


def test_wheels_of_two_versions_are_refused(
    wheels: list[Path], others: Path, tmp_path: Path
) -> None:
    other = tmp_path / wheels[1].name.replace("-0.", "-9.")
    shutil.copy(wheels[1], other)
    done = install(tmp_path / "root", others, wheels[0], other)
    assert (done.returncode, "different versions" in done.stderr) == (2, True)


MACHINE = """
mount -t tmpfs tmpfs /opt
mkdir /opt/up /opt/work /opt/up2 /opt/work2
mount -t overlay overlay -o lowerdir=/etc,upperdir=/opt/up,workdir=/opt/work /etc
mount -t overlay overlay -o lowerdir=/var/lib,upperdir=/opt/up2,workdir=/opt/work2 /var/lib
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="making a user needs root")
def test_as_root_it_makes_the_user_that_owns_settings_and_state(
    wheels: list[Path], others: Path, tmp_path: Path
) -> None:
    """In mounts of its own: nothing of this machine's /etc, /opt and /var/lib is changed."""
    look = "stat -c '%U %a %n' /etc/asterion/site /etc/asterion/site/site.toml /var/lib/asterion"
    # "$@" is sh, the installer and its words; twice, as after an upgrade.
    script = f'{MACHINE}"$@" && "$@" && {look} && id asterion'
    machine = ("unshare", "--mount", "sh", "-c", script, "machine")
    done = install(tmp_path, others, "--python", sys.executable, *wheels, before=machine)
    assert done.returncode == 0, done.stderr
    for line in (
        "asterion 700 /etc/asterion/site", "asterion 600 /etc/asterion/site/site.toml",
        "asterion 700 /var/lib/asterion", "(asterion) groups=",
    ):  # fmt: skip
        assert line in done.stdout
    assert not Path("/opt/asterion").exists()
    assert not Path("/var/lib/asterion").exists()
