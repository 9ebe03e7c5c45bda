"""An HTTP CONNECT proxy such as stands between a hospital and the world, for tests.

It understands CONNECT alone (RFC 9110, section 9.3.6), counts what passes, refuses or cuts when
told. Run it on a host of `tests.network.namespaces`, most often the coordinator's, and give the
site its address only::

    with proxy(net.coordinator, tmp_path, port=3128) as middle:
        environment = {"https_proxy": middle.url}
        ...
        middle.refuse(407)      # every new CONNECT gets this status
        middle.refuse(None)     # and is served again
        middle.cut()            # tunnels end with a reset, both ends
        middle.counters()       # {"asked": 3, "opened": 2, "refused": 1, "cut": 2, ...}
"""

import argparse
import asyncio
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.network.control import Control, answer, listen
from tests.network.namespaces import ROOT, Host

MOST_HEADER_BYTES = 16_384
RESET = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class ProxyCounters:
    """Connections since the start; ``open`` are those that carry bytes now."""

    asked: int = 0
    opened: int = 0
    refused: int = 0
    unreachable: int = 0
    cut: int = 0
    open: int = 0
    up_bytes: int = 0
    down_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RunningProxy:
    """What `proxy` gives."""

    url: str
    control: Control

    def refuse(self, status: int | None) -> None:
        """Answer every new CONNECT with this status; None serves again."""
        self.control.ask(do="refuse", status=status)

    def cut(self) -> int:
        """Reset every open tunnel at both ends and return how many there were."""
        return int(self.control.ask(do="cut"))

    def counters(self) -> ProxyCounters:
        """What passed so far."""
        return ProxyCounters(**self.control.ask(do="counters"))


@contextmanager
def proxy(host: Host, folder: Path, *, port: int) -> Iterator[RunningProxy]:
    """Run the proxy as a process on a host; ``folder`` takes its control socket and log.

    Raises:
        HelperDiedError: it did not start; most often the port is taken.
    """
    control, log = folder / f"proxy-{port}", folder / f"proxy-{port}.log"
    words = [sys.executable, "-m", "tests.network.connect_proxy", host.address, str(port)]
    with log.open("wb") as out:
        process = host.start([*words, str(control)], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
    try:
        with closing(Control(process, control, log)) as talk:
            yield RunningProxy(f"http://{host.address}:{port}", talk)
    finally:
        process.kill()
        process.wait()


class Proxy:
    """The process's side."""

    def __init__(self) -> None:
        self.counters = ProxyCounters()
        self._refuse_with: int | None = None
        self._tunnels: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection from beginning to end."""
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # The client went away; its end is the end of this.
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, _ = head.split(b"\r\n", 1)[0].decode("ascii").split(" ")
            if method != "CONNECT":
                return await _say(writer, 405, "only CONNECT")
            address, port = target.rsplit(":", 1)
        except (ValueError, asyncio.LimitOverrunError):
            return await _say(writer, 400, "not a CONNECT request")
        self.counters.asked += 1
        if self._refuse_with is not None:
            self.counters.refused += 1
            return await _say(writer, self._refuse_with, "refused")
        try:
            far_reader, far_writer = await asyncio.open_connection(address.strip("[]"), int(port))
        except (OSError, ValueError, OverflowError):
            self.counters.unreachable += 1
            return await _say(writer, 502, "no way there")
        self.counters.opened += 1
        tunnel = writer, far_writer
        self._tunnels.add(tunnel)
        try:
            await _say(writer, 200, "Connection established")
            ways = (self._pump(reader, far_writer, "up"), self._pump(far_reader, writer, "down"))
            await asyncio.gather(*ways)
        finally:
            self._tunnels.discard(tunnel)
            far_writer.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str
    ) -> None:
        name = f"{way}_bytes"
        while content := await reader.read(65_536):
            setattr(self.counters, name, getattr(self.counters, name) + len(content))
            writer.write(content)
            await writer.drain()
        if writer.can_write_eof() and not writer.is_closing():
            writer.write_eof()

    def obey(self, request: dict[str, Any]) -> Any:
        """Requests of the control socket."""
        match request:
            case {"do": "counters"}:
                self.counters.open = len(self._tunnels)
                return asdict(self.counters)
            case {"do": "refuse", "status": int() | None as status}:
                self._refuse_with = status
                return None
            case {"do": "cut"}:
                tunnels = list(self._tunnels)
                for writer in (end for tunnel in tunnels for end in tunnel):
                    # Lingering for zero seconds makes the kernel send a reset.
                    end_socket = writer.get_extra_info("socket")
                    end_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    writer.transport.abort()
                self._tunnels.clear()
                self.counters.cut += len(tunnels)
                return len(tunnels)
        msg = f"not a request: {request}"
        raise ValueError(msg)

    async def hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The control socket."""
        while line := await reader.readline():
            writer.write(answer(line, self.obey))
            await writer.drain()
        writer.close()


async def _say(writer: asyncio.StreamWriter, status: int, words: str) -> None:
    length = "" if status == 200 else "Content-Length: 0\r\n"
    writer.write(f"HTTP/1.1 {status} {words}\r\n{length}\r\n".encode())
    await writer.drain()


async def _main(address: str, port: int, control: Path) -> None:
    middle = Proxy()
    server = await asyncio.start_server(middle.serve, address, port, limit=MOST_HEADER_BYTES)
    # The control socket comes last: who can connect to it knows that the port listens.
    await asyncio.start_unix_server(middle.hear, sock=listen(control))
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("control", type=Path)
    said = parser.parse_args()
    asyncio.run(_main(said.address, said.port, said.control))
