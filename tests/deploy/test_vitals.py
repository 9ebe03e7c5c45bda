"""What a site finds out about its machine, and where it shows."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from asterion_client import check_machine, site_vitals
from asterion_client.check_machine import (
    Vital,
    clock,
    disk,
    look_at_machine,
    machine_problems,
    memory,
    shared_memory,
)
from asterion_client.command_line import app
from asterion_client.settings import SiteSettings, read_site_settings
from asterion_client.site_standing import SiteStatus, write_status
from asterion_client.site_vitals import (
    health_page,
    metrics_page,
    read_vitals,
    watched_machine,
    whole_problem,
    write_vitals,
)
from asterion_shared.errors import Problem

WARNING = Problem(where="logs", what="hold 999 MiB", fix="remove old ones", fatal=False)
FATAL = Problem(where="state_folder", what="no room", fix="free some space")


def certificate(path: Path, days: float) -> None:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "north")])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(days=900))
        .not_valid_after(now + timedelta(days=days)).sign(key, hashes.SHA256())
    )  # fmt: skip
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    certificate(tmp_path / "site.pem", 900)
    (tmp_path / "site.toml").write_text(
        'name = "north"\ntask = "anomaly"\n[data]\nformat = "npz"\n'
        '[connection]\naddress = "localhost:1"\nroot_certificate = "ca.pem"\n'
        'private_key = "site.key"\ncertificate = "site.pem"\n'
    )
    return tmp_path


def settings_of(site: Path) -> SiteSettings:
    return read_site_settings(site / "site.toml")


def on_gpu(site: Path) -> SiteSettings:
    found = settings_of(site)
    return found.model_copy(update={"compute": found.compute.model_copy(update={"device": "cuda"})})


def runs_well(state: Path, working: str = "") -> None:
    now = time.time()
    status = SiteStatus(site="north", connected=True, last_contact=now - 7, refused="",
                        working=working, started=now, written=now)  # fmt: skip
    write_status(state, status)


def problems(vitals: Iterable[Vital]) -> list[tuple[str, bool]]:
    return [(problem.what, problem.fatal) for problem in machine_problems(vitals)]


def named(vitals: list[Vital]) -> dict[str, Vital]:
    return {vital.name: vital for vital in vitals}


@contextmanager
def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> Iterator[None]:
    """Only these programs are on the path."""
    folder.mkdir(exist_ok=True)
    for name, script in scripts.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(folder))
        yield


def test_a_real_machine_is_looked_at(site: Path) -> None:
    found = named(look_at_machine(settings_of(site), site))
    assert set(found) <= set(site_vitals.HELP)
    assert found["disk_free_bytes"].value == pytest.approx(
        os.statvfs(site).f_bavail * os.statvfs(site).f_frsize, rel=0.05
    )
    said = Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]
    assert found["memory_available_bytes"].value == pytest.approx(1024 * int(said), rel=0.3)
    assert found["certificate_seconds_left"].value == pytest.approx(900 * 86_400, abs=60)
    assert found["log_bytes"].value == 0
    assert "device_memory_free_bytes" not in found
    assert found["certificate_seconds_left"].problem is None


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state"  # not there yet: the folder above counts
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    monkeypatch.setattr(check_machine, "LEAST_FREE_BYTES", free // 2)
    assert [what for what, _ in problems(disk(state))] == []
    monkeypatch.setattr(check_machine, "LEAST_FREE_BYTES", 2 * free)
    [(what, fatal)] = problems(disk(state))
    assert ("are free on its disk" in what, fatal) == (True, False)
    monkeypatch.setattr(check_machine, "LEAST_FREE_BYTES", 40 * free)
    assert [fatal for _, fatal in problems(disk(state))] == [True]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_file_system_without_inodes_or_room(tmp_path: Path) -> None:
    """A real one: 1 MiB, 10 files."""
    script = (
        "import sys; from pathlib import Path;"
        "from asterion_client.check_machine import *;"
        "p = Path(sys.argv[1]);"
        "print([(v.name, v.problem.fatal) for v in disk(p) if v.problem]);"
        "[(p / str(n)).touch() for n in range(9)];"
        "print([(v.name, v.problem.fatal) for v in disk(p) if v.problem]);"
        "print([v.problem.fix for v in shared_memory(p)])"
    )
    mount = "mount -t tmpfs -o size=1m,nr_inodes=10 tmpfs"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{mount} "$1" && exec "$2" -c "$3" "$1"', "sh",
         str(tmp_path), sys.executable, script],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "[('disk_free_bytes', True), ('inodes_free', False)]",
        "[('disk_free_bytes', True), ('inodes_free', True)]",
        "['enlarge it; a container needs --shm-size']",
    ]


def test_memory(tmp_path: Path) -> None:
    said = tmp_path / "meminfo"
    for kibibytes, wrong in ((512 * 1024, False), (512 * 1024 - 1, True)):
        said.write_text(f"MemTotal: 99999999 kB\nMemAvailable:   {kibibytes} kB\n")
        [vital] = memory(said)
        assert vital.value == 1024 * kibibytes
        assert (vital.problem is not None) == wrong
    assert list(memory(tmp_path / "absent")) == [Vital("memory_available_bytes", None)]
    assert list(shared_memory(tmp_path / "absent")) == [Vital("shared_memory_free_bytes", None)]


@pytest.mark.parametrize(
    ("script", "value", "what"),
    [
        ("echo yes", 1.0, ""),
        ("echo no", 0.0, "is not kept right by a time server"),
        ("echo yes; exit 1", None, ""),  # not booted with systemd
        ("exec sleep 60", None, ""),
    ],
)
def test_the_clock(
    script: str, value: float | None, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_machine, "PROGRAM_SECONDS", 0.5)
    # The words of the command are looked at: another property would say something else.
    asked = f'[ "$2" = --property=NTPSynchronized ] || exit 9\nPATH=/bin:/usr/bin\n{script}'
    with programs(tmp_path / "bin", monkeypatch, timedatectl=asked):
        [vital] = clock()
    assert vital.value == value
    assert (vital.problem.what if vital.problem else "") == what


def test_a_clock_that_was_never_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_machine, "EARLIEST_CLOCK", time.time() + 60)
    [(what, fatal)] = problems(clock())
    assert (what.startswith("this machine thinks it is 20"), fatal) == (True, True)


@pytest.mark.parametrize(
    ("days", "found"),
    [(31, []), (29.9, [("in 30 days", False)]), (-2, [("ended on", True)])],
)
def test_certificates(days: float, found: list[tuple[str, bool]], site: Path) -> None:
    certificate(site / "site.pem", days)
    vital = named(look_at_machine(settings_of(site), site))["certificate_seconds_left"]
    assert vital.value == pytest.approx(days * 86_400, abs=60)
    told = problems([vital])
    assert [fatal for _, fatal in told] == [fatal for _, fatal in found]
    assert all(part in what for (what, _), (part, _) in zip(told, found, strict=True))
    (site / "site.pem").write_text("spoilt")
    spoilt = named(look_at_machine(settings_of(site), site))["certificate_seconds_left"]
    assert problems([spoilt]) == [("cannot be read", True)]


@pytest.mark.parametrize(
    ("script", "free", "errors", "what"),
    [
        ("echo '143771, 10, 0'", 143_761 * 2**20, 0, ""),
        ("echo '24576, 24100, [N/A]'", 476 * 2**20, None, "476 MiB are free"),
        ("echo '143771, 10, 3'", 143_761 * 2**20, 3, "3 memory errors that it could not correct"),
        ("echo 'No devices were found'; exit 6", None, None, "does not answer"),
        ("exec sleep 60", None, None, "does not answer"),
        ("echo '[GPU is lost]'", None, None, "does not answer"),
    ],
)
def test_a_gpu_that_the_driver_tells_of(
    script: str, free: float | None, errors: int | None, what: str,
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(check_machine, "PROGRAM_SECONDS", 0.5)
    script = f"PATH=/bin:/usr/bin\n{script}"
    with programs(tmp_path / "bin", monkeypatch, nvidia_smi=script):
        found = named(look_at_machine(on_gpu(site), site))
    assert found["device_memory_free_bytes"].value == free
    told = [v.problem.what for n, v in found.items() if n.startswith("device") and v.problem]
    assert (what in told[0]) if what else not told
    if free is not None:
        assert found["device_memory_errors"].value == errors


def test_logs_that_grow(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_machine, "MOST_LOGS_BYTES", 100)
    (site / "state/logs").mkdir(parents=True)
    for name, size in (("runner.log", 60), ("runner.1.log", 40)):
        (site / "state/logs" / name).write_bytes(b"x" * size)
    assert named(look_at_machine(settings_of(site), site))["log_bytes"] == Vital("log_bytes", 100)
    (site / "state/logs/runner.log").write_bytes(b"x" * 61)
    found = named(look_at_machine(settings_of(site), site))["log_bytes"]
    assert found.problem is not None


def test_a_running_site_shows_what_was_found(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = site / "state"
    runs_well(state, working="train of round 3")
    found = [Vital("log_bytes", 9.0, WARNING)]
    monkeypatch.setattr(site_vitals, "look_at_machine", lambda settings, folder: list(found))
    monkeypatch.setattr(site_vitals, "LOOK_SECONDS", 0.05)
    with watched_machine(settings_of(site), site):
        until = time.monotonic() + 10
        while not read_vitals(state) and time.monotonic() < until:
            time.sleep(0.01)
        page = health_page(state, 10)
        assert (page.status, json.loads(page.body)) == (
            200, {"well": True, "problem": "", "warnings": [str(WARNING)]}
        )  # fmt: skip
        told = CliRunner().invoke(app, ["status", str(site / "site.toml"), "--exit-code"])
        assert (told.exit_code, f"warning: {WARNING}" in told.output) == (0, True)
        found.append(Vital("disk_free_bytes", 1.0, FATAL))
        while not whole_problem(state, 10):
            assert time.monotonic() < until
            time.sleep(0.01)
        page = health_page(state, 10)
        assert (page.status, json.loads(page.body)["problem"]) == (503, str(FATAL))
        told = CliRunner().invoke(app, ["status", str(site / "site.toml"), "--exit-code"])
        assert (told.exit_code, str(FATAL) in told.output) == (32, True)
        lines = metrics_page("north", state, 10).body.splitlines()
    for line in (
        'asterion_site_well{site="north"} 0',
        'asterion_site_connected{site="north"} 1',
        'asterion_site_working{site="north"} 1',
        'asterion_site_log_bytes{site="north"} 9',
        'asterion_site_check{site="north",check="log_bytes"} 1',
        'asterion_site_check{site="north",check="disk_free_bytes"} 2',
        "# TYPE asterion_site_log_bytes gauge",
    ):
        assert line in lines
    assert str(site) not in "\n".join(lines)
    monkeypatch.setattr(site_vitals, "OLD_SECONDS", 0.0)
    assert read_vitals(state) == []  # nobody looked since


def test_a_look_that_fails_does_not_end_the_watch(
    site: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = [Vital("log_bytes", 9.0)]
    looks = iter([FileNotFoundError("patient.log"), None])

    def look(settings: SiteSettings, folder: Path) -> list[Vital]:
        if (error := next(looks, None)) is not None:
            raise error
        return found

    monkeypatch.setattr(site_vitals, "look_at_machine", look)
    monkeypatch.setattr(site_vitals, "LOOK_SECONDS", 0.05)
    with watched_machine(settings_of(site), site):
        until = time.monotonic() + 10
        while not read_vitals(site / "state") and time.monotonic() < until:
            time.sleep(0.01)
        assert read_vitals(site / "state") == found
    assert "FileNotFoundError" in caplog.text
    assert "patient" not in caplog.text


def test_vitals_come_back_as_they_were_and_spoilt_ones_are_none(tmp_path: Path) -> None:
    found = [Vital("log_bytes", 1.0, WARNING), Vital("clock_synchronised", None)]
    write_vitals(tmp_path, found)
    assert read_vitals(tmp_path) == found
    for spoilt in ("", "[]", "{}", '{"taken": 1e12, "vitals": [{"name": 1}]}'):
        (tmp_path / "vitals.json").write_text(spoilt)
        assert read_vitals(tmp_path) == []


def test_the_doctor_prints_a_table_of_now(site: Path) -> None:
    path = str(site / "site.toml")
    told = CliRunner().invoke(app, ["doctor", path])
    assert told.exit_code == 32  # it never ran
    assert "problem: " in told.output
    assert "never ran here" in told.output
    runs_well(site / "state")
    told = CliRunner().invoke(app, ["doctor", path])
    assert told.exit_code == 0, told.output
    rows = {line[:22].strip(): line[22:] for line in told.output.splitlines()}
    assert rows["certificate"].split()[:2] in (["900", "days"], ["899", "days"])
    assert rows["silent"].split()[:2] == ["7", "s"]
    rows = json.loads(CliRunner().invoke(app, ["doctor", path, "--json"]).output)["vitals"]
    assert {"disk_free_bytes", "silent_seconds"} <= {row["name"] for row in rows}
    certificate(site / "site.pem", -1)
    assert CliRunner().invoke(app, ["doctor", path]).exit_code == 32
