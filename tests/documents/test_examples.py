"""Every example of the documents runs.

In a fenced block ``console``, each line that starts with ``$ `` is run by a shell, in order, all
blocks of a file in one folder. ``# exits N`` after a command gives the exit code that it must end
with (0 without). A command that ends in ``&`` goes on in the background until the file is done. In
a block ``toml``, the first line names the file it is written to: ``# plan.toml``.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(console|toml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (.*?)(?:  # exits (\d+))?$", re.MULTILINE)
DOCUMENTS = sorted(
    p for p in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")] if FENCE.search(p.read_text())
)


@pytest.mark.live
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_example_runs(document: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    background: list[subprocess.Popen[bytes]] = []
    try:
        for kind, body in FENCE.findall(document.read_text(encoding="utf-8")):
            if kind == "toml":
                name = body.partition("\n")[0].removeprefix("# ")
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(body, encoding="utf-8")
                continue
            for command, code in COMMAND.findall(body):
                if command.startswith(("make ", "git ")):
                    continue  # .ci/run calls them on the checkout itself.
                if command.endswith("&"):
                    background.append(_start(command.rstrip("& "), tmp_path, environment))
                    continue
                done = subprocess.run(
                    command, shell=True, cwd=tmp_path, env=environment, timeout=300,
                    capture_output=True, text=True, check=False,
                )  # fmt: skip
                assert done.returncode == int(code or 0), f"{command}\n{done.stdout}{done.stderr}"
                assert "Traceback" not in done.stderr
    finally:
        for process in background:
            os.killpg(process.pid, signal.SIGTERM)
        for process in background:
            process.wait(timeout=30)


def _start(command: str, folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command, shell=True, cwd=folder, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(5)
    assert process.poll() is None, f"{command} ended at once"
    return process
