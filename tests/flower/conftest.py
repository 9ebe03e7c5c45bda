"""A small plan, a fake site worker, and a grid without a network."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from flwr.app import Context
from flwr.cli.build import build_fab_from_files

from asterion_client.app import Desk, client_app_of
from asterion_server.in_process_grid import InProcessGrid, InProcessSite
from asterion_shared.bundle import LICENCE, project
from asterion_shared.messages import Order, Report
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate


@pytest.fixture
def plan() -> Plan:
    return make_plan()


def make_plan(**sections: object) -> Plan:
    values: dict[str, object] = {
        "name": "path",
        "task": "classification",
        "data": {"kind": "table", "features": ["a", "b"], "classes": ["well", "ill"]},
        "model": {"name": "logistic"},
        "rounds": {"count": 3, "deadline_seconds": 5.0},
    }
    return validate(Plan, values | sections, "plan")


def make_order(plan: Plan, **changes: object) -> Order:
    values: dict[str, object] = {
        "run": "r1",
        "plan": plan,
        "round": 1,
        "phase": "train",
        "weights": np.array([1.0, -2.0, 3.0], np.float32),
        "layout_sha256": "f" * 64,
        "deadline_seconds": 5.0,
    }
    return Order(**(values | changes))  # type: ignore[arg-type]


def make_report(order: Order, site: str = "north", **changes: object) -> Report:
    update = None if order.weights is None else order.weights * np.float32(0.5)
    values: dict[str, object] = {
        "site": site,
        "num_examples": 7,
        "num_test": 3,
        "num_bad_files": 1,
        "manifest_sha256": "0" * 64,
        "update": update if order.phase == "train" else None,
        "num_steps": 4 if order.phase == "train" else 0,
        "train_loss": 0.25 if order.phase == "train" else None,
        "seconds": 0.5,
    }
    return Report(**(values | changes))  # type: ignore[arg-type]


@dataclass
class FakeSites:
    """Answers for several sites; ``answer`` may be replaced by what a test needs."""

    names: tuple[str, ...] = ("north", "south", "west")
    answer: Callable[[str, Order], Report] = lambda site, order: make_report(order, site)
    asked: list[tuple[str, str, int]] = field(default_factory=list)

    def grid(self) -> InProcessGrid:
        app = client_app_of(self._desk)
        return InProcessGrid(
            {n: InProcessSite(name, app, {"site": name}) for n, name in enumerate(self.names, 10)}
        )

    def _desk(self, context: Context) -> Desk:
        name = str(context.node_config["site"])

        def work(order: Order) -> Report:
            self.asked.append((name, order.phase, order.round))
            return self.answer(name, order)

        return Desk(name, work)


@pytest.fixture
def sites() -> FakeSites:
    return FakeSites()


def bundle_with(
    files: Mapping[str, str],
    *,
    serverapp: str = "asterion_server.app:app",
    clientapp: str = "asterion_client.app:app",
) -> bytes:
    """A bundle that flwr itself builds: ours, with more files and perhaps other components."""
    text = project().replace("asterion_server.app:app", serverapp)
    text = text.replace("asterion_client.app:app", clientapp)
    text = text.replace('"/LICENSE"]', ", ".join(['"/LICENSE"', *(f'"/{n}"' for n in files)]) + "]")
    whole = {"pyproject.toml": text.encode(), "LICENSE": LICENCE}
    with warnings.catch_warnings():
        # flwr 1.41 uses a name of pathspec that pathspec calls outdated.
        warnings.simplefilter("ignore", DeprecationWarning)
        return build_fab_from_files(whole | {n: c.encode() for n, c in files.items()})[0]
