"""What rounding updates and packing chunks costs and saves, on updates of a trained U-Net.

Three updates of one site of the study of nuclei: of a training with Adam; nearly zero, since its
learning rate is a thousandth of a thousandth; and clipped and noised as for the protection of
sites. Prints the tables for ``docs/performance.md`` and writes ``transport_cost.json``::

    python simulations/bench/transport_cost.py --data DATA
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asterion_client.local_round import make_workspace
from asterion_client.private_round import release_privately
from asterion_shared.chunk_codec import pack, unpack
from asterion_shared.messages import Order, Report
from asterion_shared.parameters import Layout, Vector
from asterion_shared.plan import Plan, read_plan
from asterion_shared.privacy.secret_stream import secret_stream
from asterion_shared.privacy.settings import PrivacySettings
from asterion_shared.transport_settings import RoundedKind
from asterion_shared.update_codec import BLOCK, check, decode, encode
from asterion_sim import prepare_nuclei
from asterion_sim.plan_values import Values, changed
from asterion_sim.studies import PLANS
from asterion_sim.virtual_cohort import VirtualCohort, VirtualSites, read_virtual_sites
from bench.measuring import say
from bench.workloads import BENCH_FOLDER

KINDS: tuple[RoundedKind, ...] = ("bf16", "int8")
CHUNK_BYTES = 2**20
ROUNDS = 4
WIDE: Values = {"model.widths": [32, 64, 128, 256], "local.amount": 3}
SLOW: Values = {"local.optimiser": "sgd", "local.learning_rate": 1e-6}
PRIVACY = PrivacySettings(
    protects="site", noise="site", clip_norm=1.0, noise_multiplier=1.0, epsilon_limit=50.0
)


def updates_of(plan: Plan, sites: VirtualSites, folder: Path) -> dict[str, Vector]:
    """Weights after some rounds, and the three updates."""
    space = make_workspace(plan)
    weights, update = space.initial_weights, np.empty(0, np.float32)
    name = min(sites.data)
    for number in range(1, ROUNDS + 1):
        update = _update(plan, sites, name, weights, number, folder)
        weights = weights + update
    slow = _update(changed(plan, SLOW, "slow"), sites, name, weights, ROUNDS + 1, folder)
    return {
        "trained": update,
        "nearly zero": slow,
        "noised": release_privately(update, PRIVACY, secret_stream()),
        "weights": weights,
    }


def _update(
    plan: Plan, sites: VirtualSites, name: str, weights: Vector, number: int, folder: Path
) -> Vector:
    space = make_workspace(plan)
    order = Order(
        run="bench", plan=plan, round=number, phase="train", weights=weights,
        layout_sha256=space.layout.sha256, evaluate=False,
    )  # fmt: skip
    (answer,) = VirtualCohort(plan, sites, folder).ask(order, [name])
    if not isinstance(answer, Report) or answer.update is None:
        msg = f"site {name} gave no update: {answer}"
        raise RuntimeError(msg)
    return answer.update


def seconds(work: Callable[[], object], repetitions: int = 7) -> float:
    """Median processor seconds of ``work``, after once to warm up."""
    work()
    found = []
    for _ in range(repetitions):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return statistics.median(found)


def codec_rows(size: int) -> list[dict[str, Any]]:
    """Seconds to encode, check and decode ``size`` weights with a residual."""
    draws = np.random.default_rng(0)
    update = draws.standard_normal(size, dtype=np.float32) * np.float32(1e-3)
    residual = update[::-1] * np.float32(0.01)
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        encoded, _ = encode(update, kind, residual)
        rows.append(
            {
                "update": kind,
                "weights": size,
                "encode_s": seconds(lambda kind=kind: encode(update, kind, residual), 3),
                "check_s": seconds(lambda one=encoded: check(one, size), 3),
                "decode_s": seconds(lambda one=encoded: decode(one), 3),
            }
        )
    return rows


def block_rows(updates: Mapping[str, Vector], layout: Layout) -> list[dict[str, Any]]:
    """Error of int8, of the update's length, when so many weights share a scale."""
    layers = [tensor.offset for tensor in layout.shared]
    rows: list[dict[str, Any]] = []
    for size in (256, BLOCK, 4096, 16384, 0):
        begins = np.array(layers) if size == 0 else np.arange(0, layout.size, size)
        row: dict[str, Any] = {
            "share a scale": f"{size:,}" if size else "a tensor",
            "bytes a weight": 1 + 4 * len(begins) / layout.size,
        }
        for name, update in updates.items():
            scales = np.maximum.reduceat(np.abs(update.astype(np.float64)), begins) / 127
            each = scales.repeat(np.diff(np.append(begins, layout.size)))
            each[each == 0] = 1.0
            error = np.rint(update / each) * each - update
            row[name] = float(np.linalg.norm(error) / np.linalg.norm(update))
        rows.append(row)
    return rows


def packing_rows(updates: Mapping[str, Vector]) -> list[dict[str, Any]]:
    """Share that is left of a chunk's size, and speeds, by update and form."""
    rows: list[dict[str, Any]] = []
    for name, update in updates.items():
        forms = {"float32": update.tobytes()}
        if name != "weights":  # they are sent to sites as they are
            forms |= {kind: encode(update, kind)[0].codes.tobytes() for kind in KINDS}
        for form, content in forms.items():
            chunk = content[:CHUNK_BYTES]
            packed = pack(chunk)
            row: dict[str, Any] = {"what": name, "form": form, "chunk_bytes": len(chunk)}
            row["pack_mb_s"] = len(chunk) / 1e6 / seconds(lambda chunk=chunk: pack(chunk))
            if packed is not None:
                size = len(chunk)
                row["packed_share"] = len(packed) / size
                unpacking = seconds(lambda packed=packed, size=size: unpack(packed, size))
                row["unpack_mb_s"] = size / 1e6 / unpacking
            rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with a column for each key of the first row."""
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in rows:
        cells = (row.get(head, "-") for head in heads)
        words = (f"{cell:.4g}" if isinstance(cell, float) else f"{cell}" for cell in cells)
        lines.append("| " + " | ".join(words) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write ``transport_cost.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=int, default=50_000_000)
    parser.add_argument("--out", type=Path, default=BENCH_FOLDER / "transport_cost.json")
    wanted = parser.parse_args()
    folder = wanted.out.parent / "transport" / "nuclei"
    plan = changed(read_plan(PLANS / "nuclei.toml"), WIDE, "nuclei")
    sites = read_virtual_sites(plan, prepare_nuclei.prepare(wanted.data, folder / "sites"))
    updates = updates_of(plan, sites, folder / "kept")
    sent = {name: update for name, update in updates.items() if name != "weights"}
    found = {
        "codec": codec_rows(wanted.weights),
        "blocks": block_rows(sent, make_workspace(plan).layout),
        "packing": packing_rows(updates),
    }
    for rows in found.values():
        say(table(rows))
    wanted.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
