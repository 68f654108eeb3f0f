"""What the URL of an SQL source leads to: a file of SQLite's, or a database on a server."""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from fedprofile.common.errors import DataError
from fedprofile.common.tenant import DatabaseSpec, SqlSource

if TYPE_CHECKING:
    import sqlalchemy

_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433, "oracle": 1521}
_SAME = {"mariadb": "mysql"}
_HERE = frozenset({"", "127.0.0.1", "::1", "localhost"})


def database_url(source: DatabaseSpec, folder: Path) -> "sqlalchemy.URL":
    """The URL that is connected to.

    Args:
        source: Of a tenant file.
        folder: What a relative path counts from, SQLite's and the password file's.

    Returns:
        The URL with the password; a file of SQLite's by its absolute path.

    Raises:
        DataError: It is not a URL, or the password is not where the tenant file says.
    """
    url = _parsed(source)
    password = _password(source, folder)
    if password is not None:
        if url.password is not None:
            raise DataError("source.url holds a password, and tenant.toml names another place for it; keep one.")
        url = url.set(password=password)
    file = sqlite_file(source, folder)
    if file is None:
        return url
    return url.set(database=f"file:{quote(str(file))}" if _is_uri(url) else str(file))


def holds_password(source: DatabaseSpec) -> bool:
    """Whether the password stands in the URL itself, where whoever is shown tenant.toml sees it.

    Args:
        source: Of a tenant file.

    Raises:
        DataError: The URL is not one.
    """
    return _parsed(source).password is not None


def sqlite_file(source: DatabaseSpec, folder: Path) -> Path | None:
    """The file that a source of SQLite's reads.

    Args:
        source: Of a tenant file.
        folder: What a relative path counts from.

    Returns:
        Its absolute path; None for a database on a server or in memory.

    Raises:
        DataError: The URL is not one.
    """
    url = _parsed(source)
    name = url.database or ""
    if _is_uri(url):
        name = unquote(name.removeprefix("file:"))
        # `file:///a` and `file:/a` are one file.
        name = f"/{name.lstrip('/')}" if name.startswith("/") else name
    if url.get_backend_name() != "sqlite" or name in ("", ":memory:"):
        return None
    return folder.absolute() / name


def database_identity(source: SqlSource, folder: Path) -> str:
    """What a database is recognised by, whoever reads it and by which driver.

    Args:
        source: Of a tenant file.
        folder: What a relative path of SQLite's counts from.

    Returns:
        `sqlite:` and the path without symbolic links for SQLite; else `database:` and a SHA-256 of dialect, host, port
        and name, so that none of these stands in the registry.

    Raises:
        DataError: The URL is not one.
    """
    file = sqlite_file(source, folder)
    if file is not None:
        return f"sqlite:{file.resolve()}"
    url = _parsed(source)
    dialect = url.get_backend_name().lower()
    dialect = _SAME.get(dialect, dialect)
    host = (url.host or _option(url, "host")).lower().rstrip(".")
    port = url.port or _option(url, "port") or _PORTS.get(dialect, "")
    # Without a name PostgreSQL takes the user's.
    name = url.database or _option(url, "dbname") or (url.username if dialect == "postgresql" else "") or ""
    where = [dialect, "localhost" if host in _HERE or host.startswith("/") else host, str(port), name.lower()]
    return f"database:{hashlib.sha256(repr(where).encode()).hexdigest()}"


def query_identity(source: SqlSource, folder: Path) -> str:
    """What a query over a database is recognised by: its text without case, white space and the last semicolon.

    Args:
        source: Of a tenant file.
        folder: See `database_identity`.

    Returns:
        `query:` and a SHA-256.

    Raises:
        DataError: The URL is not one.
    """
    query = " ".join(source.query.split()).rstrip("; ").lower()
    text = f"{database_identity(source, folder)}\n{query}"
    return f"query:{hashlib.sha256(text.encode()).hexdigest()}"


def _parsed(source: DatabaseSpec) -> "sqlalchemy.URL":
    import sqlalchemy

    try:
        return sqlalchemy.make_url(source.url.get_secret_value())
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise DataError("source.url is not a usable SQLAlchemy URL; check it.") from None


def _password(source: DatabaseSpec, folder: Path) -> str | None:
    """The password from where the tenant file says; None where it says nothing."""
    if source.password_env is not None:
        password = os.environ.get(source.password_env)
        if password is None:
            raise DataError("source.password_env: that environment variable is not set; set it, or mend its name.")
        return password
    if source.password_file is None:
        return None
    path = folder / source.password_file
    try:
        with path.open(encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise DataError(f"{path}: others may read this password; run `chmod 600 {path}`.")
            return file.read().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); mend source.password_file.") from error
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; save the password as UTF-8.") from None


def _is_uri(url: "sqlalchemy.URL") -> bool:
    return url.get_backend_name() == "sqlite" and (url.database or "").startswith("file:")


def _option(url: "sqlalchemy.URL", name: str) -> str:
    value = url.query.get(name, "")
    return value if isinstance(value, str) else ",".join(value)
