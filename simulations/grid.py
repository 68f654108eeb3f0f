"""A Flower `Grid` in this process: an unmodified server app and strategy drive tenants without any transport.

What a simulation reports is what deployment does: the same server app, the same client logic and the same messages;
only transport, batching and the source of randomness differ.
"""

import copy
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

Answer = Callable[[Message], Message]

_log = logging.getLogger(__name__)


class Together(Protocol):
    """Answers the messages of a round as one batch; see `fedprofile.simulations.cohort_app.Cohort`."""

    def answer(self, messages: Iterable[Message]) -> Iterator[Message]:
        """A reply to each message, in their order."""
        ...


class OneByOne:
    """Tenants that know nothing of each other, such as Flower's own client apps.

    A tenant that raises is an error reply, as in Flower's deployment; the text names the exception's type alone.

    Args:
        tenants: Node id -> the tenant's answer to one message.
    """

    def __init__(self, tenants: Mapping[int, Answer]) -> None:
        self._tenants = dict(tenants)

    def answer(self, messages: Iterable[Message]) -> Iterator[Message]:
        """See `Together`."""
        for message in messages:
            try:
                yield self._tenants[message.metadata.dst_node_id](message)
            except Exception as error:
                _log.warning("node %d: %s", message.metadata.dst_node_id, type(error).__name__)
                yield Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, type(error).__name__), reply_to=message)


class InProcessGrid(Grid):
    """Delivers a round's messages at once.

    Messages are copied before delivery, because strategies share one record among all messages of a round. What a
    tenant keeps from one message to the next is its own affair, as in deployment.

    Args:
        tenants: Node id -> the tenant's answer to one message; or the node ids of tenants that answer together.
        together: Answers for all of them.
        run_id: What the messages' metadata say.
    """

    def __init__(
        self, tenants: Mapping[int, Answer] | Iterable[int], together: Together | None = None, run_id: int = 1
    ) -> None:
        if together is None:
            if not isinstance(tenants, Mapping):
                raise TypeError("node ids alone answer nothing; give `together` as well")
            together = OneByOne(tenants)
        self._nodes, self._together = list(tenants), together
        self._run_id = run_id
        self._run: Run | None = None
        self._replies: dict[str, Message] = {}
        # Message() asks this process-wide identity of Flower's who is speaking.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, 1, 1

    def set_run(self, run: Run) -> None:
        """See `Grid.set_run`."""
        self._run = run

    @property
    def run(self) -> Run:
        """See `Grid.run`."""
        if self._run is None:
            raise RuntimeError("no run was set")
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """See `Grid.create_message`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Every tenant's node id."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Have every message answered; the replies wait for `pull_messages`."""
        sent = [self._delivered(message) for message in messages]
        identities = [message.metadata.message_id for message in sent]
        self._replies.update(zip(identities, self._together.answer(sent), strict=True))
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages, each once."""
        return [self._replies.pop(identity) for identity in list(message_ids) if identity in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Deliver messages as they come and yield each reply as it comes, so that not all of them are kept."""
        yield from self._together.answer(self._delivered(message) for message in messages)

    def _delivered(self, message: Message) -> Message:
        copied = copy.deepcopy(message)
        for each in (message, copied):
            each.metadata.__dict__["_run_id"] = self._run_id
        message.metadata.__dict__["_message_id"] = copied.metadata.__dict__["_message_id"] = str(uuid.uuid4())
        return copied
