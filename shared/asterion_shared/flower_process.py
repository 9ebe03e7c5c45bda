"""Run one of Flower's own programs as a child: ``python -m asterion_shared.flower_process NAME``.

It adds one thing to the program: it ends when the daemon that started it is gone.
"""

import sys
from importlib.metadata import entry_points

from asterion_shared.child_process import watch_parent


def main() -> None:
    """Run the program named first with the arguments after it."""
    name, *arguments = sys.argv[1:]
    (point,) = entry_points(group="console_scripts", name=name)
    watch_parent()
    sys.argv = [name, *arguments]
    point.load()()


if __name__ == "__main__":
    main()
