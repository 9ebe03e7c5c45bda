"""A site that answers the orders of a few rounds, by hand of nobody: the worker as it is.

The weights of the orders are a script's, so that they do not depend on what the site answered.
After each answer the large parts that no stored report needs are removed, as the link's runner
does. Run as a program it prints a line for each answer, which is then as good as sent.
"""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tests.power.coordinator_play import small_chunks

from asterion_client.privacy_entries import Entry
from asterion_client.privacy_ledger_store import Store
from asterion_client.settings import read_site_settings
from asterion_client.site_worker import SiteWorker
from asterion_client.stored_reports import site_blobs, stored_parts
from asterion_server.initial_weights import initial_weights
from asterion_shared.flower_messages import encode_report
from asterion_shared.link.parcels import Part
from asterion_shared.link.records import pack
from asterion_shared.messages import Order, Report
from asterion_shared.parameters import Vector
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate

ROUNDS = 3
RUN = "play"
NOISE = {"noise": "site", "clip_norm": 1.0, "noise_multiplier": 4.0, "epsilon_limit": 100.0}
RECORDS = NOISE | {"protects": "record", "sampling_rate": 0.5}
BF16 = {"update": "bf16"}
SECTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "kept": {"parameters": {"keep": ["*bias"]}},
    "rounded": {"parameters": {"keep": ["*bias"]}, "transport": BF16},
    "noised": {"privacy": NOISE | {"protects": "site"}},
    "noised-rounded": {"privacy": NOISE | {"protects": "site"}, "transport": BF16},
    "records": {"privacy": RECORDS, "data": {"scale": {"a": [0.5, 1.0], "b": [0.0, 1.0]}}},
}
PRIVATE = ("noised", "noised-rounded", "records")


def plan_of(name: str) -> Plan:
    values: dict[str, Any] = {
        "name": "play",
        "task": "classification",
        "data": {"kind": "table", "features": ["a", "b"], "classes": ["well", "ill"]},
        "model": {"name": "mlp", "widths": [256]},
        "algorithm": {"name": "fedprox", "mu": 0.1},
        "rounds": {"count": ROUNDS, "deadline_seconds": 600.0},
        "local": {"amount": 2, "batch_size": 4, "learning_rate": 0.1, "optimiser": "sgd"},
    }
    for section, given in SECTIONS[name].items():
        values[section] = values.get(section, {}) | given
    return validate(Plan, values, name)


def make_site(folder: Path) -> None:
    """A site's settings and its table of a few rows."""
    (folder / "data").mkdir(parents=True)
    draws = np.random.default_rng(0)
    rows = [f"{draws.normal(n % 2):.3f},{draws.normal():.3f},{n % 2},p{n}" for n in range(12)]
    (folder / "data" / "rows.csv").write_text("a,b,label,patient\n" + "\n".join(rows) + "\n")
    (folder / "site.toml").write_text(
        'name = "north"\ntask = "classification"\n[data]\nfolder = "data"\nformat = "table"\n'
        'group_column = "patient"\n[privacy]\nepsilon_limit = 1000.0\ndelta = 1e-6\n'
    )


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer.

    Attributes:
        round: of its order.
        sent: SHA-256 of all of it but the ledger's head, which a later charge may move on.
        work: SHA-256 of it without the seconds that it took.
        payload: SHA-256 of what is charged.
    """

    round: int
    sent: str
    work: str
    payload: str


def answered_of(round_: int, report: Report) -> Answered:
    leaves = report.encoded or report.update
    assert leaves is not None
    bare = replace(report, ledger_head=None)
    payload = hashlib.sha256(leaves.tobytes()).hexdigest()
    return Answered(round_, _digest(bare), _digest(replace(bare, seconds=0.0)), payload)


def _digest(report: Report) -> str:
    digest = hashlib.sha256()

    def take(data: Any) -> Part:
        digest.update(bytes(data))
        return Part(0, b"")

    pack(encode_report(report), take)
    return digest.hexdigest()


def orders_of(plan: Plan) -> Callable[[int], Order]:
    """The orders of a plan, by round."""
    layout, weights = initial_weights(plan, Path())

    def order(round_: int) -> Order:
        moved: Vector = weights + np.float32(0.05 * round_)
        return Order(run=RUN, plan=plan, round=round_, phase="train", weights=moved,
                     layout_sha256=layout.sha256)  # fmt: skip

    return order


def carry_on(
    folder: Path, order_of: Callable[[int], Order], first: int, say: Callable[[Answered], None]
) -> list[Answered]:
    """Let the site answer the orders from a round on, as after a start of its process."""
    site_blobs.cache_clear()
    worker = SiteWorker(read_site_settings(folder / "site.toml"), folder)
    state, found = (folder / "state").resolve(), list[Answered]()
    for round_ in range(first, ROUNDS + 1):
        found.append(answered_of(round_, worker.answer(order_of(round_))))
        say(found[-1])
        site_blobs(state).keep_only(stored_parts(state))
    return found


def charged(folder: Path) -> list[tuple[int, str]]:
    """Round and payload of each entry of the site's ledger, in order."""
    ledger = folder / "state" / "ledger"
    if not ledger.exists():
        return []
    store = Store(ledger)
    try:
        entries = [Entry.model_validate_json(row.content) for row in store.rows()]
    finally:
        store.close()
    return [(entry.round, entry.payload_sha256) for entry in entries]


def main() -> None:
    """The recorded program: a folder with sites, and the plans that they are named after."""
    for plan in sys.argv[2:]:

        def say(one: Answered, plan: str = plan) -> None:
            sys.stdout.write(f"{plan} {one.round} {one.sent} {one.work} {one.payload}\n")
            sys.stdout.flush()

        with small_chunks():
            carry_on(Path(sys.argv[1], plan), orders_of(plan_of(plan)), 1, say)
