"""``asterion site withdraw`` and ``withdrawals``: a patient's records are out from that moment."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

SiteToml = Annotated[Path, typer.Argument(metavar="SITE_TOML", help="the site's settings")]
AsJson = Annotated[bool, typer.Option("--json", help="for programs")]


def withdraw(
    site_toml: SiteToml,
    group: Annotated[
        list[str] | None,
        typer.Argument(help="patients, as the manifest or the table names them; absent: asked for"),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="a file with one patient a line")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take patients' records out of every later order, for good; a run goes on without them."""
    from asterion_client.settings import read_site_settings
    from asterion_client.site_audit import site_trail
    from asterion_client.withdrawing import withdraw_groups

    settings = read_site_settings(site_toml)
    folder = site_toml.resolve().parent
    told = withdraw_groups(settings, folder, _names(group or [], file))
    if told.num_new:
        site_trail(settings, folder).append("withdrawn")
    if as_json:
        print(json.dumps({"new": told.num_new, "known": told.num_known,
                          "records": told.num_records, "unknown": told.num_unknown,
                          "runs": told.num_runs, "files": told.num_files}))  # fmt: skip
        return
    print(f"{told.num_new} withdrawn, {told.num_known} had withdrawn before; "
          f"{told.num_records} records are out of every later order")  # fmt: skip
    if told.num_unknown:
        print(f"{told.num_unknown} of them are in no record and no run here: see that the names "
              "are spelt as in the manifest")  # fmt: skip
    print(
        f"{told.num_runs} runs had them; {told.num_files} files that they had a part in were "
        "removed: stored reports, kept tensors, what rounding lost, reports with pictures"
    )
    print("A model that left before keeps what it learnt from them: tell the operator, "
          "who trains again with: asterion server withdraw RUN SITE --what patients")  # fmt: skip


def withdrawals(site_toml: SiteToml, as_json: AsJson = False) -> None:
    """How many have withdrawn here, and when; who they are is not stored."""
    from asterion_client.settings import read_site_settings
    from asterion_client.withdrawals import read_withdrawals

    settings = read_site_settings(site_toml)
    found = read_withdrawals(site_toml.resolve().parent / settings.state_folder)
    by_moment = Counter(found.moments.values())
    if as_json:
        print(
            json.dumps({"count": by_moment.total(), "by_moment": dict(sorted(by_moment.items()))})
        )
        return
    for moment, count in sorted(by_moment.items()):
        print(f"{moment}  {count}")
    print(f"{by_moment.total()} withdrawn")


def _names(given: list[str], file: Path | None) -> list[str]:
    from asterion_shared.errors import FileProblemError, UserInputError

    names = [*given]
    if file is not None:
        try:
            names += file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError):
            fix = "name a text file in UTF-8 with one patient a line"
            raise FileProblemError(file, "cannot be read", fix) from None
    elif not given:
        if sys.stdin.isatty():
            typer.echo("Patients, one a line; end with Ctrl-D:", err=True)
        names = sys.stdin.read().splitlines()
    names = [name.strip() for name in names if name.strip()]
    if not names:
        msg = "nobody is named; give patients as arguments, with --file, or one a line"
        raise UserInputError(msg)
    return names
