"""Tensors that a site keeps for itself between rounds: batch-norm statistics, personal layers.

One file a round, so that a round that is asked again starts from the same tensors as before.
"""

from pathlib import Path

import safetensors.numpy
from torch import nn

from asterion_shared.files import write_atomically
from asterion_shared.parameters import Kept, Layout, read_kept, write_kept


def restore_kept(
    model: nn.Module, layout: Layout, folder: Path, before_round: int, initial: Kept
) -> None:
    """Put back the newest tensors stored before a round, or the initial ones without any."""
    if not layout.kept:
        return
    stored = [path for path in folder.glob("kept-*.safetensors") if _round(path) < before_round]
    newest = max(stored, key=_round, default=None)
    kept = initial if newest is None else safetensors.numpy.load(newest.read_bytes())
    write_kept(model, layout, kept)


def store_kept(model: nn.Module, layout: Layout, folder: Path, round_: int) -> None:
    """Store the tensors as they are after a round; two rounds are kept on disk.

    Raises:
        DiskProblemError: the folder cannot be written.
    """
    if not layout.kept:
        return
    folder.mkdir(parents=True, exist_ok=True)
    data = safetensors.numpy.save(read_kept(model, layout))
    write_atomically(folder / f"kept-{round_:06d}.safetensors", data)
    for path in folder.glob("kept-*.safetensors"):
        if _round(path) < round_ - 1:
            path.unlink()


def _round(path: Path) -> int:
    return int(path.stem.removeprefix("kept-"))
