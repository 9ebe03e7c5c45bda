"""What `probes` measured between two hosts, as values for tests."""

import json
import subprocess
from dataclasses import dataclass
from typing import Any

from tests.network.namespaces import Host
from tests.network.probes import words


@dataclass(frozen=True, slots=True)
class Measured:
    """Packets in the order of arrival; times of one clock."""

    numbers: tuple[int, ...]
    arrivals: tuple[float, ...]
    departures: tuple[float, ...]

    @property
    def latencies_seconds(self) -> list[float]:
        pairs = zip(self.numbers, self.arrivals, strict=True)
        return [arrival - self.departures[number] for number, arrival in pairs]


def measure_udp(
    source: Host,
    target: Host,
    packets: int,
    *,
    size_bytes: int = 100,
    gap_seconds: float = 0.0,
    quiet_seconds: float = 0.5,
    expected: int | None = None,
) -> Measured:
    """Send numbered packets from one host to another and tell what came.

    ``size_bytes`` is the whole IP packet. The receiver ends after ``expected`` packets (default:
    all), or when none came for ``quiet_seconds`` after the first one.
    """
    wanted = packets if expected is None else expected
    counting = start_listening(target, "udp-count", 5000, wanted, quiet_seconds)
    sent = source.run(words("udp-send", target.address, 5000, packets, size_bytes, gap_seconds))
    came = result_of(counting)
    departures = json.loads(sent.stdout)["departures"]
    return Measured(tuple(came["numbers"]), tuple(came["arrivals"]), tuple(departures))


def start_listening(host: Host, what: str, *arguments: object) -> "subprocess.Popen[bytes]":
    """Start a probe that listens and wait until it does."""
    process = host.start(words(what, *arguments), stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def result_of(process: "subprocess.Popen[bytes]", seconds: float = 30) -> dict[str, Any]:
    """Wait for a probe's end and read its result."""
    told, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0
    result: dict[str, Any] = json.loads(told)
    return result


def send_tcp(source: Host, target: Host, size_bytes: int) -> dict[str, Any]:
    """One TCP transfer: seconds, and whether the digest that came back is right."""
    sink = start_listening(target, "tcp-sink", 5001, 1)
    sent: dict[str, Any] = json.loads(
        source.run(words("tcp-send", target.address, 5001, size_bytes)).stdout
    )
    assert result_of(sink)["sizes"] == [size_bytes]
    return sent
