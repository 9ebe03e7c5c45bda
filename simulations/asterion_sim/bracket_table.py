"""A bracket as a table for the terminal."""

from rich import box
from rich.markup import escape
from rich.table import Table

from asterion_shared.bracket_result import Bracket, Comparison, Verdict
from asterion_shared.reports import metric_words
from asterion_shared.reports.estimate_words import difference
from asterion_shared.reports.metric_words import number
from asterion_shared.reports.report_page import plural
from asterion_sim.bracket_words import algorithm_words, percent

_RICH: dict[Verdict, str] = {
    "helps": "green", "neutral": "dim", "hurts": "bold red", "undefined": "dim",
}  # fmt: skip


def bracket_table(bracket: Bracket) -> Table:
    """One row for each site and algorithm, and the rows over all sites, for the terminal."""
    label = metric_words.label(bracket.metric)
    table = Table(
        title=f"{bracket.name}: {label}, {plural(len(bracket.seeds), 'seed')}, equal local work",
        title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    # 80 columns hold it: the algorithm and the interval stand below, and only names are folded.
    table.add_column("site, and algorithm", overflow="fold", min_width=10)
    for name in ("test", "own", "federated"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("difference (95 %)", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("pooled", justify="right", no_wrap=True)
    for site in bracket.sites:
        for text, comparison in site.versus_own.items():
            table.add_row(
                escape(f"{site.name}\n{algorithm_words(text)}"), f"{site.num_test:,}",
                number(site.own.value),
                number(site.federated[text].value), _on_two_lines(comparison),
                f"[{_RICH[comparison.verdict]}]{comparison.verdict}",
                number(site.pooled.value),
            )  # fmt: skip
    table.add_section()
    overall = bracket.overall
    for text, gain in overall.gain_over_own.items():
        table.add_row(
            escape(f"mean of sites\n{algorithm_words(text)}"), "", number(overall.own.value),
            number(overall.federated[text]["mean of sites"].value), _on_two_lines(gain),
            f"[{_RICH[gain.verdict]}]{gain.verdict}", number(overall.pooled["mean of sites"].value),
            style="bold",
        )  # fmt: skip
    shares = [
        f"{algorithm_words(text)}: {percent(share)} of pooled ({bracket.over})"
        for text, share in overall.share_of_pooled.items()
    ]
    table.caption, table.caption_justify = "\n".join(escape(s) for s in shares), "left"
    return table


def _on_two_lines(comparison: Comparison) -> str:
    return difference(comparison).replace(" (", "\n(")
