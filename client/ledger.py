"""The ledger of a population: what has been, and what may still be, released about its users.

It belongs to the DATA: every federation, task and evaluation over the same users reserves in the same file, which
lies outside the tenant's directory. It stores events (sample rate, noise, steps) and never an epsilon.

Guarantees, each with a test:
    - an entry is on the disk (WAL, synchronous=FULL) before any randomness is drawn for it, and survives `kill -9`;
    - one writer: a second one is refused, readers are not;
    - segments' epsilons and deltas add and never exceed the life's budget, each charged in full when opened;
    - the life's budget is raised only by a person who says why, and the ledger keeps every budget that it had;
    - inside a segment nothing is reserved beyond its caps;
    - the users' column and the evaluation key and fraction are fixed when the ledger is made;
    - no row of it can be edited without the chains telling (`fedprofile.client.ledger_chain`);
    - a ledger that is behind what the server has seen, or has another history, is noticed;
    - so is one that is behind the marks beside it (`fedprofile.client.high_water`), whatever the server shows, also
      where the file was replaced while it was open; from then on nothing is reserved;
    - a reply whose entry is not in the ledger is not sent;
    - lost entries can be written off, by a person (`fedprofile.client.write_off`).
"""

import os
import sqlite3
from datetime import date
from pathlib import Path
from typing import Self

from fedprofile.client.high_water import high_waters
from fedprofile.client.ledger_file import check_same, connect, create, lock_file, require_format, sync_folder
from fedprofile.client.ledger_history import LedgerHistory
from fedprofile.client.ledger_schema import (
    EVALUATE,
    FORMAT,
    TRAIN,
    Budget,
    Entry,
    Population,
    Segment,
    append_budget,
    append_entry,
    append_segment,
    read_budgets,
    read_population,
    read_segments,
    used_steps,
)
from fedprofile.client.sampling import is_evaluation_user
from fedprofile.client.segments import SegmentPlan
from fedprofile.common.accounting import MechanismEvent
from fedprofile.common.errors import BudgetRefusal, ConfigError, RefusalCode
from fedprofile.common.messages import Kind, LedgerMark

_DISK_ERRORS = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN})
_NAMES = {Kind.TRAIN: TRAIN, Kind.EVALUATE: EVALUATE}
_QUESTIONS = "SELECT card_hash, kind, round, question FROM entries JOIN segments ON segments.number = entries.segment"
_TOLERANCE = 1 + 1e-9
"""For adding shares such as 0.1 in floating point."""


class Ledger(LedgerHistory):
    """The one writer of a ledger's file. Make it with `Ledger.open`; `close` it, or use it as a context."""

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: int) -> None:
        own = read_population(connection)
        super().__init__(path, connection, own.name)
        self._lock = lock
        self.evaluation_users = own.evaluation_users
        self._key = own.key

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        population: str,
        user_column: str,
        epsilon: float,
        delta: float,
        evaluation_users: float,
        split_key: bytes | None = None,
        marks: Path | None = None,
        account_marks: Path | None = None,
        new: bool = True,
    ) -> "Ledger":
        """Open a population's ledger for writing.

        Args:
            path: The file; symbolic links are followed first, so that all of them share one lock.
            population: The name that it must carry.
            user_column: The column that says whose a row is; fixed when the ledger is made, because it is the unit of
                everything that the ledger counts.
            epsilon: The life's budget: the ledger is made with it, and must hold it from then on; see `raise_budget`.
            delta: The life's budget.
            evaluation_users: Fraction of users who are only evaluated; fixed when the ledger is made.
            split_key: Key of the split when the ledger is made; None draws one. For rehearsals only.
            marks: Folder of the tenant's `HighWater`, compared with now and at every reservation; None keeps none.
            account_marks: The same beside the registry, for all directories of one account.
            new: Whether a ledger is made where there is none.

        Returns:
            The ledger, locked until it is closed.

        Raises:
            ConfigError: Another process writes to it, it cannot be opened, it has a second name, it is another
                population's, it was edited, the column, the budget or the fraction differs from what it holds, or it
                is not there and `new` is false.
            LedgerBehindError: It is older than the marks, or was rewritten since.
        """
        path = path.resolve()
        if not new and not path.exists():
            raise missing_ledger(path, population)
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
                    if not new:
                        raise missing_ledger(path, population)
                    key = os.urandom(32) if split_key is None else split_key
                    own = Population(FORMAT, population, user_column, float(evaluation_users), key)
                    create(connection, own, epsilon, delta)
                    sync_folder(path.parent)
                require_format(path, connection)
                ledger = cls(path, connection, lock)
                check_same(
                    path,
                    connection,
                    population=population,
                    user_column=user_column,
                    epsilon=epsilon,
                    delta=delta,
                    evaluation_users=evaluation_users,
                )
                ledger.keep_marks(*high_waters(population, marks, account_marks))
            except BaseException:
                connection.close()
                raise
        except BaseException as error:
            os.close(lock)
            if isinstance(error, sqlite3.DatabaseError):
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DISK_ERRORS:
                    raise ConfigError(
                        f"{path}: the disk is full, read-only or failing ({error.sqlite_errorname}); make room or make "
                        f"it writable, and start again. The ledger itself is as it was: do not restore an older one."
                    ) from error
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
            segments, life = read_segments(self._connection), read_budgets(self._connection)[-1]
            for segment in segments:
                if segment.plan.settings == plan.settings:
                    return segment
            taken = sum(segment.plan.epsilon for segment in segments)
            taken_delta = sum(segment.plan.delta for segment in segments)
            too_much = taken + plan.epsilon > life.epsilon * _TOLERANCE
            if too_much or taken_delta + plan.delta > life.delta * _TOLERANCE:
                raise BudgetRefusal(
                    f"epsilon={plan.epsilon:g} (delta={plan.delta:g}) for this run would exceed the life's budget "
                    f"epsilon={life.epsilon:g} (delta={life.delta:g}) of population '{self.population}', of which "
                    f"{len(segments)} earlier run(s) have taken epsilon={taken:g} (delta={taken_delta:g}); lower the "
                    f"run's share, or leave the run."
                )
            return append_segment(self._connection, plan)

    def raise_budget(self, epsilon: float, delta: float, reason: str) -> Budget:
        """Allow more to be released about the same users than was promised when the ledger was made.

        What was promised until now is no longer true, so this is never a side effect: a person asks for it and says
        why, and the old budgets stay in the ledger with the last entry that was made under each. Segments that are open
        keep their caps; only new ones can take what was added.

        Args:
            epsilon: For life.
            delta: For life.
            reason: Why; kept in the ledger.

        Returns:
            The budget that counts from here on.

        Raises:
            ConfigError: See `check_raise`.
            LedgerBehindError: The file was replaced since it was opened, or is known not to be the newest.
        """
        with self._serial:
            self._require_newest()
            with self._transaction():
                self.check_raise(epsilon, delta, reason)
                budget = append_budget(self._connection, epsilon, delta, reason)
            self._keep_budget()
            return budget

    def check_raise(self, epsilon: float, delta: float, reason: str) -> None:
        """Refuse what `raise_budget` would refuse, without raising: before anybody is asked.

        Args:
            epsilon: For life.
            delta: For life.
            reason: Why. One line, since whoever reads it later must not take it for lines of the ledger.

        Raises:
            ConfigError: It is no raise, there is no reason, or the reason has characters that a screen does not show.
        """
        if not reason.strip():
            raise ConfigError("--raise needs a reason in words, which is kept in the ledger.")
        if not reason.isprintable():
            raise ConfigError(
                "--raise has a reason with a line break or another character that a screen does not show; give it in "
                "one line of plain text."
            )
        with self._serial:
            old = read_budgets(self._connection)[-1]
        if not (epsilon >= old.epsilon and delta >= old.delta and (epsilon, delta) != (old.epsilon, old.delta)):
            raise ConfigError(
                f"budget.epsilon={epsilon:g}, budget.delta={delta:g} is no raise of epsilon={old.epsilon:g} "
                f"(delta={old.delta:g}), which population '{self.population}' has; write the higher budget into "
                "tenant.toml first. A budget is never lowered: lower a run's share instead."
            )

    def segments(self) -> list[Segment]:
        """All segments, in the order in which they were opened."""
        with self._serial:
            return read_segments(self._connection)

    def segment_of(self, plan: SegmentPlan) -> Segment | None:
        """The open segment with a plan's card and settings, if there is one."""
        return next((segment for segment in self.segments() if segment.plan.settings == plan.settings), None)

    def reserve(self, segment: Segment, kind: Kind, round_number: int, question: str) -> Entry:
        """Write down what a release may cost. When this returns, the entry and the mark beside it are on the disk.

        Args:
            segment: Of the run.
            kind: `TRAIN` costs the plan's local steps, `EVALUATE` one table.
            round_number: Of the request.
            question: SHA-256 of the received arrays.

        Returns:
            The entry; only now may randomness be drawn.

        Raises:
            BudgetRefusal: The segment's cap would be exceeded; nothing is written.
            LedgerBehindError: The file was replaced since it was opened, or entries are known to be missing.
        """
        with self._serial:
            self._require_newest()
            with self._transaction():
                name, event = self._within_cap(segment, kind, round_number)
                entry = append_entry(self._connection, segment.number, name, round_number, question, event)
            self._keep_mark(entry)
            return entry

    def was_released(self, card_hash: str, kind: Kind, round_number: int, question: str) -> bool:
        """Whether a reply to a question was finished and released for sending before, in whichever segment of the card.

        Args:
            card_hash: Of the request.
            kind: As for `reserve`.
            round_number: Of the request.
            question: SHA-256 of the received arrays.
        """
        query = f"{_QUESTIONS} JOIN released USING (sequence) WHERE (card_hash, kind, round, question) = (?, ?, ?, ?)"
        asked = (card_hash, _NAMES[kind], round_number, question)
        with self._serial:
            return self._connection.execute(query, asked).fetchone() is not None

    def answers(self, mark: LedgerMark, card_hash: str, kind: Kind, round_number: int, question: str) -> bool:
        """Whether the entry that a mark names was made for a question. Also True where the file has no such entry:
        `mark_released` decides about that.

        Args:
            mark: Of a stored reply.
            card_hash: Of the request.
            kind: As for `reserve`.
            round_number: Of the request.
            question: SHA-256 of the received arrays.
        """
        query = f"{_QUESTIONS} WHERE sequence = ? AND entries.head = ?"
        with self._serial:
            found = self._connection.execute(query, (mark.sequence, mark.head)).fetchone()
        return found is None or found == (card_hash, _NAMES[kind], round_number, question)

    def check_cap(self, segment: Segment, kind: Kind, round_number: int) -> None:
        """Refuse what `reserve` would refuse, without reserving: before the data is looked at, so that a refusal by
        budget cannot depend on it.

        Args:
            segment: Of the run.
            kind: As for `reserve`.
            round_number: Of the request.

        Raises:
            BudgetRefusal: The segment's cap would be exceeded.
        """
        with self._serial:
            self._within_cap(segment, kind, round_number)

    def _within_cap(self, segment: Segment, kind: Kind, round_number: int) -> tuple[str, MechanismEvent]:
        plan = segment.plan
        event, cap = (plan.train_event, plan.cap_steps) if kind is Kind.TRAIN else (plan.table_event, plan.cap_tables)
        name = _NAMES[kind]
        used = used_steps(self._connection, segment.number, name)
        if used + event.steps > cap:
            raise BudgetRefusal(
                f"{name} of round {round_number}: {used} + {event.steps} steps would exceed the {cap} of segment "
                f"{segment.number} (epsilon={plan.epsilon:g}, delta={plan.delta:g}, population "
                f"'{self.population}'); this run's share is spent."
            )
        return name, event

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
        return is_evaluation_user(user, self._key, self.evaluation_users)

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


def missing_ledger(path: Path, population: str) -> ConfigError:
    """What to say where a ledger is gone: a new one would be a new budget.

    Args:
        path: Where it was.
        population: Whose it was.

    Returns:
        The error to raise.
    """
    return ConfigError(
        f"{path}: the ledger of population '{population}' is not there; restore its newest copy. Going on without it "
        "would forget what was released before."
    )
