"""How a run was simulated, in words: its engine, its precision, and what was done to its sites."""

from collections.abc import Mapping
from typing import Any

from asterion_shared.reports.many_sites import name_few, round_span
from asterion_shared.result import Result
from asterion_shared.simulation_facts import InjectedFault

_KERNELS = {
    "sequential": "The sites trained one after another, each with the very step that a hospital "
    "runs.",
    "vectorised": "The sites of a chunk trained together, as one batch with weights of its own for "
    "each site. The numbers equal those of training one after another up to rounding.",
    "shared-base": "The sites of a chunk trained together: the weights that all of them start from "
    "are multiplied once for all, and each site's change is kept beside them. The numbers equal "
    "those of training one after another up to rounding.",
}
_PRECISIONS = {
    "f32": "All numbers are float32 or wider.",
    "bf16": "Activations and large products are rounded to bfloat16, which keeps 8 significant "
    "bits: each such number is off by up to 0.4 %. Weights, updates and sums stay float32 or "
    "wider. Losses and metrics may differ from a float32 run's by about 1 part in 200; repeat the "
    "run in float32 before a smaller difference is read as one between methods.",
}
_FACTS = {
    "kernel": "engine",
    "over": "where",
    "chunk": "sites in a chunk",
    "workers": "worker processes",
    "dtype": "precision",
}
_WHERE = {"here": "one process", "processes": "worker processes", "ray": "Ray actors"}
_FAULTS = {
    "drop": "never got the order",
    "crash": "died in training; its work was lost",
    "late": "answered after the deadline",
    "delay": "answered after a drawn time",
    "nan": "sent an update that is not finite",
    "wrong_update": "sent a false update of the true one's length",
    "scaled": "multiplied its update by a factor",
    "label_flip": "trained on false labels",
}


def how_simulated(result: Result, clipped: str) -> dict[str, Any] | None:
    """What the section on the simulation shows; None for a live run.

    Args:
        result: what the run did.
        clipped: how many updates were shortened, in words; empty when no clip norm was set.
    """
    simulation = result.simulation
    if simulation is None:
        return None
    facts = [_fact(what, str(value)) for what, value in simulation.engine.items()]
    if simulation.engine:
        facts.append(("the same engine again", _options(simulation.engine)))
    facts.append(("scenario SHA-256", simulation.scenario_sha256 or "none: no scenario was given"))
    if clipped:
        facts.append(("clipped updates", clipped))
    return {
        "sentences": _engine_sentences(simulation.engine),
        "facts": facts,
        "fault_rows": _fault_rows(result, simulation.faults),
    }


def _engine_sentences(engine: Mapping[str, str | int]) -> list[str]:
    if not engine:
        return ["No site trained, so no engine was chosen."]
    kernel, over = str(engine.get("kernel", "")), engine.get("over", "here")
    chunk, workers = engine.get("chunk", 1), engine.get("workers", 1)
    where = {
        "here": "in one process",
        "processes": f"in worker processes (workers: {workers})",
        "ray": f"in Ray actors (workers: {workers})",
    }.get(str(over), f"in {over}")
    size = "" if kernel == "sequential" else f" Up to {chunk} sites form a chunk."
    words = _KERNELS.get(kernel, f"The engine is {kernel!r}.")
    dtype = str(engine.get("dtype", ""))
    return [f"{words}{size} This was done {where}.", _PRECISIONS.get(dtype, f"dtype {dtype}.")]


def _fact(what: str, value: str) -> tuple[str, str]:
    """A setting of the engine and its value, in words; one of an extension as it is."""
    name = _FACTS.get(what, what.replace("_", " "))
    return name, _WHERE.get(value, value) if what == "over" else value


def _options(engine: Mapping[str, str | int]) -> str:
    """The options of ``asterion simulate`` that name this engine, so that nothing is measured."""
    named = f"--engine {engine.get('over', 'here')}:{engine.get('kernel', 'auto')}"
    others = (f"--{what} {engine[what]}" for what in ("chunk", "workers", "dtype", "device")
              if what in engine)  # fmt: skip
    return " ".join([named, *others])


def _fault_rows(result: Result, faults: tuple[InjectedFault, ...]) -> list[tuple[str, ...]]:
    """Kind, what it means, rounds, times, sites, how many reports counted all the same, which."""
    answered = {(r.round, site) for r in result.rounds for site in r.answered}
    by_kind: dict[str, list[InjectedFault]] = {}
    for fault in faults:
        by_kind.setdefault(fault.fault, []).append(fault)
    rows: list[tuple[str, ...]] = []
    for kind, struck in sorted(by_kind.items()):
        sites = sorted({fault.site for fault in struck})
        counted = sum((fault.round, fault.site) in answered for fault in struck)
        rows.append((
            kind.replace("_", " "), _FAULTS.get(kind, ""), round_span(f.round for f in struck),
            f"{len(struck):,}", f"{len(sites):,}", f"{counted:,}", name_few(sites),
        ))  # fmt: skip
    return rows
