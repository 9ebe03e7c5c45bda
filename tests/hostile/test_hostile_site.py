"""A hostile site with a good certificate: its lies are refused, and the others' run is the same.

``tests/link/test_refusals.py`` has what the link itself refuses (another site's certificate or
order, an order that is over, chunks that do not fit), ``tests/core/test_quarantine.py`` updates
that are unlike the others'. Here ``west`` says what it likes, and the coordinator and the two other
sites are real processes.
"""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from tests.live.conftest import Federation, free_port, plan_of, said, wait_for, write_site

from asterion_server.app import conduct
from asterion_server.link_grid import LinkGrid
from asterion_server.link_paths import database_url
from asterion_server.link_store import LinkStore
from asterion_server.round_audit import coordinator_trail
from asterion_server.run_folder import Launch, RunFolder
from asterion_shared.audit import trail_files
from asterion_shared.flower_messages import decode_order, encode_report
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link import link_pb2_grpc as service
from asterion_shared.link.blobs import BlobStore
from asterion_shared.link.channel import WIRE_FORMAT, open_channel
from asterion_shared.link.identity import read_identity
from asterion_shared.link.parcels import from_wire, to_wire
from asterion_shared.link.records import pack, unpack
from asterion_shared.messages import Order, Report
from asterion_shared.metrics import Statistic
from asterion_shared.parameters import from_bytes, layout_of, read_vector
from asterion_shared.plan import Plan
from asterion_shared.result import Result
from asterion_shared.tasks import initial_model
from asterion_sim.local_federation import enrol_on_this_machine, signed_here

pytestmark = pytest.mark.live
SITES = ("north", "south", "west")
Lie = Callable[[Report], RecordDict]


def told(**fields: Any) -> Lie:
    """A whole report with these fields."""
    return lambda report: encode_report(replace(report, **fields))


def set_to(name: str, value: Any) -> Lie:
    """A whole report, one setting of which is changed on the wire."""

    def lie(report: Report) -> RecordDict:
        content = encode_report(report)
        content["report"] = ConfigRecord({**dict(content["report"]), name: value})  # type: ignore[arg-type]
        return content

    return lie


def changed(work: Callable[[Any], Any]) -> Lie:
    """A report whose update is changed."""

    def lie(report: Report) -> RecordDict:
        assert report.update is not None
        return encode_report(replace(report, update=work(report.update).astype(np.float32)))

    return lie


def with_one(value: float) -> Lie:
    def spoil(update: Any) -> Any:
        spoilt = update.copy()
        spoilt[0] = value
        return spoilt

    return changed(spoil)


NINE = {"confusion": Statistic("confusion", np.full(4, 9.0))}
"""Statistics on 36 cases."""

LIES: dict[str, Lie] = {
    "nan": with_one(np.nan),
    "infinite": with_one(np.inf),
    "one-number-more": changed(lambda update: np.append(update, 0.0)),
    "no-update": told(update=None),
    "huge-n": set_to("num_examples", 10**9 + 1),
    "negative-n": set_to("num_examples", -5),
    "no-examples": told(num_examples=0),
    "contradicts-itself": told(num_test=3, statistics=NINE),
    "another-sites-name": set_to("site", "north"),
    "no-report": lambda report: RecordDict({"x": ConfigRecord({"y": 1})}),
}  # fmt: skip


@dataclass
class West:
    """A site of raw stubs: it answers orders of a round with that round's lie."""

    folder: Path
    address: str
    lies: dict[int, Lie] = field(default_factory=dict)
    failed: list[BaseException] = field(default_factory=list)

    def start(self) -> None:
        identity = read_identity(
            self.folder / "ca.pem", self.folder / "site.pem", self.folder / "site.key"
        )
        self._channel = open_channel(self.address, identity)
        self._stub = service.LinkStub(self._channel)  # type: ignore[no-untyped-call]
        self._blobs = BlobStore(self.folder / "hostile")
        hello = wire.Hello(
            format=WIRE_FORMAT, version="test", state_id=b"w" * 16, instance_id=b"i" * 16
        )
        self._call = self._stub.Attend(hello)
        assert next(self._call).WhichOneof("what") == "welcome"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        try:
            for notice in self._call:
                if notice.WhichOneof("what") == "order":
                    self._answer(notice.order)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:
                self.failed.append(error)
        except BaseException as error:
            self.failed.append(error)

    def _answer(self, given: wire.Order) -> None:
        order = decode_order(unpack(from_wire(given.content), self._blobs.view)).order
        content = self._lie(order)(self._truth(order))
        report = pack(content, self._blobs.add)
        self._stub.Submit(wire.Report(key=given.key, content=to_wire(report)))

    def _lie(self, order: Order) -> Lie:
        return (
            self.lies.get(order.round, encode_report) if order.phase == "train" else encode_report
        )

    def _truth(self, order: Order) -> Report:
        bare = Report(
            site="west", num_examples=50, num_test=0, num_bad_files=0, manifest_sha256="0" * 64
        )
        if order.phase != "train" or order.weights is None:
            return bare
        update = np.random.default_rng(order.round).normal(0.0, 0.1, order.weights.shape)
        return replace(bare, num_steps=10, train_loss=0.5, update=update.astype(np.float32))

    def stop(self) -> None:
        self._call.cancel()
        self._channel.close()


@dataclass
class Played:
    """The federation, and the site that lies."""

    running: Federation
    west: West

    def run(self, plan: Plan, sites: tuple[str, ...], name: str = "") -> tuple[Result, bytes]:
        """Carry a plan out as a run's process does; its result and its model's file."""
        made, run = self.running.made, name or plan.name
        folder = RunFolder(made.runs / run)
        folder.path.mkdir(parents=True)
        folder.plan_file.write_text(plan.canonical())
        signature = signed_here(made.folder, plan, run)
        folder.signature_file.write_text(signature.model_dump_json())
        store = LinkStore(database_url(made))
        grid = LinkGrid(store, made.folder, run)
        try:
            with folder.carried_out_here():
                # Only now, or the coordinator's own process would carry it out.
                folder.write_launch(Launch(sites=sites))
                trail = coordinator_trail(made.folder)
                result = conduct(grid, folder, None, trail, carrier="link")
        finally:
            grid.close()
            store.close()
        assert not self.west.failed
        return result, (folder.path / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    root = tmp_path_factory.mktemp("liars")
    tomls = [write_site(root / "sites" / name, 60, 100.0) for name in SITES]
    made = enrol_on_this_machine(
        root / "center", tomls, port=free_port(), listen="127.0.0.1", carrier="link"
    )
    running = Federation(root, made)
    west = West(root / "sites" / "west", f"127.0.0.1:{made.settings.port}")
    try:
        running.start("center", "server", "start", str(made.folder))
        for name in ("north", "south"):
            toml = str(root / "sites" / name / "site.toml")
            running.start(name, "site", "start", toml, "--wait", "90")
        for name in ("north", "south"):
            wait_for(
                lambda name=name: "waiting for orders" in running.log(name),  # type: ignore[misc]
                90,
                f"site {name}",
            )
        west.start()
        yield Played(running, west)
        west.stop()
    finally:
        running.stop()
    for name in running.processes:
        assert "Traceback" not in running.log(name)


def test_each_lie_is_refused_and_the_model_is_that_of_the_others(played: Played) -> None:
    played.west.lies = dict(enumerate(LIES.values(), 1))
    plan = plan_of("lied", len(LIES))
    result, model = played.run(plan, SITES)
    assert result.status == "finished"
    for number, name in enumerate(LIES, 1):
        round_ = result.rounds[number]
        assert round_.missing == {"west": "report_rejected"}, name
        assert round_.answered == ("north", "south"), name
    _, without = played.run(plan, ("north", "south"), "without")
    layout = layout_of(initial_model(plan), plan.parameters)
    assert from_bytes(model, layout).tobytes() == from_bytes(without, layout).tobytes()


def test_every_lie_is_in_the_trail(played: Played) -> None:
    folder = played.running.made.folder
    sides = [folder, *(played.running.root / "sites" / name / "state" for name in SITES[:2])]
    files = [str(path) for side in sides for path in trail_files(side / "audit")]
    assert said("audit", "verify", *files) == (0, "")
    lines = [
        line for path in trail_files(folder / "audit") for line in path.read_text().splitlines()
    ]
    records = [json.loads(line)["record"] for line in lines]
    came = {
        record["round"]: record["facts"]["site:west"]
        for record in records
        if (record["kind"], record["run"], record["facts"].get("phase"))
        == ("answers", "lied", "train")
    }
    assert sorted(came) == list(range(1, len(LIES) + 1))
    # What can be read is on record by its hash, and refused when it is held against the order.
    assert {text.split(" ")[0] for text in came.values()} == {"report", "rejected"}
    assert came[len(LIES)] == "rejected report_rejected"


def moved(plan: Plan, model: bytes) -> float:
    """How far a model is from where the plan begins."""
    begin = initial_model(plan)
    layout = layout_of(begin, plan.parameters)
    change = from_bytes(model, layout).astype(np.float64) - read_vector(begin, layout)
    return float(np.linalg.norm(change))


def test_a_large_update_of_many_examples_is_taken_and_a_clip_bounds_it(played: Played) -> None:
    """By design: no rule tells it from a site that is right and unlike the others."""
    huge = told(num_examples=10**6)
    played.west.lies = {
        1: lambda report: huge(replace(report, update=report.update * np.float32(1000)))  # type: ignore[operator]
    }
    plain, clipped = plan_of("large", 1), plan_of("bounded", 1, algorithm={"clip_norm": 0.5})
    result, model = played.run(plain, SITES)
    assert result.rounds[1].answered == SITES
    assert moved(plain, model) > 100
    result, model = played.run(clipped, SITES)
    assert result.rounds[1].answered == SITES
    assert moved(clipped, model) <= 0.5 * 1.001
