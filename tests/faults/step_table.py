"""The step table of docs/protocol.md, and which steps the packages name."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROTOCOL = ROOT / "docs" / "protocol.md"
SOURCES = ("shared/asterion_shared", "client/asterion_client", "server/asterion_server")
_ROW = re.compile(r"^\| ([CLS]\d+) \| (\w+) \|")
_NAMED = re.compile(r'\breached\("([^"]+)"\)')
WHO = {"C": "run", "L": "link", "S": "site"}


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table.

    Attributes:
        step: such as ``C3``.
        who: ``run``, ``link`` or ``site``.
        cells: what, durable before, durable after, what a death costs.
    """

    step: str
    who: str
    cells: tuple[str, ...]


def step_table(text: str) -> list[Row]:
    """The rows of the table under "The steps", in their order."""
    part = text.split("\n## The steps\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in part.splitlines() if _ROW.match(line)]
    cut = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]
    return [Row(cells[0], cells[1], tuple(cells[2:])) for cells in cut]


def steps_in_code() -> dict[str, list[str]]:
    """Where each step is named, by step: files, one entry for each place."""
    found: dict[str, list[str]] = {}
    for source in SOURCES:
        for path in sorted((ROOT / source).rglob("*.py")):
            for step in _NAMED.findall(path.read_text(encoding="utf-8")):
                found.setdefault(step, []).append(path.name)
    return found
