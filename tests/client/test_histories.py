"""Histories against a plain reading of all events, and what is held of a table that is larger than what is needed."""

import csv
import datetime
import random
import sqlite3
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.client.histories import Histories
from fedprofile.client.sources import read_examples, read_usable
from fedprofile.common.card import FederationCard
from fedprofile.common.tenant import TenantFile

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def _at(minute: int) -> datetime.datetime:
    return START + datetime.timedelta(minutes=minute)


_moments = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12)), max_size=40)


@settings(deadline=None, max_examples=300)
@given(_moments, _moments, st.integers(0, 4))
def test_a_history_is_the_newest_events_strictly_before(
    labels: list[tuple[str, int]], events: list[tuple[str, int]], most: int
) -> None:
    histories = Histories(((user, _at(minute)) for user, minute in labels), most)
    rows = [(user, minute, {"number": str(number)}) for number, (user, minute) in enumerate(events)]
    for user, minute, row in rows:
        histories.add(user, _at(minute), row)
    assert len(histories) <= most * len(set(labels))
    for user, minute in labels:
        theirs = sorted((one for one in rows if one[0] == user and one[1] < minute), key=lambda one: one[1])
        expected = tuple(row for *_, row in theirs[len(theirs) - min(most, len(theirs)) :])
        assert histories.before(user, _at(minute)) == expected


@settings(deadline=None, max_examples=200)
@given(
    _moments, st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 4)), max_size=20), st.data()
)
def test_without_an_order_of_their_own_the_order_of_events_changes_nothing(
    labels: list[tuple[str, int]], events: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    def read(those: list[tuple[str, int, int]]) -> list[tuple[Any, ...]]:
        histories = Histories(((user, _at(minute)) for user, minute in labels), 2, ordered=False)
        for user, minute, item in those:
            histories.add(user, _at(minute), {"item": str(item), "price": None})
        return [histories.before(user, _at(minute)) for user, minute in labels]

    assert read(events) == read(data.draw(st.permutations(events)))


USERS, MOST = 20, 5


def _rows(count: int) -> Iterator[list[str]]:
    """Events in no order: of users with labels, of others, before all labels and after them."""
    chance = random.Random(0)
    for number in range(count):
        user = f"u{chance.randrange(2 * USERS)}" if number % 2 else f"stranger{number}"
        yield [user, _at(chance.randrange(100_000)).isoformat(), "viewed", f"item {number} {'x' * 100}"]


def _write(folder: Path, kind: str, count: int) -> dict[str, str]:
    header, path = ["who", "when", "action", "item"], folder / f"events.{kind}"
    path.unlink(missing_ok=True)
    if kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(_rows(count))
        return {"kind": kind, "path": path.name}
    if kind == "sql":
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("CREATE TABLE events (who, 'when', action, item)")
            database.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", _rows(count))
        return {"kind": kind, "url": f"sqlite:///{path.name}", "query": "SELECT * FROM events"}
    frame = pd.DataFrame(_rows(count), columns=header)
    if kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    return {"kind": kind, "path": path.name}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "sql"])
@pytest.mark.parametrize("read", [read_examples, read_usable])
def test_memory_does_not_grow_with_events_that_no_history_needs(
    tmp_path: Path, card_data: Callable[..., dict[str, Any]], kind: str, read: Callable[..., Any]
) -> None:
    """Python's own objects; the other buffers are bounded by constants."""
    history = {"record": "in {month}", "event": "{action} {item}", "max_events": MOST}
    card = FederationCard.model_validate(
        card_data(history=history, features={"numeric": [], "categorical": []}, task={"group": None})
    )
    labels = ["who,when,month,bought", *(f"u{user},{_at(50_000).isoformat()},w1,no" for user in range(USERS))]
    (tmp_path / "data.csv").write_text("\n".join(labels) + "\n")

    def peak(count: int) -> int:
        tenant = TenantFile.model_validate(
            {
                "source": {"kind": "csv", "path": "data.csv"},
                "events": _write(tmp_path, kind, count),
                "columns": {"user": "who", "label": "bought", "time": "when"},
                "population": {"name": "p", "declared_users": 10},
                "budget": {"epsilon": 1.0},
                "run": {"epsilon": 1.0},
            }
        )
        tracemalloc.start()
        found = read(tenant, card, tmp_path)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        examples = found if isinstance(found, list) else found.examples
        assert [len(example.events) for example in examples] == [MOST] * USERS
        return most

    peak(5_000)  # Imports, and what is made once.
    few, many = peak(5_000), peak(20_000)
    # Held whole, the 15000 further events alone would take more than 4 MB.
    assert many < few + 1_000_000, (few, many)
