"""The coordinator's SuperLink: ``python -m asterion_server.superlink_entry --coordinator DIR ...``.

It takes the arguments of ``flower-superlink`` after its own, and puts a gate with operators'
accounts in front (:mod:`asterion_server.control_gate`). It ends with the daemon that started it.
"""

import argparse
import sys
from pathlib import Path

from asterion_server.control_gate import AUDIT_FILE, ControlGate, proven_account
from asterion_server.control_proof import accounts_of
from asterion_server.flower_server_compat import serve_superlink
from asterion_server.keys import open_provisioned
from asterion_shared.child_process import watch_parent
from asterion_shared.errors import AsterionError


def main() -> None:
    """Run from the coordinator's command line."""
    watch_parent()
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--coordinator", required=True, type=Path)
    given, flowers = parser.parse_known_args()
    try:
        made = open_provisioned(given.coordinator)
        accounts = accounts_of(made)
    except AsterionError as error:
        print(error, file=sys.stderr)  # noqa: T201  # into the process's own log
        raise SystemExit(error.exit_code) from None
    sys.argv = ["flower-superlink", *flowers]
    audit = made.folder / "logs" / AUDIT_FILE
    serve_superlink(
        lambda app: ControlGate(app, accounts, audit), lambda: proven_account.get() is not None
    )


if __name__ == "__main__":
    main()
