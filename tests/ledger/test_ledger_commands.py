"""``asterion site ledger`` as a person uses it."""

import hashlib
import json
import sqlite3
import sys
from pathlib import Path

import pytest

from asterion_client.privacy_ledger import Ledger, ledger_folder
from asterion_client.settings import PrivacySettings, read_site_settings
from asterion_shared.command_line import main
from asterion_shared.errors import SettingsError
from asterion_shared.privacy.charges import DiscreteGaussianSumCharge, GaussianCharge

SITE = 'name = "clinic"\ntask = "anomaly"\n[data]\nformat = "npz"\n'
BUDGET = "[privacy]\nepsilon_limit = 8.0\ndelta = 1e-6\n"


@pytest.fixture
def asterion(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["asterion", "site", "ledger", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "160")
        code = 0
        try:
            main()
        except SystemExit as error:
            code = int(error.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


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


def test_show_has_a_line_a_run_and_one_sentence(asterion, site: Path) -> None:
    code, out, _ = asterion("show", site)
    assert code == 0
    lungs = next(line for line in out.splitlines() if "lungs" in line)
    for words in ("train", "1-3", "3 patients", "1, 0.01 drawn, 300 times"):
        assert words in lungs
    assert "17.3 in 3 shares" in next(line for line in out.splitlines() if "[b]" in line)
    data = json.loads(asterion("show", site / "site.toml", "--json")[1])
    spent = data["runs"][-1]["epsilon_so_far"]
    assert [run["run"] for run in data["runs"]] == ["lungs", "[b]"]
    assert 0 < data["runs"][0]["epsilon_so_far"] < spent < 8
    assert data["head"]["count"] == 4
    assert "The most exposed patient has lost at most epsilon" in out
    assert "comparing data with or without one of them; this site allows epsilon 8 at" in out
    left = float(out.partition(", so ")[2].split()[0])
    assert left == pytest.approx(8 - spent, abs=1.1e-3)
    assert left <= 8 - spent
    assert f"4 entries; head {data['head']['sha256']}" in out
    assert hashlib.sha256(b"patient 0").hexdigest() not in out


def test_show_without_a_budget_or_a_charge(asterion, site: Path) -> None:
    (site / "site.toml").write_text(SITE)
    code, out, _ = asterion("show", site)
    assert code == 0
    assert "no [privacy], so nothing more can be charged." in out
    (site / "site.toml").write_text(f'state_folder = "new"\n{SITE}{BUDGET}')
    code, _, err = asterion("show", site)
    assert code == 11
    assert "no such ledger" in err
    Ledger(site / "new/ledger", PrivacySettings()).close()
    out = asterion("show", site)[1]
    assert "Nothing was charged yet; this site allows epsilon 8 at delta 1e-06." in out


def test_a_limit_below_what_is_lost_leaves_nothing(asterion, site: Path) -> None:
    (site / "site.toml").write_text(SITE + BUDGET.replace("8.0", "0.1"))
    assert "allows epsilon 0.1 at delta 1e-06, so nothing is left." in asterion("show", site)[1]


def test_verify_says_whole_or_what_is_wrong(asterion, site: Path) -> None:
    code, out, _ = asterion("verify", site)
    assert code == 0
    assert out.startswith("the ledger is whole; 4 entries, head ")
    assert json.loads(asterion("verify", site, "--json")[1])["problems"] == []
    database = sqlite3.connect(site / "state/ledger/ledger.sqlite")
    database.execute("DELETE FROM entry WHERE number = 2")
    database.commit()
    database.close()
    code, out, _ = asterion("verify", site)
    assert code == 25
    assert "entry 2 is missing; no private release leaves this site until a person decides" in out
    assert "the ledger is not whole; up to there 1 entries" in out
    code, out, _ = asterion("verify", site, "--json")
    assert (code, json.loads(out)["head"]["count"]) == (25, 1)
    code, _, err = asterion("show", site)
    assert code == 25
    assert "entry 2 is missing" in err


def test_export_writes_lines(asterion, site: Path, tmp_path: Path) -> None:
    out = tmp_path / "lines"
    code, words, _ = asterion("export", site, "--out", out)
    assert code == 0
    assert words.startswith(f"{out}: 4 entries; head ")
    assert len(out.read_text().splitlines()) == 5
    asterion("export", site, "--out", out, "--unit-ids")
    assert len(out.read_text().splitlines()) == 6


def test_no_option_lifts_the_limit(asterion) -> None:
    for command in ("show", "export", "verify"):
        out = asterion(command, "--help")[1]
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
