"""Somebody who edits a ledger and makes every hash in it right again."""

import sqlite3
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from fedprofile.client.ledger_chain import chained
from fedprofile.client.ledger_rows import LedgerRows
from fedprofile.common.messages import GENESIS


def edit(path: Path, *statements: str) -> None:
    """Change rows and nothing else."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA foreign_keys = 0")
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def rewrite(path: Path, *statements: str) -> None:
    """Change rows, and all hashes so that they fit them."""
    edit(path, *statements)
    with closing(sqlite3.connect(path)) as connection:
        rows = LedgerRows.read(connection)
        start = rows.population.hash
        newest: dict[str, dict[int, str]] = {}
        for table, found in (
            ("budgets", [asdict(budget) for budget in rows.budgets]),
            ("segments", [segment.row for segment in rows.segments]),
            ("released", [asdict(note) for note in rows.released]),
        ):
            head, newest[table] = start, {}
            for row in found:
                head = chained(head, **{name: value for name, value in row.items() if name != "head"})
                connection.execute(f"UPDATE {table} SET head = ? WHERE number = ?", (head, row["number"]))
                newest[table][int(str(row.get("after_sequence", row["number"])))] = head
        head = GENESIS
        for entry in rows.entries:
            values = {name: value for name, value in asdict(entry).items() if name != "head"}
            for column, table in (("budget_head", "budgets"), ("segment_head", "segments")):
                values[column] = [one for after, one in newest[table].items() if after < entry.sequence][-1]
            noted = next((note.number for note in rows.released if note.head == entry.released_head), 0)
            values["released_head"] = newest["released"].get(noted, start)
            head = chained(head, **values)
            names = ("budget_head", "segment_head", "released_head")
            connection.execute(
                "UPDATE entries SET budget_head = ?, segment_head = ?, released_head = ?, head = ? WHERE sequence = ?",
                (*(values[name] for name in names), head, entry.sequence),
            )
        connection.commit()
        assert LedgerRows.read(connection).hold, "the ledger by itself tells nothing any more"
