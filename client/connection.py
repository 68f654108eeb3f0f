"""The conversation with the server: Flower's Fleet API, one request at a time, on this tenant's own terms.

What the server can learn from it beyond the replies' content is bounded on purpose:

- No code is asked for (`GetFab` is never called), no port is opened, nothing is spawned. A message is handed to one
  function, which the tenant installed.
- A reply leaves at the next multiple of `reply_every` after its request arrived. The envelope carries no other clock:
  its creation time is the request's, its run time 0. Training time would tell of the data.
- The same reply to the same request is the same bytes under the same message id, so that a client that died between
  two parts of a reply sends just the missing parts.
- A request is journaled before its content is pulled (`fedprofile.client.journal`), and the server is told to forget
  the content only when the reply has left.
- A client that was killed comes back at once and under its old node id, so that the request in flight stays valid.
- A server that is away is waited for, until the run is known to be over: who has been handed the final adapter ends by
  itself, even where the server ended, or was killed, before it could be told so.
"""

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.common.serde import message_from_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedprofile.client.directory import write_private
from fedprofile.client.egress import EgressError, EgressFile
from fedprofile.client.exchange import Exchange, LostRequestError
from fedprofile.client.journal import Journal
from fedprofile.client.transport import (
    BoundedFleetClient,
    KeyRefusedError,
    MessageLimits,
    Retry,
    RunOverError,
    ServerGoneError,
    StoppedError,
    TooLargeError,
)

HEARTBEAT = 30.0
"""Seconds that the server is told."""
PATIENCE = 2
"""After so many of them without a sign of life, the server takes a node for gone."""
BEAT_EVERY = 10.0
ACTIVATE_EVERY = 2.0


class Handler(Protocol):
    """Who answers requests; see `fedprofile.client.site.Site`."""

    def answer(self, request: Message) -> Message:
        """Turn a request into a reply; it must not raise because of a request or of data."""
        ...

    def sent(self, request: Message, reply: Message) -> bool:
        """Called once the reply has left; True ends the conversation."""
        ...


def poll_interval(reply_every: float) -> float:
    """Seconds between two questions for a message; a constant of the policy, never of the data.

    >>> poll_interval(0.25), poll_interval(30.0)
    (0.2, 1.0)
    """
    return min(1.0, 0.8 * reply_every)


def next_departure(received: float, now: float, reply_every: float) -> float:
    """When a reply leaves: the first multiple of the grid after the request that is not in the past.

    Args:
        received: When the request had arrived, seconds on a monotonic clock.
        now: On the same clock.
        reply_every: The grid.

    Returns:
        A moment on that clock, at least one step after `received`.

    >>> next_departure(10.0, 10.2, 0.25), next_departure(10.0, 10.3, 0.25)
    (10.25, 10.5)
    """
    return received + reply_every * max(1, math.ceil((now - received) / reply_every))


class Connection:
    """One tenant's connection.

    Args:
        address: `host:port` of the Fleet listener.
        ca: The federation's CA certificate, PEM.
        key: The tenant's private key.
        node_file: Where the node id is kept between two starts.
        journal: Where the request in flight is kept.
        limits: How large a message of this federation can be.
        reply_every: The reply grid in seconds.
        stop: Set when the process is to end.
        say: Takes plain lines for the tenant.
        over: Whether the run is known to be over.
        egress: Records every request before it is sent.
    """

    def __init__(
        self,
        *,
        address: str,
        ca: str,
        key: ec.EllipticCurvePrivateKey,
        node_file: Path,
        journal: Journal,
        limits: MessageLimits,
        reply_every: float,
        stop: threading.Event,
        say: Callable[[str], None],
        over: Callable[[], bool] = lambda: False,
        egress: EgressFile | None = None,
    ) -> None:
        self._public_key = public_key_to_bytes(key.public_key())
        self._node_file, self._journal = node_file, journal
        self._reply_every, self._stop, self._say = reply_every, stop, say
        self._client, self._heart = (
            BoundedFleetClient(address=address, ca=ca, key=key, limit=limits.answer_bytes, egress=egress)
            for _ in range(2)
        )
        self._wake_heart = threading.Event()
        self._returned = threading.Event()
        self._call = Retry(stop, say, on_return=self._returned.set, over=over)
        self._exchange = Exchange(self._client, self._call, limits, stop)
        self._node = Node()

    def serve(self, handler: Handler) -> None:
        """Take part until the handler says that it is over, or the run is and the server has gone.

        Args:
            handler: Answers requests, one at a time, in this thread.

        Raises:
            StoppedError: The process is to end.
            httpx.HTTPStatusError: The server refuses the protocol itself.
            EgressError: What is to be sent cannot be recorded.
        """
        try:
            with self._online():
                self._converse(handler)
        except ServerGoneError:
            self._say("the run is over, and the server has gone; nothing more is waited for.")

    def _converse(self, handler: Handler) -> None:
        over = self._resume(handler)
        while not over:
            try:
                if self._returned.is_set():
                    # What the server handed out while the connection broke is handed out again.
                    self._returned.clear()
                    self._enter()
                envelope = self._call(self._client.PullMessages, PullMessagesRequest(node=self._node))
                if envelope.messages_list:
                    self._journal.keep(envelope)
                    over = self._respond(envelope, handler)
                elif self._stop.wait(poll_interval(self._reply_every)):
                    raise StoppedError
            except KeyRefusedError:
                self._say("the server no longer accepts this tenant's key.")
                self._enter()
                over = self._resume(handler)

    @contextmanager
    def _online(self) -> Iterator[None]:
        heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        try:
            self._enter()
            self._say("connected: the server accepts this tenant; waiting for requests.")
            heart.start()
            yield
        finally:
            self._stop.set()
            self._wake_heart.set()
            self._leave()
            self._client.close()
            self._heart.close()

    def _enter(self) -> None:
        """Come online; an unknown key waits here until the operator enrols it.

        Activation also makes the server hand out again what the process before was handed and did not answer. A
        server that still counts that process as online may refuse it; then a heartbeat under the old node id goes on
        without a moment of being away.
        """
        old = self._old_node()
        request = ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=HEARTBEAT)
        said = ""
        while True:
            try:
                node_id = self._call(self._client.ActivateNode, request).node_id
                break
            except KeyRefusedError:
                line = "waiting: the server refuses this tenant's signature; set this machine's clock right."
            except httpx.HTTPStatusError as error:
                if not _is_unknown_key(error):
                    raise
                if old and self._alive(old):
                    node_id = old
                    break
                line = (
                    "waiting: the server does not know this tenant's key; send the .enroll file to the operator. "
                    "(Where node.json was lost in a crash, the server needs up to a minute to notice.)"
                )
            if line != said:
                said = line
                self._say(line)
            if self._stop.wait(ACTIVATE_EVERY):
                raise StoppedError
        self._node = Node(node_id=node_id)
        write_private(self._node_file, json.dumps({"node_id": str(node_id)}).encode())

    def _old_node(self) -> int:
        """The node id of the process before, 0 where there was none."""
        try:
            node_id = int(json.loads(self._node_file.read_text())["node_id"])
            silence = time.time() - self._node_file.stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        if silence > PATIENCE * HEARTBEAT:
            self._journal.clear()  # The server took us for gone and has answered the request itself.
        return node_id

    def _alive(self, node_id: int) -> bool:
        request = SendNodeHeartbeatRequest(node=Node(node_id=node_id), heartbeat_interval=HEARTBEAT)
        try:
            return self._call(self._client.SendNodeHeartbeat, request).success
        except (KeyRefusedError, httpx.HTTPStatusError):
            return False

    def _beat(self) -> None:
        while True:
            self._wake_heart.wait(BEAT_EVERY)
            if self._stop.is_set():
                break
            self._wake_heart.clear()
            try:
                self._heart.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT))
                os.utime(self._node_file)  # The last sign of life, for `_rejoin`.
            except (httpx.HTTPError, TooLargeError, EgressError, ValueError, RuntimeError, OSError):
                continue  # The main loop meets the same trouble and says so.

    def _leave(self) -> None:
        if not self._node.node_id:
            return
        # The server is told that we are gone and goes on, so nobody waits for a request in flight any more.
        self._journal.clear()
        try:
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))
        except (httpx.HTTPError, TooLargeError, EgressError, ValueError, RuntimeError):
            return  # The server notices by itself when the heartbeats end.

    def _resume(self, handler: Handler) -> bool:
        envelope = self._journal.load()
        if envelope is None:
            return False
        run_id = envelope.messages_list[0].metadata.run_id
        try:
            self._call(self._client.GetRun, GetRunRequest(node=self._node, run_id=run_id))
        except (RunOverError, KeyRefusedError, httpx.HTTPStatusError):
            self._journal.clear()
            return False
        self._say("answering the request that was in flight.")
        return self._respond(envelope, handler)

    def _respond(self, envelope: PullMessagesResponse, handler: Handler) -> bool:
        """Answer one request; what the server no longer wants is dropped."""
        try:
            request = self._exchange.receive(self._node, envelope)
            received = time.monotonic()
            if request is None:
                # The bare envelope is not a request of our schema, so it is refused like any other that is not.
                self._say("a request was larger than this federation's messages, or damaged; it is refused.")
                request = message_from_proto(envelope.messages_list[0])
            reply = handler.answer(request)
            departure = next_departure(received, time.monotonic(), self._reply_every)
            if self._stop.wait(max(0.0, departure - time.monotonic())):
                raise StoppedError
            self._exchange.send(self._node, reply, request)
        except RunOverError:
            self._say("the server's run has ended or started anew; that request is dropped.")
        except LostRequestError:
            self._say("the server has given up on a request before it was answered; it is dropped.")
        except httpx.HTTPStatusError as error:
            self._say(f"the server did not take a reply (status {error.response.status_code}); it is dropped.")
        else:
            self._journal.clear()
            return handler.sent(request, reply)
        self._journal.clear()
        return False


def _is_unknown_key(error: httpx.HTTPStatusError) -> bool:
    flower = FlowerError.from_json(error.response.text)
    return flower is not None and flower.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED
