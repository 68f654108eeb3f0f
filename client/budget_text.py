"""The ledger for a person."""

from fedprofile.client.ledger import Ledger
from fedprofile.client.ledger_history import ONLY_CLAIMED
from fedprofile.client.ledger_summary import LedgerSummary, SegmentReading
from fedprofile.client.segments import SegmentPlan
from fedprofile.common.accounting import PrivacyLoss
from fedprofile.common.errors import printable


def budget_text(found: LedgerSummary) -> str:
    """The ledger for a person.

    Args:
        found: From `fedprofile.client.ledger_summary.summary`.

    Returns:
        Lines; every epsilon with what gives it a meaning.
    """
    lines = [
        f"Population {found.population}",
        f"  for life           {found.cap}",
        f"  left for new runs  {PrivacyLoss(found.left, found.left_delta)}",
        f"  spent so far       {found.spent}",
    ]
    lines += [
        f"  raised             {budget.time}, after release {budget.after_sequence}, to "
        f"{PrivacyLoss(budget.epsilon, budget.delta)}: {printable(budget.reason)}"
        for budget in found.budgets[1:]
    ]
    for reading in found.segments:
        lines += _segment_lines(reading)
    lines.append(f"Releases: {len(found.releases)}")
    lines += [
        f"  {entry.sequence:>5}  {entry.time}  run {entry.segment}  {entry.kind:8} round {entry.round:>4}  "
        f"sample rate {entry.sample_rate:g}, noise multiplier {entry.noise_multiplier:.4f}, steps {entry.steps}"
        + ("  (written off)" if entry.written_off else "")
        for entry in found.releases
    ]
    refused = ", ".join(f"{code} {count}" for code, count in found.refusals.items()) or "none"
    lines.append(f"Refused requests: {refused}")
    return "\n".join(lines)


def _segment_lines(reading: SegmentReading) -> list[str]:
    plan = reading.segment.plan
    return [
        f"Run {reading.segment.number}, opened {reading.segment.opened}, card {plan.card_hash[:12]}...",
        f"  cap                {PrivacyLoss(plan.epsilon, plan.delta)}",
        f"  training           {reading.train}",
        f"                     {reading.steps} of at most {plan.cap_steps} steps",
        f"  evaluation         {reading.evaluation}",
        f"                     {reading.tables} of at most {plan.cap_tables} tables, on other users than training",
    ]


def losses_text(ledger: Ledger, own: SegmentPlan) -> str:
    """What a write-off would count as spent, for a person.

    Args:
        ledger: Open, although it is behind.
        own: The directory's run.

    Returns:
        Lines.
    """
    lines = []
    if ledger.lacks_budget():
        lines.append("A budget that was known here is not in this ledger; from here on it counts as it is.")
    if not ledger.missing():
        return "\n".join(lines)
    if ledger.only_claimed():
        lines.append(ONLY_CLAIMED)
    lines += [
        f"Up to {ledger.missing()} entries of this ledger are missing. They may be of any run; counted as spent are:"
    ]
    if ledger.segment_of(own) is None:
        lines.append(f"  this directory's run, which is missing as well: epsilon={own.epsilon:g} (delta={own.delta:g})")
    lines += [
        f"  run {charge.segment.number}, card {charge.segment.plan.card_hash[:12]}...: {charge.kind}, "
        f"{charge.event.steps} steps, within its cap epsilon={charge.segment.plan.epsilon:g} "
        f"(delta={charge.segment.plan.delta:g})"
        for charge in ledger.losses()
    ]
    return "\n".join(lines)
