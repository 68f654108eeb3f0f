"""The ledger's file: tables, rows and the hash chain.

The chain makes an entry's hash cover everything before it, so that an edited or shortened ledger no longer matches
its own hashes or the mark that the server has seen.

Why every entry has a salt: the chain's hash travels with the reply, and all else that it covers can be guessed. Without
the salt a server could try each second, sample rate and run number until the hash fits, and so learn when the
reservation was made (which follows from how long the data took to read) and how a tenant samples. With 16 secret random
bytes in each hash it can only compare: the same hash is the same history.
"""

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime

from fedprofile.client.segments import SegmentPlan
from fedprofile.common.accounting import MechanismEvent
from fedprofile.common.messages import GENESIS, LedgerMark

FORMAT = 3

SALT_BYTES = 16

TRAIN = "train"
EVALUATE = "evaluate"

SCHEMA = """
CREATE TABLE population (
    format INTEGER NOT NULL, name TEXT NOT NULL, evaluation_users REAL NOT NULL, key BLOB NOT NULL
);
CREATE TABLE budgets (
    number INTEGER PRIMARY KEY, epsilon REAL NOT NULL, delta REAL NOT NULL, reason TEXT NOT NULL,
    after_sequence INTEGER NOT NULL, time TEXT NOT NULL, head TEXT NOT NULL
);
CREATE TABLE segments (
    number INTEGER PRIMARY KEY, card_hash TEXT NOT NULL, epsilon REAL NOT NULL, delta REAL NOT NULL,
    sample_rate REAL NOT NULL, noise_multiplier REAL NOT NULL, clip_norm REAL NOT NULL,
    records_per_user INTEGER NOT NULL, local_steps INTEGER NOT NULL, cap_steps INTEGER NOT NULL,
    evaluation_noise_multiplier REAL NOT NULL, cap_tables INTEGER NOT NULL, opened TEXT NOT NULL
);
CREATE TABLE entries (
    sequence INTEGER PRIMARY KEY, segment INTEGER NOT NULL REFERENCES segments (number), kind TEXT NOT NULL,
    round INTEGER NOT NULL, question TEXT NOT NULL, sample_rate REAL NOT NULL, noise_multiplier REAL NOT NULL,
    steps INTEGER NOT NULL, time TEXT NOT NULL, written_off INTEGER NOT NULL, salt TEXT NOT NULL,
    head TEXT NOT NULL
);
CREATE TABLE released (sequence INTEGER PRIMARY KEY REFERENCES entries (sequence), payload TEXT NOT NULL);
CREATE TABLE refused (code TEXT PRIMARY KEY, count INTEGER NOT NULL);
CREATE TABLE foreign_marks (sequence INTEGER NOT NULL, head TEXT NOT NULL, common INTEGER NOT NULL,
    accepted INTEGER NOT NULL, PRIMARY KEY (sequence, head));
"""


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
        head: Hash over this budget and those before it; a chain of its own, none of which travels.
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
    """An opened segment; `plan` never changes."""

    number: int
    plan: SegmentPlan
    opened: str


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
    salt: str
    head: str

    @property
    def event(self) -> MechanismEvent:
        """What it costs."""
        return MechanismEvent(self.sample_rate, self.noise_multiplier, self.steps)


def chained(previous: str, **values: object) -> str:
    """The chain's next hash.

    Args:
        previous: The hash before; `GENESIS` for the first entry.
        values: All fields of the entry but its `head`.

    Returns:
        SHA-256 over both.
    """
    body = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{previous}\n{body}".encode()).hexdigest()


def chain_holds(rows: Sequence[Entry] | Sequence[Budget]) -> bool:
    """Whether every row's hash covers what stands before it.

    Args:
        rows: All entries, or all budgets, in their order.
    """
    head = GENESIS
    for row in rows:
        values = asdict(row)
        head = chained(head, **{name: value for name, value in values.items() if name != "head"})
        if head != row.head:
            return False
    return True


def read_budgets(connection: sqlite3.Connection) -> list[Budget]:
    """All budgets, the one that counts last."""
    names = ", ".join(field.name for field in fields(Budget))
    return [Budget(*row) for row in connection.execute(f"SELECT {names} FROM budgets ORDER BY number")]


def append_budget(connection: sqlite3.Connection, epsilon: float, delta: float, reason: str) -> Budget:
    """Add a budget, in the caller's transaction."""
    earlier = read_budgets(connection)
    values: dict[str, object] = {
        "number": len(earlier) + 1,
        "epsilon": epsilon,
        "delta": delta,
        "reason": reason,
        "after_sequence": last_mark(connection).sequence,
        "time": now(),
    }
    values["head"] = chained(earlier[-1].head if earlier else GENESIS, **values)
    insert(connection, "budgets", values)
    return Budget(**values)  # type: ignore[arg-type]


def read_segments(connection: sqlite3.Connection) -> list[Segment]:
    """All segments, in the order in which they were opened."""
    names = [field.name for field in fields(SegmentPlan)]
    rows = connection.execute(f"SELECT number, opened, {', '.join(names)} FROM segments ORDER BY number")
    return [Segment(row[0], SegmentPlan(*row[2:]), row[1]) for row in rows]


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


def used_steps(connection: sqlite3.Connection, segment: int, kind: str) -> int:
    """How many steps of one kind a segment has reserved."""
    query = "SELECT coalesce(sum(steps), 0) FROM entries WHERE segment = ? AND kind = ?"
    return int(connection.execute(query, (segment, kind)).fetchone()[0])


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
