"""Reading data: every problem by line and column, no cell's value, history strictly before the label."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fedprofile.client.sources import read_examples
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError, DataError, PolicyRefusal
from fedprofile.common.tenant import TenantFile

HEADER = ["who", "when", "month", "visits", "device", "action", "item", "where", "bought"]
ROWS = [
    ["ann", "2026-01-01", "w1", "1", "phone", "viewed", "shoes", "north", "no"],
    ["bob", "2026-01-02T10:00:00", "w2", "2", "desk", "viewed", "books", "south", "yes"],
    ["ann", "2026-01-03T10:00:00Z", "w3", "", "desk", "bought", "games", "east", "no"],
    ["ann", "2026-01-03T10:00:00+00:00", "w4", "4", "phone", "viewed", "books", "north", "yes"],
]


def _tenant(**changes: Any) -> TenantFile:
    data: dict[str, Any] = {
        "source": {"kind": "csv", "path": "data.csv"},
        "columns": {"user": "who", "label": "bought", "time": "when", "group": "where"},
        "population": {"name": "p", "declared_users": 10},
        "budget": {"epsilon": 1.0},
        "run": {"epsilon": 1.0},
    }
    for name, section in changes.items():
        data[name] = {**data.get(name, {}), **section} if name != "source" else section
    return TenantFile.model_validate(data)


@pytest.fixture
def card(card_data: Callable[..., dict[str, Any]]) -> FederationCard:
    return FederationCard.model_validate(card_data())


def _csv(folder: Path, rows: list[list[str]], header: list[str] = HEADER) -> None:
    (folder / "data.csv").write_text("\n".join(",".join(row) for row in [header, *rows]) + "\n")


def _events(example: Any) -> list[tuple[Any, Any]]:
    return [(event["action"], event["item"]) for event in example.events]


def test_history_is_strictly_before_the_label(tmp_path: Path, card: FederationCard) -> None:
    _csv(tmp_path, ROWS)
    examples = read_examples(_tenant(), card, tmp_path)
    assert [_events(example) for example in examples] == [[], [], [("viewed", "shoes")], [("viewed", "shoes")]]
    assert [example.label for example in examples] == [0, 1, 0, 1]
    assert [example.group for example in examples] == [0, 1, 2, 0]
    assert examples[2].row == {"month": "w3", "visits": None, "device": "desk"}


def test_every_kind_of_source_reads_the_same(tmp_path: Path, card: FederationCard) -> None:
    _csv(tmp_path, ROWS)
    expected = read_examples(_tenant(), card, tmp_path)
    table = [dict(zip(HEADER, row, strict=True)) for row in ROWS]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, table)))
    frame = pd.DataFrame(table)
    frame.to_parquet(tmp_path / "data.parquet")
    database = sqlite3.connect(tmp_path / "data.db")
    frame.to_sql("visits", database, index=False)
    database.commit()
    database.close()
    sources = [
        {"kind": "jsonl", "path": "data.jsonl"},
        {"kind": "parquet", "path": "data.parquet"},
        {"kind": "sql", "url": f"sqlite:///{tmp_path}/data.db", "query": "SELECT * FROM visits"},
    ]
    for source in sources:
        assert read_examples(_tenant(source=source), card, tmp_path) == expected


def test_a_query_cannot_write(tmp_path: Path, card: FederationCard) -> None:
    database = sqlite3.connect(tmp_path / "data.db")
    database.execute("CREATE TABLE visits (who TEXT)")
    database.commit()
    source = {"kind": "sql", "url": f"sqlite:///{tmp_path}/data.db", "query": "INSERT INTO visits VALUES ('x')"}
    with pytest.raises(DataError):
        read_examples(_tenant(source=source), card, tmp_path)
    assert database.execute("SELECT count(*) FROM visits").fetchone() == (0,)
    database.close()


@pytest.mark.parametrize(
    ("row", "column", "cell", "expected"),
    [
        (1, "when", "secret", "line 3, column 'when': is not an ISO 8601"),
        (2, "visits", "secret", "line 4, column 'visits': is not a finite number"),
        (2, "visits", "inf", "line 4, column 'visits': is not a finite number"),
        (3, "bought", "secret", "line 5, column 'bought': is not one of the card's labels (no, yes)"),
        (0, "who", "", "line 2, column 'who': is empty"),
    ],
)
def test_a_bad_cell_is_named_by_place_and_not_shown(
    tmp_path: Path, card: FederationCard, row: int, column: str, cell: str, expected: str
) -> None:
    rows = [list(cells) for cells in ROWS]
    rows[row][HEADER.index(column)] = cell
    _csv(tmp_path, rows)
    with pytest.raises(DataError) as caught:
        read_examples(_tenant(), card, tmp_path)
    assert expected in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_problems_are_named_at_once(tmp_path: Path, card: FederationCard) -> None:
    _csv(tmp_path, [[*row[:8], "perhaps"] for row in ROWS])
    with pytest.raises(DataError) as caught:
        read_examples(_tenant(), card, tmp_path)
    assert len(caught.value.problems) == 4


def test_a_missing_column_is_named(tmp_path: Path, card: FederationCard) -> None:
    _csv(tmp_path, [row[1:] for row in ROWS], HEADER[1:])
    with pytest.raises(DataError, match="column 'who' is missing"):
        read_examples(_tenant(), card, tmp_path)


@pytest.mark.parametrize("content", ["", "who,when\n", "who,when\n1,2,3\n", 'who,when\n"1', "who\n\xff"], ids=range(5))
def test_a_broken_file_is_a_plain_sentence(tmp_path: Path, card: FederationCard, content: str) -> None:
    (tmp_path / "data.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError):
        read_examples(_tenant(), card, tmp_path)


def test_a_protected_column_cannot_be_used(tmp_path: Path, card: FederationCard) -> None:
    _csv(tmp_path, ROWS)
    with pytest.raises(PolicyRefusal, match="'device'"):
        read_examples(_tenant(columns={"protected": ["device"]}), card, tmp_path)
    with pytest.raises(PolicyRefusal, match="'item'"):
        read_examples(_tenant(columns={"protected": ["item"]}), card, tmp_path)


def test_a_history_needs_a_time_column(tmp_path: Path, card: FederationCard) -> None:
    _csv(tmp_path, ROWS)
    with pytest.raises(ConfigError, match="time column"):
        read_examples(_tenant(columns={"time": None}), card, tmp_path)


def test_columns_can_be_renamed_and_events_come_from_their_own_table(tmp_path: Path, card: FederationCard) -> None:
    _csv(tmp_path, ROWS)
    (tmp_path / "events.csv").write_text(
        "who,at,did,item\nann,2025-12-31,searched,books\nann,2026-01-02,viewed,games\n"
    )
    tenant = _tenant(
        events={"kind": "csv", "path": "events.csv"}, columns={"event_time": "at", "rename": {"action": "did"}}
    )
    examples = read_examples(tenant, card, tmp_path)
    assert _events(examples[0]) == [("searched", "books")]
    assert _events(examples[2]) == [("searched", "books"), ("viewed", "games")]


def test_rows_without_labels_can_be_read_for_prediction(tmp_path: Path, card: FederationCard) -> None:
    _csv(tmp_path, [row[:7] for row in ROWS], HEADER[:7])
    examples = read_examples(_tenant(), card, tmp_path, labelled=False)
    assert [example.label for example in examples] == [-1] * 4
