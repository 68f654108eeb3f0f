"""The conversation with a real SuperLink over TLS: grid, journal, rejoining, limits, and what is never asked for."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PullMessagesResponse
from flwr.proto.message_pb2 import PullObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from hypothesis import given
from hypothesis import strategies as st

from fedprofile.client.connection import Connection, next_departure, poll_interval
from fedprofile.client.enrolment import make_key, read_key
from fedprofile.client.journal import Journal
from fedprofile.client.transport import BoundedFleetClient, MessageLimits, StoppedError, TooLargeError
from fedprofile.common.messages import Kind, Reply, Request, refusal_of, reply_message, reply_of, request_of

if TYPE_CHECKING:
    from tests.client.conftest import SuperLink

LIMITS = MessageLimits.of_adapter(1 << 20)
CARD = "a" * 64


def question(number: int, kind: Kind = Kind.TRAIN) -> Request:
    return Request(kind, CARD, number, {"w": np.full(4, number, np.float32)})


class Echo:
    """Answers with twice what came, after a while; ends after `last` replies."""

    def __init__(self, last: int, seconds: float = 0.0) -> None:
        self.last, self.seconds = last, seconds
        self.answered: list[int] = []

    def answer(self, request: Message) -> Message:
        decoded = request_of(request)
        self.answered.append(decoded.round)
        time.sleep(self.seconds)
        doubled = {name: 2 * value for name, value in decoded.arrays.items()}
        return reply_message(Reply(decoded.kind, decoded.card_hash, decoded.round, doubled), request)

    def sent(self, request: Message, reply: Message) -> bool:
        return len(self.answered) >= self.last


class Tenant:
    """A connection with its own folder and key, run in a thread."""

    def __init__(
        self, folder: Path, link: "SuperLink", reply_every: float = 0.25, limits: MessageLimits = LIMITS
    ) -> None:
        self.folder, self.link, self.reply_every, self.limits = folder, link, reply_every, limits
        self.lines: list[str] = []
        self.clients: list[BoundedFleetClient] = []
        self.stop, self.over = threading.Event(), threading.Event()
        if not (folder / "key").exists():
            make_key(folder / "key")
        self.key = read_key(folder / "key")

    def connection(self) -> Connection:
        return Connection(
            address=self.link.address,
            ca=self.link.ca,
            key=self.key,
            node_file=self.folder / "node.json",
            journal=Journal(self.folder / "journal"),
            limits=self.limits,
            reply_every=self.reply_every,
            stop=self.stop,
            say=self.lines.append,
            over=self.over.is_set,
        )

    def serve(self, handler: Echo) -> threading.Thread:
        def run() -> None:
            try:
                self.connection().serve(handler)
            except StoppedError:
                self.lines.append("stopped")

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def client(self, limit: int = 1 << 24) -> BoundedFleetClient:
        client = BoundedFleetClient(address=self.link.address, ca=self.link.ca, key=self.key, limit=limit)
        self.clients.append(client)
        return client

    def close(self) -> None:
        self.stop.set()
        for client in self.clients:
            client.close()


@pytest.fixture
def tenant(tmp_path: Path, superlink: "SuperLink") -> Iterator[Tenant]:
    tenant = Tenant(tmp_path, superlink)
    yield tenant
    tenant.close()


@given(received=st.floats(0, 1e6), work=st.floats(0, 1e4), every=st.floats(0.25, 600))
def test_departures_lie_on_the_grid(received: float, work: float, every: float) -> None:
    departure = next_departure(received, received + work, every)
    steps = (departure - received) / every
    assert departure >= received + work - 1e-6
    assert departure - (received + work) <= every + 1e-6
    assert steps >= 1 - 1e-6
    assert abs(steps - round(steps)) < 1e-4


def test_polling_depends_on_the_policy_only() -> None:
    assert poll_interval(0.25) <= 0.2
    assert poll_interval(3600.0) == 1.0


def test_request_and_reply(tenant: Tenant) -> None:
    node_id = tenant.link.enrol(tenant.key.public_key())
    thread = tenant.serve(Echo(last=2))
    names = [tenant.link.ask(node_id, question(number)) for number in (1, 2)]
    replies = [tenant.link.reply(name) for name in names]
    thread.join(60)
    assert not thread.is_alive()
    assert [reply_of(reply).round for reply in replies] == [1, 2]
    np.testing.assert_array_equal(reply_of(replies[1]).arrays["w"], np.full(4, 4, np.float32))
    assert Journal(tenant.folder / "journal").load() is None
    assert any(line.startswith("connected") for line in tenant.lines)


def test_a_reply_tells_no_time_but_the_grid(tenant: Tenant) -> None:
    tenant.reply_every = 0.5
    node_id = tenant.link.enrol(tenant.key.public_key())
    handler = Echo(last=3)
    thread = tenant.serve(handler)
    durations = []
    for number, seconds in enumerate((0.0, 0.2, 0.6), start=1):
        handler.seconds = seconds
        asked = time.monotonic()
        reply = tenant.link.reply(tenant.link.ask(node_id, question(number)))
        durations.append(time.monotonic() - asked)
        # The envelope's clock is the request's: nothing between the grid's lines is in it.
        assert reply.metadata.created_at < time.time() - durations[-1] + 0.1
    thread.join(60)
    assert durations[0] >= 0.5
    assert durations[2] >= 1.0
    run = tenant.link.state.get_run_info(run_ids=[tenant.link.run_id])[0]
    assert run.clientapp_runtime == 0.0


def test_no_code_is_asked_for(tenant: Tenant) -> None:
    node_id = tenant.link.enrol(tenant.key.public_key())
    tenant.link.paths.clear()
    thread = tenant.serve(Echo(last=1))
    tenant.link.reply(tenant.link.ask(node_id, question(1)))
    thread.join(60)
    assert set(tenant.link.paths) == {
        f"/v1/fleet/{name}"
        for name in (
            "activate-node",
            "pull-messages",
            "pull-object",
            "push-messages",
            "push-object",
            "confirm-message-received",
            "deactivate-node",
        )
    }


def test_an_unknown_key_waits_until_it_is_enrolled(
    tenant: Tenant, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    thread = tenant.serve(Echo(last=1))
    wait_until(lambda: any(line.startswith("waiting") for line in tenant.lines))
    time.sleep(0.3)
    assert len(tenant.lines) == 1
    node_id = tenant.link.enrol(tenant.key.public_key())
    assert reply_of(tenant.link.reply(tenant.link.ask(node_id, question(1)))).round == 1
    thread.join(60)
    assert not thread.is_alive()


def test_stopping_leaves_the_federation(tenant: Tenant, wait_until: Callable[[Callable[[], bool]], None]) -> None:
    node_id = tenant.link.enrol(tenant.key.public_key())
    thread = tenant.serve(Echo(last=1))
    wait_until(lambda: node_id in tenant.link.state.get_nodes(tenant.link.run_id))
    tenant.stop.set()
    thread.join(60)
    assert tenant.lines[-1] == "stopped"
    assert node_id not in tenant.link.state.get_nodes(tenant.link.run_id)


def test_a_revoked_key_waits_and_never_gives_up(
    tenant: Tenant, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    node_id = tenant.link.enrol(tenant.key.public_key())
    handler = Echo(last=1)
    thread = tenant.serve(handler)
    tenant.link.wait_online(node_id)
    tenant.link.revoke(node_id)
    wait_until(lambda: any("no longer accepts" in line for line in tenant.lines))
    wait_until(lambda: any(line.startswith("waiting") for line in tenant.lines))
    assert thread.is_alive() and handler.answered == []
    tenant.stop.set()
    thread.join(60)
    assert tenant.lines[-1] == "stopped"


CHILD = """
import sys, threading, time
from pathlib import Path
from fedprofile.client.connection import Connection
from fedprofile.client.enrolment import read_key
from fedprofile.client.journal import Journal
from fedprofile.client.transport import MessageLimits

class Stuck:
    def answer(self, request):
        Path(sys.argv[1], "answering").touch()
        time.sleep(60)
    def sent(self, request, reply):
        return True

folder = Path(sys.argv[1])
Connection(
    address=sys.argv[2], ca=Path(sys.argv[1], "ca").read_text(), key=read_key(folder / "key"),
    node_file=folder / "node.json", journal=Journal(folder / "journal"), limits=MessageLimits.of_adapter(1 << 20),
    reply_every=0.25, stop=threading.Event(), say=print,
).serve(Stuck())
"""


def test_a_killed_client_comes_back_at_once_and_answers(
    tenant: Tenant, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    node_id = tenant.link.enrol(tenant.key.public_key())
    (tenant.folder / "ca").write_text(tenant.link.ca)
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tenant.folder), tenant.link.address])
    try:
        wait_until(lambda: node_id in tenant.link.state.get_nodes(tenant.link.run_id))
        name = tenant.link.ask(node_id, question(7))
        wait_until((tenant.folder / "answering").exists)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    handler = Echo(last=1)
    began = time.monotonic()
    thread = tenant.serve(handler)
    reply = tenant.link.reply(name)
    assert time.monotonic() - began < 5  # Flower's own node waits up to 60 seconds.
    thread.join(60)
    assert reply_of(reply).round == 7
    assert handler.answered == [7]


def test_a_reply_that_was_cut_off_is_completed(tenant: Tenant) -> None:
    """The same reply to the same request keeps its id, so that the server takes what is missing of it."""
    node_id = tenant.link.enrol(tenant.key.public_key())
    client = tenant.client()
    client.ActivateNode(
        ActivateNodeRequest(public_key=public_key_to_bytes(tenant.key.public_key()), heartbeat_interval=30)
    )
    name = tenant.link.ask(node_id, question(9))
    envelope = client.PullMessages(PullMessagesRequest(node=Node(node_id=node_id)))
    Journal(tenant.folder / "journal").keep(envelope)
    connection = tenant.connection()
    connection._node = Node(node_id=node_id)
    push = connection._client.PushObject
    pushed: list[object] = []

    def cut(request: object) -> object:
        if pushed:
            raise StoppedError
        pushed.append(push(request))  # type: ignore[arg-type]
        return pushed[-1]

    connection._client.PushObject = cut  # type: ignore[method-assign, assignment]
    with pytest.raises(StoppedError):
        connection._respond(envelope, Echo(last=1))
    connection._client.close()
    (tenant.folder / "node.json").write_text(f'{{"node_id": "{node_id}"}}')
    thread = tenant.serve(Echo(last=1))
    assert reply_of(tenant.link.reply(name)).round == 9
    thread.join(60)


def test_a_request_of_a_finished_run_is_dropped(
    tenant: Tenant, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    node_id = tenant.link.enrol(tenant.key.public_key())
    client = tenant.client()
    client.ActivateNode(
        ActivateNodeRequest(public_key=public_key_to_bytes(tenant.key.public_key()), heartbeat_interval=30)
    )
    tenant.link.ask(node_id, question(3))
    envelope = client.PullMessages(PullMessagesRequest(node=Node(node_id=node_id)))
    journal = Journal(tenant.folder / "journal")
    journal.keep(envelope)
    (tenant.folder / "node.json").write_text(f'{{"node_id": "{node_id}"}}')
    tenant.link.state.stop_run(tenant.link.run_id)
    try:
        handler = Echo(last=1)
        thread = tenant.serve(handler)
        wait_until(lambda: journal.load() is None)
        assert handler.answered == []
    finally:
        tenant.stop.set()
        thread.join(60)
        tenant.link.start_run()


def test_a_request_that_is_too_large_is_refused(tenant: Tenant) -> None:
    tenant.limits = MessageLimits(objects=20, message_bytes=1 << 16, answer_bytes=1 << 16)
    node_id = tenant.link.enrol(tenant.key.public_key())
    handler = _Counting()
    thread = tenant.serve(handler)
    large = Request(Kind.TRAIN, CARD, 1, {"w": np.random.default_rng(0).normal(size=1 << 16).astype(np.float32)})
    reply = tenant.link.reply(tenant.link.ask(node_id, large))
    thread.join(60)
    assert reply.has_error()
    assert refusal_of(reply) == "unavailable"
    assert handler.with_arrays == 0


class _Counting(Echo):
    def __init__(self) -> None:
        super().__init__(last=1)
        self.with_arrays = 0

    def answer(self, request: Message) -> Message:
        from fedprofile.common.errors import RefusalCode
        from fedprofile.common.messages import refusal_message

        self.answered.append(0)
        self.with_arrays += bool(request.has_content() and request.content.array_records)
        return refusal_message(RefusalCode.UNAVAILABLE, request)


def test_an_answer_is_not_read_beyond_the_limit(tenant: Tenant) -> None:
    node_id = tenant.link.enrol(tenant.key.public_key())
    tenant.client().ActivateNode(
        ActivateNodeRequest(public_key=public_key_to_bytes(tenant.key.public_key()), heartbeat_interval=30)
    )
    tenant.link.ask(node_id, Request(Kind.TRAIN, CARD, 1, {"w": np.arange(1 << 18, dtype=np.float32)}))
    whole = tenant.client().PullMessages(PullMessagesRequest(node=Node(node_id=node_id)))
    small = tenant.client(limit=1 << 14)
    chunk = whole.message_object_trees[0]
    while chunk.children:
        chunk = chunk.children[0]
    request = PullObjectRequest(node=Node(node_id=node_id), run_id=tenant.link.run_id, object_id=chunk.object_id)
    assert len(tenant.client().PullObject(request).object_content) > 1 << 20
    with pytest.raises(TooLargeError):
        small.PullObject(request)


def test_a_foreign_certificate_is_refused(
    tmp_path: Path, superlink: "SuperLink", wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    from fedprofile.server.certificates import new_authority

    tenant = Tenant(tmp_path, superlink)
    superlink.enrol(tenant.key.public_key())
    stranger = new_authority("stranger").certificate_pem().decode()
    connection = Connection(
        address=superlink.address,
        ca=stranger,
        key=tenant.key,
        node_file=tmp_path / "node.json",
        journal=Journal(tmp_path / "journal"),
        limits=LIMITS,
        reply_every=0.25,
        stop=tenant.stop,
        say=tenant.lines.append,
    )

    def run() -> None:
        with pytest.raises(StoppedError):
            connection.serve(Echo(last=1))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_until(lambda: any("certificate" in line for line in tenant.lines))
    tenant.stop.set()
    thread.join(60)
    assert not (tmp_path / "node.json").exists()


def test_a_server_that_is_gone_is_waited_for_until_the_run_is_over(
    tmp_path: Path,
    superlink: "SuperLink",
    wait_until: Callable[[Callable[[], bool]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fedprofile.client.transport.FAREWELL", 0.5)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Nobody listens on it, and nobody else gets it.
        gone = replace(superlink, address=f"127.0.0.1:{taken.getsockname()[1]}")
        tenant = Tenant(tmp_path, gone)
        thread = tenant.serve(Echo(last=1))
        wait_until(lambda: any("nobody answers" in line for line in tenant.lines))
        time.sleep(1)
        assert thread.is_alive()
        tenant.over.set()
        thread.join(60)
        assert not thread.is_alive()
    assert "the run is over, and the server has gone" in tenant.lines[-1]


def test_the_journal_survives_and_forgets(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    assert journal.load() is None
    envelope = PullMessagesResponse()
    envelope.messages_list.add().metadata.run_id = 5
    envelope.message_object_trees.add().object_id = "b" * 64
    journal.keep(envelope)
    assert Journal(tmp_path / "journal").load() == envelope
    assert (tmp_path / "journal" / "request").stat().st_mode & 0o077 == 0
    journal.clear()
    journal.clear()
    assert journal.load() is None
    (tmp_path / "journal" / "request").write_bytes(b"\xff\xff half a file")
    assert journal.load() is None


def test_an_unused_key_type_is_not_made(tmp_path: Path) -> None:
    make_key(tmp_path / "key")
    assert isinstance(read_key(tmp_path / "key").curve, ec.SECP384R1)
