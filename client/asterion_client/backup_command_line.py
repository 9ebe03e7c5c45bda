"""``asterion site backup`` and ``restore``."""

from pathlib import Path
from typing import Annotated

import typer

SiteToml = Annotated[Path, typer.Argument(metavar="SITE_TOML", help="the site's settings")]


def backup(
    site_toml: SiteToml, out: Annotated[Path, typer.Option(help="the archive, a new file")]
) -> None:
    """Pack settings, keys and state into one private file; the daemon may run. Never the data."""
    from asterion_client.site_backup import back_up_site

    made = back_up_site(site_toml, out)
    print(f"{out}: {made.num_files:,} files, {made.num_bytes:,} bytes; it holds the site's private "
          "key, so keep it as safe as the site itself")  # fmt: skip


def restore(
    archive: Annotated[Path, typer.Argument(metavar="FILE", help="a backup of a site")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a new folder")],
) -> None:
    """Unpack a backup into a new folder; the site answers no order until a person accepts it."""
    from asterion_client.site_backup import restore_site

    made = restore_site(archive, folder)
    print(f"{folder}: {made.num_files:,} files of {made.at}; put the data where site.toml says")
    print("Before it answers orders: enter the withdrawals since then again (asterion site "
          "withdraw), then\n  asterion site ledger accept "
          f"{folder} HEAD...   with the head that each coordinator knows\n"
          "Approvals are not in a backup: approve again, and pause it if it was paused since"
          )  # fmt: skip
