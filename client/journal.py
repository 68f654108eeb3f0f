"""The request in flight, kept on disk until its reply has left.

A message that the server has handed out is never handed out again. So its envelope is written here, durably, before
anything else happens with it, and the server is told that it may forget the content only after the reply has left: a
client that is killed at any moment in between finds the envelope, pulls the same content again (its objects are
named by their hash) and answers.
"""

from pathlib import Path

from flwr.proto.fleet_pb2 import PullMessagesResponse
from google.protobuf.message import DecodeError

from fedprofile.client.directory import sync_folder, write_private


class Journal:
    """At most one request in flight.

    - What `keep` returned from survives `kill -9` and a power cut.
    - `load` gives exactly what was kept, or None; a file that is not whole reads as None.
    - After `clear` nothing is found.

    Args:
        folder: Where it lies; made where it is missing, private.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = folder / "request"

    def keep(self, envelope: PullMessagesResponse) -> None:
        """Write the envelope of a request, without its content."""
        write_private(self._path, envelope.SerializeToString(deterministic=True))

    def load(self) -> PullMessagesResponse | None:
        """The request that was in flight when the process ended, None where there was none."""
        try:
            envelope = PullMessagesResponse.FromString(self._path.read_bytes())
        except (FileNotFoundError, DecodeError):
            return None
        if len(envelope.messages_list) != 1 or len(envelope.message_object_trees) != 1:
            return None
        return envelope

    def clear(self) -> None:
        """Forget the request: its reply has left, or nobody waits for it."""
        self._path.unlink(missing_ok=True)
        sync_folder(self._path.parent)
