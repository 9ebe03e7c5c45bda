"""Train a released model further on one site's own data, and say whether that helps there.

Nothing leaves the site: the tuned weights are for its own predictions. What comes out is judged on
the cases that the run held out here, which neither the released model nor the tuned one was
trained on, by the difference of the two on the same patients.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from asterion_client.bootstrap import Sampled, at_site, difference, draw
from asterion_client.data.site_data import load_site_data
from asterion_client.held_out_scores import HeldOut, held_out_of, score_units, unit_names
from asterion_client.local_round import make_workspace, train
from asterion_client.settings import SiteSettings
from asterion_shared.algorithm_settings import AlgorithmSettings
from asterion_shared.cases import SiteData
from asterion_shared.errors import DataProblemError, OrderRefusedError
from asterion_shared.messages import Order
from asterion_shared.metrics import HEADLINE
from asterion_shared.parameters import Layout, Vector, layout_of, read_vector, write_vector
from asterion_shared.plan import Plan
from asterion_shared.release.opening import ReleasedModel
from asterion_shared.tasks.prediction import model_predictor

RUN = "fine-tune"
NUM_RESAMPLES = 2000
Verdict = Literal["helps", "hurts", "shows no difference"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A metric with its 95 % interval; None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuned:
    """What tuning did.

    Attributes:
        metric: the task's headline metric.
        released: of the released model, on the site's held-out cases.
        tuned: of the tuned one.
        gain: tuned less released, on the same patients.
        verdict: ``helps`` or ``hurts`` where the interval of the gain leaves out 0.
        num_test: held-out cases.
        num_drawn: what was drawn for the intervals, and ``drawn`` how it is called.
        num_steps: optimiser steps done.
        layout: says which tensors the weights are.
        weights: of the tuned model.
    """

    metric: str
    released: Told
    tuned: Told
    gain: Told
    verdict: Verdict
    num_test: int
    num_drawn: int
    drawn: str
    num_steps: int
    layout: Layout
    weights: Vector


def fine_tune(
    settings: SiteSettings,
    folder: Path,
    model: ReleasedModel,
    *,
    rounds: int = 5,
    learning_rate: float | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> FineTuned:
    """Train a released model on a site's own training cases, and compare it with what it was.

    The recipe is fixed beforehand and nothing is chosen by the held-out cases, so the gain is not
    flattered. Privacy and FedProx of the plan are left out: nothing is shared.

    Args:
        settings: the site's.
        folder: where ``site.toml`` lies.
        model: whose plan says task, data, batches and steps a round.
        rounds: how often the plan's local work is done, >= 1.
        learning_rate: > 0; None: a tenth of the plan's.
        device: ``cpu`` or ``cuda[:N]``.
        say: is told a line a round.

    Raises:
        DataProblemError: ``no_data``: no held-out case to judge by; and as ``load_site_data``.
        OrderRefusedError: ``diverged`` or ``no_data``.
    """
    rate = model.plan.local.learning_rate / 10 if learning_rate is None else learning_rate
    plan = local_plan(model.plan, rate)
    data = load_site_data(settings, folder, plan)
    test = held_out_of(data, plan)
    if test.num_groups == 0:
        msg = f"site {settings.name} holds out no case, so nobody could tell whether it helps"
        raise DataProblemError(msg, code="no_data")
    layout = layout_of(model.network, plan.parameters)
    before = read_vector(model.network, layout)
    workspace = make_workspace(plan, device)
    write_vector(workspace.model, layout, before)
    predict = model_predictor(workspace.model, plan, device)
    first = score_units(predict, data, test, plan)
    num_steps = 0
    for number in range(1, rounds + 1):
        order = Order(run=RUN, plan=plan, round=number, phase="train")
        done, loss = train(order, data, workspace)
        num_steps += done
        say(f"round {number} of {rounds}: {done} steps, training loss {loss:.4g}")
    after = read_vector(workspace.model, layout)
    if not np.isfinite(after).all():
        msg = f"tuning diverged; lower --learning-rate (it was {rate:g})"
        raise OrderRefusedError(msg, code="diverged")
    then = score_units(predict, data, test, plan)
    return _compared(plan, data, test, (first, then), num_steps, layout, after)


def local_plan(plan: Plan, learning_rate: float) -> Plan:
    """The plan of a training that is shared with nobody.

    Args:
        plan: of the released model.
        learning_rate: > 0.
    """
    local = plan.local.model_copy(update={"learning_rate": learning_rate})
    return plan.model_copy(
        update={
            "kind": "train",
            "init": None,
            "local": local,
            "algorithm": AlgorithmSettings(),
            "privacy": None,
            "secure_sum": None,
        }
    )


def _compared(
    plan: Plan,
    data: SiteData,
    test: HeldOut,
    scores: Sequence[np.ndarray],
    num_steps: int,
    layout: Layout,
    weights: Vector,
) -> FineTuned:
    draws = draw({data.site: test}, 1, NUM_RESAMPLES, plan.seed)
    metric = HEADLINE[plan.task]
    released, tuned = (at_site(metric, test, [one], draws) for one in scores)
    gain = difference(tuned, released)
    low, high = gain.interval or (None, None)
    verdict: Verdict = "shows no difference"
    if low is not None and high is not None and (low > 0 or high < 0):
        verdict = "helps" if low > 0 else "hurts"
    return FineTuned(
        metric=metric,
        released=_told(released),
        tuned=_told(tuned),
        gain=_told(gain),
        verdict=verdict,
        num_test=len(test.case_ids),
        num_drawn=test.num_groups,
        drawn=unit_names(test, plan),
        num_steps=num_steps,
        layout=layout,
        weights=weights,
    )


def _told(sampled: Sampled) -> Told:
    low, high = sampled.interval or (None, None)
    return Told(value=sampled.value, low=low, high=high)
