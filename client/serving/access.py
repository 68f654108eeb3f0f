"""The bearer token that an application shows: made at the first start, kept readable by its owner only."""

import hmac
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from fedprofile.client.directory import write_private
from fedprofile.common.errors import ConfigError


@dataclass(frozen=True)
class Token:
    """What must be shown.

    Args:
        value: At least 32 characters of URLs.
    """

    value: str = field(repr=False)

    @classmethod
    def of(cls, path: Path) -> "Token":
        """The token that a file holds; one is made where there is no file.

        Args:
            path: In a tenant's directory.

        Returns:
            The token.

        Raises:
            ConfigError: Others than its owner can read the file, or it holds no token.
        """
        if not path.exists():
            write_private(path, f"{secrets.token_urlsafe(32)}\n".encode())
        renew = f"delete {path}, and `serve` makes a new one"
        if (mode := path.stat().st_mode & 0o777) & 0o077:
            raise ConfigError(f"{path}: has mode {mode:o}, so that others can read the token; {renew}.")
        value = path.read_bytes().decode("ascii", "replace").strip()
        if not re.fullmatch(r"[A-Za-z0-9_-]{32,}", value):
            raise ConfigError(f"{path}: holds no token of at least 32 letters, digits, - and _; {renew}.")
        return cls(value)

    def admits(self, authorization: bytes) -> bool:
        """Whether a header's value shows this token; takes as long for a near miss as for a far one.

        Args:
            authorization: `Bearer TOKEN`; empty where there is no header.
        """
        scheme, _, shown = authorization.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(shown.strip(), self.value.encode())
