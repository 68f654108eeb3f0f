"""The adapters that came from the server, for the tenant's own use: versions with their hashes, one of them in use.

Which one is used is the tenant's own business. Whether an adapter is stored, taken, judged or pinned changes nothing of
what is answered: replies are made from the request's own arrays, and nothing here is read on the way to one.
"""

from datetime import UTC, datetime

from fedprofile.client.directory import AdapterVersion, AdapterVersions, State, TenantDirectory, write_model
from fedprofile.common.adapters import Layout, arrays_hash, check_arrays, read_arrays, write_arrays
from fedprofile.common.errors import ConfigError
from fedprofile.common.messages import Arrays
from fedprofile.common.tenant import AdaptersSpec


class AdapterFolder:
    """Adapters that the server sent.

    Args:
        directory: The tenant's.
        card_hash: Of the agreed card.
        spec: The tenant file's `[adapters]`; it counts for those that come.
    """

    def __init__(self, directory: TenantDirectory, card_hash: str, spec: AdaptersSpec | None = None) -> None:
        self._directory, self._folder, self._card_hash = directory, directory.adapters, card_hash
        self._spec = spec or AdaptersSpec()

    def keep(self, arrays: Arrays, number: int, final: bool = False) -> None:
        """Store an adapter, unless it is the untrained start or older than what is there.

        Args:
            arrays: Checked.
            number: After which round.
            final: Whether it is the run's result.
        """
        known = self._directory.read_versions()
        latest = next(reversed(known.versions), None)
        if latest is not None and latest.card_hash == self._card_hash and latest.round > number:
            return
        digest = arrays_hash(arrays)
        if number < 1:
            return
        state: State = "waiting" if self._spec.accept == "not-worse" else "taken"
        if latest is not None and (latest.card_hash, latest.arrays_hash, latest.round) == (
            self._card_hash,
            digest,
            number,
        ):
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
        others = [version for version in known.versions if version.file != name]
        self._write(known.model_copy(update={"versions": (*others, entry)}))

    def has_final(self) -> bool:
        """Whether the run's result has come."""
        latest = self._directory.read_latest_adapter()
        return latest is not None and latest.card_hash == self._card_hash and latest.final

    def versions(self) -> tuple[AdapterVersion, ...]:
        """Those of this card, in the order in which they came."""
        return tuple(
            version for version in self._directory.read_versions().versions if version.card_hash == self._card_hash
        )

    def in_use(self) -> AdapterVersion | None:
        """The pinned one, or the newest that is taken; None while there is none."""
        return _in_use(self._directory.read_versions(), self._card_hash)

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
        return version.round, self.read(version, layout)

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
        arrays = read_arrays(self._folder / version.file)
        if arrays_hash(arrays) != version.arrays_hash:
            raise ConfigError(f"{self._folder / version.file}: is not the adapter that was received; restore it.")
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
        known = self._directory.read_versions()
        there = {version.round: version for version in self.versions()}
        if number is not None:
            if number not in there:
                rounds = ", ".join(map(str, there)) or "none"
                raise ConfigError(f"--use {number}: no adapter of that round is kept; there are those of: {rounds}.")
            path = self._folder / there[number].file
            if arrays_hash(read_arrays(path)) != there[number].arrays_hash:
                raise ConfigError(f"--use {number}: {path} is not the adapter that was received; restore it.")
        self._write(known.model_copy(update={"pinned": number}))
        return self.require()

    def mark(self, version: AdapterVersion, state: State) -> None:
        """Write down a judgement.

        Args:
            version: Of `versions`.
            state: "taken" or "worse".
        """
        known = self._directory.read_versions()
        marked = [
            one.model_copy(update={"state": state}) if one.arrays_hash == version.arrays_hash else one
            for one in known.versions
        ]
        self._write(known.model_copy(update={"versions": tuple(marked)}))

    def _write(self, known: AdapterVersions) -> None:
        """Write the list, then delete what is no longer on it: a kill between the two leaves a file too many."""
        used = _in_use(known, self._card_hash)
        newest = known.versions[-self._spec.keep :]
        kept = tuple(version for version in known.versions if version in newest or version == used)
        write_model(self._directory.versions, known.model_copy(update={"versions": kept}))
        files = {version.file for version in kept}
        for old in self._folder.glob("round-*.safetensors"):
            if old.name not in files:
                old.unlink(missing_ok=True)


def _in_use(known: AdapterVersions, card_hash: str) -> AdapterVersion | None:
    mine = [version for version in known.versions if version.card_hash == card_hash]
    if known.pinned is not None:
        pinned = next((version for version in mine if version.round == known.pinned), None)
        if pinned is not None:
            return pinned
    return next((version for version in reversed(mine) if version.state == "taken"), None)
