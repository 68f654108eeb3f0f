"""What a rehearsal may compute because it owns all the data: exact metrics, predictions, and what else was possible.

None of it is private; a deployment has the noised tables and nothing else.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedprofile.client.ledger import Ledger
from fedprofile.client.sources import read_examples
from fedprofile.common.adapters import read_arrays
from fedprofile.common.candidates import as_questions
from fedprofile.common.interactions import encode
from fedprofile.simulations.comparison import Comparison
from fedprofile.simulations.exact_metrics import exact_metrics
from fedprofile.simulations.rehearsal import Rehearsal
from fedprofile.simulations.shared_base import SharedBase
from fedprofile.simulations.tenants import TenantExamples

PREDICTIONS = 3
COMPARED = ("no_noise", "alone_mean", "dp_linear_probe", "dp_logistic_regression", "dp_spline_regression")
"""The ways of `Comparison` that a rehearsal reports beside its own result."""


@dataclass(frozen=True)
class Judgement:
    """The result of `judge`.

    Args:
        exact: Over all tenants' evaluation users; see `fedprofile.simulations.exact_metrics`.
        users: How many evaluation users.
        predictions: A few, with text and columns as the model has them; of generated or public data.
        comparison: Name -> {"auc"} of what else was possible; empty where it was not asked for.
    """

    exact: dict[str, float | int | None]
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
    base = SharedBase.load(card.base)
    model, cache = base.model(card)
    tenants = [_read(rehearsal, name) for name in rehearsal.tenants]
    arrays = read_arrays(rehearsal.server.adapter)
    evaluation = [tenant.encoded(card, base.tokenizer).records.evaluation for tenant in tenants]
    model.set_arrays(arrays)
    scores = np.concatenate([model.predict(part, cache) for part in evaluation])
    exact = exact_metrics(scores, np.concatenate([part.labels for part in evaluation]), card.task)
    few = [example for example in tenants[0].examples if tenants[0].evaluation_user(example.user)][:PREDICTIONS]
    records = encode(as_questions(few, card.task), card, base.tokenizer)
    asked = records.tokens[:: max(1, len(records) // max(1, len(few)))]
    predictions = [
        {
            "text": base.tokenizer.decode(ids, skip_special_tokens=True),
            "columns": {feature.name: example.row[feature.name] for feature in card.features.all},
            "probabilities": {label: round(float(p), 3) for label, p in zip(card.task.outputs, row, strict=True)},
        }
        for example, ids, row in zip(few, asked, model.predict(records, cache).reshape(len(few), -1), strict=True)
    ]
    comparison = {}
    if compare:
        ways = Comparison(card, base, tenants, seed=seed).ways()
        comparison = {name: {"auc": ways[name]()} for name in COMPARED}
    return Judgement(exact, sum(len(part.users) for part in evaluation), predictions, comparison)


def _read(rehearsal: Rehearsal, name: str) -> TenantExamples:
    """The tenant's own file, data and split, for the same federation in process."""
    directory, card = rehearsal.tenants[name], rehearsal.scenario.card
    settings = directory.read_tenant_file()
    with Ledger.open(
        rehearsal.ledger(name),
        population=settings.population.name,
        user_column=settings.columns.user,
        epsilon=settings.budget.epsilon,
        delta=settings.life_delta,
        evaluation_users=settings.privacy.evaluation_users,
    ) as ledger:
        return TenantExamples(name, settings, read_examples(settings, card, directory.root), ledger.evaluation_user)
