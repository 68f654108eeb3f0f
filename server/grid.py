"""A Flower `Grid` on the server's own link state, which hands replies on one by one as they arrive.

Flower's `HttpGrid` polls every three seconds, over HTTP to its own process, and gives back a list of all replies; a
round then waits for the poll and holds every update at once. Here a reply is taken out of the store, checked to be
whole, yielded, and forgotten, so that memory does not grow with the number of tenants.

A question that got lost (its tenant restarted at a bad moment) is asked again in a new envelope as long as the round
lasts; tenants answer the same question from their outbox, so asking again costs nobody anything.
"""

import threading
import time
from collections.abc import Iterable, Iterator

from flwr.app import Error, Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run

from fedprofile.server.linkstate import FederationLinkState
from fedprofile.server.stopping import ServerStopped

POLL = 0.02
"""Seconds between two looks at the store; a look costs microseconds."""


class FleetGrid(Grid):
    """See the module's docstring.

    Args:
        state: Of the running server.
        run: The run within `state` that messages belong to.
        stopped: Set when the server is to stop.
        patience: Seconds for which a tenant that left in mid-round may stay away before the round goes on without it.
    """

    def __init__(self, state: FederationLinkState, run: Run, stopped: threading.Event, patience: float) -> None:
        self._state, self._run, self._stopped, self._patience = state, run, stopped, patience

    def set_run(self, run: Run) -> None:
        """Part of Flower's interface."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Part of Flower's interface."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Who is online."""
        return sorted(self._state.online())

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Who is online, with what is known of them."""
        return list(self._state.get_node_info(node_ids=list(self._state.online())))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Put messages into the store.

        Returns:
            Their ids; an empty one where the tenant is no longer there.
        """
        # Tenants share one record of arrays; within this context it is hashed once for all of them.
        with no_object_id_recompute():
            return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Take the replies that have arrived, one by one."""
        for envelope in self._state.ready_replies(message_ids):
            yield self._take(envelope)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Ask, and yield replies as they arrive.

        Args:
            messages: The questions, one for each tenant.
            timeout: Seconds, None for ever. Who has not answered by then is not in the result.

        Returns:
            An iterator; a tenant that left gives an `Error` with Flower's code NODE_UNAVAILABLE.

        Raises:
            ServerStopped: While iterating.
        """
        questions = list(messages)
        pending = {key: question for key, question in zip(self.push_messages(questions), questions, strict=True) if key}
        absent = [question for question in questions if question not in pending.values()]
        return self._receive(pending, absent, timeout)

    def _receive(self, pending: dict[str, Message], absent: list[Message], timeout: float | None) -> Iterator[Message]:
        deadline = None if timeout is None else time.monotonic() + timeout
        offline_since: dict[int, float] = {}
        try:
            yield from (_gone(question) for question in absent)
            while pending and (deadline is None or time.monotonic() < deadline):
                for envelope in self._state.ready_replies(list(pending)):
                    pending.pop(envelope.metadata.reply_to_message_id)
                    yield self._take(envelope)
                online = self._state.online()
                now = time.monotonic()
                for key in list(pending):
                    node_id = pending[key].metadata.dst_node_id
                    if node_id in online:
                        offline_since.pop(node_id, None)
                    elif now - offline_since.setdefault(node_id, now) > self._patience:
                        self._state.forget([key])
                        yield _gone(pending.pop(key))
                for key in self._state.lost(pending) & set(pending):
                    if pending[key].metadata.dst_node_id in online:
                        question = pending.pop(key)
                        again = _copy(question)
                        [new_key] = self.push_messages([again])
                        if new_key:
                            pending[new_key] = again
                        else:
                            yield _gone(question)
                if pending and self._stopped.wait(POLL):
                    raise ServerStopped("the server was asked to stop; start it again to go on with this round.")
        finally:
            self._state.forget(pending)

    def _push(self, message: Message) -> str:
        message.metadata.__dict__["_run_id"] = self._run.run_id
        message.metadata.__dict__["_message_id"] = message.object_id
        session = self._state.start_session(self._run.run_id)
        envelope = remove_content_from_message(message)
        stored, missing = self._state.store_message_and_object_tree(envelope, get_object_tree(message), session)
        if not stored:
            return ""
        objects = get_all_nested_objects(message)
        for name in dict.fromkeys(missing):
            self._state.store_object(self._run.run_id, session, name, objects[name].deflate())
        return message.metadata.message_id

    def _take(self, envelope: Message) -> Message:
        """The reply's content in the envelope that the store has checked.

        The content holds metadata of its own, written by the tenant; who a reply is from, and what it answers, is
        only what the store says.
        """
        contents = self._state.take(envelope)
        try:
            inflated = inflate_object_from_contents(envelope.metadata.message_id, contents)
            if isinstance(inflated, Message) and inflated.has_content():
                return make_message(metadata=envelope.metadata, content=inflated.content)
            if isinstance(inflated, Message) and inflated.has_error():
                return make_message(metadata=envelope.metadata, error=inflated.error)
        except Exception:
            # Whatever a tenant sends, only its own reply is lost.
            pass
        return _error(envelope, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "malformed")


def _copy(message: Message) -> Message:
    ttl = message.metadata.ttl
    return Message(message.content, message.metadata.dst_node_id, message.metadata.message_type, ttl=ttl)


def _gone(question: Message) -> Message:
    return Message(Error(code=ErrorCode.NODE_UNAVAILABLE, reason="left"), reply_to=question)


def _error(envelope: Message, code: int, reason: str) -> Message:
    return make_message(metadata=envelope.metadata, error=Error(code=code, reason=reason))
