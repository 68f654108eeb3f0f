"""What may be done for those whom a private federation serves worse; each is one setting of an experiment.

group-rates      users of some groups enter a step less often than others, at public rates; nobody more often than q,
                 so that the ledger's claim covers everyone
q-weights        the server weighs tenants by their noised tables' error (`fedprofile.server.fair_weights`)
worst-tenants    the server weighs the worse half of the tenants four times, by the same
longer-training  tenants that declare few users train more steps a round, with the noise that keeps their budget
thresholds       each group has a threshold of its own, fitted to the noised tables after the run

There is no penalty in the loss. One that compares groups (a covariance of prediction and group, a gap of a batch's
rates) makes each user's gradient depend on who else is in the step; then a user changes more than the own clipped
gradient, and the noise does not cover it. A penalty of one user's own records would be sound; nobody has shown that it
helps, so there is none.
"""

from dataclasses import replace
from typing import Literal

from pydantic import Field

from fedprofile.client.segments import SegmentPlan, plan_segment
from fedprofile.client.training import TrainingSettings
from fedprofile.common.card import FederationCard
from fedprofile.common.config import Frozen
from fedprofile.common.errors import ConfigError
from fedprofile.common.tasks import TaskSpec
from fedprofile.common.tenant import TenantFile
from fedprofile.simulations.scenarios import changed

Kind = Literal["none", "group-rates", "q-weights", "worst-tenants", "longer-training", "thresholds"]


class MitigationSpec(Frozen):
    """Which one, and its settings; those of the others are not read."""

    kind: Kind = "none"
    group_shares: dict[str, float] = Field(default_factory=dict)
    """For `group-rates`: of the sampling rate, by value of the card's group; 1 for values that are not named."""
    q: float = Field(default=1.0, gt=0, le=5)
    """For `q-weights`."""
    below: int = Field(default=200, ge=1)
    """For `longer-training`: tenants that declare fewer users."""
    times: int = Field(default=2, ge=2, le=16)
    """For `longer-training`: as many steps."""

    def on_card(self, card: FederationCard) -> FederationCard:
        """The card with what the server does."""
        if self.kind == "q-weights":
            return changed(card, aggregation={"fairness": "q", "fairness_q": self.q})
        if self.kind == "worst-tenants":
            return changed(card, aggregation={"fairness": "worst-tenants"})
        return card

    def plan(self, card: FederationCard, tenant: TenantFile) -> SegmentPlan:
        """The segment of one tenant; see `plan_segment`."""
        if self.kind != "longer-training" or tenant.population.declared_users >= self.below:
            return plan_segment(card, tenant)
        longer = changed(card, training={"local_steps": self.times * card.training.local_steps})
        return replace(plan_segment(longer, tenant), card_hash=card.hash)

    def training(self, card: FederationCard, tenant: TenantFile) -> TrainingSettings:
        """How one tenant trains.

        Raises:
            ConfigError: A group is not one of the card's, or a share is not above 0 and at most 1.
        """
        settings = TrainingSettings.of(card, self.plan(card, tenant), tenant.population.declared_users)
        if self.kind != "group-rates":
            return settings
        return replace(settings, group_shares=self._shares(card.task))

    def _shares(self, task: TaskSpec) -> tuple[float, ...]:
        values = task.group.all_values if task.group is not None else ()
        for name, share in self.group_shares.items():
            if name not in values:
                raise ConfigError(
                    f"mitigation.group_shares.'{name}' is no group of the card; it has {', '.join(values) or 'none'}."
                )
            if not 0 < share <= 1:
                raise ConfigError(f"mitigation.group_shares.'{name}' is {share}; use a number above 0 and at most 1.")
        return tuple(self.group_shares.get(value, 1.0) for value in values)
