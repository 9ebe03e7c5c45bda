"""Arrays in an npz file, pickles off: ``images`` (N, ...), ``labels`` or ``masks``, by row."""

import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asterion_client.data.raw_image import (
    RawImage,
    UnreadableFileError,
    whole_numbers,
    with_channel,
)

ROWS = {
    "images": "images",
    "labels": "labels",
    "masks": "masks",
    "group": "group",
    "groups": "group",
    "split": "split",
    "splits": "split",
    "consent": "consent",
}
"""Arrays of one row an image, and what they are; others are looked at by :func:`column` alone."""

_NOT_NPZ = (AttributeError, EOFError, NotImplementedError, TypeError, ValueError,
            zipfile.BadZipFile, zlib.error)  # fmt: skip

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class NpzIndex:
    """What an npz says of its rows; a tuple is empty when the file does not have it."""

    count: int
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    splits: tuple[str, ...]
    consents: tuple[str, ...]


def read_index(path: Path) -> NpzIndex:
    """Labels, groups, splits and consents of an npz; ``labels`` with the shape of masks are masks.

    Raises:
        UnreadableFileError: not an npz, pickled inside, without ``images``, or arrays of other
            lengths.
    """
    arrays = _load(path)
    return NpzIndex(
        count=len(arrays["images"]),
        labels=_texts(arrays, "labels"),
        groups=_texts(arrays, "group"),
        splits=_texts(arrays, "split"),
        consents=_texts(arrays, "consent"),
    )


def read_npz(path: Path, index: int, dimensions: int) -> RawImage:
    """One row of an npz.

    Raises:
        UnreadableFileError: as :func:`read_index`, the row has other dimensions, or its mask is
            not whole numbers.
    """
    arrays = _load(path)
    image = arrays["images"][index]
    if image.ndim == dimensions + 1 and image.shape[-1] <= 4 < image.shape[0]:
        image = np.moveaxis(image, -1, 0)  # colours come last in most pictures
    image = with_channel(image, dimensions, f"row {index} of {path.name}")
    mask = None
    if "masks" in arrays:
        mask = whole_numbers(arrays["masks"][index], f"mask {index} of {path.name}")
    return RawImage(image=image, spacing=(1.0,) * dimensions, mask=mask)


def column(path: Path, name: str) -> tuple[str, ...]:
    """Another array of an npz as one text a row; empty when there is none of one value a row.

    Raises:
        UnreadableFileError: as :func:`read_index`.
    """
    if name in ROWS:
        return ()
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = file[name] if name in file.files else np.zeros(0)
    except _NOT_NPZ as error:
        raise _not_npz(path, error) from None
    count = read_index(path).count
    return tuple(text_of(value) for value in found) if found.shape == (count,) else ()


def row_sha256(path: Path, index: int) -> str:
    """SHA-256 of one row's image and mask.

    Raises:
        UnreadableFileError: as :func:`read_index`.
    """
    return _row_sha256(path, index, path.stat().st_mtime_ns)


@lru_cache(maxsize=200_000)
def _row_sha256(path: Path, index: int, mtime_ns: int) -> str:
    arrays = _load_version(path, mtime_ns)
    digest = hashlib.sha256()
    for name in ("images", "masks"):
        if name in arrays:
            row = np.ascontiguousarray(arrays[name][index])
            digest.update(f"{name} {row.dtype.str} {row.shape} ".encode() + row.tobytes())
    return digest.hexdigest()


def _texts(arrays: Arrays, name: str) -> tuple[str, ...]:
    return tuple(text_of(value) for value in arrays[name]) if name in arrays else ()


def text_of(value: Any) -> str:
    """One value of an array as text; a whole number without a point."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _load(path: Path) -> Arrays:
    try:
        return _load_version(path, path.stat().st_mtime_ns)
    except OSError as error:
        msg = f"{path.name}: {error.strerror or type(error).__name__}"
        raise UnreadableFileError(msg) from None


def _not_npz(path: Path, error: Exception) -> UnreadableFileError:
    kind = type(error).__name__
    return UnreadableFileError(
        f"{path.name} is not an npz that can be read without pickles ({kind})"
    )


@lru_cache(maxsize=4)
def _load_version(path: Path, mtime_ns: int) -> Arrays:
    """The arrays by what they are; rows are read one by one, so they stay for a while."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files if name in ROWS}
    except _NOT_NPZ as error:
        raise _not_npz(path, error) from None
    if (
        "images" not in found
        or found["images"].ndim < 2
        or found["images"].dtype.kind not in "biuf"
    ):
        msg = f"{path.name} has no numbers 'images' of shape (N, ...); store them under that name"
        raise UnreadableFileError(msg)
    for name, array in found.items():
        if array.ndim == 0 or len(array) != len(found["images"]):
            msg = f"{path.name}: {name} has shape {array.shape}; store one row for each image"
            raise UnreadableFileError(msg)
    arrays = {ROWS[name]: array for name, array in found.items()}
    if "labels" in arrays and arrays["labels"].ndim > 2 and "masks" not in arrays:
        arrays["masks"] = arrays.pop("labels")
    elif "labels" in arrays:
        arrays["labels"] = arrays["labels"].reshape(len(arrays["labels"]), -1)
        if arrays["labels"].shape[1] != 1:
            msg = f"{path.name}: labels hold several numbers a row; store one class an image"
            raise UnreadableFileError(msg)
        arrays["labels"] = arrays["labels"][:, 0]
    return arrays
