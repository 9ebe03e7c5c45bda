"""Privacy for whole sites in a real federation, and what somebody on the line sees of it."""

import json
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.common.serde import recorddict_to_proto
from tests.flower.conftest import bundle_with
from tests.live.conftest import (
    SITES,
    Federation,
    plan_of,
    running_federation,
    said,
    wait_for,
)

from asterion_server.control_proof import coordinator_prover
from asterion_server.flower_server_compat import Control
from asterion_shared.flower_messages import encode_order
from asterion_shared.messages import Order
from asterion_shared.parameters import from_bytes, layout_of
from asterion_shared.plan import Plan
from asterion_shared.privacy.accounting import spent
from asterion_shared.privacy.planned import charge_of
from asterion_shared.result import Result, read_result
from asterion_shared.tasks import initial_model

pytestmark = pytest.mark.live

ROUNDS = 2
SITE = {"protects": "site", "noise": "site", "clip_norm": 0.5, "noise_multiplier": 3.0,
        "epsilon_limit": 50.0}  # fmt: skip
NOISE_AT: dict[str, dict[str, Any]] = {
    "site": {"privacy": SITE},
    "centre": {
        "privacy": SITE | {"noise": "centre"},
        "algorithm": {"max_weight": 1},
        "rounds": {"count": ROUNDS, "sites_per_round": 3, "deadline_seconds": 240.0},
    },
}


def private_plan(noise: str) -> Plan:
    return plan_of(f"not-for-strangers-{noise}", ROUNDS, **NOISE_AT[noise])


def epsilon_after(rounds: int) -> float:
    """Of a site whose update was noised so often: both plans cost the same a round."""
    charge = charge_of(private_plan("site"), rounds)
    assert charge is not None
    return spent([charge], 1e-5).epsilon


class Line:
    """A relay in front of the coordinator: everything that it passes on it also writes down."""

    def __init__(self, to_port: int) -> None:
        self._to, self._over = ("127.0.0.1", to_port), threading.Event()
        self._ear = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._ear.getsockname()[1]
        self.streams: list[tuple[str, bytearray]] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with self._ear, suppress(OSError):  # closed: the test is over
            while True:
                near, _ = self._ear.accept()
                self._threads.append(threading.Thread(target=self._join, args=(near,)))
                self._threads[-1].start()

    def _join(self, near: socket.socket) -> None:
        with near:
            while not self._over.is_set():
                try:
                    far = socket.create_connection(self._to)
                except OSError:  # the coordinator is not there yet
                    self._over.wait(0.2)
                    continue
                with far:
                    answers = threading.Thread(target=self._pass_on, args=("down", far, near))
                    answers.start()
                    self._pass_on("up", near, far)
                    answers.join()
                return

    def _pass_on(self, way: str, source: socket.socket, sink: socket.socket) -> None:
        heard = bytearray()
        self.streams.append((way, heard))
        with suppress(OSError):  # one of the two hung up
            while data := source.recv(1 << 16):
                heard += data
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._over.set()
        self._ear.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)


@dataclass
class Played:
    """A federation after one run with noise at the sites and one with noise at the centre."""

    federation: Federation
    line: Line
    plans: dict[str, Plan]
    folders: dict[str, Path]
    results: dict[str, Result]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    limits = {
        "north": 1000.0,
        "south": (epsilon_after(3) + epsilon_after(4)) / 2,
        "west": (epsilon_after(1) + epsilon_after(2)) / 2,
    }
    with ExitStack() as held:
        lines: list[Line] = []

        def through_a_line(port: int) -> int:
            lines.append(held.enter_context(closing(Line(port))))
            return lines[0].port

        root = tmp_path_factory.mktemp("private")
        with running_federation(root, limits, through_a_line) as running:
            found = Played(running, lines[0], {}, {}, {})
            for noise in NOISE_AT:
                plan = private_plan(noise)
                launch = running.launch(plan)
                assert launch.end() == (0, "")
                found.plans[noise], found.folders[noise] = plan, launch.folder
                found.results[noise] = read_result(launch.folder / "result.json")
            yield found


@pytest.mark.parametrize("noise", NOISE_AT)
def test_a_live_run_that_protects_sites_states_its_epsilon(played: Played, noise: str) -> None:
    result = played.results[noise]
    assert (result.status, result.carrier) == ("finished", "flower")
    account = result.privacy_account
    assert account is not None
    assert account.protects == "site"
    assert account.epsilon == epsilon_after(ROUNDS)
    assert account.rounds == dict.fromkeys(SITES, ROUNDS)
    assert result.privacy.startswith(f"epsilon {np.ceil(100 * epsilon_after(ROUNDS)) / 100:g} ")
    report = (played.folders[noise] / "report.html").read_text()
    assert account.sentence in report
    trained = [outcome for r in result.rounds[1:] for outcome in r.outcomes.values()]
    losses = [outcome.train_loss for outcome in trained if outcome.outcome == "answered"]
    assert all((loss is None) == (noise == "site") for loss in losses)
    lengths = [o.update_norm for o in trained if o.outcome == "answered" and o.update_norm]
    if noise == "site":  # the length of 42 numbers of noise; training moves them by far less
        expected = 3.0 * 0.5 * np.sqrt(42)
        assert all(0.6 * expected < length < 1.4 * expected for length in lengths)


def test_the_sites_own_limits_stop_it_over_both_runs(played: Played) -> None:
    first, second = played.results["site"], played.results["centre"]
    missing = [r.missing for r in (*first.rounds[1:], *second.rounds[1:])]
    spent_up = {"west": "budget_spent"}
    # West can afford one release, south three, north all four.
    assert missing == [{}, spent_up, spent_up, {"south": "budget_spent"} | spent_up]
    for name, releases in {"north": 4, "south": 3, "west": 1}.items():
        folder = played.federation.root / "sites" / name
        told = played.federation.root / f"{name}.jsonl"
        assert said("site", "ledger", "verify", str(folder)) == (0, "")
        assert said("site", "ledger", "export", str(folder), "--out", str(told)) == (0, "")
        lines = [json.loads(line) for line in told.read_text().splitlines()]
        entries = [line for line in lines if "run" in line]
        assert [e["run"] for e in entries].count("not-for-strangers-site") == min(releases, ROUNDS)
        assert len(entries) == releases
        assert {e["unit_kind"] for e in entries} == {"site"}


def tls_records(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Content type and payload of each whole record (RFC 8446, section 5.1)."""
    at = 0
    while at + 5 <= len(stream):
        size = int.from_bytes(stream[at + 3 : at + 5], "big")
        assert stream[at + 1] == 3, "no TLS record begins here"
        yield stream[at], stream[at + 5 : at + 5 + size]
        at += 5 + size


def test_an_eavesdropper_sees_sizes_and_times(played: Played) -> None:
    heard = [(way, bytes(stream)) for way, stream in played.line.streams if stream]
    assert len(heard) > 2 * len(SITES)
    encrypted = {"up": 0, "down": 0}
    for way, stream in heard:
        for kind, payload in tls_records(stream):
            if kind == 22:  # the handshake in clear: hello and hello, and no certificate
                assert payload[0] == {"up": 1, "down": 2}[way]
                if way == "down":
                    assert b"\x00\x2b\x00\x02\x03\x04" in payload, "not TLS 1.3"
            else:
                assert kind in (20, 21, 23)  # change cipher spec, alert, application data
            encrypted[way] += len(payload) if kind == 23 else 0
    assert min(encrypted.values()) > 1000
    whole = b"".join(stream for _, stream in heard)
    for noise, plan in played.plans.items():
        layout = layout_of(initial_model(plan), plan.parameters)
        model = (played.folders[noise] / "model.safetensors").read_bytes()
        weights = from_bytes(model, layout)
        order = Order(run=plan.name, plan=plan, round=1, phase="evaluate", weights=weights)
        in_clear = recorddict_to_proto(encode_order(order, "north")).SerializeToString()
        for words in (plan.name.encode(), b"sites_per_round", weights[:8].tobytes(), b"north"):
            assert words in in_clear  # or the next line could not fail
            assert words not in whole


def test_code_that_somebody_submits_is_not_run(played: Played) -> None:
    """Stock Flower would run it, with the rights of the coordinator."""
    root = played.federation.root
    trace = root / "it-ran"
    code = f"open({str(trace)!r}, 'w')\nfrom flwr.serverapp import ServerApp\napp = ServerApp()\n"
    fab = bundle_with({"strange.py": code}, serverapp="strange:app")
    made = played.federation.made
    control = Control(made.address, made.root_certificate, coordinator_prover(made))
    try:
        number = control.start(fab, {"run": "strange"})
        log = made.folder / "logs" / "superexec.log"
        wait_for(lambda: "not the one of this installation" in log.read_text(), 30, "a refusal")
        control.stop(number)
    finally:
        control.close()
    assert not trace.exists()


def test_flowers_database_forgets_messages_once_they_are_answered(played: Played) -> None:
    """Their rows are gone. The file's freed pages may hold their bytes until they are reused."""
    path = played.federation.made.folder / "flower" / "state.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        for name in ("objects", "message", "message_ins", "message_res", "task_message"):
            assert database.execute(f"SELECT count(*) FROM {name}").fetchone() == (0,)  # noqa: S608
        assert database.execute("SELECT count(*) FROM node").fetchone() == (len(SITES),)
