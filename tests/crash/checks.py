"""What must hold after every kill, checked against what the server has received.

under_counts    a payload without an entry of its sequence, kind and round in the ledger that records its hash; two
                payloads of one sequence; fewer entries than payloads; an entry that was there and is not any more; a
                ledger that says less is spent than the received payloads cost
paid_twice      a stored reply that was drawn, and paid for, anew, or that came back with other bytes
lost_rounds     a round that is not in the history, or is in it without a tenant
double_rounds   a round that is in the history twice
wrong_adapters  an adapter that is not the initial one plus the weighted means of the updates received in each round

A tenant may be missing from a round where it said `unavailable` because its disk was full or read-only.
"""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import safe_open
from tests.crash.arrivals import Arrival, ArrivalLog
from tests.crash.places import TENANTS, Places

from fedprofile.client.ledger_rows import LedgerRows
from fedprofile.client.ledger_schema import Entry
from fedprofile.client.ledger_summary import summary
from fedprofile.common.accounting import compose
from fedprofile.common.adapters import arrays_hash, read_arrays
from fedprofile.common.messages import Arrays
from fedprofile.server.checkpoint import Checkpoint, load_arrays, read_checkpoint
from fedprofile.server.enrolment import read_roster

Kind = Literal[
    "under_counts", "paid_twice", "lost_rounds", "double_rounds", "wrong_adapters",
    "unexpected_exits", "second_clients", "stalled",
]  # fmt: skip
"""The last three are found by the harness: a process that ended by itself without a fault of its disk, a second client
that was let into a directory, a run that does not go on."""

REFUSALS_OF_A_FAULT = 4
"""In so many rounds a tenant may be unavailable because of one fault of its disk."""


@dataclass(frozen=True)
class Problem:
    """Something that must not be."""

    kind: Kind
    sentence: str


class Checks:
    """Checks one federation, again and again; what it has seen once must stay.

    Args:
        places: Of the federation.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self._card = places.server.card()
        self._log = ArrivalLog(places.received)
        self._heads: dict[str, dict[int, str]] = {name: {} for name in TENANTS}
        self._stored: dict[tuple[str, str], tuple[int, str]] = {}
        self._problems: list[Problem] = []

    def run(self, faults: Mapping[str, int], *, costs: bool = False, end: bool = False) -> list[Problem]:
        """Check everything; processes may run meanwhile.

        Args:
            faults: Tenant -> how often its disk was full or read-only so far.
            costs: Also compare epsilons.
            end: The run is over: the history and the adapters must be whole.

        Returns:
            The problems.
        """
        self._problems = []
        # In this order: what has arrived by now is in what is read later.
        checkpoint = self._checkpoint()
        rounds = self._rounds(checkpoint, faults, end)
        arrivals = list(self._log.read())
        self._adapters(checkpoint, rounds, arrivals, end)
        for name in TENANTS:
            own = [arrival for arrival in arrivals if arrival.tenant == name and arrival.payload and arrival.sequence]
            own = [arrival for arrival in own if arrival.kind != "deliver"]
            stored = self._outbox(name)
            self._ledger(name, own, stored)
            if costs or end:
                self._costs(name, own)
        return self._problems

    @property
    def round(self) -> int:
        """How many rounds are done."""
        return self._checkpoint().round

    @property
    def progress(self) -> tuple[object, ...]:
        """Changes whenever the run has come further."""
        found = self._checkpoint()
        return found.round, len(found.evaluated), len(found.delivered), found.finished

    @property
    def delivered(self) -> list[str]:
        """Who has the final adapter, as far as the server knows."""
        return self._checkpoint().delivered

    def leftovers(self) -> int:
        """How many half-written files killed processes have left that nobody has removed."""
        return sum(path.name.endswith((".part", ".tmp")) for path in self._places.root.rglob("*"))

    def _say(self, kind: Kind, sentence: str) -> None:
        self._problems.append(Problem(kind, sentence))

    def _checkpoint(self) -> Checkpoint:
        found = read_checkpoint(self._places.server.checkpoint, self._card.hash, self._card.evaluation.patience)
        return found or Checkpoint(self._card.hash, self._initial())

    def _initial(self) -> Arrays:
        arrays, metadata = load_arrays(self._places.server.initial_adapter)
        return {name: arrays[name] for name in metadata["order"].split()}

    def _rounds(self, checkpoint: Checkpoint, faults: Mapping[str, int], end: bool) -> list[tuple[int, list[str]]]:
        """The training rounds of the history, each with the tenants that answered."""
        path = self._places.server.history
        content = path.read_bytes() if path.exists() else b""
        if len(content) < checkpoint.history_length:
            self._say("lost_rounds", "the history is shorter than the checkpoint says.")
        if end and len(content) > checkpoint.history_length:
            self._say("double_rounds", "the history is longer than the checkpoint says.")
        lines = [json.loads(line) for line in content[: checkpoint.history_length].splitlines()]
        trained = [line for line in lines if line["kind"] == "train" and line["tenants"]]
        numbers = [line["round"] for line in trained]
        for number in range(1, checkpoint.round + 1):
            if number not in numbers:
                self._say("lost_rounds", f"round {number} is not in the history.")
        for number in sorted(set(numbers)):
            if numbers.count(number) > 1 or number > checkpoint.round:
                self._say("double_rounds", f"round {number} is {numbers.count(number)} times in the history.")
        self._tenants(lines, faults)
        if end:
            wanted = self._card.training.rounds
            if checkpoint.round != wanted or checkpoint.finished != "rounds":
                self._say("lost_rounds", f"the run ended after round {checkpoint.round} of {wanted}.")
        return [(line["round"], line["tenants"]) for line in trained]

    def _tenants(self, lines: list[dict[str, Any]], faults: Mapping[str, int]) -> None:
        unavailable: defaultdict[str, int] = defaultdict(int)
        for line in lines:
            if line["kind"] != "train":
                continue
            said = {refused["tenant"]: refused["code"] for refused in line["refused"]}
            for name in set(TENANTS) - set(line["tenants"]):
                if said.get(name) == "unavailable":
                    unavailable[name] += 1
                else:
                    why = said.get(name) or [one["reason"] for one in line["dropped"] if one["tenant"] == name]
                    self._say("lost_rounds", f"round {line['round']} is without {name}: {why}.")
        for name, count in unavailable.items():
            if count > REFUSALS_OF_A_FAULT * faults.get(name, 0):
                self._say(
                    "lost_rounds", f"{name} was unavailable in {count} rounds, with {faults.get(name, 0)} faults."
                )

    def _adapters(
        self, checkpoint: Checkpoint, rounds: list[tuple[int, list[str]]], arrivals: list[Arrival], end: bool
    ) -> None:
        update = {(one.tenant, one.round): one.payload for one in arrivals if one.kind == "train" and one.payload}
        weights = {
            entry.name: entry.enrolled.declared_users
            for entry in read_roster(self._places.server.tenants).tenants
            if entry.enrolled is not None
        }
        arrays = self._initial()
        for number, names in rounds:
            found = {name: update.get((name, number)) for name in names}
            if None in found.values():
                self._say("wrong_adapters", f"round {number} counts an update that has not arrived.")
                return
            updates = {name: self._log.arrays(str(payload)) for name, payload in found.items()}
            arrays = {name: _moved(name, value, updates, weights) for name, value in arrays.items()}
        if not _close(arrays, checkpoint.arrays):
            self._say("wrong_adapters", f"after round {checkpoint.round} it is not what the updates add up to.")
        if end:
            self._copies(checkpoint)

    def _copies(self, checkpoint: Checkpoint) -> None:
        """What operator and tenants are left with."""
        newest, metadata = load_arrays(self._places.server.adapter)
        if int(metadata["round"]) != checkpoint.round or not _close(newest, checkpoint.arrays):
            self._say("wrong_adapters", f"the server's newest adapter is of round {metadata['round']}.")
        for name in TENANTS:
            place = self._places.tenant(name)
            latest = place.read_latest_adapter()
            if latest is None or not latest.final or latest.round != checkpoint.round:
                self._say("wrong_adapters", f"{name} does not have the final adapter.")
            elif arrays_hash(read_arrays(place.adapters / latest.file)) != arrays_hash(checkpoint.arrays):
                self._say("wrong_adapters", f"{name} has another final adapter.")

    def _outbox(self, name: str) -> dict[int, str]:
        """Sequence -> hash of the stored replies, which may not change any more."""
        found: dict[int, str] = {}
        for path in sorted(self._places.tenant(name).outbox.glob("*.safetensors")):
            with safe_open(path, framework="numpy") as stored:
                sequence = int(stored.metadata()["sequence"])
                digest = arrays_hash({key: stored.get_tensor(key) for key in stored.keys()})  # noqa: SIM118
            found[sequence] = digest
            before = self._stored.setdefault((name, path.name), (sequence, digest))
            if before != (sequence, digest):
                self._say("paid_twice", f"{name}: the stored reply {before[0]} was replaced by {sequence}.")
        return found

    def _ledger(self, name: str, arrivals: list[Arrival], stored: Mapping[int, str]) -> None:
        rows = _read_ledger(self._places.ledger(name))
        entries, payloads = rows.entries, {note.sequence: note.payload for note in rows.released}
        if not rows.hold:
            self._say("under_counts", f"{name}: the ledger's entries do not match their hashes.")
        heads = {entry.sequence: entry.head for entry in entries}
        for sequence, head in self._heads[name].items():
            if heads.get(sequence) != head:
                self._say("under_counts", f"{name}: entry {sequence} was in the ledger and is not any more.")
        self._heads[name] = heads
        self._payloads(name, {entry.sequence: entry for entry in entries}, payloads, arrivals)
        questions: defaultdict[tuple[str, int, str], list[int]] = defaultdict(list)
        for entry in entries:
            questions[entry.kind, entry.round, entry.question].append(entry.sequence)
        for (kind, number, _), sequences in questions.items():
            kept = [sequence for sequence in sequences if sequence in stored]
            if kept and max(sequences) > min(kept):
                self._say("paid_twice", f"{name}: {kind} of round {number} was stored as {kept[0]} and drawn anew.")
        for arrival in arrivals:
            if stored.get(arrival.sequence, arrival.payload) != arrival.payload:
                self._say("paid_twice", f"{name}: reply {arrival.sequence} is not the stored one.")

    def _payloads(
        self, name: str, entries: Mapping[int, Entry], payloads: Mapping[int, str], arrivals: list[Arrival]
    ) -> None:
        seen: dict[int, Arrival] = {}
        for arrival in arrivals:
            what = f"{name}: {arrival.kind} of round {arrival.round} as {arrival.sequence}"
            entry = entries.get(arrival.sequence)
            if entry is None or (entry.kind, entry.round) != (arrival.kind, arrival.round) or entry.written_off:
                self._say("under_counts", f"{what} has no entry.")
            elif payloads.get(arrival.sequence) != arrival.payload:
                self._say("under_counts", f"{what} is recorded with another payload, or with none.")
            first = seen.setdefault(arrival.sequence, arrival)
            if first.payload != arrival.payload:
                self._say("under_counts", f"{what} came with two payloads.")
            elif first.content != arrival.content:
                self._say("paid_twice", f"{what} came back with other bytes.")
        if len({arrival.payload for arrival in arrivals}) > len(entries):
            self._say("under_counts", f"{name}: more payloads than entries.")

    def _costs(self, name: str, arrivals: list[Arrival]) -> None:
        """What is spent by the ledger, against what the received payloads cost by the plan that was frozen at join."""
        plan = self._places.tenant(name).read_segment().plan
        [reading] = summary(self._places.ledger(name)).segments
        for kind, event, spent in (
            ("train", plan.train_event, reading.train),
            ("evaluate", plan.table_event, reading.evaluation),
        ):
            received = len({arrival.payload for arrival in arrivals if arrival.kind == kind})
            cost = compose([event] * received, plan.delta)
            if spent.epsilon < cost.epsilon * (1 - 1e-9):
                self._say("under_counts", f"{name}: {kind} has spent {spent} by the ledger, and received is {cost}.")


def _read_ledger(path: Path) -> LedgerRows:
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        connection.execute("BEGIN")
        return LedgerRows.read(connection)
    finally:
        connection.close()


def _moved(name: str, value: Any, updates: Mapping[str, Arrays], weights: Mapping[str, int]) -> Any:
    total = sum(weights[tenant] for tenant in updates)
    mean = sum(weights[tenant] / total * arrays[name].astype(np.float64) for tenant, arrays in updates.items())
    return (value.astype(np.float64) + mean).astype(np.float32)


def _close(one: Arrays, other: Arrays) -> bool:
    return set(one) == set(other) and all(np.allclose(one[name], other[name], rtol=1e-5, atol=1e-6) for name in one)
