"""Where the run stands, in one file that is replaced as one step after every round.

One safetensors file holds the global adapter, those of the rounds before where they are averaged, the server
optimiser's state and, as its metadata, everything else: the round, which evaluations are done, each tenant's ledger
mark, early stopping, and how long the history was. There is no random state to keep: the server draws nothing. A killed
server begins the round anew that it was in; tenants that had finished it answer from their outbox, byte for byte and at
no cost.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from fedprofile.common.errors import InputError
from fedprofile.common.evaluation_tables import Interval
from fedprofile.common.messages import Arrays, LedgerMark
from fedprofile.server.evaluation import EarlyStopping
from fedprofile.server.files import write_atomically

FORMAT = 1
_ADAPTER, _OPTIMIZER, _RECENT = "adapter/", "optimizer/", "recent/"


@dataclass
class Checkpoint:
    """Where a run stands.

    Args:
        card_hash: Of the federation; a checkpoint of another card is refused.
        arrays: The global adapter.
        round: How many training rounds are done.
        evaluated: After which rounds tables were asked for.
        optimizer: See `StreamingFedAvg.optimizer_state`.
        marks: Tenant -> how far its ledger was seen to have come.
        stopping: Early stopping.
        finished: Why the run is over; empty while it is not.
        delivered: Who has the final adapter.
        history_length: Bytes of the history that belong to it.
        recent: The adapters after the last rounds, the newest last, where more than one is averaged.
    """

    card_hash: str
    arrays: Arrays
    round: int = 0
    evaluated: list[int] = field(default_factory=list)
    optimizer: Arrays = field(default_factory=dict)
    marks: dict[str, LedgerMark] = field(default_factory=dict)
    stopping: EarlyStopping = field(default_factory=lambda: EarlyStopping(0))
    finished: str = ""
    delivered: list[str] = field(default_factory=list)
    history_length: int = 0
    recent: list[Arrays] = field(default_factory=list)

    def advance(self, arrays: Arrays, keep: int) -> None:
        """One more round is done.

        Args:
            arrays: The global adapter after it.
            keep: The card's `average_last`.
        """
        self.arrays, self.round = arrays, self.round + 1
        self.recent = [*self.recent, arrays][-keep:] if keep > 1 else []

    @property
    def result(self) -> Arrays:
        """What is evaluated, delivered and exported: the mean over `recent` of each array, else the global adapter.

        Each array is averaged by itself. With B alone trained that is the mean of the adapters' effects, too; where A
        and B are, it is not, but a point between them.
        """
        if not self.recent:
            return self.arrays
        means = {name: np.mean([arrays[name] for arrays in self.recent], axis=0, dtype=float) for name in self.arrays}
        return {name: means[name].astype(value.dtype) for name, value in self.arrays.items()}

    def write(self, path: Path) -> None:
        """Replace the file."""
        best = self.stopping.best
        rest = {
            "format": FORMAT,
            "card_hash": self.card_hash,
            "round": self.round,
            "evaluated": self.evaluated,
            "marks": {name: [mark.sequence, mark.head] for name, mark in self.marks.items()},
            "best": None if best is None else [best.value, best.low, best.high],
            "waited": self.stopping.waited,
            "finished": self.finished,
            "delivered": self.delivered,
            "history_length": self.history_length,
            "order": list(self.arrays),
            "recent": len(self.recent),
        }
        tensors = {f"{_ADAPTER}{name}": value for name, value in self.arrays.items()}
        tensors |= {f"{_OPTIMIZER}{name}": value for name, value in self.optimizer.items()}
        for place, arrays in enumerate(self.recent):
            tensors |= {f"{_RECENT}{place}/{name}": value for name, value in arrays.items()}
        write_atomically(path, dump_arrays(tensors, {"fedprofile": json.dumps(rest)}), 0o600)


def read_checkpoint(path: Path, card_hash: str, patience: int) -> Checkpoint | None:
    """Read where the run stands.

    Args:
        path: The file.
        card_hash: Of the federation card.
        patience: The card's, for early stopping.

    Returns:
        The checkpoint, or None where there is none yet.

    Raises:
        InputError: The file is damaged or belongs to another card.
    """
    if not path.exists():
        return None
    try:
        tensors, metadata = load_arrays(path)
        rest: dict[str, Any] = json.loads(metadata["fedprofile"])
        if rest["format"] != FORMAT:
            raise ValueError(rest["format"])
        arrays = {name: tensors[f"{_ADAPTER}{name}"] for name in rest["order"]}
        best = None if rest["best"] is None else Interval(*rest["best"])
        checkpoint = Checkpoint(
            card_hash=rest["card_hash"],
            arrays=arrays,
            round=rest["round"],
            evaluated=rest["evaluated"],
            optimizer={
                name.removeprefix(_OPTIMIZER): value for name, value in tensors.items() if name.startswith(_OPTIMIZER)
            },
            marks={name: LedgerMark(*mark) for name, mark in rest["marks"].items()},
            stopping=EarlyStopping(patience, best, rest["waited"]),
            finished=rest["finished"],
            delivered=rest["delivered"],
            history_length=rest["history_length"],
            recent=[
                {name: tensors[f"{_RECENT}{place}/{name}"] for name in rest["order"]} for place in range(rest["recent"])
            ],
        )
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: is damaged; restore the state folder from a backup.") from error
    if checkpoint.card_hash != card_hash:
        raise InputError(
            f"{path}: belongs to card {checkpoint.card_hash[:12]}..., federation.toml is now {card_hash[:12]}...; "
            "put federation.toml back, or run the changed card in a new directory."
        )
    return checkpoint


def dump_arrays(arrays: Arrays, metadata: dict[str, str]) -> bytes:
    """Arrays in the safetensors format."""
    return safetensors.numpy.save({name: np.ascontiguousarray(value) for name, value in arrays.items()}, metadata)


def load_arrays(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Arrays and metadata of a safetensors file.

    Raises:
        OSError: The file cannot be read.
        safetensors.SafetensorError: It is not of that format.
    """
    with safetensors.safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
