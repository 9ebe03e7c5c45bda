"""The registry of released models: ``releases/registry.jsonl`` in the coordinator's folder.

Lines are only ever added: that a version was released, promoted, or rolled back from.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from asterion_shared.errors import DiskProblemError, FileProblemError, SettingsError, UserInputError
from asterion_shared.files import append_lines, make_folder
from asterion_shared.plan import Name, Sha256
from asterion_shared.release.facts import Maturity
from asterion_shared.result import Count, Measure, UtcTime
from asterion_shared.settings_files import Settings, validate

FILE = "registry.jsonl"
Version = Annotated[int, Field(ge=1)]


class Released(Settings):
    """A version was made."""

    event: Literal["released"] = "released"
    at: UtcTime
    name: Name
    version: Version
    path: str
    """Of the release's folder; a relative one is below the registry's own."""

    release_sha256: Sha256
    """Of ``release.json``, which has the hash of everything else."""

    run: Name
    plan_sha256: Sha256
    model_sha256: Sha256
    parent: Sha256 | Literal[""] = ""
    rounds: Count
    sites: Count
    maturity: Maturity
    held_back: tuple[str, ...] = ()
    metric: str
    """Name of the headline metric."""

    value: Measure
    worst_site: Measure
    calibration_error: Measure


class MadeCurrent(Settings):
    """A version is the one in use from now on: promoted, or again after a roll-back."""

    event: Literal["promoted", "rolled_back"]
    at: UtcTime
    name: Name
    version: Version


@dataclass(frozen=True, slots=True)
class Model:
    """A released model and its versions.

    Attributes:
        name: of the model.
        versions: by number.
        in_use: versions that were promoted and not rolled back from, the current one last.
    """

    name: str
    versions: dict[int, Released]
    in_use: tuple[int, ...]

    @property
    def current(self) -> int | None:
        """The version in use; None before the first promotion."""
        return self.in_use[-1] if self.in_use else None

    def version(self, number: int) -> Released:
        """A version.

        Raises:
            UserInputError: there is none of that number.
        """
        found = self.versions.get(number)
        if found is None:
            known = ", ".join(str(v) for v in sorted(self.versions))
            msg = f"model {self.name} has no version {number}; it has {known}"
            raise UserInputError(msg)
        return found


@dataclass(frozen=True, slots=True)
class Registry:
    """Where a coordinator's releases are registered.

    Attributes:
        folder: made on first use.
    """

    folder: Path

    def models(self) -> dict[str, Model]:
        """Every model by name, sorted; empty before the first release.

        Raises:
            FileProblemError: the file cannot be read, or a line is none of a registry.
        """
        versions: dict[str, dict[int, Released]] = {}
        in_use: dict[str, list[int]] = {}
        for line in self._lines():
            known, used = versions.setdefault(line.name, {}), in_use.setdefault(line.name, [])
            if isinstance(line, Released):
                known[line.version] = line
            elif line.event == "promoted":
                used.append(line.version)
            else:
                used.pop()
        return {n: Model(n, versions[n], tuple(in_use[n])) for n in sorted(versions)}

    def model(self, name: str) -> Model:
        """A model.

        Raises:
            UserInputError: nothing was released under that name.
            FileProblemError: as :meth:`models`.
        """
        models = self.models()
        if name not in models:
            msg = f"no model {name!r} was released; there is {', '.join(models) or 'none yet'}"
            raise UserInputError(msg)
        return models[name]

    def folder_of(self, released: Released) -> Path:
        """Where a version lies."""
        return self.folder / released.path

    def next_version(self, name: str) -> int:
        """1 more than the last version of a model, also of one whose release was not finished."""
        model = self.models().get(name)
        there = [int(p.name) for p in (self.folder / name).glob("*") if p.name.isdecimal()]
        return 1 + max([*(model.versions if model else ()), *there], default=0)

    def add(self, line: Released | MadeCurrent) -> None:
        """Add a line; it is on the disk on return. The caller holds :meth:`locked`.

        Raises:
            DiskProblemError: the disk is full or not writable.
        """
        append_lines(self.folder / FILE, [line.model_dump_json()])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the one process that changes the registry.

        Raises:
            DiskProblemError: the folder cannot be made or written.
        """
        try:
            make_folder(self.folder)
            lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise DiskProblemError(self.folder, error.strerror or "open failed") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _lines(self) -> Iterator[Released | MadeCurrent]:
        path = self.folder / FILE
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError):
            fix = "put it back from a backup"
            raise FileProblemError(path, "cannot be read", fix) from None
        for number, line in enumerate(text.splitlines(), 1):
            try:
                values: Any = json.loads(line)
            except ValueError:
                continue  # torn by a crash before it counted
            where = f"{path} line {number}"
            try:
                if _is_release(values):
                    yield validate(Released, values, where)
                else:
                    yield validate(MadeCurrent, values, where)
            except SettingsError as error:
                what = f"line {number} is none of a registry: {error.problems[0]}"
                raise FileProblemError(path, what, "put it back from a backup") from None


def _is_release(values: object) -> bool:
    return isinstance(values, dict) and values.get("event") == "released"
