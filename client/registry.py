"""Which population has its ledger where, for one user of one machine: the same users have one budget.

`$XDG_STATE_HOME/fedprofile/populations/registry.json` holds, for every population that was ever joined for, the path of
its ledger, the sources that its users' data came from, and the runs that were opened in it. It is written at every
join, and compared with at `check`, `join` and `start`. Without it ordinary acts would give the same users a second
budget: another directory with a ledger of its own, another name over the same file, a lost ledger that is made anew, a
restored one that has forgotten a run.

Beside it, `marks/` holds how far each population's ledger has come (`fedprofile.client.high_water`), through whichever
directory.

A source is a file's path without symbolic links, or the SHA-256 of an SQL URL without its password and of the query.
A copy of the data under another path and another name is not recognised: the name is the tenant's word that the users
are others.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from fedprofile.client.directory import populations_folder, read_model, write_model
from fedprofile.client.ledger_schema import Segment
from fedprofile.client.segments import SegmentPlan
from fedprofile.common.card import Name, Sha256
from fedprofile.common.config import Frozen
from fedprofile.common.errors import ConfigError, LedgerBehindError
from fedprofile.common.tenant import FileSource, Source, SqlSource, TenantFile


class Registered(Frozen):
    """What is known of one population.

    Args:
        ledger: Absolute path.
        sources: See `source_identity`.
        segments: `SegmentPlan.digest` of every run that was opened.
    """

    ledger: Path
    sources: tuple[str, ...] = ()
    segments: tuple[Sha256, ...] = ()


class RegistryFile(Frozen):
    """The file, whole."""

    format: Literal[1] = 1
    populations: Mapping[Name, Registered] = Field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """What a tenant file says of its users.

    Args:
        population: Their name.
        ledger: Where their ledger is, absolute, without symbolic links.
        sources: See `source_identity`.
    """

    population: str
    ledger: Path
    sources: tuple[str, ...]

    @classmethod
    def of(cls, tenant: TenantFile, folder: Path, ledger: Path) -> "Claim":
        """What a tenant file claims.

        Args:
            tenant: The file.
            folder: What its relative paths count from.
            ledger: Where the population's ledger is.

        Returns:
            The claim.
        """
        sources = [source for source in (tenant.source, tenant.events) if source is not None]
        return cls(tenant.population.name, ledger, tuple(source_identity(source, folder) for source in sources))


def source_identity(source: Source, folder: Path) -> str:
    """What a source is recognised by.

    Args:
        source: Of a tenant file.
        folder: What a relative path counts from.

    Returns:
        `file:` and the path without symbolic links, or `sql:` and a hash.
    """
    if isinstance(source, FileSource):
        return f"file:{(folder / source.path).resolve()}"
    return f"sql:{hashlib.sha256(_sql_text(source).encode()).hexdigest()}"


def _sql_text(source: SqlSource) -> str:
    import sqlalchemy

    query = " ".join(source.query.split())
    try:
        url = sqlalchemy.make_url(source.url.get_secret_value())
    except sqlalchemy.exc.ArgumentError:
        raise ConfigError("source.url is not a usable SQLAlchemy URL; check it.") from None
    database = url.database
    if url.get_backend_name() == "sqlite" and database and database != ":memory:":
        database = str(Path(database).resolve())
    options = {key: value for key, value in url.query.items() if "pass" not in key.lower()}
    # Built anew: `URL.set` keeps a password that is set to None.
    plain = sqlalchemy.URL.create(url.drivername, url.username, None, url.host, url.port, database, options)
    return f"{plain.render_as_string(hide_password=False)}\n{query}"


class Registry:
    """The registry of one user of one machine.

    Args:
        folder: Where `registry.json` lies; made at the first join.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "registry.json"

    @property
    def marks(self) -> Path:
        """Folder of the account's `HighWater`."""
        return self._path.with_name("marks")

    @classmethod
    def of_user(cls) -> "Registry":
        """The one that the command line always uses."""
        return cls(populations_folder())

    def knows(self, claim: Claim) -> bool:
        """Whether a claim's population was joined for before.

        Args:
            claim: Of a tenant file.

        Returns:
            True where its ledger must be there.

        Raises:
            ConfigError: The claim would give the same users a second ledger.
        """
        known = self._read().populations
        where = 'write name = "{}" and ledger = "{}" under [population] in tenant.toml'
        own = known.get(claim.population)
        if own is not None and own.ledger.resolve() != claim.ledger:
            raise ConfigError(
                f"population.ledger: population '{claim.population}' has its ledger at {own.ledger}, and a second one "
                f"at {claim.ledger} would give its users a second budget; "
                f"{where.format(claim.population, own.ledger)}, or correct {self._path} where you have moved it."
            )
        for name, other in known.items():
            if name != claim.population and set(other.sources) & set(claim.sources):
                raise ConfigError(
                    f"population.name: the users of this source are population '{name}' already, and as "
                    f"'{claim.population}' they would have a second budget; {where.format(name, other.ledger)}."
                )
        return own is not None

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Hold the registry: two joins at the same time must not each make a ledger for the same users.

        Raises:
            ConfigError: It cannot be written.
        """
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._path.with_name("registry.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"{self._path}: cannot be written ({error.strerror}); set XDG_STATE_HOME to a folder that can."
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def add(self, claim: Claim, plan: SegmentPlan) -> None:
        """Write down that a run was opened for a claim's users; to be called while the registry is held.

        Args:
            claim: Of the tenant file.
            plan: Of the run.
        """
        populations = dict(self._read().populations)
        old = populations.get(claim.population, Registered(ledger=claim.ledger))
        populations[claim.population] = Registered(
            ledger=old.ledger,
            sources=tuple(dict.fromkeys((*old.sources, *claim.sources))),
            segments=tuple(dict.fromkeys((*old.segments, plan.digest))),
        )
        write_model(self._path, RegistryFile(populations=populations))

    def check_segments(self, claim: Claim, segments: list[Segment], plan: SegmentPlan) -> None:
        """Refuse a ledger that has forgotten a run, before another one is charged to what the first has taken.

        Args:
            claim: Whose population's ledger it is.
            segments: Of the ledger.
            plan: Of the run that is about to be opened; one that was forgotten may be charged again.

        Raises:
            LedgerBehindError: A run that was opened is not in the ledger.
        """
        own = self._read().populations.get(claim.population, Registered(ledger=claim.ledger))
        forgotten = set(own.segments) - {segment.plan.digest for segment in segments}
        if forgotten and plan.digest not in own.segments:
            raise LedgerBehindError(
                f"{claim.ledger}: lacks {len(forgotten)} run(s) that were opened in it, so it is an old copy; restore "
                "the newest. If that is lost, `flower-client join` in those runs' directories charges them again."
            )

    def _read(self) -> RegistryFile:
        return read_model(self._path, RegistryFile) if self._path.exists() else RegistryFile()
