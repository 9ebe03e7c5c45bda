"""The pages in headless Chromium: nothing is cut off, at a desk and on a phone, light and dark."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from asterion_shared.metrics.confusion import calibration
from asterion_shared.metrics.reliability import reliability
from asterion_shared.reports.compare_page import write_comparison
from asterion_shared.reports.compared_runs import ComparedRun
from asterion_shared.reports.run_report import write_report
from asterion_shared.result import Result, RoundResult, SiteOutcome, SiteSummary

pytestmark = pytest.mark.live
LONG = "university-hospital-{:02d}-department-of-radiology-and-neurology"

WIDER = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
CUT = """
return [...document.querySelectorAll('.chart text')].filter(text => {
  const box = text.getBoundingClientRect();
  return box.width && (box.left < 0 || box.right > document.documentElement.clientWidth);
}).map(text => text.textContent)"""
"""Texts of charts that reach out of the window."""

BROKEN = """
return [...document.querySelectorAll('tbody th, td')].filter(
  cell => cell.textContent.trim().length > 12 && cell.getBoundingClientRect().width < 80
).map(cell => cell.textContent)"""
"""Cells so narrow that their words are broken letter by letter."""

PALE = """
const channel = c => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
const behind = node => {
  for (let e = node; e; e = e.parentElement) {
    const colour = numbers(getComputedStyle(e).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
return [...document.querySelectorAll('p, td, th, dt, dd, li, h1, h2, h3, summary, text, span')]
  .filter(node => {
    if (!node.textContent.trim() || !node.getBoundingClientRect().width) return false;
    const style = getComputedStyle(node);
    const ink = numbers(node.tagName === 'text' ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(node))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
  }).map(node => node.textContent.slice(0, 40))"""
"""Texts with less contrast than WCAG AA asks for."""


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        yield driver
    finally:
        driver.quit()


def _rounds(names: list[str], count: int) -> tuple[RoundResult, ...]:
    def outcome(number: int, index: int) -> SiteOutcome:
        if number and (3 * index + number) % 7 == 0:
            return SiteOutcome(outcome="failed", code="unreachable", stage="receiving")
        return SiteOutcome(outcome="answered", num_examples=1000, num_test=200, seconds=3.5,
                           train_loss=1 / (number + 1))  # fmt: skip

    rounds = []
    for number in range(count + 1):
        outcomes = {name: outcome(number, index) for index, name in enumerate(names)}
        sites: dict[str, dict[str, float | None]] = {
            name: {"auroc": 0.5 + number / (3 * count) + index / 500, "num_cases": 200.0}
            for index, name in enumerate(names)
            if outcomes[name].outcome == "answered"
        }
        rounds.append(
            RoundResult(
                round=number, asked=tuple(names), outcomes=outcomes, sites=sites, seconds=900.0,
                pooled={"auroc": 0.5 + number / (3 * count), "baseline/auroc": 0.5},
                bytes_down=12_345_678, bytes_up=12_345_678, deadline_seconds=3600.0,
            )
        )  # fmt: skip
    return tuple(rounds)


@pytest.fixture
def pages(make_result: Callable[..., Result], tmp_path: Path) -> list[Path]:
    """Fifty sites, long names, a lost quorum, a run that asked nobody, and nine runs compared."""
    told = reliability({"calibration": calibration([0.31, 0.55, 0.72, 0.99] * 500,
                                                   [False, True, True, True] * 500)})  # fmt: skip

    def make(names: list[str], count: int, **changes: Any) -> Result:
        rounds = _rounds(names, count)
        values: dict[str, Any] = {
            "task": "classification", "carrier": "link", "rounds_planned": count, "rounds": rounds,
            "final_metrics": rounds[-1].pooled | {"calibration_error": 0.07},
            "final_calibration": told, "site_calibration": dict.fromkeys(names, told),
            "sites": tuple(SiteSummary(name=n, num_examples=1000, num_test=200) for n in names),
        }  # fmt: skip
        return make_result(**values | changes)

    fifty, long = [f"site-{i:02d}" for i in range(50)], [LONG.format(i) for i in range(5)]
    results = {
        "fifty": make(fifty, 20),
        LONG.format(7): make(long, 6),
        "lost": make(long[:3], 4, status="quorum_lost"),
        "nothing": make_result(status="failed", rounds=(), final_metrics={}, sites=()),
    }
    for name, result in results.items():
        write_report(result, tmp_path / name / "report.html")
    runs = [ComparedRun(label=n, result=r, plan=None) for n, r in list(results.items())[:3]]
    runs += [ComparedRun(label=f"run-{i}", result=results["fifty"], plan=None) for i in range(6)]
    write_comparison(runs, tmp_path / "compare.html")
    return [*(tmp_path / name / "report.html" for name in results), tmp_path / "compare.html"]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_or_pale(
    browser: webdriver.Chrome, pages: list[Path], width: int, scheme: str
) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    found = {}
    for page in pages:
        browser.get(page.as_uri())
        browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        wrong = {what: browser.execute_script(script) for what, script in
                 (("wider", WIDER), ("cut", CUT), ("broken", BROKEN), ("pale", PALE))}  # fmt: skip
        found[page.parent.name, page.name] = {k: v for k, v in wrong.items() if v}
    assert not any(found.values()), found
    assert len(found) == 5
