"""All of a ledger's rows at one moment, and whether they fit each other."""

import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from fedprofile.client.ledger_chain import chain_holds
from fedprofile.client.ledger_schema import (
    Budget,
    Entry,
    Population,
    Released,
    Segment,
    read_budgets,
    read_entries,
    read_population,
    read_released,
    read_segments,
)


@dataclass(frozen=True)
class LedgerRows:
    """Everything that the chains cover.

    Args:
        population: Whose ledger it is.
        budgets: By number.
        segments: By number.
        entries: By sequence.
        released: By number.
    """

    population: Population
    budgets: tuple[Budget, ...]
    segments: tuple[Segment, ...]
    entries: tuple[Entry, ...]
    released: tuple[Released, ...]

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> "LedgerRows":
        """Read them; in a transaction where another process writes."""
        return cls(
            read_population(connection),
            tuple(read_budgets(connection)),
            tuple(read_segments(connection)),
            tuple(read_entries(connection)),
            tuple(read_released(connection)),
        )

    @property
    def hold(self) -> bool:
        """Whether every row matches its hash and what stands before it, and every entry what counted when it was made.

        A row that is left out, renumbered or exchanged is noticed like one that is edited.
        """
        start = self.population.hash
        return (
            chain_holds([asdict(budget) for budget in self.budgets], start)
            and chain_holds([segment.row for segment in self.segments], start)
            and chain_holds([asdict(note) for note in self.released], start)
            and chain_holds([asdict(entry) for entry in self.entries])
            and _numbered(self.budgets)
            and _numbered(self.segments)
            and _numbered(self.released)
            and self._entries_hold(start)
        )

    def _entries_hold(self, start: str) -> bool:
        noted = {start: 0} | {note.head: note.number for note in self.released}
        numbers = {segment.number for segment in self.segments}
        for entry in self.entries:
            if (
                entry.segment not in numbers
                or entry.budget_head != _newest(self.budgets, entry, start)
                or entry.segment_head != _newest(self.segments, entry, start)
                or entry.released_head not in noted
            ):
                return False
        places = [noted[entry.released_head] for entry in self.entries]
        return all(earlier <= later for earlier, later in pairwise(places))


def _numbered(rows: Sequence[Budget | Segment | Released]) -> bool:
    return [row.number for row in rows] == list(range(1, len(rows) + 1))


def _newest(rows: Sequence[Budget | Segment], entry: Entry, start: str) -> str:
    """The hash of the newest row that was there when an entry was made."""
    return next((row.head for row in reversed(rows) if row.after_sequence < entry.sequence), start)
