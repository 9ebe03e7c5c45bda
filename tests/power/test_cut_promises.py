"""What this system holds for durable before it acts is there after a power cut.

A site's privacy ledger, the record of a secure sum that was unmasked, the orders that the
coordinator has sent: each is lost at a price in privacy, so each is written before anything else
happens. The folders are new, as in a first run.
"""

import sys
from pathlib import Path

import pytest
from tests.power.effects import Record
from tests.power.judging import Judge, broken
from tests.power.power_cut import Keep
from tests.power.recording import record_run, require

from asterion_client.privacy_ledger import Ledger
from asterion_client.settings import PrivacySettings
from asterion_server.asked_rounds import times_asked
from asterion_shared.errors import AsterionError

KEEPS: tuple[Keep, ...] = ("synced", "everything", 0)

CHARGES = """
import hashlib, sys
from pathlib import Path
from asterion_client.privacy_entries import Release
from asterion_client.privacy_ledger import Ledger
from asterion_client.settings import PrivacySettings
from asterion_shared.privacy.charges import GaussianCharge

def digest(number):
    return hashlib.sha256(b"%d" % number).hexdigest()

privacy = PrivacySettings(epsilon_limit=100.0, delta=1e-6)
folder = Path(sys.argv[1], "state", "ledger")
with Ledger(folder, privacy, bounds=[lambda charges, delta: 1.0]) as ledger:
    for number in range(3):
        ledger.charge(Release(
            run="r", round=number, phase="train", payload_sha256=digest(number),
            charges=(GaussianCharge(relation="add_or_remove_one", noise_multiplier=10.0),),
            fingerprint=digest(99), unit_kind="patient", units=frozenset([digest(7)]),
        ))
        print(number, flush=True)
"""
ASKED = """
import sys
from pathlib import Path
from asterion_server.asked_rounds import note_asked

for number in range(4):
    note_asked(Path(sys.argv[1], "runs", "one", "asked.jsonl"), number, ["north"])
    print(number, flush=True)
"""
UNMASKED = """
import sys
from pathlib import Path
from asterion_client.secure_round import put_on_record

for number in range(3):
    put_on_record(Path(sys.argv[1], "state", "sums", str(number)), "survivors")
    print(number, flush=True)
"""


def one(charges: object, delta: float) -> float:
    return 1.0


def judge_ledger(after: Path, told: list[int]) -> str | None:
    folder = after / "state" / "ledger"
    if not told and not folder.exists():
        return None
    try:
        with Ledger(folder, PrivacySettings(epsilon_limit=100.0, delta=1e-6), bounds=[one]) as it:
            count = it.head().count
    except AsterionError as error:
        return f"{type(error).__name__}: {error}"
    return None if count in (len(told), len(told) + 1) else f"holds {count} charges"


def judge_asked(after: Path, told: list[int]) -> str | None:
    asked = times_asked(after / "runs" / "one" / "asked.jsonl").get("north", 0)
    return None if asked in (len(told), len(told) + 1) else f"{asked} orders are noted"


def judge_unmasked(after: Path, told: list[int]) -> str | None:
    for number in told:
        path = after / "state" / "sums" / str(number)
        if not path.exists() or path.read_text() != "survivors":
            return f"{number} is not on record"
    return None


@pytest.mark.parametrize(
    ("program", "judge"),
    [(CHARGES, judge_ledger), (ASKED, judge_asked), (UNMASKED, judge_unmasked)],
    ids=["ledger", "asked", "unmasked"],
)
def test_what_was_told_is_there_after_every_cut(tmp_path: Path, program: str, judge: Judge) -> None:
    require()
    (folder := tmp_path / "recorded").mkdir()
    record: Record = record_run(
        [sys.executable, "-c", program, str(folder)], folder, tmp_path / "notes"
    )
    assert len(record.said(len(record.effects)).split()) >= 3
    assert list(broken(record, tmp_path / "after", KEEPS, judge)) == []
