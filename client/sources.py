"""From the tenant's rows to examples, in one of two ways.

Strict (`read_examples`: for `check`, `join`, `predict` and the start, where nothing is sent): every problem is named
by line and column and never by value, nothing is dropped silently, and one problem refuses the source.

Usable (`read_usable`: while requests are answered): whatever is wrong with a user's rows leaves out that user, a row
whose user cannot be told is skipped, and an empty source is an empty sample.

Why the second is private: whether a request is answered must not be a function of one user's data, for that answer
costs nothing and carries no noise. Whether a user is left out is decided by that user's rows, the card and the tenant
file alone: a row is judged by itself, the one comparison between rows (times with and without a zone) is between rows
of one user, and a row that is skipped belongs to nobody. So a neighbouring data set, with one user more, gives the
same examples of everyone else, and one user's more or not. What stays an error here is what concerns the source as a
whole; `fedprofile.client.tables` lists it.

The labelled rows come from `source`; a user's history is that user's rows of `events` (or of `source` itself) strictly
before the label, the newest `max_events` of them. What a user's id and a time are, `fedprofile.client.cells` says.

Rows are read one after the other, and no more is held than the records need: the labelled rows, and of `events` what
`fedprofile.client.histories` keeps. Events of users without a labelled row are of no use: strictly they are checked
row by row like all others, otherwise they are passed over.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fedprofile.client.cells import CellError, Moment, read_moment, read_number, read_text, read_user, read_vector
from fedprofile.client.histories import Histories
from fedprofile.client.labels import label_reader
from fedprofile.client.tables import RawRow, Reading
from fedprofile.common.card import FederationCard, template_columns
from fedprofile.common.errors import ConfigError, DataError, PolicyRefusal, Problem
from fedprofile.common.interactions import Example, Row, Value
from fedprofile.common.tasks import Label
from fedprofile.common.tenant import Columns, Source, SqlSource, TenantFile

MAX_PROBLEMS = 1000

KeepWrong = Callable[[Problem, Any], None]
"""Takes a problem and the cell that it is about."""


class Rows(Protocol):
    """Where rows come from; see `fedprofile.client.tables.Reading`."""

    def rows(
        self, source: Source, check_columns: Callable[[Sequence[str]], None], columns: Collection[str], part: str
    ) -> Iterator[RawRow]:
        """The rows of "source" or of "events"."""
        ...


_Event = tuple[str, datetime, Row]
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Usable:
    """What can be used of a source.

    Args:
        examples: One for each labelled row of a user none of whose rows is wrong.
        users_left_out: Users of whom some row is wrong.
        rows_left_out: All rows of these users, and the rows whose user cannot be told.
    """

    examples: list[Example] = field(repr=False)
    users_left_out: int
    rows_left_out: int


def read_examples(
    tenant: TenantFile,
    card: FederationCard,
    folder: Path,
    labelled: bool = True,
    keep_wrong: KeepWrong | None = None,
) -> list[Example]:
    """Read and check everything that a tenant trains on, strictly.

    Args:
        tenant: Where the data lies and which column is what.
        card: What the federation's templates and features need.
        folder: What relative paths count from.
        labelled: Whether a label is needed; without, every label is -1.
        keep_wrong: Called with the cell of each problem that is about one; an error never holds it.

    Returns:
        One example a labelled row, in the source's order.

    Raises:
        DataError: The source cannot be read, a column is missing, rows are wrong (every problem by line and column),
            there is no row, or no event belongs to a user of the source.
        PolicyRefusal: The card asks for a protected column, for the users' ids, or for the label itself.
        ConfigError: The card's template needs a time column that the tenant file does not name, or the tenant file
            protects a column that is not there.
    """
    reader = _Reader(tenant, card, labelled=labelled, strict=True, keep_wrong=keep_wrong)
    with Reading(folder) as reading:
        reader.read(reading)
    reader.refuse()
    return reader.examples()


def read_given(tenant: TenantFile, card: FederationCard, given: Rows) -> list[Example]:
    """Read and check rows that are given in place of the tenant's sources, strictly and without labels.

    Args:
        tenant: Which column is what; its sources are not opened.
        card: What the federation's templates and features need.
        given: The rows.

    Returns:
        One example a row of "source", in order.

    Raises:
        DataError, PolicyRefusal, ConfigError: As for `read_examples`.
    """
    events = (tenant.events or tenant.source) if card.history.event else None
    reader = _Reader(tenant.model_copy(update={"events": events}), card, labelled=False, strict=True)
    reader.read(given)
    reader.refuse()
    return reader.examples()


def check_asked(tenant: TenantFile, card: FederationCard) -> None:
    """Refuse a card that asks for what no text and no feature may hold.

    Raises:
        PolicyRefusal, ConfigError: As for `read_examples`.
    """
    _Reader(tenant, card, labelled=False, strict=True)


def read_usable(tenant: TenantFile, card: FederationCard, folder: Path) -> Usable:
    """Read what can be used while requests are answered.

    Args:
        tenant: Where the data lies and which column is what.
        card: What the federation's templates and features need.
        folder: What relative paths count from.

    Returns:
        The examples, in the source's order; possibly none.

    Raises:
        DataError: The source as a whole cannot be read, or a column is missing.
        PolicyRefusal: As for `read_examples`; it depends on card and tenant file alone.
        ConfigError: As for `read_examples`.
    """
    reader = _Reader(tenant, card, labelled=True, strict=False)
    with Reading(folder) as reading:
        reader.read(reading)
    return Usable(reader.examples(), len(reader.wrong), reader.rows_left_out())


def read_users(tenant: TenantFile, folder: Path) -> set[str]:
    """Who has a labelled row now, whatever stands in it; a row whose user cannot be told is nobody's.

    Args:
        tenant: Where the data lies.
        folder: What relative paths count from.

    Returns:
        Ids; see `fedprofile.client.cells`.

    Raises:
        DataError: The source as a whole cannot be read, or has no column of users.
    """
    column, users = tenant.columns.user, set()

    def check(there: Sequence[str]) -> None:
        if column not in there:
            raise DataError(f"source: column '{column}' is missing; mend [columns] in tenant.toml.")

    with Reading(folder) as reading:
        for row in reading.rows(tenant.source, check, {column}):
            try:
                users.add(read_user(row.cells.get(column)))
            except CellError:
                continue
    return users


class _Reader:
    """Makes examples of rows and keeps what is wrong with them, by user and, where it is to be said, by place."""

    def __init__(
        self,
        tenant: TenantFile,
        card: FederationCard,
        *,
        labelled: bool,
        strict: bool,
        keep_wrong: KeepWrong | None = None,
    ) -> None:
        self._keep_wrong = keep_wrong
        self._tenant, self._columns, self._labelled, self._strict = tenant, tenant.columns, labelled, strict
        self._numbers = card.history.numbers | {feature.name for feature in card.features.numeric}
        self._widths = {feature.name: feature.width for feature in card.features.vectors}
        self._record_columns = card.record_columns
        self._event_columns = template_columns(card.history.event)
        self._read_label, self._unknown = label_reader(card.task), card.task.unknown
        group = card.task.group
        self._groups = {value: place for place, value in enumerate(group.values)} if group else {}
        self._has_events, self._max_events = bool(card.history.event), card.history.max_events
        _check_card(self._columns, self._record_columns, self._event_columns, self._has_events)
        self.wrong: set[str] = set()
        self._rows_of: Counter[str] = Counter()
        self._skipped = 0
        self._zoned: dict[str, bool] = {}
        self._found: list[tuple[str, datetime, Row, Label, int]] = []
        self._histories = Histories([], self._max_events)
        self._events_seen = self._events_fit = False
        self._there: set[str] = set()
        # A dictionary, because a cell that serves record and event is looked at twice.
        self._problems: dict[Problem, None] = {}

    def read(self, reading: Rows) -> None:
        """Read `source`, and `events` where it is another one; where it is not, each row is read once for both."""
        events = self._tenant.events
        shared = self._has_events and events is None
        needed = {self._source_name(name) for name in self._record_columns} | {self._columns.user}
        needed |= {self._columns.label} if self._labelled else set()
        grouped = self._labelled or bool(self._tenant.judgement and self._tenant.judgement.thresholds)
        needed |= {self._columns.group} if self._columns.group and self._groups and grouped else set()
        needed |= {self._columns.time} if self._columns.time and self._has_events else set()
        for_events = {self._source_name(name) for name in self._event_columns}
        for_events |= {self._columns.user, self._event_time}
        pending: list[_Event] = []
        asked = needed | (for_events if shared else set())
        for row, user in self._rows(reading, self._tenant.source, "source", asked):
            self._take_labelled(row, user)
            if shared and (event := self._event(row, user, "source")) is not None:
                pending.append(event)
        if self._strict and not self._rows_of and not self._skipped:
            mend = "check path or query in tenant.toml" if self._labelled else "give a file with rows to predict for"
            raise DataError(f"{self._called('source')}: there is no row; {mend}.")
        ordered = not isinstance(events or self._tenant.source, SqlSource)
        labels = ((user, time) for user, time, *_ in self._found)
        self._histories = Histories(labels, self._max_events, ordered=ordered)
        for event in pending:
            self._histories.add(*event)
        if self._has_events and events is not None:
            for row, user in self._rows(reading, events, "events", for_events):
                if (event := self._event(row, user, "events")) is not None:
                    self._events_seen = True
                    self._events_fit |= user in self._histories
                    self._histories.add(*event)

    def refuse(self) -> None:
        """Refuse the source where anything is wrong with it."""
        if self._problems:
            problems = tuple(self._problems)
            count = f"more than {MAX_PROBLEMS}" if len(problems) > MAX_PROBLEMS else len(problems)
            where, command = ("the data", "check") if self._labelled else ("the rows to predict for", "predict")
            what = f"1 problem in {where}; mend it" if len(problems) == 1 else f"{count} problems in {where}; mend them"
            raise DataError(f"{what} and run `{command}` again:", problems)
        if not self._labelled:
            return  # Rows to predict for may be of new users, and need only the card's columns.
        if self._tenant.events is None or self._has_events:
            _check_protected(self._columns, self._there)
        if self._events_seen and not self._events_fit:
            raise DataError(
                "events: no event belongs to a user of the source; both must name a user by the same text (an event "
                f"of '1.0' is not one of '1'). Mend column '{self._columns.user}' of one of the two."
            )

    def examples(self) -> list[Example]:
        """The examples of users none of whose rows is wrong."""
        return [
            Example(user, row, self._histories.before(user, time), label, group)
            for user, time, row, label, group in self._found
            if user not in self.wrong
        ]

    def rows_left_out(self) -> int:
        """How many rows are not used."""
        return self._skipped + sum(self._rows_of[user] for user in self.wrong)

    @property
    def _event_time(self) -> str:
        """The time column of the rows that events come from."""
        if self._tenant.events is not None and self._columns.event_time:
            return self._columns.event_time
        return self._columns.time or ""

    def _called(self, part: str) -> str:
        """What a person knows a part by: rows to predict for are none of tenant.toml's."""
        return "--input" if part == "source" and not self._labelled else part

    def _source_name(self, name: str) -> str:
        return self._columns.rename.get(name, name)

    def _rows(self, reading: Rows, source: Source, part: str, needed: set[str]) -> Iterator[tuple[RawRow, str]]:
        """A source's rows with their users; of events only those that can be in a history, unless all are checked."""
        named: set[str] = set()
        asked = needed | ({self._columns.group} if self._columns.group else set())
        for row in reading.rows(source, partial(self._check_columns, part, needed), asked, part):
            if source.kind == "jsonl":
                named.update(row.cells)
            if row.fault is not None:
                self._problem(None, Problem(part, row.line, None, row.fault), row)
                continue
            user = self._read(row, None, self._columns.user, part, read_user)
            if user is None:
                continue
            if part == "source" or user in self._rows_of:
                self._rows_of[user] += 1
                yield row, user
            elif self._strict:
                yield row, user
        # Of JSON Lines only the strict way may ask whether a column is there, since only rows can tell.
        if self._strict and named:
            self._check_columns(part, needed, tuple(named))

    def _check_columns(self, part: str, needed: set[str], columns: Sequence[str]) -> None:
        """Refuse a source without a column that is needed, by names that are expected: others may be cells."""
        self._there.update(columns)
        if missing := sorted(needed - set(columns)):
            names = ", ".join(f"'{name}'" for name in missing)
            which = f"columns {names} are" if len(missing) > 1 else f"column {names} is"
            raise DataError(
                f"{self._called(part)}: {which} missing among its {len(columns)} columns; give a CSV file a header "
                "line, or mend [columns] in tenant.toml."
            )
        if twice := sorted(name for name in needed if columns.count(name) > 1):
            raise DataError(f"{self._called(part)}: column '{twice[0]}' is there twice; rename one of them.")

    def _take_labelled(self, row: RawRow, user: str) -> None:
        time: Moment | None = Moment(datetime.max.replace(tzinfo=UTC), False)
        if self._has_events and self._columns.time:
            time = self._read_time(row, user, self._columns.time, "source", day_ends=False)
        label, group = self._unknown, len(self._groups)
        if self._labelled:
            found = self._read(row, user, self._columns.label, "source", self._read_label)
            label = self._unknown if found is None else found
        if self._columns.group:
            group = self._groups.get(self._read(row, user, self._columns.group, "source", read_text) or "", group)
        values = self._values(row, user, self._record_columns, "source")
        if time is not None:
            self._found.append((user, time.at, values, label, group))

    def _event(self, row: RawRow, user: str, part: str) -> _Event | None:
        time = self._read_time(row, user, self._event_time, part, day_ends=True)
        values = self._values(row, user, self._event_columns, part)
        return None if time is None else (user, time.at, values)

    def _values(self, row: RawRow, user: str, names: Collection[str], part: str) -> Row:
        values: dict[str, Value] = {}
        for name in names:
            column = self._source_name(name)
            if name in self._numbers:
                values[name] = self._read(row, user, column, part, read_number)
            elif name in self._widths:
                values[name] = self._read(row, user, column, part, partial(read_vector, width=self._widths[name]))
            else:
                values[name] = self._read(row, user, column, part, read_text) or None
        return values

    def _read_time(self, row: RawRow, user: str, column: str, part: str, *, day_ends: bool) -> Moment | None:
        time = self._read(row, user, column, part, partial(read_moment, day_ends=day_ends))
        known = user in self._rows_of
        if time is not None and known and self._zoned.setdefault(user, time.zoned) != time.zoned:
            what = "has a time zone where another time of this user has none, or the other way round"
            self._problem(user, Problem(part, row.line, column, f"{what}; give all of them one, or none"), row)
        return time

    def _read(
        self, row: RawRow, user: str | None, column: str, part: str, read: Callable[[Any], _Value | None]
    ) -> _Value | None:
        try:
            return read(row.cells.get(column))
        except CellError as error:
            self._problem(user, Problem(part, row.line, column, str(error)), row)
            return None

    def _problem(self, user: str | None, problem: Problem, row: RawRow) -> None:
        if user is None:
            self._skipped += 1
        else:
            self.wrong.add(user)
        if self._strict:
            if self._keep_wrong is not None and problem.column is not None:
                self._keep_wrong(problem, row.cells.get(problem.column))
            self._problems[problem] = None
            if len(self._problems) > MAX_PROBLEMS:
                self.refuse()


def _check_card(
    columns: Columns, record_columns: Collection[str], event_columns: Collection[str], has_events: bool
) -> None:
    """Refuse a card that asks for what no text and no feature may hold."""
    if has_events and columns.time is None:
        raise ConfigError("the card's history has events: give the time column as columns.time in tenant.toml.")
    protected = {*columns.protected, *([columns.group] if columns.group else [])}
    leave = "leave the federation, or have the operator take it out of the card."
    for name in sorted({*record_columns, *event_columns}):
        source_name = columns.rename.get(name, name)
        if source_name in protected:
            raise PolicyRefusal(f"the card asks for column '{name}', which tenant.toml marks as protected; {leave}")
        if source_name == columns.user:
            raise PolicyRefusal(f"the card asks for column '{name}', which holds the users' ids; {leave}")
        # An earlier row's label is history; the row's own is what is to be predicted.
        if source_name == columns.label and name in record_columns:
            raise PolicyRefusal(f"the card asks for column '{name}', which is the label to be predicted; {leave}")


def _check_protected(columns: Columns, there: Collection[str]) -> None:
    """Refuse a protected name that is no column: whoever mistypes it believes in a protection that is not there."""
    if unknown := sorted(set(columns.protected) - set(there)):
        raise ConfigError(
            f"columns.protected names '{unknown[0]}', which is no column of the data; give the columns' own names, "
            "letter for letter."
        )
