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
    os.utime(tmp_path / "rows.csv", (1, 1))
    assert reading.records() is second
    assert len(reading.seen) == 2


def test_a_user_deleted_in_place_is_gone_though_size_and_time_are_kept(reading: Reading, tmp_path: Path) -> None:
    """As `rsync --inplace --times` does: only the content tells."""
    path = tmp_path / "rows.csv"
    reading.records()
    before = path.stat()
    with path.open("r+") as file:
        file.write(path.read_text().replace("\na,", "\nc,"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    assert reading.records().training.users == ("c",)


def test_what_was_validated_is_given_once(reading: Reading) -> None:
    reading.examples.validate()
    given = reading.examples.news()
    assert given is not None and len(given) == 3
    assert reading.examples.news() is None
    assert reading.examples.news(again=True) == given


def test_what_is_wrong_is_refused_before_the_start_and_leaves_out_its_user_afterwards(
    reading: Reading, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = (tmp_path / "rows.csv").read_text()
    (tmp_path / "rows.csv").write_text(good + "a,w4,913.55 EUR,phone,no\n,w4,1,phone,no\n")
    for _ in range(2):
        with pytest.raises(DataError, match="line 5, column 'visits'"):
            reading.examples.validate()
    found = reading.records()
    assert (found.training.users, found.evaluation.users) == ((), ("b",))
    [told] = [record.getMessage() for record in caplog.records]
    assert "1 users and 4 rows are left out" in told and "913" not in told
    (tmp_path / "rows.csv").write_text(good)
    reading.examples.validate()
    assert reading.records().training.users == ("a",)
    assert len(caplog.records) == 1


def test_a_text_at_which_the_tokenizer_fails_leaves_out_its_user(
    reading: Reading, caplog: pytest.LogCaptureFixture
) -> None:
    """A base model's tokenizer without a token for unknown words fails at one user's word."""
    tokenizer = reading.records._tokenizer

    class Picky:
        def __call__(self, text: list[str], /, *, add_special_tokens: bool) -> Mapping[str, list[list[int]]]:
            if "in w3" in text:
                raise ValueError("no token for w3")
            return tokenizer(text, add_special_tokens=add_special_tokens)

    reading.records._tokenizer = Picky()
    found = reading.records()
    assert (found.training.users, found.evaluation.users) == ((), ("b",))
    assert [record.getMessage() for record in caplog.records] == [
        "1 users are left out, because the base model's tokenizer fails at their texts."
    ]


def test_a_source_that_broke_is_not_answered_from_memory(reading: Reading, tmp_path: Path) -> None:
    reading.records()
    good = (tmp_path / "rows.csv").read_text()
    (tmp_path / "rows.csv").write_text("who,month\na,w1\n")
    for _ in range(2):
        with pytest.raises(DataError, match="are missing"):
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
