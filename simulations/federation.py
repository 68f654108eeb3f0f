"""A whole federation in this process: the deployed server app, strategy and client logic, one tenant after another.

Only transport and the source of randomness differ from deployment. Each run has a ledger, an outbox and a policy for
every tenant, in a temporary folder; the base model and the prefix cache are shared, because they are functions of
public constants and of one record each.
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from fedprofile.client.app import TenantApp
from fedprofile.client.evaluation import PrivateEvaluator
from fedprofile.client.ledger import Ledger
from fedprofile.client.outbox import Outbox
from fedprofile.client.policy import Policy
from fedprofile.client.randomness import Randomness
from fedprofile.client.sampling import TenantRecords
from fedprofile.client.segments import plan_segment
from fedprofile.client.training import PrivateTrainer
from fedprofile.common.card import FederationCard
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.messages import Arrays
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel
from fedprofile.common.tenant import TenantFile
from fedprofile.server.admission import Member
from fedprofile.server.app import FederationResult, run_federation
from fedprofile.simulations.grid import InProcessGrid
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
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        members: dict[int, Member] = {}
        answers = {}
        for node, tenant in enumerate(tenants, start=1):
            app, plan_noise = _open_tenant(
                card, model, cache, tenant, folder, stack, _drawer(source, seed, tenant.name)
            )
            members[node] = Member(tenant.name, tenant.settings.population.declared_users, plan_noise)
            answers[node] = app.answer
        grid = InProcessGrid(answers)
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
    tenant: SimulatedTenant,
    folder: Path,
    stack: ExitStack,
    draw: Callable[[], Randomness],
) -> tuple[TenantApp, float]:
    settings = tenant.settings
    plan = plan_segment(card, settings)
    ledger = stack.enter_context(
        Ledger.open(
            folder / f"{tenant.name}.sqlite",
            population=tenant.name,
            epsilon=settings.budget.epsilon,
            delta=settings.life_delta,
            evaluation_users=settings.privacy.evaluation_users,
        )
    )
    segment = ledger.open_segment(plan)

    def predict(arrays: Arrays, records: EncodedRecords) -> NDArray[np.floating]:
        model.set_arrays(arrays)
        return model.predict(records, cache)

    app = TenantApp(
        card=card,
        layout=model.layout(),
        trainer=PrivateTrainer.of(
            card, plan, declared_users=settings.population.declared_users, model=model, cache=cache
        ),
        evaluator=PrivateEvaluator(
            predict=predict,
            task=card.task,
            noise_multiplier=plan.evaluation_noise_multiplier,
            records_per_user=plan.records_per_user,
        ),
        records=lambda: tenant.records,
        ledger=ledger,
        segment=segment,
        outbox=Outbox(folder / f"{tenant.name}-outbox"),
        policy=Policy.of(settings.policy),
        make_randomness=draw,
        on_adapter=lambda arrays, number: None,
    )
    return app, plan.evaluation_noise_multiplier


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
