"""What reads bytes that somebody else wrote, each as a function of bytes that raises nothing but what it documents.

wire          a message's records, as both sides decode them
objects       a request's objects, as the client pulls them from a server
journal       the client's journal of the request in flight
tenant-file   tenant.toml
card          federation.toml
invite        what an operator sends
enroll        what a tenant sends
"""

import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import fedprofile.common.environment  # noqa: F401  (before flwr)

# isort: split
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import ObjectTree, PullObjectRequest, PullObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    no_object_id_recompute,
)
from flwr.supercore.task_identity import TaskIdentity

from fedprofile.client.exchange import Exchange, LostRequestError
from fedprofile.client.journal import Journal
from fedprofile.client.transport import MessageLimits, Retry
from fedprofile.common.adapters import AdapterError, Layout, check_arrays
from fedprofile.common.card import load_card
from fedprofile.common.config import load_toml
from fedprofile.common.enrolment import Enrolment, Invite, Promise, file_text, read_exchanged, write_public_key
from fedprofile.common.errors import ConfigError
from fedprofile.common.messages import Kind, LedgerMark, MessageError, Request, content_of, request_of
from fedprofile.common.tenant import TenantFile
from fedprofile.server.enrolment import read_enrolment

LAYOUT: Layout = {"a": ((2, 2), "float32"), "b": ((3,), "float64")}
DIVIDER = b"\n--object--\n"
SCENARIOS = Path(__file__).resolve().parents[2] / "configs" / "scenarios"

TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
_folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
_file = _folder / "input"


def wire(data: bytes) -> None:
    """Decode, check as an adapter, and come back to the same when encoded again."""
    try:
        content = recorddict_from_proto(RecordDictProto.FromString(data))
    except Exception:
        return  # Flower's part; the client answers whatever it raises with one code.
    try:
        request = request_of(Message(content, dst_node_id=1, message_type=Kind.TRAIN.value))
    except MessageError:
        return
    again = request_of(Message(content_of(request), dst_node_id=1, message_type=Kind.TRAIN.value))
    assert (again.card_hash, again.round, again.ledger) == (request.card_hash, request.round, request.ledger)
    assert again.arrays.keys() == request.arrays.keys()
    for name, value in request.arrays.items():
        assert again.arrays[name].tobytes() == value.tobytes() and again.arrays[name].shape == value.shape
    try:
        check_arrays(request.arrays, LAYOUT)
    except AdapterError:
        return
    assert all(np.isfinite(value).all() for value in request.arrays.values())


class _Server:
    """Gives what it was made with."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self._contents = contents

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:
        """As Flower's Fleet API."""
        found = self._contents.get(request.object_id)
        return PullObjectResponse(
            object_found=found is not None, object_available=found is not None, object_content=found or b""
        )


def objects(data: bytes) -> None:
    """A request whose objects have the right names and any content."""
    parts = data.split(DIVIDER)
    contents = {get_object_id(part): part for part in parts}
    root = get_object_id(parts[0])
    envelope = PullMessagesResponse()
    envelope.messages_list.add().metadata.run_id = 1
    envelope.message_object_trees.append(
        ObjectTree(object_id=root, children=[ObjectTree(object_id=name) for name in contents if name != root])
    )
    _receive(envelope, _Server(contents))


def _receive(envelope: PullMessagesResponse, server: Any) -> None:
    limits = MessageLimits.of_adapter(1 << 16)
    stop = threading.Event()
    exchange = Exchange(server, Retry(stop, print, lambda: None, lambda: False), limits, stop)
    try:
        message = exchange.receive(Node(node_id=1), envelope)
    except LostRequestError:
        return
    assert message is None or isinstance(message, Message)
    if message is not None and message.has_content():
        try:
            request_of(message)
        except MessageError:
            return


def journal(data: bytes) -> None:
    """A journal's file, and what a client that comes back does with it."""
    place = Journal(_folder / "journal")
    (_folder / "journal" / "request").write_bytes(data)
    envelope = place.load()
    if envelope is not None:
        _receive(envelope, _Server({}))
    place.clear()
    assert place.load() is None


def tenant_file(data: bytes) -> None:
    """tenant.toml."""
    _file.write_bytes(data)
    try:
        tenant = load_toml(_file, TenantFile)
    except ConfigError as error:
        _check_sentence(error)
        return
    assert 0 < tenant.run_delta <= tenant.life_delta < 1


def card(data: bytes) -> None:
    """federation.toml."""
    _file.write_bytes(data)
    try:
        found = load_card(_file)
    except ConfigError as error:
        _check_sentence(error)
        return
    assert len(found.hash) == 64 and found.features.width >= 0


def invite(data: bytes) -> None:
    """An invite, and the card in it."""
    _file.write_bytes(data)
    try:
        found = read_exchanged(_file, Invite)
        assert found.read_card().hash == found.card_hash
    except ConfigError as error:
        _check_sentence(error)


def enroll(data: bytes) -> None:
    """An enrolment, and its signature."""
    _file.write_bytes(data)
    try:
        assert read_enrolment(_file).declared_users >= 10
    except ConfigError as error:
        _check_sentence(error)


def _check_sentence(error: ConfigError) -> None:
    """An error is text that a terminal can show."""
    assert str(error).replace("\n", "").isprintable(), repr(str(error))


TARGETS: dict[str, Callable[[bytes], None]] = {
    "wire": wire,
    "objects": objects,
    "journal": journal,
    "tenant-file": tenant_file,
    "card": card,
    "invite": invite,
    "enroll": enroll,
}


@cache
def seeds(target: str) -> list[bytes]:
    """Valid inputs of a target, to start from."""
    request = Request(
        Kind.TRAIN,
        "a" * 64,
        3,
        {"a": np.ones((2, 2), np.float32), "b": np.arange(3.0)},
        LedgerMark(5, "b" * 64),
    )
    content = content_of(request)
    if target == "wire":
        return [recorddict_to_proto(content).SerializeToString(deterministic=True)]
    if target == "objects":
        message = Message(content, dst_node_id=1, message_type=Kind.TRAIN.value)
        with no_object_id_recompute():
            found = get_all_nested_objects(message)
        return [
            DIVIDER.join(found[name].deflate() for name in sorted(found, key=lambda name: found[name] is not message))
        ]
    if target == "journal":
        envelope = PullMessagesResponse()
        envelope.messages_list.add().metadata.run_id = 1
        envelope.message_object_trees.add().object_id = "c" * 64
        return [envelope.SerializeToString()]
    if target in ("tenant-file", "card"):
        name = "tenant.toml" if target == "tenant-file" else "federation.toml"
        return [path.read_bytes() for path in sorted(SCENARIOS.glob(f"*/{name}"))]
    agreed = load_card(SCENARIOS / "built-in" / "federation.toml")
    if target == "invite":
        canonical = agreed.canonical().decode()
        made = Invite(tenant="acme", address="localhost:1", ca="PEM", card=canonical, card_hash=agreed.hash)
        return [file_text(made).encode()]
    key = ec.generate_private_key(ec.SECP384R1())
    promise = Promise(epsilon=1.0, delta=1e-6)
    public = write_public_key(key.public_key())
    unsigned = Enrolment(tenant="acme", public_key=public, card_hash=agreed.hash, declared_users=1000, promise=promise)
    return [file_text(unsigned.signed_by(key)).encode()]
