"""``asterion site egress``: what left a site, in words and numbers; for the site's own terminal."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from asterion_client.egress_fields import ANY, FIELDS
from asterion_client.egress_log import Entry


def totals(entries: Iterable[Entry]) -> dict[str, list[dict[str, Any]]]:
    """Replies and bytes by day (UTC) and by run, each in the order of its first reply."""
    replies: dict[str, Counter[str]] = {"days": Counter(), "runs": Counter()}
    sizes: dict[str, Counter[str]] = {"days": Counter(), "runs": Counter()}
    for entry in entries:
        for by, name in (("days", entry["at"][:10]), ("runs", entry["run"])):
            replies[by][name] += 1
            sizes[by][name] += entry["bytes"]
    return {
        by: [{by[:-1]: n, "replies": count, "bytes": sizes[by][n]} for n, count in found.items()]
        for by, found in replies.items()
    }


def entry_lines(entry: Entry) -> Iterator[str]:
    """One reply: a line of what it answers, then a line a field with every number."""
    asked = f"run {entry['run']}, round {entry['round']}, {entry['phase']}"
    what = {"again": "the same answer again", "refusal": "a refusal", "report": "a report"}
    yield (
        f"{entry['at']}  {asked if entry['run'] else 'an order that cannot be read'}: "
        f"{what[entry['what']]}, {entry['bytes']:,} bytes"
    )
    for record, fields in entry.get("records", {}).items():
        for name, value in fields.items():
            if name != "format" and record != "kinds":
                yield f"  {name if record in ('report', 'refusal') else f'{record} {name}'}: " + (
                    _in_words(value)
                )


def total_lines(found: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """The totals by day and by run."""
    for by, rows in found.items():
        for row in rows:
            name = row[by[:-1]] or "orders that cannot be read"
            replies = f"{row['replies']:,} " + ("reply" if row["replies"] == 1 else "replies")
            yield f"{by[:-1]} {name}: {replies}, {row['bytes']:,} bytes"


def field_rows() -> list[dict[str, str]]:
    """The table of every field that may leave."""
    return [
        {
            "field": field.record if field.name == ANY else f"{field.record} {field.name}",
            "type": field.type,
            "bound": field.bound,
            "tells": field.tells,
            "budget": field.budget,
        }
        for field in FIELDS
    ]


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        norm = f", norm {value['norm']:.6g}" if "norm" in value else ""
        return (
            f"{value['length']:,} x {value['dtype']}, {value['bytes']:,} bytes{norm}, "
            f"SHA-256 {value['sha256']}"
        )
    if isinstance(value, list):
        # Most numbers of a histogram are 0, so only the others are written, each with its place.
        told = ", ".join(f"[{i}] {number:g}" if number % 1 == 0 else f"[{i}] {number!r}"
                         for i, number in enumerate(value) if number)  # fmt: skip
        return f"{len(value):,} numbers, all 0 but {told}" if told else f"{len(value):,} zeros"
    return f"{value}" if value != "" else "(empty)"
