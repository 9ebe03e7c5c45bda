"""``asterion site new`` and what ``start`` says before anything is started."""

from pathlib import Path
from threading import Event

import pytest
from typer.testing import CliRunner

from asterion_client.command_line import app
from asterion_client.daemon import connection_of, run_site
from asterion_client.settings import read_site_settings
from asterion_shared.errors import ConnectionProblemError, FileProblemError, SettingsError

COMBINATIONS = [
    ("segmentation", "nifti"),
    ("segmentation", "fits"),
    ("classification", "dicom"),
    ("classification", "table"),
    ("anomaly", "npz"),
]


def printed(*words: str) -> str:
    result = CliRunner().invoke(app, ["new", *words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


@pytest.mark.parametrize(("task", "data_format"), COMBINATIONS)
def test_new_settings_are_read_back(task: str, data_format: str, tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text(printed(task, data_format, "--name", "north"))
    settings = read_site_settings(path)
    assert (settings.name, settings.task, settings.data.format) == ("north", task, data_format)
    assert settings.consent is not None
    comments = [line for line in path.read_text().splitlines() if line.startswith("# ")]
    assert len(comments) > 20


@pytest.mark.parametrize("words", [("seg", "nifti"), ("anomaly", "jpeg"), ("anomaly", "table")])
def test_a_wrong_task_or_format_is_named(words: tuple[str, str]) -> None:
    with pytest.raises(SettingsError):
        printed(*words)


def test_a_site_without_a_connection_cannot_start(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text('name = "n"\ntask = "anomaly"\n[data]\nformat = "npz"\n')
    with pytest.raises(ConnectionProblemError, match=r"has no \[connection\]"):
        run_site(path, wait_seconds=0, say=print, stop=Event())


def test_a_missing_or_open_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    joined = '[connection]\naddress = "coordinator.example.org:8000"\n'
    joined += 'root_certificate = "ca.pem"\nprivate_key = "site.key"\n'
    path.write_text(printed("anomaly", "npz") + joined)
    settings = read_site_settings(path)
    with pytest.raises(FileProblemError, match=r"ca\.pem: no such file"):
        connection_of(settings, tmp_path)
    (tmp_path / "ca.pem").touch()
    (tmp_path / "site.key").touch(0o644)
    with pytest.raises(FileProblemError, match="chmod 600"):
        connection_of(settings, tmp_path)
    (tmp_path / "site.key").chmod(0o600)
    assert connection_of(settings, tmp_path).address == "coordinator.example.org:8000"
