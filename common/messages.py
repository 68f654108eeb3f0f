"""Every field that travels between server and tenant. Nothing that is not in this file can leave a site.

    request  (server -> tenant)   kind, card hash, round, arrays (the adapter), ledger mark
    reply    (tenant -> server)   kind, card hash, round, arrays (update or table), ledger mark
    refusal  (tenant -> server)   a `RefusalCode`, nothing else

`train` asks for a noised update, `evaluate` for one noised table, `deliver` hands over an adapter and is answered
without arrays. Both directions decode to these types or are refused; there is no free-form field. In Flower's
terms: the arrays are an `ArrayRecord` named "arrays", the rest a `ConfigRecord` named "fields", and a refusal is an
`Error` whose reason is the code.

Flower moves every array of a record in several HTTP requests of its own, so all arrays of one dtype travel as ONE
flat array named after the dtype, in the order of "layout", a field that says `[[name, dtype, [sizes]], ...]`. What the
layout claims is checked against the bytes, and who receives the arrays checks them against its own adapter.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from numpy.typing import NDArray

from fedprofile.common.errors import InputError, RefusalCode

Arrays = dict[str, NDArray[Any]]

TABLE = "table"
"""The one array's name in a reply to `evaluate`."""

GENESIS = "0" * 64
"""The chain's hash of a ledger without entries."""

_HASH = re.compile(r"[0-9a-f]{64}\Z")
_ERROR_CODES = {code: 1000 + place for place, code in enumerate(RefusalCode)}
_DTYPES = ("float32", "float64")
_FIELDS = frozenset({"card", "round", "ledger_sequence", "ledger_head", "layout"})
_LARGEST_LAYOUT = 1 << 20


class Kind(StrEnum):
    """What a request asks for; the value is Flower's message type."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    DELIVER = "query.deliver"


@dataclass(frozen=True)
class LedgerMark:
    """How far a tenant's ledger has come: the last entry's sequence number and the hash of the chain up to it.

    It travels with replies and comes back with requests, so that a tenant notices when its ledger's file is older
    than what the server has seen.
    """

    sequence: int = 0
    head: str = GENESIS

    def __post_init__(self) -> None:
        if not 0 <= self.sequence < 2**62 or not _HASH.match(self.head):
            raise MessageError("a ledger mark is a sequence number and 64 hexadecimal digits")


class MessageError(InputError):
    """A message that is not of this schema. The text names the field and never its content."""


@dataclass(frozen=True)
class Request:
    """What the server asks; `arrays` is the current global adapter."""

    kind: Kind
    card_hash: str
    round: int
    arrays: Arrays = field(repr=False)
    ledger: LedgerMark = LedgerMark()


@dataclass(frozen=True)
class Reply:
    """What a tenant answers; `arrays` is the noised update, `{TABLE: table}`, or empty."""

    kind: Kind
    card_hash: str
    round: int
    arrays: Arrays = field(repr=False)
    ledger: LedgerMark = LedgerMark()


def content_of(letter: Request | Reply) -> RecordDict:
    """The Flower content of a request or a reply.

    Args:
        letter: Either.

    Returns:
        Two records: "arrays" and "fields".

    Raises:
        MessageError: An array's dtype is neither float32 nor float64.
    """
    layout = [[name, str(value.dtype), list(value.shape)] for name, value in letter.arrays.items()]
    packed: dict[str, Array] = {}
    for dtype in _DTYPES:
        parts = [np.ravel(value) for value in letter.arrays.values() if value.dtype == dtype]
        if parts:
            packed[dtype] = Array(np.concatenate(parts))
    if any(dtype not in _DTYPES for _, dtype, _ in layout):
        raise MessageError("an array's dtype is neither float32 nor float64")
    return RecordDict(
        {
            "arrays": ArrayRecord(packed),
            "fields": ConfigRecord(
                {
                    "card": letter.card_hash,
                    "round": letter.round,
                    "ledger_sequence": letter.ledger.sequence,
                    "ledger_head": letter.ledger.head,
                    "layout": json.dumps(layout, separators=(",", ":")),
                }
            ),
        }
    )


def contents_for(request: Request, marks: Iterable[LedgerMark]) -> Iterator[RecordDict]:
    """The contents of the same request to several tenants; all of them share one record of arrays.

    Args:
        request: The request; its own mark does not matter.
        marks: One for each tenant.

    Returns:
        One content for each mark.

    Raises:
        MessageError: As for `content_of`.
    """
    shared = content_of(request)
    for mark in marks:
        fields = ConfigRecord(dict(shared.config_records["fields"]))
        fields["ledger_sequence"], fields["ledger_head"] = mark.sequence, mark.head
        yield RecordDict({"arrays": shared["arrays"], "fields": fields})


def request_of(message: Message) -> Request:
    """Decode a request.

    Args:
        message: As received.

    Returns:
        The request.

    Raises:
        MessageError: It is not of this schema.
    """
    kind, card, number, arrays, mark = _decode(message)
    return Request(kind, card, number, arrays, mark)


def reply_of(message: Message) -> Reply:
    """Decode a reply that is not an error.

    Args:
        message: As received.

    Returns:
        The reply.

    Raises:
        MessageError: It is not of this schema.
    """
    kind, card, number, arrays, mark = _decode(message)
    return Reply(kind, card, number, arrays, mark)


def reply_message(reply: Reply, request: Message) -> Message:
    """Put a reply into an envelope that answers `request`."""
    return Message(content_of(reply), reply_to=request)


def refusal_message(code: RefusalCode, request: Message) -> Message:
    """Put a refusal into an envelope that answers `request`; the code is all that it says."""
    return Message(Error(code=_ERROR_CODES[code], reason=code.value), reply_to=request)


def refusal_of(message: Message) -> RefusalCode:
    """The code of a reply that is an error; whatever is not on the list reads as `unavailable`."""
    for code, number in _ERROR_CODES.items():
        if message.has_error() and message.error.code == number:
            return code
    return RefusalCode.UNAVAILABLE


def _decode(message: Message) -> tuple[Kind, str, int, Arrays, LedgerMark]:
    try:
        kind = Kind(message.metadata.message_type)
    except ValueError:
        raise MessageError("message type is not one of train, evaluate, query.deliver") from None
    if not message.has_content():
        raise MessageError("message has no content")
    content = message.content
    if set(content) != {"arrays", "fields"}:
        raise MessageError("message does not hold exactly the records 'arrays' and 'fields'")
    fields, record = content["fields"], content["arrays"]
    if not isinstance(fields, ConfigRecord) or not isinstance(record, ArrayRecord):
        raise MessageError("records 'arrays' and 'fields' are not of the expected types")
    if set(fields) != _FIELDS:
        raise MessageError("record 'fields' does not hold exactly the schema's keys")
    card, number = fields["card"], fields["round"]
    sequence, head = fields["ledger_sequence"], fields["ledger_head"]
    if not isinstance(card, str) or not _HASH.match(card):
        raise MessageError("field 'card' is not 64 hexadecimal digits")
    if type(number) is not int or not 0 <= number < 2**31:
        raise MessageError("field 'round' is not a round number")
    if type(sequence) is not int or not isinstance(head, str):
        raise MessageError("field 'ledger_sequence' or 'ledger_head' is not of the expected type")
    return kind, card, number, _decode_arrays(record, fields["layout"]), LedgerMark(sequence, head)


def _decode_arrays(record: ArrayRecord, layout: object) -> Arrays:
    places = _decode_layout(layout)
    flat = {str(dtype): _decode_flat(str(dtype), array) for dtype, array in record.items()}
    if set(flat) != {dtype for _, dtype, _ in places}:
        raise MessageError("record 'arrays' does not hold exactly the dtypes of the layout")
    taken = dict.fromkeys(flat, 0)
    arrays: Arrays = {}
    for name, dtype, shape in places:
        start, stop = taken[dtype], taken[dtype] + math.prod(shape)
        if stop > flat[dtype].size:
            raise MessageError("the layout asks for more values than there are")
        arrays[name] = flat[dtype][start:stop].reshape(shape)
        taken[dtype] = stop
    if len(arrays) != len(places) or any(taken[dtype] != values.size for dtype, values in flat.items()):
        raise MessageError("the layout names an array twice or leaves values over")
    return arrays


def _decode_flat(dtype: str, array: Array) -> NDArray[np.generic]:
    if dtype not in _DTYPES or array.dtype != dtype:
        raise MessageError("an array's dtype is neither float32 nor float64")
    try:
        value = array.numpy()
    except Exception:
        raise MessageError("an array cannot be decoded") from None
    # The header outside the bytes is the sender's claim; what counts is what the bytes decode to.
    if not isinstance(value, np.ndarray) or str(value.dtype) != dtype or value.ndim != 1:
        raise MessageError("an array's bytes differ from its declared dtype or shape")
    if list(value.shape) != list(array.shape):
        raise MessageError("an array's bytes differ from its declared dtype or shape")
    return value


def _decode_layout(layout: object) -> list[tuple[str, str, tuple[int, ...]]]:
    if not isinstance(layout, str) or len(layout) > _LARGEST_LAYOUT:
        raise MessageError("field 'layout' is not of the expected type or size")
    try:
        entries = json.loads(layout)
    except (ValueError, RecursionError):
        raise MessageError("field 'layout' is not JSON") from None
    if not isinstance(entries, list):
        raise MessageError("field 'layout' is not a list")
    places = []
    for entry in entries:
        match entry:
            case [str(name), str(dtype), list(shape)] if dtype in _DTYPES and len(shape) <= 8:
                if not all(type(size) is int and 0 <= size < 2**40 for size in shape):
                    raise MessageError("field 'layout' holds a size that is not one")
                places.append((name, dtype, tuple(shape)))
            case _:
                raise MessageError("field 'layout' holds an entry that is not name, dtype and sizes")
    return places
