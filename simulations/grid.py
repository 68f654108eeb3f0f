"""A Flower `Grid` in this process: an unmodified server app and strategy drive tenants without any transport.

What a simulation reports is what deployment does: the same server app, the same client logic and the same messages;
only transport and the source of randomness differ.
"""

import copy
import uuid
from collections.abc import Callable, Iterable, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

Answer = Callable[[Message], Message]


class InProcessGrid(Grid):
    """Delivers every message at once, one tenant after another.

    A tenant's `answer` turns its own failures into error replies, as a deployed client does; an exception out of it
    is a defect and is not caught here. Messages are copied before delivery, because strategies share one record
    among all messages of a round.

    Args:
        tenants: Node id -> the tenant's answer to one message.
        run_id: What the messages' metadata say.
    """

    def __init__(self, tenants: Mapping[int, Answer], run_id: int = 1) -> None:
        self._tenants = dict(tenants)
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
        return list(self._tenants)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Have every message answered; the replies wait for `pull_messages`."""
        return [self._deliver(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages, each once."""
        return [self._replies.pop(identity) for identity in list(message_ids) if identity in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Deliver one message after another and yield each reply as it comes, so that none is kept."""
        for message in messages:
            yield from self.pull_messages([self._deliver(message)])

    def _deliver(self, message: Message) -> str:
        identity = str(uuid.uuid4())
        message.metadata.__dict__["_message_id"] = identity
        message.metadata.__dict__["_run_id"] = self._run_id
        self._replies[identity] = self._tenants[message.metadata.dst_node_id](copy.deepcopy(message))
        return identity
