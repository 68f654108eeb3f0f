"""A real Flower SuperLink in a thread, with TLS, for the client's side of the conversation."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_children_ids_from_object_content,
    get_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.main import create_app

from fedprofile.common.messages import Request, content_of
from fedprofile.server.certificates import new_authority, new_server_certificate

if TYPE_CHECKING:
    from tests.client.postgresql import PostgreSQL


@dataclass
class SuperLink:
    """Flower's own server, and the few things that a coordinator does with it."""

    address: str
    ca: str
    state: LinkState
    run_id: int = 0
    paths: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def enrol(self, key: ec.EllipticCurvePublicKey) -> int:
        return self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_key_to_bytes(key), 30.0)

    def revoke(self, node_id: int) -> None:
        self.state.delete_node(NOOP_FLWR_AID, node_id)

    def start_run(self) -> None:
        self.run_id = self.state.create_run("", "", "", {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, "flwr-serverapp")
        assert self.run_id
        # A coordinator shows that it lives; without it the run ends after a minute.
        self.over.set()
        self.over = threading.Event()
        [task] = self.state.get_tasks(run_ids=[self.run_id])
        token = self.state.claim_task(task.task_id)
        assert token
        assert self.state.activate_task(task.task_id)
        threading.Thread(target=self._beat, args=(task.task_id, self.over), daemon=True).start()

    def _beat(self, task_id: int, over: threading.Event) -> None:
        while not over.wait(5):
            self.state.acknowledge_task_heartbeat(task_id)

    def wait_online(self, node_id: int, seconds: float = 300.0) -> None:
        end = time.monotonic() + seconds
        while node_id not in self.state.get_nodes(self.run_id):
            assert time.monotonic() < end, "the node did not come online"
            time.sleep(0.01)

    def ask(self, node_id: int, request: Request) -> str:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = self.run_id, SUPERLINK_NODE_ID, 1
        message = Message(content_of(request), node_id, request.kind.value)
        name = message.object_id
        message.metadata.__dict__["_message_id"] = name
        session = self.state.start_session(self.run_id)
        self.wait_online(node_id)
        stored, missing = self.state.store_message_and_object_tree(
            remove_content_from_message(message), get_object_tree(message), session
        )
        assert stored
        objects = get_all_nested_objects(message)
        for missing_name in missing:
            assert self.state.store_object(self.run_id, session, missing_name, objects[missing_name].deflate())
        return name

    def reply(self, name: str, seconds: float = 300.0) -> Message:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for envelope in self.state.get_message_res({name}, self.run_id):
                return self._whole(envelope)
            time.sleep(0.01)
        raise AssertionError("no reply came")

    def _whole(self, envelope: Message) -> Message:
        if envelope.has_error():
            return envelope
        root = envelope.metadata.message_id
        contents: dict[str, bytes] = {}
        todo = [root]
        while todo:
            name = todo.pop()
            content = b""
            while not content:  # The reply is announced before its parts arrive.
                content = self.state.get_object(self.run_id, name) or b""
                time.sleep(0.005)
            contents[name] = content
            todo += get_object_children_ids_from_object_content(content)
        message = inflate_object_from_contents(root, contents)
        assert isinstance(message, Message)
        return message


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    """A running SuperLink with a run; one for a module."""
    folder = tmp_path_factory.mktemp("superlink")
    authority = new_authority("test")
    issued = new_server_certificate(authority, "localhost")
    certificate, key = folder / "server.crt", folder / "server.key"
    issued.write(key, certificate)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    application = create_app()
    paths: list[str] = []

    async def recorded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            paths.append(scope["path"])
        await application(scope, receive, send)

    server = uvicorn.Server(
        uvicorn.Config(
            recorded,
            host="127.0.0.1",
            port=port,
            ssl_certfile=str(certificate),
            ssl_keyfile=str(key),
            lifespan="off",
            log_level="error",
            access_log=False,
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    link = SuperLink(
        f"localhost:{port}",
        authority.certificate_pem().decode(),
        application.state.linkstate_factory.state(),
        paths=paths,
    )
    link.start_run()
    yield link
    link.over.set()
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """A function that waits until something is true, for at most a minute."""

    def wait(condition: Callable[[], bool], seconds: float = 300.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.01)

    return wait


@pytest.fixture(scope="session")
def postgresql() -> "Iterator[PostgreSQL]":
    """A real PostgreSQL for this session's tests."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'fedprofile[postgresql]'")
    from tests.client.postgresql import programs, running

    folder = programs()
    if folder is None:
        pytest.skip("PostgreSQL's initdb and postgres are not installed: apt-get install postgresql")
    with running(folder) as server:
        yield server
