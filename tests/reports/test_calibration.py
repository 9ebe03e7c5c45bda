"""Calibration: from the sites' statistics to result.json and the reliability diagram."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from asterion_server.measured import Measured
from asterion_server.rounds import run_rounds
from asterion_shared.errors import QuorumLostError
from asterion_shared.messages import Answer, NoReport, Order, Report
from asterion_shared.metrics import Statistics, merge
from asterion_shared.metrics.confusion import calibration, calibration_error
from asterion_shared.metrics.decisions import Decisions, Threshold, fit_decisions
from asterion_shared.metrics.merged_bins import beside, merged
from asterion_shared.metrics.reliability import ConfidenceBin, Reliability, reliability
from asterion_shared.metrics.scores import probability_edges, score_histograms
from asterion_shared.plan import DataContract, ModelSettings, Plan
from asterion_shared.reports.reliability_chart import reliability_chart
from asterion_shared.reports.run_report import write_report
from asterion_shared.result import BestModel, Result, read_result, write_result
from asterion_shared.round_settings import RoundSettings

Make = Callable[..., Result]
KEPT = np.zeros(14, np.bool_)
KEPT[10] = True  # one edge is left, at 11 / 15


def told(confidence: list[float], right: list[bool], *, cut: bool = False) -> Statistics:
    whole = calibration(confidence, right)
    if not cut:
        return {"calibration": whole}
    return {"calibration": merged(whole, KEPT), "calibration_edges": beside(whole, KEPT)}


@pytest.fixture
def classes() -> Plan:
    return Plan(
        name="calls",
        task="classification",
        model=ModelSettings(name="cnn"),
        data=DataContract(classes=("well", "ill")),
    )


def test_each_bin_has_its_calls_mean_confidence_and_share_right() -> None:
    # 0.55 and 0.59 lie in [8/15, 9/15), 0.95 in the last.
    found = reliability(told([0.55, 0.59, 0.95], [True, False, True]))
    assert found is not None
    assert not found.is_merged
    first, last = found.bins
    assert (first.low, first.high, first.num_cases) == (pytest.approx(8 / 15), 0.6, 2)
    assert (first.confidence, first.right) == (pytest.approx(0.57), 0.5)
    assert (last.high, last.num_cases, last.confidence, last.right) == (1.0, 1, 0.95, 1.0)


def test_without_a_call_there_is_none() -> None:
    assert reliability({}) is None
    assert reliability(told([], [])) is None


def test_one_site_with_merged_ranges_merges_those_of_the_sum(classes: Plan) -> None:
    measured = Measured(classes, ("east", "north", "south"))
    measured.add("north", told([0.65, 0.75], [True, True], cut=True))
    measured.add("east", told([0.55, 0.65, 0.95], [False, True, True]))
    measured.add("south", {})
    found = measured.finish()
    assert list(found.site_calibration) == ["east", "north"]
    assert found.calibration is not None
    assert found.calibration.num_ranges == 2
    assert found.calibration.is_merged
    low, high = found.calibration.bins
    assert (low.low, low.high, low.num_cases) == (0.0, pytest.approx(11 / 15), 3)
    assert (low.confidence, low.right) == (pytest.approx((0.55 + 0.65 + 0.65) / 3), 2 / 3)
    assert (high.num_cases, high.right) == (2, 1.0)
    assert not found.site_calibration["east"].is_merged


def told_in(plan: Plan, round_: int) -> Statistics:
    """40 calls whose confidence tells the order, and scores that part the better the later."""
    truth = np.arange(40) % 4 == 0
    scores = expit(np.linspace(-3, 1, 40) + round_ * truth)
    scored = score_histograms(scores, truth, probability_edges(plan.evaluation))
    return {**told([0.5 + round_ / 10] * 40, [True] * 40), "score": scored}


class Calls:
    """Two sites that tell :func:`told_in`; ``north`` goes after a time."""

    def __init__(self, gone_after: int) -> None:
        self.gone_after = gone_after

    def sites(self) -> tuple[str, ...]:
        return ("east", "north")

    def ask(self, order: Order, sites: Iterable[str]) -> Iterator[Answer]:
        for site in sites:
            if site == "north" and order.round > self.gone_after:
                yield NoReport(site=site, outcome="late")
                continue
            yield Report(
                site=site,
                num_examples=2,
                num_test=40,
                num_bad_files=0,
                manifest_sha256="0" * 64,
                update=None if order.weights is None else 0 * order.weights,
                num_steps=1,
                train_loss=0.5,
                statistics=told_in(order.plan, order.round) if order.evaluate else {},
            )


@pytest.mark.parametrize(("gone_after", "round_", "num_cases"), [(9, 3, 80), (1, 2, 40)])
def test_a_run_keeps_what_was_found_of_each_model(
    gone_after: int, round_: int, num_cases: int, tmp_path: Path
) -> None:
    plan = Plan(
        name="calls",
        task="classification",
        model=ModelSettings(name="logistic"),
        data=DataContract(kind="table", features=("a",), classes=("well", "ill")),
        rounds=RoundSettings(count=2, quorum=2),
    )
    # Round 2 loses its quorum without north, and what it measured is the model after round 1.
    with nullcontext() if gone_after == 9 else pytest.raises(QuorumLostError):
        run_rounds(
            plan, Calls(gone_after), tmp_path, run="r", expected_sites=("east", "north"),
            carrier="simulation",
        )  # fmt: skip
    found = read_result(tmp_path / "result.json")
    told_of = [r for r in found.rounds if r.calibration is not None]
    assert [r.round for r in told_of] == list(range(round_))
    assert told_of[-1].calibration == found.final_calibration
    for one in told_of:
        there = ["east", "north"] if one.round < gone_after else ["east"]
        pooled = merge(told_in(plan, one.round + 1) for _ in there)
        assert one.decisions == fit_decisions(pooled, plan)
    assert len({one.decisions.temperature for one in told_of if one.decisions}) == round_
    assert told_of[-1].decisions == found.decisions
    assert found.final_calibration is not None
    (one,) = found.final_calibration.bins
    assert (one.num_cases, one.confidence) == (num_cases, pytest.approx(0.5 + round_ / 10))
    assert found.final_metrics["num_cases"] == num_cases
    assert list(found.site_calibration) == ["east", "north"][: num_cases // 40]


def test_merged_ranges_never_show_a_larger_calibration_error() -> None:
    rng = np.random.default_rng(3)
    whole = calibration(rng.uniform(0.5, 1, 400), rng.random(400) < 0.7)
    assert (calibration_error(merged(whole, KEPT)) or 1) <= (calibration_error(whole) or 0)


def test_the_interval_of_a_share_is_wilsons() -> None:
    # 8 of 10: 0.490 to 0.943 (Brown, Cai and DasGupta 2001, table of the Wilson interval).
    one = ConfidenceBin(low=0.8, high=1.0, num_cases=10, confidence=0.9, right=0.8)
    assert one.right_bounds == pytest.approx((0.490, 0.943), abs=1e-3)
    none = ConfidenceBin(low=0.8, high=1.0, num_cases=10, confidence=0.9, right=0.0)
    assert none.right_bounds[0] == 0.0
    assert 0.2 < none.right_bounds[1] < 0.4


def _shown(make_result: Make, tmp_path: Path, *, cut: bool) -> tuple[Result, str]:
    pooled = reliability(told([0.55, 0.65, 0.95] * 5, [False, True, True] * 5, cut=cut))
    result = make_result(
        task="classification",
        final_metrics={"auroc": 0.8, "calibration_error": 0.0712, "num_cases": 15.0},
        final_calibration=pooled,
        site_calibration={"east": pooled},
    )
    write_report(result, tmp_path / "report.html")
    return result, (tmp_path / "report.html").read_text(encoding="utf-8")


def test_result_json_keeps_it(make_result: Make, tmp_path: Path) -> None:
    result, _ = _shown(make_result, tmp_path, cut=True)
    write_result(result, tmp_path / "result.json")
    again = read_result(tmp_path / "result.json")
    assert again.final_calibration == result.final_calibration
    assert again.site_calibration == result.site_calibration


def test_the_page_draws_it_and_says_when_it_can_only_come_out_too_low(
    make_result: Make, tmp_path: Path
) -> None:
    _, page = _shown(make_result, tmp_path, cut=True)
    words = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "(calibration error): 0.071." in words
    assert "2 of 15 are left over all sites" in words
    assert "can only come out too low" in words
    assert "1 site sent nothing for it" in words  # east told it, of the two of the last round
    _, whole = _shown(make_result, tmp_path, cut=False)
    assert "reliability" in whole
    assert "too low" not in whole


def test_a_page_without_it_has_no_such_section(make_result: Make, tmp_path: Path) -> None:
    write_report(make_result(), tmp_path / "report.html")
    assert "Calibration:" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_diagram_puts_dots_and_counts_where_they_belong() -> None:
    sure = ConfidenceBin(low=14 / 15, high=1.0, num_cases=30, confidence=1.0, right=1.0)
    unsure = ConfidenceBin(low=8 / 15, high=0.6, num_cases=10, confidence=0.6, right=0.0)
    text = reliability_chart(Reliability(bins=(unsure, sure), num_ranges=15), {"<b>": Reliability(
        bins=(sure,), num_ranges=1)})  # fmt: skip
    root = ET.fromstring(text)  # noqa: S314  # our own text
    low, high = list(root.iter("circle"))
    diagonal = next(e for e in root.iter("line") if e.get("class") == "baseline")
    assert high.get("cy") == "16.0"
    assert (high.get("cx"), high.get("cy")) == (diagonal.get("x2"), diagonal.get("y2"))
    assert float(low.get("cy") or 0) > float(diagonal.get("y1") or 0)  # below the line's begin
    bars = [float(e.get("height") or 0) for e in root.iter("rect")]
    assert bars[1] == pytest.approx(3 * bars[0], abs=0.1)
    counts = [e.text for e in root.iter("text") if e.get("class") == "count"]
    assert counts == ["10", "30"]
    assert "<b>" not in text


def test_a_sites_line_leaves_out_ranges_with_few_calls() -> None:
    one = ConfidenceBin(low=0.6, high=0.8, num_cases=9, confidence=0.7, right=1.0)
    two = ConfidenceBin(low=0.8, high=1.0, num_cases=10, confidence=0.9, right=0.5)
    both = Reliability(bins=(one, two), num_ranges=15)
    root = ET.fromstring(reliability_chart(both, {"east": both}))  # noqa: S314
    (line,) = root.iter("polyline")
    assert len((line.get("points") or "").split()) == 1
    assert len(list(root.iter("circle"))) == 2


@pytest.mark.parametrize(("temperature", "words"), [(1.5, "too sure"), (0.7, "not sure enough")])
def test_thresholds_temperature_and_the_best_model_are_shown(
    temperature: float, words: str, make_result: Make, tmp_path: Path
) -> None:
    found = Decisions(
        temperature=temperature, log_loss=0.4321, log_loss_after=0.4111, num_cases=1200,
        num_bins=40, thresholds={
            "youden": Threshold(score=0.3125, sensitivity=0.91, false_alarm_rate=0.08)
        },
    )  # fmt: skip
    best = BestModel(path="best.safetensors", sha256="c" * 64, round=1, metric="auroc", value=0.93)
    result = make_result(task="classification", decisions=found, best_model=best)
    write_report(result, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    told = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert f"temperature of {temperature:.3f} brings the mean log loss from 0.432 to 0.411" in told
    assert f"the model is {words}." in told
    assert "(Youden) 0.312 0.910 0.080" in told
    assert "Cases: 1,200, in 40 bins." in told
    assert "best.safetensors, after round 1, pooled AUROC 0.930, SHA-256 ccc" in told
    same = best.model_copy(update={"path": "model.safetensors"})
    write_report(result.model_copy(update={"best_model": same}), tmp_path / "report.html")
    assert "the final one, pooled AUROC 0.930" in (tmp_path / "report.html").read_text("utf-8")
