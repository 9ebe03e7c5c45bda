"""A run's numbers as TensorBoard reads them."""

from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path

from asterion_shared.errors import DiskProblemError, MissingExtraError, UserInputError
from asterion_shared.plan import Plan
from asterion_shared.plan_file import plan_to_toml
from asterion_shared.reports.run_numbers import Begun, Told, final_numbers, numbers_of
from asterion_shared.result import Result


def write_tensorboard(told: Iterable[Told], folder: Path, plan: Plan | None) -> int:
    """Write a run's rounds as scalars; the step is the round.

    Args:
        told: the run, from ``run_numbers``; each round is on the disk when the next is taken.
        folder: of this run alone. Point TensorBoard at the folder above to see several runs.
        plan: kept as text beside the scalars; None where it is not known.

    Returns:
        How many rounds were written.

    Raises:
        UserInputError: the folder holds an export already, whose points would come twice.
        MissingExtraError: the package ``tensorboard`` is not installed.
        DiskProblemError: the folder is not writable.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError(
            package="tensorboard", extra="tensorboard", distribution="asterion"
        ) from None
    if any(folder.glob("events.out.tfevents.*")):
        msg = f"{folder} holds an export already; remove it, or name another --tensorboard folder"
        raise UserInputError(msg)
    coming = iter(told)
    first = list(islice(coming, 1))  # before a file is made: a folder that is no run leaves none
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writer = SummaryWriter(str(folder))
    except OSError as error:
        raise DiskProblemError(folder, error.strerror or type(error).__name__) from error
    count, begun = 0, None
    with writer:
        for one in chain(first, coming):
            if isinstance(one, Begun):
                if begun is None and plan is not None:
                    writer.add_text("plan", _as_code(plan_to_toml(plan)))
                begun = one
            elif isinstance(one, Result):
                last = max((r.round for r in one.rounds), default=0)
                for name, value in final_numbers(one).items():
                    writer.add_scalar(name, value, last)
                writer.add_text("headline", one.headline, last)
            elif begun is not None:
                for name, value in numbers_of(one, begun.task).items():
                    writer.add_scalar(name, value, one.round)
                count += 1
            writer.flush()
    return count


def _as_code(text: str) -> str:
    """As Markdown that is shown as it is."""
    return "".join(f"    {line}\n" for line in text.splitlines())
