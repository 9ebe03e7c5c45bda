"""Many sites, many rounds over the real link: does anything grow?

    python -m tests.network.soak --out runs/faults/soak.json

A coordinator as people start it (daemon, link, a run's process) and 100 sites in a few processes:
each site is a real `LinkSession` with its own certificate, its own chunks on disk and its own
thread; only the training is left out, its update is drawn. Every tenth round the memory of each
process and the files on disk are measured. It runs on the loopback interface and needs no root.

It is measured at rest: before a measurement all sites hold their answers back until it is done. In
the middle of a round the updates on their way would be counted, 30 MB and more by chance. And it is
measured what is held: every process hands back each second what the C library keeps of freed
memory, which is up to 30 MB in the link and in each process of sites, more and less by chance.
"""

import argparse
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import psutil
from tests.papers import papers_of, provisioned

from asterion_client.coordinator_words import LinkOrder
from asterion_client.day_book import DayBook
from asterion_client.link_session import LinkSession
from asterion_client.order_chunks import ByteQuota
from asterion_client.settings import ConnectionSettings
from asterion_server.keys import Provisioned, open_provisioned
from asterion_shared.events import RoundFinished, read_events
from asterion_shared.flower_messages import decode_order, encode_report
from asterion_shared.link.blobs import BlobStore
from asterion_shared.link.identity import read_identity
from asterion_shared.link.records import pack, stored_parts, unpack
from asterion_shared.messages import Order, Report
from asterion_shared.plan import Plan
from asterion_shared.plan_file import plan_to_toml
from asterion_shared.result import read_result
from asterion_shared.settings_files import validate
from asterion_sim.local_federation import operator_key

ASTERION = [sys.executable, "-m", "asterion_shared.command_line"]
RUN = "soak"
PARTS = ("center/link", "sites")
EVERY = 10
"""Rounds between two measurements. The sites answer the next round's orders after it."""

MEASURED = "measured"
"""Folder with an empty file for each round after which was measured."""

WIDTH = 270
"""Of both layers: 73 980 weights with two features and two classes, 296 kB."""

SETTLED_ROUND = 20
"""From here on nothing may grow: the first rounds fill caches and pools."""

MOST_GROWTH_BYTES = {"link": 16 * 2**20, "run": 32 * 2**20, "sites": 16 * 2**20}
"""Of a process's memory after that; the run's keeps the results of all rounds, 100 sites each."""

QUIET_SECONDS = 6.0
"""Everything is at rest when no file changed for so long: the link clears up within 5 seconds."""

HAND_BACK = """
import ctypes, threading, time
def hand_back():
    c_library = ctypes.CDLL(None)
    while True:
        time.sleep(1.0)
        c_library.malloc_trim(0)
threading.Thread(target=hand_back, daemon=True).start()
"""
"""Python runs it at the start of each process, as its ``sitecustomize``."""

C_LIBRARY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
"""Has the C library keep little of what is freed. It would keep 16 heaps for a hundred threads."""

MORE_ROUNDS = 3
"""After the last sample: at the end the run's process forms the result of all rounds."""

MOST_FILES_GROWTH = 1.1
MOST_DISK_GROWTH_BYTES = 3_000_000
"""A tenth of a round's updates. At rest the link has little more than its queue, whose write-ahead
log keeps the size it once needed, 4.2 to 5.5 MB, and is written over."""

ROUND_SECONDS = 120.0
"""A round that takes longer has not ended."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured after a round.

    Attributes:
        round: finished last.
        seconds: since the launch.
        rss_bytes: resident memory of the link's and the run's process, and of the sites'
            processes together; at rest, as all that follows.
        open_files: descriptors of the link's and the run's process.
        link_files: files in the coordinator's link folder.
        link_bytes: of those.
        site_files: chunk files of all sites.
        site_bytes: of those.
    """

    round: int
    seconds: float
    rss_bytes: dict[str, int]
    open_files: dict[str, int]
    link_files: int
    link_bytes: int
    site_files: int
    site_bytes: int


def plan_of(num_rounds: int) -> Plan:
    """The plan: every site in every round."""
    values = {
        "name": RUN,
        "task": "classification",
        "data": {"kind": "table", "features": ["a", "b"], "classes": ["well", "ill"]},
        "model": {"name": "mlp", "widths": [WIDTH, WIDTH]},
        "rounds": {"count": num_rounds, "deadline_seconds": 600.0, "late": "wait",
                   "evaluate_every": 100_000},
    }  # fmt: skip
    return validate(Plan, values, RUN)


class Site:
    """A virtual site: a session, and a thread that answers its orders.

    Args:
        name: of the site.
        made: the coordinator's folder, beside which are its papers.
        folder: for its chunks.
    """

    def __init__(self, name: str, made: Provisioned, folder: Path) -> None:
        papers = papers_of(made, name)
        identity = read_identity(papers / "ca.pem", papers / "site.pem", papers / "site.key")
        settings = ConnectionSettings(
            address=made.address, root_certificate="ca.pem", private_key="site.key"
        )
        self.name, self.blobs = name, BlobStore(folder / name)
        state_id = name.encode().ljust(16)[:16]
        quota = ByteQuota(DayBook(folder / f"{name}-days"), 10**12)
        self.session = LinkSession(
            settings, identity, self.blobs, state_id, lambda standing: None, quota
        )
        self._measured = folder.parent / MEASURED
        self._last: list[LinkOrder] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        """Dial and answer until the process ends."""
        self.session.start()
        self._thread.start()

    def _serve(self) -> None:
        while True:
            order = self.session.next_order(5.0)
            if order is not None:
                self._hold_back(order.order.round - 1)
                self._answer(order)

    def _hold_back(self, finished: int) -> None:
        while (
            finished > 0 and finished % EVERY == 0 and not (self._measured / str(finished)).exists()
        ):
            time.sleep(0.05)

    def _answer(self, taken: LinkOrder) -> None:
        order = decode_order(unpack(taken.content, self.blobs.view)).order
        parcel = pack(encode_report(self._report(order)), self.blobs.add)
        self.session.send(taken, parcel)
        # As the runner does: what is in use, and the last two orders' chunks.
        self._last = [*self._last[-1:], taken]
        kept = stored_parts([parcel, *(old.content for old in self._last)])
        self.blobs.keep_only([*self.session.parts_in_use(), *kept])

    def _report(self, order: Order) -> Report:
        bare = Report(
            site=self.name, num_examples=10, num_test=0, num_bad_files=0, manifest_sha256="0" * 64
        )
        if order.phase != "train" or order.weights is None:
            return bare
        seed = int.from_bytes(self.name.encode()) + order.round
        draws = np.random.default_rng(seed).normal(0.0, 1e-3, order.weights.shape)
        return replace(bare, num_steps=1, train_loss=0.5, update=draws.astype(np.float32))


def serve_sites(made: Provisioned, folder: Path, names: Sequence[str]) -> None:
    """Be some of the sites until killed, or until whoever started this is gone."""
    sites = [Site(name, made, folder) for name in names]
    for site in sites:
        site.start()
    sys.stdin.read()


class Soak:
    """A coordinator and its sites.

    Args:
        root: an empty folder.
        num_sites: how many.
        num_processes: that the sites share.
    """

    def __init__(self, root: Path, num_sites: int, num_processes: int) -> None:
        self.root = root
        (root / MEASURED).mkdir()
        (root / "python").mkdir()
        (root / "python/sitecustomize.py").write_text(HAND_BACK)
        self.names = [f"site-{number:03d}" for number in range(num_sites)]
        self.made = provisioned(
            root / "center", ["127.0.0.1"], self.names, port=_free_port(), listen="127.0.0.1"
        )
        self._processes: list[subprocess.Popen[bytes]] = []
        self._shares = [self.names[n::num_processes] for n in range(num_processes)]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Everything started; ended with the block."""
        try:
            words = [*ASTERION, "server", "start", str(self.made.folder)]
            self._start("center", words)
            _wait(lambda: "listens on" in (self.root / "center.log").read_text(), 90)
            for number, share in enumerate(self._shares):
                words = [sys.executable, "-m", "tests.network.soak", "--serve", str(self.root)]
                self._start(f"sites-{number}", [*words, *share])
            yield
        finally:
            for process in reversed(self._processes):
                process.terminate()
            for process in self._processes:
                process.wait(60)

    def run(self, num_rounds: int) -> list[Sample]:
        """Carry out so many rounds and a few more; a sample every :data:`EVERY`.

        Raises:
            AssertionError: it did not come to its end with every site in every round.
        """
        path = self.root / "plan.toml"
        path.write_text(plan_to_toml(plan_of(num_rounds + MORE_ROUNDS)))
        words = [*ASTERION, "server", "launch", str(path), "--folder", str(self.made.folder),
                 "--key", str(operator_key(self.made.folder))]  # fmt: skip
        self._start("launch", [*words, "--wait", "120"])
        began, samples, done = time.monotonic(), list[Sample](), 0
        launched = self._processes[-1]
        told = self.made.runs / RUN / "events.jsonl"
        heard = began
        while launched.poll() is None:
            finished = [e for e in read_events(told) if isinstance(e, RoundFinished)]
            if len(finished) > done:
                done, heard = len(finished), time.monotonic()
                if done % EVERY == 0 and done <= num_rounds:
                    samples.append(self._sample(done, time.monotonic() - began))
                    _say(samples[-1])
            assert time.monotonic() - heard < ROUND_SECONDS, f"no round after round {done}"
            time.sleep(0.2)
        assert launched.returncode == 0, (self.root / "launch.log").read_text()
        result = read_result(self.made.runs / RUN / "result.json")
        assert all(set(r.answered) == set(self.names) for r in result.rounds), result.headline
        return samples

    def _sample(self, number: int, seconds: float) -> Sample:
        self._wait_for_rest()
        sample = self._measured(number, seconds)
        (self.root / MEASURED / str(number)).touch()
        return sample

    def _wait_for_rest(self) -> None:
        until, before = time.monotonic() + ROUND_SECONDS, None
        while (now := [_files(self.root / part) for part in PARTS]) != before:
            assert time.monotonic() < until, "the sites hold back, and files still change"
            time.sleep(QUIET_SECONDS)
            before = now

    def _measured(self, number: int, seconds: float) -> Sample:
        center = psutil.Process(self._processes[0].pid)
        found = {
            name: next(p for p in center.children() if words in " ".join(p.cmdline()))
            for name, words in (("link", "link_server"), ("run", "run_process"))
        }
        rss = {name: process.memory_info().rss for name, process in found.items()}
        sites = self._processes[1 : 1 + len(self._shares)]
        rss["sites"] = sum(psutil.Process(p.pid).memory_info().rss for p in sites)
        (link_files, link_bytes), (site_files, site_bytes) = (
            _files(self.root / part) for part in PARTS
        )
        return Sample(
            number, round(seconds, 1), rss, {n: p.num_fds() for n, p in found.items()},
            link_files, link_bytes, site_files, site_bytes,
        )  # fmt: skip

    def _start(self, name: str, words: Sequence[str]) -> None:
        paths = [str(self.root / "python"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        ours = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        with (self.root / f"{name}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    words, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                    env=os.environ | ours | C_LIBRARY,
                )
            )  # fmt: skip


def growths(samples: Sequence[Sample]) -> list[str]:
    """What grew beyond its bound after the rounds in which everything settles; empty: nothing."""
    settled = [sample for sample in samples if sample.round >= SETTLED_ROUND]
    first, last = settled[0], settled[-1]
    found = [
        f"memory of {name} grew by {last.rss_bytes[name] - first.rss_bytes[name]} bytes"
        for name, most in MOST_GROWTH_BYTES.items()
        if last.rss_bytes[name] - first.rss_bytes[name] > most
    ]
    for name in ("link_files", "link_bytes", "site_files", "site_bytes"):
        before = max(getattr(sample, name) for sample in settled[: (len(settled) + 1) // 2])
        after = getattr(last, name)
        files = name.endswith("files")
        if after > (MOST_FILES_GROWTH * before if files else before + MOST_DISK_GROWTH_BYTES):
            found.append(f"{name} grew from {before} to {after}")
    for name, before in first.open_files.items():
        if last.open_files[name] > before + 10:
            found.append(f"{name} has {last.open_files[name]} open files, before {before}")
    return found


def _files(folder: Path) -> tuple[int, int]:
    sizes: list[int] = []
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                sizes.append(path.stat().st_size)
        except FileNotFoundError:
            continue  # it was removed while we looked
    return len(sizes), sum(sizes)


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the coordinator did not come up"
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _say(sample: Sample) -> None:
    memory = "  ".join(f"{name} {b / 2**20:.0f}" for name, b in sample.rss_bytes.items())
    sys.stdout.write(
        f"round {sample.round:4}  {sample.seconds:7.1f} s  MiB: {memory}  open {sample.open_files}"
        f"  link {sample.link_files} files {sample.link_bytes / 1e6:.1f} MB"
        f"  sites {sample.site_files} files {sample.site_bytes / 1e6:.1f} MB\n"
    )
    sys.stdout.flush()


def main() -> int:
    """Soak and write the samples; 1 when something grew."""
    parser = argparse.ArgumentParser(description="Many sites, many rounds over the link.")
    parser.add_argument("--out", type=Path, default=Path("runs/faults/soak.json"))
    parser.add_argument("--sites", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        logging.basicConfig(level=logging.WARNING)
        root = Path(given.serve[0])
        serve_sites(open_provisioned(root / "center"), root / "sites", given.serve[1:])
        return 0
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), given.sites, given.processes)
        with soak.running():
            samples = soak.run(given.rounds)
    found = growths(samples)
    told = {"sites": given.sites, "rounds": given.rounds, "grew": found,
            "samples": [asdict(sample) for sample in samples]}  # fmt: skip
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(told, indent=2) + "\n")
    sys.stdout.write("".join(f"{line}\n" for line in found or ["nothing grew"]))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
