"""Our runner: ``asterion simulate PLAN --scenario SCENARIO --engine auto`` on a workload.

Writes the plan, the scenario and the first weights, starts the command as a user would, and
watches its ``--json`` events. Timed is what the command does from the event of round 1 to that of
the round before the last: as many orders, trainings, folds, checkpoints and events as there are
rounds between the two. It takes the options of ``../shared/simbench/sidebyside.py --ours``::

    python -m bench.ours --workload cnn
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import safetensors.torch
import torch
from torch import Tensor, nn

from asterion_shared.plan import Plan, read_plan
from asterion_shared.result import read_result
from asterion_shared.tasks import initial_model
from bench.measuring import Stamp, print_figures, site_figures, stamp
from bench.workloads import (
    BENCH_FOLDER,
    WORKLOADS,
    Workload,
    cohort,
    final_loss,
    flops_per_site,
    initial_network,
    prepare,
)

ASTERION = str(Path(sys.executable).parent / "asterion")
MODELS = {
    "cnn": 'name = "cnn"\nwidths = [32, 64, 128]',
    "mlp": 'name = "mlp"\nwidths = [{hidden_units}]',
    "logreg": 'name = "logistic"',
    "unet": 'name = "small_unet"\nwidths = [8, 16, 32]',
    "empty": 'name = "logistic"',
}


def plan_text(workload: Workload, rounds: int, weights_sha256: str = "") -> str:
    """The workload's plan, TOML; with ``weights_sha256`` it starts from ``first.safetensors``."""
    channels, height, width = workload.image_shape
    init = f'[init]\nfile = "first.safetensors"\nsha256 = "{weights_sha256}"\n'
    return f"""\
name = "bench-{workload.name}"
task = "{"segmentation" if workload.segmentation else "classification"}"
seed = {workload.seed}
{init if weights_sha256 else ""}
[data]
channels = {json.dumps([f"channel_{number}" for number in range(channels)])}
classes = {json.dumps([f"class_{number}" for number in range(max(2, workload.num_classes))])}
patch_size = [{height}, {width}]
normalisation = "none"

[model]
{MODELS[workload.name].format(hidden_units=workload.hidden_units)}

[algorithm]
weighting = "examples"

[local]
unit = "epochs"
amount = 1
batch_size = {workload.batch_size}
shuffle = false
optimiser = "sgd"
learning_rate = {workload.learning_rate}
{"dice_weight = 0.0" if workload.segmentation else ""}

[rounds]
count = {rounds}
sites_per_round = {workload.sites_per_round}
evaluate_every = {rounds}
"""


def scenario_text(workload: Workload, pool: Path) -> str:
    """The workload's scenario, TOML: whose examples are whose, and who takes part when."""
    return f"""\
trace = "cohorts.jsonl"

[source]
kind = "arrays"
test_share = 0.0
path = {json.dumps(str(pool))}

[split]
kind = "column"
column = "site"
{"allow_one_class = true" if workload.examples_per_site == 1 else ""}
"""


def cohort_lines(workload: Workload, rounds: int) -> str:
    """Who takes part in which round (counted from 1), one JSON object a line."""
    names = workload.site_names
    lines = [
        json.dumps(
            {"round": round_ + 1, "participants": [names[n] for n in cohort(workload, round_)]}
        )
        for round_ in range(rounds)
    ]
    return "\n".join(lines) + "\n"


def write_run(workload: Workload, rounds: int, pool: Path, folder: Path) -> None:
    """Write ``plan.toml``, ``scenario.toml``, ``cohorts.jsonl`` and ``first.safetensors``.

    Args:
        workload: what is trained.
        rounds: of the plan, all of them.
        pool: folder of the examples, as ``workloads.prepare`` writes it.
        folder: gets the files.

    Raises:
        ValueError: the plan's network and the peers' do not compute the same.
    """
    path = folder / "plan.toml"
    path.write_text(plan_text(workload, rounds))
    network = initial_network(workload)
    first = to_plan_names(network, read_plan(path), workload)
    data = safetensors.torch.save(first)
    (folder / "first.safetensors").write_bytes(data)
    path.write_text(plan_text(workload, rounds, hashlib.sha256(data).hexdigest()))
    (folder / "scenario.toml").write_text(scenario_text(workload, pool))
    (folder / "cohorts.jsonl").write_text(cohort_lines(workload, rounds))


def to_plan_names(network: nn.Module, plan: Plan, workload: Workload) -> dict[str, Tensor]:
    """The weights of a peers' network by the names of the plan's network."""
    model = initial_model(plan)
    renamed = _renamed(network, model, workload)
    state = network.state_dict()
    found = {ours: state[theirs].contiguous() for theirs, ours in renamed.items()}
    model.load_state_dict(found)
    images = torch.rand(2, *workload.image_shape)
    logits = model(images)
    if workload.segmentation:
        logits = logits[:, 1:] - logits[:, :1]
    expected = network(images.reshape(2, *workload.input_shape))
    if not torch.allclose(logits, expected, atol=1e-5):
        msg = f"{workload.name}: from the same weights our network gives other logits than theirs"
        raise ValueError(msg)
    return found


def from_plan_names(path: Path, plan: Plan, workload: Workload) -> nn.Module:
    """The peers' network with the weights of a run's ``model.safetensors``."""
    network = initial_network(workload)
    found = safetensors.torch.load_file(path)
    renamed = _renamed(network, initial_model(plan), workload)
    network.load_state_dict({theirs: found[ours] for theirs, ours in renamed.items()})
    return network


def _renamed(network: nn.Module, model: nn.Module, workload: Workload) -> dict[str, str]:
    """Name in the plan's network of each weight of the peers': layers pair as they run."""
    theirs = _layers_as_they_run(network, torch.zeros(1, *workload.input_shape))
    ours = _layers_as_they_run(model, torch.zeros(1, *workload.image_shape))
    return {
        f"{one}.{weight}": f"{other}.{weight}"
        for one, other in zip(theirs, ours, strict=True)
        for weight in ("weight", "bias")
    }


def _layers_as_they_run(network: nn.Module, images: Tensor) -> list[str]:
    """Names of the layers that have weights, in the order of a forward pass."""
    ran: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: ran.append(name)

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                handle = module.register_forward_hook(note(name))
                hooks.callback(handle.remove)
        with torch.no_grad():
            network(images)
    return ran


def watch(
    command: Sequence[str], ends: Sequence[int], begun: Callable[[int], None] = lambda pid: None
) -> dict[int, Stamp]:
    """Run a simulation to its end.

    Args:
        command: prints an event a line (``--json``).
        ends: rounds whose events are stamped.
        begun: is told the number of the process.

    Returns:
        A stamp for each of ``ends``; -1 the start of the process, -2 the start of the run.

    Raises:
        RuntimeError: the command failed, or an event did not come.
    """
    with TemporaryDirectory() as folder:
        errors = Path(folder) / "errors"
        with (
            errors.open("w") as stderr,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
        ):
            begun(process.pid)
            stamps = {-1: stamp(process.pid)}
            for line in process.stdout or ():
                event = json.loads(line)
                if event["event"] == "run_started":
                    stamps[-2] = stamp(process.pid)
                elif event["event"] == "round_finished":
                    number = event["round_result"]["round"]
                    if number in ends:
                        stamps[number] = stamp(process.pid)
        if process.returncode or not stamps.keys() >= {-2, *ends}:
            msg = (
                f"{' '.join(command)} ended with code {process.returncode}, events of "
                f"{sorted(stamps)}: {errors.read_text()[-2000:]}"
            )
            raise RuntimeError(msg)
    return stamps


def measure(
    workload: Workload,
    rounds: int,
    options: Sequence[str],
    asterion: str = ASTERION,
    begun: Callable[[int], None] = lambda pid: None,
) -> tuple[str, dict[str, float]]:
    """Run a workload with one round to warm up; the engine that did it, and its figures.

    Args:
        workload: what to train.
        rounds: trained after the first; at least 3. The last is not timed, so that the interval
            ends before the final model is evaluated at every site.
        options: more options of ``asterion simulate``.
        asterion: the command.
        begun: is told the number of its process.

    Raises:
        RuntimeError: the command failed.
    """
    parent = BENCH_FOLDER / "ours"
    parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=parent, prefix=workload.name) as name:
        folder = Path(name)
        write_run(workload, rounds + 1, prepare(workload) / "pool", folder)
        ends = (1, rounds)
        stamps = watch(
            [
                asterion, "simulate", str(folder / "plan.toml"),
                "--scenario", str(folder / "scenario.toml"),
                "--out", str(folder / "out"), "--json", *options,
            ],
            ends,
            begun,
        )  # fmt: skip
        engine = engine_text(folder / "out" / "result.json")
        network = from_plan_names(
            folder / "out" / "model.safetensors", read_plan(folder / "plan.toml"), workload
        )
    first, last = (stamps[number] for number in ends)
    figures = site_figures(first, last, (rounds - 1) * workload.sites_per_round)
    return engine, figures | {
        "startup_s": first.wall_seconds - stamps[-1].wall_seconds,
        "first_rounds_s": first.wall_seconds - stamps[-2].wall_seconds,
        "gflop_per_s": figures["clients_per_s"] * flops_per_site(workload) / 1e9,
        "final_loss": final_loss(workload, network),
    }


def engine_text(result: Path) -> str:
    """The engine that a run's ``result.json`` names: ``vectorised, 2 processes, chunk 25``."""
    simulation = read_result(result).simulation
    if simulation is None:
        msg = f"{result} names no engine; is it of a simulation?"
        raise ValueError(msg)
    chosen = simulation.engine
    over = "" if chosen["over"] == "here" else f", {chosen['workers']} {chosen['over']}"
    return f"{chosen['kernel']}{over}, chunk {chosen['chunk']}"


def main() -> None:
    """Run a workload and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="cnn")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--workers", type=int, help="absent: the command's own choice")
    parser.add_argument("--threads", type=int, help="taken for sidebyside.py; the engine decides")
    parser.add_argument("--asterion", default=ASTERION)
    wanted = parser.parse_args()
    options = ["--engine", wanted.engine]
    options += ["--dtype", wanted.dtype] if wanted.dtype != "f32" else []
    options += ["--workers", str(wanted.workers)] if wanted.workers else []
    print_figures(*measure(WORKLOADS[wanted.workload], wanted.rounds, options, wanted.asterion))


if __name__ == "__main__":
    main()
