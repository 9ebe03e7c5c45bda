"""Figures in the text format that Prometheus reads, version 0.0.4."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Figure:
    """One number.

    Attributes:
        name: of the metric, such as ``asterion_disk_free_bytes``.
        help: what it is, one sentence.
        value: finite or not.
        labels: name and value of each label.
    """

    name: str
    help: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


def exposition(figures: Iterable[Figure]) -> str:
    r"""All figures as gauges, those of one name together.

    Args:
        figures: in any order; none gives an empty text.

    >>> print(exposition([Figure("up", "Whether it runs.", 1, {"site": 'a"b'})]), end="")
    # HELP up Whether it runs.
    # TYPE up gauge
    up{site="a\"b"} 1
    """
    named: dict[str, list[Figure]] = {}
    for figure in figures:
        named.setdefault(figure.name, []).append(figure)
    lines: list[str] = []
    for name, members in named.items():
        lines += [f"# HELP {name} {members[0].help}", f"# TYPE {name} gauge"]
        for figure in members:
            labels = ",".join(f'{key}="{_escaped(text)}"' for key, text in figure.labels.items())
            where = f"{{{labels}}}" if labels else ""
            lines.append(f"{name}{where} {_number(figure.value)}")
    return "".join(f"{line}\n" for line in lines)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value)).removesuffix(".0")
    return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")
