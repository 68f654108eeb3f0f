"""Reading data: every problem by line and column, no cell's value, history strictly before the label."""

import datetime
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fedprofile.client.sources import read_examples, read_usable
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError, DataError, PolicyRefusal
from fedprofile.common.tenant import TenantFile

HEADER = ["who", "when", "month", "visits", "device", "action", "item", "where", "bought"]
ROWS = [
    ["ann", "2026-01-01T08:00:00Z", "w1", "1", "phone", "viewed", "shoes", "north", "no"],
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
    with pytest.raises(DataError, match="column 'who' is missing among its 8"):
        read_examples(_tenant(), card, tmp_path)


def test_a_json_column_is_missing_where_no_row_has_it(tmp_path: Path, card: FederationCard) -> None:
    table = [dict(zip(HEADER, row, strict=True)) for row in ROWS]
    del table[0]["visits"]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, table)))
    tenant = _tenant(source={"kind": "jsonl", "path": "data.jsonl"})
    assert read_examples(tenant, card, tmp_path)[0].row["visits"] is None
    for row in table:
        row.pop("visits", None)
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, table)))
    with pytest.raises(DataError, match="column 'visits' is missing among its 8"):
        read_examples(tenant, card, tmp_path)


@pytest.mark.parametrize("kind", ["csv", "parquet", "sql"])
def test_cells_where_a_header_should_be_are_not_shown(tmp_path: Path, card: FederationCard, kind: str) -> None:
    secret = ["alice@example.org", "2026-01-01", "paid 913.55", "1", "phone", "x", "y", "z", "no"]
    _csv(tmp_path, [ROWS[0]], secret)
    frame = pd.DataFrame([ROWS[0]], columns=secret)
    frame.to_parquet(tmp_path / "data.parquet")
    query = "SELECT 'bob' AS 'alice@example.org', 'no' AS 'paid 913.55'"
    source = {"kind": "sql", "url": "sqlite://", "query": query}
    with pytest.raises(DataError) as caught:
        read_examples(
            _tenant(source=source if kind == "sql" else {"kind": kind, "path": f"data.{kind}"}), card, tmp_path
        )
    for cell in secret:
        assert f"'{cell}'" not in str(caught.value) and "alice" not in str(caught.value)
    for name in HEADER:
        assert f"'{name}'" in str(caught.value)
    assert f"missing among its {2 if kind == 'sql' else 9}" in str(caught.value)


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, card: FederationCard) -> None:
    _csv(tmp_path, [[*row, "yes"] for row in ROWS], [*HEADER, "bought"])
    with pytest.raises(DataError, match="'bought' is there twice"):
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


@pytest.mark.parametrize("name", ["Device", "devices", "e-mail"])
def test_a_protected_name_that_is_no_column_is_refused(tmp_path: Path, card: FederationCard, name: str) -> None:
    """Otherwise whoever mistypes it believes in a protection that is not there."""
    _csv(tmp_path, ROWS)
    with pytest.raises(ConfigError, match=f"'{name}', which is no column of the data"):
        read_examples(_tenant(columns={"protected": [name]}), card, tmp_path)
    read_examples(_tenant(columns={"protected": ["where"]}), card, tmp_path)
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(dict(zip(HEADER, row, strict=True))) for row in ROWS))
    with pytest.raises(ConfigError, match=f"'{name}'"):
        source = {"kind": "jsonl", "path": "data.jsonl"}
        read_examples(_tenant(source=source, columns={"protected": [name]}), card, tmp_path)


def test_protection_is_by_the_sources_own_columns(tmp_path: Path, card: FederationCard) -> None:
    """A card's name for a column does not matter, the column does."""
    _csv(tmp_path, ROWS, [*HEADER[:4], "gadget", *HEADER[5:]])
    renamed = {"rename": {"device": "gadget"}}
    with pytest.raises(PolicyRefusal, match="'device'"):
        read_examples(_tenant(columns={**renamed, "protected": ["gadget"]}), card, tmp_path)
    with pytest.raises(ConfigError, match="'device', which is no column"):
        read_examples(_tenant(columns={**renamed, "protected": ["device"]}), card, tmp_path)
    # What only the events' table holds can be protected, too.
    (tmp_path / "events.csv").write_text("who,when,action,item,note\nann,2026-01-01T00:00:00Z,a,b,c\n")
    events = {"kind": "csv", "path": "events.csv"}
    read_examples(_tenant(events=events, columns={**renamed, "protected": ["note"]}), card, tmp_path)


@pytest.mark.parametrize(
    ("sections", "columns", "expected"),
    [
        ({"history": {"record": "by {who}"}}, {}, "'who', which holds the users' ids"),
        ({"history": {"event": "{who} {item}"}}, {}, "'who', which holds the users' ids"),
        ({"history": {"record": "{bought}"}}, {}, "'bought', which is the label to be predicted"),
        ({"history": {"record": "{month}"}}, {"rename": {"month": "bought"}}, "'month', which is the label"),
        ({"history": {"record": "{month}"}}, {"rename": {"month": "who"}}, "'month', which holds the users' ids"),
        ({"features": {"categorical": [{"name": "bought", "values": ["no"]}]}}, {}, "'bought', which is the label"),
        ({"features": {"numeric": [{"name": "who", "low": 0, "high": 9}]}}, {}, "'who', which holds the users' ids"),
    ],
)
def test_a_card_may_not_ask_for_the_label_or_the_users_ids(
    tmp_path: Path,
    card_data: Callable[..., dict[str, Any]],
    sections: dict[str, Any],
    columns: dict[str, Any],
    expected: str,
) -> None:
    _csv(tmp_path, ROWS)
    card = FederationCard.model_validate(card_data(**sections))
    for read in (read_examples, read_usable):
        with pytest.raises(PolicyRefusal, match=expected) as caught:
            read(_tenant(columns=columns), card, tmp_path)
        assert "leave the federation" in str(caught.value)


def test_an_earlier_rows_label_is_history(tmp_path: Path, card_data: Callable[..., dict[str, Any]]) -> None:
    _csv(tmp_path, ROWS)
    card = FederationCard.model_validate(card_data(history={"event": "{bought}"}))
    examples = read_examples(_tenant(), card, tmp_path)
    assert [event["bought"] for event in examples[3].events] == ["no"]


DAYS = [
    ["ann", "2026-01-03T09:00:00", "w1", "1", "phone", "viewed", "shoes", "north", "no"],
    ["ann", "2026-01-03T23:59:59.999999", "w1", "1", "phone", "viewed", "shoes", "north", "no"],
    ["ann", "2026-01-03", "w1", "1", "phone", "viewed", "shoes", "north", "no"],
    ["ann", "2026-01-04", "w1", "1", "phone", "viewed", "shoes", "north", "no"],
    ["ann", "2026-01-04T00:00:00", "w1", "1", "phone", "viewed", "shoes", "north", "no"],
]


@pytest.mark.parametrize("kind", ["text", "date", "timestamp"])
def test_an_event_without_a_clock_is_not_before_a_label_of_its_day(
    tmp_path: Path, card: FederationCard, kind: str
) -> None:
    """Some time on the third: for a label on the third it may be what is to be predicted."""
    _csv(tmp_path, DAYS)
    days: list[Any] = ["2026-01-02", "2026-01-03"]
    if kind == "date":
        days = [datetime.date.fromisoformat(day) for day in days]
    elif kind == "timestamp":
        days = [pd.Timestamp(day) for day in days]
    frame = pd.DataFrame({"who": "ann", "when": days, "action": "bought", "item": ["second", "third"]})
    frame.to_parquet(tmp_path / "events.parquet")
    examples = read_examples(_tenant(events={"kind": "parquet", "path": "events.parquet"}), card, tmp_path)
    seen = [[event["item"] for event in example.events] for example in examples]
    assert seen == [["second"], ["second"], ["second"], ["second", "third"], ["second", "third"]]


def test_times_with_and_without_a_zone_are_not_compared(tmp_path: Path, card: FederationCard) -> None:
    """Which of the two is earlier would be a guess, and a guess can put what came after the label into its history."""
    _csv(tmp_path, [["ann", "2026-01-01T08:00:00", *ROWS[0][2:]], *ROWS[1:]])
    with pytest.raises(DataError, match="line 4, column 'when': has a time zone where another time of this user"):
        read_examples(_tenant(), card, tmp_path)
    zoned = [["ann", "2026-01-03T23:30:00-08:00", *ROWS[0][2:]], ["ann", "2026-01-04T07:00:00Z", *ROWS[2][2:]]]
    _csv(tmp_path, zoned)
    first, second = read_examples(_tenant(), card, tmp_path)
    assert (len(first.events), len(second.events)) == (1, 0)


def test_users_that_are_floats_are_refused(tmp_path: Path, card: FederationCard) -> None:
    rows = [dict(zip(HEADER, row, strict=True)) for row in ROWS]
    frame = pd.DataFrame(rows).assign(who=[1.0, 2.0, 1.0, 1.0])
    frame.to_parquet(tmp_path / "data.parquet")
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps({**row, "who": 1.0}) for row in rows))
    for kind in ("parquet", "jsonl"):
        with pytest.raises(DataError, match=r"column 'who': is a float, such as 1\.0, which is no stable id"):
            read_examples(_tenant(source={"kind": kind, "path": f"data.{kind}"}), card, tmp_path)


def test_one_id_in_several_spellings_is_one_user(tmp_path: Path, card: FederationCard) -> None:
    ids: list[Any] = [1, "1", " 1 ", "01", "Jose\u0301", "Jos\u00e9"]
    times = [f"2026-01-0{day}" for day in range(1, 7)]
    rows = [
        {**dict(zip(HEADER, ROWS[0], strict=True)), "who": who, "when": when}
        for who, when in zip(ids, times, strict=True)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    examples = read_examples(_tenant(source={"kind": "jsonl", "path": "data.jsonl"}), card, tmp_path)
    assert [example.user for example in examples] == ["1", "1", "1", "01", "Jos\u00e9", "Jos\u00e9"]
    assert [len(example.events) for example in examples] == [0, 1, 2, 0, 0, 1]


def test_events_that_name_users_otherwise_are_refused(tmp_path: Path, card: FederationCard) -> None:
    _csv(tmp_path, [[who, *row[1:]] for who, row in zip(["1", "2", "1", "1"], ROWS, strict=True)])
    tenant = _tenant(events={"kind": "csv", "path": "events.csv"})
    events = "who,when,action,item\n{},2026-01-01T00:00:00Z,a,b\n"
    (tmp_path / "events.csv").write_text(events.format("1.0"))
    with pytest.raises(DataError, match="no event belongs to a user of the source") as caught:
        read_examples(tenant, card, tmp_path)
    assert "column 'who'" in str(caught.value)
    # Rows to predict for may well be of new users; no event at all says nothing; one that fits is enough.
    assert not read_examples(tenant, card, tmp_path, labelled=False)[0].events
    for text in ("who,when,action,item\n", events.format("1.0") + "1,2026-01-01T00:00:00Z,a,b\n"):
        (tmp_path / "events.csv").write_text(text)
        assert len(read_examples(tenant, card, tmp_path)) == 4


def test_a_long_history_is_cut_while_it_is_built(tmp_path: Path, card_data: Callable[..., dict[str, Any]]) -> None:
    """The newest events are kept, and what is held grows with the rows and not with their square."""
    card = FederationCard.model_validate(card_data(history={"max_events": 3}))
    start = datetime.datetime(2026, 1, 1, 0, 0, 1)
    rows = [
        ["ann", (start + datetime.timedelta(minutes=number)).isoformat(), *ROWS[0][2:6], f"w{number}", "north", "no"]
        for number in range(2000)
    ]
    _csv(tmp_path, rows)
    examples = read_examples(_tenant(), card, tmp_path)
    assert sum(len(example.events) for example in examples) == 3 * 2000 - 6
    assert [event["item"] for event in examples[1000].events] == ["w997", "w998", "w999"]


def test_a_history_needs_a_time_column(tmp_path: Path, card: FederationCard) -> None:
    _csv(tmp_path, ROWS)
    with pytest.raises(ConfigError, match="time column"):
        read_examples(_tenant(columns={"time": None}), card, tmp_path)


def test_columns_can_be_renamed_and_events_come_from_their_own_table(tmp_path: Path, card: FederationCard) -> None:
    _csv(tmp_path, ROWS)
    (tmp_path / "events.csv").write_text(
        "who,at,did,item\nann,2025-12-31T08:00:00Z,searched,books\nann,2026-01-02T08:00:00Z,viewed,games\n"
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
