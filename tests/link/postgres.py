"""A real PostgreSQL server of one's own, on the loopback interface."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.link.loopback import free_port

PROGRAMS = ("initdb", "pg_ctl", "postgres")


def is_installed() -> bool:
    """Whether the server's programs are on the path."""
    return all(shutil.which(name) for name in PROGRAMS)


@contextmanager
def postgres() -> Iterator[str]:
    """The server; gives the URL of an empty database. It refuses to run as root, so it does not."""
    folder = Path(tempfile.mkdtemp(prefix="asterion-pg-"))
    other: dict[str, Any] = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        other = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    port = free_port()
    started = False

    def run(*words: str) -> None:
        with (folder.parent / f"{folder.name}.log").open("ab") as log:
            subprocess.run(
                words, check=True, cwd=folder, stdout=log, stderr=log, timeout=120, **other
            )

    try:
        data = str(folder / "data")
        run("initdb", "-D", data, "-U", "asterion", "--auth=trust", "--no-sync", "-E", "UTF8")
        settings = f"-h 127.0.0.1 -p {port} -k {folder} -c shared_buffers=16MB"
        run("pg_ctl", "-D", data, "-w", "-o", settings, "-l", str(folder / "log"), "start")
        started = True
        yield f"postgresql+psycopg://asterion@127.0.0.1:{port}/postgres"
    finally:
        if started:
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
        time.sleep(0.1)
        shutil.rmtree(folder, ignore_errors=True)
        (folder.parent / f"{folder.name}.log").unlink(missing_ok=True)
