"""Plain programs that measure a network from inside of a namespace.

Only the standard library, so that they start within some 20 ms. Each is run as
``python -I -S probes.py WHAT ARGUMENTS`` (`words` makes these), and ends with one line of JSON.

- ``udp-count PORT PACKETS QUIET_SECONDS``: receives numbered packets and tells their numbers and
  arrival times; ends after so many, or when nothing came for so long after the first one.
- ``udp-send ADDRESS PORT PACKETS BYTES GAP_SECONDS``: sends numbered packets at a steady pace and
  tells when each left. Times are of CLOCK_MONOTONIC, which namespaces share.
- ``tcp-sink PORT CONNECTIONS``: takes connections one after the other, reads each to its end,
  answers the SHA-256 of what came and tells the bytes.
- ``tcp-send ADDRESS PORT BYTES``: sends that many and tells the seconds and whether the answer
  was the right digest.

A listening program first writes ``ready`` as a line of its own.
"""

import hashlib
import json
import socket
import struct
import sys
import time
from pathlib import Path

UDP_AND_IP_HEADER_BYTES = 28
_SO_RCVBUFFORCE = 33


def words(what: str, *arguments: object) -> list[str]:
    """The command of a probe."""
    return [sys.executable, "-I", "-S", str(Path(__file__)), what, *map(str, arguments)]


def udp_count(port: int, packets: int, quiet_seconds: float) -> dict[str, object]:
    numbers: list[int] = []
    arrivals: list[float] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 26)
        receiver.bind(("0.0.0.0", port))  # noqa: S104 - the namespace holds nothing else
        _tell("ready")
        while len(numbers) < packets:
            try:
                content = receiver.recv(65_536)
            except TimeoutError:
                break
            arrivals.append(time.monotonic())
            numbers.append(struct.unpack_from("!I", content)[0])
            receiver.settimeout(quiet_seconds)
    return {"numbers": numbers, "arrivals": arrivals}


def udp_send(
    address: str, port: int, packets: int, size_bytes: int, gap_seconds: float
) -> dict[str, object]:
    departures = []
    padding = bytes(size_bytes - UDP_AND_IP_HEADER_BYTES - 4)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)
        start = time.monotonic()
        for number in range(packets):
            while (ahead := start + number * gap_seconds - time.monotonic()) > 0:
                time.sleep(ahead)
            departures.append(time.monotonic())
            sender.sendto(struct.pack("!I", number) + padding, (address, port))
    return {"departures": departures}


def tcp_sink(port: int, connections: int) -> dict[str, object]:
    sizes = []
    with socket.create_server(("0.0.0.0", port)) as listener:  # noqa: S104
        _tell("ready")
        for _ in range(connections):
            connection, _ = listener.accept()
            with connection:
                digest, size = hashlib.sha256(), 0
                while content := connection.recv(1 << 20):
                    digest.update(content)
                    size += len(content)
                connection.sendall(digest.digest())
                sizes.append(size)
    return {"sizes": sizes}


def tcp_send(address: str, port: int, size_bytes: int) -> dict[str, object]:
    content = hashlib.shake_256(b"what is sent").digest(size_bytes)
    start = time.monotonic()
    with socket.create_connection((address, port)) as connection:
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        told = connection.recv(32, socket.MSG_WAITALL)
    seconds = time.monotonic() - start
    return {"seconds": seconds, "right": told == hashlib.sha256(content).digest()}


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _main(what: str, *said: str) -> None:
    match what:
        case "udp-count":
            told = udp_count(int(said[0]), int(said[1]), float(said[2]))
        case "udp-send":
            told = udp_send(said[0], int(said[1]), int(said[2]), int(said[3]), float(said[4]))
        case "tcp-sink":
            told = tcp_sink(int(said[0]), int(said[1]))
        case "tcp-send":
            told = tcp_send(said[0], int(said[1]), int(said[2]))
        case _:
            sys.exit(f"no such probe: {what}")
    _tell(json.dumps(told))


if __name__ == "__main__":
    _main(*sys.argv[1:])
