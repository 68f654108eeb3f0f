"""Queries against real databases: read-only, one state, streamed, and errors without anything that a driver said."""

import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fedprofile.client.tables import UNREADABLE, RawRow, Reading
from fedprofile.common.errors import DataError
from fedprofile.common.tenant import SqlSource

if TYPE_CHECKING:
    from tests.client.postgresql import PostgreSQL

SECRET = "alice@example.org"
ROWS = [("ann", "w1", "7"), (SECRET, "w2", "913.55 EUR")]


def _sql(url: str, query: str, **places: Any) -> SqlSource:
    return SqlSource.model_validate({"kind": "sql", "url": url, "query": query, **places})


def _read(source: SqlSource, folder: Path = Path("/")) -> list[RawRow]:
    with Reading(folder) as reading:
        return list(reading.rows(source, lambda columns: None))


def _refused(source: SqlSource, folder: Path = Path("/")) -> str:
    with pytest.raises(DataError) as caught:
        _read(source, folder)
    told = str(caught.value)
    assert SECRET not in told and "913" not in told and source.query not in told and "correct-horse" not in told
    assert told.startswith(("source.", "/")) and told.endswith(".") and "\n" not in told
    return told


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> "Iterator[Database]":
    """Tables `visits` and `events` of two rows, in the kind of database that the test names."""
    if request.param == "sqlite":
        made: Database = Sqlite(tmp_path / "shop.db")
    else:
        made = Postgres(request.getfixturevalue("postgresql"))
    with closing(made):
        for table in ("visits", "events"):
            made.change(f"DROP TABLE IF EXISTS {table}")
            made.change(f"CREATE TABLE {table} (who TEXT, item TEXT, paid TEXT)")
            for row in ROWS:
                made.change(f"INSERT INTO {table} VALUES {row!r}")
        yield made


class Database:
    url: str

    def change(self, statement: str) -> None:
        raise NotImplementedError

    def found(self, query: str = "SELECT * FROM visits ORDER BY who") -> list[Any]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class Sqlite(Database):
    def __init__(self, path: Path) -> None:
        self.url = f"sqlite:///{path}"
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")

    def change(self, statement: str) -> None:
        self._connection.execute(statement)

    def found(self, query: str = "SELECT * FROM visits ORDER BY who") -> list[Any]:
        return self._connection.execute(query).fetchall()

    def close(self) -> None:
        self._connection.close()


class Postgres(Database):
    def __init__(self, server: "PostgreSQL") -> None:
        self.url = server.url()
        self._connection = server.connect()

    def change(self, statement: str) -> None:
        self._connection.execute(statement)

    def found(self, query: str = "SELECT * FROM visits ORDER BY who") -> list[Any]:
        return list(self._connection.execute(query).fetchall())

    def close(self) -> None:
        self._connection.close()


both = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
WRITES = [
    "INSERT INTO visits VALUES ('eve', 'w9', '1')",
    "INSERT INTO visits VALUES ('eve', 'w9', '1') RETURNING who",
    "UPDATE visits SET who = 'eve' RETURNING who",
    "DELETE FROM visits",
    "DROP TABLE visits",
    "SELECT who FROM visits; DELETE FROM visits",
    "SELECT who FROM visits; COMMIT; DELETE FROM visits",
    "ROLLBACK; DELETE FROM visits",
    "COMMIT; BEGIN; DELETE FROM visits; COMMIT; SELECT 1",
]


@both
@pytest.mark.parametrize("query", WRITES)
def test_a_query_that_writes_is_refused_and_nothing_is_changed(database: Database, query: str) -> None:
    before = database.found()
    assert len(before) == 2
    _refused(_sql(database.url, query))
    assert database.found() == before


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    "query",
    [
        "WITH gone AS (DELETE FROM visits RETURNING who) SELECT who FROM gone",
        "SELECT wipe()",
        "SELECT nextval('counter')",
        "CREATE TABLE copied AS SELECT * FROM visits",
        "SELECT who FROM visits FOR UPDATE",
    ],
)
def test_a_select_that_writes_is_refused_by_postgresql(database: Database, query: str) -> None:
    database.change("CREATE SEQUENCE IF NOT EXISTS counter")
    wipe = "CREATE OR REPLACE FUNCTION wipe() RETURNS int LANGUAGE sql AS 'DELETE FROM visits; SELECT 1'"
    database.change(wipe)
    before, counted = database.found(), database.found("SELECT last_value, is_called FROM counter")
    _refused(_sql(database.url, query))
    assert (database.found(), database.found("SELECT last_value, is_called FROM counter")) == (before, counted)


@both
def test_source_and_events_are_of_one_state(database: Database) -> None:
    """A row that comes between the two queries is in neither; in a reading of its own it is in both."""
    source, events = (_sql(database.url, f"SELECT who FROM {table}") for table in ("visits", "events"))
    with Reading(Path("/")) as reading:
        assert len(list(reading.rows(source, lambda columns: None))) == 2
        for table in ("visits", "events"):
            database.change(f"INSERT INTO {table} VALUES ('new', 'w3', '1')")
        assert len(list(reading.rows(events, lambda columns: None))) == 2
    assert (len(_read(source)), len(_read(events))) == (3, 3)


@both
def test_a_query_reaches_the_database_as_it_is_written(database: Database) -> None:
    query = "SELECT who AS \"a%(b)s\" FROM visits WHERE item LIKE '%2' AND item <> ' :item' AND '%%' <> '%'"
    assert [dict(row.cells) for row in _read(_sql(database.url, query))] == [{"a%(b)s": SECRET}]


@both
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT who FROM visit", "names a table that is not there"),
        ("SELECT whom FROM visits", "names a column that is not there"),
        ("SELEC who FROM visits", "is not valid SQL"),
        ("DELETE FROM visits RETURNING who", "would write|not valid SQL"),
        ("UPDATE visits SET who = NULL WHERE who = 'alice@example.org'", "would write|not valid SQL"),
    ],
)
def test_a_query_that_fails_is_told_plainly(database: Database, query: str, expected: str) -> None:
    told = _refused(_sql(database.url, query))
    assert any(words in told for words in expected.split("|")), told


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_what_postgresql_refuses_is_told_without_its_text(database: Database, postgresql: "PostgreSQL") -> None:
    told = _refused(_sql(database.url, "SELECT who, paid::numeric FROM visits"))
    assert "cannot be worked out for some row" in told
    told = _refused(_sql(postgresql.url("reader"), "SELECT who FROM visits"))
    assert "may not read one of its tables" in told
    limited = postgresql.url(more="&options=-c%20statement_timeout%3D100")
    assert "time limit" in _refused(_sql(limited, "SELECT pg_sleep(600)"))
    assert "would write" in _refused(_sql(database.url, "SELECT wipe()"))


def test_what_cannot_be_connected_to_is_told_plainly(postgresql: "PostgreSQL", tmp_path: Path) -> None:
    query = "SELECT 1"
    for url, expected in (
        (postgresql.url(password=":wrong-horse"), "user or password are wrong"),
        (postgresql.url(password=""), "a password is asked for"),
        (postgresql.url(user="nobody"), "user or password are wrong"),
        (postgresql.url(database="shop"), "knows no such database"),
        (postgresql.url(more="&colour=red"), "an option that the driver does not know"),
        (f"postgresql+psycopg://a:wrong-horse@/b?host={tmp_path}", "nothing answers at that socket"),
        ("postgresql+psycopg://a:wrong-horse@127.0.0.1:1/b", "nothing answers at host and port"),
        ("postgresql+psycopg://a:wrong-horse@no.such.host.invalid/b", "the host's name is not known"),
        ("postgresql+nodriver://a:wrong-horse@h/b", "'postgresql+nodriver' is no database that is known here"),
        ("postgres://a:wrong-horse@h/b", "'postgres' is no database that is known here"),
        ("mysql+pymysql://a:wrong-horse@h/b", "the driver for 'mysql+pymysql' is not installed"),
        ("wrong-horse", "is not a usable SQLAlchemy URL"),
    ):
        told = _refused(_sql(url, query))
        assert expected in told, told
        assert "wrong-horse" not in told


def test_a_server_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url = f"postgresql+psycopg://a:b@127.0.0.1:{silent.getsockname()[1]}/c?connect_timeout=2"
        assert "there was no answer in time" in _refused(_sql(url, "SELECT 1"))


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_connection_that_drops_while_rows_come_is_told(database: Database) -> None:
    source = _sql(database.url, "SELECT n, repeat('x', 100) FROM generate_series(1, 100000) AS n")
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND state = '{}'"
    with Reading(Path("/")) as reading, pytest.raises(DataError, match="the connection was lost while it ran"):
        for row in reading.rows(source, lambda columns: None):
            if row.line == 1:
                assert database.found(end.format("idle in transaction")) == [(True,)]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_date_that_python_cannot_hold_is_one_cell(database: Database) -> None:
    """One user's date must not stop the reading of everybody's."""
    query = "SELECT * FROM (VALUES ('ann', 'infinity'::date, 'infinity'::timestamptz), ('bob', '2026-01-03', 'epoch'), "
    query += "('eve', '20000-01-01', '-infinity')) AS t (who, day, at)"
    rows = [list(row.cells.values()) for row in _read(_sql(database.url, query))]
    assert [row[0] for row in rows] == ["ann", "bob", "eve"]
    assert [[cell is UNREADABLE for cell in row[1:]] for row in rows] == [[True, True], [False, False], [True, True]]


_CHILD = """
import resource, sys
from pathlib import Path
import psycopg
from fedprofile.client.tables import Reading
from fedprofile.common.tenant import SqlSource
def peak(count):
    query = f"SELECT n, repeat('x', 1000) AS text FROM generate_series(1, {count}) AS n"
    source = SqlSource.model_validate({"kind": "sql", "url": sys.argv[1], "query": query})
    with Reading(Path("/")) as reading:
        assert sum(1 for row in reading.rows(source, lambda columns: None)) == count
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
first = peak(2_000)
print(peak(50_000) - first)
"""


def test_a_result_is_streamed(postgresql: "PostgreSQL") -> None:
    """50 MB of text: a client that takes the whole result first would hold at least as much."""
    done = subprocess.run([sys.executable, "-c", _CHILD, postgresql.url()], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 15_000, "KiB"


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_password_comes_from_a_file_or_the_environment(
    database: Database, postgresql: "PostgreSQL", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, query = postgresql.url(password=""), "SELECT who FROM visits"
    path = tmp_path / "password"
    path.write_text("correct-horse\n")
    path.chmod(0o600)
    monkeypatch.setenv("SHOP_PASSWORD", "correct-horse")
    for place in ({"password_file": "password"}, {"password_env": "SHOP_PASSWORD"}):
        assert len(_read(_sql(source, query, **place), tmp_path)) == 2
        told = _refused(_sql(database.url, query, **place), tmp_path)
        assert "another place for it; keep one" in told
    path.chmod(0o640)
    assert "others may read this password" in _refused(_sql(source, query, password_file="password"), tmp_path)
    assert "mend source.password_file" in _refused(_sql(source, query, password_file="no"), tmp_path)
    assert "is not set" in _refused(_sql(source, query, password_env="NO_SUCH"), tmp_path)


def test_a_password_has_one_place() -> None:
    with pytest.raises(ValueError, match="keep one of them"):
        _sql("sqlite://", "SELECT 1", password_file="a", password_env="B")


def test_a_query_without_an_end_holds_no_rows(tmp_path: Path) -> None:
    """SQLite gives rows one after the other as well."""
    query = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
    with Reading(tmp_path) as reading:
        rows = reading.rows(_sql("sqlite://", query), lambda columns: None)
        assert [row.cells["i"] for row, _ in zip(rows, range(5000), strict=False)][-1] == 5000
