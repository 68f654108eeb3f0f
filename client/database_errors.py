"""What failed in a database, as one plain sentence without anything that a driver said.

A driver's text may hold cells of the result, the query, or the password, so that none of it is passed on: only which
kind of failure it was, told by the SQL standard's five-letter code (SQLSTATE), by SQLite's name for it, or, where a
driver gives neither, by words that are looked for in its text.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlalchemy

_DRIVERS = {
    "postgresql": "pip install 'fedprofile[postgresql]' and begin the URL with postgresql+psycopg://",
    "mysql": "pip install pymysql and begin the URL with mysql+pymysql://",
}

_CONNECT = {
    "password authentication failed": "user or password are wrong; mend them in tenant.toml, or the password's file.",
    "no password supplied": "a password is asked for; give it by password_file or password_env.",
    "connection timeout expired": "there was no answer in time; look at host, port and firewall.",
    "timeout": "there was no answer in time; look at host, port and firewall.",
    "connection refused": "nothing answers at host and port; look whether the database runs there.",
    "no such file or directory": "nothing answers at that socket; look whether the database runs there.",
    "could not translate host name": "the host's name is not known; mend it in the URL.",
    "failed to resolve host": "the host's name is not known; mend it in the URL.",
    "no pg_hba.conf entry": "the server lets nobody in from here as that user; ask whoever runs it.",
    "does not exist": "the server knows no such database or user; mend them in the URL.",
    "too many clients": "the server has no connection free; try again later.",
    "invalid connection option": "the URL has an option that the driver does not know; mend what follows its '?'.",
    "unable to open database file": "the file cannot be opened; look at its mode and its folder's.",
    "file is not a database": "the file is no SQLite database; mend its path.",
}
"""Words of a driver's text, in lower case, and what is said instead; the first that is found counts."""

_READ_ONLY = "it would write, and a query of a source may only read; nothing was changed. Make a SELECT of it."
_NO_TABLE = "it names a table that is not there for this user; look at its spelling, schema and database."
_NO_COLUMN = "it names a column that is not there; look at its spelling."
_SYNTAX = "it is not valid SQL for this database; try it there."
_LOCKED = "the database is locked by another program; try again when that one is done."
_LOST = "the connection was lost while it ran; look whether the database still runs."
_ROW = "it cannot be worked out for some row, such as a text that is cast to a number; mend the query or that row."

_SQLSTATES = {
    "42P01": _NO_TABLE,
    "42703": _NO_COLUMN,
    "42501": "the database's user may not read one of its tables; let whoever runs it grant SELECT.",
    "25006": _READ_ONLY,
    "57014": "it was stopped, by the database's time limit or by a person; make it shorter or raise statement_timeout.",
    "57P01": _LOST,
    "57P02": _LOST,
    "57P03": _LOST,
    "40001": "another transaction was in its way; try again.",
    "08": _LOST,
    "22": _ROW,
    "42": _SYNTAX,
    "53": "the database is short of memory, disk or connections; ask whoever runs it.",
}
"""By code, or by its first two letters, which are its class."""

_SQLITE = {
    "SQLITE_READONLY": _READ_ONLY,
    "SQLITE_BUSY": _LOCKED,
    "SQLITE_LOCKED": _LOCKED,
    "SQLITE_NOTADB": "the file is no SQLite database; mend its path.",
    "SQLITE_CORRUPT": "the file is damaged; restore it.",
}
_SQLITE_TEXT = {"no such table": _NO_TABLE, "no such column": _NO_COLUMN, "syntax error": _SYNTAX}
_SQLITE_TEXT |= {"one statement at a time": "it has more than one statement; keep the SELECT."}


def connect_problem(error: Exception, url: "sqlalchemy.URL", part: str) -> str:
    """Why a database cannot be connected to.

    Args:
        error: What SQLAlchemy or the driver raised.
        url: What was to be connected to; of it the names of dialect and driver may be told.
        part: "source" or "events".

    Returns:
        One sentence.
    """
    import sqlalchemy.exc

    if isinstance(error, sqlalchemy.exc.NoSuchModuleError):
        return f"{part}.url: '{url.drivername}' is no database that is known here; {_driver_hint(url)}."
    if isinstance(error, ImportError):
        return f"{part}.url: the driver for '{url.drivername}' is not installed; {_driver_hint(url)}."
    text = str(getattr(error, "orig", None) or error).lower()
    for words, told in _CONNECT.items():
        if words in text:
            return f"{part}.url: the database cannot be connected to: {told}"
    return (
        f"{part}.url: the database cannot be connected to ({type(error).__name__}); look whether it runs, and at host, "
        "port, database, user and password."
    )


def query_problem(error: Exception, part: str) -> str:
    """Why a query failed.

    Args:
        error: What SQLAlchemy or the driver raised.
        part: "source" or "events".

    Returns:
        One sentence.
    """
    import sqlalchemy.exc

    if isinstance(error, sqlalchemy.exc.ResourceClosedError):
        return f"{part}.query: it gives no rows; make a SELECT of it."
    driver = getattr(error, "orig", None) or error
    told = _by_code(driver)
    if told is None and getattr(error, "connection_invalidated", False):
        told = _LOST
    if told is None:
        return f"{part}.query failed in the database ({type(error).__name__}); try it there."
    return f"{part}.query failed in the database: {told}"


def _by_code(driver: BaseException) -> str | None:
    name = getattr(driver, "sqlite_errorname", None)
    if isinstance(name, str):
        known = next((told for start, told in _SQLITE.items() if name.startswith(start)), None)
        return known or next((told for words, told in _SQLITE_TEXT.items() if words in str(driver)), None)
    code = getattr(driver, "sqlstate", None) or getattr(driver, "pgcode", None)
    if not isinstance(code, str):
        return next((told for words, told in _SQLITE_TEXT.items() if words in str(driver)), None)
    return _SQLSTATES.get(code) or _SQLSTATES.get(code[:2])


def _driver_hint(url: "sqlalchemy.URL") -> str:
    return _DRIVERS.get(
        url.get_backend_name(), "install its SQLAlchemy dialect and driver, or mend the URL's beginning"
    )
