"""A whole federation in this process: the deployed server app, strategy, client logic and accountant.

Only transport, batching and the source of randomness differ from deployment. Each tenant has a ledger, an outbox and a
policy of its own, which end with the run; the base model and the prefix cache are shared, because they are functions
of public constants and of one record each.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from fedprofile.client.app import TenantApp
from fedprofile.client.evaluation import PrivateEvaluator
from fedprofile.client.policy import Policy
from fedprofile.client.randomness import Randomness
from fedprofile.client.sampling import TenantRecords
from fedprofile.client.segments import SegmentPlan, plan_segment
from fedprofile.client.training import TrainingSettings
from fedprofile.common.card import FederationCard
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.messages import Arrays
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel
from fedprofile.common.tenant import TenantFile
from fedprofile.server.admission import Member
from fedprofile.server.app import FederationResult, run_federation
from fedprofile.simulations.cohort import CohortMember, CohortTrainer
from fedprofile.simulations.cohort_app import Cohort, CohortTenant
from fedprofile.simulations.grid import InProcessGrid
from fedprofile.simulations.memory import LastReply, memory_ledger
from fedprofile.simulations.randomness import NoNoise, SeededRandomness


@dataclass(frozen=True)
class SimulatedTenant:
    """One tenant of an in-process federation.

    Args:
        name: Of the tenant.
        settings: Its tenant file; source and columns are not read.
        records: Its users, split.
    """

    name: str
    settings: TenantFile
    records: TenantRecords = field(repr=False)


def run_in_process(
    card: FederationCard,
    model: ProfileModel,
    cache: PrefixCache,
    tenants: Sequence[SimulatedTenant],
    *,
    seed: int,
    noise: bool = True,
) -> FederationResult:
    """Run a federation to its end.

    Args:
        card: The federation card; `min_tenants` must not be above the number of tenants.
        model: Of the card.
        cache: Of the model; fills itself.
        tenants: Who takes part.
        seed: Of all sampling and noise.
        noise: False draws zeros instead of noise, for comparison; the result is then not private.

    Returns:
        The final adapter and the records of all rounds.
    """
    source = SeededRandomness if noise else NoNoise
    trainer = CohortTrainer(model, cache)
    with ExitStack() as stack:
        members: dict[int, Member] = {}
        cohort: dict[int, CohortTenant] = {}
        for node, tenant in enumerate(tenants, start=1):
            plan = plan_segment(card, tenant.settings)
            draw = _drawer(source, seed, tenant.name)
            cohort[node] = _open_tenant(card, model, cache, trainer, tenant, plan, stack, draw)
            declared = tenant.settings.population.declared_users
            members[node] = Member(tenant.name, declared, plan.evaluation_noise_multiplier)
        grid = InProcessGrid(cohort, Cohort(model, cache, trainer, cohort))
        return run_federation(
            grid, card, lambda: members, initial_arrays=model.initial_arrays(), patience=0.0, late=0.0
        )


def _drawer(source: type[SeededRandomness], seed: int, tenant: str) -> Callable[[], Randomness]:
    """A stream of its own for each reservation: named by how many there were before."""
    count = 0

    def draw() -> Randomness:
        nonlocal count
        count += 1
        return source(seed, tenant, count)

    return draw


def _open_tenant(
    card: FederationCard,
    model: ProfileModel,
    cache: PrefixCache,
    trainer: CohortTrainer,
    tenant: SimulatedTenant,
    plan: SegmentPlan,
    stack: ExitStack,
    draw: Callable[[], Randomness],
) -> CohortTenant:
    file = tenant.settings

    def predict(arrays: Arrays, records: EncodedRecords) -> NDArray[np.floating]:
        model.set_arrays(arrays)
        return model.predict(records, cache)

    evaluator = PrivateEvaluator.of(card, plan, predict=predict)
    settings = TrainingSettings.of(card, plan, file.population.declared_users)
    ledger = stack.enter_context(
        memory_ledger(
            tenant.name, file.columns.user, file.budget.epsilon, file.life_delta, file.privacy.evaluation_users
        )
    )
    app = TenantApp(
        card=card,
        layout=model.layout(),
        trainer=CohortMember(trainer, settings),
        evaluator=evaluator,
        records=lambda: tenant.records,
        ledger=ledger,
        segment=ledger.open_segment(plan),
        outbox=LastReply(),
        policy=Policy.of(file.policy),
        make_randomness=draw,
        on_adapter=lambda arrays, number: None,
    )
    return CohortTenant(app, settings, plan.local_steps, evaluator)


def exact_auc(model: ProfileModel, cache: PrefixCache, arrays: Arrays, records: Sequence[EncodedRecords]) -> float:
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
