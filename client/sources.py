"""Reading the tenant's data: files and SQL into examples, checked row by row before anything else happens.

Every bad row is named by line and column and never by value; nothing is dropped silently. The labelled rows come
from `source`; a user's history is that user's rows of `events` (or of `source` itself) strictly before the label.
"""

import csv
import json
import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedprofile.common.card import FederationCard, template_columns
from fedprofile.common.errors import ConfigError, DataError, PolicyRefusal
from fedprofile.common.interactions import Example, Row, Value
from fedprofile.common.tenant import FileSource, Source, SqlSource, TenantFile

MAX_PROBLEMS = 1000

Located = tuple[int, Mapping[str, Any]]


def read_rows(source: Source, folder: Path) -> Iterator[Located]:
    """Read a source row by row.

    Args:
        source: A file or a query.
        folder: What a relative path counts from.

    Yields:
        The row's line in the file (or number in the result, from 1) and its cells by column name.

    Raises:
        DataError: The source cannot be read; what is said of it holds no cell and no password.
    """
    if isinstance(source, SqlSource):
        yield from _read_sql(source)
        return
    path = folder / source.path
    try:
        if source.kind == "csv":
            yield from _read_csv(path)
        elif source.kind == "jsonl":
            yield from _read_jsonl(path)
        else:
            yield from _read_parquet(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or type(error).__name__}).") from error
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; save it as UTF-8.") from None


def read_examples(tenant: TenantFile, card: FederationCard, folder: Path, labelled: bool = True) -> list[Example]:
    """Read and check everything that a tenant trains on.

    Args:
        tenant: Where the data lies and which column is what.
        card: What the federation's templates and features need.
        folder: What relative paths count from.
        labelled: Whether a label is needed; without, every label is -1.

    Returns:
        One example a labelled row, in the source's order.

    Raises:
        DataError: A column is missing, or rows are wrong; every problem by line and column.
        PolicyRefusal: The card asks for a protected column.
        ConfigError: The card's template needs a time column that the tenant file does not name.
    """
    reader = _Reader(tenant, card, labelled)
    rows = [reader.labelled_row(line, cells) for line, cells in reader.checked(tenant.source, folder, "source")]
    events: dict[str, list[tuple[datetime, Row]]] = {}
    if card.history.event:
        located = reader.checked(tenant.events or tenant.source, folder, "events")
        for user, time, row in (reader.event(line, cells) for line, cells in located):
            events.setdefault(user, []).append((time, row))
    reader.raise_problems()
    for user_events in events.values():
        user_events.sort(key=lambda event: event[0])
    return [
        Example(user, row, _before(events.get(user, []), time), label, group) for user, time, row, label, group in rows
    ]


def _before(events: list[tuple[datetime, Row]], time: datetime) -> tuple[Row, ...]:
    """The rows strictly before a time: what happened at that time may tell the label."""
    return tuple(row for _, row in events[: bisect_left(events, time, key=lambda event: event[0])])


class _Reader:
    """Checks rows against the card and collects what is wrong with them."""

    def __init__(self, tenant: TenantFile, card: FederationCard, labelled: bool) -> None:
        self.columns, self.labelled = tenant.columns, labelled
        self.numbers = card.history.numbers | {feature.name for feature in card.features.numeric}
        self.record_columns = template_columns(card.history.record) | card.features.columns
        self.event_columns = template_columns(card.history.event)
        self.labels = {label: place for place, label in enumerate(card.task.labels)}
        self.label_list = ", ".join(card.task.labels) if len(card.task.labels) <= 10 else f"{len(self.labels)} labels"
        group = card.task.group
        self.groups = {value: place for place, value in enumerate(group.values)} if group else {}
        self.has_events = bool(card.history.event)
        self.separate_events = tenant.events is not None
        self.problems: list[str] = []
        if self.has_events and self.columns.time is None:
            raise ConfigError("the card's history has events: give the time column as columns.time in tenant.toml.")
        protected = {*self.columns.protected, *([self.columns.group] if self.columns.group else [])}
        for name in sorted(self.record_columns | self.event_columns):
            if self.source_name(name) in protected:
                raise PolicyRefusal(
                    f"the card asks for column '{name}', which tenant.toml marks as protected; "
                    "leave the federation, or have the operator take it out of the card."
                )

    def source_name(self, name: str) -> str:
        """The source's column for a name of the card."""
        return self.columns.rename.get(name, name)

    def checked(self, source: Source, folder: Path, part: str) -> Iterator[Located]:
        """The source's rows, refused as a whole where a column is missing."""
        plain = self.columns
        if part == "source":
            needed = {self.source_name(name) for name in self.record_columns} | {plain.user}
            needed |= {plain.label} if self.labelled else set()
            needed |= {plain.group} if plain.group and self.groups and self.labelled else set()
            needed |= {plain.time} if plain.time and self.has_events else set()
        else:
            needed = {self.source_name(name) for name in self.event_columns} | {plain.user}
            needed |= {self.event_time_column}
        empty = True
        for line, cells in read_rows(source, folder):
            if empty and (missing := sorted(needed - set(cells))):
                found = ", ".join(map(str, cells)) or "none"
                raise DataError(f"{part}: column '{missing[0]}' is missing; the columns are: {found}.")
            empty = False
            yield line, cells
            if len(self.problems) > MAX_PROBLEMS:
                self.raise_problems()
        if empty and part == "source":
            raise DataError("source: there is no row; check path or query in tenant.toml.")

    @property
    def event_time_column(self) -> str:
        """The time column of the rows that events come from."""
        if self.separate_events and self.columns.event_time:
            return self.columns.event_time
        return self.columns.time or ""

    def labelled_row(self, line: int, cells: Mapping[str, Any]) -> tuple[str, datetime, Row, int, int]:
        """User, time, row by card names, label and group of one labelled row."""
        time = self._time(line, cells, self.columns.time) if self.has_events and self.columns.time else datetime.max
        label = -1
        if self.labelled:
            label = self.labels.get(_text(cells.get(self.columns.label)) or "", -1)
            if label < 0:
                self._problem(line, self.columns.label, f"is not one of the card's labels ({self.label_list})")
        group = len(self.groups)
        if self.columns.group:
            group = self.groups.get(_text(cells.get(self.columns.group)) or "", group)
        return self._user(line, cells), time, self._row(line, cells, self.record_columns), label, group

    def event(self, line: int, cells: Mapping[str, Any]) -> tuple[str, datetime, Row]:
        """User, time and row by card names of one event."""
        time = self._time(line, cells, self.event_time_column)
        return self._user(line, cells), time, self._row(line, cells, self.event_columns)

    def raise_problems(self) -> None:
        """Refuse the source where anything is wrong with it."""
        if self.problems:
            problems = tuple(dict.fromkeys(self.problems))
            raise DataError(f"{len(problems)} problems in the data; mend them and run `check` again:", problems)

    def _problem(self, line: int, column: str, what: str) -> None:
        self.problems.append(f"line {line}, column '{column}': {what}")

    def _user(self, line: int, cells: Mapping[str, Any]) -> str:
        user = _text(cells.get(self.columns.user))
        if not user:
            self._problem(line, self.columns.user, "is empty; every row needs its user")
        return user or ""

    def _time(self, line: int, cells: Mapping[str, Any], column: str) -> datetime:
        value = cells.get(column)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
        try:
            time = datetime.fromisoformat(_text(value) or "")
        except ValueError:
            self._problem(line, column, "is not an ISO 8601 date or time, such as 2026-03-31 or 2026-03-31T12:30:00")
            return datetime.max.replace(tzinfo=UTC)
        return time if time.tzinfo else time.replace(tzinfo=UTC)

    def _row(self, line: int, cells: Mapping[str, Any], names: frozenset[str]) -> Row:
        return {name: self._value(line, name, cells.get(self.source_name(name))) for name in names}

    def _value(self, line: int, name: str, cell: Any) -> Value:
        text = _text(cell)
        if not text:
            return None
        if name not in self.numbers:
            return text
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self._problem(line, self.source_name(name), "is not a finite number")
            return None
        return number


def _text(cell: Any) -> str | None:
    """A cell as text; None for nothing and for a float that is not a number, which is how files spell nothing."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return str(cell).strip()


def _read_csv(path: Path) -> Iterator[Located]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey="\0", restval=None, strict=True)
        try:
            for row in reader:
                if "\0" in row or None in row.values():
                    raise DataError(f"{path}: line {reader.line_num} has more or fewer cells than the header.")
                yield reader.line_num, row
        except csv.Error:
            raise DataError(f"{path}: line {reader.line_num} is not valid CSV.") from None


def _read_jsonl(path: Path) -> Iterator[Located]:
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise DataError(f"{path}: line {line} is not a JSON object.")
            yield line, row


def _read_parquet(path: Path) -> Iterator[Located]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            line = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    line += 1
                    yield line, row
    except pyarrow.ArrowException:
        raise DataError(f"{path}: is not a readable Parquet file.") from None


def _read_sql(source: SqlSource) -> Iterator[Located]:
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(source.url.get_secret_value())
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        raise DataError(
            f"source.url is not a usable SQLAlchemy URL ({type(error).__name__}); check it and its driver."
        ) from None
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "postgresql":
                connection = connection.execution_options(postgresql_readonly=True)
            elif engine.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA query_only = ON")
            result = connection.execution_options(yield_per=1000).execute(sqlalchemy.text(source.query))
            for line, row in enumerate(result.mappings(), start=1):
                yield line, dict(row)
    except sqlalchemy.exc.SQLAlchemyError as error:
        # The driver's text may hold cells of the statement's result or the password.
        raise DataError(f"source.query failed in the database ({type(error).__name__}); try it there.") from None
    finally:
        engine.dispose()


__all__ = ["FileSource", "read_examples", "read_rows"]
