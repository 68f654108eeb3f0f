"""A whole federation in this process: the deployed server app, strategy, client logic and accountant.

Only transport, batching and the source of randomness differ from deployment. Each tenant has a ledger, an outbox and a
policy of its own, which end with the run; the base model and the prefix cache are shared, because they are functions
of public constants and of one record each.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from fedprofile.client.app import Replies, TenantApp
from fedprofile.client.evaluation import PrivateEvaluator
from fedprofile.client.ledger import Ledger
from fedprofile.client.ledger_schema import Segment
from fedprofile.client.policy import Policy
from fedprofile.client.sampling import TenantRecords
from fedprofile.common.accounting import PrivacyLoss
from fedprofile.common.card import FederationCard
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.messages import Arrays
from fedprofile.common.modeling.profile_model import Prefixes, ProfileModel
from fedprofile.common.tenant import TenantFile
from fedprofile.server.admission import Member
from fedprofile.server.app import FederationResult, Journal, run_federation
from fedprofile.simulations.cohort import TOKENS_AT_ONCE, CohortMember, CohortTrainer
from fedprofile.simulations.cohort_app import BLOCK, Cohort, CohortTenant
from fedprofile.simulations.grid import InProcessGrid
from fedprofile.simulations.memory import LastReply, MemoryLedger
from fedprofile.simulations.mitigations import MitigationSpec
from fedprofile.simulations.people import TenantEvents
from fedprofile.simulations.randomness import NoNoise, SeededRandomness


@dataclass(frozen=True)
class SimulatedTenant:
    """One tenant of an in-process federation.

    Args:
        name: Of the tenant.
        settings: Its tenant file; source and columns are not read.
        records: Its users, split.
        mitigation: What is done for those whom the federation serves worse.
    """

    name: str
    settings: TenantFile
    records: TenantRecords = field(repr=False)
    mitigation: MitigationSpec = field(default_factory=MitigationSpec)


@dataclass(frozen=True)
class SimulatedFederation(FederationResult):
    """What a simulated run came to.

    Args:
        spent: By tenant, read from its ledger; nothing where no noise was drawn.
        released: The same, release by release.
    """

    spent: dict[str, PrivacyLoss] = field(default_factory=dict)
    released: dict[str, TenantEvents] = field(default_factory=dict)


def run_in_process(
    card: FederationCard,
    model: ProfileModel,
    cache: Prefixes | None,
    tenants: Sequence[SimulatedTenant],
    *,
    seed: int,
    noise: bool = True,
    tokens_at_once: int = TOKENS_AT_ONCE,
    block: int = BLOCK,
    journal: Journal | None = None,
    trainer: CohortTrainer | None = None,
) -> SimulatedFederation:
    """Run a federation to its end.

    Args:
        card: The federation card; `min_tenants` must not be above the number of tenants.
        model: Of the card.
        cache: Of the model, filled or filling itself; None runs the model whole.
        tenants: Who takes part.
        seed: Of all sampling and noise.
        noise: False draws zeros instead of noise, for comparison; the result is then not private.
        tokens_at_once: See `CohortTrainer`.
        block: See `Cohort`.
        journal: Told what happens.
        trainer: Of model and cache, where there is one already.

    Returns:
        The final adapter, the records of all rounds, and what was spent.

    Raises:
        SelfTestError: What is installed would not train this model rightly.
    """
    trainer = trainer or CohortTrainer(model, cache, tokens_at_once)
    # Each tenant asks for it as well, and would only refuse; here a person is told why.
    trainer.self_test(tenants[0].mitigation.training(card, tenants[0].settings))
    members = {node: member_of(card, tenant) for node, tenant in enumerate(tenants, start=1)}
    with ExitStack() as stack:
        cohort: dict[int, CohortTenant] = {}
        segments: dict[str, tuple[MemoryLedger, Segment]] = {}
        for node, tenant in enumerate(tenants, start=1):
            ledger = stack.enter_context(MemoryLedger(tenant.name, tenant.settings))
            cohort[node], segment = open_tenant(
                card, model, cache, trainer, tenant, ledger, LastReply(), seed=seed, noise=noise
            )
            segments[tenant.name] = ledger, segment
        result = run_federation(
            InProcessGrid(cohort, Cohort(model, cache, trainer, cohort, block)),
            card,
            lambda: members,
            initial_arrays=model.initial_arrays(),
            journal=journal,
            patience=0.0,
            late=0.0,
        )
        counted = segments.items() if noise else ()
        spent = {name: ledger.spent(segment) for name, (ledger, segment) in counted}
        released = {name: ledger.released(segment) for name, (ledger, segment) in counted}
    return SimulatedFederation(result.arrays, result.rounds, result.reason, result.records, spent, released)


def open_tenant(
    card: FederationCard,
    model: ProfileModel,
    cache: Prefixes | None,
    trainer: CohortTrainer,
    tenant: SimulatedTenant,
    ledger: Ledger,
    outbox: Replies,
    *,
    seed: int,
    noise: bool,
) -> tuple[CohortTenant, Segment]:
    """One tenant, with what it keeps.

    Args:
        card: The federation card.
        model: Of the card.
        cache: Of the model, or None.
        trainer: Of both.
        tenant: Which.
        ledger: Of its population; new, or with this run's segment.
        outbox: Its own.
        seed: Of all sampling and noise.
        noise: False draws zeros instead of noise.

    Returns:
        The tenant, and its ledger's segment of this run.
    """
    plan = tenant.mitigation.plan(card, tenant.settings)
    segment = ledger.open_segment(plan)
    settings = tenant.mitigation.training(card, tenant.settings)
    source = SeededRandomness if noise else NoNoise

    def predict(arrays: Arrays, records: EncodedRecords) -> NDArray[np.floating]:
        model.set_arrays(arrays)
        return model.predict(records, cache)

    evaluator = PrivateEvaluator.of(card, plan, predict=predict)
    app = TenantApp(
        card=card,
        layout=model.layout(),
        trainer=CohortMember(trainer, settings),
        evaluator=evaluator,
        records=lambda: tenant.records,
        ledger=ledger,
        segment=segment,
        outbox=outbox,
        policy=Policy.of(tenant.settings.policy),
        # A stream of its own for each reservation, named by its entry.
        make_randomness=lambda: source(seed, tenant.name, ledger.mark().sequence),
        on_adapter=lambda arrays, number: None,
    )
    return CohortTenant(app, settings, plan.local_steps, evaluator), segment


def member_of(card: FederationCard, tenant: SimulatedTenant) -> Member:
    """What the server knows of a tenant."""
    noise = tenant.mitigation.plan(card, tenant.settings).evaluation_noise_multiplier
    return Member(tenant.name, tenant.settings.population.declared_users, noise)


def exact_auc(model: ProfileModel, cache: Prefixes | None, arrays: Arrays, records: Sequence[EncodedRecords]) -> float:
    """The exact AUC of an adapter over evaluation users pooled from all tenants. NOT private: rehearsals only.

    Args:
        model: Of the card; binary.
        cache: Of the model.
        arrays: The adapter.
        records: Evaluation records of each tenant.

    Returns:
        Area under the ROC curve.
    """
    model.set_arrays(arrays)
    scores = np.concatenate([model.predict(part, cache)[:, 1] for part in records])
    return float(roc_auc_score(np.concatenate([part.labels for part in records]), scores))
