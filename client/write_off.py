"""Lost entries: which foreign marks the ledger has met, and what counting the loss as spent comes to.

A foreign mark names an entry that this file does not hold, so that releases were made which it does not count. Nobody
can say which of a population's runs they were in, nor whether they were trainings or tables. So each missing entry
counts as both, in EVERY segment, up to what the segment's caps have left: that is the largest loss that is possible,
and the caps were charged to the life's budget when the segments were opened.

How many are missing: the mark's number less that of the last entry which both histories are known to share. Where the
file was continued after it was restored, its own last entry is not shared, so only what is proven counts: the marks
beside the ledger (`fedprofile.client.high_water`), or, for a server's mark, the newest entry of this file that this
server has shown. Without proof everything up to the mark counts as missing.

A loss that only the server claims, while the marks here fit the ledger, is remembered as such: a server that lies could
otherwise have a person write off what was never lost.
"""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from fedprofile.client.ledger_schema import EVALUATE, TRAIN, Segment, read_segments, used_steps
from fedprofile.common.accounting import MechanismEvent
from fedprofile.common.messages import LedgerMark, MessageError

MOST_AHEAD = 1 << 20
"""No server's mark is believed that is further ahead of the ledger. A million entries are never lost; and as numbers go
on behind a mark that was written off, one of nearly 2**62 would leave no legal number for the next entry."""
LARGEST = 1 << 61
"""No mark at all is believed from here on, wherever it comes from; half of the numbers stay for what follows."""


@dataclass(frozen=True)
class Charge:
    """What a write-off counts as spent in one segment.

    Args:
        segment: In which.
        kind: "train" or "evaluate".
        event: The cost.
    """

    segment: Segment
    kind: str
    event: MechanismEvent


def note_foreign(connection: sqlite3.Connection, marks: Mapping[LedgerMark, int], *, claimed: bool = False) -> None:
    """Remember the marks of a foreign history until a person writes it off; only what was noted last is kept.

    Args:
        connection: In a transaction.
        marks: What is known of it, each with the last entry that its history is known to share with this file, 0 for
            none.
        claimed: Whether only the server says so.

    Raises:
        MessageError: A mark is not one that any ledger can come to.
    """
    if any(mark.sequence >= LARGEST for mark in marks):
        raise MessageError("a ledger mark is beyond what a ledger can come to: the file that it stands in is damaged.")
    connection.execute("DELETE FROM foreign_marks WHERE NOT accepted")
    rows = [(mark.sequence, mark.head, common, claimed) for mark, common in marks.items()]
    connection.executemany("INSERT OR IGNORE INTO foreign_marks VALUES (?, ?, ?, ?, 0)", rows)


def accepts_foreign(connection: sqlite3.Connection, mark: LedgerMark) -> bool:
    """Whether a mark's history was written off."""
    query = "SELECT 1 FROM foreign_marks WHERE sequence = ? AND head = ? AND accepted"
    return connection.execute(query, (mark.sequence, mark.head)).fetchone() is not None


def accept_foreign(connection: sqlite3.Connection) -> None:
    """Count every remembered mark as known from here on."""
    connection.execute("UPDATE foreign_marks SET accepted = 1")


def only_claimed(connection: sqlite3.Connection) -> bool:
    """Whether nobody but the server says that anything is missing."""
    [known] = connection.execute("SELECT min(claimed) FROM foreign_marks WHERE NOT accepted").fetchone()
    return bool(known)


def missing_entries(connection: sqlite3.Connection) -> int:
    """How many entries the foreign history may have that this file has not; 0 where none is remembered."""
    rows = connection.execute("SELECT sequence, common FROM foreign_marks WHERE NOT accepted").fetchall()
    # A history that claims to have parted after the mark it is known by proves nothing.
    return max((sequence - common if common < sequence else sequence for sequence, common in rows), default=0)


def charges(connection: sqlite3.Connection) -> list[Charge]:
    """What writing the remembered history off would count as spent, in every segment and of both kinds."""
    missing = missing_entries(connection)
    found = []
    for segment in read_segments(connection):
        plan = segment.plan
        for kind, event, cap in (
            (TRAIN, plan.train_event, plan.cap_steps),
            (EVALUATE, plan.table_event, plan.cap_tables),
        ):
            steps = min(missing * event.steps, cap - used_steps(connection, segment.number, kind))
            if steps > 0:
                found.append(Charge(segment, kind, MechanismEvent(event.sample_rate, event.noise_multiplier, steps)))
    return found
