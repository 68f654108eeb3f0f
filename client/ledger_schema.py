"""The ledger's file: tables and rows. How their hashes hang together is `fedprofile.client.ledger_chain`'s."""

import secrets
import sqlite3
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from fedprofile.client.ledger_chain import chained, population_hash
from fedprofile.client.segments import SegmentPlan
from fedprofile.common.accounting import MechanismEvent
from fedprofile.common.messages import LedgerMark

FORMAT = 4

SALT_BYTES = 16

TRAIN = "train"
EVALUATE = "evaluate"

SCHEMA = """
CREATE TABLE population (
    format INTEGER NOT NULL, name TEXT NOT NULL, user_column TEXT NOT NULL, evaluation_users REAL NOT NULL,
    key BLOB NOT NULL
);
CREATE TABLE budgets (
    number INTEGER PRIMARY KEY, epsilon REAL NOT NULL, delta REAL NOT NULL, reason TEXT NOT NULL,
    after_sequence INTEGER NOT NULL, time TEXT NOT NULL, head TEXT NOT NULL
);
CREATE TABLE segments (
    number INTEGER PRIMARY KEY, card_hash TEXT NOT NULL, epsilon REAL NOT NULL, delta REAL NOT NULL,
    sample_rate REAL NOT NULL, noise_multiplier REAL NOT NULL, clip_norm REAL NOT NULL,
    records_per_user INTEGER NOT NULL, local_steps INTEGER NOT NULL, cap_steps INTEGER NOT NULL,
    evaluation_noise_multiplier REAL NOT NULL, cap_tables INTEGER NOT NULL, opened TEXT NOT NULL,
    after_sequence INTEGER NOT NULL, head TEXT NOT NULL
);
CREATE TABLE entries (
    sequence INTEGER PRIMARY KEY, segment INTEGER NOT NULL REFERENCES segments (number), kind TEXT NOT NULL,
    round INTEGER NOT NULL, question TEXT NOT NULL, sample_rate REAL NOT NULL, noise_multiplier REAL NOT NULL,
    steps INTEGER NOT NULL, time TEXT NOT NULL, written_off INTEGER NOT NULL, budget_head TEXT NOT NULL,
    segment_head TEXT NOT NULL, released_head TEXT NOT NULL, salt TEXT NOT NULL, head TEXT NOT NULL
);
CREATE TABLE released (
    number INTEGER PRIMARY KEY, sequence INTEGER NOT NULL UNIQUE REFERENCES entries (sequence), payload TEXT NOT NULL,
    head TEXT NOT NULL
);
CREATE TABLE refused (code TEXT PRIMARY KEY, count INTEGER NOT NULL);
CREATE TABLE foreign_marks (
    sequence INTEGER NOT NULL, head TEXT NOT NULL, common INTEGER NOT NULL, claimed INTEGER NOT NULL,
    accepted INTEGER NOT NULL, PRIMARY KEY (sequence, head)
);
"""


@dataclass(frozen=True)
class Population:
    """Whose ledger it is, and what is fixed when it is made.

    Args:
        format: Of the file.
        name: The population's.
        user_column: The column that says whose a row is: the unit of the whole promise.
        evaluation_users: Fraction of users who are only evaluated.
        key: Of the split.
    """

    format: int
    name: str
    user_column: str
    evaluation_users: float
    key: bytes

    @property
    def hash(self) -> str:
        """Where the chains of budgets, segments and releases start."""
        return population_hash(self.format, self.name, self.user_column, self.evaluation_users, self.key)


@dataclass(frozen=True)
class Budget:
    """A budget for the population's life. The last one counts; the earlier ones are the record of how it was raised.

    Args:
        number: Ascending from 1, which was given when the ledger was made.
        epsilon: For life.
        delta: For life.
        reason: In the words of whoever raised it.
        after_sequence: The last entry at that time, 0 for none.
        time: UTC, ISO 8601.
        head: Hash over this budget, those before it and the population.
    """

    number: int
    epsilon: float
    delta: float
    reason: str
    after_sequence: int
    time: str
    head: str


@dataclass(frozen=True)
class Segment:
    """An opened segment; nothing of it ever changes.

    Args:
        number: Ascending from 1.
        plan: The mechanism and its caps.
        opened: UTC, ISO 8601.
        after_sequence: The last entry at that time, 0 for none.
        head: Hash over this segment, those before it and the population.
    """

    number: int
    plan: SegmentPlan
    opened: str
    after_sequence: int
    head: str

    @property
    def row(self) -> dict[str, object]:
        """As it is stored, and hashed but for its `head`."""
        values = {name: value for name, value in asdict(self).items() if name != "plan"}
        return {**asdict(self.plan), **values}


@dataclass(frozen=True)
class Entry:
    """One reservation: what a release may cost, written before anything is drawn for it.

    Args:
        sequence: Ascending.
        segment: Number of the segment.
        kind: "train" or "evaluate".
        round: Of the request.
        question: SHA-256 of the arrays that came with the request.
        sample_rate: q, 1.0 for a table.
        noise_multiplier: The accounted one.
        steps: How many steps of the mechanism.
        time: UTC, ISO 8601.
        written_off: Whether it stands for releases whose entries were lost.
        budget_head: Of the budget that counted then.
        segment_head: Of the newest segment then, which need not be this entry's.
        released_head: Of what was last noted as released then.
        salt: 16 random bytes in hexadecimal digits; never leaves with a reply.
        head: The chain's hash up to and with this entry.
    """

    sequence: int
    segment: int
    kind: str
    round: int
    question: str
    sample_rate: float
    noise_multiplier: float
    steps: int
    time: str
    written_off: bool
    budget_head: str
    segment_head: str
    released_head: str
    salt: str
    head: str

    @property
    def event(self) -> MechanismEvent:
        """What it costs."""
        return MechanismEvent(self.sample_rate, self.noise_multiplier, self.steps)


@dataclass(frozen=True)
class Released:
    """What one entry's release was.

    Args:
        number: Ascending from 1, in the order in which they were noted.
        sequence: Of the entry.
        payload: SHA-256 of the released arrays.
        head: Hash over this one, those before it and the population.
    """

    number: int
    sequence: int
    payload: str
    head: str


def read_population(connection: sqlite3.Connection) -> Population:
    """Whose ledger it is."""
    return Population(*connection.execute(f"SELECT {_names(Population)} FROM population").fetchone())


def read_budgets(connection: sqlite3.Connection) -> list[Budget]:
    """All budgets, the one that counts last."""
    return [Budget(*row) for row in _rows(connection, "budgets", Budget)]


def append_budget(connection: sqlite3.Connection, epsilon: float, delta: float, reason: str) -> Budget:
    """Add a budget, in the caller's transaction."""
    values: dict[str, object] = {
        "number": _next_number(connection, "budgets"),
        "epsilon": float(epsilon),
        "delta": float(delta),
        "reason": reason,
        "after_sequence": last_mark(connection).sequence,
        "time": now(),
    }
    return Budget(**_append(connection, "budgets", values))


def read_segments(connection: sqlite3.Connection) -> list[Segment]:
    """All segments, in the order in which they were opened."""
    names = [field.name for field in fields(SegmentPlan)]
    rows = connection.execute(
        f"SELECT number, opened, after_sequence, head, {', '.join(names)} FROM segments ORDER BY number"
    )
    return [Segment(row[0], SegmentPlan(*row[4:]), *row[1:4]) for row in rows]


def append_segment(connection: sqlite3.Connection, plan: SegmentPlan) -> Segment:
    """Open a segment, in the caller's transaction."""
    number, opened, after = _next_number(connection, "segments"), now(), last_mark(connection).sequence
    values = Segment(number, plan, opened, after, "").row
    # As they will come back from columns of this type.
    values |= {field.name: float(getattr(plan, field.name)) for field in fields(SegmentPlan) if field.type is float}
    del values["head"]
    return Segment(number, plan, opened, after, _append(connection, "segments", values)["head"])


def read_released(connection: sqlite3.Connection) -> list[Released]:
    """What was noted as released, in that order."""
    return [Released(*row) for row in _rows(connection, "released", Released)]


def append_released(connection: sqlite3.Connection, sequence: int, payload: str) -> Released:
    """Note what an entry's release was, in the caller's transaction."""
    values: dict[str, object] = {
        "number": _next_number(connection, "released"),
        "sequence": sequence,
        "payload": payload,
    }
    return Released(**_append(connection, "released", values))


def last_head(connection: sqlite3.Connection, table: str) -> str:
    """The end of one of the chains that start at the population; `table` is a word of this package's."""
    row = connection.execute(f"SELECT head FROM {table} ORDER BY number DESC LIMIT 1").fetchone()
    return str(row[0]) if row else read_population(connection).hash


def read_entries(connection: sqlite3.Connection) -> list[Entry]:
    """All entries, by sequence."""
    names = [field.name for field in fields(Entry)]
    rows = connection.execute(f"SELECT {', '.join(names)} FROM entries ORDER BY sequence")
    entries = [dict(zip(names, row, strict=True)) for row in rows]
    return [Entry(**{**entry, "written_off": bool(entry["written_off"])}) for entry in entries]


def insert(connection: sqlite3.Connection, table: str, values: dict[str, object]) -> None:
    """Insert one row; names come from this package's dataclasses, values are bound."""
    names = ", ".join(values)
    marks = ", ".join("?" for _ in values)
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(values.values()))


def append_entry(
    connection: sqlite3.Connection,
    segment: int,
    kind: str,
    round_number: int,
    question: str,
    event: MechanismEvent,
    *,
    written_off: bool = False,
) -> Entry:
    """Add an entry to the end of the chain, in the caller's transaction."""
    values: dict[str, object] = {
        "sequence": _next_sequence(connection),
        "segment": segment,
        "kind": kind,
        "round": round_number,
        "question": question,
        "sample_rate": event.sample_rate,
        "noise_multiplier": event.noise_multiplier,
        "steps": event.steps,
        "time": now(),
        "written_off": written_off,
        "budget_head": last_head(connection, "budgets"),
        "segment_head": last_head(connection, "segments"),
        "released_head": last_head(connection, "released"),
        "salt": secrets.token_hex(SALT_BYTES),
    }
    values["head"] = chained(last_mark(connection).head, **values)
    insert(connection, "entries", values)
    return Entry(**values)  # type: ignore[arg-type]


def last_mark(connection: sqlite3.Connection) -> LedgerMark:
    """The end of the chain."""
    row = connection.execute("SELECT sequence, head FROM entries ORDER BY sequence DESC LIMIT 1").fetchone()
    return LedgerMark(*row) if row else LedgerMark()


def _next_sequence(connection: sqlite3.Connection) -> int:
    """One more than every number that is taken, here or in a history whose loss was written off."""
    query = "SELECT coalesce(max(sequence), 0) FROM foreign_marks WHERE accepted"
    return max(last_mark(connection).sequence, int(connection.execute(query).fetchone()[0])) + 1


def holds_entry(connection: sqlite3.Connection, mark: LedgerMark) -> bool:
    """Whether exactly this entry is in the ledger; then everything before it is, too."""
    query = "SELECT 1 FROM entries WHERE sequence = ? AND head = ?"
    return connection.execute(query, (mark.sequence, mark.head)).fetchone() is not None


def accepted_marks(connection: sqlite3.Connection) -> frozenset[LedgerMark]:
    """The marks of lost histories that were written off."""
    rows = connection.execute("SELECT sequence, head FROM foreign_marks WHERE accepted")
    return frozenset(LedgerMark(*row) for row in rows)


def payload_of(connection: sqlite3.Connection, sequence: int) -> str | None:
    """What was noted as an entry's release, None where nothing was."""
    row = connection.execute("SELECT payload FROM released WHERE sequence = ?", (sequence,)).fetchone()
    return str(row[0]) if row else None


def used_steps(connection: sqlite3.Connection, segment: int, kind: str) -> int:
    """How many steps of one kind a segment has reserved."""
    query = "SELECT coalesce(sum(steps), 0) FROM entries WHERE segment = ? AND kind = ?"
    return int(connection.execute(query, (segment, kind)).fetchone()[0])


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _names(row: type[Population | Budget | Released]) -> str:
    return ", ".join(field.name for field in fields(row))


def _rows(connection: sqlite3.Connection, table: str, row: type[Budget | Released]) -> list[tuple[Any, ...]]:
    return connection.execute(f"SELECT {_names(row)} FROM {table} ORDER BY number").fetchall()


def _next_number(connection: sqlite3.Connection, table: str) -> int:
    return int(connection.execute(f"SELECT coalesce(max(number), 0) + 1 FROM {table}").fetchone()[0])


def _append(connection: sqlite3.Connection, table: str, values: dict[str, object]) -> dict[str, Any]:
    """Insert a row at the end of a chain that starts at the population; the row with its `head`."""
    full = {**values, "head": chained(last_head(connection, table), **values)}
    insert(connection, table, full)
    return full
