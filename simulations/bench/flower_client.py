"""What a virtual site does in the Flower peer; Ray's workers import this module by its name."""

from functools import cache
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from bench.workloads import WORKLOADS, Workload, initial_network, mean_loss, site_tensors

app = ClientApp()


@cache
def workplace(name: str) -> tuple[Workload, nn.Module, Tensor, Tensor]:
    """A worker's workload, network and mapped data: made once for all sites and rounds."""
    torch.set_num_threads(1)
    workload = WORKLOADS[name]
    return workload, initial_network(workload), *site_tensors(workload)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One pass over the data of the site that the message names; the weights as the answer.

    In the workload ``empty`` the site sends back what came.
    """
    settings: Any = message.content["config"]
    arrays: Any = message.content["arrays"]
    num_examples = 1
    if settings["workload"] != "empty":
        workload, network, inputs, targets = workplace(settings["workload"])
        network.load_state_dict(arrays.to_torch_state_dict())
        site = settings["site"]
        _one_pass(workload, network, inputs[site], targets[site], settings["dtype"])
        arrays, num_examples = ArrayRecord(network.state_dict()), workload.examples_per_site
    answer = {"arrays": arrays, "metrics": MetricRecord({"num-examples": num_examples})}
    return Message(content=RecordDict(answer), reply_to=message)


def _one_pass(
    workload: Workload, network: nn.Module, inputs: Tensor, targets: Tensor, dtype: str
) -> None:
    network.train()
    optimiser = torch.optim.SGD(network.parameters(), lr=workload.learning_rate)
    batches = zip(
        inputs.split(workload.batch_size), targets.split(workload.batch_size), strict=True
    )
    for inputs_now, targets_now in batches:
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            loss = mean_loss(workload, network(inputs_now), targets_now)
        loss.backward()
        optimiser.step()
