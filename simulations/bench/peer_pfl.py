"""A peer: Apple's pfl simulator (``pfl[pytorch]`` 0.6.0) on a workload, as fast as it goes.

Federated averaging with equal weights, no evaluation, no privacy mechanism, one thread a process.
Runs in its own environment; several processes by torch's launcher::

    python -m bench.peer_pfl --workload cnn
    python -m torch.distributed.run --nproc_per_node=2 -m bench.peer_pfl --workload cnn
"""
# pyright: reportMissingImports=false

import argparse
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bench.measuring import Stamp, print_figures, site_figures, stamp
from bench.workloads import (
    WORKLOADS,
    Workload,
    cohort,
    final_loss,
    flops_per_site,
    initial_network,
    mean_loss,
    site_tensors,
)


class Learner(nn.Module):
    """A network with the two methods that pfl's PyTorch model calls."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.workload = workload
        self.network = initial_network(workload)

    def forward(self, inputs: Tensor) -> Tensor:
        """The network's logits."""
        logits: Tensor = self.network(inputs)
        return logits

    def loss(self, inputs: Tensor, targets: Tensor, eval: bool = False) -> Tensor:  # noqa: A002
        """Mean loss of one batch."""
        self.train(not eval)
        return mean_loss(self.workload, self(inputs), targets)

    @torch.no_grad()
    def metrics(self, inputs: Tensor, targets: Tensor, eval: bool = True) -> dict[str, Any]:  # noqa: A002
        """The loss again, in pfl's own type; no round asks for it."""
        from pfl.metrics import Weighted

        return {
            "loss": Weighted(float(self.loss(inputs, targets, eval)) * len(inputs), len(inputs))
        }


def simulate(
    workload: Workload, rounds: int, dtype: str, root: int
) -> tuple[nn.Module, Stamp, Stamp, Stamp]:
    """Train one round to warm up and ``rounds`` that are timed.

    Args:
        workload: what to train.
        rounds: timed rounds, at least 1.
        dtype: ``f32`` or ``bf16`` (autocast).
        root: process whose tree is measured.

    Returns:
        The final network, and stamps before pfl is imported, after the first and the last round.
    """
    begin = stamp(root)
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByUser
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    ends: dict[int, Stamp] = {}

    class Stamps(TrainingProcessCallback):
        def after_central_iteration(
            self, aggregate_metrics: Any, model: Any, *, central_iteration: int
        ) -> tuple[bool, Any]:
            if central_iteration in (0, rounds):
                ends[central_iteration] = stamp(root)
            return False, Metrics()

    inputs, targets = site_tensors(workload)
    learner = Learner(workload)
    model = PyTorchModel(
        model=learner,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(learner.parameters(), lr=1.0),
        amp_dtype=torch.bfloat16 if dtype == "bf16" else None,
    )
    order = _site_order(workload, rounds + 1)
    sites = FederatedDataset(
        lambda site: Dataset(raw_data=[inputs[site], targets[site]], user_id=str(site)),
        lambda: next(order),
    )
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds + 1,
            evaluation_frequency=10**9,
            train_cohort_size=workload.sites_per_round,
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(
            training_data=sites, val_data=None, postprocessors=[WeightByUser()]
        ),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_learning_rate=workload.learning_rate,
            local_num_epochs=1,
            local_batch_size=workload.batch_size,
        ),
        model_eval_params=None,
        callbacks=[Stamps()],
    )
    return learner.network, begin, ends[0], ends[rounds]


def _site_order(workload: Workload, rounds: int) -> Iterator[int]:
    for round_ in range(rounds):
        yield from cohort(workload, round_)


def main() -> None:
    """Run a workload and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="cnn")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    wanted = parser.parse_args()
    workload = WORKLOADS[wanted.workload]
    torch.set_num_threads(1)
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    # The launcher is the parent of all ranks; they end a round together.
    root = os.getpid() if num_processes == 1 else os.getppid()
    network, begin, first, last = simulate(workload, wanted.rounds, wanted.dtype, root)
    if os.environ.get("RANK", "0") != "0":
        return
    figures = site_figures(first, last, wanted.rounds * workload.sites_per_round)
    figures |= {
        "startup_s": first.wall_seconds - begin.wall_seconds,
        "gflop_per_s": figures["clients_per_s"] * flops_per_site(workload) / 1e9,
        "final_loss": final_loss(workload, network),
    }
    print_figures(f"pfl {wanted.dtype}, {num_processes} x 1 thread", figures)


if __name__ == "__main__":
    main()
