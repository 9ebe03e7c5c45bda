"""What every preparer writes: a folder a site would have, with its ``site.toml``."""

import csv
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from asterion_shared.errors import FileProblemError
from asterion_shared.files import write_atomically


def source_file(data: Path, name: str) -> Path:
    """A file of the folder of data sets.

    Args:
        data: the folder that holds one folder a data set.
        name: path below it, such as ``heart-4-hospitals/heart.csv``.

    Raises:
        FileProblemError: it is not there.
    """
    path = data / name
    if not path.exists():
        fix = "give the folder of the data sets with --data or ASTERION_DATA"
        raise FileProblemError(path, "no such file", fix)
    return path


def write_site(folder: Path, *, name: str, task: str, data: Mapping[str, object]) -> Path:
    """Write ``site.toml`` into a site's folder and return the folder.

    Args:
        folder: the site's folder; made when absent.
        name: the site's name.
        task: what its data are labelled for.
        data: the keys of its ``[data]`` section: texts, numbers, or dictionaries of texts.
    """
    plain = {key: value for key, value in data.items() if not isinstance(value, Mapping)}
    tables = {key: value for key, value in data.items() if isinstance(value, Mapping)}
    lines = [f"name = {_toml(name)}", f"task = {_toml(task)}", "", "[data]"]
    lines += [f"{key} = {_toml(value)}" for key, value in plain.items()]
    for key, table in tables.items():
        lines += ["", f"[data.{key}]"]
        lines += [f"{_toml(theirs)} = {_toml(ours)}" for theirs, ours in table.items()]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "site.toml", ("\n".join(lines) + "\n").encode())
    return folder


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV with a header line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Write an npz; equal arrays give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # the stub takes Any or bool


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's contents; not its mode, which may be read-only."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def read_arrays(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Every array of an npz, pickles off."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _toml(value: object) -> str:
    """A text, number or truth value; JSON and TOML write these alike."""
    return json.dumps(value, ensure_ascii=False)
