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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fedprofile.common.errors import DataError
from fedprofile.common.tenant import Source, SqlSource

UNREADABLE = object()
"""Stands for a cell whose stored form could not be turned into a Python value."""

_LONGEST_CSV_CELL = 2**30
"""Python's own bound, 131072 characters, would stop the whole file at one long cell."""

_PARQUET_BUFFER = 2**20
"""Bytes; without it a row group's columns, which may be the whole file's, are in memory at once."""

_PARQUET_ROWS = 4096
"""Rows that are Python objects at once."""

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


class Reading:
    """One reading of a tenant's sources, row by row; queries over one database see one state of it. A context manager.

    Args:
        folder: What relative paths count from.
    """

    def __init__(self, folder: Path) -> None:
        # Late, as it builds on this module.
        from fedprofile.client.queries import Transactions

        self._folder, self._transactions = folder, Transactions(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._transactions.close()

    def rows(
        self, source: Source, check_columns: CheckColumns, columns: Collection[str] | None = None, part: str = "source"
    ) -> Iterator[RawRow]:
        """The rows of a source.

        Args:
            source: A file or a query.
            check_columns: Called with the columns before the first row; not for JSON Lines, where each row has its
                own, nor for an empty file, which has none.
            columns: What is asked for, there or not; of Parquet nothing else is read. None for all.
            part: What an error calls the source where it is a query: "source" or "events".

        Yields:
            The rows, in the source's order.

        Raises:
            DataError: The source as a whole cannot be read; what is said of it holds no cell and no password.
        """
        if isinstance(source, SqlSource):
            for line, cells in enumerate(self._transactions.rows(source, check_columns, part), start=1):
                yield RawRow(line, cells)
            return
        path = self._folder / source.path
        try:
            if source.kind == "csv":
                yield from _read_csv(path, check_columns)
            elif source.kind == "jsonl":
                yield from _read_jsonl(path)
            else:
                yield from _read_parquet(path, check_columns, columns)
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror or type(error).__name__}); mend the path in tenant.toml."
            ) from error


def read_rows(source: Source, folder: Path, check_columns: CheckColumns) -> Iterator[RawRow]:
    """The rows of one source alone; see `Reading.rows`."""
    with Reading(folder) as reading:
        yield from reading.rows(source, check_columns)


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


def _read_parquet(path: Path, check_columns: CheckColumns, columns: Collection[str] | None) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=_PARQUET_BUFFER) as file:
            names = list(file.schema_arrow.names)
            check_columns(names)
            asked = None if columns is None else [name for name in names if name in columns]
            line = 0
            for batch in file.iter_batches(_PARQUET_ROWS, columns=asked):
                for cells in zip(*map(_values, batch.columns), strict=True):
                    line += 1
                    yield RawRow(line, dict(zip(batch.schema.names, cells, strict=True)))
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
