"""Who trains with whom: the federation, each tenant alone, or everybody at one place.

    federated   all tenants, as deployed
    alone       each tenant is a federation of its own: what it would have without the others, at the same budget
    pooled      all users are one tenant's: what no federation can have, since data would have to move

All three run through the same server app, client logic and accountant, and all are judged on the same people.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedprofile.common.accounting import PrivacyLoss
from fedprofile.common.card import FederationCard
from fedprofile.common.messages import Arrays
from fedprofile.common.modeling.profile_model import Prefixes, ProfileModel
from fedprofile.server.app import Journal
from fedprofile.server.history import RoundRecord
from fedprofile.simulations.cohort import CohortTrainer
from fedprofile.simulations.federation import SimulatedFederation, SimulatedTenant, run_in_process
from fedprofile.simulations.people import TenantEvents
from fedprofile.simulations.scenarios import changed, rounded
from fedprofile.simulations.tenants import TenantExamples

POOLED = "everybody"
"""The name of the one tenant that holds all users."""


@dataclass(frozen=True)
class ArmResult:
    """What training came to.

    Args:
        adapters: The adapter of each tenant; the same for all where they train together.
        rounds: Training rounds.
        reason: Why it ended.
        records: Of the one federation; nothing where each trains alone.
        spent: By tenant, as the ledger has it; nothing where no noise was drawn.
        released: The same, release by release.
    """

    adapters: list[Arrays] = field(repr=False)
    rounds: int
    reason: str
    records: tuple[RoundRecord, ...] = ()
    spent: Mapping[str, PrivacyLoss] = field(default_factory=dict)
    released: Mapping[str, TenantEvents] = field(default_factory=dict)

    @classmethod
    def together(cls, result: SimulatedFederation, tenants: int) -> "ArmResult":
        """Of one federation: everybody has its adapter."""
        return cls(
            [result.arrays] * tenants, result.rounds, result.reason, result.records, result.spent, result.released
        )


def pooled(tenants: Sequence[TenantExamples]) -> TenantExamples:
    """All tenants' users as one tenant's; who is an evaluation user anywhere is one here.

    Of so many users a promise must have a smaller delta where the tenants' own would be above one in ten times as many.

    Args:
        tenants: At least one; settings are the first one's.
    """
    held_out = {
        example.user for tenant in tenants for example in tenant.examples if tenant.evaluation_user(example.user)
    }
    everyone = [example for tenant in tenants for example in tenant.examples]
    users = len({example.user for example in everyone})
    own, declared = tenants[0].settings, rounded(users)
    largest = 1 / (10 * declared)
    first = tenants[0].with_settings(
        {
            "population": {"name": POOLED, "declared_users": declared},
            "budget": {"delta": min(own.life_delta, largest)},
            "run": {"delta": min(own.run_delta, largest)},
        }
    )
    return replace(first, name=POOLED, examples=everyone, evaluation_user=held_out.__contains__)


def run_alone(
    card: FederationCard,
    model: ProfileModel,
    cache: Prefixes | None,
    tenants: Sequence[SimulatedTenant],
    *,
    seed: int,
    noise: bool,
    tokens_at_once: int,
    journal: Journal,
) -> ArmResult:
    """Each tenant by itself.

    Args:
        card: The federation's.
        model: Of the card.
        cache: Of the model, or None.
        tenants: At least one.
        seed: Of all sampling and noise.
        noise: False draws zeros instead of noise.
        tokens_at_once: See `CohortTrainer`.
        journal: Told what the first one does.

    Returns:
        An adapter for each.
    """
    own = changed(card, rounds={"min_tenants": 1})
    trainer = CohortTrainer(model, cache, tokens_at_once)
    results = [
        run_in_process(
            own, model, cache, [tenant], seed=seed, noise=noise, journal=None if place else journal, trainer=trainer
        )
        for place, tenant in enumerate(tenants)
    ]
    spent = {name: loss for result in results for name, loss in result.spent.items()}
    released = {name: events for result in results for name, events in result.released.items()}
    first = results[0]
    return ArmResult([each.arrays for each in results], first.rounds, first.reason, (), spent, released)
