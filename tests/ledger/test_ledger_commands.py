"""``asterion site ledger`` as a person uses it."""

import hashlib
import json
import sqlite3
from functools import partial
from pathlib import Path

import pytest

from asterion_client.privacy_ledger import Ledger, ledger_folder
from asterion_client.settings import PrivacySettings, read_site_settings
from asterion_shared.errors import SettingsError
from asterion_shared.privacy.charges import DiscreteGaussianSumCharge, GaussianCharge

SITE = 'name = "clinic"\ntask = "anomaly"\n[data]\nformat = "npz"\n'
BUDGET = "[privacy]\nepsilon_limit = 8.0\ndelta = 1e-6\n"


@pytest.fixture
def ledger(asterion, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "160")
    return partial(asterion, "site", "ledger")


@pytest.fixture
def site(tmp_path: Path, release) -> Path:
    """A site with two runs in its ledger, one at the level of patients, one of the site."""
    (tmp_path / "site.toml").write_text(SITE + BUDGET)
    settings = read_site_settings(tmp_path / "site.toml")
    sampled = GaussianCharge(
        relation="add_or_remove_one", noise_multiplier=1.0, sampling_rate=0.01, times=100
    )
    shares = DiscreteGaussianSumCharge(
        relation="replace_one", l2_sensitivity=100.0, share_sigma=1000.0, num_shares=3, dimension=50
    )
    with Ledger(ledger_folder(settings, tmp_path), settings.privacy) as ledger:
        for number in (1, 2, 3):
            ledger.charge(release(str(number), run="lungs", round=number, charges=(sampled,)))
        ledger.charge(
            release("s", run="[b]", charges=(shares,), unit_kind="site", units=frozenset())
        )
    return tmp_path


def test_show_has_a_line_a_run_and_one_sentence(ledger, site: Path) -> None:
    ran = ledger("show", site)
    assert ran.code == 0
    lungs = next(line for line in ran.out.splitlines() if "lungs" in line)
    for words in ("train", "1-3", "3 patients", "1, 0.01 drawn, 300 times"):
        assert words in lungs
    assert "17.3 in 3 shares" in next(line for line in ran.out.splitlines() if "[b]" in line)
    data = json.loads(ledger("show", site / "site.toml", "--json").out)
    spent = data["runs"][-1]["epsilon_so_far"]
    assert [run["run"] for run in data["runs"]] == ["lungs", "[b]"]
    assert 0 < data["runs"][0]["epsilon_so_far"] < spent < 8
    assert data["head"]["count"] == 4
    assert "The most exposed patient has lost at most epsilon" in ran.out
    assert "comparing data with or without one of them; this site allows epsilon 8 at" in ran.out
    left = float(ran.out.partition(", so ")[2].split()[0])
    assert left == pytest.approx(8 - spent, abs=1.1e-3)
    assert left <= 8 - spent
    assert f"4 entries; head {data['head']['sha256']}" in ran.out
    assert hashlib.sha256(b"patient 0").hexdigest() not in ran.out


def test_show_without_a_budget_or_a_charge(ledger, site: Path) -> None:
    (site / "site.toml").write_text(SITE)
    ran = ledger("show", site)
    assert ran.code == 0
    assert "no [privacy], so nothing more can be charged." in ran.out
    (site / "site.toml").write_text(f'state_folder = "new"\n{SITE}{BUDGET}')
    ran = ledger("show", site)
    assert ran.code == 11
    assert "no such ledger" in ran.err
    Ledger(site / "new/ledger", PrivacySettings()).close()
    out = ledger("show", site).out
    assert "Nothing was charged yet; this site allows epsilon 8 at delta 1e-06." in out


def test_a_limit_below_what_is_lost_leaves_nothing(ledger, site: Path) -> None:
    (site / "site.toml").write_text(SITE + BUDGET.replace("8.0", "0.1"))
    assert "allows epsilon 0.1 at delta 1e-06, so nothing is left." in ledger("show", site).out


def test_verify_says_whole_or_what_is_wrong(ledger, site: Path) -> None:
    ran = ledger("verify", site)
    assert ran.code == 0
    assert ran.out.startswith("the ledger is whole; 4 entries, head ")
    assert json.loads(ledger("verify", site, "--json").out)["problems"] == []
    database = sqlite3.connect(site / "state/ledger/ledger.sqlite")
    database.execute("DELETE FROM entry WHERE number = 2")
    database.commit()
    database.close()
    ran = ledger("verify", site)
    assert ran.code == 25
    assert (
        "entry 2 is missing; no private release leaves this site until a person decides" in ran.out
    )
    assert "the ledger is not whole; up to there 1 entries" in ran.out
    ran = ledger("verify", site, "--json")
    assert (ran.code, json.loads(ran.out)["head"]["count"]) == (25, 1)
    ran = ledger("show", site)
    assert ran.code == 25
    assert "entry 2 is missing" in ran.err


def test_export_writes_lines(ledger, site: Path, tmp_path: Path) -> None:
    out = tmp_path / "lines"
    ran = ledger("export", site, "--out", out)
    assert ran.code == 0
    assert ran.out.startswith(f"{out}: 4 entries; head ")
    assert len(out.read_text().splitlines()) == 5
    ledger("export", site, "--out", out, "--unit-ids")
    assert len(out.read_text().splitlines()) == 6


def test_no_option_lifts_the_limit(ledger) -> None:
    for command in ("show", "export", "verify"):
        out = ledger(command, "--help").out
        assert "limit" not in out
        assert "force" not in out


@pytest.mark.parametrize("wrong", ["epsilon_limit = 0", "delta = 1.0", "delta = 0", "lift = true"])
def test_a_wrong_budget_is_named(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "site.toml"
    path.write_text(SITE + f"[privacy]\n{wrong}\n")
    with pytest.raises(SettingsError, match=r"privacy\."):
        read_site_settings(path)


def test_the_budget_has_documented_defaults(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text(SITE)
    assert read_site_settings(path).privacy is None
    path.write_text(SITE + "[privacy]\n")
    assert read_site_settings(path).privacy == PrivacySettings(epsilon_limit=8.0, delta=1e-6)
