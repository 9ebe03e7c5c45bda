"""The fixed corpus, a few thousand mutated messages, and a part of them over real gRPC."""

import logging
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from tests.link import fuzz_wire
from tests.link.fuzz_wire import CORPUS, KINDS, Message, Target, WrongError, fuzz, target
from tests.link.loopback import Loopback, Site
from tests.link.messages import mutated

from asterion_server import link_reports
from asterion_shared.link.blobs import BlobStore
from asterion_shared.link.refusals import REFUSALS, code_of


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    log = logging.getLogger("asterion.link")
    before = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(before)


@pytest.fixture
def found() -> Iterator[Target]:
    with target() as made:
        yield made


def corpus() -> list[tuple[Message, str]]:
    lines = [line.split(" ") for line in CORPUS.read_text().splitlines()]
    return [(Message(name, bytes.fromhex(data)), outcome) for name, outcome, data in lines]


def test_the_fixed_corpus(found: Target) -> None:
    """An outcome that changes is a change of the wire, or a hole: look before writing it anew."""
    known = corpus()
    assert {message.target for message, _ in known} == set(KINDS)
    assert len(known) > 80
    for message, outcome in known:
        assert found.give(message) == outcome, str(message)[:400]


def test_two_thousand_mutations(found: Target) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    outcomes = fuzz(found, 2_000, 7, lambda *_: None)
    assert sum(outcomes.values()) == 2_000
    # They reach what lies behind the readers.
    accepting = {name for name, outcome in outcomes if outcome == "accepted"}
    assert accepting >= set(KINDS) - {"Attend"}  # of which there are few
    assert {name for name, outcome in outcomes if outcome != "accepted"} == set(KINDS)
    assert {outcome for _, outcome in outcomes} >= {
        "malformed", "unknown_order", "wrong_chunk", "not_offered", "chunks_missing", "too_large",
        "other_version",
    }  # fmt: skip
    assert process.memory_info().rss - before < 100e6


def test_the_fuzzer_sees_a_chunk_that_is_not_checked(
    found: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unchecked(self: BlobStore, part, number: int, data) -> None:
        with self._lock:
            self._put(self._begin(part), part, number, data)

    monkeypatch.setattr(BlobStore, "write", unchecked)
    with pytest.raises(WrongError, match="not announced") as told:
        fuzz(found, 2_000, 7, lambda *_: None)
    assert told.value.__notes__[0].startswith("Upload ")


def test_the_fuzzer_sees_a_report_that_is_not_whole(
    found: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BlobStore, "holds", lambda self, part: True)
    with pytest.raises((WrongError, FileNotFoundError)):
        fuzz(found, 2_000, 7, lambda *_: None)


def test_the_fuzzer_sees_an_exception(found: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(order, report):
        raise KeyError(report.content.parts[0].size)

    monkeypatch.setattr(link_reports, "read_report", broken)
    monkeypatch.setattr("asterion_server.link_server.read_report", broken)
    with pytest.raises((KeyError, IndexError)):
        fuzz(found, 500, 7, lambda *_: None)


def test_mutated_bytes_over_grpc(
    link: Loopback, found: Target, caplog: pytest.LogCaptureFixture
) -> None:
    """What comes over the line is answered, or refused with a code; the server stays."""
    rng = np.random.default_rng(3)
    seeds: dict[str, list[bytes]] = {}
    for message in found.seeds():
        seeds.setdefault(message.target, []).append(message.data)
    link.store.post([found.order])
    site = link.site()
    codes = set()
    for count in range(400):
        if count % 80 == 0:
            session = site.attend()  # too many mistakes end one
        name = ("Download", "Offer", "Upload", "Submit")[count % 4]
        data = mutated(rng, seeds[name][0], seeds[name], KINDS[name])
        refused = refusal(site, name, data)
        codes.add("" if refused is None else code_of(refused.details()) or str(refused))
    assert codes <= {"", *REFUSALS}
    assert codes >= {"malformed", "not_offered"}
    assert session.is_active()
    assert not [r for r in caplog.records if r.exc_info], "an exception in the link"


def refusal(site: Site, name: str, data: bytes) -> grpc.RpcError | None:
    path = f"/asterion.link.v1.Link/{name}"
    try:
        if name == "Upload":
            site.channel.stream_unary(path)(iter([data]), timeout=20)
        elif name == "Download":
            list(site.channel.unary_stream(path)(data, timeout=20))
        else:
            site.channel.unary_unary(path)(data, timeout=20)
    except grpc.RpcError as error:
        return error
    return None


def test_the_corpus_is_small() -> None:
    assert Path(fuzz_wire.__file__).with_name("wire_corpus.txt") == CORPUS
    assert CORPUS.stat().st_size < 200_000
