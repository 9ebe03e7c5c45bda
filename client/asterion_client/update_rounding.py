"""A site's update in the form that the plan's ``[transport]`` asks for.

What rounding lost is kept at the site and added to its update of the next round that it is asked
for. It counts only once the update that it belongs to was charged: until then it lies under another
name. So where updates are noised, what is kept is made of noised and charged updates alone, and so
is what leaves later.
"""

from dataclasses import replace
from pathlib import Path

import safetensors.numpy

from asterion_client.round_files import move_round, newest_before, store_round
from asterion_shared.errors import FileProblemError, OrderRefusedError
from asterion_shared.messages import Order, Report
from asterion_shared.parameters import Vector
from asterion_shared.update_codec import decode, encode

RESIDUAL = "residual"
"""Name of the tensor, and of its files."""

UNCHARGED = "uncharged-residual"
"""Name of the file until the update is charged."""


def rounded(order: Order, report: Report, folder: Path) -> tuple[Report, Vector | None]:
    """Round the update of a report as the plan says.

    Args:
        order: what the report answers.
        report: of the site's work, its update clipped and noised where the plan wants that.
        folder: where the site keeps what lasts from round to round.

    Returns:
        The report with the codes, and with what they stand for as its update; and the residual to
        store with :func:`store_residual`. Report and None where there is
        nothing to round; None as residual without error feedback.

    Raises:
        OrderRefusedError: ``diverged``: update and residual are together not finite.
        FileProblemError: the stored residual is not one of this network.
    """
    transport = order.plan.transport
    if transport.update == "float32" or report.update is None:
        return report, None
    size, feedback = report.update.size, transport.error_feedback
    try:
        # Nothing holds the old residual once it is used: it is as large as the model.
        encoded, lost = encode(
            report.update,
            transport.update,
            _restore_residual(folder, order.round, size) if feedback else None,
        )
    except ValueError as error:
        msg = f"the update of round {order.round} cannot be rounded: {error}"
        raise OrderRefusedError(msg, code="diverged") from None
    report = replace(report, update=decode(encoded), encoded=encoded)
    return report, lost if feedback else None


def store_residual(folder: Path, round_: int, residual: Vector | None) -> None:
    """Store what rounding lost in a round, before the report is; nothing for None.

    Raises:
        DiskProblemError: the folder cannot be written.
    """
    if residual is not None:
        store_round(folder, UNCHARGED, round_, safetensors.numpy.save({RESIDUAL: residual}))


def keep_residual(folder: Path, round_: int) -> None:
    """Make the residual of a round count, as its update is charged; nothing where none is stored.

    Raises:
        DiskProblemError: the folder cannot be written.
    """
    move_round(folder, UNCHARGED, RESIDUAL, round_)


def _restore_residual(folder: Path, before_round: int, size: int) -> Vector | None:
    """What the last round before lost, float32, shape (size,); None without one."""
    path = newest_before(folder, RESIDUAL, before_round)
    if path is None:
        return None
    try:
        residual: Vector = safetensors.numpy.load(path.read_bytes())[RESIDUAL]
    except (safetensors.SafetensorError, KeyError) as error:
        fix = "remove the file: the next round then starts without it"
        raise FileProblemError(path, "is no stored residual", fix) from error
    if residual.shape != (size,):
        what = f"has {residual.size} numbers and the network {size}"
        fix = "remove the file: it belongs to another plan under the same name"
        raise FileProblemError(path, what, fix)
    return residual
