"""Processes end with their daemon, and are started again when they die."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from asterion_shared import child_process
from asterion_shared.child_process import Service, flower_environment

SLEEPER = (
    "import time; from asterion_shared.child_process import watch_parent;"
    "watch_parent(); print('up', flush=True); time.sleep(60)"
)


def wait_for(condition: object, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_service_that_dies_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_process, "BACK_OFF_SECONDS", (0.2, 0.4))
    service = Service("s", [sys.executable, "-c", SLEEPER], tmp_path / "s.log")
    service.start()
    try:
        wait_for(lambda: "up" in service.last_words())
        assert service.keep_running()
        os.kill(service.pid or 0, signal.SIGKILL)
        wait_for(lambda: service.pid is None)
        assert not service.keep_running()
        assert service.num_starts == 1, "not before its pause is over"
        wait_for(service.keep_running)
        assert service.num_starts == 2
        assert "up" not in service.last_words() or service.log.read_text().count("up") == 2
    finally:
        service.stop()
    assert service.pid is None


def test_a_child_does_not_outlive_a_killed_daemon(tmp_path: Path) -> None:
    daemon = (
        "import sys, time; from pathlib import Path;"
        "from asterion_shared.child_process import Service;"
        f"s = Service('s', [sys.executable, '-c', {SLEEPER!r}], Path({str(tmp_path / 's.log')!r}));"
        "s.start(); print(s.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", daemon], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        wait_for(lambda: "up" in (tmp_path / "s.log").read_text())
        process.kill()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_stubborn_process_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "STOP_SECONDS", 0.5)
    code = "import signal, time; signal.signal(15, lambda *a: None); print('up', flush=True)\n"
    code += "while True: time.sleep(1)"
    service = Service("s", [sys.executable, "-c", code], tmp_path / "s.log")
    service.start()
    wait_for(lambda: "up" in service.last_words())
    service.stop()
    assert service.pid is None


def test_flower_phones_nobody_and_installs_nothing(tmp_path: Path) -> None:
    environment = flower_environment(tmp_path)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert environment["PATH"].startswith(str(Path(sys.executable).parent))
