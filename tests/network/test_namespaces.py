"""Namespaces come, go, and leave nothing behind."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from tests.network import namespaces
from tests.network.namespaces import (
    NAMESPACES,
    ROOT,
    Network,
    network,
    reason_to_skip,
    require,
    sweep,
)

OF_THE_DEAD = "asdead"  # a prefix of its own: a test beside this one sweeps what the usual one has
HOLD = f"""
import sys, time
from tests.network import namespaces
from tests.network.namespaces import network
namespaces.PREFIX = "{OF_THE_DEAD}"
with network(["north"]) as net:
    inside = net.sites["north"].start(["sleep", "600"])
    print(net.control.process.pid, inside.pid, flush=True)
    time.sleep(600)
"""


def left_by(pid: int) -> list[str]:
    """Namespaces and folders that this process made and that still stand."""
    places = NAMESPACES, Path(tempfile.gettempdir())
    return [path.name for place in places for path in place.glob(f"{namespaces.PREFIX}-{pid}-*")]


def runs(pid: int) -> bool:
    try:
        status = str(psutil.Process(pid).status())
    except psutil.NoSuchProcess:
        return False
    return status != "zombie"


def test_root_skips_nothing() -> None:
    """Where these tests can run they do: only the lack of root is a reason not to."""
    assert (reason_to_skip() is None) == (os.geteuid() == 0)
    if os.geteuid() == 0:
        require()
        with network(["north"]) as net:
            assert net.sites["north"].run(["ip", "-j", "link"]).stdout


def test_without_root_the_reason_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(pytest.skip.Exception, match="need root"):
        require()


def test_root_without_iproute_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(RuntimeError, match="install iproute2"):
        require()


def test_everything_is_gone_after_the_block_and_after_an_error(net: Network) -> None:
    before = left_by(os.getpid())
    started: list[int] = []

    def fail() -> None:
        with network(["north", "south"]) as other:
            assert len(left_by(os.getpid())) == len(before) + 4
            started.append(other.control.process.pid)
            # A shell with a child that is not ours to wait for.
            shell = other.sites["north"].start(
                ["sh", "-c", "sleep 600 & echo $!; sleep 600"], stdout=subprocess.PIPE
            )
            assert shell.stdout is not None
            started.extend([shell.pid, int(shell.stdout.readline())])
            msg = "on purpose"
            raise ArithmeticError(msg)

    with pytest.raises(ArithmeticError, match="on purpose"):
        fail()
    assert left_by(os.getpid()) == before
    assert len(started) == 3
    assert not any(runs(pid) for pid in started)
    assert net.sites["north"].run(["echo", "untouched"]).stdout == "untouched\n"


def test_a_killed_owner_is_swept_and_a_living_one_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "PREFIX", OF_THE_DEAD)
    hold = [sys.executable, "-c", HOLD]
    with network(["south"]) as living:
        with subprocess.Popen(hold, cwd=ROOT, stdout=subprocess.PIPE) as owner:
            assert owner.stdout is not None
            forwarder, inside = map(int, owner.stdout.readline().split())
            owner.send_signal(signal.SIGKILL)
        assert runs(inside)
        until = time.monotonic() + 20
        while runs(forwarder):
            assert time.monotonic() < until, "the forwarder outlives its owner"
            time.sleep(0.01)
        assert len(left_by(owner.pid)) == 3
        mine = left_by(os.getpid())
        assert len(mine) == 3
        removed = sweep()
        assert len([name for name in removed if f"-{owner.pid}-" in name]) == 2
        assert left_by(owner.pid) == []
        assert not runs(inside)
        assert left_by(os.getpid()) == mine
        assert living.counters().keys() == {"south"}
    assert left_by(os.getpid()) == []


def test_what_cannot_be_is_told(net: Network) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        net.coordinator.run(["false"])
    with pytest.raises(ValueError, match="more than 200"), network(["x"] * 300):
        pass
