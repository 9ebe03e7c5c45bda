"""Who carries out the chunks of an order: this process, worker processes, or Ray actors.

Chunks are handed to whoever is free and their results come back in the chunks' own order, so that
the fold does not depend on how many workers there are or how fast each is.
"""

import logging
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from asterion_shared.cases import SiteData
from asterion_shared.errors import EngineFailedError, MissingExtraError
from asterion_shared.parameters import layout_of
from asterion_shared.plan import Plan
from asterion_shared.tasks import initial_model
from asterion_sim.engines.chunk_runner import ChunkRunner
from asterion_sim.engines.forked_memory import Sheet, sheets

Job = tuple[str, tuple[Any, ...]]
"""A method of :class:`ChunkRunner` and what it takes after the order."""


@dataclass(frozen=True, slots=True)
class Posting:
    """What a worker is set up with.

    Attributes:
        plan: the run's plan.
        sites: the sites' cases by name.
        folder: where the sites' kept tensors are stored.
        device: ``cpu``, ``cuda`` (then each worker takes the next GPU) or ``cuda:N``.
    """

    plan: Plan
    sites: Mapping[str, SiteData]
    folder: Path
    device: str

    def runner(self, number: int) -> ChunkRunner:
        """The worker of that number."""
        device = self.device
        if device == "cuda":
            import torch

            device = f"cuda:{number % max(1, torch.cuda.device_count())}"
        return ChunkRunner(self.plan, self.sites, self.folder, device)


class Crew(Protocol):
    """One or more workers."""

    def carry_out(self, order: Any, jobs: Sequence[Job]) -> Iterator[Any]:
        """The result of each job of an order, in the order of the jobs."""
        ...

    def close(self) -> None:
        """Let the workers go."""
        ...


class Here:
    """The work is done in this process."""

    def __init__(self, posting: Posting) -> None:
        self._runner = posting.runner(0)

    def carry_out(self, order: Any, jobs: Sequence[Job]) -> Iterator[Any]:
        """See :class:`Crew`."""
        for method, values in jobs:
            yield getattr(self._runner, method)(order, *values)

    def close(self) -> None:
        """Nothing to let go of."""


class Processes:
    """Worker processes on this machine, each with one thread.

    On Linux and the CPU they are forked, so that the sites' data are there once for all of them;
    elsewhere they are spawned and get a copy.
    """

    def __init__(self, posting: Posting, workers: int) -> None:
        forks = sys.platform == "linux" and posting.device == "cpu"
        context: Any = multiprocessing.get_context("fork" if forks else "spawn")
        self._sheets: Sequence[Sheet | None] = (
            sheets(_num_weights(posting.plan), workers) if forks else [None] * workers
        )
        self._lines: list[Connection] = []
        self._processes = []
        for number, sheet in enumerate(self._sheets):
            ours, theirs = context.Pipe()
            given = (posting, number, theirs, sheet)
            process = context.Process(target=_serve, args=given, daemon=True)
            process.start()
            theirs.close()
            self._lines.append(ours)
            self._processes.append(process)

    def carry_out(self, order: Any, jobs: Sequence[Job]) -> Iterator[Any]:
        """See :class:`Crew`.

        Raises:
            EngineFailedError: a worker died, or failed with an error that is not a site's own.
        """
        by_line = dict(zip(self._lines, self._sheets, strict=True))
        for line, sheet in by_line.items():
            line.send(("order", order if sheet is None else sheet.put_order(order)))
        waiting, working = list(range(len(jobs))), dict[Connection, int]()
        for line in self._lines:
            _hand_out(line, waiting, working, jobs)
        done: dict[int, Any] = {}
        for number in range(len(jobs)):
            while number not in done:
                ready: list[Any] = wait(list(working))
                for line in ready:
                    result, sheet = _received(line), by_line[line]
                    done[working.pop(line)] = result if sheet is None else sheet.get(result)
                    _hand_out(line, waiting, working, jobs)
            yield done.pop(number)

    def close(self) -> None:
        """End the processes."""
        for line in self._lines:
            # Said aloud: a later worker was forked with this line open, so closing is not enough.
            if not line.closed:
                with suppress(OSError):
                    line.send(("stop", None))
                line.close()
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()


class RayActors:
    """Ray actors, on this machine or on a cluster's."""

    def __init__(self, posting: Posting, workers: int) -> None:
        try:
            ray: Any = import_module("ray")
        except ImportError:
            raise MissingExtraError(package="ray", extra="ray", distribution="asterion") from None
        # Nothing is reported to Ray's makers, and a worker without a GPU sees none.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._ray = ray
        self._started = not ray.is_initialized()
        if self._started:
            ray.init(
                address=None,
                num_cpus=workers,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
        given = ray.put(posting)
        actor = ray.remote(_RayWorker)
        gpus = 1 if posting.device.startswith("cuda") else 0
        options: Callable[..., Any] = actor.options
        self._actors = [options(num_cpus=1, num_gpus=gpus).remote(given, n) for n in range(workers)]

    def carry_out(self, order: Any, jobs: Sequence[Job]) -> Iterator[Any]:
        """See :class:`Crew`.

        Raises:
            EngineFailedError: an actor died or failed.
        """
        ray = self._ray
        given = ray.put(order)
        waiting, working = list(range(len(jobs))), dict[Any, tuple[int, Any]]()

        def hand_out(actor: Any) -> None:
            if waiting:
                number = waiting.pop(0)
                working[actor.do.remote(given, *jobs[number])] = (number, actor)

        for actor in self._actors:
            hand_out(actor)
        done: dict[int, Any] = {}
        for number in range(len(jobs)):
            while number not in done:
                (ready, *_), _ = ray.wait(list(working))
                place, actor = working.pop(ready)
                try:
                    done[place] = ray.get(ready)
                except ray.exceptions.RayError as error:
                    raise EngineFailedError(str(error)) from error
                hand_out(actor)
            yield done.pop(number)

    def close(self) -> None:
        """Let the actors go, and Ray too if it was started here."""
        for actor in self._actors:
            self._ray.kill(actor)
        if self._started:
            self._ray.shutdown()


class _RayWorker:
    def __init__(self, posting: Posting, number: int) -> None:
        self._runner = posting.runner(number)

    def do(self, order: Any, method: str, values: tuple[Any, ...]) -> Any:
        return getattr(self._runner, method)(order, *values)


def _num_weights(plan: Plan) -> int:
    return layout_of(initial_model(plan), plan.parameters).size


def _hand_out(
    line: Connection, waiting: list[int], working: dict[Connection, int], jobs: Sequence[Job]
) -> None:
    if waiting:
        number = waiting.pop(0)
        working[line] = number
        line.send(("job", jobs[number]))


def _received(line: Connection) -> Any:
    try:
        kind, value = line.recv()
    except (EOFError, OSError):
        msg = "a worker process died, perhaps for want of memory; use fewer with --workers"
        raise EngineFailedError(msg) from None
    if kind == "failed":
        raise EngineFailedError(value)
    return value


def _serve(posting: Posting, number: int, line: Connection, sheet: Sheet | None) -> None:
    """A worker process: takes orders and jobs until the line is closed."""
    runner = posting.runner(number)
    order = None
    while True:
        try:
            kind, value = line.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        if kind == "stop":
            return
        if kind == "order":
            order = value if sheet is None else sheet.get_order(value)
            continue
        method, values = value
        try:
            result = getattr(runner, method)(order, *values)
            line.send(("done", result if sheet is None else sheet.put(result)))
        except KeyboardInterrupt:
            return
        except Exception:  # told to the parent, which ends the run with it
            line.send(("failed", traceback.format_exc()))
