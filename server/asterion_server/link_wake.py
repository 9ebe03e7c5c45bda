"""How the coordinator's processes wake each other: datagrams on this machine, with nothing in them.

What is to be done always stands in the database; a lost datagram costs the pause after which
everyone looks anyway.
"""

import hashlib
import os
import select
import socket
from pathlib import Path

MOST_DATAGRAMS = 10_000


def address_of(folder: Path) -> bytes:
    """Where the link of a coordinator's folder listens: a name in Linux's abstract namespace."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    return f"\0asterion-link-{name}".encode()


class Bell:
    """A socket that can ring others and be rung.

    Args:
        address: its own; None: a new one.
    """

    def __init__(self, address: bytes | None = None) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(address or f"\0asterion-run-{os.getpid()}-{id(self)}".encode())

    def close(self) -> None:
        """Stop listening."""
        self.socket.close()

    def ring(self, address: bytes) -> bool:
        """Wake whoever listens there; False when nobody does."""
        try:
            self.socket.sendto(b"", address)
        except BlockingIOError:
            return True  # its queue is full, so it will look
        except OSError:
            return False
        return True

    def wait(self, seconds: float) -> None:
        """Return when rung, at the latest after so long; rings that came before count."""
        if select.select([self.socket], [], [], max(seconds, 0.0))[0]:
            self.heard()

    def heard(self) -> set[bytes]:
        """Who rang since the last look."""
        callers: set[bytes] = set()
        for _ in range(MOST_DATAGRAMS):
            try:
                _, caller = self.socket.recvfrom(1)
            except BlockingIOError:
                break
            if caller:
                callers.add(caller)
        return callers
