"""Flower's SuperExec as the coordinator's child: ``python -m asterion_server.superexec``.

It ends with the daemon that started it, and it starts runs of this installation's bundle alone.
"""

from asterion_server.flower_server_compat import serve_bundle
from asterion_shared.bundle import bundle_sha256
from asterion_shared.child_process import watch_parent


def main() -> None:
    """Take the arguments of ``flower-superexec``."""
    watch_parent()
    serve_bundle(bundle_sha256())


if __name__ == "__main__":
    main()
