"""Rows as they stand in a file or a query's result, before anything is made of them.

Why it is private: what is wrong with ONE row is said of that row (`RawRow.fault`, `UNREADABLE` cells) and stops no
other. A JSON line that cannot be parsed, a CSV line with a cell too many, bytes that are no UTF-8, a timestamp that
Python cannot hold: each concerns the user whose row it is and nobody else, so that a client that skips it answers
others as if it were not there.

What concerns the source as a whole is a `DataError`: no such file, a file of another kind, a missing column (by the
header or the query's result, never by a row), a database that does not answer, and CSV whose quotes do not pair, since
it then cannot be told where a row ends. The last can be the work of one user's cell where an export does not quote;
JSON Lines, Parquet and SQL know no such thing.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedprofile.client.databases import database_url, sqlite_file
from fedprofile.common.errors import DataError
from fedprofile.common.tenant import Source, SqlSource

UNREADABLE = object()
"""Stands for a cell whose stored form could not be turned into a Python value."""

_LONGEST_CSV_CELL = 2**30
"""Python's own bound, 131072 characters, would stop the whole file at one long cell."""

CheckColumns = Callable[[Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row.

    Args:
        line: In the file, or its number in the result, from 1.
        cells: By column name; empty where there is a fault.
        fault: What is wrong with the row as a whole, without any of its cells.
    """

    line: int
    cells: Mapping[str, Any] = field(default_factory=dict, repr=False)
    fault: str | None = None


def read_rows(source: Source, folder: Path, check_columns: CheckColumns) -> Iterator[RawRow]:
    """Read a source row by row.

    Args:
        source: A file or a query.
        folder: What a relative path counts from.
        check_columns: Called with the columns before the first row; not for JSON Lines, where each row has its own,
            nor for an empty file, which has none.

    Yields:
        The rows, in the source's order.

    Raises:
        DataError: The source as a whole cannot be read; what is said of it holds no cell and no password.
    """
    if isinstance(source, SqlSource):
        yield from _read_sql(source, folder, check_columns)
        return
    path = folder / source.path
    try:
        if source.kind == "csv":
            yield from _read_csv(path, check_columns)
        elif source.kind == "jsonl":
            yield from _read_jsonl(path)
        else:
            yield from _read_parquet(path, check_columns)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or type(error).__name__}); mend the path in tenant.toml."
        ) from error


def is_text(value: str) -> bool:
    """Whether a string is valid Unicode: no byte that was not UTF-8 and no half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_csv(path: Path, check_columns: CheckColumns) -> Iterator[RawRow]:
    csv.field_size_limit(_LONGEST_CSV_CELL)
    # A byte that is not UTF-8 becomes a lone surrogate in its cell: it must not stop the reading of other rows.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next((cells for cells in reader if cells), None)
            if header is None:
                return
            if not all(map(is_text, header)):
                raise DataError(f"{path}: is not UTF-8 text; save it as UTF-8.")
            check_columns(header)
            for cells in reader:
                if len(cells) == len(header):
                    yield RawRow(reader.line_num, dict(zip(header, cells, strict=True)))
                elif cells:
                    yield RawRow(reader.line_num, fault="has more or fewer cells than the header")
        except csv.Error:
            raise DataError(
                f"{path}: line {reader.line_num} is not valid CSV; put cells that hold quotes, commas or line ends "
                "between double quotes, and double the quotes in them."
            ) from None


def _read_jsonl(path: Path) -> Iterator[RawRow]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError):
                row = None
            yield RawRow(line, row) if isinstance(row, dict) else RawRow(line, fault="is not a JSON object")


def _read_parquet(path: Path, check_columns: CheckColumns) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            check_columns(names)
            line = 0
            for batch in file.iter_batches():
                for cells in zip(*map(_values, batch.columns), strict=True):
                    line += 1
                    yield RawRow(line, dict(zip(names, cells, strict=True)))
    except pyarrow.ArrowException:
        raise DataError(f"{path}: is not a readable Parquet file; write it anew.") from None


def _values(column: Any) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except Exception:
        # A year beyond Python's, bytes that are no UTF-8: one such cell fails the whole column, so each goes alone.
        return [_value(scalar) for scalar in column]
    return values


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except Exception:
        return UNREADABLE


def _read_sql(source: SqlSource, folder: Path, check_columns: CheckColumns) -> Iterator[RawRow]:
    import sqlalchemy

    file = sqlite_file(source, folder)
    if file is not None and not file.is_file():
        # SQLite would make an empty database of that name.
        raise DataError(f"{file}: is no file; mend the path of the database in tenant.toml.")
    try:
        engine = sqlalchemy.create_engine(database_url(source, folder))
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        raise DataError(
            f"source.url is not a usable SQLAlchemy URL ({type(error).__name__}); check it and its driver."
        ) from None
    try:
        try:
            opened = engine.connect()
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise DataError(
                f"source.url: the database cannot be reached ({type(error).__name__}); look whether it runs, and at "
                "host, port, database, user and password."
            ) from None
        with opened as connection:
            if engine.dialect.name == "postgresql":
                connection = connection.execution_options(postgresql_readonly=True)
            elif engine.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA query_only = ON")
                # SQLite keeps any bytes as text; the driver would fail the query at one that is not UTF-8.
                driver: Any = connection.connection.driver_connection
                driver.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
            result = connection.execution_options(yield_per=1000).execute(sqlalchemy.text(source.query))
            names = list(result.keys())
            check_columns(names)
            for line, cells in enumerate(result, start=1):
                yield RawRow(line, dict(zip(names, cells, strict=True)))
    except sqlalchemy.exc.SQLAlchemyError as error:
        # The driver's text may hold cells of the statement's result or the password.
        raise DataError(f"source.query failed in the database ({type(error).__name__}); try it there.") from None
    finally:
        engine.dispose()
