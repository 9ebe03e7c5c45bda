"""What the pages of a run and of a site have in common."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from asterion_shared.files import write_atomically
from asterion_shared.reports.charts import Between, Series, line_chart
from asterion_shared.reports.intervals import bounds_95
from asterion_shared.reports.metric_words import number
from asterion_shared.reports.pictures import Picture
from asterion_shared.result import Metrics, Result

_TEMPLATES = Path(__file__).parent / "templates"


def write_page(path: Path, template: str, values: Mapping[str, Any]) -> None:
    """Fill a template of this package and write it atomically.

    Raises:
        DiskProblemError: the disk is full or not writable.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8"))  # noqa: S704  # our file
    page = environment.get_template(template).render(style=style, **values)
    write_atomically(path, page.encode())


def embed(pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """Pictures as the page holds them: inside the HTML, as data addresses."""
    return [
        {
            "title": picture.title,
            "caption": picture.caption,
            # A PNG's header holds width and height; given, the page does not jump while it loads.
            "width": int.from_bytes(picture.png[16:20], "big"),
            "height": int.from_bytes(picture.png[20:24], "big"),
            "data": f"data:image/png;base64,{base64.b64encode(picture.png).decode()}",
        }
        for picture in pictures
    ]


def chart(
    pooled: Series | None, sites: list[Series], *, baseline_name: str = "", **options: Any
) -> dict[str, Any]:
    """A chart and what its legend needs; the pooled curve is drawn last, on top."""
    series = sites + ([pooled] if pooled else [])
    faint = [Series(name=f"each of {len(sites)} sites", points=(), style="faint")]
    shown = faint if any(one.style == "faint" for one in sites) else sites
    return {
        "svg": line_chart(series, **options),
        "legend": ([pooled] if pooled else []) + shown,
        "baseline_name": baseline_name,
        "has_band": any(low is not None for _, low, _ in options.get("band", ())),
    }


def interval(metrics: Metrics, name: str, *, digits: int = 3, between: str = " to ") -> str:
    """The 95 % interval of a metric, or a dash when it was not measured."""
    ends = bounds_95(metrics, name)
    return between.join(number(end, digits=digits) for end in ends) if ends else number(None)


def band(measured: Iterable[tuple[int, Metrics]], name: str) -> list[Between]:
    """(round, low, high) of a metric's 95 % interval; None where it is not known."""
    found: list[Between] = []
    for round_, metrics in measured:
        low, high = bounds_95(metrics, name) or (None, None)
        found.append((float(round_), low, high))
    return found


def lowest_site(sites: Mapping[str, Metrics], metric: str) -> tuple[str, float] | None:
    """The site with the smallest value of a metric, and the value; None when none has one."""
    known = [(value, site) for site, m in sites.items() if (value := m.get(metric)) is not None]
    return (min(known)[1], min(known)[0]) if known else None


def plural(count: int, what: str) -> str:
    """A count with its noun, ``1 site`` or ``2 sites``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def told(result: Result, count: int) -> str:
    """A count of a site's; a dash under a secure sum, where no site tells one."""
    return number(None) if result.secure_sum else f"{count:,}"


def num_tested(result: Result) -> int:
    """Held-out examples behind the final metrics."""
    if result.secure_sum:
        return round(result.final_metrics.get("num_cases") or 0)
    return sum(site.num_test for site in result.sites if site.name in result.final_sites)
