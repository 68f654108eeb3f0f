"""What a tenant looks at before it agrees: its own data in numbers, and what the run would cost its users.

Everything here is computed from the data without noise. It is shown at the tenant and goes nowhere.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprofile.client.segments import SegmentPlan
from fedprofile.common.accounting import ACCOUNTED_SHARE, MechanismEvent, PrivacyLoss, compose
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError
from fedprofile.common.interactions import EncodedRecords

FAR_OFF = 0.2
"""A declared number of users further than this from the real one is worth a warning."""
UNKNOWN_ALLOWED = 0.2
"""A larger share of unknown tokens is refused: the model would learn next to nothing of such text."""
BINS, BAR = 8, 40
"""Of the plot of history lengths: how many bins, and the longest bar in characters."""
MILESTONES = 3
"""Parts of the run after which epsilon is worked out, besides the first round; each takes a second."""


@dataclass(frozen=True)
class Spread:
    """How something is spread over users or records."""

    median: float
    high: float
    """Nine of ten are at most this."""
    largest: int

    @classmethod
    def of(cls, values: NDArray[np.integer]) -> "Spread":
        """The spread of some counts; zeros where there are none."""
        if not len(values):
            return cls(0.0, 0.0, 0)
        return cls(float(np.median(values)), float(np.quantile(values, 0.9)), int(values.max()))

    def __str__(self) -> str:
        return f"median {self.median:g}, nine of ten at most {self.high:g}, largest {self.largest}"


@dataclass(frozen=True)
class Histogram:
    """How many records have how many tokens.

    Args:
        edges: Tokens; each bin is above the one before and up to the next.
        counts: Records in each bin.
    """

    edges: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, lengths: NDArray[np.integer], longest: int) -> "Histogram":
        """Count lengths in up to `BINS` bins of 0 to `longest` tokens."""
        edges = np.unique(np.linspace(0, longest, BINS + 1).round().astype(int))
        # Whole numbers on half edges, so that a bin holds its upper edge; the first holds 0 as well.
        counts, _ = np.histogram(lengths, bins=np.concatenate([[-0.5], edges[1:] + 0.5]))
        return cls(tuple(map(int, edges)), tuple(map(int, counts)))

    def lines(self) -> list[str]:
        """One bar a bin, for a terminal."""
        most = max(1, *self.counts)
        return [
            f"{low + 1:>5} to {high:<5} {'#' * math.ceil(BAR * count / most):<{BAR}} {count}"
            for low, high, count in zip(self.edges, self.edges[1:], self.counts, strict=False)
        ]


@dataclass(frozen=True)
class DataReading:
    """The tenant's data in numbers.

    Args:
        users: How many there really are.
        declared_users: What the tenant file says.
        records: Labelled rows.
        records_per_user: Over users.
        tokens: Tokens of a record's history, over records.
        lengths: The same as a histogram.
        full_histories: Share of records whose history fills the card's `max_tokens`, so that older events are cut.
        unknown_tokens: Share of tokens that the base model's tokenizer does not know.
        labels: Share of records by label; nothing for a ranking, whose candidates are too many.
        groups: Users by value of the group attribute, where the card has one.
        warnings: Sentences about what to look at again.
    """

    users: int
    declared_users: int
    records: int
    records_per_user: Spread
    tokens: Spread
    lengths: Histogram
    full_histories: float
    unknown_tokens: float
    labels: dict[str, float]
    groups: dict[str, int]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """What the run would cost.

    Args:
        cap: This federation's share.
        sample_rate: Probability with which a user enters a step.
        noise_multiplier: The accounted noise of a step over the clip norm.
        evaluation_noise: The accounted noise of one table.
        clip_norm: Largest norm of one user's part in a step.
        rounds: The card's.
        steps: Of all rounds together, with the spare ones.
        users_per_step: How many users enter a step on average, by the declared number.
        after: Epsilon after some numbers of rounds, with everything that gives it a meaning.
    """

    cap: PrivacyLoss
    sample_rate: float
    noise_multiplier: float
    evaluation_noise: float
    clip_norm: float
    rounds: int
    steps: int
    users_per_step: float
    after: dict[int, PrivacyLoss]


def read_data(
    records: EncodedRecords,
    *,
    card: FederationCard,
    declared_users: int,
    records_per_user: int,
    unknown_token: int | None,
) -> DataReading:
    """Count what is in the data.

    Args:
        records: Of the whole source.
        card: Labels, groups and lengths.
        declared_users: From the tenant file.
        records_per_user: m, the most records of a user that a step takes.
        unknown_token: The tokenizer's id for what it does not know, None where it has none.

    Returns:
        The reading.
    """
    first = slice(None, None, card.task.rows_per_record)
    per_user = np.bincount(records.user[first], minlength=len(records.users))
    lengths = np.array([len(tokens) for tokens in records.tokens], dtype=np.int64)
    unknown = sum(int((tokens == unknown_token).sum()) for tokens in records.tokens) if unknown_token is not None else 0
    labels = card.task.shares(records.labels[records.labelled], len(records))
    full = float((lengths >= card.history.max_tokens).mean()) if len(lengths) else 0.0
    reading = DataReading(
        users=len(records.users),
        declared_users=declared_users,
        records=len(records.user[first]),
        records_per_user=Spread.of(per_user),
        tokens=Spread.of(lengths),
        lengths=Histogram.of(lengths, card.history.max_tokens),
        full_histories=full,
        unknown_tokens=unknown / max(1, int(lengths.sum())),
        labels=labels,
        groups=_groups(records, card),
        warnings=(),
    )
    return DataReading(**{**vars(reading), "warnings": _warnings(reading, records_per_user)})


def require_known_words(data: DataReading, card: FederationCard) -> None:
    """Refuse a base model that does not know the language of the histories.

    Args:
        data: See `read_data`.
        card: Names the base.

    Raises:
        ConfigError: More than `UNKNOWN_ALLOWED` of the tokens are unknown.
    """
    if data.unknown_tokens > UNKNOWN_ALLOWED:
        raise ConfigError(
            f"more than {UNKNOWN_ALLOWED:.0%} of your histories' tokens are unknown to the base model "
            f"'{card.base.id}', which would learn next to nothing of them; ask the operator for a card with a base "
            "that knows your language: multilingual (intfloat/multilingual-e5-small, "
            "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2) or Chinese (BAAI/bge-small-zh-v1.5)."
        )


def forecast_cost(plan: SegmentPlan, *, declared_users: int, rounds: int) -> Cost:
    """Work out epsilon along the run.

    Args:
        plan: The run's mechanism.
        declared_users: From the tenant file.
        rounds: The card's.

    Returns:
        The cost; training's epsilon after up to `MILESTONES` numbers of rounds.
    """
    accounted = ACCOUNTED_SHARE * plan.noise_multiplier
    marks = sorted({max(1, round(rounds * part / MILESTONES)) for part in range(1, MILESTONES + 1)} | {1})
    after = {
        mark: compose([MechanismEvent(plan.sample_rate, accounted, mark * plan.local_steps)], plan.delta)
        for mark in marks
    }
    return Cost(
        cap=PrivacyLoss(plan.epsilon, plan.delta),
        sample_rate=plan.sample_rate,
        noise_multiplier=accounted,
        evaluation_noise=ACCOUNTED_SHARE * plan.evaluation_noise_multiplier,
        clip_norm=plan.clip_norm,
        rounds=rounds,
        steps=plan.cap_steps,
        users_per_step=plan.sample_rate * declared_users,
        after=after,
    )


def forecast_text(data: DataReading, cost: Cost) -> str:
    """Both for a person."""
    lines = [
        "Your data (exact, stays here):",
        f"  users            {data.users} (declared: {data.declared_users})",
        f"  records          {data.records}; per user: {data.records_per_user}",
        f"  history tokens   {data.tokens}; {data.full_histories:.0%} of the histories are cut at the old end",
        *(f"      {line}" for line in data.lengths.lines()),
        f"  unknown tokens   {data.unknown_tokens:.2%}",
    ]
    if data.labels:
        lines.append("  labels           " + ", ".join(f"{name} {share:.1%}" for name, share in data.labels.items()))
    if data.groups:
        lines.append("  users by group   " + ", ".join(f"{name} {count}" for name, count in data.groups.items()))
    lines += [f"  note: {warning}" for warning in data.warnings]
    lines += [
        "What this run costs your users:",
        f"  at most          {cost.cap}",
        f"  a training step  {cost.users_per_step:.1f} users on average (sample_rate {cost.sample_rate:g}), clip norm "
        f"{cost.clip_norm:g}, noise multiplier {cost.noise_multiplier:.3f}",
        f"  a metrics table  noise multiplier {cost.evaluation_noise:.3f}, on other users than training",
        f"  rounds           {cost.rounds}, at most {cost.steps} steps in all",
    ]
    for mark, loss in cost.after.items():
        lines.append(f"  after {mark:>4} round{'s' if mark > 1 else ' '}  {loss}")
    return "\n".join(lines)


def forecast_json(data: DataReading, cost: Cost) -> dict[str, Any]:
    """Both for a machine."""
    return {
        "data": asdict(data),
        "cost": {
            **{name: value for name, value in asdict(cost).items() if name not in ("cap", "after")},
            **cost.cap.as_dict(),
            "after_rounds": [{"rounds": mark, **loss.as_dict()} for mark, loss in cost.after.items()],
        },
    }


def _groups(records: EncodedRecords, card: FederationCard) -> dict[str, int]:
    if card.task.group is None:
        return {}
    first = np.zeros(len(records.users), dtype=np.int64)
    # Written backwards, so that each user's first record is the one that stays.
    first[records.user[::-1]] = records.groups[::-1]
    counts = np.bincount(first, minlength=len(card.task.group.all_values))
    return {name: int(count) for name, count in zip(card.task.group.all_values, counts, strict=True)}


def _warnings(data: DataReading, records_per_user: int) -> tuple[str, ...]:
    warnings = []
    if data.declared_users == data.users:
        warnings.append(
            "population.declared_users is the exact number of users, which would then be public; give a round number."
        )
    elif abs(data.declared_users - data.users) > FAR_OFF * data.users:
        warnings.append(
            "population.declared_users is more than 20 % off the real number; the update is then scaled wrongly."
        )
    if data.records_per_user.high > records_per_user:
        warnings.append(
            f"more than one in ten users have more records than privacy.records_per_user={records_per_user}; "
            "a step takes only so many of them, chosen at random."
        )
    if data.unknown_tokens > 0.05:
        warnings.append("the base model's tokenizer does not know many of your words; their text will say little.")
    if missing := [name for name, share in data.labels.items() if share == 0]:
        warnings.append(f"no record has the label {', '.join(missing)}.")
    return tuple(warnings)
