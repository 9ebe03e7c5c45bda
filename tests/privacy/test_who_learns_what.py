"""The table of docs/privacy.md: all that crosses the line and all that is stored, field by field.

Real sites with folders, ledgers and settings answer the coordinator's real run over a grid without
a network. Every list here is whole: a new field fails a test until the table says who learns it.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from flwr.app import ArrayRecord, ConfigRecord, Metadata, MetricRecord, RecordDict
from flwr.proto import fleet_pb2
from tests.privacy.overheard_runs import (
    CLIP,
    MODES,
    NOISE,
    NOISED_AT_SITES,
    PATIENT,
    RATE,
    ROUNDS,
    SITES,
    STEPS,
    Played,
    plan_of,
    play_all,
    play_one,
    shape,
    vector_of,
    wire,
)

from asterion_client.data.site_data import load_site_data
from asterion_client.local_round import make_workspace, work
from asterion_client.privacy_release import refuse_readable
from asterion_client.settings import read_site_settings
from asterion_client.site_worker import SiteWorker
from asterion_shared.blocks import length
from asterion_shared.errors import OrderRefusedError
from asterion_shared.events import RoundFinished, RunFinished, RunStarted, read_events
from asterion_shared.flower_messages import decode_answer, decode_order
from asterion_shared.messages import Order, Report
from asterion_shared.metrics.merged_bins import BESIDE
from asterion_shared.parameters import from_bytes, layout_of
from asterion_shared.reports.run_report import write_report
from asterion_shared.result import Result, RoundResult, SiteOutcome, SiteSummary
from asterion_shared.tasks import initial_model

ORDER = {"format", "site", "run", "plan", "round", "phase", "layout_sha256", "evaluate",
         "deadline_seconds"}  # fmt: skip
REPORT = {"format", "num_examples", "num_test", "num_bad_files", "num_steps", "manifest_sha256",
          "seconds"}  # fmt: skip
MEASURED = {"confusion", "calibration", "score"}
BASELINE = {f"baseline/{name}" for name in MEASURED}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Played]:
    return play_all(lambda mode: tmp_path_factory.mktemp(mode))


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_what_an_order_holds(runs: dict[str, Played], mode: str) -> None:
    played = runs[mode]
    phases = [content["order"]["phase"] for _, content, _ in played.crossed]
    assert phases == ["count"] * 3 + ["train"] * 3 * ROUNDS + ["evaluate"] * 3
    for number, (site, content, _) in enumerate(played.crossed):
        head = {"ledger_head"} if mode != "clear" and number >= 6 else set()
        expected = {"order": ORDER | head}
        if content["order"]["phase"] != "count":
            expected["weights"] = {"vector"}
            assert isinstance(content["weights"], ArrayRecord)
        assert shape(content) == expected
        assert content["order"]["site"] == site
        assert decode_order(content).order.plan == played.plan


def test_what_a_report_holds(runs: dict[str, Played], mode: str) -> None:
    played = runs[mode]
    for _, order, content in played.crossed:
        phase, expected = order["order"]["phase"], {"report": set(REPORT)}
        expected |= {"kinds": set(), "statistics": set()}
        if phase != "count":
            names = MEASURED if mode in NOISED_AT_SITES else MEASURED | BASELINE
            # Of a histogram whose bins the site merged, what says how leaves as well.
            others = {f"{n}_{kind}" for n in names for kind in BESIDE.values()}
            names = names | others & set(content["statistics"])
            expected |= {"kinds": names, "statistics": names}
        if phase == "train":
            expected["update"] = {"vector"}
            expected["report"] |= set() if mode in NOISED_AT_SITES else {"train_loss"}
            expected["report"] |= set() if mode == "clear" else {"ledger_head"}
        assert shape(content) == expected
        kinds = [type(content[name]) for name in ("report", "kinds", "statistics")]
        assert kinds == [ConfigRecord, ConfigRecord, MetricRecord]


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_a_rounded_update_is_made_of_what_would_leave_and_of_what_was_rounded_before(
    mode: str, kind: str, tmp_path: Path
) -> None:
    """Codes in place of the update and nothing else; what a site keeps of it never leaves."""
    played = play_one(tmp_path, plan_of(mode, transport={"update": kind}))
    arrays = {"codes", "scales"} if kind == "int8" else {"codes"}
    for _, order, content in played.crossed:
        phase = order["order"]["phase"]
        assert ("update" in content) == (phase == "train")
        assert set(content) - {"update"} == {"report", "kinds", "statistics"}
        assert set(content.get("update", arrays)) == arrays
    kept = {path.parents[2].parent.name: path for path in tmp_path.rglob("residual-000001.*")}
    assert set(kept) == set(SITES)
    for name, path in kept.items():
        residual = safetensors.numpy.load(path.read_bytes())["residual"]
        assert np.any(residual)
        for _, order, content in played.crossed:
            assert residual.tobytes()[:64] not in wire(order) + wire(content), name
    for site, order, content in played.of_phase("train")[:3]:
        if mode in ("clear", "centre"):
            sent = decode_answer(content, site, vector_of(order, "weights").size, kind)  # type: ignore[arg-type]
            folder = tmp_path / site
            data = load_site_data(read_site_settings(folder / "site.toml"), folder, played.plan)
            again = work(
                decode_order(order).order, data, make_workspace(played.plan), tmp_path / "again"
            )
            assert isinstance(sent, Report)
            assert sent.update is not None
            assert again.update is not None
            clear = sent.update + safetensors.numpy.load(kept[site].read_bytes())["residual"]
            assert clear == pytest.approx(again.update, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("mode", [*MODES, "summed"])
def test_a_site_that_does_not_trust_the_coordinator_sends_nothing_readable(
    runs: dict[str, Played], mode: str
) -> None:
    """A plan says what it likes; the site's own word stands."""
    folder = runs["clear"].root / "north"
    settings = read_site_settings(folder / "site.toml")
    assert settings.privacy is not None
    wary = settings.privacy.model_copy(update={"coordinator_may_read": False})
    wary_settings = settings.model_copy(update={"privacy": wary})
    secure = {"secure_sum": {"max_colluders": 0, "max_dropouts": 1},
              "algorithm": {"max_weight": 1, "clip_norm": 5.0}}  # fmt: skip
    plan = plan_of("clear", **secure) if mode == "summed" else plan_of(mode)
    if mode in ("clear", "centre"):
        order = Order(run="wary", plan=plan, round=0, phase="count")
        with pytest.raises(OrderRefusedError, match="could read") as caught:
            SiteWorker(wary_settings, folder).answer(order)
        assert caught.value.code == "coordinator_not_trusted"
    else:
        refuse_readable(wary_settings, plan)
    refuse_readable(settings, plan)


def test_what_flower_adds_to_a_message() -> None:
    properties = {n for n in dir(Metadata) if isinstance(getattr(Metadata, n), property)}
    assert properties == {
        "run_id", "message_id", "src_node_id", "dst_node_id", "reply_to_message_id", "group_id",
        "created_at", "delivered_at", "ttl", "message_type", "src_task_id", "dst_task_id",
    }  # fmt: skip
    asked = {
        name.removesuffix("Request"): {f.name for f in getattr(fleet_pb2, name).DESCRIPTOR.fields}
        for name in dir(fleet_pb2)
        if name.endswith("Request")
    }
    assert asked == {
        "RegisterNodeFleet": {"public_key"},
        "UnregisterNodeFleet": {"node_id"},
        "ActivateNode": {"public_key", "heartbeat_interval"},
        "DeactivateNode": {"node_id"},
        "PullMessages": {"node", "message_ids"},
        "PushMessages": {"node", "messages_list", "message_object_trees",
                         "clientapp_runtime_list"},
    }  # fmt: skip


def test_no_name_and_no_path_crosses_the_line(runs: dict[str, Played], mode: str) -> None:
    for _, _, content in runs[mode].crossed:
        for words in (PATIENT, "csv", str(runs[mode].root), *SITES):
            assert words.encode() not in wire(content)


def test_updates_are_in_clear_unless_the_site_adds_noise(
    runs: dict[str, Played], mode: str, tmp_path: Path
) -> None:
    """Whoever has the order and the data forms the same update; with noise nobody can."""
    played = runs[mode]
    site, order, content = played.of_phase("train")[0]
    folder = played.root / site
    settings = read_site_settings(folder / "site.toml")
    data = load_site_data(settings, folder, played.plan)
    again = work(decode_order(order).order, data, make_workspace(played.plan), tmp_path)
    assert again.update is not None
    sent = vector_of(content, "update")
    if mode in NOISED_AT_SITES:
        # Not 1e-4: of thousands of numbers one would agree so far by chance now and then.
        assert not np.isclose(again.update, sent, rtol=1e-6, atol=0).any()
    else:
        assert again.update.tobytes() == sent.tobytes()


def numbers_of(content: RecordDict) -> np.ndarray:
    """All numbers of a report but those of the update."""
    fields = [v for v in content["report"].values() if isinstance(v, int | float)]
    return np.array(fields + [x for values in content["statistics"].values() for x in values])


def test_where_a_site_is_protected_neither_update_nor_loss_nor_length_leaves(
    runs: dict[str, Played],
) -> None:
    played = runs["site"]
    sent = played.of_phase("train")
    assert len(sent) == len(played.clear) == len(played.losses) == 3 * ROUNDS
    for (_, _, content), clear, loss in zip(sent, played.clear, played.losses, strict=True):
        noise = vector_of(content, "update") - clear * min(1.0, CLIP / length(clear))
        assert noise.std() == pytest.approx(NOISE * CLIP, rel=0.15)
        assert abs(noise.mean()) < 4 * NOISE * CLIP / np.sqrt(noise.size)
        assert clear.tobytes() not in wire(content)
        for secret in (loss, length(clear)):
            assert not np.isclose(numbers_of(content), secret, rtol=1e-9, atol=0).any()


@pytest.mark.parametrize("mode", ["record", "patient"])
def test_an_update_is_made_of_noised_sums_and_nothing_else(
    runs: dict[str, Played], mode: str
) -> None:
    played = runs[mode]
    for site in SITES:
        replies = [content for name, _, content in played.of_phase("train") if name == site]
        assert len(played.sums[site]) == STEPS * len(replies)
        # Two rows a patient, and each patient is on one side.
        units = replies[0]["report"]["num_examples"] / (2 if mode == "patient" else 1)
        for number, content in enumerate(replies):
            steps = played.sums[site][number * STEPS : (number + 1) * STEPS]
            noise = np.concatenate([after - before for before, after in steps])
            assert noise.std() == pytest.approx(NOISE * CLIP, rel=0.1)
            made = -RATE * sum(after for _, after in steps) / (0.5 * units)
            assert np.allclose(vector_of(content, "update"), made, rtol=1e-3, atol=1e-5)
    assert not played.losses


def test_weights_are_noised_before_they_leave_a_coordinator_that_adds_noise(
    runs: dict[str, Played],
) -> None:
    first, second = (runs["centre"].of_phase("train")[n : n + 3] for n in (0, 3))
    updates = [vector_of(content, "update") for _, _, content in first]
    clipped = [u * min(1.0, CLIP / length(u)) for u in updates]
    before, after = (vector_of(some[0][1], "weights") for some in (first, second))
    noise = after - before - sum(clipped) / 3
    assert noise.std() == pytest.approx(NOISE * CLIP / 3, rel=0.15)


def test_another_site_gets_weights_plan_round_and_its_own_name(
    runs: dict[str, Played], mode: str
) -> None:
    played = runs[mode]
    for begin in range(0, len(played.crossed), 3):
        orders = [content for _, content, _ in played.crossed[begin : begin + 3]]
        common = []
        for (site, _, _), content in zip(played.crossed[begin : begin + 3], orders, strict=True):
            for other in set(SITES) - {site}:
                assert other.encode() not in wire(content)
            fields = dict(content["order"])
            heads = {c["report"].get("ledger_head") for s, _, c in played.crossed if s == site}
            assert fields.pop("site") == site
            assert fields.pop("ledger_head", None) in {None, *heads}
            vector = vector_of(content, "weights").tobytes() if "weights" in content else b""
            common.append((fields, vector))
        assert common[0] == common[1] == common[2]
        for _, _, content in played.of_phase("train"):
            assert vector_of(content, "update").tobytes() not in {vector for _, vector in common}


def test_records_cannot_be_tried_out_on_the_hash_of_a_private_data_set(
    runs: dict[str, Played],
) -> None:
    """The same data have a hash that anybody can form without [privacy], and else one a ledger."""
    shown: dict[str, list[str]] = {}
    for played in runs.values():
        for site, _, content in played.of_phase("count"):
            shown.setdefault(site, []).append(content["report"]["manifest_sha256"])
    for site, hashes in shown.items():
        assert len(set(hashes)) == len(MODES), "two runs with ledgers of their own gave one hash"
        folder = runs["clear"].root / site
        settings = read_site_settings(folder / "site.toml")
        assert hashes[0] == load_site_data(settings, folder, plan_of("clear")).manifest_sha256


def test_the_released_model_holds_weights_and_three_facts(
    runs: dict[str, Played], mode: str
) -> None:
    played = runs[mode]
    data = (played.folder.path / "model.safetensors").read_bytes()
    layout = layout_of(initial_model(played.plan), played.plan.parameters)
    last = played.of_phase("evaluate")
    # What every site got with the closing order, and not a byte more.
    assert from_bytes(data, layout).tobytes() == vector_of(last[0][1], "weights").tobytes()
    assert len(data) == 8 + int.from_bytes(data[:8], "little") + 4 * layout.size
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert set(header) == {"__metadata__", *(t.name for t in layout.shared)}
    assert set(header["__metadata__"]) == {"asterion"}
    facts = json.loads(header["__metadata__"]["asterion"])
    assert facts == {"run": "run", "round": str(ROUNDS), "plan_sha256": played.plan.sha256}
    assert safetensors.numpy.load(data).keys() == {t.name for t in layout.shared}


def test_what_a_result_holds(runs: dict[str, Played], mode: str) -> None:
    assert set(Result.model_fields) == {
        "schema_version", "run", "name", "kind", "task", "plan_sha256", "status", "headline",
        "started", "finished", "carrier", "privacy", "privacy_account",
        "privacy_audit", "versions",
        "secure_sum", "rounds_planned", "rounds", "final_metrics", "final_model", "sites",
        "simulation", "best_model", "final_calibration", "site_calibration", "decisions",
    }  # fmt: skip
    assert set(RoundResult.model_fields) == {
        "round", "asked", "outcomes", "pooled", "sites", "seconds", "bytes_down", "bytes_up",
        "update_norm", "clip_norm", "deadline_seconds", "released", "calibration", "decisions",
    }  # fmt: skip
    assert set(SiteOutcome.model_fields) == {
        "outcome", "code", "stage", "num_examples", "num_test", "num_bad_files", "num_steps",
        "train_loss", "update_norm", "clipped", "seconds", "bytes_down", "bytes_up",
        "transfer_seconds", "late_seconds", "made_for", "suspicious_layers",
    }  # fmt: skip
    assert set(SiteSummary.model_fields) == {
        "name", "num_examples", "num_test", "num_bad_files", "manifest_sha256",
    }  # fmt: skip
    result, noised = runs[mode].result, mode in NOISED_AT_SITES
    assert (result.privacy_account is None) == (mode == "clear")
    assert not result.secure_sum
    assert result.privacy_audit is None  # made in simulations
    trained = [o for r in result.rounds[1:] for o in r.outcomes.values()]
    assert all((o.train_loss is None) == noised for o in trained)
    assert any(name.startswith("baseline/") for name in result.final_metrics) == (not noised)
    told = {vector_of(c, "update").tobytes(): c for _, _, c in runs[mode].of_phase("train")}
    lengths = sorted(length(np.frombuffer(data, "<f4")) for data in told)
    assert sorted(o.update_norm or 0.0 for o in trained) == lengths  # of what was sent


def test_what_a_coordinator_stores(runs: dict[str, Played], mode: str, tmp_path: Path) -> None:
    played = runs[mode]
    folder = played.folder.path
    stored = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    asked = set() if mode == "clear" else {"asked.jsonl"}
    best = played.result.best_model
    assert best is not None
    known = {r.round: r.pooled["auroc"] or 0.0 for r in played.result.rounds[:ROUNDS]}
    kept = max(known, key=lambda number: (known[number], -number))
    models = {f"checkpoints/round-{kept:06d}.safetensors", best.path}
    assert stored == asked | models | {
        "plan.json", "launch.json", "process", "server.log", "events.jsonl", "result.json",
        "report.html", "model.safetensors", "checkpoints/round-000001.safetensors",
        "checkpoints/round-000002.safetensors",
    }  # fmt: skip
    for path in (folder / name for name in stored):
        content = path.read_bytes()
        for _, _, reply in played.of_phase("train"):
            assert vector_of(reply, "update")[:8].tobytes() not in content
        assert PATIENT.encode() not in content
    # The page and the events say the result again, and the log nothing.
    result = played.result
    write_report(result, tmp_path / "report.html", plan=played.plan)
    assert (tmp_path / "report.html").read_bytes() == played.folder.report.read_bytes()
    events = read_events(played.folder.events)
    rounds = [event.round_result for event in events if isinstance(event, RoundFinished)]
    assert tuple(rounds) == result.rounds
    assert [e.result for e in events if isinstance(e, RunFinished)] == [result]
    assert sum(isinstance(event, RunStarted) for event in events) == 1
    assert len(events) == ROUNDS + 3
    assert played.folder.log.read_text() == ""
    heads = {p.name for p in (played.root / "heads").glob("*")}
    assert heads == (set() if mode == "clear" else set(SITES))
