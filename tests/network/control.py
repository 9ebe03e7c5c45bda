"""Requests to a helper process while it runs: one line of JSON each way over a Unix socket.

A path of the file system is used because a process in a network namespace can still reach it.
"""

import json
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 20.0


class HelperDiedError(Exception):
    """The forwarder or proxy is gone; the message has what it wrote before it died."""


class Control:
    """Talks to one helper process.

    Args:
        process: the helper; watched while waiting for its socket.
        path: its Unix socket.
        log: what it writes on stdout and stderr.

    Raises:
        HelperDiedError: the helper ended, or did not open its socket within ``PATIENCE_SECONDS``.
    """

    def __init__(self, process: subprocess.Popen[bytes], path: Path, log: Path) -> None:
        self.process, self._log = process, log
        self._socket = socket.socket(socket.AF_UNIX)
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self._socket.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if process.poll() is not None or time.monotonic() > until:
                    self._socket.close()
                    raise self._died() from None
                time.sleep(0.005)
        self._socket.settimeout(PATIENCE_SECONDS)
        self._answers = self._socket.makefile("rb")

    def ask(self, **request: Any) -> Any:
        """Send one request and wait for its answer; what was asked for is in force then.

        Raises:
            ValueError: the helper refused the request.
            HelperDiedError: the helper is gone.
        """
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            line = self._answers.readline()
        except OSError as error:
            raise self._died() from error
        if not line:
            raise self._died()
        answer = json.loads(line)
        if "refused" in answer:
            raise ValueError(answer["refused"])
        return answer["done"]

    def close(self) -> None:
        """Close the socket; the helper goes on."""
        self._answers.close()
        self._socket.close()

    def _died(self) -> HelperDiedError:
        said = self._log.read_text(errors="replace")
        return HelperDiedError(f"{self.process.args!r} gives no answer; it wrote: {said}")


def listen(path: Path) -> socket.socket:
    """The helper's side: a listening, non-blocking Unix socket that appears complete.

    Bound under another name and renamed, so that nobody finds it before it listens.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.setblocking(False)
    temporary = path.with_suffix(".new")
    listener.bind(str(temporary))
    listener.listen()
    temporary.rename(path)
    return listener


def answer(line: bytes, obey: Callable[[dict[str, Any]], Any]) -> bytes:
    """Obey one request; a ValueError or TypeError travels back as a refusal."""
    try:
        return json.dumps({"done": obey(json.loads(line))}).encode() + b"\n"
    except (ValueError, TypeError) as error:
        return json.dumps({"refused": f"{type(error).__name__}: {error}"}).encode() + b"\n"
