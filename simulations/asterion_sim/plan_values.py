"""A plan with some of its values changed: what brackets and sweeps vary, and how it is written."""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from asterion_shared.errors import Problem, SettingsError, UserInputError
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate

_PATH = re.compile(r"[a-z_]+(\.[a-z_]+)*")
_NOT_IN_A_FOLDER_NAME = re.compile(r"[^A-Za-z0-9=._+-]+")

Values = Mapping[str, object]
"""Values by dotted path, such as ``{"local.learning_rate": 0.01}``."""


def parse_value(text: str) -> object:
    """A value as TOML writes it; a bare word is a text.

    >>> parse_value("0.1"), parse_value("true"), parse_value("fedprox"), parse_value("[1, 2]")
    (0.1, True, 'fedprox', [1, 2])
    """
    try:
        return tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def parse_assignment(text: str) -> tuple[str, str]:
    """``path=value`` in its two parts.

    Raises:
        UserInputError: it is not of that form.
    """
    path, sign, value = text.partition("=")
    if not sign or not value.strip() or not _PATH.fullmatch(path.strip()):
        msg = f"{text!r} is not PATH=VALUE; write for example local.learning_rate=0.01"
        raise UserInputError(msg)
    return path.strip(), value.strip()


def split_values(text: str) -> list[str]:
    """The parts of a text between commas; commas inside brackets do not count.

    >>> split_values("0,0.1"), split_values("[8, 16],[16, 32]")
    (['0', '0.1'], ['[8, 16]', '[16, 32]'])
    """
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def changed(plan: Plan, values: Values, source: str) -> Plan:
    """The plan with some values replaced, checked by the plan's own rules.

    Args:
        plan: what is not replaced.
        values: by dotted path.
        source: named in the error.

    Raises:
        SettingsError: lists every unknown path, value out of range and contradiction.
    """
    return validate(Plan, _replaced(plan.model_dump(mode="json"), values), source)


def combinations(vary: Iterable[str]) -> list[dict[str, object]]:
    """Every combination of what ``PATH=VALUE,VALUE,...`` lists, the last varying fastest.

    Raises:
        UserInputError: a text is not of that form, or a path stands in two of them.
    """
    axes: dict[str, list[object]] = {}
    for text in vary:
        path, listed = parse_assignment(text)
        if path in axes:
            msg = f"{path} is varied twice; list all its values in one --vary"
            raise UserInputError(msg)
        axes[path] = [parse_value(part) for part in split_values(listed)]
    return [dict(zip(axes, chosen, strict=True)) for chosen in product(*axes.values())]


def changed_plans(plan: Plan, every: Sequence[Values], source: str) -> list[Plan]:
    """:func:`changed` for each, with the problems of all of them in one error.

    Raises:
        SettingsError: each different problem once.
    """
    plans: list[Plan] = []
    problems: dict[str, Problem] = {}
    for values in every:
        try:
            plans.append(changed(plan, values, source))
        except SettingsError as error:
            problems |= {str(problem): problem for problem in error.problems}
    if problems:
        raise SettingsError(source, problems.values())
    return plans


def folder_name(text: str) -> str:
    """A text as the name of a folder.

    >>> folder_name("fedprox:mu=0.01,local.amount=20")
    'fedprox_mu=0.01_local.amount=20'
    """
    return _NOT_IN_A_FOLDER_NAME.sub("_", text).strip("_.")


def _replaced(tree: Mapping[str, Any], values: Values) -> dict[str, Any]:
    result = dict(tree)
    for path, value in values.items():
        *sections, last = path.split(".")
        place = result
        for section in sections:
            inner = place.get(section)
            # A path through something that is no section is for the plan's own check to name.
            place[section] = dict(inner) if isinstance(inner, Mapping) else {}
            place = place[section]
        place[last] = value
    return result
