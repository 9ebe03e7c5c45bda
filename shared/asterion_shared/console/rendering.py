"""The pages of a console from their templates."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from asterion_shared import __version__, reports
from asterion_shared.reports.metric_words import in_bytes, in_time, number

_HERE = Path(__file__).parent
_REPORTS = Path(reports.__file__).parent / "templates"


def environment_of(templates: Path) -> Environment:
    """The templates of one side, of all consoles and of the reports.

    Args:
        templates: the side's own; they are looked at first.
    """
    found = Environment(
        loader=FileSystemLoader([templates, _HERE / "templates", _REPORTS]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(
        in_bytes=in_bytes, in_time=in_time, number=number, clock=clock, date=date, short=short
    )
    found.globals["version"] = __version__
    return found


@cache
def static_files() -> Mapping[str, tuple[bytes, str]]:
    """Content and type by name: the style sheets and the script; nothing else is sent."""
    style = (_REPORTS / "style.css").read_bytes() + (_HERE / "static" / "console.css").read_bytes()
    return {
        "style.css": (style, "text/css; charset=utf-8"),
        "live.js": ((_HERE / "static" / "live.js").read_bytes(), "text/javascript; charset=utf-8"),
    }


def clock(moment: str | float | None) -> str:
    """A moment to the minute: ``14:02 UTC`` of today, else with its day; a dash for None.

    Args:
        moment: ISO 8601 ending in ``Z``, or seconds since 1970.
    """
    if moment is None:
        return number(None)
    if isinstance(moment, str):
        when = datetime.fromisoformat(moment)
    else:
        when = datetime.fromtimestamp(moment, UTC)
    today = when.date() == datetime.now(UTC).date()
    return when.strftime("%H:%M UTC" if today else "%Y-%m-%d %H:%M UTC")


def date(moment: datetime | None) -> str:
    """The day of a moment; a dash for None."""
    return number(None) if moment is None else moment.strftime("%Y-%m-%d")


def short(sha256: str) -> str:
    """The first digits of a hash, as they are read aloud."""
    return sha256[:12]


def render(environment: Environment, template: str, values: Mapping[str, Any]) -> str:
    """The page's text."""
    return environment.get_template(template).render(values)
