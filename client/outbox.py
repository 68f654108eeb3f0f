"""Finished replies, kept so that the same question gets the same bytes.

Why it is private: a server that restarts asks again. Drawing anew would cost again (five repeated rounds of twenty:
epsilon 3.9 becomes 4.4) and average the noise away; giving the same bytes releases nothing new. The key is what was
ASKED: card, round, kind and the received arrays, not a message's or a run's id. Arrays and fixed fields are kept, not
a transport message.

Whether a finished reply is kept never depends on the data: it is private and paid for once it is drawn, and its being
there or not can be seen by asking twice. So it also stays where a user whom it was computed over has left the source
since; deleting it for that would tell the server, without noise, that somebody left.

A file is taken for what it says only where that fits the question and the ledger (`fedprofile.client.app`).
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedprofile.client.ledger_file import sync_folder
from fedprofile.common.messages import Kind, LedgerMark, Reply


def question_key(card_hash: str, kind: str, round_number: int, question: str) -> str:
    """What was asked, in one name.

    Args:
        card_hash: Of the request.
        kind: A `Kind`'s value.
        round_number: Of the request.
        question: SHA-256 of the received arrays.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256("\n".join((card_hash, kind, str(round_number), question)).encode()).hexdigest()


def stored_reply(folder: Path, key: str) -> Reply | None:
    """A finished reply, read without changing anything, so also while a client runs.

    Args:
        folder: An outbox's.
        key: See `question_key`.

    Returns:
        The reply as it was put, or None; also where a file cannot be read.
    """
    path = _path(folder, key)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as stored:
            fields = stored.metadata()
            arrays = {name: stored.get_tensor(name) for name in json.loads(fields["names"])}
        mark = LedgerMark(int(fields["sequence"]), fields["head"])
        return Reply(Kind(fields["kind"]), fields["card"], int(fields["round"]), arrays, mark)
    except (SafetensorError, OSError, KeyError, ValueError):
        return None


class Outbox:
    """A folder of replies, one file each, readable by its owner alone.

    Args:
        folder: Made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in folder.glob("*.part"):
            leftover.unlink()

    def get(self, key: str) -> Reply | None:
        """The finished reply to a question.

        Args:
            key: See `question_key`.

        Returns:
            See `stored_reply`.
        """
        return stored_reply(self._folder, key)

    def holds(self, key: str) -> bool:
        """Whether there is a file for a question, be it whole or not.

        Args:
            key: See `question_key`.
        """
        return os.path.lexists(_path(self._folder, key))

    def put(self, key: str, reply: Reply) -> None:
        """Keep a finished reply; when this returns, it is on the disk.

        Args:
            key: See `question_key`.
            reply: What will be sent.
        """
        fields = {
            "kind": reply.kind.value,
            "card": reply.card_hash,
            "round": str(reply.round),
            "sequence": str(reply.ledger.sequence),
            "head": reply.ledger.head,
            # A reply goes out in this order; the file has its own.
            "names": json.dumps(list(reply.arrays)),
        }
        arrays = {name: np.ascontiguousarray(value) for name, value in reply.arrays.items()}
        self._write(_path(self._folder, key), save(arrays, metadata=fields))

    def _write(self, path: Path, data: bytes) -> None:
        part = path.with_suffix(path.suffix + ".part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
        sync_folder(self._folder)


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key}.safetensors"
