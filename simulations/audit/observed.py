"""A federation in this process with everything kept that its server sees.

It is `fedprofile.simulations.federation.run_in_process` with a wiretap at the server's end, and with a ledger that is
read in any case: what the ledger claims is one thing, and whether noise was drawn is what an audit is to find out.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from fedprofile.client.ledger_schema import Segment
from fedprofile.client.training import TrainingSettings
from fedprofile.common.accounting import PrivacyLoss
from fedprofile.common.card import FederationCard
from fedprofile.common.messages import Arrays
from fedprofile.common.modeling.profile_model import Prefixes, ProfileModel
from fedprofile.server.app import run_federation
from fedprofile.simulations.audit.wiretap import Transcript, Wiretap
from fedprofile.simulations.cohort import CohortTrainer
from fedprofile.simulations.cohort_app import Cohort, CohortTenant
from fedprofile.simulations.federation import SimulatedTenant, member_of, open_tenant
from fedprofile.simulations.grid import InProcessGrid
from fedprofile.simulations.memory import LastReply, MemoryLedger


@dataclass(frozen=True)
class Observed:
    """What a server has of a run that is over.

    Args:
        transcript: What passed it, by node id.
        arrays: The final adapter.
        nodes: Node id of each tenant.
        settings: How each tenant trains, by name; public.
        claims: What each tenant's ledger says was spent, by name.
        deviations: Standard deviation of the noise of a step that each tenant's ledger accounts for, by name.
    """

    transcript: Transcript = field(repr=False)
    arrays: Arrays = field(repr=False)
    nodes: dict[str, int]
    settings: dict[str, TrainingSettings]
    claims: dict[str, PrivacyLoss]
    deviations: dict[str, float]


def run_observed(
    card: FederationCard,
    model: ProfileModel,
    cache: Prefixes | None,
    tenants: Sequence[SimulatedTenant],
    *,
    seed: int,
    noise: bool,
    tokens_at_once: int,
) -> Observed:
    """Run a federation to its end.

    Args:
        card: The federation card; `min_tenants` must not be above the number of tenants.
        model: Of the card.
        cache: Of the model, or None.
        tenants: Who takes part.
        seed: Of all sampling and noise.
        noise: False draws zeros instead of noise.
        tokens_at_once: See `CohortTrainer`.

    Returns:
        What the server has.

    Raises:
        SelfTestError: What is installed would not train this model rightly.
    """
    trainer = CohortTrainer(model, cache, tokens_at_once)
    members = {node: member_of(card, tenant) for node, tenant in enumerate(tenants, start=1)}
    cohort: dict[int, CohortTenant] = {}
    ledgers: dict[str, tuple[MemoryLedger, Segment]] = {}
    with ExitStack() as stack:
        for node, tenant in enumerate(tenants, start=1):
            ledger = stack.enter_context(MemoryLedger(tenant.name, tenant.settings))
            cohort[node], segment = open_tenant(
                card, model, cache, trainer, tenant, ledger, LastReply(), seed=seed, noise=noise
            )
            ledgers[tenant.name] = ledger, segment
        trainer.self_test(cohort[1].settings)
        grid = Wiretap(InProcessGrid(cohort, Cohort(model, cache, trainer, cohort)))
        result = run_federation(
            grid, card, lambda: members, initial_arrays=model.initial_arrays(), patience=0.0, late=0.0
        )
        claims = {name: ledger.spent(segment) for name, (ledger, segment) in ledgers.items()}
    nodes = {member.name: node for node, member in members.items()}
    settings = {name: cohort[node].settings for name, node in nodes.items()}
    deviations = {
        name: segment.plan.train_event.noise_multiplier * segment.plan.clip_norm
        for name, (_, segment) in ledgers.items()
    }
    return Observed(grid.transcript, result.arrays, nodes, settings, claims, deviations)
