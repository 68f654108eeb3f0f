"""One user's row and events as an application gives them, read by the checks that the tenant's own rows go through.

What is refused is named by field and expectation and never by value, and a key that nobody asked for is a value too:
it is not repeated.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedprofile.client.sources import read_given
from fedprofile.client.tables import CheckColumns, RawRow
from fedprofile.common.card import FederationCard, template_columns
from fedprofile.common.errors import DataError, InputError
from fedprofile.common.interactions import Example
from fedprofile.common.tenant import Source, TenantFile

NOBODY = "given"
"""Stands for the user where a request does not say who it is: the model sees no id."""

Cells = Mapping[str, Any]


@dataclass(frozen=True)
class Wrong:
    """What is wrong with a request.

    Args:
        field: Where, such as `events[2].time`.
        expected: What stands there is not, or what was expected.
    """

    field: str
    expected: str


class GivenError(InputError):
    """A request cannot be read; see the module's docstring.

    Args:
        wrong: Everything that was found.
    """

    def __init__(self, wrong: Sequence[Wrong]) -> None:
        self.wrong = tuple(wrong)
        super().__init__("; ".join(f"{one.field}: {one.expected}" for one in self.wrong[:10]))


@dataclass(frozen=True)
class AskedColumns:
    """The tenant's columns that a federation reads of a request: name -> "text", "number", "vector" or "time".

    Args:
        row: Of the row.
        events: Of each event.
        user: The column of users, which a request may leave out.
        ignored: Columns that the tenant's rows have as well and that are not looked at, such as the label.
    """

    row: dict[str, str]
    events: dict[str, str]
    user: str
    ignored: frozenset[str]

    @classmethod
    def of(cls, tenant: TenantFile, card: FederationCard) -> "AskedColumns":
        """What a card's templates and features ask for, by the tenant's names."""
        columns = tenant.columns
        kinds = dict.fromkeys(card.history.numbers | {feature.name for feature in card.features.numeric}, "number")
        kinds |= dict.fromkeys((feature.name for feature in card.features.vectors), "vector")

        def asked(names: Collection[str]) -> dict[str, str]:
            return {columns.rename.get(name, name): kinds.get(name, "text") for name in sorted(names)}

        row = asked(card.record_columns)
        events = asked(template_columns(card.history.event))
        if card.history.event and columns.time is not None:
            row[columns.time] = "time"
            events[columns.event_time or columns.time] = "time"
        if columns.group and tenant.judgement is not None and tenant.judgement.thresholds:
            row[columns.group] = "text"  # The decision goes by it.
        ignored = {columns.label, *filter(None, (columns.time, columns.event_time, columns.group))}
        return cls(row, events, columns.user, frozenset(ignored - row.keys()))


@dataclass(frozen=True)
class GivenRows:
    """One user's row and events.

    Args:
        row: What is known when the prediction is asked for, by the tenant's columns.
        events: The user's earlier events, in any order.
    """

    row: Cells = field(repr=False)
    events: Sequence[Cells] = field(repr=False, default=())

    def example(self, tenant: TenantFile, card: FederationCard) -> Example:
        """Read it for one federation.

        Args:
            tenant: Which column is what.
            card: What is asked for.

        Returns:
            The example; its label is not known.

        Raises:
            GivenError: A cell does not fit, or an event is another user's.
        """
        column = tenant.columns.user
        user = self.row.get(column, NOBODY)
        if any(event.get(column, user) != user for event in self.events):
            raise GivenError([Wrong(f"events[].{column}", "is not the user of the row; give one user's events alone")])
        try:
            [example] = read_given(tenant, card, _OfOneUser(self, column, user))
        except DataError as error:
            raise GivenError(
                [Wrong(_place(problem.part, problem.line, problem.column), problem.what) for problem in error.problems]
                or [Wrong("request", error.summary)]
            ) from None
        return example


@dataclass(frozen=True)
class _OfOneUser:
    """Given rows in the place of sources; see `fedprofile.client.sources.Rows`."""

    given: GivenRows
    column: str
    user: Any

    def rows(
        self, source: Source, check_columns: CheckColumns, columns: Collection[str], part: str
    ) -> Iterator[RawRow]:
        given = [self.given.row] if part == "source" else self.given.events
        for line, cells in enumerate(given, start=1):
            named = {self.column: self.user, **cells}
            check_columns(tuple(named))
            yield RawRow(line, named)


def _place(part: str, line: int, column: str | None) -> str:
    place = "row" if part == "source" else f"events[{line - 1}]"
    return place if column is None else f"{place}.{column}"
