"""From a request's JSON to examples: one strict schema of the tenant's own columns, for every way of asking.

What is wrong is said by field and expectation. Neither a value nor a key that nobody asked for is repeated: both can
be somebody's data.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, create_model
from pydantic_core import PydanticCustomError

from fedprofile.client.given import GivenError, GivenRows, Wrong
from fedprofile.client.serving.federation import Federation
from fedprofile.common.interactions import Example

_STRICT = ConfigDict(extra="forbid", hide_input_in_errors=True)


class RequestReader:
    """Reads requests for some federations, each of which is given what it asks for.

    Args:
        federations: By name.
        max_events: Of one request.
        others: More federations, whose columns a request may hold as well; they are not looked at.
    """

    def __init__(
        self, federations: Mapping[str, Federation], max_events: int, others: Iterable[Federation] = ()
    ) -> None:
        self._federations = federations
        columns = [federation.columns for federation in federations.values()]
        row: dict[str, str] = {}
        events: dict[str, str] = {}
        for asked in columns:
            for own, all_of_them in ((asked.row, row), (asked.events, events)):
                # A column that one federation reads as a number and another as text must be fit for both.
                all_of_them |= {name: kind for name, kind in own.items() if all_of_them.get(name) in (None, "text")}
        # One population has one column of users.
        user, ignored = columns[0].user, frozenset[str]().union(*(asked.ignored for asked in columns))
        ignored |= {name for one in others for name in (*one.columns.row, *one.columns.events)}
        fields: dict[str, Any] = {
            "row": (
                _of_columns("Row", row, user, ignored),
                Field(description="What is known now, by your own columns."),
            ),
            "events": (
                list.__class_getitem__(_of_columns("Event", events, user, ignored)),
                Field(
                    default=[],
                    max_length=max_events,
                    description="The user's earlier events, in any order; those before the row's time count.",
                ),
            ),
        }
        self._request: type[BaseModel] = create_model("ProfileRequest", __config__=_STRICT, **fields)

    def json_schema(self, references: str) -> dict[str, Any]:
        """The schema of a request.

        Args:
            references: How the schema refers to its parts; `{model}` is a part's name.
        """
        return self._request.model_json_schema(ref_template=references)

    def read(self, text: bytes) -> dict[str, Example]:
        """Read one request.

        Args:
            text: JSON.

        Returns:
            What each federation's model is asked about.

        Raises:
            GivenError: It is not JSON, or does not fit.
        """
        try:
            parsed = json.loads(text, parse_constant=_no_number, parse_float=_finite)
        except (ValueError, RecursionError):
            raise GivenError([Wrong("request", "is not JSON in UTF-8 with finite numbers")]) from None
        try:
            given = self._request.model_validate(parsed).model_dump(by_alias=True, exclude_unset=True)
        except ValidationError as error:
            raise GivenError([_wrong(self._request, dict(problem)) for problem in error.errors()]) from None
        rows = GivenRows(given["row"], given.get("events", []))
        found: dict[str, Example] = {}
        wrong: dict[Wrong, None] = {}
        for name, federation in self._federations.items():
            try:
                found[name] = rows.example(federation.tenant, federation.profiler.card)
            except GivenError as error:
                wrong |= dict.fromkeys(error.wrong)
        if wrong:
            raise GivenError(list(wrong))
        return found


def _of_columns(name: str, kinds: Mapping[str, str], user: str, ignored: frozenset[str]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for column, kind in kinds.items():
        fields[column] = (_CELLS[kind], Field(alias=column))
    fields.setdefault(user, (_CELLS["user"], Field(alias=user, default=None)))
    for column in sorted(ignored):
        fields.setdefault(column, (Any, Field(alias=column, default=None, description="Not looked at.")))
    # Any text can be a column's name, but not a field's.
    return create_model(name, __config__=_STRICT, **{f"c{place}": made for place, made in enumerate(fields.values())})


def _wrong(request: type[BaseModel], problem: Mapping[str, Any]) -> Wrong:
    location, what = tuple(problem["loc"]), str(problem["msg"])
    if problem["type"] == "extra_forbidden":
        location = location[:-1]
        names = ", ".join(f"'{name}'" for name in _names(request, location))
        what = f"holds a name that is not read here; the names are {names}"
    elif problem["type"] == "missing":
        what = "is missing; a column whose value is not known is null"
    elif problem["type"] in ("model_type", "model_attributes_type"):
        what = "is not an object"
    elif problem["type"] == "list_type":
        what = "is not a list of objects"
    elif problem["type"] == "too_long":
        what = f"are more than {problem['ctx']['max_length']}, the most that are taken here"
    return Wrong(_place(location), what)


def _names(request: type[BaseModel], location: Sequence[Any]) -> list[str]:
    model: Any = request
    if location:
        annotation = request.model_fields[str(location[0])].annotation
        model = getattr(annotation, "__args__", (annotation,))[0]
    return [made.alias or name for name, made in model.model_fields.items()]


def _place(location: Sequence[Any]) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return place.removeprefix(".") or "request"


def _no_number(constant: str) -> NoReturn:
    raise ValueError("not a number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError("beyond the range of numbers")
    return number


def _refused(expected: str) -> PydanticCustomError:
    return PydanticCustomError("cell", "{expected}", {"expected": expected})


def _text(cell: Any) -> Any:
    if cell is not None and not isinstance(cell, str | int | float):
        raise _refused("is not text, a number, true, false or null")
    return cell


def _number(cell: Any) -> Any:
    if cell is not None and (isinstance(cell, bool) or not isinstance(cell, int | float)):
        raise _refused("is not a number or null")
    return cell


def _vector(cell: Any) -> Any:
    if cell is not None and not isinstance(cell, list):
        raise _refused("is not a list of numbers or null")
    return cell


def _time(cell: Any) -> Any:
    if not isinstance(cell, str):
        raise _refused("is not an ISO 8601 date or time, such as 2026-03-31 or 2026-03-31T12:30:00")
    return cell


def _user(cell: Any) -> Any:
    if isinstance(cell, bool) or not isinstance(cell, str | int):
        raise _refused("is no stable id; give users as whole numbers or as text, or leave them out")
    return cell


_CELLS: dict[str, Any] = {
    "text": Annotated[
        Any,
        AfterValidator(_text),
        WithJsonSchema({"type": ["string", "number", "boolean", "null"]}),
    ],
    "number": Annotated[Any, AfterValidator(_number), WithJsonSchema({"type": ["number", "null"]})],
    "vector": Annotated[
        Any, AfterValidator(_vector), WithJsonSchema({"type": ["array", "null"], "items": {"type": "number"}})
    ],
    "time": Annotated[
        Any,
        AfterValidator(_time),
        WithJsonSchema({"type": "string", "anyOf": [{"format": "date"}, {"format": "date-time"}]}),
    ],
    "user": Annotated[Any, AfterValidator(_user), WithJsonSchema({"type": ["string", "integer"], "pattern": r"\S"})],
}
"""By kind; what else must hold of a cell, the tenant's own readers say."""
