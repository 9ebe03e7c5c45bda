"""``asterion audit``: verify, show and export audit trails; none of it needs a running system."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asterion_shared.errors import AuditBrokenError, FileProblemError, UserInputError

if TYPE_CHECKING:
    from asterion_shared.audit_records import Line
    from asterion_shared.audit_verify import Verdict

app = typer.Typer(no_args_is_help=True, help="Verify, show and export signed audit trails.")

Files = Annotated[
    list[Path],
    typer.Argument(metavar="FILE...", help="audit-NUMBER.jsonl, or the folder that has them"),
]
Folder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="the trail's: state/audit, or DIR/audit")
]
AsJson = Annotated[bool, typer.Option("--json", help="for programs")]


@app.command()
def verify(
    files: Files,
    key: Annotated[
        Path | None, typer.Option(metavar="PEM", help="the public key that you know the side by")
    ] = None,
    head: Annotated[
        str, typer.Option(metavar="NUMBER:HEX", help="a head that the side gave to somebody")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Name the first record that was changed, of one side's files or of both sides'."""
    from asterion_shared.audit_key import read_public_file
    from asterion_shared.audit_records import head_of
    from asterion_shared.audit_verify import verify_trails

    known = None if not head else head_of(head)
    if head and known is None:
        msg = f"--head is {head!r}; it must be NUMBER:HEX with 64 hexadecimal digits"
        raise UserInputError(msg)
    fix = "take what asterion audit public-key prints"
    public = None if key is None else read_public_file(key, fix)
    verdicts = verify_trails(_files(files), key=public, head=known)
    if as_json:
        print(json.dumps({"sides": [_row(verdict) for verdict in verdicts]}))
    else:
        for verdict in verdicts:
            _print(verdict)
    if any(verdict.problem is not None for verdict in verdicts):
        raise typer.Exit(AuditBrokenError.exit_code)


@app.command()
def show(
    files: Files,
    last: Annotated[int, typer.Option(min=1, help="how many records, the newest")] = 40,
) -> None:
    """A table of records, and whether they are consistent."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from asterion_shared.audit_verify import verify_trails

    for verdict in verify_trails(_files(files)):
        table = Table(title=f"Audit trail of {escape(verdict.side)}", box=box.SIMPLE_HEAD)
        table.add_column("number", justify="right")
        table.add_column("at", no_wrap=True)
        for name in ("kind", "run", "round", "what"):
            table.add_column(name, overflow="fold")
        for line in verdict.lines[-last:]:
            record = line.record
            round_ = "" if record.round is None else str(record.round)
            cells = (record.at, record.kind, record.run, round_, _facts(line))
            table.add_row(str(record.number), *map(escape, cells))
        Console(highlight=False).print(table)
        _print(verdict)


@app.command()
def export(
    files: Files,
    out: Annotated[Path, typer.Option(help="the file of JSON lines")],
) -> None:
    """Write records and their hashes as JSON lines, once they are verified."""
    from asterion_shared.audit_records import canonical
    from asterion_shared.audit_verify import verify_trails
    from asterion_shared.files import write_parts_atomically

    verdicts = verify_trails(_files(files))
    for verdict in verdicts:
        if (problem := verdict.problem) is not None:
            what = f"record {problem.number} is {problem.word}: {problem.what}"
            raise AuditBrokenError(problem.file, what, "asterion audit show has what comes before")
    lines = [line for verdict in verdicts for line in verdict.lines]
    rows = (canonical(line.record.model_dump() | {"sha256": line.sha256}) for line in lines)
    write_parts_atomically(out, (row + b"\n" for row in rows))
    print(f"{out}: {len(lines):,} records of {', '.join(v.side for v in verdicts)}")


@app.command("public-key")
def public_key(folder: Folder) -> None:
    """Print the public key of a trail: others verify its records with it."""
    from asterion_shared.audit import audit_public_key, trail_of_folder

    trail_of_folder(folder)
    print(audit_public_key(folder), end="")


@app.command("new-file")
def new_file(folder: Folder) -> None:
    """Begin a new file; the finished ones may be moved to an archive."""
    from asterion_shared.audit import trail_of_folder

    print(f"the trail goes on in {trail_of_folder(folder).rotate()}")


@app.command("new-key")
def new_key(folder: Folder) -> None:
    """Sign with a new key from now on; the old one signs that it is so."""
    from asterion_shared.audit import trail_of_folder

    print(trail_of_folder(folder).change_key(), end="")


def _files(given: list[Path]) -> list[Path]:
    from asterion_shared.audit import trail_files

    found: list[Path] = []
    for path in given:
        files = trail_files(path) if path.is_dir() else [path]
        if not files:
            fix = "name a site's state/audit, a coordinator's audit, or a file"
            raise FileProblemError(path, "holds no audit-NUMBER.jsonl", fix)
        found += files
    return found


def _print(verdict: "Verdict") -> None:
    many = "s" if len(verdict.files) > 1 else ""
    numbers = f"{len(verdict.lines):,} records in {len(verdict.files):,} file{many}"
    print(f"{verdict.side}: {numbers}; begins with key {' '.join(verdict.keys[:1]) or 'unknown'}")
    if len(verdict.keys) > 1:
        print(f"  signed since with {', '.join(verdict.keys[1:])}")
    first = verdict.lines[0].record.number if verdict.lines else 0
    if first:
        print(f"  records 0 to {first - 1} are in earlier files, which were not given")
    if verdict.torn_bytes:
        print(f"  an unfinished line of {verdict.torn_bytes:,} bytes at the end is no record: a "
              "power cut leaves one, and nobody has acted on it")  # fmt: skip
    if verdict.problem is not None:
        print(f"  BROKEN: {verdict.problem}")
    if verdict.last is None:
        return
    number = verdict.last.number
    if verdict.problem is None and verdict.told == number:
        print(f"  consistent to record {number}, which the other side was told: nothing is missing")
    elif verdict.told is None:
        print(f"  consistent to record {number}, completeness not proven: for that, give the other "
              "side's files too, or its last --head")  # fmt: skip
    else:
        print(f"  consistent to record {number}; the other side was told record {verdict.told}, so "
              "none up to there is missing")  # fmt: skip
    print(f"  head {verdict.last}")


def _row(verdict: "Verdict") -> dict[str, Any]:
    problem = verdict.problem
    return {
        "side": verdict.side,
        "files": [str(file) for file in verdict.files],
        "first": verdict.lines[0].record.number if verdict.lines else None,
        "head": None if verdict.last is None else str(verdict.last),
        "told": verdict.told,
        "keys": list(verdict.keys),
        "torn_bytes": verdict.torn_bytes,
        "problem": None if problem is None else {
            "word": problem.word, "file": str(problem.file), "number": problem.number,
            "what": problem.what,
        },
    }  # fmt: skip


def _facts(line: "Line") -> str:
    """The facts of a record in one cell; hashes by their beginnings."""
    words = [f"{name} {_short(value)}" for name, value in line.record.facts.items()]
    words += [f"told by {name} {head[:-52]}" for name, head in line.record.other.items()]
    # Printable: the file may be a stranger's.
    return "".join(c if c.isprintable() else "?" for c in ", ".join(words))


def _short(value: object) -> str:
    text = str(value)
    if text.startswith("-----BEGIN"):
        return "(PEM)"
    return " ".join(w[:12] if len(w) == 64 and " " not in w else w for w in text.split(" "))
