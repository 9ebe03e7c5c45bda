"""A curve over epsilon as a table, and the words of its rows."""

from rich import box
from rich.table import Table

from asterion_shared.reports.metric_words import label, number
from asterion_shared.reports.report_page import plural
from asterion_sim.privacy_curve import PLACEMENT_WORDS, Curve, CurvePoint, Estimate


def curve_table(curve: Curve) -> Table:
    """One row a point, for a terminal of 80 columns; the loss's interval is on the page."""
    name = label(curve.metric)
    learnt_nothing = f"trivial baseline {number(curve.baseline)}"
    if curve.untrained is not None:
        learnt_nothing += f", untrained network {number(curve.untrained)}"
    table = Table(
        title=f"{curve.name}: {name} over {plural(len(curve.seeds), 'seed')}, "
        f"{plural(curve.num_sites, 'site')}; {learnt_nothing}",
        title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    table.add_column("privacy", no_wrap=True)
    for head in ("epsilon", "noise", f"{name} (95 %)", "loss, %"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for point in (curve.without, *curve.points):
        _, epsilon, noise, headline, _, _ = row_of(curve, point)
        loss = point.relative_loss.value if point.relative_loss else None
        table.add_row(
            point.placement or "none",
            epsilon,
            noise,
            headline,
            with_interval(Estimate(value=loss), factor=100, digits=1),
            "[bold red]not usable" if point.verdict == "not usable" else "",
        )
    table.caption, table.caption_justify = f"In brackets: {curve.interval}.", "left"
    return table


def row_of(curve: Curve, point: CurvePoint) -> tuple[str, ...]:
    """The words of a row but for its verdict."""
    loss = point.relative_loss
    return (
        PLACEMENT_WORDS[point.placement] if point.placement else "none",
        f"{point.epsilon:g}" if point.epsilon else number(None),
        f"{point.noise_multiplier:g}" if point.noise_multiplier else number(None),
        with_interval(point.headline),
        with_interval(loss, factor=100, digits=1) if loss else number(None),
        number(curve.baseline),
    )


def with_interval(estimate: Estimate, *, factor: float = 1, digits: int = 3) -> str:
    """``0.910 (0.900 to 0.920)``; a dash where it is undefined."""
    if estimate.value is None:
        return number(None)

    def said(value: float) -> str:
        return f"{round(factor * value, digits) + 0.0:.{digits}f}"  # no "-0.0"

    if estimate.low is None or estimate.high is None:
        return said(estimate.value)
    return f"{said(estimate.value)} ({said(estimate.low)} to {said(estimate.high)})"
