"""``asterion server backup`` and ``restore``."""

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="the coordinator's folder")]


def backup(
    folder: Folder, out: Annotated[Path, typer.Option(help="the archive, a new file")]
) -> None:
    """Pack settings, keys and runs into one private file; the coordinator may run meanwhile."""
    from asterion_server.backup import back_up_coordinator
    from asterion_server.keys import open_provisioned

    made = back_up_coordinator(folder, out)
    print(f"{out}: {made.num_files:,} files, {made.num_bytes:,} bytes; it holds the authority's "
          "private key and all models")  # fmt: skip
    if (open_provisioned(folder).settings.database or "").startswith("postgresql"):
        print("The queue in PostgreSQL is not in it and need not be: runs post their orders anew. "
              "To keep it too, use pg_dump with the name of its database.")  # fmt: skip


def restore(
    archive: Annotated[Path, typer.Argument(metavar="FILE", help="a backup of a coordinator")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a new folder")],
) -> None:
    """Unpack a backup into a new folder; runs go on from it with the next start."""
    from asterion_server.backup import restore_coordinator

    made = restore_coordinator(archive, folder)
    print(f"{folder}: {made.archived.num_files:,} files of {made.archived.at}; start it with: "
          f"asterion server start {folder}")  # fmt: skip
    print("a backup has forgotten what came after it: before the start, revoke again who was "
          "revoked since (asterion server revoke), and take out again who withdrew (asterion "
          "server withdraw --no-retrain)")  # fmt: skip
    print(f"enrolled are: {', '.join(made.sites) or 'none'}")
    for run in made.stopped:
        print(f"run {run} is private and waits for a person: if its sites were asked nothing since "
              f"then, asterion server resume {run} --folder {folder}")  # fmt: skip
    if made.foreign_queue:
        print(
            "the database of coordinator.toml cannot be reached: before the start, empty its "
            "tables link_report and link_order"
        )
