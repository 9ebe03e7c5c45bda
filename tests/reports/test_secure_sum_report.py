"""What a report says of a run whose sites told sums alone."""

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from asterion_shared.reports.run_report import write_report
from asterion_shared.reports.terminal import final_table
from asterion_shared.result import Result

VALUES: dict[str, Any] = {
    "run": "r", "name": "r", "kind": "train", "task": "classification", "plan_sha256": "0" * 64,
    "status": "finished", "started": "2026-01-02T03:04:05Z", "finished": "2026-01-02T03:04:06Z",
    "carrier": "flower", "rounds_planned": 1,
    "final_metrics": {"auroc": 0.9, "num_cases": 28.0},
    "sites": [{"name": "north"}, {"name": "south"}],
}  # fmt: skip


def page(secure: bool, folder: Path) -> str:
    result = Result.model_validate(VALUES | {"secure_sum": secure})
    write_report(result, folder / "report.html")
    return (folder / "report.html").read_text()


def test_the_page_says_what_is_known_and_no_count_of_a_site(tmp_path: Path) -> None:
    words = page(True, tmp_path)
    assert "on 28 held-out examples of the sites of the last sum" in words
    assert "known to that site alone" in words
    assert "sums alone are known" in words
    assert "every file could be read" not in words
    assert "for want of an answer" not in words
    assert "of which the coordinator learns the sum" in words
    clear = page(False, tmp_path)
    assert "sums alone are known" not in clear
    assert "every file could be read" in clear


def test_the_terminal_has_dashes_for_what_no_site_tells() -> None:
    result = Result.model_validate(VALUES | {"secure_sum": True})
    console = Console(file=io.StringIO(), width=100)
    console.print(final_table(result, width=100))
    rows = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    north = next(row for row in rows if "north" in row).split()
    assert north[1:3] == ["–", "–"]  # noqa: RUF001
    pooled = next(row for row in rows if "pooled" in row).split()
    assert pooled[:4] == ["pooled", "–", "28", "0.900"]  # noqa: RUF001
