"""A TCP proxy of our own that cuts every connection after so many bytes, both ways together."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

RESET = struct.pack("ii", 1, 0)


@dataclass
class Flaky:
    """The proxy's counters; `cut_after_bytes` may be changed at any time, None cuts nothing."""

    address: str
    cut_after_bytes: int | None
    num_connections: int = 0
    num_cuts: int = 0
    num_bytes: int = 0
    _open: set[socket.socket] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def carry(self, near: socket.socket, target: tuple[str, int]) -> None:
        with self._lock:
            self.num_connections += 1
        try:
            far = socket.create_connection(target)
        except OSError:
            near.close()
            return
        moved = [0]
        self._open |= {near, far}
        ways = [
            threading.Thread(target=self._pump, args=(*ends, near, far, moved), daemon=True)
            for ends in ((near, far), (far, near))
        ]
        for way in ways:
            way.start()

    def _pump(
        self, source: socket.socket, target: socket.socket, near: socket.socket,
        far: socket.socket, moved: list[int],
    ) -> None:  # fmt: skip
        try:
            while data := source.recv(16_384):
                target.sendall(data)
                with self._lock:
                    self.num_bytes += len(data)
                    moved[0] += len(data)
                    cut = self.cut_after_bytes is not None and moved[0] > self.cut_after_bytes
                if cut:
                    break
        except OSError:
            pass  # the other way was cut
        with self._lock:
            if near.fileno() < 0:
                return
            self.num_cuts += 1
            self._open -= {near, far}
            for end in (near, far):
                # Both ends get a reset at once, and who waits in recv wakes.
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                with suppress(OSError):  # it was gone already
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def close(self) -> None:
        with self._lock:
            for end in self._open:
                with suppress(OSError):  # it was gone already
                    end.shutdown(socket.SHUT_RDWR)


@contextmanager
def flaky(port: int, cut_after_bytes: int | None) -> Iterator[Flaky]:
    """Carry connections to a port of this machine."""
    listener = socket.create_server(("127.0.0.1", 0))
    found = Flaky(f"localhost:{listener.getsockname()[1]}", cut_after_bytes)

    def accept() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            found.carry(near, ("127.0.0.1", port))

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
        found.close()
