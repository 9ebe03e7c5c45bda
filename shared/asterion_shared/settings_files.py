"""Settings at the edge: TOML in, frozen validated values out, every problem named at once."""

import json
import tomllib
import types
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails

from asterion_shared.errors import FileProblemError, Problem, SettingsError

Positive = Annotated[float, Field(gt=0)]

Rule = Callable[[Any], str | None]
"""A check that joins several fields: None when they agree, else ``"what is wrong; the fix"``."""


def rule(agrees: Callable[[Any], bool], message: Callable[[Any], str]) -> Rule:
    """A rule from a condition and the words for when it does not hold."""
    return lambda settings: None if agrees(settings) else message(settings)


class Settings(BaseModel):
    """Base of every settings value: frozen, unknown keys refused, fields checked by RULES."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
    RULES: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _obey_rules(self) -> Self:
        for rule in self.RULES:
            if message := rule(self):
                raise ValueError(message)
        return self


AnySettings = TypeVar("AnySettings", bound=Settings)


class _UnknownField(Exception):  # noqa: N818  # a signal between two functions of this file
    """A rule needs a field that is itself wrong, so the rule cannot be judged."""


class _Partial:
    """The fields of a settings value that are right; touching another stops the rule."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.__dict__.update(fields)

    def __getattr__(self, name: str) -> Any:
        raise _UnknownField(name)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        FileProblemError: the file is missing, not UTF-8, or not TOML (with line and column).
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileProblemError(path, "no such file", "check the path") from None
    except OSError as error:
        reason = error.strerror or "it cannot be read"
        raise FileProblemError(path, reason, "check the path and its permissions") from None
    except UnicodeDecodeError:
        raise FileProblemError(path, "is not text in UTF-8", "save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise FileProblemError(path, f"is not TOML: {error}", "mend that line") from None


def read_versioned_json(path: Path, version: int, again: str) -> dict[str, Any]:
    """Read a JSON file that this program wrote, if it is of the version that it writes now.

    Args:
        path: the file.
        version: what its ``schema_version`` must be.
        again: what to do about a file that is broken.

    Raises:
        FileProblemError: the file is missing, not JSON, or of another schema version.
    """
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileProblemError(path, error.strerror or "unreadable", "check the path") from None
    except ValueError as error:
        raise FileProblemError(path, f"is not JSON ({error})", again) from None
    found = values.get("schema_version") if isinstance(values, dict) else None
    if found != version:
        what = f"has schema_version {found!r}; this program reads version {version}"
        raise FileProblemError(path, what, "use the version of asterion that wrote it")
    return dict(values)


def validate(model: type[AnySettings], values: dict[str, Any], source: str) -> AnySettings:
    """Turn plain values into a settings value.

    Raises:
        SettingsError: lists every unknown key, wrong type, value out of range and contradiction.
    """
    problems: list[Problem] = []
    _examine(model, values, "", problems)
    if problems:
        raise SettingsError(source, problems)
    return model.model_validate(values)


def _examine(
    model: type[Settings], values: object, path: str, problems: list[Problem]
) -> _Partial | None:
    """Append every problem of ``values``; return what is right, for the rules one level up."""
    if not isinstance(values, dict):
        problems.append(Problem(where=path, what=f"got {values!r}", fix="must be a section"))
        return None
    fields: dict[str, Any] = {}
    known = set(model.model_fields)
    for key in sorted(set(values) - known):
        problems.append(
            Problem(
                where=f"{path}{key}",
                what="unknown key",
                fix=f"remove it; known here: {', '.join(sorted(known))}",
            )
        )
    for name in model.model_fields:
        for value in _examine_field(model, values, name, path, problems):
            fields[name] = value
    partial = _Partial(fields)
    for rule in model.RULES:
        try:
            message = rule(partial)
        except _UnknownField:
            continue
        if message:
            what, _, fix = message.partition("; ")
            where = path.rstrip(".") or "(whole file)"
            problems.append(Problem(where=where, what=what, fix=fix))
    return partial


def _examine_field(
    model: type[Settings], values: dict[str, Any], name: str, path: str, problems: list[Problem]
) -> Iterator[Any]:
    """Yield the field's value if it is right, nothing otherwise."""
    field = model.model_fields[name]
    if name not in values:
        if field.is_required():
            problems.append(Problem(where=f"{path}{name}", what="is missing", fix="add it"))
        else:
            yield field.get_default(call_default_factory=True, validated_data={})
        return
    section = _section(field.annotation)
    absent = values[name] is None and type(None) in get_args(field.annotation)
    if section is not None and not absent:
        partial = _examine(section, values[name], f"{path}{name}.", problems)
        if partial is not None:
            yield partial
        return
    try:
        yield _adapter(model, name).validate_python(values[name])
    except ValidationError as error:
        problems.extend(_problem(f"{path}{name}", detail) for detail in error.errors())


@cache
def _adapter(model: type[Settings], name: str) -> TypeAdapter[Any]:
    """Of one field; made once, as a site reads a plan with every order."""
    field = model.model_fields[name]
    annotation: Any = Annotated[(field.annotation, *field.metadata, field)]
    return TypeAdapter(annotation)


def _section(annotation: object) -> type[Settings] | None:
    """The settings class behind ``X`` or ``X | None``; None for others, and for several."""
    options = get_args(annotation) if get_origin(annotation) is types.UnionType else (annotation,)
    sections = [o for o in options if isinstance(o, type) and issubclass(o, Settings)]
    return sections[0] if len(sections) == 1 else None


def _problem(field: str, detail: ErrorDetails) -> Problem:
    where = ".".join([field, *(str(part) for part in detail["loc"])])
    shown = repr(detail["input"])
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    allowed = _allowed(detail["type"], detail["msg"], detail.get("ctx", {}))
    return Problem(where=where, what=f"got {shown}", fix=allowed)


def _allowed(kind: str, message: str, context: dict[str, Any]) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [f"{sign} {context[key]}" for key, sign in signs.items() if key in context]
    if bounds:
        return f"must be {' and '.join(bounds)}"
    if kind == "literal_error":
        return f"must be {context['expected']}"
    return message[0].lower() + message[1:]
