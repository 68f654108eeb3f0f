"""The rows of queries, streamed in read-only transactions that end without a commit.

What lies in one database is read in one transaction, which sees one state: an event is never without the labelled row
that was written beside it. PostgreSQL: `REPEATABLE READ READ ONLY`. SQLite: one `BEGIN` with `PRAGMA query_only`.
Nothing is set for longer than the transaction, since a connection pooler may hand the same session to others. Of other
databases only the driver's own isolation is known; read them as a user who may do nothing but SELECT, which is good
advice for all of them.

A query reaches the database as it is written: neither `%` nor `:name` means anything here. It is one statement, for it
becomes a cursor's at the server where the driver has such, so that its result may be larger than memory.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedprofile.client.database_errors import connect_problem, query_problem
from fedprofile.client.databases import database_url, sqlite_file
from fedprofile.client.tables import UNREADABLE, CheckColumns
from fedprofile.common.errors import DataError, FedprofileError
from fedprofile.common.tenant import SqlSource

if TYPE_CHECKING:
    import sqlalchemy

_ROWS = 1000
"""Rows that are asked for at once."""

_LIBPQ = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
"""How PostgreSQL's drivers notice a server that is gone without a word; without these they wait for hours. Keys of the
source's own URL come first. Seconds, but for the last, which is in milliseconds."""

_DATES = ("date", "timestamp", "timestamptz", "time", "timetz", "interval")


class Transactions:
    """The open transactions of one reading, one for each database.

    Args:
        folder: What a relative path of SQLite's counts from.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[sqlalchemy.URL, sqlalchemy.Connection] = {}
        self._ends = ExitStack()

    def close(self) -> None:
        """End all of them, without a commit."""
        self._open.clear()
        self._ends.close()

    def rows(self, source: SqlSource, check_columns: CheckColumns, part: str) -> Iterator[Mapping[str, Any]]:
        """The rows of a query.

        Args:
            source: Of a tenant file.
            check_columns: Called with the result's columns before the first row.
            part: What an error calls the source: "source" or "events".

        Yields:
            Cells by column name, in the result's order.

        Raises:
            DataError: The database cannot be reached or the query fails there; with no cell, password or query in it.
        """
        connection = self._connection(source, part)
        try:
            with closing(connection.exec_driver_sql(source.query)) as result:
                names = list(result.keys())
                check_columns(names)
                for cells in result:
                    yield dict(zip(names, cells, strict=True))
        except FedprofileError:
            raise
        except Exception as error:
            # A driver's text may hold cells of the result or the password.
            raise DataError(query_problem(error, part)) from None

    def _connection(self, source: SqlSource, part: str) -> "sqlalchemy.Connection":
        import sqlalchemy

        file = sqlite_file(source, self._folder)
        if file is not None and not file.is_file():
            # SQLite would make an empty database of that name.
            raise DataError(f"{file}: is no file; mend the path of the database in tenant.toml.")
        url = database_url(source, self._folder)
        if url not in self._open:
            try:
                engine = sqlalchemy.create_engine(_with_timeouts(url), poolclass=sqlalchemy.NullPool)
                self._ends.callback(engine.dispose)
                connection = self._ends.enter_context(engine.connect())
                self._open[url] = _begun(connection)
            except Exception as error:
                raise DataError(connect_problem(error, url, part)) from None
        return self._open[url]


def _with_timeouts(url: "sqlalchemy.URL") -> "sqlalchemy.URL":
    if url.get_backend_name() != "postgresql" or not url.get_driver_name().startswith("psycopg"):
        return url
    return url.set(query={**_LIBPQ, **url.query})


def _begun(connection: "sqlalchemy.Connection") -> "sqlalchemy.Connection":
    """Begin a read-only transaction that sees one state."""
    dialect, driver = connection.dialect.name, connection.dialect.driver
    if dialect == "postgresql":
        connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        if driver == "psycopg":
            _load_carefully(connection.connection.driver_connection)
    elif dialect == "sqlite":
        # SQLite keeps any bytes as text; the driver would fail the query at one that is not UTF-8.
        raw: Any = connection.connection.driver_connection
        raw.text_factory = lambda stored: stored.decode("utf-8", "surrogateescape")
        connection.exec_driver_sql("PRAGMA query_only = ON")
        connection.exec_driver_sql("BEGIN")
    return connection.execution_options(yield_per=_ROWS, no_parameters=True)


def _load_carefully(connection: Any) -> None:
    """Let a date that Python cannot hold ('infinity', the year 10000) be one unreadable cell, not the query's end."""
    from psycopg.adapt import Loader
    from psycopg.pq import Format

    def careful(base: type[Loader]) -> type[Loader]:
        class Careful(Loader):
            def __init__(self, oid: int, context: Any = None) -> None:
                super().__init__(oid, context)
                self._base = base(oid, context)

            def load(self, data: Any) -> Any:
                try:
                    return self._base.load(data)
                except Exception:
                    return UNREADABLE

        return Careful

    for name in _DATES:
        oid = connection.adapters.types[name].oid
        connection.adapters.register_loader(oid, careful(connection.adapters.get_loader(oid, Format.TEXT)))
