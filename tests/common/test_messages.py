"""The wire form: what goes in comes out, and anything that is not of the schema is refused without being quoted."""

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedprofile.common.errors import RefusalCode
from fedprofile.common.messages import (
    Arrays,
    Kind,
    LedgerMark,
    MessageError,
    Reply,
    Request,
    content_of,
    refusal_message,
    refusal_of,
    reply_message,
    reply_of,
    request_of,
)

CARD = "ab" * 32
CANARY = "canary-7351"


@pytest.fixture(autouse=True)
def _identity() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def _message(content: RecordDict, kind: str = "train") -> Message:
    message = Message(content, 7, kind)
    message.metadata.__dict__["_message_id"] = "message"
    return message


_arrays = st.dictionaries(
    st.text("abcdefghij._", min_size=1, max_size=12),
    hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        hnp.array_shapes(max_dims=3, max_side=4, min_side=0),
        elements=st.floats(width=32, allow_nan=True),
    ),
    max_size=4,
)
_marks = st.builds(LedgerMark, st.integers(0, 2**40), st.text("0123456789abcdef", min_size=64, max_size=64))


def _same(left: Arrays, right: Arrays) -> bool:
    return list(left) == list(right) and all(
        left[name].dtype == right[name].dtype and np.array_equal(left[name], right[name], equal_nan=True)
        for name in left
    )


@given(st.sampled_from(Kind), st.integers(0, 2**31 - 1), _arrays, _marks)
@settings(max_examples=100, deadline=None)
def test_a_request_and_a_reply_survive_the_round_trip(
    kind: Kind, number: int, arrays: Arrays, mark: LedgerMark
) -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    request = Request(kind, CARD, number, arrays, mark)
    message = _message(content_of(request), kind.value)
    decoded = request_of(message)
    assert (decoded.kind, decoded.card_hash, decoded.round, decoded.ledger) == (kind, CARD, number, mark)
    assert _same(decoded.arrays, arrays)
    answer = reply_of(reply_message(Reply(kind, CARD, number, arrays, mark), message))
    assert (answer.kind, answer.card_hash, answer.round, answer.ledger) == (kind, CARD, number, mark)
    assert _same(answer.arrays, arrays)


def _valid() -> RecordDict:
    return content_of(Request(Kind.TRAIN, CARD, 1, {"w": np.ones(2, np.float32)}))


def _with_fields(**fields: str | int | float) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        record = content["fields"]
        assert isinstance(record, ConfigRecord)
        for name, value in fields.items():
            record[name] = value

    return change


def _pickled(content: RecordDict) -> None:
    record = content["arrays"]
    assert isinstance(record, ArrayRecord)
    next(iter(record.values())).data = b"\x80\x04" + CANARY.encode()


def _extra_record(content: RecordDict) -> None:
    content[CANARY] = MetricRecord({"num-examples": 10**12})


@pytest.mark.parametrize(
    "spoil",
    [
        _with_fields(weight=10**12),
        _with_fields(**{CANARY: CANARY}),
        _with_fields(card=CANARY),
        _with_fields(round=-1),
        _with_fields(round=1.5),
        _with_fields(ledger_sequence=-3),
        _with_fields(ledger_head=CANARY),
        _pickled,
        _extra_record,
        lambda content: content.pop("fields"),
        lambda content: content.pop("arrays"),
    ],
)
def test_what_is_not_of_the_schema_is_refused_and_not_quoted(spoil: Callable[[RecordDict], object]) -> None:
    content = _valid()
    assert request_of(_message(content)).round == 1
    spoil(content)
    with pytest.raises(MessageError) as caught:
        request_of(_message(content))
    assert CANARY not in str(caught.value)


def test_integers_and_objects_are_not_adapters() -> None:
    content = _valid()
    content["arrays"] = ArrayRecord({"w": __import__("flwr").app.Array(np.ones(2, np.int64))})
    with pytest.raises(MessageError, match="dtype"):
        request_of(_message(content))


def test_there_are_six_codes() -> None:
    assert set(RefusalCode) == {"unavailable", "policy", "budget", "card", "adapter", "ledger"}


@pytest.mark.parametrize("code", list(RefusalCode))
def test_a_refusal_says_its_code_and_nothing_else(code: RefusalCode) -> None:
    answer = refusal_message(code, _message(_valid()))
    assert refusal_of(answer) is code
    assert answer.error.reason == code.value
    assert not answer.has_content()
