"""Change single settings of ``coordinator.toml`` and leave the rest as a person wrote it."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asterion_server.database_urls import has_password
from asterion_shared.errors import FileProblemError
from asterion_shared.files import write_atomically
from asterion_shared.key_files import write_private

HEAD = "# Made by asterion server init; yours to edit, but for hosts and sites.\n"
Value = str | int | tuple[str, ...]


def set_values(path: Path, values: Mapping[str, Value]) -> None:
    """Set top-level keys; comments, order and all other settings stay.

    Args:
        path: the file; made when it is missing.
        values: by key; each replaces the one that is there, or is added above the first section.

    Raises:
        FileProblemError: the file is not TOML, or is written in a way that this cannot change.
        DiskProblemError: it cannot be written.
    """
    before = path.read_text(encoding="utf-8") if path.exists() else HEAD
    try:
        expected = tomllib.loads(before)
    except tomllib.TOMLDecodeError as error:
        raise FileProblemError(path, f"is not TOML: {error}", "mend that line") from None
    text = before
    for key, value in values.items():
        text = _with(text, key, f"{key} = {_toml(value)}")
        expected[key] = list(value) if isinstance(value, tuple) else value
    if _read(text) != expected:
        keys = ", ".join(values)
        fix = "write one setting a line, its name without quotes"
        raise FileProblemError(path, f"{keys} cannot be set in it", fix)
    if text == before and path.exists():
        return
    write = write_private if has_password(expected.get("database")) else write_atomically
    write(path, text.encode())


def _read(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


def _with(text: str, key: str, line: str) -> str:
    lines = text.splitlines()
    sections = (i for i, found in enumerate(lines) if found.lstrip().startswith("["))
    first = next(sections, len(lines))
    for begin, found in enumerate(lines[:first]):
        if found.partition("=")[0].strip() == key:
            end = _end(lines, begin)
            return "\n".join([*lines[:begin], line, *lines[end:]]) + "\n"
    while first and not lines[first - 1].strip():
        first -= 1
    return "\n".join([*lines[:first], line, *lines[first:]]) + "\n"


def _end(lines: list[str], begin: int) -> int:
    """One past the last line of the setting that begins on a line; an array may be on several."""
    for end in range(begin + 1, len(lines) + 1):
        try:
            tomllib.loads("\n".join(lines[begin:end]))
        except tomllib.TOMLDecodeError:
            continue
        return end
    return begin + 1


def _toml(value: Value) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(json.dumps(item, ensure_ascii=False) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)
