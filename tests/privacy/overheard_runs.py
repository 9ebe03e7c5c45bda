"""Runs of every placement of the noise over a line that is listened to.

Real sites with folders, ledgers and settings answer the coordinator's real run over a grid without
a network.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import recorddict_to_proto

from asterion_client import local_round, private_round
from asterion_client.app import Desk, client_app_of
from asterion_client.settings import read_site_settings
from asterion_client.site_worker import SiteWorker
from asterion_server.app import conduct
from asterion_server.in_process_grid import InProcessGrid, InProcessSite
from asterion_server.ledger_heads import LedgerHeads
from asterion_server.run_folder import Launch, RunFolder
from asterion_shared.parameters import Vector
from asterion_shared.plan import Plan
from asterion_shared.result import Result, read_result
from asterion_shared.settings_files import validate

SITES = {"north": 40, "south": 60, "west": 50}
PATIENT = "mueller"
ROUNDS, STEPS, RATE, CLIP, NOISE = 2, 3, 0.1, 0.5, 3.0
WITHIN = {"noise": "site", "clip_norm": CLIP, "noise_multiplier": NOISE, "sampling_rate": 0.5,
          "epsilon_limit": 50.0}  # fmt: skip
WHOLE = {"protects": "site", "clip_norm": CLIP, "noise_multiplier": NOISE, "epsilon_limit": 50.0}
MODES: dict[str, dict[str, Any]] = {
    "clear": {},
    "record": {"privacy": WITHIN | {"protects": "record"}},
    "patient": {"privacy": WITHIN | {"protects": "patient"}},
    "centre": {"privacy": WHOLE | {"noise": "centre"}, "algorithm": {"max_weight": 1}},
    "site": {"privacy": WHOLE | {"noise": "site"}},
}
NOISED_AT_SITES = ("record", "patient", "site")


def plan_of(mode: str, **sections: Any) -> Plan:
    values: dict[str, Any] = {
        "name": mode,
        "task": "classification",
        "data": {"kind": "table", "features": ["a", "b"], "classes": ["well", "ill"],
                 "scale": {"a": [0.5, 1.0], "b": [0.5, 1.0]}},
        "model": {"name": "mlp", "widths": [64]},
        "local": {"unit": "steps", "amount": STEPS, "batch_size": 8, "optimiser": "sgd",
                  "learning_rate": RATE},
        "rounds": {"count": ROUNDS, "sites_per_round": 3, "deadline_seconds": 30.0},
    }  # fmt: skip
    return validate(Plan, values | MODES[mode] | sections, mode)


@dataclass
class Played:
    """One run: what crossed the line, what its sites alone know, and what the coordinator keeps."""

    plan: Plan
    root: Path
    folder: RunFolder
    crossed: list[tuple[str, RecordDict, RecordDict]] = field(default_factory=list)
    """Site, order and reply, in the order they came."""

    losses: list[float] = field(default_factory=list)
    clear: list[Vector] = field(default_factory=list)
    """Updates before the noise, where the site adds it to them."""

    sums: dict[str, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)
    """Sums of clipped gradients before and after the noise, by site."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Stands for the line to a site."""
        reply = self._app(message, context)
        self.crossed.append((str(context.node_config["site"]), message.content, reply.content))
        return reply

    def __post_init__(self) -> None:
        self._workers: dict[str, SiteWorker] = {}
        self._app = client_app_of(self._desk)

    def _desk(self, context: Context) -> Desk:
        name = str(context.node_config["site"])
        folder = self.root / name
        if name not in self._workers:
            self._workers[name] = SiteWorker(read_site_settings(folder / "site.toml"), folder)
        self.sums.setdefault(name, [])
        self._at_work = name
        return Desk(name, self._workers[name].answer)

    def play(self, patch: pytest.MonkeyPatch) -> None:
        train, release, add = (local_round.train, local_round.release_privately,
                               private_round.add_gaussian)  # fmt: skip

        def training(*given: Any) -> Any:
            found = train(*given)
            self.losses += [] if found[1] is None else [found[1]]
            return found

        def releasing(update: Vector, *given: Any) -> Any:
            self.clear.append(update.copy())
            return release(update, *given)

        def adding(values: np.ndarray, *given: Any, **named: Any) -> Any:
            before = values.copy()
            noised = add(values, *given, **named)
            self.sums[self._at_work].append((before, noised.copy()))
            return noised

        patch.setattr(local_round, "train", training)
        patch.setattr(local_round, "release_privately", releasing)
        patch.setattr(private_round, "add_gaussian", adding)
        sites = {n: InProcessSite(name, self, {"site": name}) for n, name in enumerate(SITES, 10)}  # type: ignore[arg-type]
        conduct(InProcessGrid(sites), self.folder, LedgerHeads(self.root / "heads"))

    def of_phase(self, phase: str) -> list[tuple[str, RecordDict, RecordDict]]:
        return [c for c in self.crossed if c[1]["order"]["phase"] == phase]

    @property
    def result(self) -> Result:
        return read_result(self.folder.result)


def write_site(folder: Path, size: int, seed: int) -> None:
    folder.mkdir(parents=True)
    draws = np.random.default_rng(seed)
    rows = [f"{draws.normal(i % 2):.3f},{draws.normal(i % 2):.3f},{('well', 'ill')[i % 2]},"
            f"{PATIENT}_{i // 2}" for i in range(size)]  # fmt: skip
    (folder / f"{PATIENT}.csv").write_text("\n".join(["a,b,label,who", *rows]) + "\n")
    (folder / "site.toml").write_text(
        f'name = "{folder.name}"\ntask = "classification"\n[data]\nformat = "table"\n'
        'group_column = "who"\n[privacy]\nepsilon_limit = 100.0\ndelta = 1e-5\n'
        "[egress]\nsmallest_group = 1\n"  # few patients, and a whole report is looked at
    )


def play_all(root_of: Callable[[str], Path]) -> dict[str, Played]:
    """One run of every mode, each in an empty folder of its own."""
    return {mode: play_one(root_of(mode), plan_of(mode)) for mode in MODES}


def play_one(root: Path, plan: Plan) -> Played:
    """One run of a plan, in an empty folder."""
    for seed, (name, size) in enumerate(SITES.items()):
        write_site(root / name, size, seed)
    folder = RunFolder(root / "run")
    folder.path.mkdir()
    folder.plan_file.write_text(plan.canonical())
    folder.write_launch(Launch(sites=tuple(SITES)))
    played = Played(plan, root, folder)
    with pytest.MonkeyPatch.context() as patch:
        played.play(patch)
    return played


def shape(content: RecordDict) -> dict[str, set[str]]:
    return {name: set(record) for name, record in content.items()}


def wire(content: RecordDict) -> bytes:
    return recorddict_to_proto(content).SerializeToString()


def vector_of(content: RecordDict, name: str) -> Vector:
    return np.frombuffer(content[name]["vector"].data, "<f4")
