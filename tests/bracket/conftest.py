"""A small bracket of generated tables: three sites, two seeds, run once for the whole session."""

from pathlib import Path

import pytest

from asterion_shared.bracket_result import Bracket
from asterion_shared.plan import Plan, parse_plan
from asterion_sim.bracket import run_bracket
from asterion_sim.synthetic import synthetic_sites
from asterion_sim.virtual_cohort import VirtualSites

PLAN = """{"name": "small", "task": "classification", "seed": 5,
 "data": {"kind": "table", "features": ["a", "b", "c"], "classes": ["well", "ill"]},
 "model": {"name": "logistic"},
 "local": {"amount": 4, "batch_size": 8, "learning_rate": 0.05},
 "rounds": {"count": 3}}"""
ALGORITHMS = ("fedavg", "fedprox:mu=0.5", "fedavg:rounds.count=6,local.amount=2")


@pytest.fixture(scope="session")
def plan() -> Plan:
    return parse_plan(PLAN)


@pytest.fixture(scope="session")
def sites(plan: Plan) -> VirtualSites:
    return VirtualSites(synthetic_sites(plan, 3), {})


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bracket")


@pytest.fixture(scope="session")
def bracket(plan: Plan, sites: VirtualSites, folder: Path) -> Bracket:
    return run_bracket(
        plan, sites, folder, algorithms=ALGORITHMS, seeds=(5, 6), leave_one_site_out=True,
        num_resamples=300,
    )  # fmt: skip
