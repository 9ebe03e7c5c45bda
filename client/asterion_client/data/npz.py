"""Arrays in an npz file, pickles off: ``images`` (N, ...), ``labels`` or ``masks``, by row."""

import hashlib
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from asterion_client.data.raw_image import (
    RawImage,
    UnreadableFileError,
    whole_numbers,
    with_channel,
)
from asterion_shared.errors import FileProblemError


@dataclass(frozen=True, slots=True, kw_only=True)
class NpzIndex:
    """What an npz says of its rows; a tuple is empty when the file does not have it."""

    count: int
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    splits: tuple[str, ...]


def read_index(path: Path) -> NpzIndex:
    """Labels, groups and splits of an npz.

    Raises:
        FileProblemError: not an npz, pickled inside, without ``images``, or arrays of other
            lengths.
    """
    arrays = _load(path)
    if "images" not in arrays:
        raise FileProblemError(path, "has no array 'images'", "store the images under that name")
    count = len(arrays["images"])
    for name, array in arrays.items():
        if len(array) != count:
            what = f"{name} has {len(array)} rows and images {count}"
            raise FileProblemError(path, what, "store one row for each image")
    splits = _texts(arrays, "split")
    if set(splits) - {"", "train", "test"}:
        what = f"split holds {sorted(set(splits))}"
        raise FileProblemError(path, what, "write train, test, or nothing")
    labels = _texts(arrays, "labels")
    return NpzIndex(count=count, labels=labels, groups=_texts(arrays, "group"), splits=splits)


def read_npz(path: Path, index: int, dimensions: int) -> RawImage:
    """One row of an npz.

    Raises:
        UnreadableFileError: not an npz, pickled inside, the row has other dimensions, or its
            mask is not whole numbers.
    """
    try:
        arrays = _load(path)
    except FileProblemError as error:
        raise UnreadableFileError(str(error)) from None
    image = with_channel(arrays["images"][index], dimensions, f"row {index} of {path.name}")
    mask = None
    if "masks" in arrays:
        mask = whole_numbers(arrays["masks"][index], f"mask {index} of {path.name}")
    return RawImage(image=image, spacing=(1.0,) * dimensions, mask=mask)


def row_sha256(path: Path, index: int) -> str:
    """SHA-256 of one row's image and mask; of the whole file when it cannot be read."""
    try:
        arrays = _load(path)
    except FileProblemError:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for name in ("images", "masks"):
        if name in arrays:
            digest.update(np.ascontiguousarray(arrays[name][index]).tobytes())
    return digest.hexdigest()


def _texts(arrays: dict[str, npt.NDArray[np.generic]], name: str) -> tuple[str, ...]:
    return tuple(str(value) for value in arrays[name]) if name in arrays else ()


def _load(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    return _load_version(path, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=4)
def _load_version(path: Path, mtime_ns: int) -> dict[str, npt.NDArray[np.generic]]:
    """The arrays; rows are read one by one, so the open file is kept for a while."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise FileProblemError(path, "no such file", "correct data.manifest") from None
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError) as error:
        what = f"is not an npz that can be read without pickles ({type(error).__name__})"
        raise FileProblemError(path, what, "store plain arrays with numpy.savez") from None
