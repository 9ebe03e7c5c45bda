"""The real loop survives every fault: each is refused or folded, and each is seen afterwards."""

import json
import pickle
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asterion_shared.cases import Case, CaseList, SiteData
from asterion_shared.errors import QuorumLostError, SettingsError
from asterion_shared.messages import (
    Answer,
    Cohort,
    FoldingCohort,
    NoReport,
    Order,
    PartialFold,
    Report,
)
from asterion_shared.result import read_result
from asterion_sim.engines.choice import EngineWish
from asterion_sim.faults import injected
from asterion_sim.faulty_cohort import FaultyCohort
from asterion_sim.label_flips import flipped_site, label_flips
from asterion_sim.traces import read_trace

sys.path.insert(0, str(Path(__file__).parent))
from fault_runs import Runs, asked, outcomes

FIRST, SECOND, THIRD, FOURTH = (f"site_{n:03d}" for n in range(1, 5))
NOT_FOURTH = ["*[123]"]


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def test_without_faults_nothing_changes(runs: Runs) -> None:
    assert runs.names == (FIRST, SECOND, THIRD, FOURTH)
    runs.run("plain", bare=True)
    result = runs.run("wrapped")
    assert runs.weights("wrapped") == runs.weights("plain")
    assert outcomes(result) == {}


def test_every_kind_of_absence_is_seen_and_leaves_the_fold_alone(runs: Runs) -> None:
    result = runs.run(
        "faults",
        {"kind": "drop", "sites": [FIRST], "rounds": 1},
        {"kind": "crash", "sites": [SECOND], "rounds": "1-2"},
        {"kind": "late", "sites": [THIRD], "rounds": [2]},
        {"kind": "delay", "seconds": 61.0, "sites": [FIRST], "rounds": 3},
        {"kind": "nan", "sites": [FOURTH], "rounds": 3},
    )
    assert result.status == "finished"
    assert outcomes(result) == {
        1: {FIRST: "unreachable", SECOND: "unreachable"},
        2: {SECOND: "unreachable", THIRD: "late"},
        3: {FIRST: "late", FOURTH: "report_rejected"},
    }
    found = {r.round: r.outcomes for r in result.rounds}
    assert found[1][FIRST].stage == ""
    assert found[1][SECOND].stage == "training"
    assert found[3][FOURTH].outcome == "failed"
    # The final model is measured everywhere.
    assert sorted(result.rounds[-1].sites) == list(runs.names)

    # The same sites missing for another reason: the same bytes.
    runs.run(
        "missing",
        {"kind": "drop", "sites": [FIRST, SECOND], "rounds": 1},
        {"kind": "drop", "sites": [SECOND, THIRD], "rounds": 2},
        {"kind": "drop", "sites": [FIRST, FOURTH], "rounds": 3},
    )
    assert runs.weights("missing") == runs.weights("faults")
    runs.run("none")
    assert runs.weights("none") != runs.weights("faults")


def test_a_delay_within_the_deadline_counts_and_shows_its_seconds(runs: Runs) -> None:
    result = runs.run("slow", {"kind": "delay", "seconds": 59.0, "sites": [SECOND]})
    assert outcomes(result) == {}
    assert [r.outcomes[SECOND].seconds for r in result.rounds[1:]] == [59.0] * 3
    runs.run("quick")
    assert runs.weights("slow") == runs.weights("quick")


def test_every_injected_absence_stands_in_the_result(runs: Runs) -> None:
    entries = (
        # The fourth site stays well, so that no round is lost.
        {"kind": "drop", "probability": 0.2, "sites": NOT_FOURTH, "rounds": "0-"},
        {"kind": "crash", "probability": 0.2, "sites": NOT_FOURTH},
        {"kind": "late", "probability": 0.2, "sites": NOT_FOURTH},
        {"kind": "nan", "probability": 0.3, "sites": NOT_FOURTH},
        {"kind": "delay", "sites": NOT_FOURTH, "seconds": 60.0, "seconds_sigma": 1.0},
    )
    plan = runs.changed(rounds={"count": 20, "deadline_seconds": 60.0})
    result = runs.run("many", *entries, plan=plan)
    rows = injected(runs.schedule(*entries), asked(result))
    assert {row["fault"] for row in rows} == {"drop", "crash", "late", "nan", "delay"}
    wanted = {"drop": "unreachable", "crash": "unreachable", "late": "late",
              "nan": "report_rejected"}  # fmt: skip
    seen: dict[int, dict[str, str]] = {}
    for row in rows:
        outcome = result.rounds[row["round"]].outcomes[row["site"]]
        if row["fault"] == "delay" and row["seconds"] <= 60:
            assert outcome.seconds == row["seconds"]
        else:
            reason = wanted.get(row["fault"], "late")
            seen.setdefault(row["round"], {})[row["site"]] = reason
    assert seen == outcomes(result)


def test_a_lost_quorum_writes_the_result_and_a_later_start_goes_on(runs: Runs) -> None:
    plan = runs.changed(rounds={"count": 3, "quorum": 2})
    with pytest.raises(QuorumLostError, match="round 2: 0 of 4 sites answered, 2 are needed"):
        runs.run("lost", {"kind": "drop", "rounds": 2}, plan=plan)
    lost = read_result(runs.folder / "lost" / "result.json")
    assert lost.status == "quorum_lost"
    assert outcomes(lost) == {2: dict.fromkeys(runs.names, "unreachable")}
    runs.run("lost", plan=plan)
    runs.run("whole", plan=plan)
    assert runs.weights("lost") == runs.weights("whole")


class PowerCutError(Exception):
    pass


class Cut:
    """A cohort whose machine goes off after some answers of a round."""

    def __init__(self, inner: Cohort, round_: int, answers: int) -> None:
        self.inner, self.round, self.answers = inner, round_, answers

    def sites(self) -> tuple[str, ...]:
        return self.inner.sites()

    def ask(self, order: Order, sites: Iterable[str]) -> Iterator[Answer]:
        for number, answer in enumerate(self.inner.ask(order, sites)):
            if (order.round, number) == (self.round, self.answers):
                raise PowerCutError
            yield answer


@pytest.mark.parametrize("cut", [(1, 0), (2, 2), (3, 3), (4, 1)])
def test_a_run_that_was_cut_meets_the_same_faults_when_it_goes_on(
    runs: Runs, cut: tuple[int, int]
) -> None:
    entries = (
        {"kind": "drop", "probability": 0.3},
        {"kind": "wrong_update", "probability": 0.3},
        {"kind": "scaled", "factor": 3, "probability": 0.3},
    )
    with pytest.raises(PowerCutError):
        runs.run("cut", *entries, wrap=lambda cohort: Cut(cohort, *cut))
    resumed = runs.run("cut", *entries)
    whole = runs.run("whole", *entries)
    assert runs.weights("cut") == runs.weights("whole")
    assert outcomes(resumed) == outcomes(whole)


def test_a_scaled_update_is_folded_as_a_plain_loop_says(runs: Runs) -> None:
    """One round: w + (sum of n_i u_i, with u_2 times 50) / (sum of n_i)."""
    plan = runs.changed(rounds={"count": 1})
    taken: dict[str, Report] = {}

    class Watch:
        def __init__(self, inner: Cohort) -> None:
            self.inner = inner

        def sites(self) -> tuple[str, ...]:
            return self.inner.sites()

        def ask(self, order: Order, sites: Iterable[str]) -> Iterator[Answer]:
            for answer in self.inner.ask(order, sites):
                if order.phase == "train" and isinstance(answer, Report):
                    taken[answer.site] = answer
                yield answer

    runs.run("honest", plan=plan, wrap=Watch)
    honest = dict(taken)
    result = runs.run("attack", {"kind": "scaled", "factor": 50.0, "sites": [SECOND]},
                      plan=plan, wrap=Watch)  # fmt: skip
    assert outcomes(result) == {}
    weights = {site: report.num_examples for site, report in honest.items()}
    factor = {site: 50.0 if site == SECOND else 1.0 for site in honest}
    for site, report in honest.items():
        assert report.update is not None
        assert np.allclose(taken[site].update, factor[site] * report.update, rtol=1e-6)
    step = sum(weights[s] * factor[s] * honest[s].update.astype(float) for s in honest)
    step = step / sum(weights.values())
    assert result.rounds[1].update_norm == pytest.approx(np.linalg.norm(step), rel=1e-5)
    plain = read_result(runs.folder / "honest" / "result.json").rounds[1].update_norm
    assert plain is not None
    assert result.rounds[1].update_norm > 5 * plain


def test_a_clip_norm_bounds_what_one_site_can_do(runs: Runs) -> None:
    """The mean of bounded updates is bounded, whatever the factor; without a clip it is not."""
    bound = 0.05
    attack = {"kind": "scaled", "factor": -1e4, "sites": [SECOND]}
    open_plan = runs.changed(rounds={"count": 1})
    closed = runs.changed(rounds={"count": 1}, algorithm={"clip_norm": bound})
    free = runs.run("free", attack, plan=open_plan).rounds[1]
    held = runs.run("held", attack, plan=closed).rounds[1]
    assert free.update_norm is not None
    assert held.update_norm is not None
    assert held.update_norm <= bound * (1 + 1e-5)
    assert free.update_norm > 100 * bound
    # The attack stands in the result by its length.
    lengths = {site: outcome.update_norm or 0.0 for site, outcome in held.outcomes.items()}
    assert max(lengths, key=lengths.__getitem__) == SECOND
    assert lengths[SECOND] > 1e3 * max(n for site, n in lengths.items() if site != SECOND)
    assert held.outcomes[SECOND].clipped
    # Ten times the factor changes nothing more: only the direction of the lie is left.
    worse = runs.run("worse", attack | {"factor": -1e5}, plan=closed).rounds[1]
    assert worse.update_norm == pytest.approx(held.update_norm, rel=1e-5)
    assert not free.outcomes[SECOND].clipped


def test_a_wrong_update_keeps_its_length(runs: Runs) -> None:
    plan = runs.changed(rounds={"count": 1})
    runs.run("honest", plan=plan)
    for wrong in ("random", "sign_flipped"):
        entry = {"kind": "wrong_update", "wrong": wrong, "sites": [SECOND, THIRD]}
        assert outcomes(runs.run(wrong, entry, plan=plan)) == {}
        assert runs.weights(wrong) != runs.weights("honest")
    everyone = {"kind": "wrong_update", "wrong": "sign_flipped"}
    flipped = runs.run("flipped", everyone, plan=plan)
    honest = read_result(runs.folder / "honest" / "result.json")
    assert flipped.rounds[1].update_norm == pytest.approx(honest.rounds[1].update_norm, rel=1e-6)


def test_late_sites_need_not_train_where_nothing_is_kept(runs: Runs) -> None:
    entry = {"kind": "late", "sites": [SECOND], "rounds": "1-2"}
    first = runs.run("train", entry)
    second = runs.run("skip", entry, train_late=False)
    assert outcomes(first) == outcomes(second) == {1: {SECOND: "late"}, 2: {SECOND: "late"}}
    assert runs.weights("train") == runs.weights("skip")


def test_what_a_late_site_keeps_for_itself_moves_on(runs: Runs) -> None:
    plan = runs.changed(parameters={"keep": ["*bias"]})
    late = {"kind": "late", "sites": [SECOND], "rounds": "1-3"}
    crash = {"kind": "crash", "sites": [SECOND], "rounds": "1-3"}
    runs.run("late", late, plan=plan)
    runs.run("crash", crash, plan=plan)
    kept = {name: list((runs.folder / name / "sites" / SECOND).glob("kept-*"))
            for name in ("late", "crash")}  # fmt: skip
    assert kept["late"]
    assert not kept["crash"]


def test_a_trace_of_a_result_replays_to_the_same_outcomes(runs: Runs) -> None:
    entries = (
        # The fourth site stays well, so that no round is lost.
        {"kind": "drop", "probability": 0.2, "sites": NOT_FOURTH, "rounds": "0-"},
        {"kind": "crash", "probability": 0.2, "sites": NOT_FOURTH},
        {"kind": "late", "probability": 0.2, "sites": NOT_FOURTH},
        {"kind": "nan", "sites": [SECOND], "rounds": "9-10"},
    )
    plan = runs.changed(rounds={"count": 12, "sites_per_round": 3, "quorum": 1})
    recorded = runs.run("recorded", *entries, plan=plan)
    trace = read_trace(runs.folder / "recorded" / "result.json")
    replayed = runs.run("replayed", plan=plan, trace=trace)
    assert [r.outcomes for r in replayed.rounds] == [r.outcomes for r in recorded.rounds]
    assert {"unreachable", "late", "report_rejected"} == {
        reason for missing in outcomes(replayed).values() for reason in missing.values()
    }
    assert runs.weights("replayed") == runs.weights("recorded")
    schedule = runs.schedule(trace=trace)
    assert all(schedule.participants(r.round) == r.asked for r in recorded.rounds)


def test_a_replay_with_a_shorter_deadline_has_the_slow_late(runs: Runs) -> None:
    entry = {"kind": "delay", "seconds": 40.0, "sites": [SECOND], "rounds": 2}
    runs.run("recorded", entry)
    trace = read_trace(runs.folder / "recorded" / "result.json")
    short = runs.changed(rounds={"count": 3, "deadline_seconds": 39.0})
    assert outcomes(runs.run("short", plan=short, trace=trace)) == {2: {SECOND: "late"}}


def test_false_labels_are_for_training_only_and_change_the_model(runs: Runs) -> None:
    schedule = runs.schedule({"kind": "label_flip", "sites": [SECOND, "*3"]})
    flips = label_flips(schedule, runs.plan)
    assert flips == {SECOND: (1, 0), THIRD: (1, 0)}
    data = runs.data | {site: flipped_site(runs.data[site], flip) for site, flip in flips.items()}
    true, false = runs.data[SECOND], data[SECOND]
    assert [c.label for c in false.train] == [1 - c.label for c in true.train]
    assert [c.label for c in false.test] == [c.label for c in true.test]
    assert all(np.array_equal(a.image, b.image)
               for a, b in zip(false.train, true.train, strict=True))  # fmt: skip
    assert len(pickle.loads(pickle.dumps(false)).train) == len(true.train)  # noqa: S301
    runs.run("true")
    runs.run("false", data=data)
    assert runs.weights("true") != runs.weights("false")


def test_masks_are_flipped_by_the_given_map_and_unknown_numbers_stay() -> None:
    mask = np.array([[0, 1], [2, 9]], np.int16)
    case = Case(id="0" * 12, image=np.zeros((1, 2, 2), np.float32), mask=mask, native_mask=mask.T)
    site = SiteData(site="a", train=CaseList.of([case]), test=CaseList.of([case]))
    flipped = flipped_site(site, (0, 2, 1)).train[0]
    assert flipped.label == -1
    assert flipped.mask is not None
    assert flipped.mask.dtype == np.int16
    assert flipped.mask.tolist() == [[0, 2], [1, 9]]
    assert flipped.native_mask is not None
    assert flipped.native_mask.tolist() == [[0, 1], [2, 9]]
    assert site.train[0].mask is mask


@pytest.mark.parametrize(
    ("labels", "words"), [([0], "got"), ([0, 2], "give 2 numbers from 0 to 1")]
)
def test_a_map_that_does_not_fit_the_classes_is_refused(
    runs: Runs, labels: list[int], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        label_flips(runs.schedule({"kind": "label_flip", "labels": labels}), runs.plan)


def test_an_anomaly_task_has_no_labels_to_flip(runs: Runs) -> None:
    plan = runs.changed(task="anomaly", data={}, model={"name": "conv_autoencoder"})
    with pytest.raises(SettingsError, match="trains on normals alone"):
        label_flips(runs.schedule({"kind": "label_flip"}), plan)
    assert label_flips(runs.schedule(), plan) == {}


def test_an_engine_that_folds_meets_the_same_faults(runs: Runs) -> None:
    entries = (
        {"kind": "drop", "sites": [FIRST], "rounds": 1},
        {"kind": "delay", "seconds": 5.0, "sites": [THIRD]},
        {"kind": "scaled", "factor": -3.0, "sites": [SECOND], "rounds": "2-"},
        {"kind": "nan", "sites": [FIRST], "rounds": 3},
    )
    one_by_one = runs.run("one by one", *entries)
    wish = EngineWish(kernel="vectorised", over="here", chunk=2)
    together = runs.run("together", *entries, wish=wish)
    assert outcomes(together) == outcomes(one_by_one)
    lengths = [[r.update_norm for r in result.rounds[1:]] for result in (one_by_one, together)]
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-4)
    assert {r.outcomes[THIRD].seconds for r in together.rounds[1:]} == {5.0}


class Folding:
    """A cohort that adds up updates of ones; the fourth site refuses."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self.known: Mapping[str, str | int] = {"engine": "test"}

    def sites(self) -> tuple[str, ...]:
        return self.names

    def ask(self, order: Order, sites: Iterable[str]) -> Iterator[Answer]:
        names = tuple(sites)
        self.calls.append(("ask", names))
        for site in names:
            yield self._answer(site, np.ones(3, np.float32))

    def fold(self, order: Order, times: Mapping[str, int]) -> Iterator[Answer | PartialFold]:
        self.calls.append(("fold", tuple(times)))
        answers = tuple(self._answer(site, None) for site in times)
        yield PartialFold(answers=answers, total=np.full(3, float(len(times))), weight=len(times))

    def settings(self) -> Mapping[str, str | int]:
        return self.known

    def restore(self, settings: Mapping[str, str | int]) -> None:
        self.known = settings

    def _answer(self, site: str, update: np.ndarray | None) -> Answer:
        if site == FOURTH:
            return NoReport(site=site, outcome="refused", code="no_data")
        return Report(site=site, num_examples=1, num_test=0, num_bad_files=0, manifest_sha256="",
                      update=update)  # fmt: skip


def train_order(runs: Runs) -> Order:
    return Order(run="r", plan=runs.plan, round=1, phase="train", deadline_seconds=60.0)


def test_what_a_cohort_can_fold_it_folds_and_struck_sites_are_asked_alone(runs: Runs) -> None:
    inner = Folding(runs.names)
    schedule = runs.schedule(
        {"kind": "drop", "sites": [FIRST]},
        {"kind": "scaled", "factor": 2, "sites": [SECOND]},
        {"kind": "delay", "seconds": 7.0, "sites": [THIRD, FOURTH]},
    )
    cohort = FaultyCohort(inner, schedule)
    assert isinstance(cohort, FoldingCohort)
    answers = list(cohort.fold(train_order(runs), dict.fromkeys(runs.names, 1)))
    calls = [("ask", (SECOND,)), ("fold", (THIRD, FOURTH))]
    assert inner.calls == calls
    missing, scaled, part = answers
    assert missing == NoReport(site=FIRST, outcome="failed", code="unreachable")
    assert isinstance(scaled, Report)
    assert scaled.update is not None
    assert scaled.update.tolist() == [2, 2, 2]
    assert isinstance(part, PartialFold)
    assert part.total.tolist() == [2, 2, 2]
    slow, refused = part.answers
    assert isinstance(slow, Report)
    assert slow.seconds == 7.0
    # A site that refuses goes on refusing.
    assert refused == NoReport(site=FOURTH, outcome="refused", code="no_data")


def test_an_engine_that_is_not_chosen_yet_sees_the_well_sites_first(runs: Runs) -> None:
    inner = Folding(runs.names)
    inner.known = {}
    cohort = FaultyCohort(inner, runs.schedule({"kind": "nan", "sites": [FIRST]}))
    list(cohort.fold(train_order(runs), dict.fromkeys(runs.names, 1)))
    assert inner.calls == [("fold", (SECOND, THIRD, FOURTH)), ("ask", (FIRST,))]


def test_one_answer_for_each_site_whichever_way_it_is_asked(runs: Runs) -> None:
    schedule = runs.schedule({"kind": "late", "sites": [FIRST]}, {"kind": "nan", "sites": [SECOND]})
    for train_late in (True, False):
        cohort = FaultyCohort(Folding(runs.names), schedule, train_late=train_late)
        asked_one_by_one = list(cohort.ask(train_order(runs), runs.names))
        assert sorted(answer.site for answer in asked_one_by_one) == list(runs.names)
        folded: list[str] = []
        for part in cohort.fold(train_order(runs), dict.fromkeys(runs.names, 1)):
            parts = part.answers if isinstance(part, PartialFold) else (part,)
            folded += [answer.site for answer in parts]
        assert sorted(folded) == list(runs.names)


def test_the_closing_evaluation_is_left_alone(runs: Runs) -> None:
    inner = Folding(runs.names)
    cohort = FaultyCohort(inner, runs.schedule({"kind": "drop"}))
    answers = list(cohort.ask(replace(train_order(runs), phase="evaluate"), runs.names))
    assert inner.calls == [("ask", runs.names)]
    assert sum(isinstance(answer, Report) for answer in answers) == 3


def test_settings_of_the_engine_go_through(runs: Runs) -> None:
    inner = Folding(runs.names)
    cohort = FaultyCohort(inner, runs.schedule())
    assert cohort.settings() == {"engine": "test"}
    cohort.restore({"engine": "other"})
    assert inner.known == {"engine": "other"}
    plain = FaultyCohort(Cut(inner, -1, 0), runs.schedule())
    assert plain.settings() == {}
    plain.restore({"engine": "none"})
    assert [a.site for a in plain.fold(train_order(runs), {FIRST: 1})] == [FIRST]  # type: ignore[union-attr]


def test_injected_is_plain_json(runs: Runs) -> None:
    schedule = runs.schedule({"kind": "wrong_update"}, {"kind": "label_flip"})
    rows = injected(schedule, {1: runs.names})
    assert json.loads(json.dumps(rows)) == rows
    assert len(rows) == 2 * len(runs.names)
