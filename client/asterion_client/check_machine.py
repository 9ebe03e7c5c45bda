"""How the site's machine is: disk, memory, clock, certificate, device, logs; cheap, at any time.

Nothing here names a file, a patient or a case, so it may stand in metrics.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from asterion_client.check_connection import RENEW
from asterion_client.settings import SiteSettings
from asterion_shared.child_process import MOST_LOG_BYTES
from asterion_shared.errors import Problem
from asterion_shared.link.certificate_check import WARNING_DAYS

LEAST_FREE_BYTES = 2 * 2**30
LEAST_FREE_INODES = 10_000
LEAST_SHARED_MEMORY_BYTES = 64 * 2**20
LEAST_MEMORY_BYTES = 512 * 2**20
LEAST_DEVICE_MEMORY_BYTES = 512 * 2**20
MOST_LOGS_BYTES = 10 * MOST_LOG_BYTES
"""Two daemons' logs are at most four times the bound of one."""

EARLIEST_CLOCK = 1_767_225_600.0  # 2026-01-01: a clock before it was never set.
MEMORY = Path("/proc/meminfo")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # shared memory; nothing of ours is written there
PROGRAM_SECONDS = 10.0
"""How long a program of the system may take to answer."""


@dataclass(frozen=True, slots=True)
class Vital:
    """One thing of the machine that was looked at.

    Attributes:
        name: of the metric, with its unit, such as ``disk_free_bytes``.
        value: what was found; None where this machine does not tell.
        problem: what is wrong with it; None when it is well, or not known.
    """

    name: str
    value: float | None
    problem: Problem | None = None


def look_at_machine(settings: SiteSettings, folder: Path) -> list[Vital]:
    """Everything that can go wrong with a machine while the site runs.

    Args:
        settings: the site's.
        folder: where ``site.toml`` lies.
    """
    state = folder / settings.state_folder
    found = [*disk(state), *memory(MEMORY), *shared_memory(SHARED_MEMORY), *clock()]
    if settings.connection is not None and settings.connection.certificate is not None:
        found += _certificate(folder / settings.connection.certificate)
    found += _logs(state / "logs")
    if settings.compute.device.startswith("cuda"):
        found += _device(int(settings.compute.device.partition(":")[2] or 0))
    return found


def disk(state: Path) -> Iterator[Vital]:
    """Room on the disk of the state folder, which need not be there yet."""
    home = next(p for p in (state, *state.resolve().parents) if p.exists())
    free, files = shutil.disk_usage(home).free, os.statvfs(home)
    problem = None
    if free < LEAST_FREE_BYTES:
        problem = Problem(
            where="state_folder",
            what=f"{free / 2**30:.1f} GiB are free on its disk",
            fix=f"free some space: at least {LEAST_FREE_BYTES / 2**30:.0f} GiB",
            fatal=free < LEAST_FREE_BYTES / 20,
        )
    yield Vital("disk_free_bytes", free, problem)
    if files.f_files:  # some file systems have no such bound
        problem = None
        if files.f_favail < LEAST_FREE_INODES:
            what = f"its disk has room for {files.f_favail} files more (inodes)"
            fix = "remove files that nobody needs, or use another file system"
            problem = Problem(where="state_folder", what=what, fix=fix, fatal=not files.f_favail)
        yield Vital("inodes_free", files.f_favail, problem)


def clock() -> Iterator[Vital]:
    """Whether the clock was ever set, and whether something keeps it right."""
    told = _said_by(["timedatectl", "show", "--property=NTPSynchronized", "--value"])
    kept = {"yes": 1.0, "no": 0.0}.get(told)
    problem = None
    if time.time() < EARLIEST_CLOCK:
        problem = Problem(
            where="clock",
            what=f"this machine thinks it is {time.strftime('%Y-%m-%d')}",
            fix="set the clock: certificates and signatures depend on it",
        )
    elif kept == 0.0:
        fix = "turn on NTP: timedatectl set-ntp true"
        what = "is not kept right by a time server"
        problem = Problem(where="clock", what=what, fix=fix, fatal=False)
    yield Vital("clock_synchronised", kept, problem)


def memory(meminfo: Path) -> Iterator[Vital]:
    """Memory that programs can have, as Linux tells it in a file like ``/proc/meminfo``."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        yield Vital("memory_available_bytes", None)
        return
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    yield _at_least(
        "memory_available_bytes", found[0] if found else None, LEAST_MEMORY_BYTES, "memory",
        "end other programs, or lower data.memory_bytes in site.toml",
    )  # fmt: skip


def shared_memory(mount: Path) -> Iterator[Vital]:
    """Room in the file system for shared memory, mounted as ``/dev/shm``."""
    free = shutil.disk_usage(mount).free if mount.is_dir() else None
    yield _at_least(
        "shared_memory_free_bytes", free, LEAST_SHARED_MEMORY_BYTES, "shared memory (/dev/shm)",
        "enlarge it; a container needs --shm-size",
    )  # fmt: skip


def _at_least(name: str, value: float | None, least: int, where: str, fix: str) -> Vital:
    if value is None or value >= least:
        return Vital(name, value)
    what = f"{value / 2**20:.0f} MiB are free, at least {least / 2**20:.0f} MiB should be"
    return Vital(name, value, Problem(where=where, what=what, fix=fix, fatal=False))


def _certificate(path: Path) -> Iterator[Vital]:
    try:
        ends = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (OSError, ValueError):
        spoilt = Problem(where="certificate", what="cannot be read", fix=RENEW)
        yield Vital("certificate_seconds_left", None, spoilt)
        return
    left = (ends - datetime.now(UTC)).total_seconds()
    problem = None
    if left <= 0:
        problem = Problem(where="certificate", what=f"ended on {ends:%Y-%m-%d}", fix=RENEW)
    elif left < WARNING_DAYS * 86_400:
        what = f"ends on {ends:%Y-%m-%d}, in {left / 86_400:.0f} days"
        problem = Problem(where="certificate", what=what, fix=RENEW, fatal=False)
    yield Vital("certificate_seconds_left", left, problem)


def _logs(logs: Path) -> Iterator[Vital]:
    held = sum(path.stat().st_size for path in logs.glob("*.log"))
    problem = None
    if held > MOST_LOGS_BYTES:
        what = f"hold {held / 2**20:.0f} MiB"
        fix = "remove old ones from the folder logs of the state folder"
        problem = Problem(where="logs", what=what, fix=fix, fatal=False)
    yield Vital("log_bytes", held, problem)


def _device(number: int) -> Iterator[Vital]:
    """What NVIDIA's own tool says: it answers also while the site's process is busy or hangs."""
    wanted = "memory.total,memory.used,ecc.errors.uncorrected.volatile.total"
    told = _said_by(
        ["nvidia-smi", f"--query-gpu={wanted}", "--format=csv,noheader,nounits", f"--id={number}"]
    )
    where = "compute.device"
    try:
        total, used = (int(word) * 2**20 for word in told.split(", ")[:2])
        [*_, errors] = told.split(", ")
    except ValueError:
        fix = "see what nvidia-smi says; after a driver update or a fault, restart the machine"
        what = f"the GPU {number} does not answer"
        yield Vital("device_memory_free_bytes", None, Problem(where=where, what=what, fix=fix))
        return
    yield _at_least(
        "device_memory_free_bytes", total - used, LEAST_DEVICE_MEMORY_BYTES, where,
        "end other programs on the GPU",
    )  # fmt: skip
    count = int(errors) if errors.isdecimal() else None  # "[N/A]": it counts none
    problem = None
    if count:
        what = f"the GPU {number} counts {count} memory errors that it could not correct"
        fix = "restart the machine; have the GPU replaced if it comes again"
        problem = Problem(where=where, what=what, fix=fix)
    yield Vital("device_memory_errors", count, problem)


def _said_by(command: list[str]) -> str:
    """What a program prints; empty when it is not there, fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PROGRAM_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def machine_problems(vitals: Iterable[Vital]) -> list[Problem]:
    """What is wrong, what stops the work first."""
    found = [vital.problem for vital in vitals if vital.problem is not None]
    return sorted(found, key=lambda problem: not problem.fatal)
