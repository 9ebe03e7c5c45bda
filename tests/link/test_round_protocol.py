"""A state machine of the round protocol: queue, files, run and sites against a simple model.

Deaths of the run and of the link are new objects over the same files: what was not synced is put
back to what it was. What the model says: at most one report a key; a report that was stored is
there, byte for byte, until its round was folded; an order that is open is delivered in each
session; reclaiming removes nothing that is needed, and leaves nothing that is not.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from unittest import mock

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from asterion_server.link_grid import LinkGrid, node_number
from asterion_server.link_orders import order_for
from asterion_server.link_paths import blobs_of_reports
from asterion_server.link_reports import SiteReports
from asterion_server.link_store import LinkStore
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link.blobs import BlobStore
from asterion_shared.link.parcels import Parcel
from asterion_shared.link.records import pack
from asterion_shared.link.refusals import LinkRefusedError

SITES = ("north", "south")
CHUNK, INLINE = 2048, 512
"""Instead of 1 MiB and 64 KiB, so that a case is quick."""

Answer = TypeVar("Answer")
SITE = st.sampled_from(SITES)
CHOICE = st.integers(0, 2)


@dataclass
class Known:
    """The model of one order."""

    site: str
    round: int
    state: str = "open"
    report: RecordDict | None = None
    sent: list[RecordDict] = field(default_factory=list)


def report_content(key: str, choice: int) -> RecordDict:
    """One of three reports that a site could give to an order."""
    data = hashlib.shake_128(f"{key} {choice}".encode()).digest(4 * CHUNK - 96)
    array = Array("int8", (len(data),), "t", data)
    return RecordDict({"m": MetricRecord({"x": choice}), "update": ArrayRecord({"v": array})})


def refused(work: Callable[[], Answer]) -> tuple[Answer | None, str]:
    """What comes of it, or None and the code of its refusal."""
    try:
        return work(), ""
    except LinkRefusedError as error:
        return None, error.code


def same(one: RecordDict, other: RecordDict) -> bool:
    return one["m"] == other["m"] and bytes(one["update"]["v"].data) == bytes(
        other["update"]["v"].data
    )


class Rounds(RuleBasedStateMachine):
    """One run of several rounds with two sites."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="asterion-rounds-"))
        self.patches = [
            mock.patch(f"asterion_shared.link.{module}.{name}", value)
            for module in ("parcels", "blobs")
            for name, value in (("CHUNK_BYTES", CHUNK), ("INLINE_BYTES", INLINE))
        ]
        for patch in self.patches:
            patch.start()
        self.store = LinkStore(f"sqlite:///{self.folder / 'queue.sqlite'}")
        self.grid = LinkGrid(self.store, self.folder, "run")
        self.sites = {site: BlobStore(self.folder / "site" / site) for site in SITES}
        self.orders: dict[str, Known] = {}
        self.round, self.folded = 0, 0
        self.pushed: dict[str, str] = {}
        self.restart_link()
        self.post()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.grid.close()
            self.store.close()
            for patch in self.patches:
                patch.stop()
            shutil.rmtree(self.folder)

    # The run.

    def push(self) -> None:
        messages = []
        for site in SITES:
            fields = {"run": "run", "site": site, "round": self.round, "plan": "{}"}
            content = RecordDict({"order": ConfigRecord(fields)})
            messages.append(Message(content, node_number(site), "train", ttl=1e6, group_id="1"))
        keys = list(self.grid.push_messages(messages))
        self.pushed = dict(zip(SITES, keys, strict=True))
        for site, key in self.pushed.items():
            known = self.orders.setdefault(key, Known(site, self.round))
            known.state = "answered" if known.state == "answered" else "open"

    def post(self) -> None:
        """The next round; what came of earlier ones is folded and may go."""
        self.round += 1
        self.push()
        self.orders = {k: o for k, o in self.orders.items() if o.round >= self.round}

    @rule()
    def post_again(self) -> None:
        self.push()

    @rule()
    def kill_run(self) -> None:
        self.grid._bell.close()
        self.grid = LinkGrid(self.store, self.folder, "run")
        self.push()

    @rule()
    def kill_run_before_it_posts(self) -> None:
        self.grid._bell.close()
        self.grid = LinkGrid(self.store, self.folder, "run")

    @rule(site=SITE)
    def expire(self, site: str) -> None:
        """The round's deadline passes for a site."""
        key = self.pushed[site]
        self.store.end([key])
        if self.orders[key].state == "open":
            self.orders[key].state = "over"

    @rule()
    def pull(self) -> None:
        for key in self.pushed.values():
            replies = list(self.grid.pull_messages([key]))
            known = self.orders[key]
            assert len(replies) == (known.report is not None)
            for reply in replies:
                assert known.report is not None
                assert same(reply.content, known.report)

    @precondition(lambda self: all(self.orders[k].state != "open" for k in self.pushed.values()))
    @rule()
    def fold(self) -> None:
        """All have answered, or are late: the next round."""
        self.pull()
        self.folded += 1
        self.post()

    # The link.

    @rule()
    def restart_link(self) -> None:
        """It is killed: what it knew is gone, and what was not synced is zeros again."""
        for site in SITES:
            folder = blobs_of_reports(self.folder, site)
            for path in folder.glob("*.part"):
                have = path.with_suffix(".have").read_bytes()
                with path.open("r+b") as file:
                    for number in range(len(have)):
                        if not have[number]:
                            file.seek(number * CHUNK)
                            file.write(bytes(CHUNK))
        self.links = {
            site: SiteReports(self.store, blobs_of_reports(self.folder, site), site)
            for site in SITES
        }

    @rule(site=SITE)
    def tidy(self, site: str) -> None:
        self.links[site].tidy()
        if not any(o.site == site and o.state == "open" for o in self.orders.values()):
            # Nothing can be on its way: only what reports need is there.
            needed = {p.id for p in self.store.report_parts(site)}
            names = {path.name.split(".")[0] for path in self.reports_of(site).iterdir()}
            assert names == needed

    # The sites.

    @rule(site=SITE)
    def attend(self, site: str) -> None:
        """A new session: every open order comes, and no other."""
        came = [order.key for order in self.store.open_orders(site)]
        wanted = [k for k, o in self.orders.items() if o.site == site and o.state == "open"]
        assert sorted(came) == sorted(wanted)
        for key in came:
            self.store.count_attempt(key)

    def parcel(self, site: str, choice: int) -> tuple[str, RecordDict, Parcel]:
        key = self.pushed[site]
        content = report_content(key, choice)
        return key, content, pack(content, self.sites[site].add)

    @rule(site=SITE, choice=CHOICE, count=st.integers(0, 4), synced=st.booleans())
    def upload(self, site: str, choice: int, count: int, synced: bool) -> None:
        """Some of the chunks that are missing; a cut comes before or after they are synced."""
        key, _, parcel = self.parcel(site, choice)
        order, code = refused(lambda: order_for(self.store, site, bytes.fromhex(key)))
        if order is None:
            assert (code, self.orders[key].state) == ("order_over", "over")
            return
        if order.state == "answered":
            assert self.orders[key].state == "answered"
            return
        link, part = self.links[site], parcel.parts[1]
        needed = link.offer(order, parcel)
        missing = list(needed.parts[0].chunks) if needed.parts else []
        for number in missing[:count]:
            data = self.sites[site].read(part, number)
            link.take(wire.Chunk(key=bytes.fromhex(key), part=1, number=number, data=data))
        if synced:
            link.sync_after_cut({part.id: part})
            again = link.offer(order, parcel)
            left = list(again.parts[0].chunks) if again.parts else []
            assert left == missing[count:]  # nothing that came is asked for again

    @rule(site=SITE, choice=CHOICE)
    def submit(self, site: str, choice: int) -> None:
        key, content, parcel = self.parcel(site, choice)
        known = self.orders[key]
        whole = BlobStore(self.reports_of(site)).holds(parcel.parts[1])
        order, code = refused(lambda: order_for(self.store, site, bytes.fromhex(key)))
        if order is None:
            assert (code, known.state) == ("order_over", "over")
            return
        link = self.links[site]
        was_known, code = refused(lambda: order.state == "answered" or link.submit(order, parcel))
        if was_known is None:
            assert (code, known.state, whole) == ("chunks_missing", "open", False)
            return
        assert was_known == (known.report is not None)
        if not was_known:
            assert known.state == "open"
            assert whole
            known.report, known.state = content, "answered"

    @rule(site=SITE, choice=CHOICE)
    def deliver(self, site: str, choice: int) -> None:
        """What an honest site does when nothing goes wrong."""
        self.upload(site, choice, 4, True)
        self.submit(site, choice)

    def reports_of(self, site: str) -> Path:
        return blobs_of_reports(self.folder, site)

    @invariant()
    def a_stored_report_is_there(self) -> None:
        if not hasattr(self, "folder"):
            return
        for key, known in self.orders.items():
            parcel = self.store.report(key)
            assert (parcel is not None) == (known.report is not None)
            if parcel is not None and known.report is not None:
                view = BlobStore(self.reports_of(known.site)).view(parcel.parts[1])
                assert bytes(view) == known.report["update"]["v"].data

    @invariant()
    def disk_use_is_bounded(self) -> None:
        if not hasattr(self, "folder"):
            return
        for site in SITES:
            names = {path.name.split(".")[0] for path in self.reports_of(site).iterdir()}
            # One stored, one on its way, and what the last round left until the next look.
            assert len(names) <= 3


Rounds.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestRounds = Rounds.TestCase


class _Losing(Rounds):
    """The same with a link that removes what it should keep: the machine must see it."""

    def restart_link(self) -> None:
        super().restart_link()
        for link in self.links.values():
            link._store = mock.Mock(wraps=self.store)
            link._store.report_parts = lambda site: []


def test_the_machine_sees_a_report_that_is_lost() -> None:
    quick = settings(
        max_examples=200, stateful_step_count=30, deadline=None, derandomize=True, database=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    with pytest.raises((FileNotFoundError, AssertionError, ExceptionGroup)):
        run_state_machine_as_test(_Losing, settings=quick)
