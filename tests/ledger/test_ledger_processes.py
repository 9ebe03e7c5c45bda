"""Real processes: racing to the limit, and killed between any two steps."""

import subprocess
import sys
from pathlib import Path

import pytest

from asterion_client.privacy_ledger_audit import verify_ledger

PRELUDE = """
import hashlib, math, os, signal, sys
from pathlib import Path
from asterion_client import privacy_ledger
from asterion_client.privacy_entries import Release
from asterion_client.privacy_ledger import Ledger
from asterion_client.privacy_ledger_store import Store
from asterion_client.settings import PrivacySettings
from asterion_shared.errors import BudgetSpentError
from asterion_shared.privacy.charges import GaussianCharge

def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()

def release(payload):
    return Release(
        run="r", round=1, phase="train", payload_sha256=digest(payload),
        charges=(GaussianCharge(relation="add_or_remove_one", noise_multiplier=10.0),),
        fingerprint=digest("data"), unit_kind="patient", units=frozenset([digest("p")]),
    )

def rho(charges, delta):
    return sum(charge.times for charge in charges)

folder, words = Path(sys.argv[1]), sys.argv[2:]
privacy = PrivacySettings(epsilon_limit=LIMIT, delta=1e-6)
"""

RACE = """
name, granted = words[0], 0
with Ledger(folder, privacy, bounds=[rho]) as ledger:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(30):
        try:
            granted += not ledger.charge(release(f"{name} {number}")).free
        except BudgetSpentError:
            break
print(granted)
"""

KILL = """
step = int(words[0])

class Dying(Store):
    taken = 0
    armed = False

    def reach(self, number):
        if self.armed and number == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def append(self, line, number):
        self.reach(1)
        head = super().append(line, number)
        self.reach(2)
        return head

    def commit(self):
        super().commit()
        self.reach(3)

    def write_witness(self, head):
        self.reach(4)
        super().write_witness(head)
        self.reach(5)

privacy_ledger.Store = Dying
with Ledger(folder, privacy, bounds=[rho]) as ledger:
    ledger.charge(release("first"))
    Dying.armed = True
    ledger.charge(release("second"))
    print("sent", flush=True)
"""


def start(script: str, limit: float, folder: Path, *words: object) -> subprocess.Popen[str]:
    code = PRELUDE.replace("LIMIT", str(limit)) + script
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), *map(str, words)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_processes_that_race_cannot_overspend(tmp_path: Path) -> None:
    folder, limit = tmp_path / "ledger", 50
    # All make the ledger at once, then charge at once; 90 charges are wanted, 50 allowed.
    racing = [start(RACE, limit, folder, name) for name in "abc"]
    for process in racing:
        assert process.stdout
        assert process.stdout.readline() == "ready\n", process.communicate()
    for process in racing:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    done = [process.communicate(timeout=120) for process in racing]
    assert [err for _, err in done] == ["", "", ""]
    granted = [int(out) for out, _ in done]
    assert sum(granted) == limit
    assert sum(one > 0 for one in granted) >= 2
    head, problems = verify_ledger(folder)
    assert (head.count, problems) == (limit, [])
    assert (folder / "ledger.head").read_text() == f"{head}\n"
    assert [path.name for path in folder.iterdir() if "part" in path.name] == []


@pytest.mark.parametrize(("step", "charged"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2)])
def test_killed_between_two_steps_it_is_charged_or_nothing_left(
    tmp_path: Path, step: int, charged: int
) -> None:
    """Steps: 1 before the entry, 2 before and 3 after the commit, 4 before and 5 after the witness.

    Whatever is charged twice would show as a third entry.
    """
    folder = tmp_path / "ledger"
    process = start(KILL, 10, folder, step)
    out, err = process.communicate(timeout=60)
    assert process.returncode == -9, err
    assert "sent" not in out
    head, problems = verify_ledger(folder)
    assert (head.count, problems) == (charged, [])
    again = start(KILL, 10, folder, 0)
    out, err = again.communicate(timeout=60)
    assert (out, err) == ("sent\n", "")
    assert verify_ledger(folder)[0].count == 2
