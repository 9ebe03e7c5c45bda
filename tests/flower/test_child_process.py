"""Processes end with their daemon, and are started again when they die."""

import os
import resource
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


WRITER = """
import time
for number in range(60_001):
    print(f"line {number:011d}", flush=True)
    if number % 100 == 0:
        time.sleep(0.005)
open("done", "w").close()
time.sleep(60)
"""


def test_the_log_of_a_process_that_runs_stays_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """17 bytes a line, 1 MB in all, while the daemon looks after it."""
    monkeypatch.setattr(child_process, "MOST_LOG_BYTES", 100_000)
    monkeypatch.chdir(tmp_path)
    service = Service("s", [sys.executable, "-c", WRITER], tmp_path / "s.log")
    service.start()
    begun, aside, largest = service.pid, tmp_path / "s.1.log", 0
    try:
        until = time.monotonic() + 60
        while not (tmp_path / "done").exists():
            assert time.monotonic() < until
            largest = max(largest, service.log.stat().st_size)
            assert service.keep_running()
            time.sleep(0.001)
        assert service.pid == begun
    finally:
        service.stop()
    assert largest < 500_000
    assert 100_000 < aside.stat().st_size < 500_000
    kept = service.log.read_text().splitlines()
    assert kept[-1] == "line 00000060000"
    assert "\0" not in service.log.read_text()  # it appends: no hole where it had been
    assert service.last_words().endswith("line 00000060000\n")
    assert {path.name for path in tmp_path.glob("s*")} == {"s.log", "s.1.log"}


def test_a_long_log_is_emptied_where_no_copy_has_room(tmp_path: Path) -> None:
    service = Service("s", [sys.executable], tmp_path / "s.log")
    service.bound_log()  # there is none yet
    service.log.write_bytes(b"x" * child_process.MOST_LOG_BYTES)
    service.bound_log()
    assert service.log.stat().st_size == child_process.MOST_LOG_BYTES
    service.log.write_bytes(b"x" * (child_process.MOST_LOG_BYTES + 1))
    service._log_begin = child_process.MOST_LOG_BYTES - 9  # where the process began to write
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        service.bound_log()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert service.log.stat().st_size == 0
    service.log.write_text("said since")
    assert service.last_words() == "said since"
    assert not (tmp_path / "s.1.log").exists()


def test_flower_phones_nobody_and_installs_nothing(tmp_path: Path) -> None:
    environment = flower_environment(tmp_path)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert environment["PATH"].startswith(str(Path(sys.executable).parent))
