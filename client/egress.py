"""`start --record-egress FILE`: the exact bytes that leave, for whoever wants to see them.

One JSON object for each request to the server, written before the request is sent: what is not in the file has not
left. A file that cannot be written stops the client, because a record with gaps would be taken for a whole one. What
TLS and TCP add (the server's name, sizes, times) is not in it; the bodies are protobuf messages of Flower's Fleet API.
"""

import base64
import hashlib
import json
import os
import stat
import threading
from datetime import UTC, datetime
from pathlib import Path

import httpx

from fedprofile.common.errors import ConfigError

_FIELDS = ("time", "method", "url", "headers", "sha256", "body")
_START = b'{"time": "'


class EgressError(ConfigError):
    """The record of what leaves cannot be written."""


class EgressFile:
    """Appends every request to a file of private mode.

    Args:
        path: JSON Lines; what is there is kept, and is such a record already.

    Raises:
        EgressError: The file cannot be opened, or is another one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()  # The heartbeat has a thread of its own.
        try:
            if path.exists() and not _is_record(path):
                raise EgressError(f"{path}: is there and is no record of requests; give another --record-egress.")
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._prepare()
        except OSError as error:
            raise EgressError(f"{path}: cannot be written ({error.strerror}); give another --record-egress.") from error

    def _prepare(self) -> None:
        """Make an older file private, and end the line that a full disk or a kill has cut off."""
        found = os.fstat(self._file)
        if not stat.S_ISREG(found.st_mode):
            return
        os.fchmod(self._file, 0o600)
        if found.st_size and os.pread(self._file, 1, found.st_size - 1) != b"\n":
            os.write(self._file, b"\n")

    def record(self, request: httpx.Request) -> None:
        """Append one line.

        Raises:
            EgressError: The disk does not take it.
        """
        headers = [[name.decode(), value.decode()] for name, value in request.headers.raw]
        digest = hashlib.sha256(request.content).hexdigest()
        body = base64.b64encode(request.content).decode()
        values = (datetime.now(UTC).isoformat(), request.method, str(request.url), headers, digest, body)
        line = json.dumps(dict(zip(_FIELDS, values, strict=True)))
        left = f"{line}\n".encode()
        with self._lock:
            try:
                while left:
                    left = left[os.write(self._file, left) :]
            except OSError as error:
                raise EgressError(
                    f"{self._path}: cannot be written ({error.strerror}); nothing leaves that is not recorded."
                ) from error


def _is_record(path: Path) -> bool:
    """Whether a file can be appended to: it begins as a record does, is empty, or is a pipe or a terminal."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)
    with path.open("rb") as file:
        start = file.read(len(_START))
        if start != _START:
            return not start
        line = start + file.readline()
    try:
        return tuple(json.loads(line)) == _FIELDS
    except ValueError:
        return True  # The first request of all was cut off.
