"""``asterion audit``: what it prints and how it ends."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.audit.trails import COORDINATOR, SITE, lines_of, make_pair, one_round
from tests.conftest import Ran

from asterion_shared.audit import AuditTrail

Asterion = Callable[..., Ran]


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    make_pair(tmp_path)
    return tmp_path / "site", tmp_path / "centre"


def test_one_side_alone_is_consistent_and_no_more(
    asterion: Asterion, both: tuple[Path, Path]
) -> None:
    ran = asterion("audit", "verify", *sorted(both[0].glob("audit-*.jsonl")))
    assert ran.code == 0
    assert "site:clinic: 10 records in 2 files; begins with key " in ran.out
    assert "consistent to record 9, completeness not proven" in ran.out
    assert str(AuditTrail(both[0], SITE).head()) in ran.out


def test_both_sides_prove_how_far_they_are_whole(
    asterion: Asterion, both: tuple[Path, Path]
) -> None:
    ran = asterion("audit", "verify", *both)
    assert ran.code == 0
    assert "consistent to record 9, which the other side was told: nothing is missing" in ran.out
    assert (
        "consistent to record 8; the other side was told record 7, so none up to there" in ran.out
    )


def test_a_broken_trail_is_named_and_ends_in_26(
    asterion: Asterion, both: tuple[Path, Path]
) -> None:
    file = both[0] / "audit-000002.jsonl"
    content = file.read_bytes()
    file.write_bytes(content.replace(b'"round":4', b'"round":5', 1))
    ran = asterion("audit", "verify", *both)
    assert ran.code == 26
    words = "audit-000002.jsonl: record 8 is edited: it was changed after it was signed"
    assert words in ran.out
    assert "consistent to record 7" in ran.out
    told = json.loads(asterion("audit", "verify", *both, "--json").out)
    found = {side["side"]: side for side in told["sides"]}
    assert found[COORDINATOR]["problem"] is None
    problem = found[SITE]["problem"]
    assert (problem["word"], problem["number"], problem["file"]) == ("edited", 8, str(file))
    ran = asterion("audit", "export", both[0], "--out", both[0] / "out.jsonl")
    assert (ran.code, (both[0] / "out.jsonl").exists()) == (26, False)
    assert "record 8 is edited" in ran.err


def test_a_head_shows_that_the_tail_is_gone(asterion: Asterion, both: tuple[Path, Path]) -> None:
    head = AuditTrail(both[0], SITE).head()
    file = both[0] / "audit-000002.jsonl"
    assert asterion("audit", "verify", both[0], "--head", head).code == 0
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    ran = asterion("audit", "verify", both[0], "--head", head)
    assert ran.code == 26
    assert f"record 9 is missing: whoever gave the head was told {head}" in ran.out
    assert asterion("audit", "verify", both[0], "--head", "9:ff").code == 2


def test_a_known_key_must_be_the_one(
    asterion: Asterion, both: tuple[Path, Path], tmp_path: Path
) -> None:
    for folder, code in zip(both, (0, 26), strict=True):
        pem = asterion("audit", "public-key", folder)
        (tmp_path / "known.pem").write_text(pem.out)
        ran = asterion("audit", "verify", both[0], "--key", tmp_path / "known.pem")
        assert ran.code == code
    assert "record 0 is forged: it begins with the key" in ran.out
    (tmp_path / "known.pem").write_text("no key")
    assert asterion("audit", "verify", both[0], "--key", tmp_path / "known.pem").code == 11


def test_records_are_shown_and_exported(
    asterion: Asterion, both: tuple[Path, Path], tmp_path: Path
) -> None:
    ran = asterion("audit", "show", both[1], "--last", 2)
    assert "Audit trail of coordinator:centre" in ran.out
    assert "answers" in ran.out
    assert "begun" not in ran.out
    out = tmp_path / "out.jsonl"
    assert asterion("audit", "export", *both, "--out", out).code == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["number"] for row in rows if row["side"] == SITE] == list(range(10))
    assert all("signature" not in row for row in rows)
    hashes = {row["sha256"] for row in rows}
    assert {row["previous"] for row in rows} - hashes == {"0" * 64}


def test_a_new_file_and_a_new_key(asterion: Asterion, both: tuple[Path, Path]) -> None:
    ran = asterion("audit", "new-file", both[1])
    assert (ran.code, "audit-000002.jsonl" in ran.out) == (0, True)
    new = asterion("audit", "new-key", both[1])
    assert asterion("audit", "public-key", both[1]).out == new.out
    one_round(AuditTrail(both[0], SITE), AuditTrail(both[1], COORDINATOR), 5)
    ran = asterion("audit", "verify", *both)
    assert (ran.code, "signed since with" in ran.out) == (0, True)


def test_what_is_no_trail_is_said_in_one_line(asterion: Asterion, tmp_path: Path) -> None:
    file = tmp_path / "audit-000001.jsonl"
    file.write_text("hello\n")
    ran = asterion("audit", "verify", file)
    assert (ran.code, "holds no audit record" in ran.err) == (11, True)
    assert asterion("audit", "verify", tmp_path / "none").code == 11
    (tmp_path / "empty").mkdir()
    assert asterion("audit", "verify", tmp_path / "empty").code == 11
    for command in ("public-key", "new-file", "new-key"):
        assert asterion("audit", command, tmp_path / "empty").code == 26
        assert list((tmp_path / "empty").iterdir()) == []
    assert lines_of(tmp_path / "empty") == ()
