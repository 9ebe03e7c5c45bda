"""A run's process under the link: ``python -m asterion_server.run_process``.

The coordinator's daemon starts it, and starts it again when it dies: it goes on from the last
checkpoint, and orders that were answered meanwhile are not sent again.
"""

import argparse
import sys
from pathlib import Path

from asterion_server.app import conduct
from asterion_server.keys import open_provisioned
from asterion_server.ledger_heads import FOLDER, LedgerHeads
from asterion_server.link_grid import LinkGrid
from asterion_server.link_paths import database_url
from asterion_server.link_store import LinkStore
from asterion_server.round_audit import coordinator_trail
from asterion_server.run_folder import RunFolder
from asterion_shared.child_process import watch_parent
from asterion_shared.errors import AsterionError


def main() -> None:
    """Run from the coordinator's command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--run", required=True)
    given = parser.parse_args()
    watch_parent()
    made = open_provisioned(given.folder)
    folder = RunFolder(made.runs / given.run)
    try:
        with folder.carried_out_here():
            rounds = folder.read_plan().rounds
            stale = rounds.most_stale if rounds.late == "carry_over" else 0
            store = LinkStore(database_url(made))
            grid = LinkGrid(store, made.folder, given.run, most_stale=stale)
            try:
                heads, trail = LedgerHeads(made.folder / FOLDER), coordinator_trail(made.folder)
                conduct(grid, folder, heads, trail, carrier="link")
            finally:
                if folder.has_ended:
                    grid.close()
    except AsterionError as error:
        print(error, file=sys.stderr)  # noqa: T201  # into the process's own log
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
