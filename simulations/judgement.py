"""What a rehearsal may compute because it owns all the data: exact metrics, predictions, and what else was possible.

None of it is private; a deployment has the noised tables and nothing else.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from fedprofile.client.ledger import Ledger
from fedprofile.client.sampling import split_records
from fedprofile.client.sources import read_examples
from fedprofile.common.adapters import read_arrays
from fedprofile.common.interactions import encode
from fedprofile.common.modeling.base import load_base, resolve_base
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel
from fedprofile.simulations.comparison import Comparison
from fedprofile.simulations.federation import SimulatedTenant, exact_auc
from fedprofile.simulations.rehearsal import Rehearsal

PREDICTIONS = 3


@dataclass(frozen=True)
class Judgement:
    """The result of `judge`.

    Args:
        auc: Exact, over all tenants' evaluation users.
        users: How many evaluation users.
        predictions: A few, with the rendered text; of generated or public data.
        comparison: Name -> {"auc"} of what else was possible; empty where it was not asked for.
    """

    auc: float
    users: int
    predictions: list[dict[str, Any]] = field(repr=False)
    comparison: dict[str, dict[str, float]]


def judge(rehearsal: Rehearsal, *, seed: int, compare: bool) -> Judgement:
    """Judge the final adapter of a rehearsal.

    Args:
        rehearsal: After its run.
        seed: Of the comparison's federations.
        compare: Whether to run them.

    Returns:
        Exact metrics and predictions.
    """
    card = rehearsal.scenario.card
    base, tokenizer = load_base(resolve_base(card.base))
    model = ProfileModel(card, base, tokenizer)
    tenants = [_simulated(rehearsal, name, tokenizer) for name in rehearsal.tenants]
    cache = PrefixCache(model)
    arrays = read_arrays(rehearsal.server.adapter)
    evaluation = [tenant.records.evaluation for tenant in tenants]
    auc = exact_auc(model, cache, arrays, evaluation)
    model.set_arrays(arrays)
    first = evaluation[0]
    few = first.of_users(np.arange(len(first.users)) < PREDICTIONS)
    predictions = [
        {
            "text": tokenizer.decode(ids, skip_special_tokens=True),
            "probabilities": {label: round(float(p), 3) for label, p in zip(card.task.labels, row, strict=True)},
        }
        for ids, row in zip(few.tokens, model.predict(few, cache), strict=True)
    ]
    comparison = {}
    if compare:
        found = Comparison(card, base, tokenizer, tenants, seed=seed)
        comparison = {name: {"auc": value} for name, value in found.all().items()}
    return Judgement(auc, sum(len(part.users) for part in evaluation), predictions, comparison)


def _simulated(rehearsal: Rehearsal, name: str, tokenizer: PreTrainedTokenizerBase) -> SimulatedTenant:
    """The tenant's own file, data and split, for the same federation in process."""
    directory, card = rehearsal.tenants[name], rehearsal.scenario.card
    settings = directory.read_tenant_file()
    records = encode(read_examples(settings, card, directory.root), card, tokenizer)
    with Ledger.open(
        rehearsal.ledger(name),
        population=settings.population.name,
        epsilon=settings.budget.epsilon,
        delta=settings.life_delta,
        evaluation_users=settings.privacy.evaluation_users,
    ) as ledger:
        return SimulatedTenant(name, settings, split_records(records, ledger.evaluation_user))
