"""The adapters that came from the server, for the tenant's own use."""

from fedprofile.client.directory import LatestAdapter, TenantDirectory, write_model
from fedprofile.common.adapters import Layout, arrays_hash, check_arrays, read_arrays, write_arrays
from fedprofile.common.errors import ConfigError
from fedprofile.common.messages import Arrays

KEPT_ADAPTERS = 5


class AdapterFolder:
    """Adapters that the server sent, newest known, a few older ones kept.

    Args:
        directory: The tenant's.
        card_hash: Of the agreed card.
    """

    def __init__(self, directory: TenantDirectory, card_hash: str) -> None:
        self._directory, self._folder, self._card_hash = directory, directory.adapters, card_hash

    def keep(self, arrays: Arrays, number: int, final: bool = False) -> None:
        """Store an adapter, unless it is the untrained start or older than what is there.

        Args:
            arrays: Checked.
            number: After which round.
            final: Whether it is the run's result.
        """
        latest = self._directory.read_latest_adapter()
        if latest is not None and latest.card_hash == self._card_hash and latest.round > number:
            return
        digest = arrays_hash(arrays)
        if number < 1:
            return
        if latest is not None and (latest.arrays_hash, latest.round) == (digest, number) and latest.final >= final:
            return
        self._folder.mkdir(exist_ok=True, mode=0o700)
        name = f"round-{number:04d}.safetensors"
        write_arrays(self._folder / name, arrays)
        entry = LatestAdapter(round=number, card_hash=self._card_hash, file=name, arrays_hash=digest, final=final)
        write_model(self._folder / "latest.json", entry)
        for old in sorted(self._folder.glob("round-*.safetensors"))[:-KEPT_ADAPTERS]:
            if old.name != name:
                old.unlink(missing_ok=True)

    def has_final(self) -> bool:
        """Whether the run's result has come."""
        latest = self._directory.read_latest_adapter()
        return latest is not None and latest.card_hash == self._card_hash and latest.final

    def newest(self, layout: Layout) -> tuple[int, Arrays]:
        """The newest adapter.

        Args:
            layout: What it must fit.

        Returns:
            After which round, and the arrays.

        Raises:
            ConfigError: There is none for this card, or the file is not the one that was stored.
            AdapterError: It does not fit.
        """
        latest = self.require()
        arrays = read_arrays(self._folder / latest.file)
        if arrays_hash(arrays) != latest.arrays_hash:
            raise ConfigError(f"{self._folder / latest.file}: is not the adapter that was received; restore it.")
        check_arrays(arrays, layout)
        return latest.round, arrays

    def require(self) -> LatestAdapter:
        """The newest adapter's entry.

        Raises:
            ConfigError: There is none for this card.
        """
        latest = self._directory.read_latest_adapter()
        if latest is None or latest.card_hash != self._card_hash:
            raise ConfigError(
                f"{self._folder}: no adapter has come yet; run `flower-client start` until a round is over."
            )
        return latest
