"""A peer: Flower's simulation runtime (``flwr[simulation]`` 1.41.0, on Ray) on a workload.

Two workers of one thread; each builds the network once and maps the data once; nothing is
evaluated. The server names the site in its message, so that the order is the workload's. Runs in
its own environment::

    python -m bench.peer_flower --workload cnn
"""
# pyright: reportMissingImports=false

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from bench.measuring import Stamp, print_figures, site_figures, stamp
from bench.workloads import (
    WORKLOADS,
    Workload,
    cohort,
    final_loss,
    flops_per_site,
    initial_network,
    prepare,
)


class OrderedFedAvg(FedAvg):
    """Flower's own strategy; only which data a node stands for in a round is the workload's.

    Args:
        workload: gives the order.
        rounds: timed rounds, after one to warm up.
        dtype: ``f32`` or ``bf16``.
    """

    def __init__(self, workload: Workload, rounds: int, dtype: str) -> None:
        super().__init__(
            fraction_train=workload.sites_per_round / workload.num_sites,
            fraction_evaluate=0.0,
            min_train_nodes=workload.sites_per_round,
            min_available_nodes=workload.num_sites,
        )
        self.workload, self.rounds, self.dtype = workload, rounds, dtype
        self.ends: dict[int, Stamp] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Flower's messages to the nodes it drew, each with the number of a site added."""
        drawn = super().configure_train(server_round, arrays, config, grid)
        sites = cohort(self.workload, server_round - 1)
        return [
            Message(
                content=RecordDict({"arrays": arrays, "config": self._settings(site)}),
                message_type=message.metadata.message_type,
                dst_node_id=message.metadata.dst_node_id,
            )
            for message, site in zip(drawn, sites, strict=True)
        ]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """Flower's mean, then a stamp after the first and the last round."""
        result = super().aggregate_train(server_round, replies)
        if server_round in (1, self.rounds + 1):
            self.ends[server_round] = stamp(os.getpid())
        return result

    def _settings(self, site: int) -> ConfigRecord:
        return ConfigRecord({"workload": self.workload.name, "dtype": self.dtype, "site": site})


def simulate(
    workload: Workload, rounds: int, dtype: str, workers: int
) -> tuple[nn.Module, Stamp, Stamp]:
    """Train one round to warm up and ``rounds`` that are timed.

    Returns:
        The final network, and stamps after the first and the last round.
    """
    from flwr.simulation import run_simulation

    from bench import flower_client

    strategy = OrderedFedAvg(workload, rounds, dtype)
    network = initial_network(workload)
    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        result = strategy.start(
            grid=grid, initial_arrays=ArrayRecord(network.state_dict()), num_rounds=rounds + 1
        )
        network.load_state_dict(result.arrays.to_torch_state_dict())

    run_simulation(
        server_app=server,
        client_app=flower_client.app,
        num_supernodes=workload.num_sites,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {
                "num_cpus": workers,
                "include_dashboard": False,
                "logging_level": "error",
                "log_to_driver": False,
            },
        },
    )
    return network, strategy.ends[1], strategy.ends[rounds + 1]


def main() -> None:
    """Run a workload and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="cnn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--workers", type=int, default=2)
    wanted = parser.parse_args()
    # Ray's workers inherit it: they import this package from where it lies.
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    torch.set_num_threads(1)
    workload = WORKLOADS[wanted.workload]
    prepare(workload)
    begin = stamp(os.getpid())
    network, first, last = simulate(workload, wanted.rounds, wanted.dtype, wanted.workers)
    figures = site_figures(first, last, wanted.rounds * workload.sites_per_round)
    figures |= {
        "startup_s": first.wall_seconds - begin.wall_seconds,
        "gflop_per_s": figures["clients_per_s"] * flops_per_site(workload) / 1e9,
        "final_loss": final_loss(workload, network),
    }
    print_figures(f"flower {wanted.dtype}, {wanted.workers} x 1 thread", figures)


if __name__ == "__main__":
    main()
