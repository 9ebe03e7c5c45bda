"""A site from a backup releases nothing until a person has compared its ledger."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.withdrawal.test_site_withdrawal import (
    PRIVATE,
    order_of,
    plan_of,
    trained_patient,
    worker_of,
    write_site,
)

from asterion_client.privacy_ledger import Ledger
from asterion_client.privacy_ledger_audit import verify_ledger
from asterion_client.settings import PrivacySettings
from asterion_shared.errors import LedgerStoppedError

LIMITS = PrivacySettings(epsilon_limit=1000.0, delta=1e-6)


def rounds(folder: Path, *numbers: int) -> str:
    """Charge private rounds; the head that the coordinator is told."""
    worker, plan = worker_of(folder), plan_of(privacy=PRIVATE)
    head = ""
    for number in numbers:
        head = worker.answer(order_of(plan, number)).ledger_head or ""
    return head


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "north"
    folder.mkdir()
    write_site(folder)
    return folder


def restored(site: Path, asterion: Callable[..., Any], archive: Path) -> Path:
    target = site.parent / "restored"
    done = asterion("site", "restore", archive, target)
    assert done.code == 0, done.err
    (site / "data").rename(target / "data")
    return target


def test_a_restored_ledger_that_forgot_charges_never_spends_again(
    site: Path, asterion: Callable[..., Any]
) -> None:
    at_backup = rounds(site, 1)
    assert asterion("site", "backup", site / "site.toml", "--out", site.parent / "b.tar").code == 0
    newest = rounds(site, 2, 3)
    target = restored(site, asterion, site.parent / "b.tar")
    ledger = target / "state" / "ledger"
    with pytest.raises(LedgerStoppedError, match="put back from a backup"):
        worker_of(target).answer(order_of(plan_of(privacy=PRIVATE), 4))
    with pytest.raises(LedgerStoppedError, match="put back from a backup"):
        worker_of(target).answer(order_of(plan_of(), 4))  # withdrawals may be forgotten as well
    with pytest.raises(LedgerStoppedError, match="put back from a backup"):
        Ledger(ledger, LIMITS)
    assert len(verify_ledger(ledger)[1]) == 1
    assert asterion("site", "ledger", "verify", target).code == 25
    refused = asterion("site", "ledger", "accept", target, at_backup, newest)
    assert refused.code == 25
    assert "is forgotten" in refused.err
    assert asterion("site", "ledger", "accept", target).code == 2
    assert asterion("site", "ledger", "accept", target, at_backup, "--none").code == 2
    with pytest.raises(LedgerStoppedError):
        worker_of(target).answer(order_of(plan_of(privacy=PRIVATE), 4))
    # A person who names only the old head is stopped by the coordinator's word.
    assert asterion("site", "ledger", "accept", target, at_backup).code == 0
    with pytest.raises(LedgerStoppedError, match="was told the head"):
        worker_of(target).answer(order_of(plan_of(privacy=PRIVATE), 4, ledger_head=newest))


def test_the_newest_ledger_goes_on_when_a_person_says_so(
    site: Path, asterion: Callable[..., Any]
) -> None:
    head = rounds(site, 1, 2)
    asterion("site", "backup", site / "site.toml", "--out", site.parent / "b.tar")
    target = restored(site, asterion, site.parent / "b.tar")
    done = asterion("site", "ledger", "accept", target, head)
    assert done.code == 0
    assert "2 entries" in done.out
    again = worker_of(target).answer(order_of(plan_of(privacy=PRIVATE), 3, ledger_head=head))
    assert again.ledger_head not in (None, head)
    with Ledger(target / "state" / "ledger", LIMITS) as ledger:
        assert ledger.head().count == 3
    assert asterion("site", "ledger", "verify", target).code == 0


def test_a_backup_from_before_the_first_charge_starts_no_ledger_at_zero(
    site: Path, asterion: Callable[..., Any]
) -> None:
    asterion("site", "backup", site / "site.toml", "--out", site.parent / "b.tar")
    head = rounds(site, 1)
    target = restored(site, asterion, site.parent / "b.tar")
    with pytest.raises(LedgerStoppedError):
        Ledger(target / "state" / "ledger", LIMITS)
    assert not (target / "state" / "ledger" / "ledger.sqlite").exists()
    assert asterion("site", "ledger", "accept", target, head).code == 25
    assert asterion("site", "ledger", "accept", target, "--none").code == 0
    assert rounds(target, 1)


def test_withdrawals_come_back_and_data_are_not_in_it(
    site: Path, asterion: Callable[..., Any]
) -> None:
    plan, worker = plan_of(), worker_of(site)
    first = worker.answer(order_of(plan, 1))
    out = trained_patient(worker, plan, site)
    asterion("site", "withdraw", site / "site.toml", out)
    archive = site.parent / "b.tar"
    asterion("site", "backup", site / "site.toml", "--out", archive)
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    assert "state/withdrawals.json" in names
    assert "state/runs/r/manifest.json" in names
    assert not [name for name in names if name.startswith("data") or "/reports/" in name]
    assert out.encode() not in archive.read_bytes()
    target = restored(site, asterion, archive)
    asterion("site", "ledger", "accept", target, "--none")
    after = worker_of(target).answer(order_of(plan, 2))
    assert after.num_examples == first.num_examples - 2
    assert (target / "state" / "withdrawals.json").stat().st_mode & 0o777 == 0o600


def test_what_was_approved_is_approved_anew(site: Path, asterion: Callable[..., Any]) -> None:
    for name in "approvals", "days":
        folder = site / "state" / "consent" / name
        folder.mkdir(parents=True)
        (folder / "r.json").write_text("{}")
    archive = site.parent / "b.tar"
    assert asterion("site", "backup", site / "site.toml", "--out", archive).code == 0
    consent = restored(site, asterion, archive) / "state" / "consent"
    assert [path.name for path in consent.iterdir()] == ["days"]


def test_keys_that_wait_for_an_answer_are_in_it(site: Path, asterion: Callable[..., Any]) -> None:
    for options in [], ["--rotate"]:
        assert asterion("site", "init", site / "site.toml", *options).code == 0
    archive = site.parent / "b.tar"
    assert asterion("site", "backup", site / "site.toml", "--out", archive).code == 0
    target = restored(site, asterion, archive)
    for name in "site.key", "site.key.next":
        assert (target / name).read_bytes() == (site / name).read_bytes()
        assert (target / name).stat().st_mode & 0o777 == 0o600


def test_a_state_folder_elsewhere_and_a_key_that_is_not_there_are_told(
    site: Path, asterion: Callable[..., Any]
) -> None:
    toml = site / "site.toml"
    text = toml.read_text()
    toml.write_text(f'state_folder = "{site.parent / "else"}"\n{text}')
    refused = asterion("site", "backup", toml, "--out", site.parent / "b.tar")
    assert refused.code == 2
    assert "is outside of" in refused.err
    toml.write_text(
        text + '[connection]\naddress = "h:1"\nroot_certificate = "ca.pem"\nprivate_key = "k"\n'
    )
    refused = asterion("site", "backup", toml, "--out", site.parent / "b.tar")
    assert refused.code == 11
    assert not (site.parent / "b.tar").exists()
    assert not list(site.parent.glob(".*"))
