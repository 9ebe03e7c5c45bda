"""Long vectors block by block, so that work on them takes the memory of a block.

A vector may be an array over a file that is mapped read-only, as the carrier hands over updates and
as a checkpoint's weights are. Its pages come into memory as they are read and would stay there;
what has been worked through is let go again, and the file still has it.
"""

import math
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK = 2**15
"""Numbers in a block: few enough that it stays in a core's cache in float64. A multiple of what
:func:`asterion_shared.privacy.gaussian_noise.add_gaussian` draws at once, so that noise added by
blocks is the noise added in one go."""

HASHED = 2**22
"""Numbers in a block that is hashed: each costs a call, and little besides."""

NEAR_BYTES = 2**20
"""The system also maps pages near the one that is read, before it too. So much before a block is
let go again with it."""

Array = npt.NDArray[Any]


def through(size: int, *arrays: Array, block: int = BLOCK) -> Iterator[slice]:
    """The blocks of vectors of ``size`` numbers, in order; none when ``size`` is 0.

    Once the caller is done with a block, the pages of those ``arrays`` that are mapped are let go.

    Args:
        size: of each vector.
        arrays: vectors ``(size,)`` that are read; whether they are mapped does not matter.
        block: numbers in a block, >= 1.
    """
    mapped = [array for array in arrays if is_mapped(array)]
    for start in range(0, size, block):
        part = slice(start, min(start + block, size))
        yield part
        for array in mapped:
            let_go(array, part)


def hash_through(update: Callable[[memoryview], None], array: Array) -> None:
    """Take the bytes of an array into a hash, block by block.

    Args:
        update: of a hash of :mod:`hashlib`.
        array: contiguous, any shape; whether it is mapped does not matter.
    """
    numbers = array.reshape(-1)
    for part in through(numbers.size, numbers, block=HASHED):
        update(numbers[part].data)


def let_go(array: Array, part: slice) -> None:
    """Let the pages of a part leave this process's memory; the file they map still has them.

    Nothing happens unless the array is a contiguous, read-only view of a mapped file: the pages of
    other memory are the only copy.

    Args:
        array: shape ``(size,)``.
        part: with a start and a stop inside the array.
    """
    if array.flags.writeable or not array.flags.c_contiguous:
        return
    mapped = mapping_of(array)
    if mapped is None:
        return
    begin = array.ctypes.data - _address(mapped)
    first = max(begin + part.start * array.itemsize - NEAR_BYTES, 0)
    first = first // mmap.PAGESIZE * mmap.PAGESIZE
    last = min(begin + part.stop * array.itemsize, len(mapped))
    if first < last:
        mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def mapping_of(array: Array) -> mmap.mmap | None:
    """The mapped file that an array shows, or None when it is ordinary memory."""
    owner: object = array
    while owner is not None and not isinstance(owner, mmap.mmap):
        owner = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
    return owner


def is_mapped(array: Array) -> bool:
    """Whether an array is a read-only view of a mapped file, so that its pages can be let go."""
    return not array.flags.writeable and mapping_of(array) is not None


def map_numbers(path: Path, size: int, dtype: type[np.generic] = np.float32) -> Array:
    """A read-only view of a file of raw numbers, shape ``(size,)``, ``size`` >= 1.

    The view keeps the numbers also when the file's name is gone.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is shorter than that.
    """
    return np.asarray(np.memmap(path, dtype, "r", shape=(size,)))


def length(vector: npt.NDArray[np.floating[Any]]) -> float:
    """Euclidean length, summed in float64; 0 for an empty vector, not finite if a number is not.

    Not by ``numpy.linalg.norm``: its BLAS wakes a thread on every core, and they keep the cores
    busy for longer than the sum takes.
    """
    parts = through(vector.size, vector)
    return math.sqrt(sum(float(np.square(vector[p], dtype=np.float64).sum()) for p in parts))


def distance(one: npt.NDArray[np.floating[Any]], other: npt.NDArray[np.floating[Any]]) -> float:
    """Euclidean distance of two vectors of one shape, formed in float64; 0 for empty ones."""
    total = 0.0
    for part in through(one.size, one, other):
        apart = one[part].astype(np.float64)
        apart -= other[part]
        total += float(np.square(apart, out=apart).sum())
    return math.sqrt(total)


def all_finite(vector: npt.NDArray[np.floating[Any]]) -> bool:
    """Whether every number is finite; True for an empty vector."""
    return all(bool(np.isfinite(vector[p]).all()) for p in through(vector.size, vector))


def _address(mapped: mmap.mmap) -> int:
    return np.frombuffer(mapped, np.uint8).ctypes.data
