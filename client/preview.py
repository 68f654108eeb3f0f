"""What `check` and `join` show: the data and the policy validated, histories as the model sees them, the forecast."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from fedprofile.client.databases import holds_password
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
from fedprofile.client.simpler import Simpler, find_simpler
from fedprofile.client.sources import KeepWrong, read_examples
from fedprofile.common.accounting import PrivacyLoss
from fedprofile.common.candidates import encode_records
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import BudgetRefusal, ConfigError, PolicyRefusal, printable
from fedprofile.common.tenant import PolicySpec, SqlSource, TenantFile

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
        simpler: Whether something simpler than LoRA would do.
        notes: Sentences about what to look at again in tenant.toml.
    """

    card: FederationCard
    plan: SegmentPlan
    data: DataReading
    cost: Cost
    histories: tuple[str, ...]
    life: "Life"
    simpler: Simpler
    notes: tuple[str, ...] = ()

    def as_text(self, on_terminal: bool) -> str:
        """For a person.

        Args:
            on_terminal: Whether it is read on a terminal: a pipe or a log would keep what users did.
        """
        if on_terminal:
            lines = ["Histories as the model sees them (yours, stay here):"]
            lines += [f"  {number}. {printable(text)}" for number, text in enumerate(self.histories, start=1)]
        else:
            lines = ["Histories as the model sees them are left out: your users' data is shown on a terminal only."]
        lines.append(forecast_text(self.data, self.cost))
        lines.append(f"  simpler ways     {self.simpler.why}")
        lines += [f"  note: {note}" for note in self.notes]
        runs = f"{self.life.more_runs} more run{'' if self.life.more_runs == 1 else 's'} like this one"
        lines.append(f"  left for life    {self.life.left}, with this run charged: {runs}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """For a machine; without the histories."""
        life = {**self.life.left.as_dict(), "more_runs": self.life.more_runs}
        forecast = forecast_json(self.data, self.cost)
        return {"card": self.card.hash, **forecast, "simpler": self.simpler.as_dict(), "left_for_life": life}


@dataclass(frozen=True)
class Life:
    """What the population's budget still allows.

    Args:
        left: Not taken by any run, this one among them.
        more_runs: How many further runs, or trainings anew, with this run's share fit into it.
    """

    left: PrivacyLoss
    more_runs: int


def preview(
    directory: TenantDirectory, card: FederationCard, tenant: TenantFile, keep_wrong: KeepWrong | None = None
) -> Preview:
    """Validate data and policy and work out what a run would cost. Writes nothing and sends nothing.

    Args:
        directory: The tenant's.
        card: The federation's.
        tenant: The tenant file.
        keep_wrong: See `read_examples`.

    Returns:
        The preview.

    Raises:
        DataError: The source cannot be read, or rows are wrong; see `read_examples`.
        ConfigError: The base model is missing, another one, does not know the histories' language, or its tokenizer
            fails at a text; or tenant.toml names a column that is not there, or a ledger that cannot be written.
        PolicyRefusal: The card asks for a protected column, the users' ids or the label, it is beyond what the tenant
            allows otherwise, nothing would be answered, or the promise is weaker than the card allows.
        BudgetRefusal: The share does not fit into what is left of the life's budget.
    """
    until = tenant.policy.until
    if until is not None and until < datetime.now(UTC).date():
        raise PolicyRefusal(f"policy.until={until} is over: nothing would be answered; set a later day.")
    kinds = get_args(get_args(PolicySpec.model_fields["kinds"].annotation)[0])
    if not tenant.policy.kinds:
        raise PolicyRefusal(f"policy.kinds is empty: nothing would be answered; name some of {', '.join(kinds)}.")
    _require_writable(directory.ledger_of(tenant))
    examples = read_examples(tenant, card, directory.root, keep_wrong=keep_wrong)
    # Imported late: a wrong row is said at once, not after the seconds that these take.
    from transformers import AutoConfig, AutoTokenizer

    from fedprofile.common.modeling.base import resolve_base

    files = resolve_base(card.base, directory.root / tenant.base.path if tenant.base else None)
    tokenizer = AutoTokenizer.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
    config = AutoConfig.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
    records = encode_records(examples, card, tokenizer)
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
        simpler=find_simpler(card, records, int(config.hidden_size)),
        notes=tuple(
            f"policy.kinds leaves out '{kind}'; these requests will be refused."
            for kind in kinds
            if kind not in tenant.policy.kinds
        )
        + tuple(
            f"{part}.url holds a password; keep it in a file of its own (password_file) or in the environment "
            "(password_env)."
            for part, source in (("source", tenant.source), ("events", tenant.events))
            if isinstance(source, SqlSource) and holds_password(source)
        ),
    )


def _require_writable(ledger: Path) -> None:
    """Refuse a place that no ledger can be written at, now and not after a person has agreed."""
    there = next(place for place in (ledger, *ledger.parents) if os.path.lexists(place))
    # SQLite writes beside the file as well.
    folder = ledger.parent if there == ledger else there
    writable = there != ledger or (ledger.is_file() and os.access(ledger, os.W_OK))
    if not (writable and folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise ConfigError(f"{ledger}: no ledger can be written there; give a writable path as population.ledger.")


def _life(directory: TenantDirectory, tenant: TenantFile, plan: SegmentPlan) -> Life:
    population, path = tenant.population, directory.ledger_of(tenant)
    epsilon, delta, opened = tenant.budget.epsilon, tenant.life_delta, False
    if path.exists():
        found: LedgerSummary = summary(path)
        epsilon, delta = found.left, found.left_delta
        opened = any(reading.segment.plan.settings == plan.settings for reading in found.segments)
        too_much = plan.epsilon > found.left * _TOLERANCE or plan.delta > found.left_delta * _TOLERANCE
        if not opened and too_much:
            raise BudgetRefusal(
                f"run.epsilon={plan.epsilon:g} with run.delta={plan.delta:g} is more than the epsilon={found.left:g} "
                f"with delta={found.left_delta:g} that is left of population '{population.name}' ({found.cap} for "
                "life); lower the run's share, or leave the run."
            )
    if not opened:
        epsilon, delta = max(0.0, epsilon - plan.epsilon), max(0.0, delta - plan.delta)
    more = min(epsilon / plan.epsilon, delta / plan.delta) * _TOLERANCE
    return Life(PrivacyLoss(epsilon, delta), int(more))
