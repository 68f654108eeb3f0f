"""What the server has received, written down by the server's own process, durably, as it takes each reply.

The product's method runs unchanged; what it gives back is decoded once more and appended to a file that no code of the
product reads or writes. It is what the ledgers and the history are checked against.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from flwr.app import Message
from flwr.app.message import make_message
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedprofile.common.adapters import arrays_hash, read_arrays, write_arrays
from fedprofile.common.messages import Arrays, Kind, refusal_of, reply_of
from fedprofile.server.linkstate import FederationLinkState


@dataclass(frozen=True)
class Arrival:
    """One reply that the server has taken.

    Args:
        tenant: Whose.
        kind: "train", "evaluate" or "deliver".
        round: As the reply says; 0 for a refusal, which says nothing.
        sequence: Of the ledger.
        payload: SHA-256 of the arrays.
        content: SHA-256 over everything but the envelope, byte for byte.
        refused: The code; empty for an answer.
        at: Seconds since the epoch.
    """

    tenant: str
    kind: str
    round: int
    sequence: int
    payload: str
    content: str
    refused: str
    at: float


class ArrivalLog:
    """Arrivals in a folder: lines in one file, arrays by their hash.

    Args:
        folder: Made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._path = folder, folder / "arrivals.jsonl"

    def append(self, arrival: Arrival, arrays: Arrays) -> None:
        """Add one; when this returns, it is on the disk."""
        stored = self._folder / f"{arrival.payload}.safetensors"
        if arrays and not stored.exists():
            write_arrays(stored, arrays)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f"{json.dumps(asdict(arrival))}\n".encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self) -> Iterator[Arrival]:
        """All of them, in order."""
        if self._path.exists():
            for line in self._path.read_text().splitlines():
                yield Arrival(**json.loads(line))

    def arrays(self, payload: str) -> Arrays:
        """The arrays of a payload."""
        return read_arrays(self._folder / f"{payload}.safetensors")


def log_arrivals(log: ArrivalLog, reach: Callable[[str], None]) -> None:
    """Have this process write down every reply that its server takes.

    Args:
        log: Where.
        reach: Is told before and after each.
    """
    original = FederationLinkState.take

    def take(self: FederationLinkState, reply: Message) -> dict[str, bytes]:
        content = original(self, reply)
        reach("reply:taken:before")
        [node] = self.get_node_info(node_ids=[reply.metadata.src_node_id])
        log.append(*_arrival(reply, dict(content), node.name))
        reach("reply:taken:after")
        return content

    FederationLinkState.take = take  # type: ignore[method-assign]


def _arrival(envelope: Message, content: dict[str, bytes], tenant: str) -> tuple[Arrival, Arrays]:
    kind = Kind(envelope.metadata.message_type).name.lower()
    root = envelope.metadata.message_id
    digest = hashlib.sha256("\n".join(sorted(set(content) - {root})).encode()).hexdigest()
    found = inflate_object_from_contents(root, content)
    assert isinstance(found, Message)
    if found.has_error():
        return Arrival(tenant, kind, 0, 0, "", digest, refusal_of(found).value, time.time()), {}
    reply = reply_of(make_message(metadata=envelope.metadata, content=found.content))
    payload = arrays_hash(reply.arrays)
    return Arrival(tenant, kind, reply.round, reply.ledger.sequence, payload, digest, "", time.time()), reply.arrays
