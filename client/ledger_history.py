"""One history: whether a ledger's file is the newest copy, and what to do where it is not.

A ledger that was restored, copied or lost has forgotten releases, and their budget would be spent twice. It is known by
a mark that names an entry which the file does not hold. Marks come from three places:

    the tenant's directory   the last reservation made through it (`fedprofile.client.high_water`)
    the outbox               a finished reply carries the mark of its entry
    the server               each request carries the newest mark that it has seen of this tenant

The first two are the tenant's own; the third needs the server's help, can only stop a client, and never makes it spend.
Once a mark does not fit, nothing is reserved and nothing is sent until a person has restored the newest copy or written
the missing entries off.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from fedprofile.client.high_water import HighWater, Marks
from fedprofile.client.ledger_schema import Entry, append_entry, holds_entry, last_mark
from fedprofile.client.write_off import (
    MOST_AHEAD,
    Charge,
    accept_foreign,
    accepts_foreign,
    charges,
    missing_entries,
    note_foreign,
)
from fedprofile.common.errors import LedgerBehindError
from fedprofile.common.messages import GENESIS, LedgerMark, MessageError


class LedgerHistory:
    """An open ledger's chain of entries, compared with what is known of it elsewhere.

    Args:
        path: The file, without symbolic links.
        connection: To it, for writing.
        population: Its population's name.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, population: str) -> None:
        self.path, self.population = path, population
        self._connection = connection
        self._serial = threading.RLock()
        self._file = _identity(path)
        self._marks: HighWater | None = None
        self._shown = LedgerMark()
        self._behind = ""

    def mark(self) -> LedgerMark:
        """How far the ledger has come."""
        with self._serial:
            return last_mark(self._connection)

    def mark_released(self, released: LedgerMark, payload: str) -> None:
        """Note what an entry's release was; the first note stays. To be called before a reply leaves.

        Args:
            released: The mark that the reply carries, which names its entry.
            payload: SHA-256 of the released arrays.

        Raises:
            LedgerBehindError: The reply's entry is not in this file: it is older than the reply, which must not leave.
            MessageError: The mark is damaged.
        """
        with self._serial:
            self._require_known_as_newest()
            if holds_entry(self._connection, released):
                with self._transaction():
                    self._connection.execute(
                        "INSERT OR IGNORE INTO released VALUES (?, ?)", (released.sequence, payload)
                    )
            elif not accepts_foreign(self._connection, released):
                self._refuse_as_behind("a finished reply has", [released], common=0)

    def check_mark(self, seen: LedgerMark) -> None:
        """Compare with what the server has seen of this ledger. Never writes an entry.

        Args:
            seen: From a request.

        Raises:
            LedgerBehindError: The file is older than that, or has another history.
            MessageError: The mark is further ahead than any ledger can be.
        """
        with self._serial:
            self._require_known_as_newest()
            if seen == LedgerMark():
                return
            if seen.sequence > self.mark().sequence + MOST_AHEAD:
                raise MessageError("a ledger mark is further ahead than a ledger can be")
            if holds_entry(self._connection, seen):
                self._show(seen)
            elif not accepts_foreign(self._connection, seen):
                self._refuse_as_behind("the server has seen", [seen], self._shown.sequence)

    def keep_marks(self, marks: HighWater) -> None:
        """Compare with what a tenant's directory remembers of this ledger, now and at every reservation.

        Args:
            marks: The directory's; each reservation's mark is written there.

        Raises:
            LedgerBehindError: The file does not hold the last reservation that was made through the directory.
            ConfigError: The marks cannot be read.
            MessageError: They are damaged.
        """
        self._marks = marks
        self._compare()

    def missing(self) -> int:
        """How many entries may be missing; 0 where every mark that was met is known."""
        with self._serial:
            return missing_entries(self._connection)

    def losses(self) -> tuple[Charge, ...]:
        """What `write_off` would count as spent; nothing where no entry is missing, or no cap has anything left."""
        with self._serial:
            return tuple(charges(self._connection))

    def write_off(self) -> tuple[Entry, ...]:
        """Count releases as spent whose entries were lost: a person's act, never a request's.

        In every segment and of both kinds, since nobody can say in which run the lost entries were; never beyond a
        segment's caps. The new entries stay in the ledger, marked as written off, and the foreign history's marks are
        known from here on.

        Returns:
            The new entries; none where nothing is missing, or no cap has anything left.
        """
        with self._transaction():
            found = charges(self._connection)
            accept_foreign(self._connection)
            self._behind = ""
            return tuple(
                append_entry(
                    self._connection, charge.segment.number, charge.kind, 0, GENESIS, charge.event, written_off=True
                )
                for charge in found
            )

    def _require_newest(self) -> None:
        """Refuse where anything on this machine tells that the file is not the newest copy."""
        self._require_known_as_newest()
        if _identity(self.path) != self._file:
            self._refuse(
                f"{self.path}: was moved or replaced while this process was writing to it; restore its newest copy and "
                "start again."
            )
        self._compare()

    def _require_known_as_newest(self) -> None:
        if self._behind:
            raise LedgerBehindError(self._behind)

    def _compare(self) -> None:
        kept = None if self._marks is None else self._marks.read()
        if kept is None:
            return
        with self._serial:
            if holds_entry(self._connection, kept.shown):
                self._show(kept.shown)
            if holds_entry(self._connection, kept.last) or accepts_foreign(self._connection, kept.last):
                return
            before = [*kept.earlier, kept.shown]
            common = max((mark.sequence for mark in before if holds_entry(self._connection, mark)), default=0)
            lost = [mark for mark in before if mark.sequence > common]
            self._refuse_as_behind("this directory has reserved", [kept.last, *lost], common)

    def _refuse(self, sentence: str) -> NoReturn:
        """Refuse now, and whatever comes after: what is known to be missing does not come back by itself."""
        self._behind = sentence
        raise LedgerBehindError(sentence)

    def _refuse_as_behind(self, who: str, marks: list[LedgerMark], common: int) -> NoReturn:
        with self._transaction():
            note_foreign(self._connection, marks, common)
        self._refuse(
            f"{self.path.name} of population '{self.population}' ends at entry {self.mark().sequence}, and {who} entry "
            f"{marks[0].sequence} of another or newer copy: restore the newest copy; if it is lost, `flower-client "
            "budget --write-off` with the same --dir counts the missing entries as spent."
        )

    def _show(self, mark: LedgerMark) -> None:
        """The server, or whoever shows this entry, has all of this file's history up to it."""
        self._shown = max(self._shown, mark, key=lambda one: one.sequence)

    def _keep_mark(self, entry: Entry) -> None:
        if self._marks is None:
            return
        wanted = [entry.sequence - (1 << power) for power in range(entry.sequence.bit_length())]
        places = ", ".join("?" for _ in wanted)
        rows = self._connection.execute(
            f"SELECT sequence, head FROM entries WHERE sequence IN ({places}) ORDER BY sequence DESC", wanted
        )
        earlier = tuple(LedgerMark(*row) for row in rows)
        self._marks.write(Marks(last=LedgerMark(entry.sequence, entry.head), earlier=earlier, shown=self._shown))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._serial:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file a path leads to now."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
