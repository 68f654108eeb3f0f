"""What a running server keeps of its run: history, checkpoint, newest adapter, and `state/status.json`."""

import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fedprofile.common.card import FederationCard
from fedprofile.common.messages import Kind
from fedprofile.server.checkpoint import Checkpoint, dump_arrays
from fedprofile.server.directory import ServerDirectory
from fedprofile.server.enrolment import RosterEntry
from fedprofile.server.evaluation import headline
from fedprofile.server.files import json_bytes, write_atomically
from fedprofile.server.fleet import Fleet
from fedprofile.server.history import RoundRecord, append_line, read_lines
from fedprofile.server.status import tenant_as_dict

Say = Callable[[str], None]


@dataclass
class _Counts:
    answered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


class DirectoryJournal:
    """Keeps history, checkpoint, newest adapter and status in the server's directory.

    Args:
        directory: The server's.
        card: The federation card.
        checkpoint: Where the run stands.
        fleet: For traffic and who is online.
        entries: The roster.
        say: Takes plain lines for the operator.
    """

    def __init__(
        self,
        directory: ServerDirectory,
        card: FederationCard,
        checkpoint: Checkpoint,
        fleet: Fleet,
        entries: Callable[[], tuple[RosterEntry, ...]],
        say: Say,
    ) -> None:
        self._directory, self._card, self._fleet, self._entries, self._say = directory, card, fleet, entries, say
        self._lock = threading.Lock()
        self._state, self._note = "starting", ""
        self._round = checkpoint.round
        self._counts: dict[str, _Counts] = {}
        self._metrics: dict[str, Any] = {}
        self._metrics_round: int | None = None
        self._before = (0, 0)
        self._written = b""
        for line in read_lines(directory.history):
            self._count(line)
        for half_written in directory.state.glob(".*.part"):
            half_written.unlink(missing_ok=True)
        if checkpoint.round:
            # A server that was killed between the two files has left the adapter of the round before.
            self._write_adapter(checkpoint)

    def waiting(self, sentence: str) -> None:
        """See `Journal`."""
        self._say(sentence)
        self._set("waiting", sentence)

    def asking(self, kind: Kind, round_number: int, tenants: int) -> None:
        """See `Journal`."""
        verb = {Kind.TRAIN: "training", Kind.EVALUATE: "evaluating", Kind.DELIVER: "delivering"}[kind]
        self._set(verb, f"round {round_number}: {verb} with {tenants} tenants.")

    def answered(self, record: RoundRecord, checkpoint: Checkpoint) -> None:
        """History first, then the checkpoint that says how long the history is."""
        checkpoint.history_length = append_line(self._directory.history, record)
        checkpoint.write(self._directory.checkpoint)
        if record.kind is Kind.TRAIN:
            self._write_adapter(checkpoint)
        with self._lock:
            self._round = checkpoint.round
            self._count(record.as_dict())
        self._say(self._line(record))
        self.refresh()

    def traffic(self) -> tuple[int, int]:
        """See `Journal`."""
        return self._fleet.traffic.up, self._fleet.traffic.down

    def end(self, state: str) -> None:
        """The server ends: "finished", "stopped" or "failed"."""
        self._set(state, self._note if state == "failed" else "")

    def refresh(self) -> None:
        """Write the status where it changed."""
        with self._lock:
            content = json_bytes(self._status())
            if content == self._written:
                return
            self._written = content
            write_atomically(self._directory.status, content)

    def _write_adapter(self, checkpoint: Checkpoint) -> None:
        metadata = {"card_hash": checkpoint.card_hash, "round": str(checkpoint.round)}
        write_atomically(self._directory.adapter, dump_arrays(checkpoint.result, metadata))

    def _set(self, state: str, note: str) -> None:
        with self._lock:
            self._state, self._note = state, note
        self.refresh()

    def _count(self, line: dict[str, Any]) -> None:
        for name in line["tenants"]:
            self._of(name).answered += 1
        for refused in line["refused"]:
            self._of(refused["tenant"]).refused[refused["code"]] += 1
        for dropped in line["dropped"]:
            self._of(dropped["tenant"]).dropped[dropped["reason"]] += 1
        self._before = (self._before[0] + line["bytes_up"], self._before[1] + line["bytes_down"])
        if line["kind"] == "evaluate" and line["metrics"]:
            self._metrics, self._metrics_round = line["metrics"], line["round"]

    def _of(self, name: str) -> _Counts:
        return self._counts.setdefault(name, _Counts())

    def _status(self) -> dict[str, Any]:
        online = {node.name for node in self._fleet.state.get_node_info(node_ids=list(self._fleet.state.online()))}
        return {
            "federation": self._card.name,
            "card_hash": self._card.hash,
            "state": self._state,
            "note": self._note,
            "round": self._round,
            "rounds": self._card.training.rounds,
            "metrics_round": self._metrics_round,
            "metrics": self._metrics,
            "tenants": [self._tenant(entry, entry.name in online) for entry in self._entries()],
            "bytes_up": self._before[0],
            "bytes_down": self._before[1],
            "pid": os.getpid(),
        }

    def _tenant(self, entry: RosterEntry, online: bool) -> dict[str, Any]:
        counts = self._counts.get(entry.name, _Counts())
        return tenant_as_dict(entry) | {
            "online": online and entry.active,
            "answered": counts.answered,
            "refused": dict(counts.refused),
            "dropped": dict(counts.dropped),
        }

    def _line(self, record: RoundRecord) -> str:
        outcome = record.outcome
        parts = [f"round {record.round} {record.kind.name.lower()}: {len(outcome.answered)} tenants"]
        parts += [f"refused by {name} ({code})" for name, code in outcome.refused]
        parts += [f"dropped {dropped.name} ({dropped.reason})" for dropped in outcome.dropped]
        if record.kind is Kind.EVALUATE:
            name = headline(self._card.task)
            parts.append(f"{name} {outcome.metrics.get(name) or 'too few users to say'}")
        return ", ".join(parts) + f", {record.seconds:.1f} s"
