"""Bytes and processor seconds of a secure sum, at a site and at the coordinator.

Every site is worked in full, with fresh keys, real signatures and the messages' real bytes, one
after another in this process; the vectors are made before the clock starts. Prints the table for
``docs/secure-sum.md`` and writes ``secure_sum_cost.json``::

    python -m bench.secure_sum_cost
    python -m bench.secure_sum_cost --sites 100 --numbers 25000000
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from asterion_shared.privacy.fixed_point import choose_fixed_point
from asterion_shared.privacy.masks import Words
from asterion_shared.privacy.secure_sum import Instance
from asterion_shared.privacy.secure_sum_graph import choose_sharing
from asterion_shared.privacy.secure_sum_rehearsal import Phase, rehearse
from bench.measuring import say, stamp
from bench.workloads import BENCH_FOLDER

COLLUDERS, DROPOUTS = 0.1, 0.2
"""Of the sites; so many really drop out, after the shares, which costs the coordinator most."""


def measure(num_sites: int, num_numbers: int, bits: int = 32) -> dict[str, float]:
    """One instance; as many sites are lost as the thresholds allow for.

    Args:
        num_sites: at least 5.
        num_numbers: length of the vector.
        bits: of the modulus.
    """
    sharing = choose_sharing(
        num_sites,
        max_colluders=int(COLLUDERS * num_sites),
        max_dropouts=int(DROPOUTS * num_sites),
    )
    sites = tuple(f"site{i:03}" for i in range(num_sites))
    instance = Instance(
        run="bench", id=f"bench/{num_sites}/{num_numbers}", round=1, sites=sites,
        sharing=sharing, bits=bits, length=num_numbers, order_sha256="",
    )  # fmt: skip
    fixed = choose_fixed_point(largest=1.0, num_summands=num_sites)
    update = np.random.default_rng(0).uniform(-1, 1, num_numbers).astype(np.float32)
    vector, encode_seconds = timed(lambda: fixed.encode(update))
    lost: dict[str, Phase] = dict.fromkeys(sites[: sharing.max_dropouts], "masked")
    done = rehearse(instance, lambda _: vector, lost=lost)
    wanted = vector * vector.dtype.type(len(done.survivors))
    if not np.array_equal(done.total, wanted):
        msg = "the secure sum is not the plain sum"
        raise RuntimeError(msg)
    stayed = done.survivors
    return {
        "sites": num_sites,
        "numbers": num_numbers,
        "neighbours": sharing.neighbours,
        "share_threshold": sharing.share_threshold,
        "min_survivors": sharing.min_survivors,
        "lost": len(lost),
        "site_bytes_up": statistics.median(done.cost.bytes_up[name] for name in stayed),
        "site_bytes_down": statistics.median(done.cost.bytes_down[name] for name in stayed),
        "site_encode_s": encode_seconds,
        "site_s": statistics.median(done.cost.site_seconds[name] for name in stayed),
        "centre_bytes_in": sum(done.cost.bytes_up.values()),
        "centre_adding_s": done.cost.centre_seconds["masked"],
        "centre_unmasking_s": done.cost.centre_seconds["unmask"],
        "centre_s": sum(done.cost.centre_seconds.values()),
        "peak_memory_mb": stamp_memory(),
    }


def timed(work: Callable[[], Words]) -> tuple[Words, float]:
    """What ``work`` gives, and the processor seconds it took."""
    began = time.process_time()
    found = work()
    return found, time.process_time() - began


def stamp_memory() -> float:
    """Largest resident size of this process so far, MiB."""
    return stamp(os.getpid()).peak_memory_mb


def table(rows: Sequence[dict[str, float]]) -> str:
    """A Markdown table, a row a measurement."""
    head = (
        "| sites | parameters | neighbours | MB up, a site | MB down, a site | s, a site "
        "| centre: adding, s | centre: unmasking, s |"
    )
    lines = [head, "|" + "---|" * 8]
    for row in rows:
        lines.append(
            f"| {row['sites']:.0f} | {row['numbers'] / 1e6:g} M | {row['neighbours']:.0f} "
            f"| {row['site_bytes_up'] / 1e6:.2f} | {row['site_bytes_down'] / 1e6:.3f} "
            f"| {row['site_encode_s'] + row['site_s']:.2f} | {row['centre_adding_s']:.2f} "
            f"| {row['centre_unmasking_s']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write ``secure_sum_cost.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--numbers", type=int, nargs="+", default=[1_000_000, 25_000_000])
    parser.add_argument("--out", type=Path, default=BENCH_FOLDER / "secure_sum_cost.json")
    wanted = parser.parse_args()
    rows: list[dict[str, float]] = []
    for num_numbers in wanted.numbers:
        for num_sites in wanted.sites:
            rows.append(measure(num_sites, num_numbers))
            say(json.dumps(rows[-1]))
    say(table(rows))
    wanted.out.parent.mkdir(parents=True, exist_ok=True)
    wanted.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
