"""One history: whether a ledger's file is the newest copy, and what to do where it is not.

A ledger that was restored, copied or lost has forgotten releases, and their budget would be spent twice. It is known by
a mark that names an entry which the file does not hold. Marks come from four places:

    the tenant's directory   the last reservation made through it (`fedprofile.client.high_water`)
    the account's registry   the last reservation made through any directory of the account
    the outbox               a finished reply carries the mark of its entry
    the server               each request carries the newest mark that it has seen of this tenant

The first three are the tenant's own; the fourth needs the server's help, can only stop a client, and never makes it
spend. Where it stands alone, the tenant is told to ask the operator before it writes anything off: a server can claim
what it likes.
Once a mark does not fit, nothing is reserved and nothing is sent until a person has restored the newest copy or written
the missing entries off.
"""

import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from fedprofile.client.high_water import HighWater, Marks
from fedprofile.client.ledger_schema import (
    Entry,
    append_entry,
    append_released,
    holds_entry,
    last_head,
    last_mark,
    payload_of,
    read_budgets,
)
from fedprofile.client.write_off import (
    MOST_AHEAD,
    Charge,
    accept_foreign,
    accepts_foreign,
    charges,
    missing_entries,
    note_foreign,
    only_claimed,
)
from fedprofile.common.errors import LedgerBehindError, ReleaseError
from fedprofile.common.messages import GENESIS, LedgerMark, MessageError

ONLY_CLAIMED = (
    "Only the server claims this: the marks in this directory and of this account know of no loss, so ask the operator "
    "first."
)


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
        self._marks: tuple[HighWater, ...] = ()
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
            ReleaseError: Something else was noted for the entry.
            MessageError: The mark is damaged.
        """
        with self._serial:
            self._require_known_as_newest()
            if holds_entry(self._connection, released):
                noted = payload_of(self._connection, released.sequence)
                if noted is None:
                    with self._transaction():
                        append_released(self._connection, released.sequence, payload)
                elif noted != payload:
                    raise ReleaseError(
                        f"the stored reply of entry {released.sequence} is not what {self.path.name} notes as its "
                        "release; restore the outbox's file. Where it is lost, delete it: the question is then "
                        "answered, and paid for, anew."
                    )
            elif not accepts_foreign(self._connection, released):
                self._refuse_as_behind("a finished reply has", {released: 0})

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
                # First what is known here: only where that fits does the server stand alone.
                known = self._compare()
                self._refuse_as_behind("the server has seen", {seen: self._shown.sequence}, claimed=known)

    def keep_marks(self, *marks: HighWater) -> None:
        """Compare with what is remembered of this ledger outside of it, now and at every reservation.

        Args:
            marks: The directory's and the account's; each reservation's mark is written there.

        Raises:
            LedgerBehindError: The file does not hold the last reservation that was made through the directory, or in
                the account, or not the budget that was known there.
            ConfigError: The marks cannot be read.
            MessageError: They are damaged.
        """
        self._marks = marks
        self._compare()
        self._keep_budget()

    def only_claimed(self) -> bool:
        """Whether nobody but the server says that entries are missing, while the marks here fit the ledger."""
        with self._serial:
            return only_claimed(self._connection)

    def lacks_budget(self) -> bool:
        """Whether a budget that was known here is not in the file."""
        with self._serial:
            return any(self._lacks(kept.budget) for _, kept in self._kept())

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
        known from here on; so is the file's own budget, where another one was known before.

        Returns:
            The new entries; none where nothing is missing, or no cap has anything left.
        """
        with self._transaction():
            found = charges(self._connection)
            accept_foreign(self._connection)
            self._behind = ""
            written = tuple(
                append_entry(
                    self._connection, charge.segment.number, charge.kind, 0, GENESIS, charge.event, written_off=True
                )
                for charge in found
            )
        self._keep_budget()
        return written

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

    def _kept(self) -> list[tuple[HighWater, Marks]]:
        found = [(marks, marks.read()) for marks in self._marks]
        return [(marks, kept) for marks, kept in found if kept is not None]

    def _lacks(self, budget: str) -> bool:
        """Whether a budget's hash is known and not in the file."""
        return bool(budget) and all(own.head != budget for own in read_budgets(self._connection))

    def _compare(self) -> bool:
        """Refuse where the marks do not fit; whether there are any."""
        with self._serial:
            kept, lost = self._kept(), dict[LedgerMark, int]()
            who: dict[LedgerMark, HighWater] = {}
            for marks, one in kept:
                if holds_entry(self._connection, one.shown):
                    self._show(one.shown)
                if one.last == LedgerMark() or holds_entry(self._connection, one.last):
                    continue
                if accepts_foreign(self._connection, one.last):
                    continue
                before = [*one.earlier, one.shown]
                common = max((mark.sequence for mark in before if holds_entry(self._connection, mark)), default=0)
                for mark in (one.last, *(mark for mark in before if mark.sequence > common)):
                    lost[mark] = max(common, lost.get(mark, 0))
                who.setdefault(one.last, marks)
            if lost:
                newest = max(who, key=lambda mark: mark.sequence)
                self._refuse_as_behind(f"{who[newest]} has reserved", {newest: lost[newest], **lost})
            for marks, one in kept:
                if self._lacks(one.budget):
                    self._refuse(
                        f"{self.path.name} of population '{self.population}' lacks a budget that was known in {marks}: "
                        "it is an older copy, or its budgets were rewritten. Restore the newest copy; if it is lost, "
                        "`flower-client budget --write-off` with the same --dir takes the budget that this one holds."
                    )
            return bool(kept)

    def _refuse(self, sentence: str) -> NoReturn:
        """Refuse now, and whatever comes after: what is known to be missing does not come back by itself."""
        self._behind = sentence
        raise LedgerBehindError(sentence)

    def _refuse_as_behind(self, who: str, marks: Mapping[LedgerMark, int], *, claimed: bool = False) -> NoReturn:
        """Refuse because of marks, the one to name first."""
        with self._transaction():
            note_foreign(self._connection, marks, claimed=claimed)
        named = next(iter(marks)).sequence
        alone = f" {ONLY_CLAIMED} Where you know that the ledger is an old copy:" if claimed else ""
        self._refuse(
            f"{self.path.name} of population '{self.population}' ends at entry {self.mark().sequence}, and {who} entry "
            f"{named} of another or newer copy{'.' if claimed else ':'}{alone} restore the newest copy; if it is lost, "
            "`flower-client budget --write-off` with the same --dir counts the missing entries as spent."
        )

    def _show(self, mark: LedgerMark) -> None:
        """The server, or whoever shows this entry, has all of this file's history up to it."""
        self._shown = max(self._shown, mark, key=lambda one: one.sequence)

    def _keep_mark(self, entry: Entry) -> None:
        if not self._marks:
            return
        wanted = [entry.sequence - (1 << power) for power in range(entry.sequence.bit_length())]
        places = ", ".join("?" for _ in wanted)
        rows = self._connection.execute(
            f"SELECT sequence, head FROM entries WHERE sequence IN ({places}) ORDER BY sequence DESC", wanted
        )
        new = Marks(
            last=LedgerMark(entry.sequence, entry.head),
            earlier=tuple(LedgerMark(*row) for row in rows),
            shown=self._shown,
            budget=last_head(self._connection, "budgets"),
        )
        for marks in self._marks:
            marks.write(new.model_copy(update={"shown": LedgerMark()}) if marks.account else new)

    def _keep_budget(self) -> None:
        """Keep the newest budget's hash where another one, or none, is known."""
        with self._serial:
            budget = last_head(self._connection, "budgets")
            for marks in self._marks:
                kept = marks.read() or Marks(last=LedgerMark())
                if kept.budget != budget:
                    marks.write(kept.model_copy(update={"budget": budget}))

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
