"""Carry IP packets between network namespaces and treat them badly, as told while running.

The kernel's own tool for this, netem, is not in every kernel; a TUN device is. Each namespace has
one TUN device that this one process holds, reads and writes raw: a packet of a site goes to the
coordinator, a packet of the coordinator to the site it is addressed to, anything else is dropped,
so that sites cannot reach each other; a firewall keeps the coordinator from opening connections
to sites. Every site has two lanes (``up``, ``down``), each with its own `Direction` of settings,
its own random numbers and its own counters.

`tests.network.namespaces.network` starts this program; by hand it takes one argument, JSON as in
`Wiring`. Requests over the control socket (`tests.network.control`)::

    {"do": "set", "site": "north", "up": {"loss": 0.1}, "down": {}}
    {"do": "counters"}

Times are computed from the packets before, not by sleeping: a rate is exact on average also when
the process is woken late. The timer's grain is 1 ms. The fate of the n-th packet after a setting
depends on seed, site, direction and the number of settings before, not on the clock. A ``cut``
is in force when ``set`` is answered: what was on its way is dropped too. Raising a rate or
lowering a delay does not let new packets overtake the ones that wait. The process ends when its
standard input closes, that is, with its owner.
"""

import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.network.conditions import Direction
from tests.network.control import answer, listen

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
DEVICE = "link0"
MOST_BYTES = 65_535
MOST_PACKETS_AT_ONCE = 64
CLEAR = Direction()


@dataclass(frozen=True, slots=True)
class Wiring:
    """What the process is started with; names of namespaces are those of ``ip netns``.

    ``sites`` maps a site to (namespace, IPv4 address). Unless ``sites_reachable``, a packet that
    opens a TCP connection to a site is dropped, as a firewall does.
    """

    control: str
    seed: int
    coordinator_namespace: str
    coordinator_address: str
    sites: dict[str, tuple[str, str]]
    sites_reachable: bool


@dataclass(slots=True)
class Counters:
    """Packets of one lane; received + duplicated = all the others together."""

    received: int = 0
    received_bytes: int = 0
    duplicated: int = 0
    reordered: int = 0
    """Held back; these are also counted as delivered when they are."""

    delivered: int = 0
    lost: int = 0
    dropped_by_cut: int = 0
    dropped_by_queue: int = 0
    waiting: int = 0


class Lane:
    """One direction of one site's link."""

    def __init__(self, name: str, seed: int, out: int) -> None:
        self.counters = Counters()
        self._name, self._seed, self._out = name, seed, out
        self._times_set = 0
        self._queue: deque[tuple[float, bytes]] = deque()
        self._held: list[tuple[float, int, bytes]] = []
        self._free_at = 0.0
        self.set(CLEAR)

    def set(self, direction: Direction) -> None:
        self._direction, self._clear = direction, direction == CLEAR
        self._random = random.Random(f"{self._seed}/{self._name}/{self._times_set}")  # noqa: S311
        self._times_set += 1
        self._free_at = 0.0
        if direction.cut:
            self.counters.dropped_by_cut += len(self._queue) + len(self._held)
            self._queue.clear()
            self._held.clear()

    def accept(self, packet: bytes, now: float) -> None:
        """Take a packet that was read at ``now`` and deliver, keep or drop it."""
        counters, direction = self.counters, self._direction
        counters.received += 1
        counters.received_bytes += len(packet)
        if self._clear and not self._queue:
            self._deliver(packet)
            return
        if direction.cut:
            counters.dropped_by_cut += 1
            return
        # Always four numbers, so that one setting does not shift what another one draws.
        loss, duplicate, reorder, jitter = (self._random.random() for _ in range(4))
        if loss < direction.loss:
            counters.lost += 1
            return
        self._schedule(packet, now, jitter, held=reorder < direction.reorder)
        if duplicate < direction.duplicate:
            counters.duplicated += 1
            self._schedule(packet, now, jitter, held=reorder < direction.reorder)

    def _schedule(self, packet: bytes, now: float, jitter: float, *, held: bool) -> None:
        direction, rate = self._direction, self._direction.rate_bits_per_second
        waiting_bytes = max(self._free_at - now, 0.0) * rate / 8 if self._free_at else 0.0
        if rate < float("inf"):
            if waiting_bytes + len(packet) > direction.queue_bytes:
                self.counters.dropped_by_queue += 1
                return
            self._free_at = max(now, self._free_at) + len(packet) * 8 / rate
        delay = direction.delay_seconds + (2 * jitter - 1) * direction.jitter_seconds
        due = max(now, self._free_at) + max(delay, 0.0)
        if held:
            self.counters.reordered += 1
            count = self.counters.reordered
            heapq.heappush(self._held, (due + direction.reorder_seconds, count, packet))
        elif due <= now and not self._queue:
            self._deliver(packet)
        else:
            self._queue.append((due, packet))

    def flush(self, now: float) -> float:
        """Deliver what is due and return when the next one is; infinite when nothing waits."""
        queue, held = self._queue, self._held
        while queue or held:
            first = queue[0][0] if queue else float("inf")
            if held and held[0][0] < first:
                if held[0][0] > now:
                    return held[0][0]
                self._deliver(heapq.heappop(held)[2])
            else:
                if first > now:
                    return first
                self._deliver(queue.popleft()[1])
        return float("inf")

    def count(self) -> dict[str, int]:
        self.counters.waiting = len(self._queue) + len(self._held)
        return asdict(self.counters)

    def _deliver(self, packet: bytes) -> None:
        os.write(self._out, packet)
        self.counters.delivered += 1


def open_device(namespace: str) -> int:
    """Make ``link0`` in a namespace and return the descriptor its packets pass through.

    The device lasts as long as the descriptor.

    Raises:
        OSError: no such namespace, not root, or no /dev/net/tun.
    """
    # A device belongs to the namespace of the thread that opens /dev/net/tun.
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    away = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        _enter(away)
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        request = struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI)
        fcntl.ioctl(device, TUNSETIFF, request)
        _enter(home)
        return device
    finally:
        os.close(home)
        os.close(away)


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


class Forwarder:
    """The devices, the lanes and the loop that serves them."""

    def __init__(self, wiring: Wiring) -> None:
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._coordinator = open_device(wiring.coordinator_namespace)
        self._coordinator_address = socket.inet_aton(wiring.coordinator_address)
        self._down: dict[bytes, Lane] = {}
        self._up: dict[int, Lane] = {}
        for site, (namespace, address) in wiring.sites.items():
            device = open_device(namespace)
            up = Lane(f"{site}/up", wiring.seed, self._coordinator)
            down = Lane(f"{site}/down", wiring.seed, device)
            self._up[device], self._down[socket.inet_aton(address)] = up, down
            self._lanes[site, "up"], self._lanes[site, "down"] = up, down
        self._sites_reachable = wiring.sites_reachable
        self._strangers = self._stopped_by_firewall = 0
        self._listener = listen(Path(wiring.control))
        self._talks: dict[int, tuple[socket.socket, bytearray]] = {}

    def run(self) -> None:
        """Serve until standard input closes."""
        poll = select.epoll()
        for descriptor in (0, self._coordinator, *self._up, self._listener.fileno()):
            poll.register(descriptor, select.EPOLLIN)
        lanes = tuple(self._lanes.values())
        due = float("inf")
        while True:
            wait = -1 if due == float("inf") else max(due - time.monotonic(), 0.0)
            for descriptor, _ in poll.poll(wait):
                if descriptor == self._coordinator:
                    self._read(descriptor, self._from_coordinator)
                elif descriptor in self._up:
                    self._read(descriptor, self._from_site(descriptor))
                elif descriptor == self._listener.fileno():
                    talk, _ = self._listener.accept()
                    self._talks[talk.fileno()] = talk, bytearray()
                    poll.register(talk.fileno(), select.EPOLLIN)
                elif descriptor in self._talks:
                    self._hear(descriptor)
                elif not os.read(descriptor, 1024):
                    return
            now = time.monotonic()
            due = min(lane.flush(now) for lane in lanes)

    def _read(self, device: int, take: Callable[[bytes, float], None]) -> None:
        now = time.monotonic()
        for _ in range(MOST_PACKETS_AT_ONCE):
            try:
                packet = os.read(device, MOST_BYTES)
            except BlockingIOError:
                return
            # IPv6 is not part of this network: kernels announce themselves with it unasked.
            if packet[0] >> 4 == 4:
                take(packet, now)

    def _from_coordinator(self, packet: bytes, now: float) -> None:
        lane = self._down.get(packet[16:20])
        if lane is None:
            self._strangers += 1
        elif not self._sites_reachable and _opens_connection(packet):
            self._stopped_by_firewall += 1
        else:
            lane.accept(packet, now)

    def _from_site(self, device: int) -> Callable[[bytes, float], None]:
        lane, address = self._up[device], self._coordinator_address

        def take(packet: bytes, now: float) -> None:
            if packet[16:20] == address:
                lane.accept(packet, now)
            else:
                self._strangers += 1

        return take

    def _hear(self, descriptor: int) -> None:
        talk, heard = self._talks[descriptor]
        content = talk.recv(65_536)
        if not content:
            del self._talks[descriptor]
            talk.close()
            return
        heard += content
        while (end := heard.find(b"\n")) >= 0:
            line = bytes(heard[:end])
            del heard[: end + 1]
            talk.sendall(answer(line, self._obey))

    def _obey(self, request: dict[str, Any]) -> Any:
        match request:
            case {"do": "set", "site": str(site), "up": dict(up), "down": dict(down)}:
                if (site, "up") not in self._lanes:
                    msg = f"no site {site!r}; there are {sorted({s for s, _ in self._lanes})}"
                    raise ValueError(msg)
                directions = Direction(**up), Direction(**down)
                for way, direction in zip(("up", "down"), directions, strict=True):
                    self._lanes[site, way].set(direction)
                return None
            case {"do": "counters"}:
                lanes: dict[str, dict[str, Any]] = {}
                for (site, way), lane in self._lanes.items():
                    lanes.setdefault(site, {})[way] = lane.count()
                return {
                    "sites": lanes,
                    "strangers": self._strangers,
                    "stopped_by_firewall": self._stopped_by_firewall,
                    "cpu_seconds": time.process_time(),
                }
        msg = f"not a request: {request}"
        raise ValueError(msg)


def _opens_connection(packet: bytes) -> bool:
    """Whether this is TCP with SYN and without ACK (RFC 9293, section 3.1)."""
    flags = (packet[0] & 15) * 4 + 13
    return packet[9] == socket.IPPROTO_TCP and len(packet) > flags and packet[flags] & 0x12 == 0x02


if __name__ == "__main__":
    Forwarder(Wiring(**json.loads(sys.argv[1]))).run()
