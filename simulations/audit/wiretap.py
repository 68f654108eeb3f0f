"""What an honest-but-curious server sees: every message that passes it, and nothing that does not."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedprofile.common.messages import Arrays, Kind, reply_of, request_of


@dataclass
class Transcript:
    """The training messages of a run.

    Args:
        adapters: Round -> the adapter that tenants were sent.
        updates: Node id -> round -> what the tenant sent back.
    """

    adapters: dict[int, Arrays] = field(default_factory=dict, repr=False)
    updates: dict[int, dict[int, Arrays]] = field(default_factory=dict, repr=False)


class Wiretap(Grid):
    """A grid that keeps the arrays of training messages as they pass.

    Args:
        grid: Carries the messages.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.transcript = Transcript()

    def set_run(self, run: Run) -> None:
        """See `Grid.set_run`."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """See `Grid.run`."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """See `Grid.create_message`."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """See `Grid.get_node_ids`."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `Grid.push_messages`."""
        return self._grid.push_messages(self._sent(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid.pull_messages`."""
        return self._received(self._grid.pull_messages(message_ids))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """See `Grid.send_and_receive`."""
        return self._received(self._grid.send_and_receive(self._sent(messages), timeout=timeout))

    def _sent(self, messages: Iterable[Message]) -> Iterator[Message]:
        for message in messages:
            if message.metadata.message_type == Kind.TRAIN.value:
                request = request_of(message)
                self.transcript.adapters.setdefault(request.round, request.arrays)
            yield message

    def _received(self, replies: Iterable[Message]) -> Iterator[Message]:
        for message in replies:
            if message.metadata.message_type == Kind.TRAIN.value and not message.has_error():
                reply = reply_of(message)
                self.transcript.updates.setdefault(message.metadata.src_node_id, {})[reply.round] = reply.arrays
            yield message
