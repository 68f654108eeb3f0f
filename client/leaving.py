"""`flower-client leave`: what a tenant's directory no longer needs once it takes no further part.

The ledger and the registry stay. What left this site has left it, and a population that joins again, here or in another
federation, goes on from the epsilon that it has spent; `marks/` stays as well, because it tells a restored ledger from
the newest one. The server is not told: it sees a tenant that no longer asks.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedprofile.client.directory import TenantDirectory
from fedprofile.common.errors import ConfigError

QUESTION = (
    "Leave for good? The key is deleted, so that this directory can answer nothing more; to come back you need a new "
    "invite. The ledger stays, and with it what your users' data has spent."
)


@dataclass(frozen=True)
class Left:
    """What was done.

    Args:
        removed: Names in the directory that are gone.
        ledger: Where the ledger stays.
        adapters: Whether `predict` still works.
    """

    removed: tuple[str, ...]
    ledger: Path
    adapters: bool

    def as_text(self) -> str:
        """For a person."""
        still = (
            "The adapters stay, and `predict`, `explain` and `serve` go on with them."
            if self.adapters
            else "The adapters are deleted as well; a `serve` that runs has one in memory until it is ended."
        )
        return (
            f"Left. Deleted: {', '.join(self.removed) or 'nothing, there was nothing'}. {still}\n"
            f"The ledger {self.ledger} stays: it is the only proof of what was spent, and a new join goes on from it. "
            "The server is not told; tell its operator, who can revoke the key."
        )

    def as_dict(self) -> dict[str, Any]:
        """For a machine."""
        return {"removed": list(self.removed), "ledger": str(self.ledger), "adapters": self.adapters}


def leave_federation(directory: TenantDirectory, *, keep_adapters: bool) -> Left:
    """Delete the key and everything that was made on the way, unless `start` runs.

    Args:
        directory: The tenant's, which has joined.
        keep_adapters: Keep what is needed to predict.

    Returns:
        What was done. Doing it again does nothing.

    Raises:
        ConfigError: It has not joined, `start` runs on it, something is a link, or cannot be deleted.
    """
    ledger = directory.ledger_path(directory.read_segment().ledger)
    # The key first: whatever comes in between, nothing is answered any more.
    gone = [directory.key, directory.node, directory.journal, directory.outbox, directory.cache, directory.snapshot]
    gone += [directory.new_invite] if keep_adapters else [directory.new_invite, directory.adapters]
    removed: list[str] = []
    if links := [path for path in gone if path.is_symlink()]:
        # What a link leads to may hold other things as well, which a person must look at.
        raise ConfigError(
            f"{links[0]}: is a link; delete what it leads to ({links[0].resolve()}) and the link, then run `leave` "
            "again."
        )
    with directory.running():
        for path in gone:
            if not path.exists():
                continue
            try:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            except OSError as error:
                raise ConfigError(
                    f"{path}: cannot be deleted ({error.strerror}); mend that and run `leave` again. Before it went: "
                    f"{', '.join(removed) or 'nothing'}."
                ) from error
            removed.append(path.name)
    return Left(tuple(removed), ledger, keep_adapters)
