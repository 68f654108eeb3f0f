"""A federation in process: reproducible from its seed, judged exactly, and compared with what else was possible."""

import csv
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedprofile.client.ledger import Ledger
from fedprofile.common.card import FederationCard
from fedprofile.common.modeling.base import BaseModelFiles, load_base
from fedprofile.common.tenant import TenantFile
from fedprofile.server.app import FederationResult
from fedprofile.simulations.comparison import NO_TEXT, Comparison
from fedprofile.simulations.federation import exact_auc, run_in_process
from fedprofile.simulations.judgement import COMPARED
from fedprofile.simulations.randomness import split_key
from fedprofile.simulations.scenarios import Scenario, ScenarioTenant, changed
from fedprofile.simulations.shared_base import SharedBase
from fedprofile.simulations.tenants import TenantExamples, read_tenants

VISITORS = 120


def _write(name: str, folder: Path) -> None:
    """Visitors who buy the more often, the more visits they have made."""
    draw = random.Random(name)
    with (folder / "visits.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["who", "when", "month", "visits", "device", "action", "item", "where", "bought"])
        for number in range(VISITORS):
            visits = draw.randint(0, 10)
            bought = "yes" if draw.random() < visits / 10 else "no"
            row = [f"{name}-{number}", "2026-01-01", f"w{draw.randint(0, 11)}", visits]
            writer.writerow([*row, draw.choice(["phone", "desk"]), "viewed", "shoes", "north", bought])


@pytest.fixture(scope="module")
def scenario(card_data: Callable[..., dict[str, Any]]) -> Scenario:
    card = FederationCard.model_validate(
        card_data(
            training={"rounds": 3, "local_steps": 4, "learning_rate": 0.02, "head_learning_rate": 0.2},
            rounds={"min_tenants": 3},
        )
    )
    template = TenantFile.model_validate(
        {
            "source": {"kind": "csv", "path": "visits.csv"},
            "columns": {"user": "who", "time": "when", "label": "bought", "group": "where"},
            "population": {"name": "shop", "declared_users": VISITORS},
            "budget": {"epsilon": 8.0, "delta": 1e-5},
            "run": {"epsilon": 8.0, "delta": 1e-5},
            "privacy": {"sample_rate": 0.5, "evaluation_users": 0.3},
        }
    )
    names = ("acme", "globex", "initech")
    return Scenario(card, template, tuple(ScenarioTenant(name, VISITORS, partial(_write, name)) for name in names))


@pytest.fixture(scope="module")
def tenants(scenario: Scenario) -> list[TenantExamples]:
    return read_tenants(scenario, split_seed=0)


@pytest.fixture(scope="module")
def base(scenario: Scenario, tiny_base: Path) -> SharedBase:
    return SharedBase(*load_base(BaseModelFiles(tiny_base, scenario.card.base)))


def _run(
    scenario: Scenario, tenants: list[TenantExamples], base: SharedBase, *, seed: int, noise: bool = True
) -> FederationResult:
    model, cache = base.model(scenario.card)
    encoded = [tenant.encoded(scenario.card, base.tokenizer) for tenant in tenants]
    return run_in_process(scenario.card, model, cache, encoded, seed=seed, noise=noise)


def test_a_run_is_bit_for_bit_a_function_of_its_seed(
    scenario: Scenario, tenants: list[TenantExamples], base: SharedBase
) -> None:
    first, again, other = (_run(scenario, tenants, base, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(first.arrays[name], again.arrays[name]) for name in first.arrays)
    assert [record.outcome.metrics for record in first.records] == [record.outcome.metrics for record in again.records]
    assert not all(np.array_equal(first.arrays[name], other.arrays[name]) for name in first.arrays)


def test_every_round_has_every_tenant_and_nobody_refuses(
    scenario: Scenario, tenants: list[TenantExamples], base: SharedBase
) -> None:
    result = _run(scenario, tenants, base, seed=0)
    assert (result.rounds, result.reason) == (3, "rounds")
    for record in result.records:
        assert sorted(record.outcome.answered) == ["acme", "globex", "initech"]
        assert not record.outcome.dropped and not record.outcome.refused


def test_without_noise_the_federation_learns_what_was_planted(
    scenario: Scenario, tenants: list[TenantExamples], base: SharedBase
) -> None:
    model, cache = base.model(scenario.card)
    evaluation = [tenant.encoded(scenario.card, base.tokenizer).records.evaluation for tenant in tenants]
    start = exact_auc(model, cache, model.initial_arrays(), evaluation)
    learnt = _run(scenario, tenants, base, seed=0, noise=False)
    assert start == 0.5
    assert exact_auc(model, cache, learnt.arrays, evaluation) > 0.7


def test_the_split_is_the_one_of_a_ledger_with_the_same_key(tenants: list[TenantExamples], tmp_path: Path) -> None:
    acme = tenants[0]
    with Ledger.open(
        tmp_path / "acme.sqlite", population="acme", user_column="user", epsilon=8.0, delta=1e-5, evaluation_users=0.3,
        split_key=split_key(0, "acme"),
    ) as ledger:  # fmt: skip
        users = [example.user for example in acme.examples]
        mine = [acme.evaluation_user(user) for user in users]
        assert mine == [ledger.evaluation_user(user) for user in users]
    assert mine != [acme.split_by(1).evaluation_user(user) for user in users]
    assert 0.2 < np.mean(mine) < 0.4


def test_another_budget_keeps_data_and_split(tenants: list[TenantExamples]) -> None:
    poorer = tenants[0].at_budget(3.0)
    assert (poorer.settings.run.epsilon, poorer.settings.budget.epsilon) == (3.0, 3.0)
    assert poorer.settings.run_delta == tenants[0].settings.run_delta
    assert poorer.examples is tenants[0].examples and poorer.evaluation_user is tenants[0].evaluation_user


def test_the_alternatives_differ_in_what_their_names_say(
    scenario: Scenario, tenants: list[TenantExamples], base: SharedBase
) -> None:
    compared = Comparison(scenario.card, base, tenants, seed=0)
    found = {name: way() for name, way in compared.ways().items()}
    assert set(found) == {"federation", "other_factors", *COMPARED}
    assert all(0 < auc < 1 for auc in found.values())
    # The same question twice is the same answer; a longer regression is another one.
    assert compared.federation() == found["federation"]
    assert compared.logistic_regression(rounds=6) != found["dp_logistic_regression"]


def test_a_regression_on_columns_does_not_see_the_text(
    scenario: Scenario, tenants: list[TenantExamples], base: SharedBase
) -> None:
    card = changed(scenario.card, adapter={"method": "head", "text_scale": NO_TEXT})
    model, cache = base.model(card)
    encoded = [tenant.encoded(card, base.tokenizer) for tenant in tenants]
    result = run_in_process(card, model, cache, encoded, seed=0)
    model.set_arrays(result.arrays)
    records = encoded[0].records.evaluation
    shuffled = type(records)(**{**vars(records), "tokens": records.tokens[::-1]})
    assert np.allclose(model.predict(records), model.predict(shuffled), atol=1e-6)
    assert np.ptp(model.predict(records)[:, 1]) > 0.01
