"""Neighbouring data sets: one user's rows, however wrong, change neither what is said of others nor whether it is.

Twice: over the reader (the examples of everyone else are the same), and over the whole path of a request, with the
real reader, tokenizer, cache, trainer, evaluator, ledger and app (the kind of answer and its cost are the same).
"""

import csv
import io
import json
import logging
import random
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from fedprofile.client.app import TenantApp
from fedprofile.client.evaluation import PrivateEvaluator
from fedprofile.client.ledger import Ledger
from fedprofile.client.outbox import Outbox
from fedprofile.client.policy import Policy
from fedprofile.client.randomness import SecureRandomness
from fedprofile.client.records import ExampleSource, RecordSource
from fedprofile.client.segments import SegmentPlan
from fedprofile.client.sources import read_usable
from fedprofile.client.training import PrivateTrainer, TrainingSettings
from fedprofile.common.candidates import encode_records
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import DataError
from fedprofile.common.interactions import EncodedRecords, Tokenizer
from fedprofile.common.messages import TABLE, Arrays, Kind, Request, content_of, refusal_of, reply_of
from fedprofile.common.modeling.base import hash_base, load_base, resolve_base
from fedprofile.common.modeling.prefix_cache import ActivationError, PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel
from fedprofile.common.tenant import TenantFile

CardData = Callable[..., dict[str, Any]]

HEADER = ["who", "when", "month", "visits", "device", "action", "item", "bought"]
SECRET = "alice"


def _row(user: Any, day: int = 1, **changes: Any) -> dict[str, Any]:
    row = {"who": user, "when": f"2026-01-0{day}T09:00:00", "month": "w1", "visits": 3, "device": "phone"}
    return {**row, "action": "viewed", "item": "w5", "bought": "no", **changes}


OTHERS = [_row(f"u{number}", day, item=f"w{number}") for number in range(6) for day in (1, 2)]
GOOD = [_row(SECRET, day) for day in (1, 2)]


def _jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, HEADER)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _tenant(kind: str = "csv", **changes: Any) -> TenantFile:
    data: dict[str, Any] = {
        "source": {"kind": kind, "path": f"data.{kind}"},
        "columns": {"user": "who", "label": "bought", "time": "when"},
        "population": {"name": "shop", "declared_users": 100},
        "budget": {"epsilon": 8.0},
        "run": {"epsilon": 3.0},
    }
    return TenantFile.model_validate({**data, **changes})


@pytest.fixture(scope="module")
def card(card_data: CardData) -> FederationCard:
    return FederationCard.model_validate(
        card_data(task={"group": None}, training={"rounds": 5, "local_steps": 2}, evaluation={"when": "every-round"})
    )


WRONG_CELLS: dict[str, dict[str, Any]] = {
    "number": {"visits": "1e999"},
    "time": {"when": "yesterday"},
    "no time": {"when": ""},
    "label": {"bought": "perhaps"},
    "no label": {"bought": None},
    "zone": {"when": "2026-01-02T09:00:00+01:00"},
    "long": {"month": "w1 " * 50_000},
    "endless": {"month": "w1 " * 100_000},
}
WRONG_JSON_CELLS: dict[str, dict[str, Any]] = {
    "list": {"month": ["w1"]},
    "object": {"item": {"a": 1}},
    "surrogate": {"month": "\ud800"},
    "huge": {"visits": 10**400},
    "infinite": {"visits": float("inf")},
}


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("name", [*WRONG_CELLS, *WRONG_JSON_CELLS])
def test_a_wrong_cell_leaves_out_its_user_and_nobody_else(
    tmp_path: Path, card: FederationCard, name: str, first: bool
) -> None:
    wrong = [GOOD[0], _row(SECRET, 2, **(WRONG_CELLS | WRONG_JSON_CELLS)[name])]
    rows = [*wrong, *OTHERS] if first else [*OTHERS, *wrong]
    for kind, write in (("csv", _csv), ("jsonl", _jsonl)):
        if kind == "csv" and name in WRONG_JSON_CELLS:
            continue
        path = tmp_path / f"data.{kind}"
        path.write_bytes(write(OTHERS))
        without = read_usable(_tenant(kind), card, tmp_path)
        assert len(without.examples) == 12 and without.rows_left_out == 0
        path.write_bytes(write(rows))
        found = read_usable(_tenant(kind), card, tmp_path)
        assert found.examples == without.examples
        assert (found.users_left_out, found.rows_left_out) == (1, 2)


USERLESS: dict[str, tuple[str, bytes]] = {
    "json that is none": ("jsonl", b'{"who": "alice", \n'),
    "json list": ("jsonl", b'["alice"]\n'),
    "json nesting": ("jsonl", b"[" * 100_000 + b"\n"),
    "json digits": ("jsonl", b'{"who": "alice", "visits": ' + b"9" * 5000 + b"}\n"),
    "json bytes": ("jsonl", b'{"who": "alice\xff"}\n'),
    "json without a user": ("jsonl", b'{"when": "2026-01-01"}\n'),
    "surrogate user": ("jsonl", _jsonl([_row("\ud800")])),
    "float user": ("jsonl", _jsonl([_row(1.5)])),
    "list user": ("jsonl", _jsonl([_row([SECRET])])),
    "no user": ("csv", b",2026-01-01T09:00:00,w1,3,phone,viewed,w5,no\r\n"),
    "csv with a cell more": ("csv", b"alice,2026-01-01T09:00:00,w1,3,phone,viewed,w5,no,no\r\n"),
    "csv with a cell less": ("csv", b"alice,2026-01-01T09:00:00,w1,3,phone,viewed,w5\r\n"),
    "csv bytes in the user": ("csv", b"alic\xe9,2026-01-01T09:00:00,w1,3,phone,viewed,w5,no\r\n"),
}


@pytest.mark.parametrize("name", USERLESS)
def test_a_row_whose_user_cannot_be_told_is_skipped(tmp_path: Path, card: FederationCard, name: str) -> None:
    kind, line = USERLESS[name]
    path = tmp_path / f"data.{kind}"
    text = _csv(OTHERS) if kind == "csv" else _jsonl(OTHERS)
    path.write_bytes(text)
    without = read_usable(_tenant(kind), card, tmp_path)
    head, rest = text.split(b"\n", 1)
    for content in (text + line, head + b"\n" + line + rest):
        path.write_bytes(content)
        found = read_usable(_tenant(kind), card, tmp_path)
        assert found.examples == without.examples
        assert (found.users_left_out, found.rows_left_out) == (0, 1)


def test_bytes_that_are_no_text_leave_out_their_user(tmp_path: Path, card: FederationCard) -> None:
    (tmp_path / "data.csv").write_bytes(_csv(OTHERS) + b"alice,2026-01-01T09:00:00,\xe9,3,phone,viewed,w5,no\r\n")
    found = read_usable(_tenant(), card, tmp_path)
    assert (len(found.examples), found.users_left_out) == (12, 1)


@pytest.mark.parametrize("change", [{"when": "?"}, {"item": ["w1"]}, {"when": "2026-01-01T09:00:00Z"}, {"who": None}])
def test_a_wrong_event_leaves_out_its_user(tmp_path: Path, card: FederationCard, change: dict[str, Any]) -> None:
    (tmp_path / "data.jsonl").write_bytes(_jsonl([*OTHERS, *GOOD]))
    (tmp_path / "events.jsonl").write_bytes(_jsonl([_row("u1"), _row(SECRET), {**_row(SECRET), **change}]))
    tenant = _tenant("jsonl", events={"kind": "jsonl", "path": "events.jsonl"})
    found = read_usable(tenant, card, tmp_path)
    left_out = "who" not in change
    assert [example.user for example in found.examples] == [
        row["who"] for row in [*OTHERS, *([] if left_out else GOOD)]
    ]
    assert (found.users_left_out, found.rows_left_out) == ((1, 4) if left_out else (0, 1))


def test_cells_that_python_cannot_hold_leave_out_their_user(tmp_path: Path, card: FederationCard) -> None:
    """A timestamp in the year 300000 and bytes that are no UTF-8, in Parquet and in SQLite."""
    frame = pd.DataFrame([*OTHERS, *GOOD])
    times = pyarrow.array([0] * 12 + [2**53, 0], pyarrow.timestamp("ms"))
    texts = pyarrow.array([b"w1"] * 13 + [b"\xff"]).view(pyarrow.string())
    table = pyarrow.Table.from_pandas(frame.drop(columns=["when", "month"]))
    for name, column in (("when", times), ("month", texts)):
        pyarrow.parquet.write_table(
            table.append_column(name, column).append_column(
                *(
                    ("month", pyarrow.array(["w1"] * 14))
                    if name == "when"
                    else ("when", pyarrow.array([0] * 14, "date32"))
                )
            ),
            tmp_path / "data.parquet",
        )
        found = read_usable(_tenant("parquet"), card, tmp_path)
        assert (len(found.examples), found.users_left_out) == (12, 1)
    database = sqlite3.connect(tmp_path / "data.db")
    frame.to_sql("visits", database, index=False)
    database.execute("UPDATE visits SET month = CAST(X'FF' AS TEXT) WHERE who = 'alice'")
    database.commit()
    database.close()
    source = {"kind": "sql", "url": f"sqlite:///{tmp_path}/data.db", "query": "SELECT * FROM visits"}
    found = read_usable(_tenant(source=source), card, tmp_path)
    assert (len(found.examples), found.users_left_out) == (12, 1)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "sql"])
def test_an_empty_source_is_an_empty_sample(tmp_path: Path, card: FederationCard, kind: str) -> None:
    (tmp_path / "data.csv").write_bytes(_csv([]))
    (tmp_path / "data.jsonl").write_bytes(b"")
    pd.DataFrame(OTHERS).head(0).to_parquet(tmp_path / "data.parquet")
    query = f"SELECT {', '.join(f'1 AS {json.dumps(name)}' for name in HEADER)} WHERE 0"
    tenant = _tenant(source={"kind": "sql", "url": "sqlite://", "query": query}) if kind == "sql" else _tenant(kind)
    assert read_usable(tenant, card, tmp_path).examples == []
    (tmp_path / "data.csv").write_bytes(b"")
    assert read_usable(_tenant("csv"), card, tmp_path).examples == []


@pytest.mark.parametrize("content", [None, b'a,"b\n', b"who,when\n1,2\n", b"\xff\xfe,b\n1,2\n"], ids=range(4))
def test_what_concerns_the_source_as_a_whole_is_still_an_error(
    tmp_path: Path, card: FederationCard, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "data.csv").write_bytes(content)
    with pytest.raises(DataError):
        read_usable(_tenant(), card, tmp_path)


@pytest.mark.parametrize(
    ("url", "query"),
    [
        ("sqlite:////no/such/folder/shop.db", "SELECT 1"),
        ("sqlite://", "SELECT json('[913.55')"),
        ("postgresql+psycopg://reader:hunter2@127.0.0.1:9/shop", "SELECT 1"),
    ],
    ids=["no database", "a row at which the query fails", "a server that is down"],
)
def test_a_database_that_fails_is_an_error_without_its_text(
    tmp_path: Path, card: FederationCard, url: str, query: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_usable(_tenant(source={"kind": "sql", "url": url, "query": query}), card, tmp_path)
    assert "913" not in str(caught.value) and "hunter2" not in str(caught.value)


def test_a_database_that_is_not_there_is_told_from_a_query_that_fails(tmp_path: Path, card: FederationCard) -> None:
    """And none is made: SQLite would, at the first look."""
    with closing(sqlite3.connect(tmp_path / "there.db")) as made:
        made.execute("CREATE TABLE visits (who)")
    for url, query, told in (
        ("sqlite:///absent.db", "SELECT 1", r"absent\.db: is no file; mend the path of the database"),
        ("sqlite:///file:absent.db?uri=true", "SELECT 1", r"absent\.db: is no file"),
        (
            "postgresql+psycopg://u:hunter2@127.0.0.1:1/shop",
            "SELECT 1",
            "nothing answers at host and port; look whether",
        ),
        ("sqlite:///there.db", "SELECT absent FROM visits", "source.query failed"),
        ("sqlite:///file:there.db?mode=ro&uri=true", "SELECT absent FROM visits", "source.query failed"),
        ("postgresql://h:port/shop", "SELECT 1", "is not a usable SQLAlchemy URL"),
    ):
        with pytest.raises(DataError, match=told):
            read_usable(_tenant(source={"kind": "sql", "url": url, "query": query}), card, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["there.db"]


CELLS = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.text(max_size=8),
    st.characters(categories=["Cs"]),
    st.lists(st.integers(), max_size=2),
    st.sampled_from(["2026-01-02", "2026-01-02T09:00:00Z", "no", "yes", 7]),
)


@settings(deadline=None, max_examples=80)
@given(rows=st.lists(st.dictionaries(st.sampled_from(HEADER[1:]), CELLS), max_size=4), data=st.data())
def test_nobodys_rows_change_the_examples_of_others(
    rows: list[dict[str, Any]], data: st.DataObject, card: FederationCard, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    kind, write = data.draw(st.sampled_from([("csv", _csv), ("jsonl", _jsonl)]))
    if kind == "csv":  # Cells as a CSV file can hold them.
        rows = [{name: str(cell).encode("utf-8", "replace").decode() for name, cell in row.items()} for row in rows]
    mixed: list[dict[str, Any]] = list(OTHERS)
    for row in rows:
        mixed.insert(data.draw(st.integers(0, len(mixed))), {"who": SECRET, **row})
    (folder / f"data.{kind}").write_bytes(write(mixed))
    found = read_usable(_tenant(kind), card, folder).examples
    (folder / f"data.{kind}").write_bytes(write(OTHERS))
    assert [example for example in found if example.user != SECRET] == read_usable(_tenant(kind), card, folder).examples
    # And the one user's examples are a function of that user's rows alone.
    (folder / f"data.{kind}").write_bytes(write([{"who": SECRET, **row} for row in mixed if row["who"] == SECRET]))
    assert [example for example in found if example.user == SECRET] == read_usable(_tenant(kind), card, folder).examples


def test_the_order_of_a_querys_rows_changes_no_record(
    tmp_path: Path, card_data: Callable[..., dict[str, Any]], tiny_base: Path
) -> None:
    """Which of a user's rows a database gives first may hang on another user's: no example and no negative may."""
    data = card_data(
        history={"record": "{candidate}", "event": "{item}", "max_events": 2},
        features={"numeric": [], "categorical": []},
    )
    task = {"kind": "ranking", "candidates": [f"w{number}" for number in range(4, 12)], "negatives": 3}
    card = FederationCard.model_validate({**data, "task": task})
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    # Several labels and several events of each user at one time, of which a history holds two.
    rows = [
        {"who": user, "when": f"2026-01-0{day}", "item": f"w{4 + (3 * number + day) % 8}", "next": f"w{4 + number % 8}"}
        for user in ("ann", "bob")
        for day in (1, 2, 3)
        for number in range(4)
    ]
    tenant = TenantFile.model_validate(
        {
            "source": {"kind": "sql", "url": "sqlite:///data.db", "query": "SELECT * FROM visits"},
            "columns": {"user": "who", "time": "when", "label": "next"},
            "population": {"name": "p", "declared_users": 10},
            "budget": {"epsilon": 1.0},
            "run": {"epsilon": 1.0},
        }
    )

    def read(those: list[dict[str, str]]) -> list[tuple[Any, ...]]:
        (tmp_path / "data.db").unlink(missing_ok=True)
        with closing(sqlite3.connect(tmp_path / "data.db")) as database, database:
            database.execute("CREATE TABLE visits (who, 'when', item, next)")
            database.executemany("INSERT INTO visits VALUES (:who, :when, :item, :next)", those)
        found = encode_records(read_usable(tenant, card, tmp_path).examples, card, tokenizer)
        # Four rows a record, which are chosen together; the order of records has no part in what is chosen.
        rows = [
            (found.users[user], label, tuple(tokens))
            for user, label, tokens in zip(found.user, found.labels, found.tokens, strict=True)
        ]
        return sorted(tuple(rows[place : place + 4]) for place in range(0, len(rows), 4))

    expected = read(rows)
    assert len(expected) == len(rows)
    for seed in range(5):
        shuffled = list(rows)
        random.Random(seed).shuffle(shuffled)
        assert read(shuffled) == expected


@dataclass(frozen=True)
class Base:
    """A base model's folder, its model and its tokenizer."""

    model: ProfileModel
    tokenizer: Tokenizer


@pytest.fixture(scope="module")
def tiny(card: FederationCard, tiny_base: Path) -> Base:
    base, tokenizer = load_base(resolve_base(card.base, tiny_base))
    return Base(ProfileModel(card, base, tokenizer), tokenizer)


@pytest.fixture(scope="module")
def evil(card: FederationCard, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A base whose weights are all finite and whose activations of ONE word, w59, are not."""
    folder = Path(shutil.copytree(tiny_base, tmp_path_factory.mktemp("evil") / "base"))
    weights = load_file(folder / "model.safetensors")
    [table] = [name for name in weights if "word_embeddings" in name]
    weights[table][AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("w59")] = 3e38
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    spec = hash_base(folder, "example/evil")
    other = FederationCard.model_validate({**card.model_dump(mode="json"), "base": spec.model_dump()})
    base, tokenizer = load_base(resolve_base(other.base, folder))
    return Base(ProfileModel(other, base, tokenizer), tokenizer)


class Picky:
    """A tokenizer that fails at one word, as a vocabulary without an unknown token does."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: list[str], /, *, add_special_tokens: bool) -> Mapping[str, list[list[int]]]:
        if any("w59" in line for line in text):
            raise ValueError("no token for w59")
        return self._tokenizer(text, add_special_tokens=add_special_tokens)


@dataclass
class Tenant:
    """One tenant's app over real parts, built as `start` builds it."""

    app: TenantApp
    ledger: Ledger
    cache: PrefixCache
    records: RecordSource
    model: ProfileModel

    def ask(self, kind: Kind, number: int = 1) -> str:
        """What kind of answer comes, and how many entries the ledger has then."""
        request = Request(kind, self.model.card.hash, number, self.model.initial_arrays())
        # Flower lets only a process with a task's identity make a message.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        message = Message(content_of(request), dst_node_id=5, message_type=kind.value)
        message.metadata.__dict__["_message_id"] = f"message-{kind.value}-{number}"
        answer = self.app.answer(message)
        if answer.has_error():
            return f"{refusal_of(answer).value}, entry {self.ledger.mark().sequence}"
        arrays = reply_of(answer).arrays
        assert all(np.isfinite(array).all() and np.any(array) for array in arrays.values()), "noise is on everything"
        return f"{'table' if TABLE in arrays else 'update'}, entry {self.ledger.mark().sequence}"


def _open(folder: Path, tenant: TenantFile, base: Base, tokenizer: Tokenizer | None = None) -> Tenant:
    model = base.model
    card = model.card
    plan = SegmentPlan(card.hash, 3.0, 1e-6, 0.5, 2.0, 1.0, 4, 2, 4, 5.0, 9)
    ledger = Ledger.open(
        folder / "shop.sqlite", population="shop", user_column="user", epsilon=8.0, delta=1e-6, evaluation_users=0.5
    )
    cache = PrefixCache(model, folder=folder / "cache", secret=b"a secret of this tenant, 32 bytes")

    def refresh(records: EncodedRecords) -> None:
        cache.prune(records.tokens)
        cache.fill(records.tokens)

    def predict(arrays: Arrays, records: EncodedRecords) -> NDArray[np.floating]:
        model.set_arrays(arrays)
        return model.predict(records, cache)

    records = RecordSource(
        examples=ExampleSource(tenant, card, folder),
        card=card,
        tokenizer=tokenizer or base.tokenizer,
        evaluation_user=ledger.evaluation_user,
        on_change=refresh,
    )
    app = TenantApp(
        card=card,
        layout=model.layout(),
        trainer=PrivateTrainer(model=model, cache=cache, settings=TrainingSettings.of(card, plan, 100)),
        evaluator=PrivateEvaluator.of(card, plan, predict=predict),
        records=records,
        ledger=ledger,
        segment=ledger.open_segment(plan),
        outbox=Outbox(folder / "outbox"),
        policy=Policy(frozenset({"train", "evaluate", "deliver"}), 100),
        make_randomness=SecureRandomness,
        on_adapter=lambda arrays, number: None,
    )
    return Tenant(app, ledger, cache, records, model)


PAIRS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "nobody and one user": ([], GOOD),
    "nobody and one user with a bad cell": ([], [_row(SECRET, visits="1e999")]),
    "many and one more": (OTHERS, GOOD),
    "a bad cell": (OTHERS, [_row(SECRET, visits="1e999")]),
    "a bad label": (OTHERS, [_row(SECRET, bought="perhaps")]),
    "a bad time": (OTHERS, [_row(SECRET, when="yesterday")]),
    "half a surrogate pair in the id": (OTHERS, [_row("\ud800")]),
    "half a surrogate pair in the text": (OTHERS, [_row(SECRET, month="\ud800")]),
    "an id that is a float": (OTHERS, [_row(1.0)]),
    "a row of other columns": (OTHERS, [{"a": 1}]),
    "a word whose activations are not finite": (OTHERS, [_row(SECRET, item="w59"), _row(SECRET, 2)]),
    "the same word, and nobody else": ([], [_row(SECRET, month="w59")]),
    "a word at which the tokenizer fails": (OTHERS, [_row(SECRET, month="w59")]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_neighbouring_data_sets_get_the_same_kind_of_answer(tmp_path: Path, tiny: Base, evil: Base, name: str) -> None:
    """Whether there is an answer costs nothing and has no noise: it must not depend on one user."""
    base = evil if "activations" in name or "same word" in name else tiny
    tokenizer = Picky(base.tokenizer) if "tokenizer" in name else None
    less, more = PAIRS[name]
    answers = []
    for number, rows in enumerate((less, less + more, more + less)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "data.jsonl").write_bytes(_jsonl(rows))
        tenant = _open(folder, _tenant("jsonl"), base, tokenizer)
        with tenant.ledger:
            answers.append([tenant.ask(kind) for kind in (Kind.TRAIN, Kind.EVALUATE, Kind.TRAIN)])
    # The third asks for the first again, which is free.
    assert answers == [["update, entry 1", "table, entry 2", "update, entry 2"]] * 3


def test_a_user_who_turns_bad_while_the_client_runs_changes_no_answer(
    tmp_path: Path, tiny: Base, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data.csv").write_bytes(_csv(OTHERS + GOOD))
    tenant = _open(tmp_path, _tenant(), tiny)
    with tenant.ledger, caplog.at_level(logging.INFO):
        assert tenant.ask(Kind.TRAIN, 1) == "update, entry 1"
        assert not caplog.records
        (tmp_path / "data.csv").write_bytes(_csv([*OTHERS, *GOOD, _row(SECRET, visits="913.55 EUR"), _row("")]))
        assert tenant.ask(Kind.TRAIN, 2) == "update, entry 2"
        # The tenant is told how many, and nothing that stands in the rows.
        assert "1 users and 4 rows are left out" in caplog.text
        assert SECRET not in caplog.text and "913" not in caplog.text
        users = {*tenant.records().training.users, *tenant.records().evaluation.users}
        assert users == {row["who"] for row in OTHERS}
        (tmp_path / "data.csv").write_bytes(_csv([]))
        assert tenant.ask(Kind.EVALUATE, 2) == "table, entry 3"
        assert len(tenant.cache) == 0


@pytest.mark.parametrize("rows", [OTHERS, [*OTHERS, _row(SECRET, visits="1e999")]], ids=["good", "bad"])
def test_a_spent_budget_is_said_whatever_the_rows_are(tmp_path: Path, tiny: Base, rows: list[dict[str, Any]]) -> None:
    (tmp_path / "data.csv").write_bytes(_csv(rows))
    tenant = _open(tmp_path, _tenant(), tiny)
    with tenant.ledger:
        assert [tenant.ask(Kind.TRAIN, number) for number in (1, 2)] == ["update, entry 1", "update, entry 2"]
        assert tenant.ask(Kind.TRAIN, 3) == "budget, entry 2"


class Still:
    """Everyone is sampled and there is no noise."""

    def uniform(self, count: int) -> NDArray[np.float64]:
        return np.zeros(count)

    def gaussian(self, count: int) -> NDArray[np.float64]:
        return np.zeros(count)


def test_a_user_without_finite_activations_counts_zero_and_lies_in_the_lowest_bin(tmp_path: Path, evil: Base) -> None:
    (tmp_path / "data.csv").write_bytes(
        _csv([*OTHERS, *[_row(SECRET, day, item="w59", month="w59") for day in (1, 2)]])
    )
    tenant = _open(tmp_path, _tenant(), evil)
    with tenant.ledger:
        found = tenant.records()
    everyone = EncodedRecords(
        users=(*found.training.users, *found.evaluation.users),
        user=np.concatenate([found.training.user, found.evaluation.user + len(found.training.users)]),
        tokens=[*found.training.tokens, *found.evaluation.tokens],
        features=np.concatenate([found.training.features, found.evaluation.features]),
        labels=np.concatenate([found.training.labels, found.evaluation.labels]),
        groups=np.concatenate([found.training.groups, found.evaluation.groups]),
    )
    others = everyone.of_users(np.array([user != SECRET for user in everyone.users]))
    assert (len(everyone.users), len(others.users)) == (7, 6)
    with pytest.raises(ActivationError):
        tenant.cache.check_finite(everyone.tokens)
    tenant.cache.check_finite(others.tokens)
    rng = np.random.default_rng(0)
    start = {
        name: (0.2 * rng.normal(size=a.shape)).astype(np.float32) for name, a in evil.model.initial_arrays().items()
    }
    trainer, evaluator = tenant.app._trainer, tenant.app._evaluator
    update = trainer.train(start, everyone, steps=1, randomness=Still())
    without = trainer.train(start, others, steps=1, randomness=Still())
    for name, value in update.items():
        assert np.abs(value).max() > 0
        np.testing.assert_allclose(value, without[name], atol=1e-6, err_msg=name)
    table = evaluator.evaluate(start, everyone, Still())[TABLE] - evaluator.evaluate(start, others, Still())[TABLE]
    # Label "no", bin 0: the user's whole weight of 1, and nothing anywhere else.
    np.testing.assert_allclose(table, [1.0] + [0.0] * 19, atol=1e-6)
