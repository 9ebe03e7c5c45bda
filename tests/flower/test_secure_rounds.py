"""Rounds under a secure sum: real sites, keys and vectors, over a grid without a network."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from asterion_client.app import Desk, client_app_of
from asterion_client.local_round import make_workspace
from asterion_client.privacy_ledger import Ledger, ledger_folder
from asterion_client.secure_round import put_on_record
from asterion_client.settings import read_site_settings
from asterion_client.site_worker import SiteWorker
from asterion_server.in_process_grid import InProcessGrid, InProcessSite
from asterion_server.keys import Provisioned, public_keys
from asterion_server.ledger_heads import LedgerHeads
from asterion_server.live_cohort import LiveCohort
from asterion_server.report_check import check_bare
from asterion_server.rounds import run_rounds
from asterion_shared.errors import (
    AsterionError,
    OrderRefusedError,
    PlanMismatchError,
    QuorumLostError,
)
from asterion_shared.flower_messages import decode_order
from asterion_shared.messages import Order, Report
from asterion_shared.parameters import from_bytes
from asterion_shared.plan import Plan
from asterion_shared.privacy.secure_sum import elliptic_verifier
from asterion_shared.privacy.secure_sum_messages import Inbox
from asterion_shared.result import Result
from asterion_shared.settings_files import validate
from asterion_shared.vector_records import vector_record
from asterion_sim.local_federation import enrol_on_this_machine
from asterion_sim.simulate import simulate
from asterion_sim.virtual_cohort import read_virtual_sites

SITES = {"east": 40, "north": 25, "south": 30, "west": 12}
SECURE: dict[str, Any] = {
    "name": "summed",
    "task": "classification",
    "data": {"kind": "table", "features": ["a", "b"], "classes": ["well", "ill"]},
    "model": {"name": "logistic"},
    "algorithm": {"max_weight": 20, "clip_norm": 50.0},
    "local": {"amount": 3, "batch_size": 8, "optimiser": "sgd", "learning_rate": 0.5},
    "rounds": {"count": 2, "sites_per_round": 4, "deadline_seconds": 30.0},
    "secure_sum": {"max_colluders": 0, "max_dropouts": 1},
}
SHARES: dict[str, Any] = SECURE | {
    "algorithm": {"max_weight": 20},
    "privacy": {"protects": "site", "noise": "shares", "clip_norm": 0.5,
                "noise_multiplier": 2.0, "epsilon_limit": 20.0},
}  # fmt: skip


def plan_of(base: dict[str, Any] = SECURE, **sections: Any) -> Plan:
    return validate(Plan, base | sections, "plan")


class Federation:
    """Four sites with their own folders, keys and ledgers; ``change`` spoils what a site sends."""

    def __init__(self, root: Path) -> None:
        self.folders = [root / "sites" / name for name in SITES]
        tomls = [_write_site(folder) for folder in self.folders]
        self.made: Provisioned = enrol_on_this_machine(root / "center", tomls)
        self.change: Callable[[str, Order, Report], Report] = lambda _site, _order, report: report
        self.heard: list[tuple[str, Order, Report]] = []
        self.crossed: list[tuple[RecordDict, RecordDict]] = []
        self.meddle: Callable[[str, RecordDict], None] = lambda _site, _order: None
        self._workers: dict[str, SiteWorker] = {}
        self.heads = LedgerHeads(root / "center" / "ledger_heads")

    def restart(self, name: str) -> None:
        self._workers.pop(name, None)

    def run(self, plan: Plan, folder: Path) -> Result:
        app = client_app_of(self._desk)

        def line(message: Message, context: Context) -> Message:
            self.meddle(str(context.node_config["site"]), message.content)
            reply = app(message, context)
            self.crossed.append((message.content, reply.content))
            return reply

        grid = InProcessGrid(
            {n: InProcessSite(name, line, {"site": name})  # type: ignore[arg-type]
             for n, name in enumerate(SITES, 10)}
        )  # fmt: skip
        return run_rounds(
            plan, LiveCohort(grid, pause=lambda _: None, ledger_heads=self.heads), folder,
            run=plan.name,
            expected_sites=tuple(SITES), carrier="flower",
            verify=elliptic_verifier(public_keys(self.made.folder)),
        )  # fmt: skip

    def _desk(self, context: Context) -> Desk:
        name = str(context.node_config["site"])
        folder = self.folders[list(SITES).index(name)]

        def answer(order: Order) -> Report:
            if name not in self._workers:
                settings = read_site_settings(folder / "site.toml")
                self._workers[name] = SiteWorker(settings, folder)
            report = self._workers[name].answer(order)
            self.heard.append((name, order, report))
            return self.change(name, order, report)

        return Desk(name, answer)


def _write_site(folder: Path) -> Path:
    folder.mkdir(parents=True)
    draws = np.random.default_rng(SITES[folder.name])
    rows = [f"{draws.normal(i % 2):.3f},{draws.normal(i % 2):.3f},{('well', 'ill')[i % 2]}"
            for i in range(SITES[folder.name])]  # fmt: skip
    (folder / "rows.csv").write_text("\n".join(["a,b,label", *rows]) + "\n")
    path = folder / "site.toml"
    path.write_text(
        f'name = "{folder.name}"\ntask = "classification"\n[data]\nformat = "table"\n\n'
        "[privacy]\nepsilon_limit = 25.0\ndelta = 1e-5\n"
    )
    return path


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


def lose(*names: str, at: str) -> Callable[[str, Order, Report], Report]:
    def change(site: str, order: Order, report: Report) -> Report:
        if site in names and order.sum is not None and order.sum.step == at:
            msg = "gone"
            raise OrderRefusedError(msg, code="internal_error")
        return report

    return change


def test_a_secure_sum_ends_in_the_bytes_of_the_simulation(
    federation: Federation, tmp_path: Path
) -> None:
    plan = plan_of()
    result = federation.run(plan, tmp_path / "run")
    assert result.status == "finished"
    simulated = simulate(plan, read_virtual_sites(plan, federation.folders), tmp_path / "simulated")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        tmp_path / "simulated" / "model.safetensors"
    ).read_bytes()
    assert result.final_metrics == simulated.final_metrics
    assert result.final_metrics["num_cases"] == sum(
        len(site.test) for site in read_virtual_sites(plan, federation.folders).data.values()
    )
    # And the bytes are those of the plain mean, but for the grid.
    plain = plan_of(secure_sum=None, rounds=SECURE["rounds"] | {"sites_per_round": None})
    simulate(plain, read_virtual_sites(plain, federation.folders), tmp_path / "plain")
    secure, clear = (_weights(tmp_path / name) for name in ("run", "plain"))
    np.testing.assert_allclose(secure, clear, atol=1e-6)
    assert np.abs(clear).max() > 0.01


def _weights(folder: Path) -> np.ndarray:
    layout = make_workspace(plan_of()).layout
    return from_bytes((folder / "model.safetensors").read_bytes(), layout)


def test_the_coordinator_hears_no_number_of_a_site(federation: Federation, tmp_path: Path) -> None:
    result = federation.run(plan_of(), tmp_path / "run")
    for round_ in result.rounds:
        assert round_.sites == {}
        for outcome in round_.outcomes.values():
            assert (outcome.num_examples, outcome.num_test, outcome.num_steps) == (0, 0, 0)
            assert (outcome.train_loss, outcome.update_norm) == (None, None)
    assert {(s.num_examples, s.num_test) for s in result.sites} == {(0, 0)}
    for _, order, report in federation.heard:
        assert report.update is None
        assert not report.statistics
        assert report.num_examples == report.num_steps == 0
        assert bool(report.sum_message) == (order.phase == "sum")


@pytest.mark.parametrize("base", [SECURE, SHARES], ids=["clear", "shares"])
def test_what_crosses_the_line_under_a_secure_sum(
    federation: Federation, tmp_path: Path, base: dict[str, Any]
) -> None:
    """Every record and field; vectors of equal length, whatever the data."""
    federation.run(plan_of(base), tmp_path / "run")
    private = "privacy" in base
    vectors: dict[tuple[int, str], set[int]] = {}
    for order, reply in federation.crossed:
        step = order["sum"]["step"] if "sum" in order else ""
        assert set(reply) == {"report", "kinds", "statistics"} | ({"sum"} if step else set())
        fields = {"format", "num_examples", "num_test", "num_bad_files", "num_steps",
                  "manifest_sha256", "seconds"}  # fmt: skip
        charged = private and step == "masked" and order["sum"]["of"] == "train"
        assert set(reply["report"]) == fields | ({"ledger_head"} if charged else set())
        assert [reply["report"][name] for name in fields if name.startswith("num_")] == [0] * 4
        assert not reply["kinds"]
        assert not reply["statistics"]
        if step:
            assert set(reply["sum"]) == {"format", "message"}
            assert set(order["sum"]) == {
                "format", "id", "of", "step", "sites", "size", "content",
            }  # fmt: skip
            place = order["order"]["round"], step
            vectors.setdefault(place, set()).add(len(reply["sum"]["message"]) // 100)
    assert {len(sizes) for (_, step), sizes in vectors.items() if step == "masked"} == {1}


@pytest.mark.parametrize("at", ["keys", "shares", "masked", "agree", "unmask"])
def test_one_site_may_be_lost_at_any_step(federation: Federation, tmp_path: Path, at: str) -> None:
    federation.change = lose("south", at=at)
    result = federation.run(plan_of(rounds=SECURE["rounds"] | {"count": 1}), tmp_path / "run")
    assert result.status == "finished"
    in_the_sum = at in ("agree", "unmask")
    assert ("south" in result.rounds[1].answered) == in_the_sum
    cases = result.rounds[1].pooled["num_cases"]
    assert cases is not None
    assert cases > 0


@pytest.mark.parametrize("what", ["plan", "weights"])
def test_a_site_that_was_asked_for_something_else_is_in_no_sum_with_the_others(
    federation: Federation, tmp_path: Path, what: str
) -> None:
    """Less noise at one site would break the others' claim; other weights would betray it."""
    quieter = plan_of(SHARES, privacy=SHARES["privacy"] | {"noise_multiplier": 1.9})

    def meddle(site: str, order: RecordDict) -> None:
        if site == "south" and what == "plan":
            order["order"]["plan"] = quieter.canonical()
        elif site == "south" and order["order"]["phase"] == "train":
            zeros = np.zeros_like(decode_order(order).order.weights)  # type: ignore[arg-type]
            order["weights"] = vector_record(zeros + np.float32(0.5))

    federation.meddle = meddle
    plan = plan_of(SHARES, rounds=SECURE["rounds"] | {"count": 1})
    result = federation.run(plan, tmp_path / "run")
    assert result.rounds[1].missing == {"south": "report_rejected"}
    steps = [order["sum"]["step"] for order, _ in federation.crossed
             if "sum" in order and order["order"]["site"] == "south"
             and order["order"]["round"] == 1]  # fmt: skip
    assert steps == ["keys"]


def test_two_lost_sites_end_the_round_and_a_relaunch_goes_on(
    federation: Federation, tmp_path: Path
) -> None:
    federation.change = lose("south", "west", at="masked")
    with pytest.raises(QuorumLostError, match="2 of 4"):
        federation.run(plan_of(), tmp_path / "run")
    federation.change = lambda _site, _order, report: report
    assert federation.run(plan_of(), tmp_path / "run").status == "finished"


def test_a_site_that_restarted_within_a_sum_drops_out(
    federation: Federation, tmp_path: Path
) -> None:
    def change(site: str, order: Order, report: Report) -> Report:
        if site == "north" and order.sum is not None and order.sum.step == "keys":
            federation.restart("north")
        return report

    federation.change = change
    result = federation.run(plan_of(rounds=SECURE["rounds"] | {"count": 1}), tmp_path / "run")
    assert result.rounds[1].missing == {"north": "secure_sum_out_of_step"}


def test_noise_in_shares_is_charged_before_it_leaves(
    federation: Federation, tmp_path: Path
) -> None:
    plan = plan_of(SHARES)
    result = federation.run(plan, tmp_path / "run")
    account = result.privacy_account
    assert account is not None
    assert account.epsilon is not None
    assert account.rounds == dict.fromkeys(SITES, 2)
    assert set(account.outside) == {
        "whether a site answers, and how long it works",
        "the sums over the sites of the metrics on held-out cases",
    }
    for folder in federation.folders:
        settings = read_site_settings(folder / "site.toml")
        assert settings.privacy is not None
        with Ledger(ledger_folder(settings, folder), settings.privacy) as ledger:
            exposure = ledger.exposure()
        assert exposure.unit_kind == "site"
        assert exposure.epsilon == pytest.approx(account.epsilon, rel=1e-9)


def test_a_site_whose_budget_is_spent_sends_no_vector(
    federation: Federation, tmp_path: Path
) -> None:
    toml = federation.folders[0] / "site.toml"
    toml.write_text(toml.read_text().replace("epsilon_limit = 25.0", "epsilon_limit = 0.5"))
    plan = plan_of(SHARES, rounds=SECURE["rounds"] | {"count": 1})
    result = federation.run(plan, tmp_path / "run")
    assert result.rounds[1].missing == {"east": "budget_spent"}
    steps = {order.sum.step for site, order, _ in federation.heard
             if site == "east" and order.sum is not None and order.round == 1}  # fmt: skip
    assert steps == {"keys", "shares"}


def test_a_step_that_is_refused_is_not_charged(federation: Federation, tmp_path: Path) -> None:
    """Else a coordinator could spend a site's budget with messages that nobody answers."""

    def meddle(site: str, order: RecordDict) -> None:
        if site == "east" and "sum" in order and order["sum"]["step"] == "masked":
            inbox = Inbox.from_bytes(order["sum"]["content"])  # type: ignore[arg-type]
            order["sum"]["content"] = replace(inbox, sealed=()).to_bytes()

    federation.meddle = meddle
    plan = plan_of(SHARES, rounds=SECURE["rounds"] | {"count": 1})
    result = federation.run(plan, tmp_path / "run")
    assert result.rounds[1].missing == {"east": "secure_sum_too_few"}
    charged = {}
    for folder in federation.folders:
        settings = read_site_settings(folder / "site.toml")
        with Ledger(ledger_folder(settings, folder), settings.privacy) as ledger:
            charged[folder.name] = ledger.exposure().epsilon > 0
    assert charged == {"east": False, "north": True, "south": True, "west": True}


@pytest.mark.parametrize("missing", ["setting", "key"])
def test_a_site_without_the_others_keys_says_so(
    federation: Federation, tmp_path: Path, missing: str
) -> None:
    folder = federation.folders[3]
    toml = folder / "site.toml"
    if missing == "setting":
        toml.write_text(toml.read_text().replace('peers = "peers"\n', ""))
    else:
        (folder / "peers" / "east.pem").unlink()
    result = federation.run(plan_of(rounds=SECURE["rounds"] | {"count": 1}), tmp_path / "run")
    code = "no_roster" if missing == "setting" else "secure_sum_forged"
    assert result.rounds[1].missing == {"west": code}


def test_a_report_that_says_more_is_not_used(federation: Federation, tmp_path: Path) -> None:
    heard: list[Report] = []

    def change(site: str, order: Order, report: Report) -> Report:
        if order.phase == "train":
            heard.append(report)
        return report

    federation.change = change
    federation.run(plan_of(rounds=SECURE["rounds"] | {"count": 1}), tmp_path / "run")
    order = next(order for _, order, _ in federation.heard if order.phase == "train")
    check_bare(heard[0], order)
    for more in ({"num_examples": 5}, {"train_loss": 0.1}, {"update": np.zeros(6, np.float32)},
                 {"sum_message": b"x"}, {"update_norm": 1.0}):  # fmt: skip
        with pytest.raises(AsterionError, match="more"):
            check_bare(replace(heard[0], **more), order)  # type: ignore[arg-type]


def test_a_plan_for_other_numbers_of_sites_is_refused(
    federation: Federation, tmp_path: Path
) -> None:
    plan = plan_of(rounds=SECURE["rounds"] | {"sites_per_round": 5})
    with pytest.raises(PlanMismatchError, match="5 and 4 sites take part"):
        federation.run(plan, tmp_path / "run")


def test_survivors_on_record_are_never_others(tmp_path: Path) -> None:
    path = tmp_path / "records" / "one"
    put_on_record(path, "a")
    put_on_record(path, "a")
    with pytest.raises(OrderRefusedError) as caught:
        put_on_record(path, "b")
    assert caught.value.code == "secure_sum_two_sets"
    path.write_text("")  # a power cut between making the file and writing it
    with pytest.raises(OrderRefusedError):
        put_on_record(path, "a")


def test_the_head_of_a_ledger_leaves_with_the_masked_vector(
    federation: Federation, tmp_path: Path
) -> None:
    federation.run(plan_of(SHARES), tmp_path / "run")
    told = [(order.round, order.sum.step if order.sum else order.phase, report.ledger_head)
            for name, order, report in federation.heard if name == "west"]  # fmt: skip
    assert [(round_, step) for round_, step, head in told if head] == [(1, "masked"), (2, "masked")]
    west = federation.folders[list(SITES).index("west")]
    settings = read_site_settings(west / "site.toml")
    with Ledger(ledger_folder(settings, west), settings.privacy) as ledger:
        assert federation.heads.of("west") == ledger.head().sha256
    ledger_folder(settings, west).rename(tmp_path / "aside")
    found = federation.run(plan_of(SHARES, name="later"), tmp_path / "later")
    assert [r.missing for r in found.rounds[1:]] == [{"west": "ledger_stopped"}] * 2
