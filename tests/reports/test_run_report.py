import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from asterion_shared.errors import PlanMismatchError
from asterion_shared.plan import Plan
from asterion_shared.reports.pictures import Picture
from asterion_shared.reports.run_report import write_report
from asterion_shared.reports.site_report import write_site_report
from asterion_shared.result import Result, RoundResult, SiteOutcome, SiteSummary
from asterion_shared.site_rounds import SiteRound

Make = Callable[..., Result]
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (300).to_bytes(4, "big") + (200).to_bytes(4, "big")
SHARED = Path(__file__).parents[2] / "shared" / "asterion_shared"
STYLE = SHARED / "reports" / "templates" / "style.css"


class Page(HTMLParser):
    """Collects text, tags and addresses; fails on tags that are not closed in order."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.title, self.text = "", ""
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "title" and "svg" not in self.open:
            self.title += data
        elif "style" not in self.open:
            self.text += " " + data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def write(result: Result, path: Path, **options: object) -> Page:
    write_report(result, path, **options)  # type: ignore[arg-type]
    return Page(path)


def test_the_report_tells_the_run(make_result: Make, plan: Plan, tmp_path: Path) -> None:
    page = write(make_result(), tmp_path / "report.html", plan=plan)
    assert page.title == (
        "small-run: 2 of 2 rounds finished; site north missing in round 2 (unreachable)"
    )
    assert "pooled Dice of 0.600 (95 % interval 0.550 to 0.650) on 8 held-out examples" in (
        page.words
    )
    assert "above the trivial baseline of 0.010" in page.words
    assert "Not in these numbers, for want of an answer: north." in page.words
    assert "lowest Dice is east (0.600)" in page.words
    assert (
        "Site north: failed while receiving in round 2: the site could not be reached "
        "[unreachable]." in page.words
    )
    assert "Site south: 1 file could not be read and was skipped" in page.words
    assert "None: updates leave the sites in clear; no epsilon is claimed." in page.words
    for fact in (plan.sha256, "a" * 64, "b" * 64, "torch 2.13.0", 'name = "small-run"'):
        assert fact in page.words
    assert "9.0 kB" in page.words  # 3 rounds x 3000 bytes down
    assert sum(tag == "svg" and a.get("class") == "chart" for tag, a in page.tags) == 3


def test_the_report_loads_nothing_and_runs_nothing(make_result: Make, tmp_path: Path) -> None:
    pictures = (Picture("Best", "Dice 1", PNG),)
    page = write(make_result(), tmp_path / "report.html", pictures=pictures)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    addresses = [a[k] for _, a in page.tags for k in ("src", "href", "srcset") if k in a]
    assert addresses
    assert all((address or "").startswith("data:image/png;base64,") for address in addresses)
    assert "http" not in page.source.replace("http-equiv", "")
    assert "@import" not in page.source
    assert "url(" not in page.source


def test_the_same_result_gives_the_same_bytes(
    make_result: Make, plan: Plan, tmp_path: Path
) -> None:
    for name in ("a.html", "b.html"):
        write_report(make_result(), tmp_path / name, plan=plan)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_live_report_refuses_pictures(make_result: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 pictures are given for the report of a live run"):
        write_report(
            make_result(carrier="flower"), tmp_path / "r.html", pictures=[Picture("a", "b", PNG)]
        )
    assert not (tmp_path / "r.html").exists()
    page = write(make_result(carrier="flower"), tmp_path / "r.html")
    assert "img" not in {tag for tag, _ in page.tags}


def test_another_plan_is_refused(make_result: Make, plan: Plan, tmp_path: Path) -> None:
    other = plan.model_copy(update={"seed": 2})
    with pytest.raises(PlanMismatchError, match=plan.sha256[:12]):
        write_report(make_result(), tmp_path / "r.html", plan=other)


def test_what_comes_from_others_is_escaped(make_result: Make, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    rounds = (
        RoundResult(
            round=1,
            asked=("a",),
            outcomes={"a": SiteOutcome(outcome="failed", code=evil, stage=evil)},
            pooled={f"dice/{evil}": 0.5, "dice": 0.5},
        ),
    )
    result = make_result(
        rounds=rounds, run=evil, versions={evil: evil}, final_metrics=rounds[0].pooled
    )
    page = write(result, tmp_path / "r.html", pictures=[Picture(evil, evil, PNG)])
    assert "<script" not in page.source.lower()


@pytest.mark.parametrize("task", ["segmentation", "classification", "anomaly"])
@pytest.mark.parametrize("kind", ["train", "evaluate", "count"])
def test_an_empty_run_still_has_a_page(
    make_result: Make, tmp_path: Path, task: str, kind: str
) -> None:
    result = make_result(
        task=task, kind=kind, rounds=(), sites=(), final_metrics={}, final_model=None, versions={},
        status="failed",
    )  # fmt: skip
    page = write(result, tmp_path / "r.html")
    assert "of a final model was measured" in page.words
    assert "no site was asked" in page.title


def test_a_model_that_does_not_beat_the_baseline_is_called_so(
    make_result: Make, tmp_path: Path
) -> None:
    page = write(
        make_result(final_metrics={"dice": 0.3, "baseline/dice": 0.3}), tmp_path / "r.html"
    )
    assert "NOT above the trivial baseline of 0.300" in page.words


def test_two_hundred_sites_fit(make_result: Make, tmp_path: Path) -> None:
    names = [f"site{i:03}" for i in range(200)]
    outcomes = {n: SiteOutcome(outcome="answered", num_examples=1, train_loss=1.0) for n in names}
    rounds = tuple(
        RoundResult(
            round=r,
            asked=tuple(names),
            outcomes=outcomes,
            pooled={"dice": 0.1 * r},
            sites={n: {"dice": 0.1 * r} for n in names},
        )
        for r in range(1, 4)
    )
    result = make_result(rounds=rounds, sites=tuple(SiteSummary(name=n) for n in names))
    page = write(result, tmp_path / "r.html")
    assert "middle 80 % of the sites" in page.words
    assert "170 more sites, in result.json." in page.words


def test_the_sites_own_report(plan: Plan, history: list[SiteRound], tmp_path: Path) -> None:
    path = tmp_path / "sites" / "south" / "report.html"
    pictures = [Picture("Best of 4", "Dice 0.91.", PNG)]
    write_site_report(path, "south", plan, history, pictures, {"3fa9c1d2e4b5": "no mask"})
    page = Page(path)
    assert page.title == "Site south, small-run: Dice 0.600"
    assert "Took part in 2 of 2 rounds of training." in page.words
    assert "3fa9c1d2e4b5 no mask" in page.words
    (image,) = [a for tag, a in page.tags if tag == "img"]
    assert (image["width"], image["height"]) == ("300", "200")
    assert image["alt"] == "Best of 4. Dice 0.91."


def test_a_site_without_a_round_yet_has_a_report(plan: Plan, tmp_path: Path) -> None:
    write_site_report(tmp_path / "r.html", "south", plan, [], [], {})
    page = Page(tmp_path / "r.html")
    assert "No Dice was measured at this site yet." in page.words
    assert "every file could be read" in page.words


def _luminance(colour: str) -> float:
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_colours_have_enough_contrast(mode: int) -> None:
    # WCAG 2.2 AA: 4.5 for text, 3 for curves.
    blocks = re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", blocks[mode]))
    for ground in ("page", "card", "soft"):
        for text in ("ink", "muted", "accent"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for text in ("good", "warn", "bad"):
        assert contrast(colours[text], colours["card"]) >= 4.5, text
    for curve in (f"site{i}" for i in range(6)):
        assert contrast(colours[curve], colours["card"]) >= 3, curve
    assert len(colours) == 16
