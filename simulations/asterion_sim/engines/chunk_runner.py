"""What a worker does: evaluate and train the sites of a chunk, and add up their updates."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from asterion_client.local_round import Workspace, evaluate, make_workspace, work
from asterion_client.update_rounding import keep_residual, rounded, store_residual
from asterion_server.selection import clip_factor, weight_of
from asterion_shared.blocks import length
from asterion_shared.cases import SiteData
from asterion_shared.errors import DataProblemError, OrderRefusedError
from asterion_shared.messages import Answer, NoReport, Order, PartialFold, Report
from asterion_shared.metrics import Statistic
from asterion_shared.parameters import write_vector
from asterion_shared.plan import Plan
from asterion_shared.tasks.batches import require_usable
from asterion_shared.tasks.prediction import model_predictor
from asterion_sim.engines.choice import DTYPES, Engine, KernelName
from asterion_sim.engines.freed_memory import keep_freed_memory
from asterion_sim.engines.kernel import Kernel, Trained
from asterion_sim.engines.products import fast_products
from asterion_sim.engines.shared_base import SharedBase
from asterion_sim.engines.vectorised import Vectorised

BATCHED: Mapping[KernelName, Callable[[Plan, str, torch.dtype], Kernel]] = {
    "vectorised": Vectorised,
    "shared-base": SharedBase,
}


class ChunkRunner:
    """Carries out orders at virtual sites in this process.

    Args:
        plan: the run's plan.
        sites: the sites' cases by name.
        folder: where a site's kept tensors are stored between rounds.
        device: ``cpu`` or ``cuda[:N]``.
    """

    def __init__(
        self, plan: Plan, sites: Mapping[str, SiteData], folder: Path, device: str = "cpu"
    ) -> None:
        # One thread, as at a site: part of what makes both end in the same numbers.
        torch.set_num_threads(1)
        keep_freed_memory()
        self._plan, self._sites, self._folder, self._device = plan, sites, folder, device
        self._space: Workspace | None = None
        self._kernel: tuple[Engine, Kernel] | None = None

    def answer(self, order: Order, name: str) -> Answer:
        """One site's answer by the hospital's own code."""
        data = self._sites[name]
        try:
            report = work(order, data, self._workspace, self._folder / name)
            report, residual = rounded(order, report, self._folder / name)
            store_residual(self._folder / name, order.round, residual)
            keep_residual(self._folder / name, order.round)
            return replace(report, encoded=None)
        except (OrderRefusedError, DataProblemError) as error:
            return NoReport(site=name, outcome="refused", code=error.code, stage=order.phase)

    def answers(self, order: Order, names: Sequence[str], engine: Engine) -> list[Answer]:
        """Answers of several sites to a train order, each report with its own update."""
        if engine.kernel == "sequential":
            return [self.answer(order, name) for name in names]
        found, trained, ready = self._train(order, names, engine)
        for index, name in enumerate(ready):
            report = found[name]
            if trained is not None and isinstance(report, Report):
                update = trained.updates.update(index)
                found[name] = replace(report, update=update, update_norm=None)
        return [found[name] for name in names]

    def fold(
        self, order: Order, names: Sequence[str], times: Mapping[str, int], engine: Engine
    ) -> PartialFold:
        """Answers of several sites to a train order, with their updates added up."""
        if engine.kernel == "sequential":
            return self._fold_one_by_one(order, names, times)
        found, trained, ready = self._train(order, names, engine)
        weights = np.zeros(len(ready))
        total, sum_of_weights = np.zeros(0), 0.0
        if trained is not None:
            for index, name in enumerate(ready):
                report = found[name]
                if isinstance(report, Report):
                    weight = weight_of(self._plan, report.num_examples, times[name])
                    norm = float(trained.norms[index])
                    weights[index] = weight * clip_factor(self._plan, norm, order.clip_norm)
                    sum_of_weights += weight
            with fast_products(self._device):
                total = trained.updates.weighted_sum(weights)
        return PartialFold(
            answers=tuple(found[name] for name in names),
            total=total if total.size else np.zeros(self._workspace.layout.size),
            weight=sum_of_weights,
        )

    def _fold_one_by_one(
        self, order: Order, names: Sequence[str], times: Mapping[str, int]
    ) -> PartialFold:
        total, sum_of_weights = np.zeros(self._workspace.layout.size), 0.0
        answers: list[Answer] = []
        for name in names:
            answer = self.answer(order, name)
            if isinstance(answer, Report) and answer.update is not None:
                update = answer.update.astype(np.float64)
                norm = length(update)
                weight = weight_of(self._plan, answer.num_examples, times[name])
                total += weight * clip_factor(self._plan, norm, order.clip_norm) * update
                sum_of_weights += weight
                answer = replace(answer, update=None, update_norm=norm)
            answers.append(answer)
        return PartialFold(answers=tuple(answers), total=total, weight=sum_of_weights)

    def _train(
        self, order: Order, names: Sequence[str], engine: Engine
    ) -> tuple[dict[str, Answer], Trained | None, list[str]]:
        """Every site's answer, what was learnt, and the sites in its order."""
        started = time.monotonic()
        found: dict[str, Answer] = {}
        statistics: dict[str, dict[str, Statistic]] = {}
        ready: list[str] = []
        for name in names:
            try:
                statistics[name] = self._evaluated(order, name)
                require_usable(self._plan, self._sites[name].train)
                ready.append(name)
            except (OrderRefusedError, DataProblemError) as error:
                found[name] = NoReport(site=name, outcome="refused", code=error.code, stage="train")
        if not ready:
            return found, None, ready
        with fast_products(self._device):
            trained = self._kernel_of(engine).train(order, [self._sites[name] for name in ready])
        seconds = (time.monotonic() - started) / len(names)
        for index, name in enumerate(ready):
            data, norm = self._sites[name], float(trained.norms[index])
            if not np.isfinite(norm) or not np.isfinite(trained.losses[index]):
                found[name] = NoReport(site=name, outcome="refused", code="diverged", stage="train")
                continue
            found[name] = Report(
                site=name,
                num_examples=len(data.train),
                num_test=len(data.test),
                num_bad_files=data.num_bad_files,
                manifest_sha256=data.manifest_sha256,
                update_norm=norm,
                num_steps=int(trained.num_steps[index]),
                train_loss=float(trained.losses[index]),
                statistics=statistics[name],
                seconds=seconds,
            )
        return found, trained, ready

    def _evaluated(self, order: Order, name: str) -> dict[str, Statistic]:
        """Metrics of the incoming weights, as the hospital's step measures them."""
        if not order.evaluate or len(self._sites[name].test) == 0:
            return {}
        space = self._workspace
        assert order.weights is not None  # noqa: S101  # a train order has weights
        write_vector(space.model, space.layout, order.weights)
        predict = model_predictor(space.model, self._plan, self._device)
        return evaluate(predict, self._sites[name], self._plan)

    def _kernel_of(self, engine: Engine) -> Kernel:
        """The batched engine's kernel, built once."""
        if self._kernel is None or self._kernel[0] != engine:
            made = BATCHED[engine.kernel](self._plan, self._device, DTYPES[engine.dtype])
            self._kernel = (engine, made)
        return self._kernel[1]

    @property
    def _workspace(self) -> Workspace:
        """Built when needed: a batched engine that evaluates nothing never needs one."""
        if self._space is None:
            self._space = make_workspace(self._plan, self._device)
        return self._space
