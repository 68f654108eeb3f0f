"""The ledger recomputed: chains, marks, caps, every release against its run, and every epsilon by a second accountant
that shares no code with the first.

The ledger's own numbers are Opacus's PRV. The second ones are privacy loss distributions (Koskela et al. 2020,
https://arxiv.org/abs/1906.03049) by Google's dp-accounting; both are upper bounds, so the second must not be above the
first by more than what discretisation explains. RDP would say little here: it is far looser, so that a mistake of the
first would hide below it.

dp-accounting is not installed with the client: nothing that trains or releases needs it, and each package beside the
data is one more to trust. Whoever verifies installs it, here or on another machine that holds a copy of the ledger.
"""

import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from fedprofile.client.high_water import Marks
from fedprofile.client.ledger_schema import EVALUATE, TRAIN
from fedprofile.client.ledger_summary import Json, LedgerSummary, SegmentReading
from fedprofile.common.accounting import MechanismEvent
from fedprofile.common.errors import ConfigError
from fedprofile.common.messages import LedgerMark

SLACK = 1e-3
"""By what share of the first value the second may be above it: both are bounds that are computed on grids."""


@dataclass(frozen=True)
class Comparison:
    """One epsilon by both accountants, at user level, add or remove one user, local.

    Args:
        segment: Number of the run.
        kind: "train" or "evaluate".
        what: "cap" for all that the run may ever release, "spent" for what it has released.
        epsilon: What is promised or told.
        second: The second accountant's value for the same events.
        delta: At which.
    """

    segment: int
    kind: str
    what: str
    epsilon: float
    second: float
    delta: float

    @property
    def holds(self) -> bool:
        """Whether the second does not contradict the first."""
        return self.second <= self.epsilon * (1 + SLACK)


@dataclass(frozen=True)
class Verification:
    """A ledger recomputed.

    Args:
        comparisons: Each epsilon twice.
        problems: One sentence each; empty where the ledger holds.
    """

    comparisons: tuple[Comparison, ...]
    problems: tuple[str, ...]

    def as_text(self) -> str:
        """For a person."""
        lines = ["Recomputed by dp-accounting (PLD), unit=user, adjacency=add-or-remove-one, model=local:"]
        lines += [
            f"  run {one.segment}  {one.kind:8} {one.what:5}  epsilon={one.epsilon:.4g} (prv), {one.second:.4g} (pld), "
            f"delta={one.delta:g}"
            for one in self.comparisons
        ]
        lines += [f"  PROBLEM: {problem}" for problem in self.problems] or [
            "The ledger holds: chains, marks, caps, releases and epsilons."
        ]
        return "\n".join(lines)

    def as_dict(self) -> Json:
        """For a machine."""
        return {
            "holds": not self.problems,
            "accountants": ["prv", "pld"],
            "comparisons": [{**asdict(one), "holds": one.holds} for one in self.comparisons],
            "problems": list(self.problems),
        }


def verify(found: LedgerSummary, marks: Iterable[Marks] = ()) -> Verification:
    """Recompute a ledger.

    Args:
        found: From `fedprofile.client.ledger_summary.summary`.
        marks: What the directory and the account remember of it, read before the ledger where a client runs.

    Returns:
        The verification.

    Raises:
        ConfigError: dp-accounting is not installed.
    """
    comparisons = [one for reading in found.segments for one in _compare(reading)]
    problems = [] if found.chain_holds else ["the entries do not match their hashes"]
    plans = [reading.segment.plan for reading in found.segments]
    for name, taken, life in (
        ("epsilon", sum(plan.epsilon for plan in plans), found.cap.epsilon),
        ("delta", sum(plan.delta for plan in plans), found.cap.delta),
    ):
        if taken > life * (1 + SLACK):
            problems.append(f"the runs' caps come to {name}={taken:g}, above the life's {life:g}")
    problems += _unknown(found, marks)
    for reading in found.segments:
        plan, number = reading.segment.plan, reading.segment.number
        if reading.steps > plan.cap_steps or reading.tables > plan.cap_tables:
            problems.append(f"run {number} has more steps or tables than its caps")
        for kind, spent in ((TRAIN, reading.train), (EVALUATE, reading.evaluation)):
            if spent.epsilon > plan.epsilon * (1 + SLACK):
                problems.append(
                    f"run {number}, {kind}, has spent epsilon={spent.epsilon:.6g}, above its cap {plan.epsilon:g} "
                    f"(delta={plan.delta:g})"
                )
    problems += _strange_releases(found)
    problems += [
        f"{one.what} of run {one.segment}, {one.kind}: epsilon={one.epsilon:.6g}, and the second accountant finds "
        f"{one.second:.6g} (delta={one.delta:g})"
        for one in comparisons
        if not one.holds
    ]
    return Verification(tuple(comparisons), tuple(problems))


def _unknown(found: LedgerSummary, marks: Iterable[Marks]) -> list[str]:
    """What is known of the ledger outside of it, and not in it."""
    held = {LedgerMark(), *(LedgerMark(entry.sequence, entry.head) for entry in found.releases), *found.accepted}
    problems = []
    for kept in marks:
        if kept.last not in held:
            problems.append(f"release {kept.last.sequence}, which was reserved here, is another one or not there")
        if kept.budget and kept.budget not in {budget.head for budget in found.budgets}:
            problems.append("a budget that was known here is another one or not there")
    return list(dict.fromkeys(problems))


def _strange_releases(found: LedgerSummary) -> list[str]:
    """Releases that no run's mechanism explains."""
    plans = {reading.segment.number: reading.segment.plan for reading in found.segments}
    problems = []
    for entry in found.releases:
        plan = plans.get(entry.segment)
        if plan is None:
            problems.append(f"release {entry.sequence} is of run {entry.segment}, which is not there")
            continue
        if entry.kind not in (TRAIN, EVALUATE):
            problems.append(f"release {entry.sequence} is of a kind that no run has")
            continue
        event = plan.train_event if entry.kind == TRAIN else plan.table_event
        # A write-off stands for several releases, or for what a cap had left.
        wanted = MechanismEvent(
            event.sample_rate, event.noise_multiplier, entry.steps if entry.written_off else event.steps
        )
        if entry.event != wanted or entry.steps < 1:
            problems.append(
                f"release {entry.sequence} has another sample rate, noise or steps than run {entry.segment}"
            )
    return problems


def second_epsilon(events: Iterable[MechanismEvent], delta: float) -> float:
    """Epsilon of all events together by privacy loss distributions.

    Args:
        events: In any order.
        delta: For which epsilon is asked.

    Returns:
        An upper bound; 0 where there is no event.

    Raises:
        ConfigError: dp-accounting is not installed.
    """
    try:
        from dp_accounting import dp_event
        from dp_accounting.pld import pld_privacy_accountant
        from dp_accounting.privacy_accountant import NeighboringRelation
    except ImportError:
        raise ConfigError(
            "budget --verify needs a second accountant: install it with `pip install 'dp-accounting>=0.6,<0.7'`, here "
            "or where a copy of the ledger is verified."
        ) from None
    accountant = pld_privacy_accountant.PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    for event in events:
        mechanism = dp_event.GaussianDpEvent(event.noise_multiplier)
        if event.sample_rate < 1:
            mechanism = dp_event.PoissonSampledDpEvent(event.sample_rate, mechanism)
        accountant.compose(mechanism, event.steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta))


def _compare(reading: SegmentReading) -> list[Comparison]:
    plan, number = reading.segment.plan, reading.segment.number
    found = []
    for kind, event, cap, spent in (
        (TRAIN, plan.train_event, plan.cap_steps, reading.train),
        (EVALUATE, plan.table_event, plan.cap_tables, reading.evaluation),
    ):
        if not cap:
            continue
        most = MechanismEvent(event.sample_rate, event.noise_multiplier, cap)
        found.append(Comparison(number, kind, "cap", plan.epsilon, second_epsilon([most], plan.delta), plan.delta))
        released = [entry.event for entry in reading.entries if entry.kind == kind]
        second = second_epsilon(released, plan.delta)
        found.append(Comparison(number, kind, "spent", spent.epsilon, second, plan.delta))
    return found
