"""What `check` and `join` show: the data and the policy validated, histories as the model sees them, the forecast."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fedprofile.client.directory import TenantDirectory
from fedprofile.client.forecast import (
    Cost,
    DataReading,
    forecast_cost,
    forecast_json,
    forecast_text,
    read_data,
    require_known_words,
)
from fedprofile.client.ledger_summary import LedgerSummary, summary
from fedprofile.client.segments import SegmentPlan, plan_segment
from fedprofile.client.sources import read_examples
from fedprofile.common.accounting import PrivacyLoss
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import BudgetRefusal, PolicyRefusal, printable
from fedprofile.common.interactions import encode
from fedprofile.common.tenant import TenantFile

SHOWN = 3
"""Histories that are shown."""
_TOLERANCE = 1 + 1e-9
"""For adding shares such as 0.1 in floating point."""


@dataclass(frozen=True)
class Preview:
    """A look at a run before it is agreed to.

    Args:
        card: The federation's.
        plan: The run's mechanism.
        data: The tenant's data in numbers.
        cost: What the run would cost.
        histories: Some records' text as the model sees it, cut to the card's length.
        life: What the life's budget still allows once this run is charged.
    """

    card: FederationCard
    plan: SegmentPlan
    data: DataReading
    cost: Cost
    histories: tuple[str, ...]
    life: "Life"

    def as_text(self) -> str:
        """For a person."""
        lines = ["Histories as the model sees them (yours, stay here):"]
        lines += [f"  {number}. {printable(text)}" for number, text in enumerate(self.histories, start=1)]
        lines.append(forecast_text(self.data, self.cost))
        runs = f"{self.life.more_runs} more run{'' if self.life.more_runs == 1 else 's'} like this one"
        lines.append(f"  left for life    {self.life.left}, with this run charged: {runs}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """For a machine; without the histories."""
        life = {**self.life.left.as_dict(), "more_runs": self.life.more_runs}
        return {"card": self.card.hash, **forecast_json(self.data, self.cost), "left_for_life": life}


@dataclass(frozen=True)
class Life:
    """What the population's budget still allows.

    Args:
        left: Not taken by any run, this one among them.
        more_runs: How many further runs, or trainings anew, with this run's share fit into it.
    """

    left: PrivacyLoss
    more_runs: int


def preview(directory: TenantDirectory, card: FederationCard, tenant: TenantFile) -> Preview:
    """Validate data and policy and work out what a run would cost. Writes nothing and sends nothing.

    Args:
        directory: The tenant's.
        card: The federation's.
        tenant: The tenant file.

    Returns:
        The preview.

    Raises:
        DataError: The source cannot be read, or rows are wrong; see `read_examples`.
        ConfigError: The base model is missing, another one, does not know the histories' language, or its tokenizer
            fails at a text; or tenant.toml names a column that is not there.
        PolicyRefusal: The card asks for a protected column, the users' ids or the label, it is beyond what the tenant
            allows otherwise, or the promise is weaker than the card allows.
        BudgetRefusal: The share does not fit into what is left of the life's budget.
    """
    until = tenant.policy.until
    if until is not None and until < datetime.now(UTC).date():
        raise PolicyRefusal(f"policy.until={until} is over: nothing would be answered; set a later day.")
    examples = read_examples(tenant, card, directory.root)
    # Imported late: a wrong row is said at once, not after the seconds that these take.
    from transformers import AutoTokenizer

    from fedprofile.common.modeling.base import resolve_base

    files = resolve_base(card.base, directory.root / tenant.base.path if tenant.base else None)
    tokenizer = AutoTokenizer.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
    records = encode(examples, card, tokenizer)
    data = read_data(
        records,
        card=card,
        declared_users=tenant.population.declared_users,
        records_per_user=tenant.privacy.records_per_user,
        unknown_token=tokenizer.unk_token_id,
    )
    require_known_words(data, card)
    plan = plan_segment(card, tenant)
    return Preview(
        card=card,
        plan=plan,
        data=data,
        cost=forecast_cost(plan, declared_users=tenant.population.declared_users, rounds=card.training.rounds),
        histories=tuple(str(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in records.tokens[:SHOWN]),
        life=_life(directory, tenant, plan),
    )


def _life(directory: TenantDirectory, tenant: TenantFile, plan: SegmentPlan) -> Life:
    population, path = tenant.population, directory.ledger_of(tenant)
    epsilon, delta, opened = tenant.budget.epsilon, tenant.life_delta, False
    if path.exists():
        found: LedgerSummary = summary(path)
        epsilon, delta = found.left, found.left_delta
        opened = any(reading.segment.plan.settings == plan.settings for reading in found.segments)
        if not opened and plan.epsilon > found.left * _TOLERANCE:
            raise BudgetRefusal(
                f"run.epsilon={plan.epsilon:g} (delta={plan.delta:g}) is more than the epsilon {found.left:g} that is "
                f"left of population '{population.name}' ({found.cap} for life); lower the run's share, or leave the "
                "run."
            )
    if not opened:
        epsilon, delta = max(0.0, epsilon - plan.epsilon), max(0.0, delta - plan.delta)
    more = min(epsilon / plan.epsilon, delta / plan.delta) * _TOLERANCE
    return Life(PrivacyLoss(epsilon, delta), int(more))
