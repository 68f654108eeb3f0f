"""How the ledger's file is locked, opened and made.

One file has one lock, whatever it is called: a path is resolved before anything else, so that symbolic links lead to
the same lock, and a file with a second name (a hard link, as some backup tools make) is refused, because each name
would have a lock and a write-ahead log of its own, and the two would count the same budget twice.
"""

import fcntl
import os
import sqlite3
from dataclasses import asdict
from pathlib import Path

from fedprofile.client.ledger_rows import LedgerRows
from fedprofile.client.ledger_schema import FORMAT, SCHEMA, Population, append_budget, insert
from fedprofile.common.errors import ConfigError


def lock_file(path: Path) -> int:
    """Take the ledger's one exclusive lock, on a file beside it; it ends with the process at the latest.

    Args:
        path: The ledger.

    Returns:
        A descriptor to close when done.

    Raises:
        ConfigError: Another process holds it.
        OSError: The lock's file cannot be made.
    """
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ConfigError(
            f"{path}: another process is writing to this ledger; stop it first: two runs over the same users share "
            f"one budget and take turns."
        ) from None
    return lock


def connect(path: Path) -> sqlite3.Connection:
    """Open the file for writing: what is committed is on the disk.

    Args:
        path: The ledger; made where it is missing, readable by its owner alone.

    Returns:
        The connection; transactions are the caller's.

    Raises:
        ConfigError: The file has a second name.
        OSError: It cannot be opened.
    """
    # SQLite would make the file with the process's umask; it holds a key.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        names = os.fstat(descriptor).st_nlink
    finally:
        os.close(descriptor)
    if names > 1:
        raise ConfigError(
            f"{path}: has {names} names (hard links), and each would be a ledger of its own; remove the other name, or "
            f"put a copy in this one's place (cp, then mv)."
        )
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "fullfsync = 1", "foreign_keys = 1"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def create(connection: sqlite3.Connection, population: Population, epsilon: float, delta: float) -> None:
    """Make the tables and fix what never changes, in one transaction."""
    connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA}")
    insert(connection, "population", asdict(population))
    append_budget(connection, epsilon, delta, "when the ledger was made")
    connection.execute("COMMIT")


def require_format(path: Path, connection: sqlite3.Connection) -> None:
    """Refuse a ledger of another version.

    Raises:
        ConfigError: It is of another format.
    """
    found = connection.execute("SELECT format FROM population").fetchone()
    if found is None:
        raise ConfigError(f"{path}: is not a ledger of this version; restore it from a backup.")
    if found[0] != FORMAT:
        raise ConfigError(
            f"{path}: is a ledger of format {found[0]}, and this version reads format {FORMAT}; use the version that "
            f"made it."
        )


def check_same(
    path: Path,
    connection: sqlite3.Connection,
    *,
    population: str,
    user_column: str,
    epsilon: float,
    delta: float,
    evaluation_users: float,
) -> None:
    """Refuse a ledger that is not the one that the tenant file describes, or that was edited.

    Raises:
        ConfigError: It is another population's, counts by another column, holds another budget or fraction, or does not
            match its hashes.
    """
    rows = LedgerRows.read(connection)
    own = rows.population
    edited = ConfigError(f"{path}: the ledger's entries do not match their hashes; restore the newest backup.")
    if not rows.budgets:
        raise edited
    held = rows.budgets[-1]
    if own.name != population:
        raise ConfigError(
            f"{path}: is the ledger of population '{own.name}', not '{population}'; correct population.name or "
            f"population.ledger in the tenant file."
        )
    if own.user_column != user_column:
        raise other_user_column(f"{path}", population, user_column, own.user_column)
    for key, value, found in (
        ("budget.epsilon", epsilon, held.epsilon),
        ("budget.delta", delta, held.delta),
        ("privacy.evaluation_users", evaluation_users, own.evaluation_users),
    ):
        if found != value:
            is_budget = key.startswith("budget.")
            since = "in its ledger" if is_budget else "when its ledger was made"
            instead = ", or raise the budget with `flower-client budget --raise REASON`" if is_budget else ""
            raise ConfigError(
                f"{path}: {key}={value:g} differs from {found:g}, which is fixed for the life of population "
                f"'{population}' {since}; write {key}={found:g} in the tenant file{instead}."
            )
    if not rows.hold:
        raise edited


def other_user_column(where: str, population: str, given: str, held: str) -> ConfigError:
    """What to say where the column that says whose a row is would change: what was promised to one user would become a
    promise to something smaller.

    Args:
        where: The file that the two differ in.
        population: Whose column it is.
        given: By the tenant file.
        held: Fixed when the ledger was made.

    Returns:
        The error to raise.
    """
    return ConfigError(
        f"{where}: columns.user='{given}' differs from '{held}', by which the budget of population '{population}' has "
        f'counted its users since its ledger was made; write user = "{held}" under [columns] in the tenant file, and '
        "where this source has another name for the same ids, rename its column."
    )


def sync_folder(folder: Path) -> None:
    """Put a folder's new names on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
