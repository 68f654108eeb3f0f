"""What a report says besides the results: how the experiment was made, what was promised, and what was attacked."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedprofile.common.accounting import PrivacyLoss


@dataclass(frozen=True)
class PartitionPicture:
    """How users are spread over tenants.

    Args:
        name: The partition, as in the results.
        labels: Tenant -> label -> users; None where the count is left out.
        groups: Group column -> tenant -> value -> users; None likewise.
    """

    name: str
    labels: Mapping[str, Mapping[str, int | None]]
    groups: Mapping[str, Mapping[str, Mapping[str, int | None]]] = field(default_factory=dict)


@dataclass(frozen=True)
class CellTime:
    """How long a cell took.

    Args:
        name: Of the cell.
        seconds: From its first to its last step.
    """

    name: str
    seconds: float


@dataclass(frozen=True)
class Spent:
    """What a tenant's ledger says after a cell.

    Args:
        asked: The cell's epsilon.
        tenant: Its name.
        loss: Spent, by the ledger.
    """

    asked: float
    tenant: str
    loss: PrivacyLoss


@dataclass(frozen=True)
class Composed:
    """The privacy loss of people who are at several tenants.

    Args:
        asked: The cell's epsilon.
        tenants: At how many each of these people is.
        people: How many they are; None where that is left out.
        loss: The largest that is composed for one of them.
    """

    asked: float
    tenants: int
    people: int | None
    loss: PrivacyLoss


@dataclass(frozen=True)
class AuditRow:
    """One attack on one training run.

    Args:
        attack: What was attacked and how, such as "one run, final adapter".
        claim: What the ledger promises; None where training drew no noise.
        canaries: How many were planted.
        guesses: How many were guessed at.
        correct: How many of the guesses were right.
        bound: The empirical lower bound on epsilon.
        confidence: Of the bound, such as 0.95.
        needed: Without noise: the bound that shows that the attack works.
        ceiling: The bound if every guess were right; a claim that is not below it cannot be refuted.
        judges: Whether the audit's outcome depends on it; otherwise it is shown beside.
        noise: The noise that was seen over the noise that is accounted for, and the ends of its interval; None where it
            cannot be read.
    """

    attack: str
    claim: PrivacyLoss | None
    canaries: int
    guesses: int
    correct: int
    bound: float
    confidence: float = 0.95
    needed: float = 1.0
    ceiling: float = math.inf
    judges: bool = True
    noise: tuple[float, float, float] | None = None

    @property
    def could_fail(self) -> bool:
        """Whether there is a claim that so many guesses could refute."""
        return self.claim is not None and self.claim.epsilon < self.ceiling

    @property
    def lacks_noise(self) -> bool:
        """Whether there is less noise than is accounted for."""
        return self.noise is not None and self.noise[2] < 1

    @property
    def holds(self) -> bool:
        """Whether bound and noise are in keeping with the claim or, without noise, whether the attack works."""
        if self.claim is None:
            return self.bound >= self.needed
        return self.bound <= self.claim.epsilon and not self.lacks_noise


@dataclass(frozen=True)
class MembershipRow:
    """One attack on real people: who of them took part?

    Args:
        attack: As of `AuditRow`.
        asked: The run's epsilon; infinite without noise.
        members: How many took part.
        others: How many did not.
        auc: Area under the ROC curve: value and ends of its 95 % interval; 0.5 is guessing.
        found: Rate of members found where 1 % of the others are accused: the same three.
    """

    attack: str
    asked: float
    members: int
    others: int
    auc: tuple[float, float, float]
    found: tuple[float, float, float]


@dataclass(frozen=True)
class KnownTruth:
    """A number of the known population's Bayes rule, in closed form; what was measured of it has the arm "bayes".

    Args:
        scope: "overall", "group", "intersection" or "gap"; this and the next four as in the results.
        column: Group column(s).
        group: Value(s) of it.
        metric: Such as "selection_rate".
        statistic: "value", "difference" or "ratio".
        value: The truth.
    """

    scope: str
    column: str
    group: str
    metric: str
    statistic: str
    value: float


@dataclass(frozen=True)
class ReportFacts:
    """See the module.

    Args:
        experiment: Its name.
        command: That runs it.
        dataset: Its name.
        real_data: Whether it is about real people.
        promise: What every epsilon of the experiment means; its own epsilon is not used. None where all is without
            noise.
        seeds: Of the cells.
        partitions: One picture for each partition.
        cells: All that were run.
        spent: One for each tenant and cell, or the largest of several cells.
        composed: Empty where nobody is at several tenants.
        audit: None where no audit is shown.
        membership: Of the same audit.
        truth: None where the population is not known.
        settings: Name -> value, as text.
        versions: Package -> version.
        machine: Name -> value, as text.
        caveats: Of this experiment, in sentences; those of every report are added.
    """

    experiment: str
    command: str
    dataset: str
    real_data: bool
    promise: PrivacyLoss | None
    seeds: tuple[int, ...] = ()
    partitions: tuple[PartitionPicture, ...] = ()
    cells: tuple[CellTime, ...] = ()
    spent: tuple[Spent, ...] = ()
    composed: tuple[Composed, ...] = ()
    audit: tuple[AuditRow, ...] | None = None
    membership: tuple[MembershipRow, ...] = ()
    truth: tuple[KnownTruth, ...] | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    caveats: tuple[str, ...] = ()

    @property
    def meaning(self) -> str:
        """What an epsilon means here, in the words that stand beside every one."""
        if self.promise is None:
            return ""
        promise = self.promise
        return (
            f"delta={promise.delta:g}, unit={promise.unit}, adjacency={promise.adjacency}, model={promise.model}, "
            f"accountant={promise.accountant}"
        )
