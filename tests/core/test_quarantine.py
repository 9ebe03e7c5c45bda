"""Suspicious reports in whole runs: held, dropped, told; released by a person; done again."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.core.test_stored_folds import stored
from typer.testing import CliRunner

from asterion_server.checkpoint import load_latest
from asterion_server.command_line import app
from asterion_server.quarantine_files import QuarantineFiles
from asterion_server.rounds import run_rounds
from asterion_shared.errors import FileProblemError, QuorumLostError, SettingsError, UserInputError
from asterion_shared.events import Event, RoundFinished
from asterion_shared.messages import Answer, NoReport, Order, Report
from asterion_shared.parameters import Vector
from asterion_shared.plan import Plan
from asterion_shared.reports.run_report import write_report
from asterion_shared.reports.terminal import round_line
from asterion_shared.result import Result
from asterion_shared.settings_files import validate

SITES = ("a", "b", "c", "d", "e")


def plan_of(on_suspicion: str = "hold", count: int = 3, **sections: Any) -> Plan:
    values: dict[str, Any] = {
        "name": "held",
        "task": "classification",
        "data": {"kind": "table", "features": ["x", "y"], "classes": ["well", "ill"]},
        "model": {"name": "mlp", "widths": [12]},
        "rounds": {"count": count, "quorum": 4},
        "quarantine": {"on_suspicion": on_suspicion},
    }
    return validate(Plan, values | sections, "plan")


class Sites:
    """Five sites; ``liar`` sends -50 times its update in the rounds of ``lies``."""

    def __init__(
        self,
        folder: Path,
        *,
        liar: str = "c",
        lies: Iterable[int] = (1,),
        without: str = "",
        cut: tuple[int, str] | None = None,
        backwards: bool = False,
    ) -> None:
        self._folder, self._liar, self._lies = folder, liar, tuple(lies)
        self._without, self._cut, self._backwards = without, cut, backwards

    def sites(self) -> tuple[str, ...]:
        return SITES

    def ask(self, order: Order, sites: Iterable[str]) -> Iterator[Answer]:
        for site in sorted(sites, reverse=self._backwards):
            if order.phase == "train" and (order.round, site) == self._cut:
                raise PowerCutError
            if order.phase == "train" and site == self._without and order.round in self._lies:
                yield NoReport(site=site, outcome="late")
                continue
            update = None
            if order.phase == "train":
                assert order.weights is not None
                update = own_update(site, order.round, order.weights.size)
                if site == self._liar and order.round in self._lies:
                    update *= np.float32(-50)
                update = stored(self._folder, update)
            yield Report(
                site=site, num_examples=10, num_test=0, num_bad_files=0,
                manifest_sha256="0" * 64, update=update, num_steps=1, train_loss=1.0,
            )  # fmt: skip


class PowerCutError(Exception):
    pass


def own_update(site: str, round_: int, size: int) -> Vector:
    common = np.random.default_rng(round_).standard_normal(size)
    own = np.random.default_rng([round_, ord(site)]).standard_normal(size)
    return (0.1 * (common + 0.4 * own)).astype(np.float32)


def run(plan: Plan, cohort: Sites, folder: Path, events: list[Event] | None = None) -> Result:
    told: list[Event] = [] if events is None else events
    return run_rounds(plan, cohort, folder, run="r1", expected_sites=SITES, carrier="simulation",
                      emit=told.append)  # fmt: skip


def weights(folder: Path, plan: Plan) -> Vector:
    found = load_latest(folder / "checkpoints", "r1", plan)
    assert found is not None
    return found.weights


def by_hand(plan: Plan, folder: Path, folded: dict[int, list[tuple[str, int, float]]]) -> Vector:
    """Weights after rounds whose mean is of (site, round, factor)."""
    from asterion_server.initial_weights import initial_weights

    made = initial_weights(plan, folder)[1].astype(np.float64)
    for number in sorted(folded):
        parts = [f * own_update(s, r, made.size).astype(float) for s, r, f in folded[number]]
        made += np.mean(parts, axis=0)
    return made.astype(np.float32)


@pytest.mark.parametrize("policy", ["hold", "drop", "report"])
def test_a_suspicious_report_is_treated_as_the_plan_says(tmp_path: Path, policy: str) -> None:
    plan = plan_of(policy)
    events: list[Event] = []
    result = run(plan, Sites(tmp_path), tmp_path / "run", events)
    outcome = result.rounds[1].outcomes["c"]
    assert set(outcome.suspicious_layers) == {"0", "3"}
    factor = {"c": -50.0}
    folded = [s for s in SITES if policy == "report" or s != "c"]
    rounds = {1: [(s, 1, factor.get(s, 1.0)) for s in folded]}
    rounds |= {n: [(s, n, 1.0) for s in SITES] for n in (2, 3)}
    wanted = by_hand(plan, tmp_path, rounds)
    assert np.allclose(weights(tmp_path / "run", plan), wanted, atol=1e-5)

    told = [e.round_result for e in events if isinstance(e, RoundFinished)]
    line = round_line(told[1], result.task, 3)
    write_report(result, tmp_path / "report.html", plan=plan)
    page = (tmp_path / "report.html").read_text()
    if policy == "report":
        assert outcome.outcome == "answered"
        assert "site c suspicious and folded in round 1" in result.headline
        assert "site c suspicious and folded" in line
        assert "Site c suspicious and folded in round 1." in page
    else:
        assert outcome.outcome == "quarantined"
        assert "c" not in result.rounds[1].answered
        assert "site c missing in round 1 (quarantined)" in result.headline
        assert "c (quarantined)" in line
        assert "unlike those of the other sites" in page

    kept = json.loads((tmp_path / "run/quarantine/round-1/c.json").read_text())
    assert {layer["layer"] for layer in kept["layers"]} == {"0", "3"}
    assert all(layer["norm_z"] > 6 or layer["cosine_z"] > 6 for layer in kept["layers"])
    file = tmp_path / "run/quarantine/round-1/c.safetensors"
    assert file.exists() == (policy == "hold")
    if policy == "hold":
        found = np.concatenate([load_file(file)[name].ravel() for name in
                                ("0.weight", "0.bias", "3.weight", "3.bias")])  # fmt: skip
        assert np.array_equal(found, own_update("c", 1, found.size) * np.float32(-50))


def test_without_a_liar_quarantine_changes_no_bit(tmp_path: Path) -> None:
    run(plan_of(), Sites(tmp_path, lies=()), tmp_path / "with")
    run(plan_of(quarantine=None), Sites(tmp_path, lies=(), backwards=True), tmp_path / "without")
    one = weights(tmp_path / "with", plan_of())
    other = weights(tmp_path / "without", plan_of(quarantine=None))
    assert one.tobytes() == other.tobytes()
    assert not list((tmp_path / "with/quarantine").glob("round-*"))


def stop_after(folder: Path, plan: Plan, number: int, tmp_path: Path, **more: Any) -> None:
    """A run that is cut when the first site is asked in the next round."""
    with pytest.raises(PowerCutError):
        run(plan, Sites(tmp_path, cut=(number + 1, "a"), **more), folder)


def decided(folder: Path, verdict: Any, site: str = "c") -> None:
    files = QuarantineFiles(folder)
    (report,) = [r for r in files.reports() if r.site == site]
    files.decide(report, verdict)


@pytest.mark.parametrize("fold", ["mean", "median"])
def test_a_released_report_is_folded_openly_in_the_next_round(tmp_path: Path, fold: str) -> None:
    plan = plan_of(count=4, algorithm={"fold": fold})
    stop_after(tmp_path / "run", plan, 1, tmp_path)
    # Round 2 was begun before anybody decided: it goes on without, and round 3 folds the report.
    decided(tmp_path / "run", "release")
    files = QuarantineFiles(tmp_path / "run")
    result = run(plan, Sites(tmp_path), tmp_path / "run")
    assert result.rounds[3].released == {"c": (1,)}
    assert [r.round for r in result.rounds if r.released] == [3]
    assert "report of site c of round 1 released and folded in round 3" in result.headline
    assert files.state(files.reports()[0]) == "folded"
    assert not files.update_file(1, "c").exists()
    if fold == "mean":
        rounds = {1: [(s, 1, 1.0) for s in SITES if s != "c"],
                  2: [(s, 2, 1.0) for s in SITES],
                  3: [*((s, 3, 1.0) for s in SITES), ("c", 1, -50.0)],
                  4: [(s, 4, 1.0) for s in SITES]}  # fmt: skip
        wanted = by_hand(plan, tmp_path, rounds)
        assert np.allclose(weights(tmp_path / "run", plan), wanted, atol=1e-5)
    with pytest.raises(UserInputError, match="in the model already"):
        decided(tmp_path / "run", "drop")


def test_what_a_round_takes_is_fixed_before_it_asks_and_survives_a_crash(tmp_path: Path) -> None:
    plan = plan_of(count=3)
    for name in ("cut", "whole"):
        stop_after(tmp_path / name, plan, 1, tmp_path)
        decided(tmp_path / name, "release")
    run(plan, Sites(tmp_path), tmp_path / "whole")
    with pytest.raises(PowerCutError):
        run(plan, Sites(tmp_path, cut=(3, "e")), tmp_path / "cut")
    with pytest.raises(UserInputError):  # it is in the round's list
        decided(tmp_path / "cut", "drop")
    result = run(plan, Sites(tmp_path), tmp_path / "cut")
    assert result.rounds[3].released == {"c": (1,)}
    one, other = (tmp_path / name / "model.safetensors" for name in ("cut", "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_a_round_that_is_done_again_judges_again(tmp_path: Path) -> None:
    plan = plan_of(count=2)
    # Another site is missing at first: with c held three are left, and the quorum is lost.
    with pytest.raises(QuorumLostError, match="c: quarantined"):
        run(plan, Sites(tmp_path, without="a"), tmp_path / "run")
    assert (tmp_path / "run/quarantine/round-1/c.json").exists()
    decided(tmp_path / "run", "release")
    # The site sends an honest report this time: nothing is left of the first.
    result = run(plan, Sites(tmp_path, lies=()), tmp_path / "run")
    assert result.rounds[1].missing == {}
    assert QuarantineFiles(tmp_path / "run").reports() == ()
    assert not list((tmp_path / "run/quarantine/round-1").iterdir())


def test_a_decision_about_another_update_is_void(tmp_path: Path) -> None:
    plan = plan_of(count=2)
    with pytest.raises(QuorumLostError):
        run(plan, Sites(tmp_path, without="a"), tmp_path / "run")
    decided(tmp_path / "run", "release")
    files = QuarantineFiles(tmp_path / "run")
    report = files.reports()[0]
    files.put(report.model_copy(update={"update_sha256": "1" * 64}))
    assert files.state(files.reports()[0]) == "held"


def test_a_released_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    plan = plan_of(count=3)
    stop_after(tmp_path / "run", plan, 1, tmp_path)
    decided(tmp_path / "run", "release")
    file = QuarantineFiles(tmp_path / "run").update_file(1, "c")
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(FileProblemError, match="SHA-256"):
        run(plan, Sites(tmp_path), tmp_path / "run")


def test_a_quarantined_report_counts_for_no_quorum_and_no_training_loss(tmp_path: Path) -> None:
    result = run(plan_of(count=1), Sites(tmp_path), tmp_path / "run")
    assert result.rounds[1].answered == ("a", "b", "d", "e")
    alone = result.rounds[1].outcomes["c"].model_copy(update={"train_loss": 99.0})
    changed = result.rounds[1].model_copy(
        update={"outcomes": result.rounds[1].outcomes | {"c": alone}}
    )
    assert changed.train_loss == 1.0


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"rounds": {"quorum": 3}}, "cannot be told apart"),
        ({"kind": "count"}, "about training"),
        (
            {"secure_sum": {"max_colluders": 1, "max_dropouts": 1}},
            "no site's own",
        ),
        (
            {
                "privacy": {
                    "protects": "site", "noise": "centre", "clip_norm": 1.0,
                    "noise_multiplier": 1.0, "delta": 1e-5, "epsilon_limit": 100.0,
                },
            },
            "would decide whether others are folded",
        ),
        ({"quarantine": {"norm_z": 0}}, "norm_z"),
    ],
)  # fmt: skip
def test_plans_that_quarantine_does_not_suit_are_refused(
    sections: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        plan_of(**sections)


@pytest.fixture
def coordinator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A coordinator's folder with a run that was cut after round 2, both with a held report."""

    class Made:
        folder, runs = tmp_path, tmp_path / "runs"

    monkeypatch.setattr("asterion_server.keys.open_provisioned", lambda folder: Made)
    stop_after(Made.runs / "r1", plan_of(count=4), 2, tmp_path, lies=(1, 2))
    return Made.runs / "r1"


def said(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["quarantine", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_person_lists_shows_releases_and_drops(coordinator: Path, tmp_path: Path) -> None:
    lines = said("list", "r1").splitlines()
    assert [line.split(";")[0] for line in lines] == [
        "round 1 site c: held",
        "round 2 site c: held",
    ]
    shown = said("show", "r1", "c", "--round", "2")
    assert "compared with 4 other sites" in shown
    assert {line.split()[0] for line in shown.splitlines()[2:]} == {"0", "3"}
    with pytest.raises(UserInputError, match=r"rounds 1, 2; say which"):
        said("release", "r1", "c")
    with pytest.raises(UserInputError, match="no such suspicious report"):
        said("show", "r1", "a")
    with pytest.raises(UserInputError, match="there is no run"):
        said("list", "r2")
    said("drop", "r1", "c", "--round", "1")
    assert not (coordinator / "quarantine/round-1/c.safetensors").exists()
    said("release", "r1", "c")  # the one that is held still
    with pytest.raises(UserInputError, match="is dropped"):
        said("release", "r1", "c", "--round", "1")
    found = [json.loads(line) for line in said("list", "r1", "--json").splitlines()]
    assert [(r["round"], r["site"], r["state"]) for r in found] == [
        (1, "c", "dropped"), (2, "c", "released"),
    ]  # fmt: skip

    result = run(plan_of(count=4), Sites(tmp_path, lies=(1, 2, 4)), coordinator)
    assert result.rounds[4].released == {"c": (2,)}
    with pytest.raises(UserInputError, match="finished and has no next round"):
        said("release", "r1", "c", "--round", "4")
