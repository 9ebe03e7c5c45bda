"""The site's SuperNode: ``python -m asterion_client.supernode_entry ...``.

It takes the arguments of ``flower-supernode``, and ends with the daemon that started it.
"""

from asterion_client.flower_client_compat import serve_supernode
from asterion_shared.child_process import watch_parent


def main() -> None:
    """Run from the daemon's command line."""
    watch_parent()
    serve_supernode()


if __name__ == "__main__":
    main()
