"""Trails of a site and its coordinator, made as the two sides make them, and as lines."""

import itertools
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from asterion_shared.audit import AuditTrail
from asterion_shared.audit_key import audit_key
from asterion_shared.audit_records import START, Head, Record, hash_of, read_line, signed_line
from asterion_shared.audit_verify import answer_text

SITE, COORDINATOR = "site:clinic", "coordinator:centre"
ROUNDS = 4


@dataclass(frozen=True)
class Pair:
    """Lines of both trails without their ends, and their keys."""

    site: tuple[bytes, ...]
    centre: tuple[bytes, ...]
    site_key: Ed25519PrivateKey
    centre_key: Ed25519PrivateKey


def one_round(site: AuditTrail, centre: AuditTrail, number: int) -> None:
    """What both sides write in a round."""
    asked = {"order_sha256": f"{number:064x}", "phase": "train", "plan_sha256": "a" * 64}
    told = centre.append("orders", run="r1", round_=number, facts={**asked, "sites": "clinic"})
    site.append("order", run="r1", round_=number, facts={**asked}, other={"coordinator": told})
    sent = {"sha256": f"{number + 100:064x}", "bytes": 12}
    head = site.append("report", run="r1", round_=number, facts={**sent})
    came = {SITE: answer_text(sent["sha256"], None)}
    centre.append("answers", run="r1", round_=number, facts={**came}, other={SITE: head})


def make_pair(folder: Path) -> Pair:
    """Trails of several rounds; the site's has two files."""
    site, centre = AuditTrail(folder / "site", SITE), AuditTrail(folder / "centre", COORDINATOR)
    for number in range(1, ROUNDS + 1):
        one_round(site, centre, number)
        if number == ROUNDS // 2:
            site.rotate()
    return Pair(
        lines_of(site.folder), lines_of(centre.folder), audit_key(site.folder),
        audit_key(centre.folder),
    )  # fmt: skip


def lines_of(folder: Path) -> tuple[bytes, ...]:
    """All lines of a trail, without their ends."""
    content = b"".join(path.read_bytes() for path in sorted(folder.glob("audit-*.jsonl")))
    return tuple(content.splitlines())


def write_lines(folder: Path, lines: list[bytes], cuts: tuple[int, ...] = ()) -> list[Path]:
    """Lines as files, a new one before each line in ``cuts``."""
    folder.mkdir(parents=True, exist_ok=True)
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < len(lines)}), len(lines)]
    files = []
    for number, (start, end) in enumerate(itertools.pairwise(bounds), 1):
        files.append(folder / f"audit-{number:06d}.jsonl")
        files[-1].write_bytes(b"".join(line + b"\n" for line in lines[start:end]))
    return files


def resigned(line: bytes, key: Ed25519PrivateKey, **changes: object) -> bytes:
    """The same record with changes, signed anew."""
    found = read_line(line)
    assert found is not None
    return signed_line(Record.model_validate(found.record.model_dump() | changes), key)


def rewritten_from(lines: tuple[bytes, ...], start: int, key: Ed25519PrivateKey) -> list[bytes]:
    """What the key's owner makes of a trail: another record, and all after it linked anew."""
    out = list(lines[:start])
    previous = hash_of(out[-1]) if out else START
    for number, line in enumerate(lines[start:], start):
        found = read_line(line)
        assert found is not None
        facts = found.record.facts | ({"phase": "count"} if number == start else {})
        out.append(resigned(line, key, facts=facts, previous=previous))
        previous = hash_of(out[-1])
    return out


def told_numbers(other: tuple[bytes, ...], name: str) -> list[int]:
    """The heads of a side that the other one wrote down, by number."""
    found = [read_line(line) for line in other]
    texts = [line.record.other[name] for line in found if line and name in line.record.other]
    return sorted(int(text.partition(":")[0]) for text in texts)


def head_after(lines: tuple[bytes, ...], number: int) -> Head:
    """The head of a trail that ended at a record."""
    return Head(number, hash_of(lines[number]))
