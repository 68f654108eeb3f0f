"""Every kind of bad reply, through the real strategy: it is dropped and named, and the others are averaged."""

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedprofile.common.card import FederationCard
from fedprofile.common.errors import RefusalCode
from fedprofile.common.messages import (
    TABLE,
    Arrays,
    Kind,
    LedgerMark,
    Reply,
    content_of,
    refusal_message,
    reply_message,
)
from fedprofile.server.admission import Member
from fedprofile.server.strategy import StreamingFedAvg, make_strategy, numpy_of, record_of
from fedprofile.simulations.grid import InProcessGrid

Spoil = Callable[[Message, Reply], Message]
SHAPES: dict[str, tuple[int, ...]] = {"layer.lora_A.weight": (2, 3), "head.bias": (2,)}


def _good(card: FederationCard, value: float = 1.0) -> Reply:
    arrays: Arrays = {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}
    return Reply(Kind.TRAIN, card.hash, 4, arrays)


def _changed(**changes: Any) -> Spoil:
    def spoil(question: Message, reply: Reply) -> Message:
        fields = {"kind": reply.kind, "card_hash": reply.card_hash, "round": reply.round, "arrays": reply.arrays}
        return reply_message(Reply(**{**fields, **changes}), question)

    return spoil


def _arrays(change: Callable[[Arrays], Any]) -> Spoil:
    def spoil(question: Message, reply: Reply) -> Message:
        arrays = {name: value.copy() for name, value in reply.arrays.items()}
        change(arrays)
        return reply_message(Reply(reply.kind, reply.card_hash, reply.round, arrays), question)

    return spoil


def _content(change: Callable[[RecordDict], Any]) -> Spoil:
    def spoil(question: Message, reply: Reply) -> Message:
        content = content_of(reply)
        change(content)
        return Message(content, reply_to=question)

    return spoil


def _set(name: str, place: Any, value: float) -> Callable[[Arrays], Any]:
    def change(arrays: Arrays) -> None:
        arrays[name][place] = value

    return change


def _field(name: str, value: Any) -> Spoil:
    return _content(lambda content: content.config_records["fields"].__setitem__(name, value))


def _lying_header(content: RecordDict) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros(3, np.float64))
    content["arrays"] = ArrayRecord({"float32": Array("float32", (8,), "numpy.ndarray", file.getvalue())})


def _pickle(content: RecordDict) -> None:
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    content["arrays"] = ArrayRecord({"float32": Array("float32", (8,), "numpy.ndarray", file.getvalue())})


def _archive(content: RecordDict) -> None:
    file = io.BytesIO()
    np.savez(file, a=np.zeros(8, np.float32))
    content["arrays"] = ArrayRecord({"float32": Array("float32", (8,), "numpy.ndarray", file.getvalue())})


CASES: dict[str, tuple[Spoil, str]] = {
    "nan": (_arrays(_set("head.bias", 0, np.nan)), "not finite"),
    "infinity": (_arrays(_set("head.bias", 1, np.inf)), "not finite"),
    "norm": (_arrays(_set("head.bias", 0, 100.1)), "above max_update_norm"),
    "huge": (_arrays(_set("head.bias", 0, 3e38)), "above max_update_norm"),
    "shape": (_arrays(lambda arrays: arrays.update({"head.bias": np.zeros((3,), np.float32)})), "shape of 'head.bias'"),
    "transposed": (
        _arrays(lambda arrays: arrays.update({"layer.lora_A.weight": np.ones((3, 2), np.float32)})),
        "shape of 'layer.lora_A.weight'",
    ),
    "dtype": (_arrays(lambda arrays: arrays.update({"head.bias": np.zeros(2, np.float64)})), "dtype of 'head.bias'"),
    "name": (_arrays(lambda arrays: arrays.update({"head.weight": arrays.pop("head.bias")})), "names are not"),
    "missing": (_arrays(lambda arrays: arrays.pop("head.bias")), "names are not"),
    "extra": (_arrays(lambda arrays: arrays.update({"more": np.zeros(1, np.float32)})), "names are not"),
    "empty": (_arrays(lambda arrays: arrays.clear()), "names are not"),
    "round": (_changed(round=3), "reply is for round 3"),
    "card": (_changed(card_hash="a" * 64), "another card"),
    "weight in the fields": (_field("num-examples", 10**12), "exactly the schema's keys"),
    "weight in a record": (
        _content(lambda content: content.__setitem__("metrics", MetricRecord({"num-examples": 10**12}))),
        "exactly the records",
    ),
    "no fields": (_content(lambda content: content.__delitem__("fields")), "exactly the records"),
    "fields of another type": (
        _content(lambda content: content.__setitem__("fields", MetricRecord({"round": 1}))),
        "not of the expected types",
    ),
    "arrays of another type": (
        _content(lambda content: content.__setitem__("arrays", ConfigRecord({"a": 1}))),
        "not of the expected types",
    ),
    "round of another type": (_field("round", "four"), "not a round number"),
    "round is a yes": (_field("round", True), "not a round number"),
    "card is no hash": (_field("card", "x"), "not 64 hexadecimal"),
    "ledger is negative": (_field("ledger_sequence", -1), "ledger mark"),
    "ledger head is none": (_field("ledger_head", "short"), "ledger mark"),
    "layout is no JSON": (_field("layout", "[[["), "not JSON"),
    "layout is too deep": (_field("layout", "[" * 100_000), "not JSON"),
    "layout is no list": (_field("layout", "{}"), "not a list"),
    "layout is a number": (_field("layout", 3), "expected type"),
    "layout is huge": (_field("layout", "[" + " " * (1 << 20) + "]"), "expected type or size"),
    "layout names twice": (
        _field("layout", json.dumps([["head.bias", "float32", [2]]] * 4)),
        "names an array twice or leaves values over",
    ),
    "layout leaves values over": (
        _field("layout", json.dumps([["head.bias", "float32", [2]], ["layer.lora_A.weight", "float32", [2]]])),
        "leaves values over",
    ),
    "layout asks for more": (_field("layout", json.dumps([["head.bias", "float32", [2**39]]])), "more values"),
    "layout is negative": (_field("layout", json.dumps([["head.bias", "float32", [-2]]])), "a size that is not one"),
    "layout of objects": (_field("layout", json.dumps([["head.bias", "object", [2]]])), "not name, dtype and sizes"),
    "bytes are another dtype": (_content(_lying_header), "differ from its declared"),
    "bytes are a pickle": (_content(_pickle), "cannot be decoded"),
    "bytes are an archive": (_content(_archive), "differ from its declared"),
    "another kind": (lambda question, reply: _as_kind(question, reply, Kind.EVALUATE), "kind is not train"),
    "an unknown kind": (lambda question, reply: _as_kind(question, reply, "query.spend"), "message type is not"),
    "an error of Flower's": (
        lambda question, reply: Message(Error(code=2, reason="KeyError: 'age'"), reply_to=question),
        "reply lost or malformed",
    ),
}


def _as_kind(question: Message, reply: Reply, kind: str) -> Message:
    message = reply_message(reply, question)
    message.metadata.message_type = str(kind)
    return message


def _strategy(card: FederationCard, names: list[str]) -> tuple[StreamingFedAvg, list[Message]]:
    members = {node: Member(name, 100, 1.0) for node, name in enumerate(names, start=1)}
    grid = InProcessGrid(dict.fromkeys(members, lambda message: message))
    strategy = make_strategy(card, SHAPES, lambda: members, 60.0)
    start = record_of({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()})
    questions = list(strategy.configure_train(4, start, ConfigRecord(), grid))
    for number, question in enumerate(questions):
        question.metadata.__dict__["_message_id"] = str(number)
    return strategy, questions


@pytest.mark.parametrize("case", CASES)
def test_a_bad_reply_is_dropped_and_the_others_count(make_card: Callable[..., FederationCard], case: str) -> None:
    card = make_card()
    spoil, expected = CASES[case]
    strategy, questions = _strategy(card, ["one", "bad", "two"])
    replies = [
        reply_message(_good(card, 1.0), questions[0]),
        spoil(questions[1], _good(card, 7.0)),
        reply_message(_good(card, 3.0), questions[2]),
    ]
    arrays, _ = strategy.aggregate_train(4, iter(replies))
    assert arrays is not None
    for value in numpy_of(arrays).values():
        np.testing.assert_array_equal(value, np.full(value.shape, 2.0, np.float32))
    assert strategy.outcome.answered == ["one", "two"]
    assert [dropped.name for dropped in strategy.outcome.dropped] == ["bad"]
    assert expected in strategy.outcome.dropped[0].reason
    # Whatever a tenant writes stays out of what the operator's files say, but for the numbers and names of the schema.
    assert "KeyError" not in strategy.outcome.dropped[0].reason


def test_an_update_at_the_bound_is_admitted(make_card: Callable[..., FederationCard]) -> None:
    card = make_card(max_update_norm=1.0)
    strategy, questions = _strategy(card, ["one"])
    value = np.float32(1 / np.sqrt(8))
    arrays: Arrays = {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}
    strategy.aggregate_train(4, [reply_message(Reply(Kind.TRAIN, card.hash, 4, arrays), questions[0])])
    assert strategy.outcome.answered == ["one"]


def test_refusals_are_counted_with_their_code(make_card: Callable[..., FederationCard]) -> None:
    strategy, questions = _strategy(make_card(), [code.value for code in RefusalCode])
    replies = [refusal_message(code, question) for code, question in zip(RefusalCode, questions, strict=True)]
    assert strategy.aggregate_train(4, replies) == (None, None)
    assert strategy.outcome.refused == [(code.value, code) for code in RefusalCode]
    assert strategy.outcome.dropped == []


def test_who_was_not_asked_answers_twice_or_not_at_all(make_card: Callable[..., FederationCard]) -> None:
    card = make_card()
    strategy, questions = _strategy(card, ["one", "two", "silent"])
    again = reply_message(_good(card, 5.0), questions[0])
    stranger = reply_message(_good(card, 9.0), questions[1])
    stranger.metadata.__dict__["_src_node_id"] = 77
    replies = [reply_message(_good(card), questions[0]), again, stranger, reply_message(_good(card), questions[1])]
    arrays, _ = strategy.aggregate_train(4, replies)
    assert arrays is not None
    assert float(numpy_of(arrays)["head.bias"][0]) == 1.0
    reasons = {dropped.name: dropped.reason for dropped in strategy.outcome.dropped}
    assert reasons == {"one": "answered twice", "node 77": "was not asked", "silent": "no answer in time"}


def test_the_newest_ledger_mark_comes_back(make_card: Callable[..., FederationCard]) -> None:
    card = make_card()
    strategy, questions = _strategy(card, ["one", "two"])
    newer, older = LedgerMark(9, "b" * 64), LedgerMark(3, "c" * 64)
    strategy.marks["two"] = newer
    good = _good(card)
    replies = [
        reply_message(Reply(good.kind, good.card_hash, 4, good.arrays, newer), questions[0]),
        # An answer from the outbox carries the mark of its time.
        reply_message(Reply(good.kind, good.card_hash, 4, good.arrays, older), questions[1]),
    ]
    strategy.aggregate_train(4, replies)
    assert strategy.marks == {"one": newer, "two": newer}


BAD_TABLES: dict[str, Arrays] = {
    "shape": {TABLE: np.zeros(19)},
    "dtype": {TABLE: np.zeros(20, np.float32)},
    "name": {"other": np.zeros(20)},
    "nan": {TABLE: np.full(20, np.nan)},
    "more than everybody": {TABLE: np.full(20, 1e6)},
    "extra": {TABLE: np.zeros(20), "more": np.zeros(1)},
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_is_dropped(make_card: Callable[..., FederationCard], case: str) -> None:
    card = make_card()
    strategy, _ = _strategy(card, ["one", "bad"])
    members = {1: Member("one", 100, 1.0), 2: Member("bad", 100, 1.0)}
    grid = InProcessGrid(dict.fromkeys(members, lambda message: message))
    start = record_of({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()})
    questions = list(strategy.configure_evaluate(2, start, ConfigRecord(), grid))
    tables: list[Arrays] = [{TABLE: np.full(20, 40.0)}, BAD_TABLES[case]]
    replies = [
        reply_message(Reply(Kind.EVALUATE, card.hash, 2, table), question)
        for table, question in zip(tables, questions, strict=True)
    ]
    strategy.aggregate_evaluate(2, replies)
    assert strategy.outcome.answered == ["one"]
    assert [dropped.name for dropped in strategy.outcome.dropped] == ["bad"]
    auc = strategy.outcome.metrics["auc"]
    assert auc is not None and abs(auc.value - 0.5) < 1e-9
