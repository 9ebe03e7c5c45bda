"""One site's work in one round: evaluate the incoming weights, train, form the report.

The hospital's daemon and the simulator's sequential engine both call this, so a simulation is the
hospital's code. A workspace holds one model object; weights are copied into it in place.
"""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from asterion_client.kept_tensors import restore_kept, store_kept
from asterion_client.private_round import (
    PrivateStep,
    private_step_of,
    release_privately,
    train_privately,
)
from asterion_client.small_groups import CellPatients, scores_by_patient
from asterion_shared.algorithms import algorithm_of
from asterion_shared.cases import Case, CaseList, Predict, SiteData
from asterion_shared.errors import OrderRefusedError
from asterion_shared.messages import Order, Report
from asterion_shared.metrics import BASELINE, Statistic
from asterion_shared.metrics.subgroups import by_subgroup
from asterion_shared.parameters import Kept, Layout, Vector, layout_of, read_kept, read_vector
from asterion_shared.parameters import write_vector as copy_weights
from asterion_shared.plan import LocalSettings, Plan
from asterion_shared.privacy.secret_stream import secret_stream
from asterion_shared.randomness import stream, torch_stream
from asterion_shared.tasks import initial_model, task_module
from asterion_shared.tasks.baselines import baseline_predictor
from asterion_shared.tasks.batches import Draws, draw_batches
from asterion_shared.tasks.prediction import model_predictor

Item = TypeVar("Item")
MOST_KEPT_BASELINES = 100
"""Sites whose baseline is kept: its histograms are large, and memory must not grow with sites."""

_Baseline = tuple[dict[str, Statistic], CellPatients | None]
_baselines: WeakKeyDictionary[CaseList, dict[tuple[str, bool], _Baseline]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Workspace:
    """A model object and what surrounds it, built once and used for every site and round.

    Attributes:
        plan: the plan it was built for.
        model: its network, on ``device``.
        layout: where its tensors stand in the vector.
        optimiser: its optimiser; the state is dropped at the start of each round.
        device: ``cpu`` or ``cuda[:N]``.
        initial_kept: the kept tensors of a site that has none yet.
        initial_weights: the weights a run without ``[init]`` starts from.
        private_step: how gradients are clipped where records or patients are protected.
    """

    plan: Plan
    model: nn.Module
    layout: Layout
    optimiser: torch.optim.Optimizer
    device: str
    initial_kept: Kept
    initial_weights: Vector
    private_step: PrivateStep | None = None


def make_workspace(plan: Plan, device: str = "cpu") -> Workspace:
    """Build the plan's network from its seed.

    Raises:
        PlanMismatchError: the plan's parameter policy does not fit the network, or the network
            cannot be trained with the plan's privacy.
    """
    model = initial_model(plan)
    layout = layout_of(model, plan.parameters)
    kept, weights = read_kept(model, layout), read_vector(model, layout)
    model.to(device)
    optimiser = _optimiser(plan.local, model)
    step = private_step_of(plan, model)
    return Workspace(plan, model, layout, optimiser, device, kept, weights, step)


def count_examples(data: SiteData) -> Report:
    """The answer to a count: how many examples, and the hash of the frozen data set."""
    return Report(
        site=data.site,
        num_examples=len(data.train),
        num_test=len(data.test),
        num_bad_files=data.num_bad_files,
        manifest_sha256=data.manifest_sha256,
    )


def work(
    order: Order,
    data: SiteData,
    workspace: Workspace,
    kept_folder: Path,
    noted: CellPatients | None = None,
) -> Report:
    """Carry out a train or evaluate order.

    Args:
        order: with weights of shape ``(layout.size,)``; every random draw is addressed by the
            plan's seed, its round and the site's name.
        data: the site's cases.
        workspace: built by :func:`make_workspace` from the same plan.
        kept_folder: where the site's kept tensors are stored between rounds.
        noted: takes down which patients stand behind the statistics; None: nobody asks.

    Returns:
        The update (None when only evaluating) and the metrics of the *incoming* weights.

    Raises:
        OrderRefusedError: ``layout_mismatch``, ``no_data`` or ``diverged``.
        DiskProblemError: kept tensors cannot be stored.
    """
    started = time.monotonic()
    model, layout = workspace.model, workspace.layout
    if order.weights is None or order.layout_sha256 != layout.sha256:
        msg = f"the order's layout is {order.layout_sha256[:12]}, ours {layout.sha256[:12]}"
        raise OrderRefusedError(msg, code="layout_mismatch")
    if order.phase == "evaluate" and len(data.test) == 0:
        return count_examples(data)
    copy_weights(model, layout, order.weights)
    restore_kept(model, layout, kept_folder, order.round, workspace.initial_kept)
    statistics: dict[str, Statistic] = {}
    if order.evaluate:
        predict = model_predictor(model, order.plan, workspace.device)
        statistics = evaluate(predict, data, order.plan, noted)
    update, num_steps, loss = None, 0, None
    if order.phase == "train":
        num_steps, loss = train(order, data, workspace)
        update = read_vector(model, layout) - order.weights
        privacy = order.plan.privacy
        if privacy is not None and privacy.noise == "site":
            loss = None  # of the training data, and not noised
            if privacy.protects == "site":
                update = release_privately(update, privacy, secret_stream())
        if not (math.isfinite(loss or 0.0) and torch.isfinite(torch.from_numpy(update)).all()):
            msg = f"local training diverged in round {order.round} (loss {loss})"
            raise OrderRefusedError(msg, code="diverged")
        store_kept(model, layout, kept_folder, order.round)
    return Report(
        site=data.site,
        num_examples=len(data.train),
        num_test=len(data.test),
        num_bad_files=data.num_bad_files,
        manifest_sha256=data.manifest_sha256,
        update=update,
        num_steps=num_steps,
        train_loss=loss,
        statistics=statistics,
        seconds=time.monotonic() - started,
    )


def evaluate(
    predict: Predict, data: SiteData, plan: Plan, noted: CellPatients | None = None
) -> dict[str, Statistic]:
    """Metrics of a predictor on the site's test cases, and of the trivial baseline beside it.

    The baseline (all background, the site's own majority class, PCA of its own normals) is put
    under names that start with ``baseline/``; not in a run whose sites add noise, or their share of
    it, since it learns from their training cases. A site without test cases gives no statistic.
    With ``noted`` they are formed case by case, and who stands behind them is taken down. Those of
    subgroups stand beside the model's, where the plan asks for some and the site tells them.
    """
    if len(data.test) == 0:
        return {}
    scored = _scored_by_subgroup if plan.evaluation.subgroups else _scored
    found = scored(predict, data, plan, noted)
    if plan.privacy is not None and plan.privacy.noise != "centre":
        return found  # the baseline learns from the training cases, without noise
    named, behind = _baseline_statistics(data, plan, noted is not None)
    if noted is not None and behind is not None:
        noted.take(behind, BASELINE)
    return found | named


def _scored(
    predict: Predict, data: SiteData, plan: Plan, noted: CellPatients | None
) -> dict[str, Statistic]:
    scores = task_module(plan.task).scores
    if noted is None:
        return scores(predict, data.test, plan)
    return scores_by_patient(scores, predict, data.test, plan, noted)


def _scored_by_subgroup(
    predict: Predict, data: SiteData, plan: Plan, noted: CellPatients | None
) -> dict[str, Statistic]:
    """The same, and beside them those of the subgroups that the cases tell."""
    scores, seen = task_module(plan.task).scores, False

    def with_subgroups(
        predict_: Predict, cases: Iterable[Case], plan_: Plan
    ) -> dict[str, Statistic]:
        nonlocal seen
        (case,) = cases  # scores_by_patient gives one at a time
        found = scores(predict_, [case], plan_)
        first, seen = not seen, True
        return found | by_subgroup(found, case.subgroups, plan_, first=first)

    behind = CellPatients() if noted is None else noted
    return scores_by_patient(with_subgroups, predict, data.test, plan, behind)


def _baseline_statistics(data: SiteData, plan: Plan, by_patient: bool) -> _Baseline:
    """Scored once for a run: neither the baseline nor the test cases change with the rounds.

    In a simulation of more sites than :data:`MOST_KEPT_BASELINES` the others' are scored anew.
    """
    address = plan.sha256, by_patient
    known = _baselines.get(data.test, {})
    if address in known:
        return known[address]
    behind = CellPatients() if by_patient else None
    found = _scored(baseline_predictor(plan, data.train), data, plan, behind)
    named = {f"{BASELINE}{name}": part for name, part in found.items()}
    if len(_baselines) < MOST_KEPT_BASELINES:
        _baselines.setdefault(data.test, {})[address] = named, behind
    return named, behind


def train(order: Order, data: SiteData, workspace: Workspace) -> tuple[int, float | None]:
    """Train the workspace's model in place; return the steps done and their mean loss.

    The loss is None where records or patients are protected: it is not noised.

    Raises:
        OrderRefusedError: ``no_data``: the site has no case to train on.
        DataProblemError: ``unknown_patients``: they are protected, and a case names none.
    """
    plan, model, optimiser = order.plan, workspace.model, workspace.optimiser
    if len(data.train) == 0:
        msg = f"site {data.site} has no case to train on"
        raise OrderRefusedError(msg, code="no_data")
    task, site_gradient = task_module(plan.task), algorithm_of(plan.algorithm).site_gradient
    shared_names = {tensor.name for tensor in workspace.layout.shared}
    weights = [w for name, w in model.named_parameters() if name in shared_names]
    anchors = [w.detach().clone() for w in weights]
    optimiser.state.clear()
    model.train()
    if workspace.private_step is not None and plan.privacy is not None:
        num_steps = train_privately(
            plan,
            plan.privacy,
            data,
            model,
            optimiser,
            workspace.private_step,
            lambda: site_gradient(weights, anchors),
            secret_stream(),
        )
        return num_steps, None
    draws = draws_of(plan, order.round, data.site)
    total, num_steps = 0.0, 0
    with torch_stream(plan.seed, round_=order.round, site=data.site, purpose="dropout"):
        for batch in _limited(draw_batches(plan, data.train, draws), plan.local):
            batch = batch.to(workspace.device)
            optimiser.zero_grad(set_to_none=True)
            loss = task.loss(model(batch.inputs), batch, plan)
            loss.backward()  # type: ignore[no-untyped-call]
            site_gradient(weights, anchors)
            optimiser.step()
            total += loss.item()
            num_steps += 1
    return num_steps, total / num_steps


def draws_of(plan: Plan, round_: int, site: str) -> Draws:
    """The addressed streams behind a site's batches in a round."""
    return lambda purpose: stream(plan.seed, round_=round_, site=site, purpose=purpose)


def _limited(batches: Iterator[Item], local: LocalSettings) -> Iterator[Item]:
    """The batches of one round: as many as the plan says, or until its seconds are over."""
    limit = local.amount if local.unit == "steps" else None
    ends = math.inf if local.seconds_limit is None else time.monotonic() + local.seconds_limit
    for number, batch in enumerate(islice(batches, limit)):
        if number > 0 and time.monotonic() > ends:
            return
        yield batch


def _optimiser(local: LocalSettings, model: nn.Module) -> torch.optim.Optimizer:
    rate, decay = local.learning_rate, local.weight_decay
    match local.optimiser:
        case "sgd":
            return torch.optim.SGD(model.parameters(), rate, local.momentum, weight_decay=decay)
        case "adam":
            return torch.optim.Adam(model.parameters(), rate, weight_decay=decay)
        case "adamw":
            return torch.optim.AdamW(model.parameters(), rate, weight_decay=decay)
