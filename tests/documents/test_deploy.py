"""What deploy/ holds is read by the programs that will read it, and says what the guides say."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest
import typer.main

from asterion_client.command_line import app as site_app
from asterion_client.settings import read_site_settings
from asterion_server.command_line import app as server_app

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted(p for p in (DEPLOY / "systemd").iterdir() if p.suffix != ".conf")
SERVICES = [path for path in UNITS if path.suffix == ".service"]
DAEMONS = [path for path in UNITS if path.name in
           ("asterion-site.service", "asterion-coordinator.service")]  # fmt: skip
EXAMPLES = sorted((DEPLOY / "examples").glob("*.toml"))
APPS = {"site": site_app, "server": server_app}


def unit(path: Path) -> configparser.ConfigParser:
    # systemd takes several lines of a name; the last one stands here.
    found = configparser.ConfigParser(interpolation=None, strict=False)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read_string(path.read_text())
    return found


def parsed(words: list[str]) -> None:
    """Have the command line itself read a command, without running it."""
    command = typer.main.get_command(APPS[words[0]])
    assert isinstance(command, click.Group) or hasattr(command, "commands")
    command.commands[words[1]].make_context(words[1], words[2:])  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_call_commands_that_exist(path: Path) -> None:
    for section, values in unit(path).items():
        for name, line in values.items():
            if name.startswith("Exec"):
                assert section == "Service"
                program, *words = line.split()
                assert program == "/opt/asterion/bin/asterion"
                parsed(words)
    for words in re.findall(r"^#   asterion (.*?)(?: \.\.\.)?$", path.read_text(), re.MULTILINE):
        parsed(words.split())


@pytest.mark.parametrize("path", DAEMONS, ids=lambda path: path.name)
def test_daemons_are_started_again_for_ever_and_keep_their_files_to_themselves(path: Path) -> None:
    found = unit(path)
    assert found["Unit"]["StartLimitIntervalSec"] == "0"
    service = found["Service"]
    assert (service["Restart"], service["User"]) == ("always", "asterion")
    assert (service["UMask"], service["StateDirectoryMode"]) == ("0077", "0700")
    assert service["ProtectSystem"] == "strict"
    assert not {name for name in service if name.startswith(("RestartPrevent", "SuccessExit"))}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_reads_the_units(tmp_path: Path) -> None:
    for path in UNITS:  # the programs are not installed here
        text = path.read_text().replace("/opt/asterion/bin/asterion", "/bin/true")
        (tmp_path / path.name).write_text(text.replace("User=asterion", "User=root"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, tmp_path.iterdir())],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "asterion" in line]
    assert ours == []


MOST_EXPOSURE = 2.0
"""Of systemd-analyze security, 0 to 10; above 1 is what it calls OK, above 4 MEDIUM."""


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_units_are_hardened_and_the_page_has_their_exposure(path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(path)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found is not None
    assert float(found[1]) <= MOST_EXPOSURE
    row = next(
        line for line in (DEPLOY / "README.md").read_text().splitlines()
        if line.startswith(f"| `{path.name}` |")
    )  # fmt: skip
    [told] = re.findall(r"\| ([\d.]+) \|", row)
    # Versions of systemd look at a few settings more or less.
    assert float(found[1]) == pytest.approx(float(told), abs=0.5)


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_no_service_removes_what_its_user_shares_or_writes_core_files(path: Path) -> None:
    """RemoveIPC= of one unit would take the shared memory of another unit of the same user."""
    service = unit(path)["Service"]
    assert "RemoveIPC" not in service
    assert (service["LimitCORE"], service["CapabilityBoundingSet"]) == ("0", "")
    # A write and execute limit breaks torch's convolutions; where none are made it is set.
    assert ("MemoryDenyWriteExecute" in service) == ("status" in path.name)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_hold_and_are_of_the_link(path: Path) -> None:
    connection = read_site_settings(path).connection
    assert connection is not None
    assert connection.carrier == "link"
    assert connection.certificate == "site.pem"
    assert connection.peers == "peers"


def test_every_file_is_named_in_the_page() -> None:
    page = (DEPLOY / "README.md").read_text()
    for path in EXAMPLES:
        assert f"`examples/{path.name}`" in page
    assert {path.suffix for path in UNITS} == {".service", ".timer"}
    for path in UNITS:
        assert f"`systemd/{path.stem}.service`" in page
    assert "`systemd/asterion-site-gpu.conf`" in page
    assert "`install-site.sh`" in page
