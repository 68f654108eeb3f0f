"""The decision log: which model said what of whom and when, for the tenant's own account of it.

One JSON object a line: time, way (`predict`, `explain` or `serve`), a keyed hash of the user's id, what came out, and
the model by card, round and the hash of its adapter. No text of a history, no column and no id stands in it. The key is
the directory's `secret`, so that the tenant can find one person's decisions (`user_code`) and nobody else can link the
log to a person by trying ids.

What cannot be logged is not given: a line is on the disk before its prediction is shown. Lines are added and never
changed; a line that a crash or a full disk cut off is ended first, so that it spoils no other.
"""

import errno
import hashlib
import hmac
import json
import os
import stat
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedprofile.client.directory import TenantDirectory, sync_folder
from fedprofile.client.output_files import refuse_own_file
from fedprofile.common.errors import ConfigError
from fedprofile.common.tenant import TenantFile


class DecisionLog:
    """An append-only file, readable by its owner only.

    Args:
        path: Made at the first line.
        secret: Of the directory.
    """

    def __init__(self, path: Path, secret: bytes) -> None:
        self._path, self._secret = path, secret

    @classmethod
    def of(cls, directory: TenantDirectory, tenant: TenantFile) -> "DecisionLog | None":
        """The tenant's log.

        Args:
            directory: The tenant's.
            tenant: The tenant file.

        Returns:
            None where the tenant keeps none.

        Raises:
            ConfigError: The path is that of a file that the client needs itself.
        """
        if tenant.decisions is None:
            return None
        path = directory.root / tenant.decisions.log
        ledger = directory.ledger_path(directory.read_segment().ledger)
        refuse_own_file(path, "decisions.log", directory, ledger=ledger, tenant=tenant)
        return cls(path, directory.secret())

    def user_code(self, user: str) -> str:
        """What stands in the log for a user's id: 32 hexadecimal digits."""
        name = user.encode("utf-8", "surrogatepass")
        return hmac.digest(self._secret, b"decisions\0" + name, hashlib.sha256).hex()[:32]

    def append(
        self,
        users: Sequence[str],
        outcomes: Sequence[Any],
        *,
        card_hash: str,
        adapter: str,
        round: int,
        way: str = "predict",
    ) -> None:
        """Write one line for each prediction, and wait until they are on the disk.

        Args:
            users: Whose.
            outcomes: What came out for each: a label, `review`, a number.
            card_hash: Of the federation.
            adapter: Hash of the adapter.
            round: After which round it was.
            way: How it was asked for.

        Raises:
            ConfigError: It cannot be written; the predictions are not to be given then.
        """
        model = {"card": card_hash, "adapter": adapter, "round": round}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        lines = [
            json.dumps({"time": now, "way": way, "user": self.user_code(user), "outcome": outcome, **model})
            for user, outcome in zip(users, outcomes, strict=True)
        ]
        data = "".join(f"{line}\n" for line in lines).encode()
        try:
            made = not self._path.exists()
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self._path, flags, 0o600)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(errno.EINVAL, "it is no plain file")
                os.fchmod(descriptor, 0o600)
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    data = b"\n" + data
                while data:
                    data = data[os.write(descriptor, data) :]
                os.fsync(descriptor)
                if made:
                    sync_folder(self._path.parent)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ConfigError(
                f"decisions.log: {self._path} cannot be written ({error.strerror}); nothing is predicted that is not "
                "logged. Make room, or mend the path in tenant.toml."
            ) from None
