"""What compose.yaml and the Containerfiles say; no image is built here."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from asterion_client.command_line import app as site_app
from asterion_server.command_line import app as server_app
from asterion_shared import __version__

DEPLOY = Path(__file__).parents[2] / "deploy"
CONTAINERFILES = sorted((DEPLOY / "containers").iterdir())
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def instructions(path: Path) -> list[tuple[str, str]]:
    joined = path.read_text().replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def parsed(words: list[str]) -> None:
    command = typer.main.get_command({"site": site_app, "server": server_app}[words[0]])
    command.commands[words[1]].make_context(words[1], words[2:])  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", CONTAINERFILES, ids=lambda path: path.name)
def test_containers_run_commands_that_exist_as_nobody_in_particular(path: Path) -> None:
    found = instructions(path)
    last = dict(found)
    assert last["USER"] == "10001:10001"
    assert [word for word, _ in found].index("USER") > [word for word, _ in found].index("RUN")
    assert last["ENTRYPOINT"] == '["asterion"]'
    parsed(yaml.safe_load(last["CMD"]))
    health = yaml.safe_load(last["HEALTHCHECK"].split("CMD", 1)[1])
    assert health[0] == "asterion"
    parsed(health[1:])
    for _, words in found:
        for install in re.findall(r"pip install (.*?)(?:&&|$)", words):
            assert "--constraint /build/constraints.txt" in install
    for base in (words for word, words in found if word == "FROM"):
        assert base.split()[0] == "${BASE}"
    [pinned] = {words for word, words in found if word == "ARG" and words.startswith("BASE=")}
    assert re.fullmatch(r"BASE=python:3\.1[123]-slim-bookworm", pinned)
    assert shlex.split(last["COPY"])[0] == "--from=build"  # no compiler, no wheel in the image


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_shut_but_for_what_they_need(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "env_file"} & set(service)
    assert service["logging"]["options"] == {"max-size": "20m", "max-file": "2"}
    assert set(service.get("networks", ())) <= set(COMPOSE["networks"])
    assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
    written = [text.split(":") for text in service["volumes"]]
    for source, _, *mode in written:
        assert source in COMPOSE["volumes"] or (source.startswith("./") and mode == ["ro"])
    for port in service.get("ports", ()):
        # The link is for sites; everything else is for this machine alone.
        assert port == "8000:8000" or port.startswith("127.0.0.1:")
    image = service["image"]
    assert image.endswith(f":{__version__}") or re.fullmatch(r"postgres:\d+\.\d+-bookworm", image)
    if "build" in service:
        context = (DEPLOY / service["build"]["context"]).resolve()
        assert (context / service["build"]["dockerfile"]).is_file()
        assert (context / "constraints.txt").is_file()


def test_passwords_come_from_files_and_the_queue_has_no_way_out() -> None:
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            secret = "PASS" in name
            assert not secret or value.removeprefix("/run/secrets/") in service["secrets"]
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    assert COMPOSE["networks"]["queue"] == {"internal": True}
    assert SERVICES["database"]["networks"] == ["queue"]
    assert "ports" not in SERVICES["database"]


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="no docker-compose")
@pytest.mark.parametrize(("spoilt", "code"), [(False, 0), (True, 1)])
def test_compose_takes_the_file(spoilt: bool, code: int, tmp_path: Path) -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    # Version 1 of the program does not know the project's name in the file.
    text = re.sub(r"^name: .*\n", "", text, flags=re.MULTILINE)
    (tmp_path / "compose.yaml").write_text(
        text.replace("pids_limit", "pids_most") if spoilt else text
    )
    words = ["docker-compose", "-f", str(tmp_path / "compose.yaml"), "config", "--quiet"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr


def test_the_page_says_what_was_not_tried() -> None:
    page = (DEPLOY / "README.md").read_text()
    assert "No image was built" in page
    for name in ("compose.yaml", *(f"containers/{path.name}" for path in CONTAINERFILES)):
        assert f"`{name}`" in page
