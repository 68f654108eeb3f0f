"""The ledger of a population: what has been, and what may still be, released about its users.

It belongs to the DATA: every federation, task and evaluation over the same users reserves in the same file, which
lies outside the tenant's directory. It stores events (sample rate, noise, steps) and never an epsilon.

Guarantees, each with a test:
    - an entry is on the disk (WAL, synchronous=FULL) before any randomness is drawn for it, and survives `kill -9`;
    - one writer: a second one is refused, readers are not;
    - segments' epsilons and deltas add and never exceed the life's budget, each charged in full when opened;
    - inside a segment nothing is reserved beyond its caps;
    - the evaluation key and fraction are fixed when the ledger is made;
    - a ledger that is behind what the server has seen, or has another history, is noticed.
"""

import hashlib
import hmac
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Self

from fedprofile.client.ledger_file import check_same, connect, create, lock_file, sync_folder
from fedprofile.client.ledger_schema import (
    EVALUATE,
    TRAIN,
    Entry,
    Segment,
    append_entry,
    insert,
    last_mark,
    now,
    read_segments,
    used_steps,
)
from fedprofile.client.segments import SegmentPlan
from fedprofile.common.accounting import MechanismEvent
from fedprofile.common.errors import BudgetRefusal, ConfigError, LedgerBehindError, RefusalCode
from fedprofile.common.messages import GENESIS, Kind, LedgerMark

_TOLERANCE = 1 + 1e-9
"""For adding shares such as 0.1 in floating point."""


class Ledger:
    """The one writer of a ledger's file. Make it with `Ledger.open`; `close` it, or use it as a context."""

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: int) -> None:
        self.path = path
        self._connection = connection
        self._lock = lock
        self._serial = threading.RLock()
        row = connection.execute("SELECT name, epsilon, delta, evaluation_users, key FROM population").fetchone()
        self.population: str = row[0]
        self.epsilon: float = row[1]
        self.delta: float = row[2]
        self.evaluation_users: float = row[3]
        self._key: bytes = row[4]

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        population: str,
        epsilon: float,
        delta: float,
        evaluation_users: float,
        split_key: bytes | None = None,
    ) -> "Ledger":
        """Open a population's ledger for writing; make it where there is none.

        Args:
            path: The file.
            population: The name that it must carry.
            epsilon: The life's budget; fixed when the ledger is made.
            delta: The life's budget.
            evaluation_users: Fraction of users who are only evaluated; fixed when the ledger is made.
            split_key: Key of the split when the ledger is made; None draws one. For rehearsals only.

        Returns:
            The ledger, locked until it is closed.

        Raises:
            ConfigError: Another process writes to it, it cannot be opened, it is another population's, it was
                edited, or the budget or the fraction differs from what it was made with.
        """
        path = path.absolute()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = lock_file(path)
        except OSError as error:
            raise ConfigError(
                f"{path}: the ledger cannot be opened ({error.strerror}); give a writable path."
            ) from error
        try:
            connection = connect(path)
            try:
                if not connection.execute("SELECT name FROM sqlite_master LIMIT 1").fetchone():
                    key = os.urandom(32) if split_key is None else split_key
                    create(connection, population, epsilon, delta, evaluation_users, key)
                    sync_folder(path.parent)
                ledger = cls(path, connection, lock)
                check_same(path, connection, population, epsilon, delta, evaluation_users)
            except BaseException:
                connection.close()
                raise
        except BaseException as error:
            os.close(lock)
            if isinstance(error, sqlite3.DatabaseError):
                raise ConfigError(f"{path}: is not a ledger of this version; restore it from a backup.") from error
            raise
        return ledger

    def open_segment(self, plan: SegmentPlan) -> Segment:
        """Charge a run's full cap and fix its mechanism; the same card with the same settings is the same segment.

        Args:
            plan: See `plan_segment`.

        Returns:
            The segment; where it was open already, with the noise that it was opened with.

        Raises:
            BudgetRefusal: The caps of all segments together would exceed the life's budget.
        """
        with self._transaction():
            segments = read_segments(self._connection)
            for segment in segments:
                if segment.plan.settings == plan.settings:
                    return segment
            taken = sum(segment.plan.epsilon for segment in segments)
            taken_delta = sum(segment.plan.delta for segment in segments)
            too_much = taken + plan.epsilon > self.epsilon * _TOLERANCE
            if too_much or taken_delta + plan.delta > self.delta * _TOLERANCE:
                raise BudgetRefusal(
                    f"epsilon={plan.epsilon:g} (delta={plan.delta:g}) for this run would exceed the life's budget "
                    f"epsilon={self.epsilon:g} (delta={self.delta:g}) of population '{self.population}', of which "
                    f"{len(segments)} earlier run(s) have taken epsilon={taken:g} (delta={taken_delta:g}); lower the "
                    f"run's share, or leave the run."
                )
            number = len(segments) + 1
            opened = now()
            insert(self._connection, "segments", {"number": number, **asdict(plan), "opened": opened})
            return Segment(number, plan, opened)

    def segment_of(self, plan: SegmentPlan) -> Segment | None:
        """The open segment with a plan's card and settings, if there is one."""
        with self._serial:
            found = (segment for segment in read_segments(self._connection) if segment.plan.settings == plan.settings)
            return next(found, None)

    def reserve(self, segment: Segment, kind: Kind, round_number: int, question: str) -> Entry:
        """Write down what a release may cost. When this returns, the entry is on the disk.

        Args:
            segment: Of the run.
            kind: `TRAIN` costs the plan's local steps, `EVALUATE` one table.
            round_number: Of the request.
            question: SHA-256 of the received arrays.

        Returns:
            The entry; only now may randomness be drawn.

        Raises:
            BudgetRefusal: The segment's cap would be exceeded; nothing is written.
        """
        plan = segment.plan
        event, cap = (plan.train_event, plan.cap_steps) if kind is Kind.TRAIN else (plan.table_event, plan.cap_tables)
        name = TRAIN if kind is Kind.TRAIN else EVALUATE
        with self._transaction():
            used = used_steps(self._connection, segment.number, name)
            if used + event.steps > cap:
                raise BudgetRefusal(
                    f"{name} of round {round_number}: {used} + {event.steps} steps would exceed the {cap} of segment "
                    f"{segment.number} (epsilon={plan.epsilon:g}, delta={plan.delta:g}, population "
                    f"'{self.population}'); this run's share is spent."
                )
            sequence = self.mark().sequence + 1
            return append_entry(self._connection, sequence, segment.number, name, round_number, question, event)

    def mark_released(self, sequence: int, payload: str) -> None:
        """Note what an entry's release was; the first note stays.

        Args:
            sequence: The entry's.
            payload: SHA-256 of the released arrays.
        """
        with self._transaction():
            self._connection.execute("INSERT OR IGNORE INTO released VALUES (?, ?)", (sequence, payload))

    def mark(self) -> LedgerMark:
        """How far the ledger has come."""
        with self._serial:
            return last_mark(self._connection)

    def check_mark(self, seen: LedgerMark) -> None:
        """Compare with what the server has seen of this ledger. Never writes an entry.

        Args:
            seen: From a request.

        Raises:
            LedgerBehindError: The file is older than that, or has another history.
        """
        if seen == LedgerMark():
            return
        with self._transaction():
            known = self._connection.execute(
                "SELECT 1 FROM entries WHERE sequence = :s AND head = :h UNION ALL "
                "SELECT 1 FROM foreign_marks WHERE sequence = :s AND head = :h AND accepted",
                {"s": seen.sequence, "h": seen.head},
            ).fetchone()
            if known:
                return
            self._connection.execute("DELETE FROM foreign_marks WHERE NOT accepted")
            self._connection.execute("INSERT INTO foreign_marks VALUES (?, ?, 0)", (seen.sequence, seen.head))
        raise LedgerBehindError(
            f"{self.path.name} of population '{self.population}' ends at entry {self.mark().sequence}, and the server "
            f"has seen entry {seen.sequence} of another or newer copy: restore the newest copy; if it is lost, "
            f"`flower-client budget --write-off` counts the missing entries as spent."
        )

    def write_off(self, segment: Segment) -> tuple[Entry, ...]:
        """Count releases as spent whose entries were lost: a person's act, never a request's.

        Every entry that the server may have seen and this file may lack counts both as a training and as a table,
        since nobody can say which it was; more than the segment's caps cannot have been released.

        Args:
            segment: In which the lost entries were.

        Returns:
            The new entries, none where nothing is missing.
        """
        plan = segment.plan
        with self._transaction():
            rows = self._connection.execute("SELECT sequence FROM foreign_marks WHERE NOT accepted").fetchall()
            if not rows:
                return ()
            own, seen = self.mark().sequence, max(row[0] for row in rows)
            # Behind: what follows the own end is missing. Another history of the same length or less: perhaps all.
            missing = seen - own if seen > own else seen
            sequence = max(own, seen)
            entries: list[Entry] = []
            for name, event, cap in (
                (TRAIN, plan.train_event, plan.cap_steps),
                (EVALUATE, plan.table_event, plan.cap_tables),
            ):
                steps = min(missing * event.steps, cap - used_steps(self._connection, segment.number, name))
                if steps > 0:
                    sequence += 1
                    cost = MechanismEvent(event.sample_rate, event.noise_multiplier, steps)
                    entries.append(
                        append_entry(
                            self._connection, sequence, segment.number, name, 0, GENESIS, cost, written_off=True
                        )
                    )
            self._connection.execute("UPDATE foreign_marks SET accepted = 1")
            return tuple(entries)

    def rounds_on(self, day: date) -> int:
        """How many trainings were reserved on one day (UTC)."""
        query = "SELECT count(*) FROM entries WHERE kind = ? AND NOT written_off AND time LIKE ?"
        with self._serial:
            return int(self._connection.execute(query, (TRAIN, f"{day.isoformat()}%")).fetchone()[0])

    def count_refusal(self, code: RefusalCode) -> None:
        """Note that a request was refused."""
        with self._transaction():
            self._connection.execute(
                "INSERT INTO refused VALUES (?, 1) ON CONFLICT (code) DO UPDATE SET count = count + 1", (code.value,)
            )

    def evaluation_user(self, user: str) -> bool:
        """Whether a user is only ever evaluated. The same answer for the ledger's whole life."""
        digest = hmac.digest(self._key, b"evaluation\0" + user.encode(), hashlib.sha256)
        return int.from_bytes(digest[:8], "big") < self.evaluation_users * 2**64

    def pseudonym(self, user: str) -> bytes:
        """16 bytes that stand for a user on this machine and mean nothing without the ledger's key."""
        return hmac.digest(self._key, b"pseudonym\0" + user.encode(), hashlib.sha256)[:16]

    def close(self) -> None:
        """Let go of the file; another process may write to it from here on."""
        with self._serial:
            self._connection.close()
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

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
