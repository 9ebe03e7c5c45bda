"""Tensors that a site keeps for itself between rounds: batch-norm statistics, personal layers.

One file a round, so that a round that is asked again starts from the same tensors as before.
"""

from pathlib import Path

import safetensors.numpy
from torch import nn

from asterion_client.round_files import newest_before, store_round
from asterion_shared.parameters import Kept, Layout, read_kept, write_kept


def restore_kept(
    model: nn.Module, layout: Layout, folder: Path, before_round: int, initial: Kept
) -> None:
    """Put back the newest tensors stored before a round, or the initial ones without any."""
    if not layout.kept:
        return
    newest = newest_before(folder, "kept", before_round)
    kept = initial if newest is None else safetensors.numpy.load(newest.read_bytes())
    write_kept(model, layout, kept)


def store_kept(model: nn.Module, layout: Layout, folder: Path, round_: int) -> None:
    """Store the tensors as they are after a round.

    Raises:
        DiskProblemError: the folder cannot be written.
    """
    if layout.kept:
        store_round(folder, "kept", round_, safetensors.numpy.save(read_kept(model, layout)))
