"""The layout of a server's directory, and `server.toml`.

DIR/federation.toml   the federation card, public
DIR/server.toml       where the server listens
DIR/ca.key ca.crt     the federation's own certificate authority (the key is private)
DIR/server.key .crt   the public listener's certificate
DIR/operator.token    bearer token of the admin listener (private)
DIR/tenants.json      who is invited and who is enrolled
DIR/lock              held while a server runs here
DIR/state/            adapter.safetensors, checkpoint.safetensors, history.jsonl, status.json, server.log
DIR/tracking/         the history for TensorBoard, MLflow or Weights & Biases; see `tracking`
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from fedprofile.common.card import FederationCard, load_card
from fedprofile.common.config import Frozen, load_toml
from fedprofile.common.errors import ConfigError, InputError
from fedprofile.server.trackers import TrackingSpec


class ServerSettings(Frozen):
    """`server.toml`."""

    host: str = "127.0.0.1"
    """The name or address that tenants use; the certificate is made out to it."""
    listen: str = "0.0.0.0"
    """The address that the public listener and the health service bind to."""
    port: int = Field(default=8443, ge=1, le=65535)
    admin_port: int = Field(default=8444, ge=1, le=65535)
    """Loopback only."""
    health_port: int = Field(default=8445, ge=1, le=65535)
    """The standard gRPC health service, with the server's certificate."""
    max_body_mib: int = Field(default=64, ge=6, le=4096)
    """The largest request that the public listener takes."""
    patience: float = Field(default=20.0, ge=0)
    """Seconds for which a round, and the final delivery, wait for a tenant that has left."""
    base: Path | None = None
    """Where the base model lies, when it is neither the embedded package nor on the hub."""
    tracking: TrackingSpec = TrackingSpec()

    @property
    def address(self) -> str:
        """What tenants connect to, `host:port`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True)
class ServerDirectory:
    """The paths of one server.

    Args:
        root: DIR.
    """

    root: Path

    @property
    def federation(self) -> Path:
        """The federation card."""
        return self.root / "federation.toml"

    @property
    def settings_file(self) -> Path:
        """Where it listens."""
        return self.root / "server.toml"

    @property
    def ca_key(self) -> Path:
        """Private."""
        return self.root / "ca.key"

    @property
    def ca(self) -> Path:
        """The CA certificate, given to every tenant."""
        return self.root / "ca.crt"

    @property
    def key(self) -> Path:
        """Private key of the listeners."""
        return self.root / "server.key"

    @property
    def certificate(self) -> Path:
        """Certificate of the listeners."""
        return self.root / "server.crt"

    @property
    def operator_token(self) -> Path:
        """Private."""
        return self.root / "operator.token"

    @property
    def tenants(self) -> Path:
        """See `enrolment.Roster`."""
        return self.root / "tenants.json"

    @property
    def state(self) -> Path:
        """What a running server writes."""
        return self.root / "state"

    @property
    def initial_adapter(self) -> Path:
        """The adapter that round 1 starts from."""
        return self.state / "initial.safetensors"

    @property
    def adapter(self) -> Path:
        """The newest global adapter."""
        return self.state / "adapter.safetensors"

    @property
    def checkpoint(self) -> Path:
        """See `checkpoint.Checkpoint`."""
        return self.state / "checkpoint.safetensors"

    @property
    def history(self) -> Path:
        """One line per round."""
        return self.state / "history.jsonl"

    @property
    def status(self) -> Path:
        """The newest state in one object."""
        return self.state / "status.json"

    def card(self) -> FederationCard:
        """Read the card.

        Raises:
            ConfigError: See `load_card`.
        """
        self.require()
        return load_card(self.federation)

    def settings(self) -> ServerSettings:
        """Read `server.toml`.

        Raises:
            ConfigError: See `load_toml`.
        """
        self.require()
        return load_toml(self.settings_file, ServerSettings)

    def read(self, path: Path) -> bytes:
        """One of the directory's files.

        Raises:
            ConfigError: It cannot be read.
        """
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror}); restore it from a backup.") from error

    def require(self) -> None:
        """Check that this is a server's directory.

        Raises:
            ConfigError: It is not.
        """
        for path in (self.federation, self.settings_file):
            if not path.is_file():
                raise ConfigError(
                    f"{self.root}: is not a server's directory ({path.name} is missing); make one with "
                    "`flower-server init`."
                )

    def is_held(self) -> bool:
        """Whether a server runs here."""
        try:
            with self.exclusive():
                return False
        except InputError:
            return True

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the directory; the kernel lets go of it when the process dies.

        Raises:
            InputError: Another server runs here.
        """
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(
                    f"{self.root}: a server is already running in this directory; stop it, or use `status`."
                ) from None
            yield
        finally:
            os.close(descriptor)
