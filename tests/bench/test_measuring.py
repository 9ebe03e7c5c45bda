"""Processor time of a process tree, against what the processes themselves say."""

import subprocess
import sys

import pytest

from bench.measuring import Stamp, print_figures, process_tree, read_figures, site_figures, stamp

# Burns time itself, in a thread that ends, in a child that ends and in one that lives; then says
# what it used by its own clock and waits.
TREE = """
import os, subprocess, sys, threading, time
burn = "import time\\nwhile time.process_time() < {0}: pass\\n"
def spin():
    while time.thread_time() < 0.1: pass
thread = threading.Thread(target=spin); thread.start(); thread.join()
subprocess.run([sys.executable, "-S", "-c", burn.format(0.1)], check=True)
living = subprocess.Popen(
    [sys.executable, "-S", "-c", burn.format(0.15) + "print('x', flush=True); input()"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
)
living.stdout.read(1)
times = os.times()
print(time.process_time() + times.children_user + times.children_system + 0.15, flush=True)
input()
living.communicate(b"\\n")
"""


def test_processor_time_of_a_tree() -> None:
    with subprocess.Popen(
        [sys.executable, "-S", "-c", TREE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = float(process.stdout.readline())
        seen = stamp(process.pid)
        assert len(process_tree(process.pid)) == 2
        process.stdin.write("\n")
        process.stdin.close()
    # 0.1 in the thread, 0.1 in the ended child, 0.15 in the living one, and their starts
    assert said > 0.35
    assert seen.processor_seconds == pytest.approx(said, abs=0.04)
    assert seen.peak_memory_mb > 5
    assert process_tree(process.pid) == []


def test_what_is_printed_is_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    figures = site_figures(Stamp(0.0, 0.0, 0.0, 1.0), Stamp(2.0, 3.0, 4.0, 7.0), 100)
    print_figures("any", figures | {"final_loss": 0.25})
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "clients_per_s: 50"
    assert read_figures(printed) == figures | {"final_loss": 0.25}
    assert figures["cpu_ms_per_client"] == 30.0
    assert figures["foreign_cores"] == 0.5
