"""The site's self-check: every problem of settings, data, disk, device and connection at once.

What it prints names files: it is for the eyes of the site, on the site's own terminal.
"""

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from asterion_client.check_connection import check_connection
from asterion_client.check_data import check_data
from asterion_client.check_machine import clock, disk, machine_problems
from asterion_client.settings import ConnectionSettings, SiteSettings
from asterion_shared.errors import Problem, SettingsError
from asterion_shared.plan import Plan
from asterion_shared.settings_files import read_toml, validate

NEEDED_FOR_DATA = ("task", "data", "data.format", "data.folder", "data.manifest")
"""Settings without which looking at the data would only confuse."""


def check_site(site_toml: Path, plan: Plan | None = None) -> list[Problem]:
    """Look at everything that could stop this site from taking part.

    Args:
        site_toml: the site's settings.
        plan: when given, the data are also read as this plan will read them.

    Returns:
        Every problem with its fix, fatal ones and warnings; empty when all is well.

    Raises:
        FileProblemError: ``site_toml`` itself cannot be read.
    """
    values, folder = read_toml(site_toml), site_toml.parent
    settings, problems = _read_what_is_right(values, str(site_toml))
    if settings is None:
        return problems
    spoilt = {problem.where for problem in problems}
    if spoilt.isdisjoint(NEEDED_FOR_DATA):
        problems += check_data(settings, folder, plan)
    problems += _check_disk(folder / settings.state_folder)
    problems += _check_device(settings.compute.device)
    problems += machine_problems(clock())
    if settings.connection is not None or "connection" not in values:
        problems += check_connection(settings.connection, settings.name, folder)
    return problems


def _read_what_is_right(
    values: dict[str, Any], source: str
) -> tuple[SiteSettings | None, list[Problem]]:
    """The settings with what is wrong left out, so that the rest can be checked in one visit.

    Returns:
        None when too little is left, and every problem of the settings.
    """
    try:
        return validate(SiteSettings, values, source), []
    except SettingsError as error:
        problems = list(error.problems)
    stand_ins = {"name": "site", "task": "segmentation", "data": {"format": "nifti"}}
    rest: dict[str, Any] = {**stand_ins, **copy.deepcopy(values)}
    for problem in problems:
        _leave_out(rest, problem.where.split("."), stand_ins)
    try:
        return validate(SiteSettings, rest, source), problems
    except SettingsError:
        return None, problems


def _leave_out(values: dict[str, Any], path: list[str], stand_ins: dict[str, Any]) -> None:
    """Remove a setting; a section that cannot do without it goes as a whole."""
    first, rest = path[0], path[1:]
    inside = values.get(first)
    needed = path == ["data", "format"] or (
        first == "connection" and bool(rest) and rest[0] in ConnectionSettings.model_fields
    )
    if rest and isinstance(inside, dict) and not needed:
        _leave_out(inside, rest, {})
    elif first in stand_ins:
        values[first] = stand_ins[first]
    else:
        values.pop(first, None)


def _check_disk(state: Path) -> Iterator[Problem]:
    home = next(p for p in (state, *state.resolve().parents) if p.exists())
    if not home.is_dir():
        yield Problem(
            where="state_folder", what=f"{home} is a file", fix="move it, or name another folder"
        )
    elif not os.access(home, os.W_OK):
        yield Problem(
            where="state_folder", what=f"{home} is not writable", fix="change its owner or folder"
        )
    yield from machine_problems(disk(state))


def _check_device(device: str) -> Iterator[Problem]:
    if not device.startswith("cuda"):
        return
    number = int(device.partition(":")[2] or 0)
    if not torch.cuda.is_available() or number >= torch.cuda.device_count():
        yield Problem(
            where="compute.device",
            what=f"{device} is asked for and torch finds {torch.cuda.device_count()} such devices",
            fix="install the driver and a torch with CUDA, or set device = 'cpu'",
        )
