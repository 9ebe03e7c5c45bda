"""Where the link keeps things in a coordinator's folder."""

from pathlib import Path

from asterion_server.keys import Provisioned
from asterion_shared.files import make_folder


def database_url(made: Provisioned) -> str:
    """The queue's database: as ``coordinator.toml`` says, or a file in the folder."""
    if made.settings.database is not None:
        return made.settings.database
    folder = made.folder.resolve() / "link"
    make_folder(folder)
    return f"sqlite:///{folder / 'queue.sqlite'}"


def blobs_of_orders(folder: Path, run: str) -> Path:
    """Large parts of one run's orders: the global weights. The run's process alone writes there."""
    return folder / "link" / "orders" / run


def blobs_of_reports(folder: Path, site: str) -> Path:
    """Large parts of one site's reports: its updates."""
    return folder / "link" / "reports" / site
