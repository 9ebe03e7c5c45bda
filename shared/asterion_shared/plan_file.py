"""A plan as a TOML file that explains itself: every setting, its meaning above it."""

import json
import textwrap
from typing import Any

from pydantic.fields import FieldInfo

from asterion_shared.plan import Plan
from asterion_shared.settings_files import Settings


def plan_to_toml(plan: Plan) -> str:
    """Write a plan as commented TOML; reading it back gives an equal plan.

    A setting without a value is written as a comment.
    """
    return settings_to_toml(plan)


def settings_to_toml(settings: Settings) -> str:
    """Write any settings as commented TOML, as :func:`plan_to_toml` does."""
    return "\n".join(_section(settings, "")).rstrip("\n") + "\n"


def _section(settings: Settings, path: str) -> list[str]:
    lines: list[str] = []
    later: list[str] = []
    if path:
        lines += ["", f"[{path}]"]
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Settings):
            later += _section(value, f"{path}.{name}".lstrip("."))
        elif isinstance(value, dict):
            later += _table(value, f"{path}.{name}".lstrip("."), field)
        else:
            lines += [*_comment(field), f"{name} = {_value(value)}" if value is not None
                      else f"# {name} is not set"]  # fmt: skip
    return lines + later


def _table(values: dict[str, Any], path: str, field: FieldInfo) -> list[str]:
    rows = [f"{json.dumps(key)} = {_value(value)}" for key, value in values.items()]
    return ["", *_comment(field), f"[{path}]", *rows]


def _comment(field: FieldInfo) -> list[str]:
    text = " ".join((field.description or "").split()).replace("``", "'")
    return [f"# {line}" for line in textwrap.wrap(text, 94)]


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)
