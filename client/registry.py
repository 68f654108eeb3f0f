"""Which population has its ledger where, for one user of one machine: the same users have one budget.

`$XDG_STATE_HOME/fedprofile/populations/registry.json` holds, for every population that was ever joined for, the path of
its ledger, the sources that its users' data came from, and the runs that were opened in it. It is written at every
join and, where a source is another one, whenever `start` reads it; `check`, `join` and `start` compare with it. Without
it ordinary acts would give the same users a second budget: another directory with a ledger of its own, another name
over the same file, a lost ledger that is made anew, a restored one that has forgotten a run.

A file is known by its path without symbolic links, and by any other name (hard link) of the file that lies there now.
Inode numbers are compared and not kept: a number is given to another file as soon as the first is replaced.

A query is known by the database that it reads (`fedprofile.client.databases`), because the same users can be asked for
in any number of ways. Two populations in one database are common, though: the second names the first under
`population.apart_from`, which is kept here, as the tenant's word that nobody is in both. The same query is refused
whatever is said. So is the same file.

Beside it, `marks/` holds how far each population's ledger has come (`fedprofile.client.high_water`), through whichever
directory.

A copy of the data under another path and another name is not recognised: the name is the tenant's word that the users
are others.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from fedprofile.client.databases import database_identity, query_identity
from fedprofile.client.directory import populations_folder, read_model, write_model
from fedprofile.client.ledger_schema import Segment
from fedprofile.client.segments import SegmentPlan
from fedprofile.common.card import Name, Sha256
from fedprofile.common.config import Frozen
from fedprofile.common.errors import ConfigError, LedgerBehindError
from fedprofile.common.tenant import FileSource, Source, TenantFile


class Registered(Frozen):
    """What is known of one population.

    Args:
        ledger: Absolute path.
        sources: See `source_identities`.
        apart_from: Populations in the same database that have other users, as a person said.
        segments: `SegmentPlan.digest` of every run that was opened.
    """

    ledger: Path
    sources: tuple[str, ...] = ()
    apart_from: tuple[Name, ...] = ()
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
        sources: See `source_identities`.
        apart_from: Populations in the same database that have other users.
    """

    population: str
    ledger: Path
    sources: tuple[str, ...]
    apart_from: tuple[str, ...] = ()

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
        identities = [identity for source in sources for identity in source_identities(source, folder)]
        population = tenant.population
        return cls(population.name, ledger, tuple(dict.fromkeys(identities)), population.apart_from)


def source_identities(source: Source, folder: Path) -> tuple[str, ...]:
    """What a source is recognised by.

    Args:
        source: Of a tenant file.
        folder: What a relative path counts from.

    Returns:
        `file:` and the path without symbolic links; for a query its database's identity and its own.
    """
    if isinstance(source, FileSource):
        return (f"file:{(folder / source.path).resolve()}",)
    return database_identity(source, folder), query_identity(source, folder)


def _shared(mine: Iterable[str], theirs: Iterable[str]) -> set[str]:
    """Of what kinds is what two populations' sources have in common; for a database `sqlite` or `database`."""
    return {one.partition(":")[0] for one in mine if any(_same(one, other) for other in theirs)}


def _same(one: str, other: str) -> bool:
    kind, _, path = one.partition(":")
    other_kind, _, other_path = other.partition(":")
    if one == other or kind != other_kind or kind not in ("file", "sqlite"):
        return one == other
    try:
        return Path(path).samefile(other_path)
    except OSError:
        return False


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
            ConfigError: The claim would give the same users a second ledger, or it may and nobody has said that the
                users are others.
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
        apart = {*claim.apart_from, *(own.apart_from if own else ())}
        for name, other in known.items():
            if name == claim.population or not (shared := _shared(claim.sources, other.sources)):
                continue
            if shared & {"file", "query"}:
                raise ConfigError(
                    f"population.name: the users of this source are population '{name}' already, and as "
                    f"'{claim.population}' they would have a second budget; {where.format(name, other.ledger)}."
                )
            if name not in apart and claim.population not in other.apart_from:
                raise ConfigError(
                    f"population.name: the database of this source is that of population '{name}' as well, and whoever "
                    f"is in both it and '{claim.population}' would have two budgets; where the users are the same, "
                    f'{where.format(name, other.ledger)}, and where nobody is in both, apart_from = ["{name}"].'
                )
        return own is not None

    def claim(self, claim: Claim) -> None:
        """Write down where a population's data comes from now, unless that is known; nothing may speak against it.

        Args:
            claim: Of a tenant file.

        Raises:
            ConfigError: See `knows`; or it cannot be written.
        """
        self.knows(claim)
        own = self._read().populations.get(claim.population)
        if own and set(claim.sources) <= set(own.sources) and set(claim.apart_from) <= set(own.apart_from):
            return
        with self.joining():
            self.knows(claim)
            self.add(claim)

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

    def add(self, claim: Claim, plan: SegmentPlan | None = None) -> None:
        """Write down a claim, and that a run was opened for its users; to be called while the registry is held.

        Args:
            claim: Of the tenant file.
            plan: Of the run, where one was opened.
        """
        populations = dict(self._read().populations)
        old = populations.get(claim.population, Registered(ledger=claim.ledger))
        populations[claim.population] = Registered(
            ledger=old.ledger,
            sources=tuple(dict.fromkeys((*old.sources, *claim.sources))),
            apart_from=tuple(dict.fromkeys((*old.apart_from, *claim.apart_from))),
            segments=tuple(dict.fromkeys((*old.segments, *([plan.digest] if plan else [])))),
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
