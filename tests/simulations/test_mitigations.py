"""Mitigations and arms: who is sampled how often, at which noise, and who trains with whom."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.modeling_fixtures import MakeModel
from tests.simulations.conftest import WriteExperiment
from tests.simulations.test_cohort import SETTINGS, _distance, _records, _start

from fedprofile.client.sampling import sample_users
from fedprofile.client.segments import plan_segment
from fedprofile.client.training import PrivateTrainer
from fedprofile.common.accounting import compose
from fedprofile.common.errors import ConfigError
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.simulations.cells import CellRunner
from fedprofile.simulations.cohort import CohortTrainer, TrainingJob
from fedprofile.simulations.experiment import load_experiment
from fedprofile.simulations.mitigations import MitigationSpec
from fedprofile.simulations.randomness import NoNoise, SeededRandomness
from fedprofile.simulations.scenarios import changed, load_scenario

SHARES = (1.0, 0.25, 0.5)


def _grouped(records: EncodedRecords) -> EncodedRecords:
    """Groups that change within a user, so that it matters which record says."""
    return replace(records, groups=np.arange(len(records)) % len(SHARES))


def test_users_enter_at_their_own_groups_rate(make_model: MakeModel) -> None:
    records = _grouped(_records(make_model(), 40, seed=1))
    settings = replace(SETTINGS, sample_rate=0.4, group_shares=SHARES)
    rates = settings.rates(records)
    assert isinstance(rates, np.ndarray) and rates.max() <= settings.sample_rate
    entered = np.zeros(40)
    source = SeededRandomness(0, "sampling")
    for _ in range(3000):
        entered[sample_users(40, rates, source)] += 1
    for user in range(40):
        group = records.groups[np.flatnonzero(records.user == user)[0]]
        assert entered[user] / 3000 == pytest.approx(0.4 * SHARES[group], abs=0.04)
    # What one user's rate is depends on nobody else.
    kept = np.ones(40, dtype=bool)
    kept[[3, 17]] = False
    np.testing.assert_array_equal(settings.rates(records.of_users(kept)), rates[kept])


def test_a_user_without_records_is_no_trouble(make_model: MakeModel) -> None:
    records = _grouped(_records(make_model(), 6, seed=1))
    records = replace(records, users=(*records.users, "nobody"))
    rates = replace(SETTINGS, group_shares=SHARES).rates(records)
    assert isinstance(rates, np.ndarray) and rates.shape == (7,) and rates[6] == SETTINGS.sample_rate


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_no_group_enters_more_often_than_is_accounted(share: float) -> None:
    with pytest.raises(ValueError, match="at most 1"):
        replace(SETTINGS, group_shares=(1.0, share))


def test_the_ledgers_epsilon_covers_every_group() -> None:
    """Sampling at a lower rate costs less, at every sigma and number of steps."""
    scenario = load_scenario(None, None, 0)
    plan = plan_segment(scenario.card, scenario.tenant_file(scenario.tenants[0], epsilon=3.0))
    claimed = compose([plan.train_event] * 5, 1e-5).epsilon
    for share in (0.9, 0.5, 0.1):
        assert compose([replace(plan.train_event, sample_rate=plan.sample_rate * share)] * 5, 1e-5).epsilon < claimed


def test_the_cohort_samples_groups_as_the_deployed_trainer(make_model: MakeModel) -> None:
    model = make_model()
    cache = PrefixCache(model)
    settings = replace(SETTINGS, group_shares=SHARES)
    records, start = _grouped(_records(model, 30, seed=2)), _start(model, 0)
    expected = PrivateTrainer(model=model, cache=cache, settings=settings).train(
        start, records, steps=3, randomness=NoNoise(1, 2)
    )
    [found] = CohortTrainer(model, cache).train([TrainingJob(settings, start, records, 3, NoNoise(1, 2))])
    [other] = CohortTrainer(model, cache).train([TrainingJob(SETTINGS, start, records, 3, NoNoise(1, 2))])
    assert _distance(found, expected) <= 1e-5 < _distance(other, expected)


def test_small_tenants_train_longer_with_the_noise_of_it() -> None:
    scenario = load_scenario(None, None, 0)
    small, large = (
        scenario.tenant_file(replace(scenario.tenants[0], declared_users=users), epsilon=3.0) for users in (99, 100)
    )
    spec = MitigationSpec(kind="longer-training", below=100, times=3)
    plan, plain = spec.plan(scenario.card, small), plan_segment(scenario.card, small)
    assert plan.local_steps == 3 * plain.local_steps and plan.cap_steps == 3 * plain.cap_steps
    assert plan.noise_multiplier > plain.noise_multiplier and plan.card_hash == scenario.card.hash
    rounds = plan.cap_steps // plan.local_steps
    assert compose([plan.train_event] * rounds, plan.delta).epsilon <= 3.0
    assert spec.plan(scenario.card, large) == plan_segment(scenario.card, large)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"kind": "group-rates", "group_shares": {"elsewhere": 0.5}}, "is no group of the card"),
        ({"kind": "group-rates", "group_shares": {"south": 1.5}}, "at most 1"),
    ],
)
def test_shares_that_cannot_be_used_are_refused(spec: dict[str, Any], problem: str) -> None:
    scenario = load_scenario(None, None, 0)
    task = {"group": {"attribute": "region", "values": ["north", "south"]}}
    with pytest.raises(ConfigError, match=problem):
        MitigationSpec(**spec).training(changed(scenario.card, task=task), scenario.template)


def test_what_the_server_does_is_on_the_card() -> None:
    card = load_scenario(None, None, 0).card
    assert MitigationSpec().on_card(card) == card
    assert MitigationSpec(kind="q-weights", q=2.0).on_card(card).aggregation.fairness_q == 2.0
    assert MitigationSpec(kind="worst-tenants").on_card(card).aggregation.fairness == "worst-tenants"


def _cells(path: Path) -> dict[str, Any]:
    experiment = load_experiment(path)
    runner = CellRunner(experiment)
    return {cell.name: runner.run(cell, lambda done, rounds: None) for cell in experiment.cells()}


def test_arms_train_with_whom_they_say_and_are_judged_on_the_same_people(write_experiment: WriteExperiment) -> None:
    found = _cells(write_experiment(sweep={"arm": ["federated", "alone", "pooled"], "epsilon": [8.0]}))
    federated, alone, pooled = found.values()
    for outcome in (alone, pooled):
        for column in ("tenant", "user", "label"):
            assert outcome.predictions[column].equals(federated.predictions[column])
        assert not np.allclose(outcome.predictions["p1"], federated.predictions["p1"])
    spent = {arm: {t["spent"]["epsilon"] for t in outcome.result["tenants"]} for arm, outcome in found.items()}
    assert all(0 < value <= 8.0 for values in spent.values() for value in values)
    # Alone, the first tenant's model owes nothing to the others' records: it is the one of a federation of one.
    only = _cells(write_experiment(sweep={"arm": ["alone"], "epsilon": [8.0]}))
    assert next(iter(only.values())).predictions.equals(alone.predictions)


def test_each_mitigation_runs_and_changes_what_it_should(write_experiment: WriteExperiment) -> None:
    kinds = ["none", "group-rates", "q-weights", "worst-tenants", "longer-training", "thresholds"]
    path = write_experiment(
        data={"dataset": "known", "options": {"tenants": 3, "users": 900}},
        partition={"kind": "natural"},
        card={
            "training": {"rounds": 2, "local_steps": 2},
            "base": load_experiment(write_experiment()).card["base"],
            "adapter": {"rank": 2},
            "evaluation": {"when": "every-round"},
        },
        mitigation={"group_shares": {"a": 0.5}, "below": 1000},
        sweep={"mitigation.kind": kinds, "epsilon": [float("inf")]},
    )
    found = _cells(path)
    hashes = {kind: found[f"kind-{kind}_epsilon-inf"].result["adapter_sha256"] for kind in kinds}
    # Thresholds are set after the run, and change no adapter.
    assert hashes["thresholds"] == hashes["none"]
    assert len({hashes[kind] for kind in kinds if kind != "thresholds"}) == len(kinds) - 1
    thresholds = found["kind-thresholds_epsilon-inf"].result["thresholds"]
    assert thresholds["column"] == "gender" and set(thresholds["by_group"]) <= {"a", "b"}
    assert found["kind-none_epsilon-inf"].result["thresholds"] is None
