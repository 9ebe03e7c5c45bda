"""Has the processes of a site write down what they give away; test_live_leaks.py puts it first."""

import base64
import os
import sys
from pathlib import Path

RUNNERS = {"asterion_client.link_runner", "asterion_client.runner"}

if RUNNERS & set(sys.orig_argv):
    from tests.leaks.tap import tap

    def hear(name: str, content: bytes) -> None:
        with Path(os.environ["LEAKS_HEARD"], str(os.getpid())).open("ab") as file:
            file.write(f"{name} {base64.b64encode(content).decode()}\n".encode())

    tap(hear, setattr)
