"""A small federation without a model, and a tenant made of Flower's own client parts.

The tenant here is real: it signs, speaks TLS, pulls and pushes objects as Flower's node does. What it answers is up
to the test.
"""

import contextlib
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    pull_objects,
    push_object_contents_from_iterable,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedprofile.common.card import FederationCard
from fedprofile.common.config import validate
from fedprofile.common.enrolment import Enrolment, Promise, write_public_key
from fedprofile.common.messages import Arrays, Reply, Request, reply_message, request_of
from fedprofile.server.certificates import new_authority, new_server_certificate
from fedprofile.server.directory import ServerDirectory
from fedprofile.server.enrolment import enroll_tenant, invite_tenant
from fedprofile.server.runs import serve

Answer = Callable[[Request, Message], Message]


def _card_data(**sections: Any) -> dict[str, Any]:
    card: dict[str, Any] = {
        "name": "test",
        "task": {"kind": "binary", "labels": ["no", "yes"]},
        "history": {"event": "{action}"},
        "base": {
            "id": "example/none",
            "weights_sha256": "1" * 64,
            "config_sha256": "2" * 64,
            "tokenizer_sha256": "3" * 64,
        },
        "training": {"rounds": 3, "local_steps": 1, "learning_rate": 0.1, "head_learning_rate": 0.1},
        "rounds": {"min_tenants": 2, "timeout": 20},
        "evaluation": {"when": "never"},
        "max_update_norm": 100.0,
    }
    for name, section in sections.items():
        old = card.get(name)
        card[name] = {**old, **section} if isinstance(old, dict) and isinstance(section, dict) else section
    return card


@pytest.fixture
def make_card() -> Callable[..., FederationCard]:
    """A function that gives a card; sections can be overridden."""

    def make(**sections: Any) -> FederationCard:
        return validate(json.loads(json.dumps(_card_data(**sections))), FederationCard, "card")

    return make


def as_toml(value: Any) -> str:
    """A value as an inline TOML value."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {as_toml(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(as_toml(inner) for inner in value) + "]"
    return json.dumps(value)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Tenant:
    """A tenant in a thread.

    Args:
        address: The server's, `host:port`.
        ca: PEM.
        key: The tenant's.
        answer: Makes the reply to one request.
    """

    def __init__(self, address: str, ca: bytes, key: ec.EllipticCurvePrivateKey, answer: Answer) -> None:
        self.key, self.answer = key, answer
        self.heard: list[Request] = []
        self._ca, self._address = ca, address
        self.client = self.connect()
        self.node_id = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def connect(self) -> FleetHttpClient:
        """A client of Flower's with this tenant's key."""
        interceptors = [NodeAuthHttpInterceptor(self.key, self.key.public_key())]
        return FleetHttpClient.from_server_address(self._address, False, self._ca, interceptors=interceptors)

    def activate(self) -> int:
        """Sign on."""
        request = ActivateNodeRequest(public_key=public_key_to_bytes(self.key.public_key()), heartbeat_interval=30)
        self.node_id = self.client.ActivateNode(request).node_id
        return self.node_id

    def start(self) -> "Tenant":
        """Sign on and answer until `stop`."""
        self.activate()
        self._thread.start()
        return self

    def start_later(self) -> "Tenant":
        """Answer as soon as the server lets the tenant in."""
        threading.Thread(target=self._sign_on, daemon=True).start()
        return self

    def can_activate(self) -> bool:
        """Whether the server lets the tenant in, which it then is."""
        try:
            self.activate()
        except httpx.HTTPError:
            return False
        return True

    def _sign_on(self) -> None:
        while not self._stop.is_set():
            if self.can_activate():
                self._thread.start()
                return
            self._stop.wait(0.1)

    def stop(self, leave: bool = True) -> None:
        """Stop answering; with `leave` the server is told."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)
        if leave:
            with contextlib.suppress(httpx.HTTPError):
                self.client.DeactivateNode(DeactivateNodeRequest(node_id=self.node_id))
        self.client.close()

    def pull(self) -> Message | None:
        """The next request, if there is one."""
        node = Node(node_id=self.node_id)
        got = self.client.PullMessages(PullMessagesRequest(node=node))
        if not got.messages_list:
            return None
        run_id, tree = got.messages_list[0].metadata.run_id, got.message_object_trees[0]
        fetch = make_pull_object_fn_protobuf(self.client.PullObject, node, run_id)
        contents = pull_objects([part.object_id for part in iterate_object_tree(tree)], fetch)
        make_confirm_message_received_fn_protobuf(self.client.ConfirmMessageReceived, node, run_id)(tree.object_id)
        message = inflate_object_from_contents(tree.object_id, contents)
        assert isinstance(message, Message)
        message.metadata.__dict__["_message_id"] = tree.object_id
        return message

    def push(self, reply: Message) -> list[str]:
        """Send a reply; what the server still wanted of it."""
        node = Node(node_id=self.node_id)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            objects = get_all_nested_objects(reply)
            envelope = remove_content_from_message(reply) if reply.has_content() else reply
            answer = self.client.PushMessages(
                PushMessagesRequest(
                    node=node,
                    messages_list=[message_to_proto(envelope)],
                    message_object_trees=[get_object_tree(reply)],
                    clientapp_runtime_list=[0.0],
                )
            )
            wanted = list(answer.objects_to_push)
            push = make_push_object_fn_protobuf(self.client.PushObject, node, reply.metadata.run_id, answer.session_id)
            push_object_contents_from_iterable(((name, objects[name].deflate()) for name in wanted), push)
        return wanted

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                message = self.pull()
                if message is None:
                    self._stop.wait(0.02)
                    continue
                request = request_of(message)
                self.heard.append(request)
                self.push(self.answer(request, message))
            except httpx.HTTPError:
                self._stop.wait(0.1)


class Server:
    """A server's directory, and the server in a thread.

    Args:
        root: For the directory.
        card: The federation card.
        initial: The adapter that it starts from.
    """

    def __init__(self, root: Path, card: dict[str, Any], initial: Arrays) -> None:
        self.directory = ServerDirectory(root)
        self.initial = initial
        self.lines: list[str] = []
        self.result: Any = None
        self.error: BaseException | None = None
        self.tenants: list[Tenant] = []
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        root.mkdir(exist_ok=True)
        self.directory.state.mkdir(exist_ok=True)
        self.directory.federation.write_text("".join(f"{name} = {as_toml(value)}\n" for name, value in card.items()))
        port, admin_port, health_port = free_ports(3)
        self.directory.settings_file.write_text(
            f'host = "localhost"\nlisten = "127.0.0.1"\nport = {port}\nadmin_port = {admin_port}\n'
            f"health_port = {health_port}\npatience = 0.5\n"
        )
        authority = new_authority("test")
        authority.write(self.directory.ca_key, self.directory.ca)
        new_server_certificate(authority, "localhost").write(self.directory.key, self.directory.certificate)
        self.directory.operator_token.write_text("operator-token\n")

    @property
    def address(self) -> str:
        """Of the public listener."""
        return self.directory.settings().address

    def enrol(self, name: str, answer: Answer, users: int = 100, noise: float = 1.0) -> Tenant:
        """Invite and enrol a tenant; it is not started."""
        key = ec.generate_private_key(ec.SECP384R1())
        card = self.directory.card()
        invite_tenant(self.directory.tenants, name, card, self.address, self.directory.ca.read_bytes())
        enrolment = Enrolment(
            tenant=name,
            public_key=write_public_key(key.public_key()),
            card_hash=card.hash,
            declared_users=users,
            promise=Promise(epsilon=3.0, delta=1e-6),
        )
        enroll_tenant(self.directory.tenants, enrolment.signed_by(key), card, noise)
        return self.tenant(key, answer)

    def tenant(self, key: ec.EllipticCurvePrivateKey, answer: Answer) -> Tenant:
        """A tenant with a key of the test's choice."""
        made = Tenant(self.address, self.directory.ca.read_bytes(), key, answer)
        self.tenants.append(made)
        return made

    def start(self) -> "Server":
        """Start, and wait until it listens."""
        self._stopped = threading.Event()
        self.result = self.error = None
        before = len(self.lines)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.until(lambda: len(self.lines) > before or self.error is not None)
        return self

    def _run(self) -> None:
        try:
            self.result = serve(self.directory, self.initial, self._stopped, self.lines.append)
        except BaseException as error:
            self.error = error

    def until(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        """Wait for something."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain; the server said {self.lines}, {self.error!r}"
            time.sleep(0.02)

    def finish(self, seconds: float = 60.0) -> Any:
        """Wait for the end of the run; its result."""
        self.until(lambda: self.result is not None or self.error is not None, seconds)
        if self.error is not None:
            raise self.error
        self.join()
        return self.result

    def stop(self) -> None:
        """Ask it to stop, and wait."""
        self._stopped.set()
        self.join()

    def join(self) -> None:
        """Wait for the thread."""
        if self._thread is not None:
            self._thread.join(20)
            assert not self._thread.is_alive()

    def history(self) -> list[dict[str, Any]]:
        """The lines of the history."""
        return [json.loads(line) for line in self.directory.history.read_text().splitlines()]


INITIAL: Arrays = {
    "layer.lora_A.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "head.bias": np.zeros(2, dtype=np.float32),
}


@pytest.fixture
def initial() -> Arrays:
    """A small adapter."""
    return {name: value.copy() for name, value in INITIAL.items()}


@pytest.fixture
def make_server(tmp_path: Path, initial: Arrays) -> Iterator[Callable[..., Server]]:
    """A function that makes a server's directory; everything is stopped at the end."""
    made: list[Server] = []

    def make(**sections: Any) -> Server:
        server = Server(tmp_path / f"server{len(made)}", _card_data(**sections), initial)
        made.append(server)
        return server

    yield make
    for server in made:
        for tenant in server.tenants:
            tenant.stop(leave=False)
        server.stop()
        shutil.rmtree(server.directory.root)


@pytest.fixture
def add() -> Callable[[float], Answer]:
    """A function that gives an answer whose update adds a constant to every value."""

    def make(value: float) -> Answer:
        def answer(request: Request, message: Message) -> Message:
            arrays: Arrays = {}
            if request.kind.value == "train":
                arrays = {name: np.full(old.shape, value, np.float32) for name, old in request.arrays.items()}
            if request.kind.value == "evaluate":
                arrays = {"table": np.full(20, value, np.float64)}
            return reply_message(Reply(request.kind, request.card_hash, request.round, arrays), message)

        return answer

    return make
