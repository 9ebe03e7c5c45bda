"""Messages twice, late and in a wrong order, where TCP cannot hide it: raw calls to a real link."""

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from tests.link.loopback import Loopback, Site, eventually, linked, noise, report_content

from asterion_shared.link import link_pb2 as wire
from asterion_shared.link.parcels import Parcel, to_wire
from asterion_shared.link.records import pack
from asterion_shared.link.refusals import code_of
from asterion_shared.vector_records import vector_of

NUM_VALUES = 5 * 2**17
"""2.5 MiB: three chunks."""


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Loopback]:
    with linked(tmp_path, ["north"]) as loopback:
        yield loopback


def report(key: bytes, parcel: Parcel) -> wire.Report:
    return wire.Report(key=key, content=to_wire(parcel))


def chunk(site: Site, key: bytes, parcel: Parcel, number: int) -> wire.Chunk:
    data = site.blobs.read(parcel.parts[1], number)
    return wire.Chunk(key=key, part=1, number=number, data=data)


def pulled(grid, keys: list[bytes]) -> dict[str, np.ndarray]:
    found = {}
    for reply in grid.pull_messages([key.hex() for key in keys]):
        round_ = reply.metadata.group_id
        found[round_] = vector_of(reply.content["update"], "update", None)
    return found


@pytest.mark.parametrize("seed", range(8))
def test_any_order_and_number_of_messages_ends_in_the_first_reports(
    link: Loopback, seed: int
) -> None:
    """Reports of two orders, all their messages twice and shuffled, then as a site repeats them."""
    site, grid = link.site(), link.grid()
    site.attend()
    keys = [link.post(grid, "north", round_) for round_ in (1, 2)]
    updates = [noise(NUM_VALUES, round_) for round_ in (1, 2)]
    parcels = [site.pack(report_content(update)) for update in updates]
    messages: list[Callable[[], object]] = []
    stored: list[tuple[int, bool]] = []

    def submit(n: int) -> None:
        stored.append((n, site.stub.Submit(report(keys[n], parcels[n])).known))

    for n in (0, 1):
        messages += [lambda n=n: site.stub.Offer(report(keys[n], parcels[n])),
                     lambda n=n: submit(n)]  # fmt: skip
        messages += [
            lambda n=n, number=number: site.stub.Upload(
                iter([chunk(site, keys[n], parcels[n], number)])
            )
            for number in range(3)
        ]
    messages *= 2
    shuffled = [messages[place] for place in np.random.default_rng(seed).permutation(len(messages))]
    refused = set()
    for message in shuffled:
        try:
            message()
        except grpc.RpcError as error:
            refused.add(code_of(error.details()))
    assert refused <= {"not_offered", "chunks_missing"}
    for n in (1, 0):
        needed = site.stub.Offer(report(keys[n], parcels[n]))
        numbers = [number for part in needed.parts for number in part.chunks]
        if numbers:
            site.stub.Upload(chunk(site, keys[n], parcels[n], number) for number in numbers)
        submit(n)
    for n in (0, 1):  # stored once, and known ever after
        assert [known for which, known in stored if which == n].count(False) == 1
    found = pulled(grid, keys)
    for n in (0, 1):
        np.testing.assert_array_equal(found[str(n + 1)], updates[n])


def test_chunks_backwards_and_twice_in_one_upload(link: Loopback) -> None:
    site, grid = link.site(), link.grid()
    key = link.post(grid, "north")
    site.attend()
    update = noise(NUM_VALUES)
    parcel = site.pack(report_content(update))
    site.stub.Offer(report(key, parcel))
    site.stub.Upload(chunk(site, key, parcel, number) for number in (2, 2, 1, 2, 0, 1))
    assert site.stub.Submit(report(key, parcel)).known is False
    np.testing.assert_array_equal(pulled(grid, [key])["1"], update)


def test_a_report_of_an_earlier_round_after_the_later_one_counts_for_its_own(
    link: Loopback,
) -> None:
    site, grid = link.site(), link.grid(most_stale=2)
    site.attend()
    keys = [link.post(grid, "north", round_) for round_ in (1, 2)]
    for n, value in ((1, 2.0), (0, 1.0), (1, 3.0)):
        parcel = site.pack(report_content(value=value))
        assert site.stub.Submit(report(keys[n], parcel)).known is (value == 3.0)
    replies = {r.metadata.group_id: r for r in grid.pull_messages([key.hex() for key in keys])}
    found = {round_: reply.content["numbers"]["loss"] for round_, reply in replies.items()}
    assert found == {"1": 1.0, "2": 2.0}


def test_a_report_of_a_round_that_is_folded_changes_nothing(link: Loopback) -> None:
    site, grid = link.site(), link.grid()
    site.attend()
    first = link.post(grid, "north", 1)
    parcel = site.pack(report_content(value=1.0))
    site.stub.Submit(report(first, parcel))
    assert list(grid.pull_messages([first.hex()]))
    second = link.post(grid, "north", 2)  # the first is reclaimed with it
    with pytest.raises(grpc.RpcError) as refused:
        site.stub.Submit(report(first, site.pack(report_content(value=9.0))))
    assert isinstance(refused.value, grpc.Call)
    assert code_of(refused.value.details()) == "unknown_order"
    assert list(grid.pull_messages([first.hex(), second.hex()])) == []


def attempts(link: Loopback, key: bytes) -> int:
    order = link.store.order(key.hex())
    assert order is not None
    return order.attempt


def test_an_order_that_comes_again_while_it_is_in_work_is_handed_out_once(link: Loopback) -> None:
    grid, session = link.grid(), link.session()
    key = link.post(grid, "north", vector=noise(NUM_VALUES))
    order = eventually(lambda: session.next_order(0.2))
    for attempt in (2, 3):
        link.restart()
        eventually(lambda attempt=attempt: attempts(link, key) == attempt, 30)
    assert session.next_order(0.5) is None
    update = noise(NUM_VALUES, 1)
    session.send(order, pack(report_content(update), session._blobs.add))
    eventually(lambda: link.store.report(key.hex()), 30)
    np.testing.assert_array_equal(pulled(grid, [key])["1"], update)
