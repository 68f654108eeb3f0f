"""What lies where in a tenant's directory, and how it is written: atomically, and readable by its owner only.

    tenant.toml              the tenant file, edited by a person
    invite.json card.json    what the operator sent; the card that the tenant agreed to
    new-invite.json          a newer invite with another card, until the tenant agrees to it
    key ca.crt               the tenant's private key, the federation's CA
    segment.json             the ledger's path and population, the users' column and the settings, frozen at join
    secret                   what the prefix cache's keys are made with
    node.json journal/       the connection's state: node id, the request in flight
    outbox/ cache/           finished replies, frozen activations
    snapshot/                the run's rows, where tenant.toml asks for it (`fedprofile.client.snapshot`)
    marks/                   how far the ledger had come at the last reservation (`fedprofile.client.high_water`)
    adapters/                adapters received, and the one in use (`fedprofile.client.received`)
    serve.token              what an application shows to `serve`
    client.log lock          the local log, and the mark that `start` runs

The ledger is not in it: it belongs to the data, and deleting the directory must not give its users a new budget. A
ledger's path that leads inside, through symbolic links or not, is refused wherever it is used.
"""

import fcntl
import json
import os
import secrets
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from fedprofile.client.segments import SegmentPlan
from fedprofile.common.card import FederationCard, Name, Sha256, card_from_canonical
from fedprofile.common.config import Frozen, Model, validate
from fedprofile.common.enrolment import Invite, file_text, read_exchanged
from fedprofile.common.errors import ConfigError
from fedprofile.common.tenant import TenantFile, load_tenant_file

_KEPT_FILES = {"tenant.toml", "invite.json", "new-invite.json", "card.json", "key", "ca.crt", "segment.json", "secret"}
_KEPT_FOLDERS = {"journal", "outbox", "cache", "snapshot", "marks", "adapters"}
_KEPT = _KEPT_FILES | _KEPT_FOLDERS | {"node.json", "serve.token", "client.log", "lock"}


class SegmentFile(Frozen):
    """What `join` froze for this federation; `start` refuses to run with anything else."""

    format: Literal[2] = 2
    population: Name
    user_column: str
    """Says whose a row is, in every source."""
    ledger: Path
    """Relative to the directory, or absolute."""
    declared_users: int
    evaluation_users: float
    plan: SegmentPlan


State = Literal["taken", "waiting", "worse"]


class AdapterVersion(Frozen):
    """One of the stored adapters."""

    round: int = Field(ge=0)
    card_hash: Sha256
    file: str = Field(pattern=r"^round-\d{4,}\.safetensors$")
    arrays_hash: Sha256
    final: bool = False
    """Whether it was handed over as the run's result."""
    received: datetime
    state: State = "taken"
    """Whether it may be used; waiting for a judgement, or judged to be worse than the one before. As it came it is
    taken or waits, by `[adapters] accept`; see `fedprofile.client.acceptance`."""


class AdapterVersions(Frozen):
    """The adapters that came, as far as they are kept."""

    format: Literal[1] = 1
    versions: tuple[AdapterVersion, ...] = ()
    """In the order in which they came."""


@dataclass(frozen=True)
class TenantDirectory:
    """The paths of one tenant's directory, and its small files as objects.

    Args:
        root: The directory; it need not exist yet.
    """

    root: Path

    @property
    def tenant_file(self) -> Path:
        """What a person edits."""
        return self.root / "tenant.toml"

    @property
    def invite(self) -> Path:
        """The operator's invite."""
        return self.root / "invite.json"

    @property
    def new_invite(self) -> Path:
        """A newer invite with another card, until the tenant agrees to it."""
        return self.root / "new-invite.json"

    @property
    def card(self) -> Path:
        """The agreed card in canonical form."""
        return self.root / "card.json"

    @property
    def key(self) -> Path:
        """The private key."""
        return self.root / "key"

    @property
    def segment(self) -> Path:
        """What join froze."""
        return self.root / "segment.json"

    @property
    def node(self) -> Path:
        """The node id at the server."""
        return self.root / "node.json"

    @property
    def journal(self) -> Path:
        """The request in flight."""
        return self.root / "journal"

    @property
    def outbox(self) -> Path:
        """Finished replies."""
        return self.root / "outbox"

    @property
    def marks(self) -> Path:
        """How far the ledger had come, outside its own file."""
        return self.root / "marks"

    @property
    def cache(self) -> Path:
        """Frozen activations."""
        return self.root / "cache"

    @property
    def snapshot(self) -> Path:
        """The run's rows."""
        return self.root / "snapshot"

    @property
    def adapters(self) -> Path:
        """Adapters received."""
        return self.root / "adapters"

    @property
    def serve_token(self) -> Path:
        """What an application shows to `serve`."""
        return self.root / "serve.token"

    @property
    def log(self) -> Path:
        """The local log."""
        return self.root / "client.log"

    def keeps(self, path: Path) -> bool:
        """Whether a path is one that the client keeps in the directory, there or not.

        Args:
            path: Absolute, without symbolic links.
        """
        root = self.root.resolve()
        inside = path.relative_to(root).parts[:1] if path.is_relative_to(root) else (".",)
        return not inside or inside[0] in _KEPT or inside[0].endswith(".enroll")

    def create(self) -> None:
        """Make the directory, private; an existing one is kept as it is.

        Raises:
            ConfigError: It cannot be made.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(f"{self.root}: cannot be made ({error.strerror}); choose another --dir.") from error

    def read_invite(self) -> Invite:
        """The invite: the one that was agreed to, or before the first agreement the newest.

        Raises:
            ConfigError: There is none, or it is not one.
        """
        self._require(
            self.invite, "it is not a tenant's directory yet; run `flower-client join FILE.invite --dir` first"
        )
        return read_exchanged(self.invite, Invite)

    def read_newest_invite(self) -> Invite:
        """The invite that is to be agreed to: a newer one with another card where there is one.

        Raises:
            ConfigError: There is none, or it is not one.
        """
        invite = self.read_invite()
        return read_exchanged(self.new_invite, Invite) if self.new_invite.exists() else invite

    def keep_invite(self, invite: Invite, *, agreed: bool) -> None:
        """Put an invite where it belongs: what was agreed to stays usable until the tenant agrees to another card.

        Args:
            invite: From the operator.
            agreed: Whether its card is agreed to, or none is yet.
        """
        text = file_text(invite).encode()
        write_private(self.invite if agreed else self.new_invite, text)
        if agreed:
            self.new_invite.unlink(missing_ok=True)

    def read_tenant_file(self) -> TenantFile:
        """The tenant file.

        Raises:
            ConfigError: The population has no name yet, or see `fedprofile.common.config.load_toml`.
        """
        self._require(self.tenant_file, "run `flower-client join FILE.invite --dir` first")
        try:
            return load_tenant_file(self.tenant_file)
        except ConfigError:
            if _has_no_population(self.tenant_file):
                raise ConfigError(
                    f"{self.tenant_file}: population.name is empty; type a name for the users in this data, and the "
                    "same one in every directory and federation over them: their one budget goes by it."
                ) from None
            raise

    def read_agreed_card(self) -> FederationCard | None:
        """The card that the tenant agreed to, None before the first agreement."""
        if not self.card.exists():
            return None
        return card_from_canonical(self.card.read_bytes(), str(self.card))

    def read_segment(self) -> SegmentFile:
        """What join froze.

        Raises:
            ConfigError: The tenant has not joined.
        """
        self._require(self.segment, f"run `flower-client join --dir {self.root}` to agree to the card first")
        return read_model(self.segment, SegmentFile)

    @property
    def versions(self) -> Path:
        """The adapters received; written by `start` alone, as one step."""
        return self.adapters / "versions.json"

    def read_versions(self) -> AdapterVersions:
        """The adapters received."""
        return read_model(self.versions, AdapterVersions) if self.versions.exists() else AdapterVersions()

    def read_latest_adapter(self) -> AdapterVersion | None:
        """The adapter that came last, used or not; None while none has come."""
        return next(reversed(self.read_versions().versions), None)

    def secret(self) -> bytes:
        """32 random bytes of this tenant, made at the first call."""
        path = self.root / "secret"
        if not path.exists():
            write_private(path, secrets.token_bytes(32))
        return path.read_bytes()

    def ledger_path(self, ledger: Path) -> Path:
        """Where a ledger lies.

        Args:
            ledger: Absolute, or relative to the directory.

        Returns:
            The absolute path without symbolic links.

        Raises:
            ConfigError: It lies inside the directory: deleting the directory would reset its users' budget.
        """
        path = (self.root / ledger).resolve()
        if path.is_relative_to(self.root.resolve()):
            raise ConfigError(
                f"population.ledger: {path} lies inside the tenant's directory, and a budget must outlive it; give a "
                f"path outside of {self.root}, or leave population.ledger out."
            )
        return path

    def ledger_of(self, tenant: TenantFile) -> Path:
        """Where the ledger of a tenant file's population lies; see `ledger_path`."""
        return self.ledger_path(tenant.population.ledger or default_ledger(tenant.population.name))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold the directory for one running `start`.

        Raises:
            ConfigError: Another process holds it.
        """
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(
                    f"{self.root}: `flower-client start` already runs on this directory; stop that one first."
                ) from None
            yield
        finally:
            os.close(descriptor)

    def _require(self, path: Path, hint: str) -> None:
        if not path.exists():
            raise ConfigError(f"{path}: is not there; {hint}.")


def default_ledger(population: str) -> Path:
    """Where a population's ledger lies when tenant.toml does not say.

    Args:
        population: Its name.

    Returns:
        `$XDG_STATE_HOME/fedprofile/populations/NAME.sqlite`, absolute.
    """
    return populations_folder() / f"{population}.sqlite"


def populations_folder() -> Path:
    """`$XDG_STATE_HOME/fedprofile/populations`, absolute: default ledgers, and the registry of all of them."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state and Path(state).is_absolute() else Path.home() / ".local" / "state"
    return base / "fedprofile" / "populations"


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read; after a crash there is the old or the new one, whole.

    Args:
        path: The file; its folder is made where it is missing.
        data: The content.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_model(path: Path, model: Frozen) -> None:
    """Write a small object as JSON, private and atomic."""
    write_private(path, (model.model_dump_json(indent=2) + "\n").encode())


def read_model(path: Path, model: type[Model]) -> Model:
    """Read a small object that `write_model` wrote.

    Args:
        path: The file.
        model: Its type.

    Returns:
        The object.

    Raises:
        ConfigError: It cannot be read, or is not one.
    """
    try:
        return validate(json.loads(path.read_bytes()), model, str(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({type(error).__name__}); restore it or join again.") from error


def _has_no_population(path: Path) -> bool:
    """Whether a tenant file still has the template's empty name."""
    try:
        return bool(tomllib.loads(path.read_text(encoding="utf-8"))["population"]["name"] == "")
    except (OSError, ValueError, KeyError, TypeError):
        return False
