"""`start --record-egress FILE`: the exact bytes that leave, for whoever wants to see them.

One JSON object for each request to the server, written before the request is sent: what is not in the file has not
left. A file that cannot be written stops the client, because a record with gaps would be taken for a whole one. What
TLS and TCP add (the server's name, sizes, times) is not in it; the bodies are protobuf messages of Flower's Fleet API.
"""

import base64
import hashlib
import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import httpx

from fedprofile.common.errors import ConfigError


class EgressError(ConfigError):
    """The record of what leaves cannot be written."""


class EgressFile:
    """Appends every request to a file of private mode.

    Args:
        path: JSON Lines; what is there is kept.

    Raises:
        EgressError: The file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()  # The heartbeat has a thread of its own.
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EgressError(f"{path}: cannot be written ({error.strerror}); give another --record-egress.") from error

    def record(self, request: httpx.Request) -> None:
        """Append one line.

        Raises:
            EgressError: The disk does not take it.
        """
        line = json.dumps(
            {
                "time": datetime.now(UTC).isoformat(),
                "method": request.method,
                "url": str(request.url),
                "headers": [[name.decode(), value.decode()] for name, value in request.headers.raw],
                "sha256": hashlib.sha256(request.content).hexdigest(),
                "body": base64.b64encode(request.content).decode(),
            }
        )
        left = f"{line}\n".encode()
        with self._lock:
            try:
                while left:
                    left = left[os.write(self._file, left) :]
            except OSError as error:
                raise EgressError(
                    f"{self._path}: cannot be written ({error.strerror}); nothing leaves that is not recorded."
                ) from error
