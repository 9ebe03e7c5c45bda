import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from asterion_shared.absences import ranges, round_words
from asterion_shared.errors import FileProblemError
from asterion_shared.result import (
    Result,
    RoundResult,
    SiteOutcome,
    headline,
    read_result,
    result_schema,
    write_result,
)

Make = Callable[..., Result]


def _round(number: int, **reasons: str) -> RoundResult:
    outcomes = {
        site: SiteOutcome(outcome="answered")
        if reason == "ok"
        else SiteOutcome(outcome="late")
        if reason == "late"
        else SiteOutcome(outcome="failed", code=reason)
        for site, reason in reasons.items()
    }
    return RoundResult(round=number, asked=tuple(sorted(reasons)), outcomes=outcomes)


def test_a_result_comes_back_equal_with_its_headline(make_result: Make, tmp_path: Path) -> None:
    written = write_result(make_result(), tmp_path / "result.json")
    assert written.headline == "2 of 2 rounds finished; site north missing in round 2 (unreachable)"
    assert read_result(tmp_path / "result.json") == written


def test_a_stale_headline_is_written_anew(make_result: Make, tmp_path: Path) -> None:
    written = write_result(make_result(headline="all is well"), tmp_path / "result.json")
    assert "north" in written.headline


def test_headline_joins_ranges_and_reasons(make_result: Make) -> None:
    rounds = [_round(0, a="ok", b="late")]
    rounds += [_round(n, a="ok", b="unreachable") for n in (1, 2, 3)]
    rounds += [_round(4, a="ok", b="ok"), _round(5, a="ok", b="late")]
    said = headline(make_result(rounds=tuple(rounds), rounds_planned=5, sites=()))
    assert said == (
        "5 of 5 rounds finished; "
        "site b missing at the start and in round 5 (late) and in rounds 1-3 (unreachable)"
    )


def test_headline_says_when_nobody_was_missing(make_result: Make) -> None:
    rounds = (_round(0, a="ok"), _round(1, a="ok"))
    said = headline(make_result(rounds=rounds, rounds_planned=1, sites=()))
    assert said == "1 of 1 rounds finished; no site was missing"


def test_headline_of_a_lost_quorum_does_not_count_the_lost_round(make_result: Make) -> None:
    rounds = (_round(1, a="ok", b="ok"), _round(2, a="ok", b="late"))
    said = headline(make_result(rounds=rounds, status="quorum_lost", sites=()))
    assert said == (
        "quorum lost after 1 of 2 rounds: 1 of 2 sites answered; site b missing in round 2 (late)"
    )


def test_headline_names_a_site_that_was_never_asked(make_result: Make) -> None:
    rounds = (_round(1, east="ok", south="ok"),)
    assert "site north was never asked" in headline(make_result(rounds=rounds))


@pytest.mark.parametrize(("kind", "words"), [("count", "count"), ("evaluate", "evaluation")])
def test_headline_of_a_run_without_training(make_result: Make, kind: str, words: str) -> None:
    rounds = (_round(0, a="ok"),)
    said = headline(make_result(kind=kind, rounds=rounds, rounds_planned=0, sites=()))
    assert said == f"{words} finished; no site was missing"


def test_a_number_that_is_not_finite_becomes_null(tmp_path: Path, make_result: Make) -> None:
    round_ = RoundResult(round=0, pooled={"dice": math.nan, "auroc": math.inf, "iou": 0.5})
    assert round_.pooled == {"dice": None, "auroc": None, "iou": 0.5}
    write_result(make_result(rounds=(round_,)), tmp_path / "r.json")
    assert "NaN" not in (tmp_path / "r.json").read_text()


def test_train_loss_is_weighted_by_examples() -> None:
    # (1 * 2.0 + 3 * 4.0) / 4 = 3.5; the third site has no loss
    outcomes = {
        "a": SiteOutcome(outcome="answered", num_examples=1, train_loss=2.0),
        "b": SiteOutcome(outcome="answered", num_examples=3, train_loss=4.0),
        "c": SiteOutcome(outcome="late"),
    }
    round_ = RoundResult(round=1, asked=("a", "b", "c"), outcomes=outcomes)
    assert round_.train_loss == 3.5
    assert round_.answered == ("a", "b")
    assert round_.missing == {"c": "late"}
    assert RoundResult(round=1).train_loss is None


def test_contradictions_are_refused(make_result: Make) -> None:
    with pytest.raises(ValidationError, match="one outcome for each site"):
        RoundResult(round=1, asked=("a",))
    with pytest.raises(ValidationError, match="in order"):
        make_result(rounds=(_round(2, a="ok"), _round(1, a="ok")))
    with pytest.raises(ValidationError):
        make_result(started="2026-01-02 03:04:05")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1]", "schema_version None"),
        (b'{"schema_version": 2}', "schema_version 2; this program reads version 1"),
        (b'{"schema_version": 1, "oddity": 3}', "oddity: unknown key"),
    ],
)
def test_a_broken_file_is_named_with_its_problem(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(FileProblemError, match=what):
        read_result(tmp_path / "result.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileProblemError, match="No such file"):
        read_result(tmp_path / "result.json")


def test_the_schema_document_names_every_key(make_result: Make) -> None:
    schema = result_schema()
    assert schema["required"]
    assert json.dumps(schema)
    text = (Path(__file__).parents[2] / "docs" / "result.md").read_text(encoding="utf-8")
    models = [schema, *schema["$defs"].values()]
    keys = {key for model in models for key in model["properties"]}
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []


@given(st.lists(st.integers(0, 40)))
def test_ranges_can_be_read_back(numbers: list[int]) -> None:
    text = ranges(numbers)
    back: list[int] = []
    for part in filter(None, text.split(", ")):
        first, _, last = part.partition("-")
        back += range(int(first), int(last or first) + 1)
    assert back == sorted(set(numbers))


def test_round_words_of_nothing_is_nothing() -> None:
    assert round_words([]) == ""
