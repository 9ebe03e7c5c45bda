import json
from pathlib import Path

import numpy as np
import pytest

from asterion_shared.cases import Case, CaseList, SiteData
from asterion_shared.errors import DataProblemError
from asterion_shared.plan import Plan, parse_plan
from asterion_sim.bracket_validation import choose_algorithm, validation_sites
from asterion_sim.virtual_cohort import VirtualSites

FIELD = parse_plan(
    '{"name": "f", "task": "segmentation", "model": {"name": "unet"},'
    ' "data": {"patch_size": [8, 8]}}'
)


def field(shape: tuple[int, int]) -> SiteData:
    numbers = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(1, *shape)
    case = Case(
        id="x", image=numbers, mask=np.zeros(shape, np.int16), group="f", native_shape=shape
    )
    return SiteData(site="a", train=CaseList.of([case]), test=CaseList.of([case]))


def test_groups_stay_whole_and_the_test_is_gone(plan: Plan) -> None:
    cases = [Case(id=f"{n}", image=np.zeros(6, np.float32), label=n % 2, group=f"p{n // 3}")
             for n in range(24)]  # fmt: skip
    site = SiteData(
        site="a", train=CaseList.of(cases), test=CaseList.of([Case(id="t", image=cases[0].image)])
    )
    reduced = validation_sites(VirtualSites({"a": site}, {}), plan).data["a"]
    train, test = ({case.group for case in part} for part in (reduced.train, reduced.test))
    assert not train & test
    assert len(test) == 2  # a quarter of 8 patients
    assert {c.id for part in (reduced.train, reduced.test) for c in part} == {c.id for c in cases}


def test_one_field_is_cut_with_a_gap() -> None:
    reduced = validation_sites(VirtualSites({"a": field((12, 40))}, {}), FIELD).data["a"]
    (train,), (test,) = list(reduced.train), list(reduced.test)
    # a quarter of 40 columns is 10: columns 30 to 39; a gap of 8 before it: 0 to 21
    assert train.image.shape == (1, 12, 22)
    assert test.image.shape == (1, 12, 10)
    assert test.native_shape == (12, 10)
    assert test.image[0, 0].tolist() == list(range(30, 40))
    assert train.image[0, 0].tolist() == list(range(22))
    assert test.mask is not None
    assert test.mask.shape == (12, 10)


def test_a_short_field_cannot_be_cut() -> None:
    with pytest.raises(DataProblemError, match="cannot be cut"):
        validation_sites(VirtualSites({"a": field((8, 10))}, {}), FIELD)


def test_the_choice_is_written(plan: Plan, sites: VirtualSites, tmp_path: Path) -> None:
    blind = {name: SiteData(site=name, train=data.train, test=CaseList([]))
             for name, data in sites.data.items()}  # fmt: skip
    chosen = {}
    for name, data in (("seeing", sites.data), ("blind", blind)):
        chosen[name] = choose_algorithm(
            plan, VirtualSites(data, {}), tmp_path / name,
            algorithms=["fedavg", "fedavg:local.learning_rate=1e-6"], seed=1,
            metric="accuracy", over="all cases together",
        )  # fmt: skip
    assert chosen["seeing"] == chosen["blind"]  # the test has no part in it
    written = json.loads((tmp_path / "blind" / "choice.json").read_text())
    assert written["best"] == chosen["blind"].best
    assert written["algorithms"] == chosen["blind"].algorithms
    best = max(chosen["blind"].algorithms.values())
    assert chosen["blind"].algorithms[chosen["blind"].best] == best
