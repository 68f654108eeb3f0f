"""From a TOML file to a frozen, typed object, with errors that a person can act on.

Configuration stops at this border: everything behind it takes plain keyword arguments.
"""

import difflib
import tomllib
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema

from fedprofile.common.errors import ConfigError


def _strict_numbers(schema: Any) -> None:
    """Make every number of a core schema strict; pydantic has no setting for numbers alone."""
    if isinstance(schema, dict):
        if schema.get("type") in ("int", "float"):
            schema["strict"] = True
        for inner in schema.values():
            _strict_numbers(inner)
    elif isinstance(schema, list | tuple):
        for inner in schema:
            _strict_numbers(inner)


class Frozen(BaseModel):
    """Base of every configuration object: immutable, unknown keys refused, no silent type juggling of numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """As pydantic makes it, but numbers are numbers and never text; whole ones may stand for others."""
        schema = handler(source)
        _strict_numbers(schema)
        return schema


Model = TypeVar("Model", bound=Frozen)


def load_toml(path: Path, model: type[Model]) -> Model:
    """Read and validate one TOML file.

    Args:
        path: The file.
        model: The type to build.

    Returns:
        The validated object.

    Raises:
        ConfigError: The file is missing, is not TOML, or does not fit `model`; one sentence per problem, unknown
            keys with the nearest known name.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a TOML file.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text; save it as UTF-8.") from error
    return parse_toml(text, model, str(path))


def parse_toml(text: str, model: type[Model], name: str) -> Model:
    """Validate TOML text; see `load_toml`.

    Args:
        text: The TOML document.
        model: The type to build.
        name: What to call the document in errors.

    Returns:
        The validated object.

    Raises:
        ConfigError: As for `load_toml`.
    """
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{name}: is not valid TOML: {error}.") from error
    return validate(data, model, name)


def validate(data: Any, model: type[Model], name: str) -> Model:
    """Build `model` from plain data; see `load_toml`.

    Args:
        data: What a TOML or JSON parser returned.
        model: The type to build.
        name: What to call the document in errors.

    Returns:
        The validated object.

    Raises:
        ConfigError: As for `load_toml`.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = [_sentence(model, dict(problem)) for problem in error.errors()]
        raise ConfigError(f"{name}: " + " ".join(problems)) from None


def _sentence(model: type[Frozen], problem: dict[str, Any]) -> str:
    location = tuple(problem["loc"])
    place = ".".join(str(part) for part in location) or "the document"
    if problem["type"] == "extra_forbidden":
        known = _known_names(model, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known names: {', '.join(sorted(known))}."
        return f"unknown key '{place}'; {hint}"
    if problem["type"] == "union_tag_not_found":
        return f"'{place}.kind' is missing; add it."
    if problem["type"] == "missing":
        return f"'{place}' is missing; add it."
    message = str(problem["msg"]).removeprefix("Value error, ")
    found = problem.get("input")
    shown = f" (found {found!r})" if isinstance(found, str | int | float | bool) and location else ""
    return f"'{place}': {message}{shown}."


def _known_names(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """The keys of the table at `location`, found by walking the fields' annotations."""
    current: list[type[BaseModel]] = [model]
    for part in location:
        if isinstance(part, int):
            continue
        following: list[type[BaseModel]] = []
        for candidate in current:
            field = candidate.model_fields.get(str(part))
            if field is not None:
                following.extend(_models_in(field.annotation))
        # A discriminated union adds its tag to the location; it names no field, but which of the candidates it is.
        current = following or [one for one in current if part in _tags(one)] or current
    return [name for candidate in current for name in candidate.model_fields]


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    """The kinds of a discriminated union's member."""
    field = model.model_fields.get("kind")
    return () if field is None else get_args(field.annotation)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _models_in(part)]
