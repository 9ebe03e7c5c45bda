"""The site's work in a round, on cases made for the test."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asterion_client.local_round import Workspace, make_workspace, work
from asterion_shared.cases import Case, CaseList, SiteData
from asterion_shared.errors import OrderRefusedError
from asterion_shared.messages import Order, Report
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate


def plan(**sections: object) -> Plan:
    values: dict[str, object] = {
        "name": "local",
        "task": "classification",
        "data": {"classes": ["a", "b"], "patch_size": [8, 8]},
        "model": {"name": "residual", "widths": [4], "dropout": 0.2},
        "local": {"amount": 3, "batch_size": 4, "optimiser": "sgd", "learning_rate": 0.1},
    }
    return validate(Plan, values | sections, "plan")


def site(name: str, number: int, seed: int) -> SiteData:
    draws = np.random.default_rng(seed)
    cases = [
        Case(
            id=f"{i:012x}",
            image=draws.normal(i % 2, 1, (1, 8, 8)).astype(np.float32),
            label=i % 2,
            native_shape=(8, 8),
            native_spacing=(1.0, 1.0),
        )
        for i in range(number)
    ]
    return SiteData(site=name, train=CaseList.of(cases[2:]), test=CaseList.of(cases[:2]))


def order(wanted: Plan, space: Workspace, **changes: object) -> Order:
    base = Order(
        run="r",
        plan=wanted,
        round=1,
        phase="train",
        weights=space.initial_weights,
        layout_sha256=space.layout.sha256,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def run(wanted: Plan, folder: Path, data: SiteData | None = None, **changes: object) -> Report:
    space = make_workspace(wanted)
    return work(order(wanted, space, **changes), data or site("s", 10, 1), space, folder)


def test_a_site_can_be_replayed_alone(tmp_path: Path) -> None:
    first = run(plan(), tmp_path / "a")
    space = make_workspace(plan())
    work(order(plan(), space), site("other", 9, 2), space, tmp_path / "b")
    again = work(order(plan(), space), site("s", 10, 1), space, tmp_path / "b")
    assert first.update is not None
    assert again.update is not None
    assert first.update.tobytes() == again.update.tobytes()
    assert first.statistics.keys() == again.statistics.keys()
    assert first.num_steps == 3


def test_fedprox_without_mu_is_fedavg_bit_for_bit_and_with_mu_it_stays_closer(
    tmp_path: Path,
) -> None:
    def norm_and_bytes(mu: float | None) -> tuple[float, bytes]:
        algorithm = {"name": "fedavg"} if mu is None else {"name": "fedprox", "mu": mu}
        local = {"amount": 20, "batch_size": 4, "optimiser": "sgd", "learning_rate": 0.05}
        update = run(plan(algorithm=algorithm, local=local), tmp_path).update
        assert update is not None
        return float(np.linalg.norm(update)), update.tobytes()

    assert norm_and_bytes(0.0)[1] == norm_and_bytes(None)[1]
    assert norm_and_bytes(5.0)[0] < 0.8 * norm_and_bytes(None)[0]


def test_the_fedprox_step_by_hand(tmp_path: Path) -> None:
    """Two steps of plain SGD on the table model, against the formula written out."""
    features = {"kind": "table", "features": ["x"], "classes": ["a", "b"]}
    wanted = plan(
        data=features,
        model={"name": "logistic"},
        algorithm={"name": "fedprox", "mu": 0.7},
        local={"amount": 2, "batch_size": 2, "optimiser": "sgd", "learning_rate": 0.5},
    )
    rows = np.array([[1.0, 0.0], [-2.0, 0.0]], np.float32)
    cases = [Case(id="0", image=rows[0], label=1), Case(id="1", image=rows[1], label=0)]
    data = SiteData(site="s", train=CaseList.of(cases), test=CaseList.of([]))
    space = make_workspace(wanted)
    report = work(order(wanted, space), data, space, tmp_path)
    # Both rows are in every batch, so their order does not matter.
    start = space.initial_weights.astype(np.float64)
    w = start.copy()
    target = np.array([[0.0, 1.0], [1.0, 0.0]])
    for _ in range(2):
        weight, bias = w[:4].reshape(2, 2), w[4:]
        logits = rows @ weight.T + bias
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        slope = (p - target) / 2
        gradient = np.concatenate([(slope.T @ rows).ravel(), slope.sum(axis=0)])
        w = w - 0.5 * (gradient + 0.7 * (w - start))
    assert report.update is not None
    assert np.allclose(report.update, w - start, atol=1e-6)


def test_what_cannot_be_done_is_refused_with_a_code(tmp_path: Path) -> None:
    empty = SiteData(site="s", train=CaseList.of([]), test=CaseList.of([]))
    with pytest.raises(OrderRefusedError) as caught:
        run(plan(), tmp_path, empty)
    assert caught.value.code == "no_data"
    with pytest.raises(OrderRefusedError) as caught:
        run(plan(), tmp_path, layout_sha256="0" * 64)
    assert caught.value.code == "layout_mismatch"
    wild = {"amount": 20, "optimiser": "sgd", "learning_rate": 10.0, "momentum": 0.99}
    huge = Case(id="0", image=np.full((1, 8, 8), 1e30, np.float32), label=0)
    data = SiteData(site="s", train=CaseList.of([huge] * 4), test=CaseList.of([]))
    with pytest.raises(OrderRefusedError) as caught:
        run(plan(local=wild), tmp_path, data)
    assert caught.value.code == "diverged"


def test_kept_tensors_are_the_sites_own_and_a_round_asked_again_starts_the_same(
    tmp_path: Path,
) -> None:
    wanted = plan(
        data={"classes": ["a", "b"], "patch_size": [32, 32]},
        model={"name": "densenet121"},
        local={"amount": 1, "batch_size": 2},
    )
    draws = np.random.default_rng(0)

    def cases(mean: float) -> CaseList:
        images = draws.normal(mean, 1, (4, 1, 32, 32)).astype(np.float32)
        return CaseList.of([Case(id=str(i), image=x, label=i % 2) for i, x in enumerate(images)])

    dark, bright = (
        SiteData(site=name, train=cases(mean), test=CaseList.of([]))
        for name, mean in (("dark", -5.0), ("bright", 5.0))
    )
    space = make_workspace(wanted)
    first = work(order(wanted, space), dark, space, tmp_path / "dark")
    second = order(wanted, space, round=2)
    before = work(second, dark, space, tmp_path / "dark")
    work(order(wanted, space), bright, space, tmp_path / "bright")
    again = work(second, dark, space, tmp_path / "dark")
    assert first.update is not None
    assert before.update is not None
    assert again.update is not None
    assert before.update.tobytes() == again.update.tobytes()
    assert sorted(p.name for p in (tmp_path / "dark").iterdir()) == [
        "kept-000001.safetensors",
        "kept-000002.safetensors",
    ]


def test_seconds_limit_sends_the_work_that_was_done(tmp_path: Path) -> None:
    local = {"amount": 10_000, "batch_size": 4, "seconds_limit": 0.2}
    report = run(plan(local=local), tmp_path)
    assert 1 <= report.num_steps < 10_000
    assert report.update is not None
