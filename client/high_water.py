"""How far the ledger had come at a tenant's last reservation, kept outside of the ledger's own file.

Why: a ledger that was restored from a backup has forgotten releases, and their budget would be spent twice. The server
can tell (its mark comes back with every request), but nobody has to trust it to. This file notices without it.

- Written durably after the reservation is committed and before anything is drawn for it. Sound, because nothing leaves
  that this file does not know of; and never a false alarm, because a crash between the two leaves it behind the ledger,
  never ahead.
- The ledger must hold exactly this entry, by number and hash; the chain then vouches for everything before it.
- It also holds the marks 1, 2, 4, 8 ... entries before. Where the ledger lacks the last one, the newest of these that
  it does hold bounds where the two histories parted, so that a write-off counts at most about twice what was lost.
- It costs two small durable writes for each reservation, which pays for minutes of training.
- It also holds the hash of the newest budget. A budget that was rewritten, or a raise that was taken out, is noticed by
  it before the next entry covers it.

Every tenant directory has one, by population, and so has the registry of the account, for all directories together: it
notices also where an old copy of the ledger is used through another directory, or through one that lost its own.
Whoever restores the ledger and both of these together, from one backup, has only the server's mark left.
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
        last: Of the last reservation that was made through this directory, or account; `LedgerMark()` before the first.
        earlier: Some marks before it, newest first.
        shown: The newest mark of the ledger's own entries that this directory's server has shown.
        budget: Hash of the newest budget, see `fedprofile.client.ledger_schema.Budget`; empty where it is not known.
    """

    format: Literal[1] = 1
    last: LedgerMark
    earlier: tuple[LedgerMark, ...] = ()
    shown: LedgerMark = LedgerMark()
    budget: str = ""


class HighWater:
    """The file of one population in a tenant's directory, or beside the registry.

    Args:
        folder: Made at the first write.
        population: Its name.
        account: Whether it is the account's. Several servers may be behind it, so that what one of them has shown is
            not kept in it.
    """

    def __init__(self, folder: Path, population: str, *, account: bool = False) -> None:
        self._path = folder / f"{population}.json"
        self.account = account

    def __str__(self) -> str:
        """Who made the reservations."""
        return "a directory of this account" if self.account else "this directory"

    def exists(self) -> bool:
        """Whether the population's ledger was ever opened here."""
        return self._path.exists()

    def read(self) -> Marks | None:
        """What was kept, None before the ledger was first opened here.

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


def high_waters(population: str, directory: Path | None, account: Path | None) -> list[HighWater]:
    """The marks to compare a ledger with.

    Args:
        population: Its name.
        directory: Folder of a tenant directory's; None for none.
        account: Folder of those beside the registry; None for none.
    """
    found = [] if directory is None else [HighWater(directory, population)]
    return found if account is None else [*found, HighWater(account, population, account=True)]
