"""The source is read anew when it changes, and what is stored of users who are gone is deleted then."""

import os
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedprofile.client.records import ExampleSource, RecordSource
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import DataError
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.tenant import TenantFile

HEADER = "who,month,visits,device,bought\n"


class Words:
    """A tokenizer of whole words."""

    def __call__(self, text: list[str], /, *, add_special_tokens: bool) -> Mapping[str, list[list[int]]]:
        return {"input_ids": [[len(word) for word in line.split()] for line in text]}


class Reading:
    """A source over a folder, and how often it was read."""

    def __init__(self, folder: Path, card: FederationCard, source: dict[str, Any]) -> None:
        tenant = TenantFile.model_validate(
            {
                "source": source,
                "columns": {"user": "who", "label": "bought"},
                "population": {"name": "shop", "declared_users": 10},
                "budget": {"epsilon": 1.0},
                "run": {"epsilon": 1.0},
            }
        )
        self.seen: list[EncodedRecords] = []
        self.fail = False
        self.examples = ExampleSource(tenant, card, folder)
        self.records = RecordSource(
            examples=self.examples,
            card=card,
            tokenizer=Words(),
            evaluation_user=lambda user: user == "b",
            on_change=self._changed,
        )

    def _changed(self, records: EncodedRecords) -> None:
        if self.fail:
            raise OSError("no space")
        self.seen.append(records)


@pytest.fixture
def card(card_data: Callable[..., dict[str, Any]]) -> FederationCard:
    return FederationCard.model_validate(
        card_data(history={"record": "in {month}", "event": ""}, task={"kind": "binary", "labels": ["no", "yes"]})
    )


@pytest.fixture
def reading(tmp_path: Path, card: FederationCard) -> Reading:
    (tmp_path / "rows.csv").write_text(HEADER + "a,w1,1,phone,yes\nb,w2,2,phone,no\na,w3,1,phone,no\n")
    return Reading(tmp_path, card, {"kind": "csv", "path": "rows.csv"})


def test_a_file_is_read_again_only_when_it_changed(reading: Reading, tmp_path: Path) -> None:
    first = reading.records()
    assert (first.training.users, first.evaluation.users) == (("a",), ("b",))
    assert reading.records() is first
    assert len(reading.seen) == 1
    (tmp_path / "rows.csv").write_text(HEADER + "b,w2,2,phone,no\nc,w9,2,phone,no\n")
    second = reading.records()
    assert second.training.users == ("c",)
    assert len(reading.seen) == 2
    # The same size within the same clock tick is told by nothing but a new file or time; a touch is enough.
    os.utime(tmp_path / "rows.csv", (1, 1))
    reading.records()
    assert len(reading.seen) == 3


def test_what_was_validated_is_given_once(reading: Reading) -> None:
    reading.examples.validate()
    given = reading.examples.news()
    assert given is not None and len(given) == 3
    assert reading.examples.news() is None
    assert reading.examples.news(again=True) == given


def test_a_source_that_broke_is_not_answered_from_memory(reading: Reading, tmp_path: Path) -> None:
    reading.records()
    good = (tmp_path / "rows.csv").read_text()
    (tmp_path / "rows.csv").write_text(HEADER + "a,w1,1,phone,perhaps\n")
    for _ in range(2):
        with pytest.raises(DataError, match="line 2"):
            reading.records()
    (tmp_path / "rows.csv").write_text(good)
    assert len(reading.records().training) == 2
    (tmp_path / "rows.csv").unlink()
    with pytest.raises(DataError):
        reading.records()


def test_a_failure_after_reading_is_tried_again(reading: Reading) -> None:
    reading.fail = True
    for _ in range(2):
        with pytest.raises(OSError, match="no space"):
            reading.records()
    reading.fail = False
    assert len(reading.records().training) == 2


def test_a_database_is_asked_every_time(tmp_path: Path, card: FederationCard) -> None:
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE visit (who, month, visits, device, bought)")
        base.execute("INSERT INTO visit VALUES ('a', 'w1', 1, 'phone', 'yes'), ('b', 'w1', 1, 'phone', 'yes')")
    base.close()
    reading = Reading(tmp_path, card, {"kind": "sql", "url": f"sqlite:///{path}", "query": "SELECT * FROM visit"})
    assert reading.records().training.users == ("a",)
    with sqlite3.connect(path) as base:
        base.execute("DELETE FROM visit WHERE who = 'a'")
        base.execute("INSERT INTO visit VALUES ('c', 'w1', 1, 'phone', 'yes')")
    base.close()
    assert reading.records().training.users == ("c",)
    assert len(reading.seen) == 2
