"""A coordinator and three sites that decide, all real processes, and orders that somebody made up.

Each site has a ``[consent]`` of its own. ``north`` and ``east`` have lost their data folder: an
answer whose code is consent's was given without a look at it, for a look gives another code.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from tests.live.conftest import Federation, free_port, plan_of, wait_for, write_site

from asterion_client.approvals import approve
from asterion_client.day_book import Day, read_day
from asterion_client.settings import read_site_settings
from asterion_server.link_grid import LinkGrid, node_number
from asterion_server.link_paths import database_url
from asterion_server.link_store import LinkStore
from asterion_server.live_cohort import LiveCohort
from asterion_server.round_audit import coordinator_trail
from asterion_shared.flower_messages import decode_answer, encode_order
from asterion_shared.messages import Answer, NoReport, Order
from asterion_shared.plan import Plan
from asterion_shared.privacy.accounting import spent
from asterion_shared.privacy.planned import charge_of
from asterion_shared.signed_plan import PlanSignature
from asterion_sim.local_federation import OPERATOR, enrol_on_this_machine, signed_here

DELTA = 1e-5
PRIVATE = {"protects": "record", "noise": "site", "clip_norm": 1.0, "noise_multiplier": 2.0,
           "sampling_rate": 0.2, "epsilon_limit": 10.0}  # fmt: skip
DATA = {"kind": "table", "features": ["a", "b"], "classes": ["well", "ill"],
        "scale": {"a": [0.5, 1.1], "b": [0.5, 1.1]}}  # fmt: skip
NO_DATA = "settings_invalid"
"""What a site answers that looks for its data folder and finds none."""

PLANS_A_DAY, ROUNDS_A_DAY, BYTES_A_DAY = 6, 14, 1_000_000


def private_plan(name: str, rounds: int = 1, /, **sections: Any) -> Plan:
    """What ``north`` and ``south`` agree to."""
    counts = {"count": rounds, "quorum": 2, "deadline_seconds": 120.0}
    known: dict[str, Any] = {"rounds": counts, "privacy": PRIVATE, "data": DATA}
    return plan_of(name, rounds, **(known | sections))


def summed_plan(name: str, **sections: Any) -> Plan:
    """What ``east`` agrees to, once a person has approved it."""
    known: dict[str, Any] = {
        "algorithm": {"max_weight": 50, "clip_norm": 100.0},
        "rounds": {"count": 1, "sites_per_round": 3, "quorum": 3, "deadline_seconds": 120.0},
        "secure_sum": {"max_colluders": 0, "max_dropouts": 1},
    }
    return plan_of(name, 1, **(known | sections))


def epsilon_of_one_round() -> float:
    """What a private plan of one round costs."""
    charge = charge_of(private_plan("any"), 1)
    assert charge is not None
    return spent([charge], DELTA).epsilon


def consents() -> dict[str, str]:
    one = 1.01 * epsilon_of_one_round()
    begin = f'[consent]\noperators = ["{OPERATOR}"]\n'
    return {
        "north": f'{begin}kinds = ["count", "train"]\nmodels = ["mlp"]\nnoise = ["site"]\n'
        f'largest_epsilon = {one}\nsmallest_cohort = 2\napproval = "auto"\n',
        "east": f'{begin}noise = ["none", "site", "shares"]\nsmallest_cohort = 3\n'
        'secure_sum = "required"\napproval = "person"\n',
        "south": f'{begin}noise = ["none", "site"]\nsmallest_cohort = 1\n'
        f"largest_epsilon = {one}\nplans_a_day = {PLANS_A_DAY}\nrounds_a_day = {ROUNDS_A_DAY}\n"
        f'bytes_a_day = {BYTES_A_DAY}\napproval = "auto"\n',
    }


@dataclass
class Hostile:
    """The coordinator's machine, taken over, and what the sites keep."""

    running: Federation

    @property
    def center(self) -> Path:
        return self.running.made.folder

    def site(self, name: str) -> Path:
        return self.running.root / "sites" / name

    def signed(self, plan: Plan, run: str = "") -> PlanSignature:
        """By the operator that the sites know."""
        return signed_here(self.center, plan, run or plan.name)

    def ask(
        self, plan: Plan, sites: str, signature: PlanSignature | None, **fields: Any
    ) -> dict[str, Answer]:
        """Have the coordinator send an order of a run with the plan's name; the answers by site."""
        values: dict[str, Any] = {"run": plan.name, "plan": plan, "round": 0, "phase": "count"}
        order = Order(**(values | {"deadline_seconds": 60.0} | fields))
        store = LinkStore(database_url(self.running.made))
        grid = LinkGrid(store, self.center, plan.name)
        try:
            trail = coordinator_trail(self.center)
            cohort = LiveCohort(grid, signature=signature, audit=trail)
            return {answer.site: answer for answer in cohort.ask(order, sites.split())}
        finally:
            grid.close()
            store.close()

    def code(self, plan: Plan, site: str, signature: PlanSignature | None, **fields: Any) -> str:
        """The code of the one answer; empty for a report."""
        answer = self.ask(plan, site, signature, **fields)[site]
        return answer.code if isinstance(answer, NoReport) else ""

    def send(self, order: Order, site: str, addressed: str) -> str:
        """Give a site an order that is addressed to another; the code of its answer."""
        store = LinkStore(database_url(self.running.made))
        grid = _Misdirecting(store, self.center, order.plan.name, site)
        try:
            message = Message(
                encode_order(order, addressed), node_number(site), "query", group_id="0"
            )
            (key,) = grid.push_messages([message])
            found: list[RecordDict] = []

            def came() -> bool:
                found.extend(reply.content for reply in grid.pull_messages([key]))
                return bool(found)

            wait_for(came, 60, "an answer")
            said = decode_answer(found[0], site, None)
            return said.code if isinstance(said, NoReport) else ""
        finally:
            grid.close()
            store.close()

    def records(self, site: str, kind: str) -> list[dict[str, Any]]:
        """Facts, run and round of a site's audit records of a kind; of the coordinator's: ''."""
        folder = (self.site(site) / "state" if site else self.center) / "audit"
        lines = (path.read_text().splitlines() for path in sorted(folder.glob("audit-*.jsonl")))
        found = [json.loads(line)["record"] for part in lines for line in part]
        return [record for record in found if record["kind"] == kind]

    def today(self, site: str) -> Day:
        """What a site noted in its day book."""
        days = sorted((self.site(site) / "state" / "consent" / "days").glob("*.jsonl"))
        return read_day(days[-1]) if days else Day()

    def ledger(self, site: str) -> bytes:
        """The head of a site's privacy ledger; empty: nothing was ever charged."""
        path = self.site(site) / "state" / "ledger" / "ledger.head"
        return path.read_bytes() if path.exists() else b""

    def approve(self, site: str, plan: Plan, now: float | None = None) -> None:
        """Be the person at the site."""
        folder = self.site(site)
        approve(read_site_settings(folder / "site.toml"), folder, plan, plan.name, now)


class _Misdirecting(LinkGrid):
    """Posts whatever it is given to one site."""

    def __init__(self, store: LinkStore, folder: Path, run: str, victim: str) -> None:
        super().__init__(store, folder, run)
        self._victim = victim

    def _order_of(self, message: Message) -> Any:
        return replace(super()._order_of(message), site=self._victim)

    def pull_messages(self, message_ids: Any) -> Any:
        for key in message_ids:
            parcel = self._store.report(key)
            if parcel is not None:
                yield Message(self._read(self._victim, parcel), reply_to=self._pushed[key])


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    root = tmp_path_factory.mktemp("hostile")
    tomls = {name: write_site(root / "sites" / name, 60, 100.0) for name in consents()}
    for name, consent in consents().items():
        tomls[name].write_text(f"{tomls[name].read_text()}{consent}")
    made = enrol_on_this_machine(
        root / "center", list(tomls.values()), port=free_port(), listen="127.0.0.1", carrier="link"
    )
    for name in ("north", "east"):
        settings = read_site_settings(tomls[name])
        shutil.rmtree(tomls[name].parent / str(settings.data.folder))
    running = Federation(root, made)
    try:
        running.start("center", "server", "start", str(made.folder))
        for name, path in tomls.items():
            running.start(name, "site", "start", str(path), "--wait", "90")
        for name in tomls:
            wait_for(
                lambda name=name: "waiting for orders" in running.log(name),  # type: ignore[misc]
                90,
                f"site {name}",
            )
        yield Hostile(running)
    finally:
        running.stop()
    for name in running.processes:
        assert "Traceback" not in running.log(name)
