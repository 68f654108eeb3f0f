"""The adapters that came from the server, for the tenant's own use: versions with their hashes, one of them in use.

    adapters/versions.json           what came: written by `start`, and only read by the other commands
    adapters/round-0007.safetensors  the newest few of them
    adapters/choice.json             what was judged and pinned: written by `flower-client adapters` and after a run
    adapters/used/HASH.safetensors   copies of what was chosen, which stay when newer ones come

Which one is used is the tenant's own business, and may depend on the tenant's own evaluation users. Why nothing that is
answered does: `start` never reads the choice, neither to train, nor to store or to delete an adapter, while it talks to
the server. It does not even have to wait for whoever writes it.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from fedprofile.client.directory import (
    AdapterVersion,
    AdapterVersions,
    State,
    TenantDirectory,
    read_model,
    write_model,
    write_private,
)
from fedprofile.common.adapters import AdapterError, Layout, arrays_hash, check_arrays, read_arrays, write_arrays
from fedprofile.common.card import Sha256
from fedprofile.common.config import Frozen
from fedprofile.common.errors import ConfigError
from fedprofile.common.messages import Arrays
from fedprofile.common.tenant import AdaptersSpec


class Choice(Frozen):
    """What the tenant's own commands have decided about adapters of one card.

    Args:
        card_hash: Of the card.
        judged: Hash of an adapter -> what was found.
        pinned: Used by the tenant's own choice; None uses the newest that is taken.
        taken: The newest that was judged not to be worse, should no newer one be taken.
    """

    format: Literal[1] = 1
    card_hash: Sha256
    judged: Mapping[Sha256, State] = Field(default_factory=dict)
    pinned: AdapterVersion | None = None
    taken: AdapterVersion | None = None


class AdapterFolder:
    """Adapters that the server sent.

    Args:
        directory: The tenant's.
        card_hash: Of the agreed card; adapters of another one are as none.
        spec: The tenant file's `[adapters]`; it counts for those that come.
    """

    def __init__(self, directory: TenantDirectory, card_hash: str, spec: AdaptersSpec | None = None) -> None:
        self._directory, self._folder, self._card_hash = directory, directory.adapters, card_hash
        self._spec = spec or AdaptersSpec()
        self._choice, self._copies = self._folder / "choice.json", self._folder / "used"

    def keep(self, arrays: Arrays, number: int, final: bool = False) -> None:
        """Store an adapter, unless it is the untrained start or older than what is there.

        Args:
            arrays: Checked.
            number: After which round.
            final: Whether it is the run's result.
        """
        known = self._came()
        latest = next(reversed(known), None)
        if latest is not None and latest.round > number:
            return
        digest = arrays_hash(arrays)
        if number < 1:
            return
        state: State = "waiting" if self._spec.accept == "not-worse" else "taken"
        if latest is not None and (latest.arrays_hash, latest.round) == (digest, number):
            if latest.final >= final:
                return
            state = latest.state  # The same once more, now as the run's result.
        self._folder.mkdir(exist_ok=True, mode=0o700)
        name = f"round-{number:04d}.safetensors"
        write_arrays(self._folder / name, arrays)
        entry = AdapterVersion(
            round=number,
            card_hash=self._card_hash,
            file=name,
            arrays_hash=digest,
            final=final,
            received=datetime.now(UTC).replace(microsecond=0),
            state=state,
        )
        self._write((*(version for version in known if version.file != name), entry))

    def has_final(self) -> bool:
        """Whether the run's result has come."""
        came = self._came()
        return bool(came) and came[-1].final

    def versions(self) -> tuple[AdapterVersion, ...]:
        """Those of this card that can be used, oldest first, each with what was judged of it."""
        return self._versions(self.choice())

    def written(self) -> tuple[int, ...]:
        """Changes whenever another adapter may be in use: when what came and what was chosen were written."""
        found = []
        for path in (self._directory.versions, self._choice):
            try:
                seen = path.stat()
            except OSError:
                found += [0, 0]
            else:
                found += [seen.st_mtime_ns, seen.st_ino]
        return tuple(found)

    def choice(self) -> Choice:
        """What was decided so far.

        Raises:
            ConfigError: The file cannot be read.
        """
        choice = read_model(self._choice, Choice) if self._choice.exists() else None
        if choice is None or choice.card_hash != self._card_hash:
            return Choice(card_hash=self._card_hash)
        return choice

    def in_use(self) -> AdapterVersion | None:
        """The pinned one, or the newest that is taken; None while there is none."""
        choice = self.choice()
        versions = reversed(self._versions(choice))
        if choice.pinned is not None:
            return next(version for version in versions if version.arrays_hash == choice.pinned.arrays_hash)
        return next((version for version in versions if version.state == "taken"), None)

    def require(self) -> AdapterVersion:
        """The adapter in use.

        Raises:
            ConfigError: There is none for this card.
        """
        version = self.in_use()
        if version is not None:
            return version
        if self.versions():
            raise ConfigError(
                f"{self._folder}: no adapter is taken, because adapters.accept='not-worse' and none was judged good "
                f"enough; run `flower-client adapters --judge --dir {self._directory.root}`, or choose one with --use."
            )
        raise ConfigError(f"{self._folder}: no adapter has come yet; run `flower-client start` until a round is over.")

    def newest(self, layout: Layout) -> tuple[int, Arrays]:
        """The adapter in use.

        Args:
            layout: What it must fit.

        Returns:
            After which round, and the arrays.

        Raises:
            ConfigError: There is none for this card, or the file is not the one that was stored.
            AdapterError: It does not fit.
        """
        version = self.require()
        try:
            return version.round, self.read(version, layout)
        except ConfigError:
            again = self.require()
            if again == version:
                raise
        # Another process chose, or stored one, between the two looks.
        return again.round, self.read(again, layout)

    def read(self, version: AdapterVersion, layout: Layout) -> Arrays:
        """The arrays of a stored adapter.

        Args:
            version: Of `versions`.
            layout: What it must fit.

        Returns:
            The arrays.

        Raises:
            ConfigError: The file is not the one that was stored.
            AdapterError: It does not fit.
        """
        _, arrays = self._read(version)
        check_arrays(arrays, layout)
        return arrays

    def use(self, number: int | None) -> AdapterVersion:
        """Choose the adapter that is used from now on; a running `serve` follows by itself.

        Args:
            number: After which round; None for the newest that is taken, now and later.

        Returns:
            The adapter in use.

        Raises:
            ConfigError: There is none of that round, or its file is not the one that was stored.
        """
        with self._held():
            there = {version.round: version for version in self.versions()}
            if number is not None and number not in there:
                rounds = ", ".join(map(str, there)) or "none"
                raise ConfigError(f"--use {number}: no adapter of that round is kept; there are those of: {rounds}.")
            self._decide(self.choice().model_copy(update={"pinned": None if number is None else there[number]}))
        return self.require()

    def mark(self, version: AdapterVersion, state: State) -> None:
        """Write down a judgement.

        Args:
            version: Of `versions`; to be "taken" it must be newer than what is.
            state: "taken" or "worse".

        Raises:
            ConfigError: The adapter's file is not the one that was stored.
        """
        with self._held():
            choice = self.choice()
            known = {one.arrays_hash for one in self.versions()} | {version.arrays_hash}
            judged = {name: found for name, found in choice.judged.items() if name in known}
            update: dict[str, object] = {"judged": {**judged, version.arrays_hash: state}}
            if state == "taken":
                update["taken"] = version
            self._decide(choice.model_copy(update=update))

    def _versions(self, choice: Choice) -> tuple[AdapterVersion, ...]:
        came = self._came()
        hashes = {version.arrays_hash for version in came}
        chosen = {one.arrays_hash: one for one in (choice.pinned, choice.taken) if one is not None}
        older = sorted(
            (one for name, one in chosen.items() if name not in hashes), key=lambda one: (one.round, one.received)
        )
        return tuple(
            version.model_copy(update={"state": choice.judged.get(version.arrays_hash, version.state)})
            for version in (*older, *came)
        )

    def _came(self) -> tuple[AdapterVersion, ...]:
        """The adapters of this card that the server sent and that are kept."""
        versions = self._directory.read_versions().versions
        return tuple(version for version in versions if version.card_hash == self._card_hash)

    def _write(self, came: tuple[AdapterVersion, ...]) -> None:
        """Write the list, then delete what is no longer on it: a kill between the two leaves a file too many.

        The newest that was taken as it came stays, however many wait after it: it may be the one in use.
        """
        taken = next((version for version in reversed(came) if version.state == "taken"), None)
        newest = came[-self._spec.keep :]
        kept = tuple(version for version in came if version in newest or version == taken)
        write_model(self._directory.versions, AdapterVersions(versions=kept))
        files = {version.file for version in kept}
        for old in self._folder.glob("round-*.safetensors"):
            if old.name not in files:
                old.unlink(missing_ok=True)

    def _decide(self, choice: Choice) -> None:
        """Copy what is chosen, replace the choice as one step, then delete what is chosen no longer."""
        for version in (choice.pinned, choice.taken):
            if version is not None and not self._copy(version).exists():
                path, _ = self._read(version)
                write_private(self._copy(version), path.read_bytes())
        write_model(self._choice, choice)
        wanted = {self._copy(version) for version in (choice.pinned, choice.taken) if version is not None}
        for old in self._copies.glob("*"):
            if old not in wanted:
                old.unlink(missing_ok=True)

    def _read(self, version: AdapterVersion) -> tuple[Path, Arrays]:
        for path in (self._copy(version), self._folder / version.file):
            try:
                arrays = read_arrays(path)
            except AdapterError:
                continue
            if arrays_hash(arrays) == version.arrays_hash:
                return path, arrays
        raise ConfigError(
            f"{self._folder / version.file}: is not the adapter that was received; restore it, or choose another one "
            "of `flower-client adapters`."
        )

    def _copy(self, version: AdapterVersion) -> Path:
        return self._copies / f"{version.arrays_hash}.safetensors"

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the choice: of two commands at the same time neither undoes the other's. `start` needs no hold."""
        self._folder.mkdir(exist_ok=True, mode=0o700)
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
