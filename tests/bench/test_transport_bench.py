"""The benches of rounding and packing: their tables say what the codecs do."""

import numpy as np
import pytest

from asterion_client.local_round import make_workspace
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate
from asterion_shared.update_codec import decode, encode
from bench import transport_cost, transport_deviation

PLAN = validate(
    Plan,
    {
        "name": "bench",
        "task": "classification",
        "data": {"patch_size": [8, 8], "classes": ["a", "b"]},
        "model": {"name": "mlp", "widths": [64]},
        "rounds": {"count": 6},
    },
    "plan",
)


def test_the_error_of_a_block_is_the_codecs() -> None:
    layout = make_workspace(PLAN).layout
    update = np.random.default_rng(0).standard_normal(layout.size).astype(np.float32)
    rows = transport_cost.block_rows({"noise": update}, layout)
    by_size = {row["share a scale"]: row["noise"] for row in rows}
    error = np.linalg.norm(decode(encode(update, "int8")[0]) - update) / np.linalg.norm(update)
    assert by_size["1,024"] == pytest.approx(float(error), rel=1e-3)
    assert by_size["256"] < by_size["1,024"] < by_size["4,096"]


def test_what_packs_and_what_does_not_stand_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_cost, "CHUNK_BYTES", 2**14)
    draws = np.random.default_rng(1)
    given = {
        "weights": draws.standard_normal(4096).astype(np.float32),
        "zeros": np.zeros(4096, np.float32),
        "random": draws.integers(0, 0x7F7FFFFF, 4096, dtype=np.uint32).view(np.float32),
    }
    rows = transport_cost.packing_rows(given)
    assert [row["form"] for row in rows] == ["float32", *["float32", "bf16", "int8"] * 2]
    shares = {(row["what"], row["form"]): row.get("packed_share") for row in rows}
    assert shares["zeros", "float32"] < 0.05  # type: ignore[operator]
    assert shares["weights", "float32"] == pytest.approx(0.84, abs=0.04)
    assert shares["random", "float32"] is None
    assert transport_cost.table(rows).splitlines()[6].endswith("| - | - |")


def test_the_codec_is_timed_on_as_many_weights_as_asked_for() -> None:
    rows = transport_cost.codec_rows(3000)
    assert [(row["update"], row["weights"]) for row in rows] == [("bf16", 3000), ("int8", 3000)]
    assert all(row[name] > 0 for row in rows for name in ("encode_s", "check_s", "decode_s"))


def test_the_forms_of_a_problem_differ_in_nothing_else() -> None:
    plans = [transport_deviation.with_form(PLAN, 3, form) for form in transport_deviation.FORMS]
    assert len({plan.sha256 for plan in plans}) == 5
    same = [plan.model_copy(update={"transport": PLAN.transport}) for plan in plans]
    assert len({plan.sha256 for plan in same}) == 1
    assert {plan.rounds.evaluate_every for plan in plans} == {6}
