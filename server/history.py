"""One line for every question to all tenants: `state/history.jsonl`, and what it looks like in memory.

{"round", "kind", "started", "seconds", "tenants": [...], "dropped": [{"tenant", "reason"}],
 "refused": [{"tenant", "code"}], "metrics": {name: {"value", "low", "high"} | null}, "bytes_up", "bytes_down"}
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedprofile.common.errors import InputError
from fedprofile.common.messages import Kind
from fedprofile.server.evaluation import Metrics
from fedprofile.server.strategy import Outcome


@dataclass(frozen=True)
class RoundRecord:
    """One question and what became of it.

    Args:
        round: Which round.
        kind: What was asked.
        started: ISO 8601 time in UTC.
        seconds: Until the last reply counted.
        outcome: Who did what, and the metrics.
        bytes_up: From tenants, bodies of requests.
        bytes_down: To tenants.
    """

    round: int
    kind: Kind
    started: str
    seconds: float
    outcome: Outcome = field(default_factory=Outcome)
    bytes_up: int = 0
    bytes_down: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "round": self.round,
            "kind": self.kind.name.lower(),
            "started": self.started,
            "seconds": round(self.seconds, 3),
            "tenants": sorted(self.outcome.answered),
            "dropped": [{"tenant": dropped.name, "reason": dropped.reason} for dropped in self.outcome.dropped],
            "refused": [{"tenant": name, "code": code.value} for name, code in self.outcome.refused],
            "metrics": metrics_as_dict(self.outcome.metrics),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
        }


def metrics_as_dict(metrics: Metrics) -> dict[str, dict[str, float] | None]:
    """For JSON; null says that there are too few users to say."""
    return {
        name: None if interval is None else {"value": interval.value, "low": interval.low, "high": interval.high}
        for name, interval in metrics.items()
    }


def append_line(path: Path, record: RoundRecord) -> int:
    """Add a line and flush it to disk.

    Args:
        path: `history.jsonl`.
        record: The line.

    Returns:
        The file's length after it, for the checkpoint.
    """
    line = json.dumps(record.as_dict(), ensure_ascii=False, allow_nan=False) + "\n"
    with path.open("ab") as file:
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def cut_to(path: Path, length: int) -> None:
    """Drop what was written after the last checkpoint; that round is done again.

    Args:
        path: `history.jsonl`.
        length: As the checkpoint says.
    """
    if not path.exists():
        if length:
            raise InputError(f"{path}: is missing although rounds were run; restore it or start in a new directory.")
        return
    with path.open("r+b") as file:
        if file.seek(0, os.SEEK_END) > length:
            file.truncate(length)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of `history.jsonl`; a last line that is cut short by a crash is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)
