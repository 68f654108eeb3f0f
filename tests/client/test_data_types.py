"""One table in CSV, JSON Lines, Parquet, SQLite and PostgreSQL gives the same examples, whatever its columns are."""

import csv
import datetime
import json
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.client.sources import read_examples, read_usable
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import DataError
from fedprofile.common.interactions import Example
from fedprofile.common.tenant import TenantFile

if TYPE_CHECKING:
    from tests.client.postgresql import PostgreSQL

HEADER = ["who", "when", "month", "visits", "device", "action", "item", "bought"]
Rows = Sequence[Sequence[Any]]


@pytest.fixture(scope="module")
def card(card_data: Callable[..., dict[str, Any]]) -> FederationCard:
    return FederationCard.model_validate(card_data(task={"group": None}))


def _tenant(source: dict[str, Any]) -> TenantFile:
    return TenantFile.model_validate(
        {
            "source": source,
            "columns": {"user": "who", "label": "bought", "time": "when"},
            "population": {"name": "p", "declared_users": 10},
            "budget": {"epsilon": 1.0},
            "run": {"epsilon": 1.0},
        }
    )


def _csv(folder: Path, rows: Rows) -> dict[str, Any]:
    with (folder / "data.csv").open("w", newline="", encoding="utf-8") as file:
        # Line ends in cells make quotes necessary, which the writer sets by itself only for its own kind.
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([HEADER, *rows])
    return {"kind": "csv", "path": "data.csv"}


def _jsonl(folder: Path, rows: Rows) -> dict[str, Any]:
    lines = [json.dumps(dict(zip(HEADER, row, strict=True)), default=str) + "\n" for row in rows]
    (folder / "data.jsonl").write_text("".join(lines))
    return {"kind": "jsonl", "path": "data.jsonl"}


def _parquet(folder: Path, rows: Rows, types: dict[str, Any] | None = None) -> dict[str, Any]:
    columns = {name: [row[place] for row in rows] for place, name in enumerate(HEADER)}
    arrays = {name: pyarrow.array(cells, (types or {}).get(name)) for name, cells in columns.items()}
    pyarrow.parquet.write_table(pyarrow.table(arrays), folder / "data.parquet", row_group_size=2)
    return {"kind": "parquet", "path": "data.parquet"}


def _sqlite(folder: Path, rows: Rows) -> dict[str, Any]:
    path = folder / "data.db"
    path.unlink(missing_ok=True)
    stored = [[cell if isinstance(cell, int | float | None) else str(cell) for cell in row] for row in rows]
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(f"CREATE TABLE data ({', '.join(f'{name!r}' for name in HEADER)})")
        database.executemany(f"INSERT INTO data VALUES ({', '.join('?' * len(HEADER))})", stored)
    return {"kind": "sql", "url": "sqlite:///data.db", "query": "SELECT * FROM data ORDER BY rowid"}


def _postgresql(server: "PostgreSQL", rows: Rows, types: Sequence[str]) -> dict[str, Any]:
    columns = [f'"{name}" {kind}' for name, kind in zip(HEADER, types, strict=True)]
    with server.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS data")
        connection.execute(f"CREATE TABLE data (place SERIAL, {', '.join(columns)})")
        names = ", ".join(f'"{name}"' for name in HEADER)
        statement = f"INSERT INTO data ({names}) VALUES ({', '.join(['%s'] * len(HEADER))})"
        for row in rows:
            connection.execute(statement, row)
    return {"kind": "sql", "url": server.url(), "query": "SELECT * FROM data ORDER BY place"}


_AT = datetime.datetime(2026, 1, 3, 9, 30, 0, 250)
_DAY = datetime.date(2026, 1, 4)
_BEYOND = 2**53
TYPED: list[list[Any]] = [
    [_BEYOND + 1, _AT, None, 3, "phone", True, "caf\u00e9, \"so\"\n'x'", "no"],
    [_BEYOND, _AT, "\u5317\u4eac", None, None, False, None, "yes"],
    [_BEYOND + 1, _AT.replace(day=5), "w2", -4, "desk", None, "w3", "yes"],
    [2**63 - 1, _AT, "w2", 4, "desk", True, "w3", "yes"],
]
TYPES = ["BIGINT", "TIMESTAMP", "TEXT", "NUMERIC(9,2)", "VARCHAR(9)", "BOOLEAN", "TEXT", "TEXT"]


def _spelled(rows: Rows) -> list[list[Any]]:
    """As files and SQLite without types of their own hold it."""
    spelling = {True: "true", False: "false"}
    return [
        [
            spelling[cell] if isinstance(cell, bool) else cell.isoformat() if isinstance(cell, datetime.date) else cell
            for cell in row
        ]
        for row in rows
    ]


def _expected() -> list[Example]:
    first = {"action": "true", "item": "caf\u00e9, \"so\"\n'x'"}
    big, other, biggest = str(_BEYOND + 1), str(_BEYOND), str(2**63 - 1)
    return [
        Example(big, {"month": None, "visits": 3.0, "device": "phone"}, (), 0, 0),
        Example(other, {"month": "\u5317\u4eac", "visits": None, "device": None}, (), 1, 0),
        Example(big, {"month": "w2", "visits": -4.0, "device": "desk"}, (first,), 1, 0),
        Example(biggest, {"month": "w2", "visits": 4.0, "device": "desk"}, (), 1, 0),
    ]


def test_typed_columns_are_the_same_in_files_and_sqlite(tmp_path: Path, card: FederationCard) -> None:
    plain = _spelled(TYPED)
    sources = [_csv(tmp_path, plain), _jsonl(tmp_path, plain), _sqlite(tmp_path, plain)]
    for source in sources:
        assert read_examples(_tenant(source), card, tmp_path) == _expected(), source["kind"]


@pytest.mark.parametrize(
    "types",
    [
        {},
        {"visits": pyarrow.decimal128(9, 2), "who": pyarrow.uint64(), "item": pyarrow.large_string()},
        {"device": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), "item": pyarrow.string_view()},
        {"when": pyarrow.timestamp("ns"), "visits": pyarrow.float32()},
    ],
    ids=["plain", "decimal", "dictionary", "nanoseconds"],
)
def test_typed_columns_are_the_same_in_parquet(tmp_path: Path, card: FederationCard, types: dict[str, Any]) -> None:
    rows: Rows = TYPED
    if "who" in types:
        rows = [[row[0], row[1], row[2], None if row[3] is None else Decimal(str(row[3])), *row[4:]] for row in TYPED]
    assert read_examples(_tenant(_parquet(tmp_path, rows, types)), card, tmp_path) == _expected()


def test_typed_columns_are_the_same_in_postgresql(
    tmp_path: Path, card: FederationCard, postgresql: "PostgreSQL"
) -> None:
    assert read_examples(_tenant(_postgresql(postgresql, TYPED, TYPES)), card, tmp_path) == _expected()


@pytest.mark.parametrize("zoned", [True, False], ids=["with a zone", "without"])
def test_times_are_the_same_in_every_kind(
    tmp_path: Path, card: FederationCard, postgresql: "PostgreSQL", zoned: bool
) -> None:
    """The zone of PostgreSQL's session or of a column changes no moment, so no history, but for a typed midnight of it,
    which is a day (`fedprofile.client.cells`); none of these is one in either zone."""
    zone = datetime.timezone(datetime.timedelta(hours=5, minutes=30)) if zoned else None
    times = [datetime.datetime(2026, 3, day, hour, 30, tzinfo=zone) for day in (1, 2) for hour in (1, 6, 23)]
    rows = [["ann", time, "w1", 1, "phone", "viewed", f"w{place}", "no"] for place, time in enumerate(times)]
    plain = _spelled(rows)
    kind = pyarrow.timestamp("us", "+05:30") if zoned else pyarrow.timestamp("us")
    types = ["TEXT", "TIMESTAMPTZ" if zoned else "TIMESTAMP", "TEXT", "INT", "TEXT", "TEXT", "TEXT", "TEXT"]
    sources = [_csv(tmp_path, plain), _jsonl(tmp_path, plain), _sqlite(tmp_path, plain)]
    sources += [_parquet(tmp_path, rows, {"when": kind}), _postgresql(postgresql, rows, types)]
    found = [read_examples(_tenant(source), card, tmp_path) for source in sources]
    assert [len(example.events) for example in found[0]] == list(range(6))
    assert all(one == found[0] for one in found)


def test_dates_are_days_in_every_kind(tmp_path: Path, card: FederationCard, postgresql: "PostgreSQL") -> None:
    days = [_DAY, _DAY, _DAY + datetime.timedelta(days=1)]
    rows = [["ann", day, "w1", 1, "phone", "viewed", f"w{place}", "no"] for place, day in enumerate(days)]
    plain = _spelled(rows)
    types = ["TEXT", "DATE", *TYPES[2:5], "TEXT", "TEXT", "TEXT"]
    sources = [_csv(tmp_path, plain), _jsonl(tmp_path, plain), _sqlite(tmp_path, plain), _parquet(tmp_path, rows)]
    for source in [*sources, _postgresql(postgresql, rows, types)]:
        found = read_examples(_tenant(source), card, tmp_path)
        assert [len(example.events) for example in found] == [0, 0, 2], source


# Text as cells may hold it: no NUL, which PostgreSQL has none of, and no white space around it, which is cut off.
_text = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=6).filter(
    lambda text: text == text.strip()
)
_row = st.tuples(
    st.sampled_from(["ann", "bob", "Jos\u00e9", "17"]),
    st.datetimes(datetime.datetime(2026, 1, 1), datetime.datetime(2026, 1, 2)).map(
        lambda time: time.replace(hour=12, microsecond=0).isoformat()
    ),
    _text | st.none(),
    st.integers(-(2**31), 2**31 - 1) | st.none(),
    _text | st.none(),
    _text | st.none(),
    _text | st.none(),
    st.sampled_from(["no", "yes"]),
)


@settings(deadline=None, max_examples=40)
@given(st.lists(_row, min_size=1, max_size=12))
def test_any_table_gives_the_same_examples_in_every_kind_of_file(card: FederationCard, rows: Rows) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = [write(folder, rows) for write in (_csv, _jsonl, _parquet, _sqlite)]
        first, *others = [read_examples(_tenant(source), card, folder) for source in sources]
        assert all(other == first for other in others)
        assert len(first) == len(rows)


def test_any_table_gives_the_same_examples_in_postgresql(card: FederationCard, postgresql: "PostgreSQL") -> None:
    types = ["TEXT", "TEXT", "TEXT", "BIGINT", "TEXT", "TEXT", "TEXT", "TEXT"]

    @settings(deadline=None, max_examples=15)
    @given(st.lists(_row, min_size=1, max_size=12))
    def same(rows: Rows) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            expected = read_examples(_tenant(_jsonl(folder, rows)), card, folder)
            assert read_examples(_tenant(_postgresql(postgresql, rows, types)), card, folder) == expected

    same()


@pytest.mark.parametrize("column", ["who", "month", "visits"])
@pytest.mark.parametrize("cell", [{"secret": 1}, ["secret"], [1.0, 2.0]], ids=["object", "texts", "numbers"])
def test_nested_cells_are_refused_with_their_line(tmp_path: Path, card: FederationCard, column: str, cell: Any) -> None:
    rows = [list(row) for row in _spelled(TYPED)]
    rows[1][HEADER.index(column)] = cell
    with pytest.raises(DataError) as caught:
        read_examples(_tenant(_jsonl(tmp_path, rows)), card, tmp_path)
    assert [(one.line, one.column) for one in caught.value.problems] == [(2, column)]
    assert "secret" not in str(caught.value)


def test_nested_cells_of_other_columns_do_no_harm(tmp_path: Path, card: FederationCard) -> None:
    plain = _spelled(TYPED)
    source = _jsonl(tmp_path, plain)
    lines = (tmp_path / "data.jsonl").read_text().replace('"who"', '"basket": [{"a": [1]}], "who"')
    (tmp_path / "data.jsonl").write_text(lines)
    assert read_examples(_tenant(source), card, tmp_path) == _expected()
    source = _parquet(tmp_path, TYPED)
    table = pyarrow.parquet.read_table(tmp_path / "data.parquet")
    nested = table.append_column("who.basket", pyarrow.array([[{"a": 1}]] * len(TYPED)))
    pyarrow.parquet.write_table(nested, tmp_path / "data.parquet")
    assert read_examples(_tenant(source), card, tmp_path) == _expected()


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([1.0, 2.0, 1.0, 3.0], "is a float"),
        ([Decimal(1), Decimal(2), Decimal(1), Decimal(3)], "is no stable id"),
        ([_DAY] * 4, "is no stable id"),
        ([b"a"] * 4, "is no stable id"),
        ([1, None, 2, 3], "is empty"),
    ],
    ids=["float", "decimal", "date", "bytes", "null"],
)
def test_ids_that_are_none_are_refused(tmp_path: Path, card: FederationCard, cells: list[Any], expected: str) -> None:
    rows = [[cell, *row[1:]] for cell, row in zip(cells, TYPED, strict=True)]
    with pytest.raises(DataError, match=f"column 'who': {expected}"):
        read_examples(_tenant(_parquet(tmp_path, rows)), card, tmp_path)


def test_a_column_of_whole_numbers_with_a_gap_is_no_id_once_pandas_has_written_it(
    tmp_path: Path, card: FederationCard
) -> None:
    """It becomes one of floats, which are exact up to 2^53 only: two users could become one."""
    frame = pd.DataFrame([dict(zip(HEADER, row, strict=True)) for row in TYPED])
    frame["who"] = pd.Series([_BEYOND + 1, None, _BEYOND + 1, 5])
    frame.to_parquet(tmp_path / "data.parquet")
    with pytest.raises(DataError, match="column 'who': is a float"):
        read_examples(_tenant({"kind": "parquet", "path": "data.parquet"}), card, tmp_path)


def test_what_is_no_number_in_postgresql_is_nothing_as_in_files(
    tmp_path: Path, card: FederationCard, postgresql: "PostgreSQL"
) -> None:
    rows = [["ann", "2026-01-03", "w1", Decimal("NaN"), "phone", "viewed", "w1", "no"]]
    source = _tenant(_postgresql(postgresql, rows, ["TEXT", "TEXT", "TEXT", "NUMERIC", *["TEXT"] * 4]))
    assert read_examples(source, card, tmp_path)[0].row["visits"] is None
    rows[0][3] = Decimal("Infinity")
    source = _tenant(_postgresql(postgresql, rows, ["TEXT", "TEXT", "TEXT", "NUMERIC", *["TEXT"] * 4]))
    assert read_usable(source, card, tmp_path).users_left_out == 1
