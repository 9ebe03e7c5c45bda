"""``python -m asterion_client.predict``: predict a folder in a process whose network is closed.

What to do as JSON on standard input; words for a person, or ``summary.json`` for a program, on
standard output; the exit code says how it ended.
"""

import json
import sys

from asterion_client.closed_network import close_network


def main() -> int:
    """Predict what standard input asks for; the exit code."""
    network = close_network()  # before any thread is started: threads keep the network they had
    from asterion_client.predict.asked import Asked, carry_out
    from asterion_client.site_log import keep_log_clean
    from asterion_shared.errors import AsterionError

    keep_log_clean()
    try:
        return carry_out(Asked.model_validate(json.load(sys.stdin)), network)
    except AsterionError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  # for the person who asked
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; choose another --out for the next time", file=sys.stderr)  # noqa: T201
        return 130


if __name__ == "__main__":
    sys.exit(main())
