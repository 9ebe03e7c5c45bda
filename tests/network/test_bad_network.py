"""The bad network is as bad as it says, and no worse.

Times are asserted from below, or by the fastest of many packets: a busy machine makes packets
late and never early. Everything else is counted.
"""

import itertools
import math
import statistics
import time

import pytest
from tests.network.conditions import (
    CONDITIONS,
    UNDISTURBED,
    Condition,
    Direction,
    both,
    cut_for,
)
from tests.network.control import HelperDiedError
from tests.network.measured import measure_udp, result_of, send_tcp, start_listening
from tests.network.namespaces import Network, network, require
from tests.network.probes import words


def passing(fraction: float, packets: int) -> tuple[float, float]:
    """Five standard deviations around the expected number of a binomial."""
    spread = 5 * math.sqrt(packets * fraction * (1 - fraction))
    return packets * fraction - spread, packets * fraction + spread


def settled(net: Network) -> None:
    """Wait until no packet is on its way."""
    while any(s.up.waiting or s.down.waiting for s in net.counters().values()):
        time.sleep(0.02)


def test_undisturbed_every_packet_arrives_once_in_order(net: Network) -> None:
    came = measure_udp(net.sites["north"], net.coordinator, 5000)
    assert came.numbers == tuple(range(5000))
    up = net.counters()["north"].up
    assert (up.received, up.delivered, up.received_bytes) == (5000, 5000, 500_000)
    assert net.counters()["south"].up.received == 0
    assert net.dropped_by_kernel() == 0


@pytest.mark.parametrize("way", ["up", "down"])
def test_lost_is_what_was_set_in_its_direction_alone(net: Network, way: str) -> None:
    bad = Direction(loss=0.1)
    net.set("north", Condition(up=bad) if way == "up" else Condition(down=bad))
    north, centre = net.sites["north"], net.coordinator
    hit, spared = ((north, centre), (centre, north))[:: 1 if way == "up" else -1]
    came = measure_udp(*hit, 4000)
    low, high = passing(0.9, 4000)
    assert low <= len(came.numbers) <= high
    assert list(came.numbers) == sorted(set(came.numbers))
    counters = getattr(net.counters()["north"], way)
    assert (counters.delivered, counters.lost) == (len(came.numbers), 4000 - len(came.numbers))
    assert len(measure_udp(*spared, 500).numbers) == 500
    assert len(measure_udp(net.sites["south"], centre, 500).numbers) == 500


def test_a_seed_decides_which_packets_are_lost() -> None:
    require()

    def survivors(seed: int) -> tuple[int, ...]:
        with network(["north"], seed=seed) as net:
            net.set("north", CONDITIONS["loss-10-percent"])
            return measure_udp(net.sites["north"], net.coordinator, 300).numbers

    first = survivors(1)
    assert survivors(1) == first
    assert survivors(2) != first


def test_duplicates_are_the_fraction_that_was_set(net: Network) -> None:
    net.set("north", Condition(up=Direction(duplicate=0.2)))
    came = measure_udp(net.sites["north"], net.coordinator, 3000, expected=6000)
    extra = len(came.numbers) - 3000
    low, high = passing(0.2, 3000)
    assert low <= extra <= high
    assert sorted(set(came.numbers)) == list(range(3000))
    assert extra == net.counters()["north"].up.duplicated


def test_reordered_packets_are_overtaken_and_none_is_lost(net: Network) -> None:
    net.set("north", Condition(up=Direction(reorder=0.1, reorder_seconds=0.02)))
    came = measure_udp(net.sites["north"], net.coordinator, 2000, gap_seconds=0.0005)
    assert sorted(came.numbers) == list(range(2000))
    greatest = itertools.accumulate(came.numbers, max)
    late = sum(number < most for number, most in zip(came.numbers, greatest, strict=True))
    low, high = passing(0.1, 2000)
    held = net.counters()["north"].up.reordered
    assert low <= held <= high
    # The last ones have nobody left to overtake them.
    assert held - 60 <= late <= held


@pytest.mark.parametrize(("name", "packets"), [("delay-200-ms", 50), ("delay-2-s", 5)])
def test_every_packet_has_the_delay(net: Network, name: str, packets: int) -> None:
    net.set("north", CONDITIONS[name])
    wanted = CONDITIONS[name].up.delay_seconds
    came = measure_udp(net.sites["north"], net.coordinator, packets, gap_seconds=0.005)
    assert came.numbers == tuple(range(packets))
    assert min(came.latencies_seconds) >= wanted
    assert min(came.latencies_seconds) < wanted + 0.05


def test_jitter_spreads_the_delay_and_keeps_the_order(net: Network) -> None:
    net.set("north", Condition(up=Direction(delay_seconds=0.1, jitter_seconds=0.08)))
    came = measure_udp(net.sites["north"], net.coordinator, 60, gap_seconds=0.01)
    assert came.numbers == tuple(range(60))
    assert 0.02 <= min(came.latencies_seconds) < 0.1
    assert max(came.latencies_seconds) > 0.1
    assert statistics.pstdev(came.latencies_seconds) > 0.01


def test_the_rate_is_kept_and_the_queue_drops_its_tail(net: Network) -> None:
    net.set("north", CONDITIONS["rate-0.5-mbit"])
    each_seconds = 1000 * 8 / 500_000
    came = measure_udp(net.sites["north"], net.coordinator, 80, size_bytes=1000)
    up = net.counters()["north"].up
    assert len(came.numbers) == up.delivered == 80 - up.dropped_by_queue
    # The queue has room for sixteen; each 16 ms that the sending takes makes room for one more.
    sending_seconds = came.departures[-1] - came.departures[0]
    assert 16 <= up.delivered <= 18 + sending_seconds / each_seconds
    assert came.numbers[:16] == tuple(range(16))
    # 10 ms for the receiver, which may be late for the first packet.
    took_seconds = came.arrivals[-1] - came.departures[0]
    assert took_seconds >= len(came.numbers) * each_seconds - 0.01


def test_what_stays_under_the_rate_is_not_dropped(net: Network) -> None:
    net.set("north", CONDITIONS["rate-0.5-mbit"])
    came = measure_udp(net.sites["north"], net.coordinator, 40, size_bytes=1000, gap_seconds=0.02)
    assert came.numbers == tuple(range(40))
    # A packet takes 16 ms to be sent, and the fastest is not much slower.
    assert 0.016 <= min(came.latencies_seconds) < 0.05


def test_tcp_is_as_slow_as_the_rate(net: Network) -> None:
    net.set("north", both(Direction(rate_bits_per_second=4e6)))
    sent = send_tcp(net.sites["north"], net.coordinator, 500_000)
    assert sent["right"]
    # 64 KiB are still in the queue's room when the sender has written its last byte, but the
    # digest comes back only after all of it.
    assert sent["seconds"] >= 500_000 * 8 / 4e6


def test_a_cut_lets_nothing_through_and_loses_what_was_on_its_way(net: Network) -> None:
    net.set("north", CONDITIONS["delay-200-ms"])
    counting = start_listening(net.coordinator, "udp-count", 5000, 30, 20.0)
    send = words("udp-send", net.coordinator.address, 5000, 10, 100, 0.0)
    net.sites["north"].run(send)
    assert net.counters()["north"].up.waiting == 10
    net.set("north", cut_for(1.0))
    net.sites["north"].run(send)
    net.set("north", UNDISTURBED)
    up = net.counters()["north"].up
    assert (up.received, up.dropped_by_cut, up.delivered) == (20, 20, 0)
    for _ in range(3):
        net.sites["north"].run(send)
    assert result_of(counting)["numbers"] == [*range(10)] * 3
    time.sleep(0.3)  # until the ten would have come that were cut on their way
    assert net.counters()["north"].up.delivered == 30


@pytest.mark.parametrize(("name", "deaf"), [("half-open-up", "up"), ("half-open-down", "down")])
def test_half_open_passes_one_direction(net: Network, name: str, deaf: str) -> None:
    net.set("north", CONDITIONS[name])
    hosts = net.sites["north"], net.coordinator
    for way, (source, target) in {"up": hosts, "down": hosts[::-1]}.items():
        source.run(words("udp-send", target.address, 5000, 50, 100, 0.0))
        counters = getattr(net.counters()["north"], way)
        assert counters.received >= 50
        assert counters.dropped_by_cut == (counters.received if way == deaf else 0)


def test_enduring_a_cut_takes_its_time_and_heals(net: Network) -> None:
    start = time.monotonic()
    net.endure(["north"], cut_for(0.3))
    assert time.monotonic() - start >= 0.3
    assert len(measure_udp(net.sites["north"], net.coordinator, 20).numbers) == 20
    with pytest.raises(ValueError, match="has no end"):
        net.endure(["north"], UNDISTURBED)


def test_tcp_arrives_whole_through_everything_at_once(net: Network) -> None:
    bad = Direction(
        loss=0.02,
        duplicate=0.05,
        reorder=0.05,
        delay_seconds=0.005,
        jitter_seconds=0.003,
        rate_bits_per_second=50e6,
    )
    net.set_all(both(bad))
    for site in net.sites.values():
        assert send_tcp(site, net.coordinator, 1_000_000)["right"]
    settled(net)
    for counted in net.counters().values():
        for lane in (counted.up, counted.down):
            dropped = lane.lost + lane.dropped_by_queue + lane.dropped_by_cut
            assert lane.received + lane.duplicated == lane.delivered + dropped
    assert net.counters()["north"].up.lost > 0


def test_the_forwarder_is_not_the_bottleneck(net: Network) -> None:
    """200 Mbit/s need less than one processor, counted in the time it used."""
    size_bytes = 32_000_000
    assert send_tcp(net.sites["north"], net.coordinator, size_bytes)["right"]
    assert size_bytes * 8 / net.cpu_seconds() > 200e6
    assert net.dropped_by_kernel() == 0


def test_sites_do_not_reach_each_other_nor_the_machine(net: Network) -> None:
    north, south = net.sites["north"], net.sites["south"]
    north.run(words("udp-send", south.address, 5000, 20, 100, 0.0))
    assert net.control.ask(do="counters")["strangers"] == 20
    assert net.counters()["south"].down.received == 0
    assert set(north.run(["ls", "/sys/class/net"]).stdout.split()) >= {"lo", "link0"}
    assert "eth" not in north.run(["ip", "address"]).stdout


def test_a_coordinator_cannot_open_connections_to_a_site(net: Network) -> None:
    start_listening(net.sites["north"], "tcp-sink", 5001, 1)
    knock = words("tcp-send", net.sites["north"].address, 5001, 10)
    attempt = net.coordinator.start(knock)
    while net.stopped_by_firewall() == 0:
        assert attempt.poll() is None
        time.sleep(0.01)
    assert net.counters()["north"].down.received == 0
    with network(["north"], sites_reachable=True) as open_net:
        assert send_tcp(open_net.coordinator, open_net.sites["north"], 1000)["right"]
        assert open_net.stopped_by_firewall() == 0


def test_a_wrong_setting_is_refused_and_changes_nothing(net: Network) -> None:
    with pytest.raises(ValueError, match="no site 'west'"):
        net.set("west", UNDISTURBED)
    with pytest.raises(ValueError, match="loss is a fraction"):
        net.control.ask(do="set", site="north", up={"loss": 1.5}, down={})
    with pytest.raises(ValueError, match="not a request"):
        net.control.ask(do="dance")
    assert len(measure_udp(net.sites["north"], net.coordinator, 20).numbers) == 20


def test_a_dead_forwarder_is_loud(net: Network) -> None:
    net.control.process.kill()
    net.control.process.wait()
    with pytest.raises(HelperDiedError, match="gives no answer"):
        net.set("north", UNDISTURBED)


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss": -0.1},
        {"duplicate": 1.1},
        {"reorder": math.nan},
        {"delay_seconds": -1.0},
        {"jitter_seconds": math.inf},
        {"rate_bits_per_second": 0.0},
        {"queue_bytes": 0},
    ],
)
def test_impossible_directions_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Direction(**wrong)  # type: ignore[arg-type]


def test_the_table_has_the_conditions_of_the_reliability_promise() -> None:
    rows = CONDITIONS.values()
    assert {row.up.delay_seconds for row in rows} >= {0.2, 2.0}
    assert {row.up.loss for row in rows} >= {0.1}
    assert {row.up.rate_bits_per_second for row in rows} >= {500_000.0}
    assert any(row.up.duplicate and row.up.reorder for row in rows)
    assert {(row.up.cut, row.down.cut) for row in rows} == set(
        itertools.product([False, True], repeat=2)
    )
    # A cut ends by itself; what only slows has no end.
    for row in rows:
        assert math.isfinite(row.lasts_seconds) == (row.up.cut or row.down.cut)
