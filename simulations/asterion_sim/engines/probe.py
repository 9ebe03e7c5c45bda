"""The choice of an engine by measuring it on the run's own sites."""

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from asterion_client.local_round import make_workspace, work
from asterion_shared.cases import SiteData
from asterion_shared.errors import DataProblemError, OrderRefusedError, PlanMismatchError
from asterion_shared.messages import Order
from asterion_shared.plan import Plan
from asterion_sim.engines.choice import DTYPES, Carrier, Engine, EngineWish, KernelName
from asterion_sim.engines.chunk_runner import BATCHED
from asterion_sim.engines.products import fast_products
from asterion_sim.engines.shared_base import largest_rows_worth
from asterion_sim.engines.step_batches import num_steps

CHUNKS: Mapping[KernelName, tuple[int, ...]] = {
    "sequential": (4,),
    "shared-base": (8, 24, 64),
    "vectorised": (4, 16, 64),
}
"""Sites that train together: what is tried of each kernel, in this order."""

_TIMED_STEPS = 2
_HOPELESS = 1.3
"""Times the best, above which a kernel's larger chunks are not tried."""

_MOST_SECONDS = 0.75
"""To spend on measuring one chunk."""

_WORTH_ENLARGING = 0.95
"""Share of a smaller chunk's time that a larger one must come down to, to try one larger yet."""

_WORTH_SPREADING = 0.8
"""Share of the time in one process that several must come down to."""

_SHORT_ROUND_SECONDS = 0.2
"""Below it, waking several processes costs more than they save."""

_BYTES_A_SECOND = 1e9
"""At which a partial fold goes from a worker to its parent."""


def decide(
    wish: EngineWish,
    plan: Plan,
    sites: Sequence[SiteData],
    order: Order,
    num_sites: int | None = None,
) -> Engine:
    """The fastest engine among those that were asked for.

    Args:
        wish: what is left open is measured, by a few steps of each kernel on the first sites.
        plan: the run's plan.
        sites: the sites of the first training round; at least one.
        order: its order.
        num_sites: of a usual round, from which the sizes of chunks follow and not from how many
            were missing in this one; None: as many as ``sites``.

    Raises:
        PlanMismatchError: the kernel that was asked for cannot run the plan.
    """
    usable = [site for site in sites if _has_work(plan, site)]
    if not usable:  # every site will refuse: nothing to measure, nothing to speed up
        return _engine(wish, wish.kernel or "sequential", wish.chunk or 1, "here")
    num_sites = num_sites or len(usable)
    seconds: dict[Engine, float] = {}
    for kernel in _kernels(wish):
        for chunk in _chunks(wish, kernel, num_sites):
            engine = _engine(wish, kernel, chunk, "here")
            if _hopeless(engine, seconds) or _too_long(engine, seconds):
                break
            try:
                seconds[engine] = _seconds_a_step(engine, plan, usable, order)
            except PlanMismatchError:
                if wish.kernel is not None:
                    raise
                break
    steps = sum(num_steps(plan, site.train) for site in usable) / len(usable) * num_sites
    rounds = {
        candidate: found
        for engine, step in seconds.items()
        for candidate, found in _round_seconds(wish, engine, step * steps, num_sites, order)
    }
    return min(rounds, key=lambda engine: rounds[engine])


def _kernels(wish: EngineWish) -> Sequence[KernelName]:
    if wish.kernel is not None:
        return (wish.kernel,)
    return [name for name in CHUNKS if name != "sequential" or wish.dtype == "f32"]


def _chunks(wish: EngineWish, kernel: KernelName, num_sites: int) -> Sequence[int]:
    """Numbers of sites to try, such that a round's chunks are of one size and suit the workers."""
    if wish.chunk is not None:
        return (wish.chunk,)
    found = set()
    for wanted in CHUNKS[kernel]:
        workers = wish.most_workers if num_sites > wanted else 1
        num_chunks = max(1, round(num_sites / wanted / workers)) * workers
        found.add(math.ceil(num_sites / num_chunks))
    return sorted(found)


def _hopeless(engine: Engine, seconds: Mapping[Engine, float]) -> bool:
    """Whether smaller chunks say that a larger one of the same kernel will not win.

    They were far from the best, or the larger of two was no faster than the smaller.
    """
    own = [s for other, s in seconds.items() if other.kernel == engine.kernel]
    if len(own) > 1 and own[-1] > _WORTH_ENLARGING * own[-2]:
        return True
    return bool(own) and min(own) > _HOPELESS * min(seconds.values())


def _too_long(engine: Engine, seconds: Mapping[Engine, float]) -> bool:
    """Whether only to measure a larger chunk would take longer than a person notices."""
    own = [s for other, s in seconds.items() if other.kernel == engine.kernel]
    return bool(own) and own[-1] * engine.chunk * 2 * _TIMED_STEPS > _MOST_SECONDS


def _engine(wish: EngineWish, kernel: KernelName, chunk: int, over: Carrier) -> Engine:
    return Engine(
        kernel=kernel,
        chunk=chunk,
        over=over,
        workers=1 if over == "here" else wish.most_workers,
        dtype=wish.dtype,
        device=wish.device,
    )


def _seconds_a_step(engine: Engine, plan: Plan, sites: Sequence[SiteData], order: Order) -> float:
    """Seconds of one optimiser step of one site; infinite where theory says it cannot win.

    Raises:
        PlanMismatchError: the kernel cannot run the plan.
    """
    steps = num_steps(plan, sites[0].train)
    if engine.kernel == "shared-base":
        most = largest_rows_worth(plan)
        if steps * plan.local.batch_size > most:
            return math.inf
    chunk = sites[: engine.chunk if engine.kernel != "sequential" else 1]
    device = "cuda:0" if engine.device == "cuda" else engine.device
    with fast_products(device if engine.kernel != "sequential" else ""):
        count = min(_TIMED_STEPS, steps)
        local = plan.local.model_copy(update={"unit": "steps", "amount": count})
        short = plan.model_copy(update={"local": local})
        train = _trainer(engine, short, chunk, device)
        trial = replace(order, plan=short, evaluate=False)
        train(trial)  # reads the data and makes the kernels
        started = _now(device)
        train(trial)
        return (_now(device) - started) / (count * len(chunk))


def _trainer(
    engine: Engine, plan: Plan, chunk: Sequence[SiteData], device: str
) -> Callable[[Order], object]:
    if engine.kernel != "sequential":
        kernel = BATCHED[engine.kernel](plan, device, DTYPES[engine.dtype])
        return lambda order: kernel.train(order, chunk)
    space = make_workspace(plan, device)

    def one(order: Order) -> None:
        with tempfile.TemporaryDirectory() as kept:
            try:
                work(order, chunk[0], space, Path(kept))
            except OrderRefusedError:  # diverged: the run itself will say so
                return

    return one


def _now(device: str) -> float:
    """Processor time, which a busy machine does not disturb; of a GPU, the wall's."""
    if device == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize(device)
    return time.perf_counter()


def _round_seconds(
    wish: EngineWish, engine: Engine, here: float, num_sites: int, order: Order
) -> Iterator[tuple[Engine, float]]:
    """The engine over each carrier that may be used, with the seconds of a round.

    Args:
        wish: says which carriers; Ray only when it is asked for.
        engine: a kernel and its chunk.
        here: seconds of a round in one process.
        num_sites: sites of a round.
        order: of the length of its weights.
    """
    spread = here
    if wish.most_workers > 1:
        num_chunks = math.ceil(num_sites / engine.chunk)
        share = math.ceil(num_chunks / wish.most_workers) / num_chunks
        num_weights = 0 if order.weights is None else len(order.weights)
        carried = 8 * num_weights * (num_chunks + wish.most_workers) / _BYTES_A_SECOND
        spread = here * share + carried
    if wish.over is not None:
        yield _engine(wish, engine.kernel, engine.chunk, wish.over), spread
        return
    yield engine, here
    if here > _SHORT_ROUND_SECONDS and spread < _WORTH_SPREADING * here:
        yield _engine(wish, engine.kernel, engine.chunk, "processes"), spread


def _has_work(plan: Plan, site: SiteData) -> bool:
    try:
        return num_steps(plan, site.train) > 0
    except DataProblemError:
        return False
