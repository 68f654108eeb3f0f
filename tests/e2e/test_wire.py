"""Nothing of the data is in the bytes that leave, nor in the logs: whole runs with canaries in every column.

The tenants train for real. Some fail at every step that they can fail at, with errors that quote the data; one leaks on
purpose, so that it is known what would be found.
"""

import base64
import json
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import tomli_w
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.recorddict_pb2 import ConfigRecord as ConfigRecordProto
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.constant import HEAD_BODY_DIVIDER
from flwr.supercore.inflatable.inflatable_object import (
    get_object_children_ids_from_object_content,
    get_object_type_from_object_content,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from google.protobuf.message import Message as ProtobufMessage
from tests.e2e.canaries import Canaries
from tests.e2e.conftest import free_ports
from tests.e2e.odd_client import STEPS
from tests.e2e.wiretap import Sent, Wiretap

from fedprofile.client.enrolment import read_key
from fedprofile.server.directory import ServerDirectory

if TYPE_CHECKING:
    from tests.e2e.conftest import Federation

pytestmark = pytest.mark.e2e

HONEST = ("acme", "globex", "initech")
"""The first is recorded by itself as well; the last has the same data as the second but for one user."""
MESSAGES: dict[str, type[ProtobufMessage]] = {
    "activate-node": ActivateNodeRequest,
    "deactivate-node": DeactivateNodeRequest,
    "send-node-heartbeat": SendNodeHeartbeatRequest,
    "pull-messages": PullMessagesRequest,
    "pull-object": PullObjectRequest,
    "push-messages": PushMessagesRequest,
    "push-object": PushObjectRequest,
    "confirm-message-received": ConfirmMessageReceivedRequest,
    "get-run": GetRunRequest,
}
ENVELOPE = (
    *("run_id", "src_node_id", "dst_node_id", "dst_task_id", "reply_to_message_id", "message_type"),
    *("created_at", "ttl"),  # The request's own.
)
LEAVES = {
    "activate-node: public_key",
    "activate-node: heartbeat_interval",
    "deactivate-node: node_id",
    "send-node-heartbeat: node.node_id",
    "send-node-heartbeat: heartbeat_interval",
    "pull-messages: node.node_id",
    *(f"pull-object: {name}" for name in ("node.node_id", "run_id", "object_id")),
    *(f"get-run: {name}" for name in ("node.node_id", "run_id")),
    *(f"confirm-message-received: {name}" for name in ("node.node_id", "run_id", "message_object_id")),
    *(f"push-object: {name}" for name in ("node.node_id", "run_id", "object_id", "object_content", "session_id")),
    "push-messages: node.node_id",
    "push-messages: clientapp_runtime_list",  # Always 0.
    *(f"push-messages: messages_list.metadata.{name}" for name in (*ENVELOPE, "message_id")),
    *(f"push-messages: messages_list.error.{name}" for name in ("code", "reason")),
    *(f"push-messages: message_object_trees.{'children.' * depth}object_id" for depth in range(5)),
    *(f"object: Message.metadata.{name}" for name in ENVELOPE),
    *(f"object: Message.error.{name}" for name in ("code", "reason")),
    *(f"object: RecordDict {name}" for name in ("arrays", "fields")),
    *(f"object: ConfigRecord {name}" for name in ("card", "round", "ledger_sequence", "ledger_head", "layout")),
    *(f"object: ConfigRecord.items.{name}" for name in ("key", "value.sint64", "value.string")),
    *(f"object: {kind}" for kind in ("ArrayRecord float32", "ArrayRecord float64", "ArrayChunk")),
    *(f"object: Array {name}" for name in ("dtype=float32", "dtype=float64", "stype=numpy.ndarray")),
}
"""All that a tenant can send, to the leaves."""
HEADERS = {
    *("accept", "accept-encoding", "connection", "content-length", "content-type", "host", "user-agent"),
    *("flwr-component-name", "flwr-package-name", "flwr-package-version"),
    *("flwr-public-key", "flwr-signature", "flwr-timestamp"),
}
NAMES = ("node", "node_id", "run_id", "message_id", "reply_to_message_id", "src_node_id", "dst_node_id", "message_type")
"""Fields that say who sends what to whom. The numbers among them are random, and shorter ones take fewer bytes."""
FAILING = {f"fails-{step}": f"fail={step}" for step in STEPS}


@dataclass(frozen=True)
class Recorded:
    """A run that is over."""

    run: "Federation"
    by_tenant: dict[str, list[Sent]]

    def bytes_of(self, name: str) -> bytes:
        """All that a tenant sent."""
        return b"\n".join(part for sent in self.by_tenant[name] for part in (sent.head, sent.body))


@pytest.fixture(scope="module")
def recorded(shared_federation: Callable[..., "Federation"]) -> Recorded:
    everybody = (*HONEST, *FAILING, "leaky")
    run = shared_federation(training={"rounds": 3}, rounds={"min_tenants": len(everybody), "timeout": 600})
    # As loud as a user can make it.
    run.environment |= {"FLWR_LOG_LEVEL": "DEBUG", "PYTHONWARNINGS": "default", "TRANSFORMERS_VERBOSITY": "debug"}
    for name in everybody:
        directory = run.join(name)
        whose = Canaries("globex" if name == "initech" else name)
        whose.write(directory / "visits.csv", without=7 if name == "initech" else None)
    server = ServerDirectory(run.server_dir)
    [port] = free_ports(1)
    settings = tomllib.loads(server.settings_file.read_text())
    tap = Wiretap(run.public, server, port)
    try:
        server.settings_file.write_text(tomli_w.dumps(settings | {"port": port}))
        run.start_server()
        run.start_client("acme", "--record-egress", run.root / "egress.jsonl")
        run.start_client("globex")
        run.start_client("initech")
        run.start_odd_clients(leaky="leak", **FAILING)
        run.wait_until("the first round", run.trained)
        for name in ("globex", "initech"):
            # While it runs, wrong rows are left out; the log says how many.
            Canaries("globex").write(run.tenant_dir(name) / "visits.csv", wrong=True)
        run.finish(*HONEST, "odd", "server")
    finally:
        tap.close()
    keys = {
        base64.b64encode(public_key_to_bytes(read_key(run.tenant_dir(name) / "key").public_key())).decode(): name
        for name in everybody
    }
    by_tenant: dict[str, list[Sent]] = {name: [] for name in everybody}
    for sent in tap.requests():
        by_tenant[keys[sent.key]].append(sent)
    return Recorded(run, by_tenant)


def test_the_run_was_a_real_one(recorded: Recorded) -> None:
    assert [entry["round"] for entry in recorded.run.trained()] == [1, 2, 3]
    for entry in recorded.run.trained():
        assert set(HONEST) <= set(entry["tenants"])
    for name in HONEST:
        assert len(recorded.bytes_of(name)) > 10_000
        assert "update sent" in recorded.run.output(name)


@pytest.mark.parametrize("name", [*HONEST[:2], *FAILING])
def test_no_canary_is_in_what_a_tenant_sent(name: str, recorded: Recorded) -> None:
    assert Canaries(name).found_in(recorded.bytes_of(name)) == set()


def test_what_leaks_would_be_found(recorded: Recorded) -> None:
    found = Canaries("leaky").found_in(recorded.bytes_of("leaky"))
    assert {"text of canary-leaky", "date of the time"} <= {form.replace("-user-0000", "") for form in found}


@pytest.mark.parametrize("name", [*HONEST[:2], *FAILING])
def test_no_canary_is_in_a_log(name: str, recorded: Recorded) -> None:
    run = recorded.run
    logs = [run.tenant_dir(name) / "client.log", run.server_dir / "state" / "server.log"]
    written = b"\n".join(path.read_bytes() for path in logs if path.exists())
    told = "".join(run.output(process) for process in (*HONEST, "odd", "server"))
    assert Canaries(name).found_in(written + told.encode()) == set()


def test_every_failure_looks_the_same_to_the_server(recorded: Recorded) -> None:
    """A step that fails is refused with the one code `unavailable`, in a message that differs in names only."""
    refused: dict[str, Counter[str]] = {name: Counter() for name in FAILING}
    for entry in recorded.run.history():
        for row in entry["refused"]:
            refused[row["tenant"]][row["code"]] += 1
    harmless = {"fails-refusal"}  # It fails only while a refusal is counted, and nothing else goes wrong there.
    for name, codes in refused.items():
        assert set(codes) == (set() if name in harmless else {"unavailable"}), name
    refusals = [
        pushed
        for name in FAILING
        for sent in recorded.by_tenant[name]
        if sent.path.endswith("/push-messages")
        and (pushed := PushMessagesRequest.FromString(sent.body)).messages_list[0].HasField("error")
    ]
    assert len(refusals) >= sum(map(len, refused.values()))
    assert len({_without_names(pushed).SerializeToString(deterministic=True) for pushed in refusals}) == 1


def _without_names(pushed: PushMessagesRequest) -> PushMessagesRequest:
    """What is left when it is not said who answers which request, and which object is which."""
    [message], [tree] = pushed.messages_list, pushed.message_object_trees
    tree.ClearField("object_id")
    for part in (pushed, message.metadata):
        _clear(part, NAMES)
    message.metadata.ClearField("created_at")  # The request's.
    message.metadata.ClearField("ttl")
    return pushed


def _clear(message: ProtobufMessage, names: Iterable[str]) -> None:
    for name in set(names) & set(message.DESCRIPTOR.fields_by_name):
        message.ClearField(name)


def test_neighbouring_data_sets_look_the_same_from_outside(recorded: Recorded) -> None:
    """The same requests of the same sizes, whoever is in the data."""
    shapes = [
        Counter(shape for sent in recorded.by_tenant[name] if (shape := _shape(sent)) is not None)
        for name in ("globex", "initech")
    ]
    assert shapes[0] == shapes[1]
    assert max(size for call, size in shapes[0] if call == "push-object") > 500


def _shape(sent: Sent) -> tuple[str, int] | None:
    """A request's name and its size without the random numbers in it; None for those that only the clock counts."""
    call = sent.path.removeprefix("/v1/fleet/")
    if call.endswith(("pull-messages", "heartbeat")):
        return None
    message = MESSAGES[call].FromString(sent.body)
    _clear(message, NAMES)
    for pushed in getattr(message, "messages_list", ()):
        _clear(pushed.metadata, NAMES)
    if isinstance(message, PushObjectRequest):
        content = message.object_content
        kind = get_object_type_from_object_content(content)
        if kind == "ArrayRecord" and not get_object_children_ids_from_object_content(content):
            return None  # A reply without arrays has one such object for all tenants, and who comes first sends it.
        if kind == "Message":
            inner = MessageProto.FromString(content.split(HEAD_BODY_DIVIDER, 1)[1])
            _clear(inner.metadata, NAMES)
            return call, inner.ByteSize()
    return call, message.ByteSize()


def test_nothing_but_the_listed_fields_ever_leaves(recorded: Recorded) -> None:
    """Every field of every message of every tenant but the one that leaks, walked to its leaves."""
    honest = [sent for name in (*HONEST, *FAILING) for sent in recorded.by_tenant[name]]
    seen: set[str] = set()
    for sent in honest:
        call = sent.path.removeprefix("/v1/fleet/")
        message = MESSAGES[call].FromString(sent.body)
        seen |= {f"{call}: {leaf}" for leaf in _leaves(message)}
        if isinstance(message, PushObjectRequest):
            seen |= {f"object: {leaf}" for leaf in _leaves_of_object(message.object_content)}
    assert seen <= LEAVES
    assert {"object: ConfigRecord ledger_head", "object: ArrayChunk", "push-messages: messages_list.error.code"} <= seen
    assert {name for sent in honest for name in sent.headers} <= HEADERS


def _leaves(message: ProtobufMessage, before: str = "") -> Iterator[str]:
    for field, value in message.ListFields():
        for part in value if field.is_repeated else [value]:
            if isinstance(part, ProtobufMessage):
                yield from _leaves(part, f"{before}{field.name}.")
            else:
                yield before + field.name


def _leaves_of_object(content: bytes) -> Iterator[str]:
    """What is in an object of Flower's: a reply, its records, its arrays."""
    kind, children = get_object_type_from_object_content(content), get_object_children_ids_from_object_content(content)
    body = content.split(HEAD_BODY_DIVIDER, 1)[1]
    if kind in ("Message", "ConfigRecord"):
        message = MessageProto.FromString(body) if kind == "Message" else ConfigRecordProto.FromString(body)
        yield from (f"{kind}.{leaf}" for leaf in _leaves(message))
        yield from (f"{kind} {item.key}" for item in getattr(message, "items", ()))
    elif kind == "ArrayChunk":
        assert len(body) % 4 == 0 or body.startswith(b"\x93NUMPY")
        yield kind
    else:
        described = json.loads(body)
        names = sorted(described)
        if kind == "Array":
            names = [f"{name}={described[name]}" for name in names if name in ("dtype", "stype")]
            assert set(described) == {"dtype", "shape", "stype", "arraychunk_ids"}
        assert children or kind in ("ArrayRecord", "Array")
        yield from (f"{kind} {name}" for name in names)


def test_the_record_of_what_left_is_what_came(recorded: Recorded) -> None:
    lines = [json.loads(line) for line in (recorded.run.root / "egress.jsonl").read_text().splitlines()]
    told = Counter((line["url"].split("/v1/")[1], base64.b64decode(line["body"])) for line in lines)
    came = Counter((sent.path.split("/v1/")[1], sent.body) for sent in recorded.by_tenant["acme"])
    assert came <= told
    # Recorded before it is sent: who knocks before the server is there is recorded, and nobody hears it.
    assert {path for path, _ in told - came} <= {"fleet/activate-node"}
    signatures = {value for line in lines for name, value in line["headers"] if "signature" in name.lower()}
    heard = {
        value for sent in recorded.by_tenant["acme"] for name, value in sent.headers.items() if "signature" in name
    }
    assert heard and heard <= signatures
