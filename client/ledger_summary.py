"""Reading a ledger: caps, what is spent, what is left. Works while another process writes.

`epsilon` is always a cap; `epsilon_spent`, `epsilon_train` and `epsilon_evaluation` are composed from the releases
with the segment's delta. Training and evaluation users are disjoint, so a segment has spent the larger of the two;
segments add. The guarantee is the sum of the caps; "spent" is a reading.
"""

import sqlite3
from dataclasses import asdict, dataclass
from pathlib import Path

from fedprofile.client.ledger_file import require_format
from fedprofile.client.ledger_rows import LedgerRows
from fedprofile.client.ledger_schema import (
    EVALUATE,
    TRAIN,
    Budget,
    Entry,
    Segment,
    accepted_marks,
)
from fedprofile.common.accounting import ACCOUNTED_SHARE, PrivacyLoss, compose
from fedprofile.common.errors import ConfigError
from fedprofile.common.messages import LedgerMark

Json = dict[str, object]


@dataclass(frozen=True)
class SegmentReading:
    """One segment and what its releases have spent.

    Args:
        segment: As opened.
        train: Composed over training users.
        evaluation: Composed over evaluation users.
        entries: Its releases.
    """

    segment: Segment
    train: PrivacyLoss
    evaluation: PrivacyLoss
    entries: tuple[Entry, ...]

    @property
    def steps(self) -> int:
        """Training steps reserved."""
        return sum(entry.steps for entry in self.entries if entry.kind == TRAIN)

    @property
    def tables(self) -> int:
        """Tables reserved."""
        return sum(entry.steps for entry in self.entries if entry.kind == EVALUATE)

    @property
    def spent(self) -> PrivacyLoss:
        """The larger of the two; nobody is in both."""
        return max(self.train, self.evaluation, key=lambda loss: loss.epsilon)

    def as_dict(self) -> Json:
        """For JSON."""
        plan = self.segment.plan
        return {
            "card": plan.card_hash,
            "epsilon": plan.epsilon,
            "delta": plan.delta,
            "epsilon_spent": self.spent.epsilon,
            "epsilon_train": self.train.epsilon,
            "epsilon_evaluation": self.evaluation.epsilon,
            "sample_rate": plan.sample_rate,
            "noise_multiplier": ACCOUNTED_SHARE * plan.noise_multiplier,
            "clip_norm": plan.clip_norm,
            "records_per_user": plan.records_per_user,
            "steps": self.steps,
            "cap_steps": plan.cap_steps,
            "evaluation_noise_multiplier": ACCOUNTED_SHARE * plan.evaluation_noise_multiplier,
            "tables": self.tables,
            "cap_tables": plan.cap_tables,
            "opened": self.segment.opened,
        }


@dataclass(frozen=True)
class LedgerSummary:
    """A ledger as a whole.

    Args:
        population: Its name.
        budgets: What the life's budget was, the one that counts last.
        segments: By number.
        releases: All entries, by sequence.
        payloads: SHA-256 of what was released, by sequence.
        refusals: How often a request was refused, by code.
        stored: Everything that its hashes cover, as it is stored.
        accepted: Marks of lost histories that were written off.
        chain_holds: Whether every row matches its hash and what stands before it.
    """

    population: str
    budgets: tuple[Budget, ...]
    segments: tuple[SegmentReading, ...]
    releases: tuple[Entry, ...]
    payloads: dict[int, str]
    refusals: dict[str, int]
    stored: LedgerRows
    accepted: frozenset[LedgerMark]
    chain_holds: bool

    @property
    def cap(self) -> PrivacyLoss:
        """The life's budget."""
        return PrivacyLoss(self.budgets[-1].epsilon, self.budgets[-1].delta)

    @property
    def spent(self) -> PrivacyLoss:
        """Over all releases; delta is that of the segments that have any."""
        used = [reading.spent for reading in self.segments if reading.steps or reading.tables]
        names = {loss.accountant for loss in used}
        accountant = "none" if not names else "prv" if names == {"prv"} else "rdp"
        return PrivacyLoss(sum(loss.epsilon for loss in used), sum(loss.delta for loss in used), accountant=accountant)

    @property
    def left(self) -> float:
        """Epsilon that new segments can still take of the life's budget."""
        return max(self.cap.epsilon - sum(reading.segment.plan.epsilon for reading in self.segments), 0.0)

    @property
    def left_delta(self) -> float:
        """Delta that new segments can still take of the life's budget."""
        return max(self.cap.delta - sum(reading.segment.plan.delta for reading in self.segments), 0.0)

    @property
    def left_in_segments(self) -> float:
        """Epsilon that the open segments hold and have not spent."""
        return sum(max(reading.segment.plan.epsilon - reading.spent.epsilon, 0.0) for reading in self.segments)

    def for_auditor(self) -> Json:
        """For a file that is shown to an auditor: everything of `as_dict`, and what the hash chain is checked with.

        Each release has its salt and what it vouches for, so that `fedprofile.client.ledger_chain.chained` gives its
        head from the one before; the auditor can compare the heads with those that the server has seen. `chains` has
        the rows of the other three, as they are hashed, and the population's hash, at which they start. It holds
        neither the key that splits the users nor anything of any user's. It does hold the time of every reservation,
        which the server must not learn.
        """
        releases = [
            {
                **row,
                "budget_head": entry.budget_head,
                "segment_head": entry.segment_head,
                "released_head": entry.released_head,
                "salt": entry.salt,
            }
            for row, entry in zip(self.rows(), self.releases, strict=True)
        ]
        chains = {
            "start": self.stored.population.hash,
            "budgets": [asdict(budget) for budget in self.budgets],
            "segments": [reading.segment.row for reading in self.segments],
            "released": [asdict(note) for note in self.stored.released],
        }
        return {
            "format": 2,
            "chain_holds": self.chain_holds,
            **self.as_dict(),
            "releases": releases,
            "chains": chains,
        }

    def as_dict(self) -> Json:
        """For JSON; the contract of `flower-client budget --json`."""
        return {
            "population": self.population,
            "epsilon": self.cap.epsilon,
            "delta": self.cap.delta,
            "unit": self.cap.unit,
            "adjacency": self.cap.adjacency,
            "model": self.cap.model,
            "accountant": self.cap.accountant,
            "left": self.left,
            "left_in_segments": self.left_in_segments,
            "epsilon_spent": self.spent.epsilon,
            "epsilon_train": sum(reading.train.epsilon for reading in self.segments),
            "epsilon_evaluation": sum(reading.evaluation.epsilon for reading in self.segments),
            "refused": sum(self.refusals.values()),
            "refusals": self.refusals,
            "budgets": [asdict(budget) for budget in self.budgets],
            "segments": [reading.as_dict() for reading in self.segments],
            "releases": self.rows(),
        }

    def rows(self) -> list[Json]:
        """Every release with the exact fields of its entry, for JSON."""
        return [
            {
                "sequence": entry.sequence,
                "segment": entry.segment,
                "kind": entry.kind,
                "round": entry.round,
                "sample_rate": entry.sample_rate,
                "noise_multiplier": entry.noise_multiplier,
                "steps": entry.steps,
                "time": entry.time,
                "written_off": entry.written_off,
                "question": entry.question,
                "payload": self.payloads.get(entry.sequence),
                "head": entry.head,
            }
            for entry in self.releases
        ]


def summary(path: Path) -> LedgerSummary:
    """Read a ledger.

    Args:
        path: Its file; nothing is changed in it.

    Returns:
        The summary.

    Raises:
        ConfigError: There is no ledger at `path`, or it is not one of this version.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: there is no ledger; 'flower-client join' opens it.")
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        # One transaction, so that a writer's entry between two of these queries is in all of them or in none.
        connection.execute("BEGIN")
        require_format(path, connection)
        stored = LedgerRows.read(connection)
        accepted = accepted_marks(connection)
        refusals = dict(connection.execute("SELECT code, count FROM refused ORDER BY code").fetchall())
    except (sqlite3.DatabaseError, TypeError) as error:
        raise ConfigError(f"{path}: is not a ledger of this version; restore it from a backup.") from error
    finally:
        connection.close()
    if not stored.budgets:
        raise ConfigError(f"{path}: holds no budget, so rows of it were deleted; restore it from a backup.")
    return LedgerSummary(
        population=stored.population.name,
        budgets=stored.budgets,
        segments=tuple(_reading(segment, stored.entries) for segment in stored.segments),
        releases=stored.entries,
        payloads={note.sequence: note.payload for note in stored.released},
        refusals=refusals,
        stored=stored,
        accepted=accepted,
        chain_holds=stored.hold,
    )


def _reading(segment: Segment, entries: tuple[Entry, ...]) -> SegmentReading:
    own = [entry for entry in entries if entry.segment == segment.number]
    train = [entry.event for entry in own if entry.kind == TRAIN]
    tables = [entry.event for entry in own if entry.kind == EVALUATE]
    return SegmentReading(
        segment=segment,
        train=compose(train, segment.plan.delta),
        evaluation=compose(tables, segment.plan.delta),
        entries=tuple(own),
    )
