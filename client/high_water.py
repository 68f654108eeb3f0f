"""How far the ledger had come at a tenant's last reservation, kept outside of the ledger's own file.

Why: a ledger that was restored from a backup has forgotten releases, and their budget would be spent twice. The server
can tell (its mark comes back with every request), but nobody has to trust it to. This file notices without it.

- Written durably after the reservation is committed and before anything is drawn for it. Sound, because nothing leaves
  that this file does not know of; and never a false alarm, because a crash between the two leaves it behind the ledger,
  never ahead.
- The ledger must hold exactly this entry, by number and hash; the chain then vouches for everything before it.
- It also holds the marks 1, 2, 4, 8 ... entries before. Where the ledger lacks the last one, the newest of these that
  it does hold bounds where the two histories parted, so that a write-off counts at most about twice what was lost.
- It costs one small durable write for each reservation, which pays for minutes of training.

Every tenant directory has its own, by population. Whoever restores directory and ledger together, from one backup, has
only the server's mark left.
"""

from pathlib import Path
from typing import Literal

from fedprofile.client.directory import read_model, write_model
from fedprofile.common.config import Frozen
from fedprofile.common.errors import ConfigError
from fedprofile.common.messages import LedgerMark, MessageError


class Marks(Frozen):
    """What is kept.

    Args:
        last: Of the last reservation that was made through this directory.
        earlier: Some marks before it, newest first.
        shown: The newest mark of the ledger's own entries that this directory's server has shown.
    """

    format: Literal[1] = 1
    last: LedgerMark
    earlier: tuple[LedgerMark, ...] = ()
    shown: LedgerMark = LedgerMark()


class HighWater:
    """The file of one population in a tenant's directory.

    Args:
        folder: Made at the first write.
        population: Its name.
    """

    def __init__(self, folder: Path, population: str) -> None:
        self._path = folder / f"{population}.json"

    def exists(self) -> bool:
        """Whether anything of the population was ever reserved through this directory."""
        return self._path.exists()

    def read(self) -> Marks | None:
        """What was kept, None before the first reservation.

        Raises:
            ConfigError: The file is not one of these.
        """
        if not self._path.exists():
            return None
        try:
            return read_model(self._path, Marks)
        except MessageError as error:
            raise ConfigError(f"{self._path}: {error}; restore it.") from None

    def write(self, marks: Marks) -> None:
        """Keep marks; when this returns, they are on the disk."""
        write_model(self._path, marks)
