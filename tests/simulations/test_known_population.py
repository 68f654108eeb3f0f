"""The population with known truth: closed forms against fairlearn on what is drawn, and files that show the truth."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import (
    MetricFrame,
    demographic_parity_difference,
    equalized_odds_difference,
    false_positive_rate,
    selection_rate,
    true_positive_rate,
)
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score
from tests.simulations.conftest import WriteExperiment

from fedprofile.common.config import validate
from fedprofile.common.errors import ConfigError
from fedprofile.common.interactions import encode
from fedprofile.common.modeling.base import embedded_folder, load_base, resolve_base
from fedprofile.simulations.cells import CellRunner
from fedprofile.simulations.experiment import load_experiment
from fedprofile.simulations.known_population import (
    bayes_predictions,
    bayes_probability,
    draw,
    known_population,
)
from fedprofile.simulations.known_spec import COLUMNS, GroupValue, KnownSpec, PlantedBias
from fedprofile.simulations.known_truth import SHOWN, bayes_gaps, bayes_rates, joint_law
from fedprofile.simulations.population import EAGER, INTERESTS
from fedprofile.simulations.scenarios import load_scenario
from fedprofile.simulations.tenants import read_tenants

SEEDS = 100
REPLICATES = 1000


def _other() -> KnownSpec:
    """Far from the defaults: three regions, bias against one of them, unequal interests, much noise."""
    return KnownSpec(
        users=30_000,
        tenants=3,
        skew=1.0,
        gender={"a": GroupValue(share=0.5, base_rate=0.4), "b": GroupValue(share=0.5, label_noise=0.2, history=3)},
        region={
            "north": GroupValue(share=0.5, history=2),
            "south": GroupValue(share=0.3, base_rate=0.5, history=6),
            "west": GroupValue(share=0.2, label_noise=0.1, history=7),
        },
        bias=PlantedBias(column="region", value="south", size=0.3),
        interests={"outdoor": 0.1, "kitchen": 0.6, "games": 0.3},
        season="kitchen",
        focus=0.6,
        eagerness=(2.0, 1.0),
        max_history=7,
        intercept=-3.0,
    )


# The figure: the closed form and the bootstrap.


def _gaps(counts: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Demographic parity and equalised-odds difference of counts [..., group, label, prediction]."""
    of_label = counts.sum(axis=-1)
    selected = counts[..., 1].sum(axis=-1) / of_label.sum(axis=-1)
    rates = counts[..., 1] / of_label
    spans = rates.max(axis=-2) - rates.min(axis=-2)
    return np.stack([selected.max(axis=-1) - selected.min(axis=-1), spans.max(axis=-1)], axis=-1)


def _counts(table: pd.DataFrame, column: str) -> NDArray[np.int64]:
    groups, values = pd.factorize(table[f"group:{column}"])
    cells = (groups * 2 + table["label"]) * 2 + (table["p1"] >= 0.5)
    return np.bincount(cells, minlength=4 * len(values)).reshape(len(values), 2, 2)


def _fairlearn_gaps(table: pd.DataFrame, column: str, weight: NDArray[np.int64] | None = None) -> list[float]:
    chosen = table["p1"] >= 0.5
    return [
        metric(table["label"], chosen, sensitive_features=table[f"group:{column}"], sample_weight=weight)
        for metric in (demographic_parity_difference, equalized_odds_difference)
    ]


def test_closed_form_gaps_lie_in_the_bootstrap_interval_in_at_least_90_of_100_seeds() -> None:
    # A user has one record, so that resampling users resamples the cells of (group, label, prediction), of which the
    # metrics are functions: all replicates at once.
    spec = KnownSpec()
    truth = bayes_gaps(spec)
    wanted = {
        column: [truth[column][f"{name}_difference"] for name in ("demographic_parity", "equalized_odds")]
        for column in COLUMNS
    }
    assert min(min(gaps) for gaps in wanted.values()) > 0.15
    inside: dict[str, list[NDArray[np.bool_]]] = {column: [] for column in COLUMNS}
    for seed in range(SEEDS):
        table = bayes_predictions(draw(spec, seed))
        source = np.random.default_rng(seed)
        for column in COLUMNS:
            counts = _counts(table, column)
            draws = source.multinomial(len(table), counts.reshape(-1) / len(table), size=REPLICATES)
            low, high = np.quantile(_gaps(draws.reshape(REPLICATES, *counts.shape)), [0.025, 0.975], axis=0)
            inside[column].append((low <= wanted[column]) & (wanted[column] <= high))
    for column in COLUMNS:
        both = np.array(inside[column])
        assert both.sum(axis=0).min() >= 90, (column, both.sum(axis=0))
        assert both.all(axis=1).sum() >= 90, (column, "both gaps at once")


def test_the_vectorised_gaps_are_fairlearns() -> None:
    table = bayes_predictions(draw(KnownSpec(), 5))
    source = np.random.default_rng(0)
    for column in COLUMNS:
        assert _gaps(_counts(table, column)) == pytest.approx(_fairlearn_gaps(table, column), abs=1e-12)
        for _ in range(5):
            times = source.multinomial(len(table), np.full(len(table), 1 / len(table)))
            again = table.loc[table.index.repeat(times)].reset_index(drop=True)
            assert _gaps(_counts(again, column)) == pytest.approx(_fairlearn_gaps(table, column, times), abs=1e-12)


# The law.


@pytest.mark.parametrize("spec", [KnownSpec(users=30_000), _other()], ids=["default", "other"])
def test_rates_in_closed_form_are_fairlearns_over_many_users(spec: KnownSpec) -> None:
    table = bayes_predictions(draw(spec, 1))
    metrics = {
        "base_rate": lambda truth, _: float(np.mean(truth)),
        "selection_rate": selection_rate,
        "true_positive_rate": true_positive_rate,
        "false_positive_rate": false_positive_rate,
        "accuracy": accuracy_score,
    }
    for columns in (COLUMNS[:1], COLUMNS[1:], COLUMNS):
        exact = bayes_rates(spec, columns)
        groups = table[f"group:{columns[0]}"]
        for column in columns[1:]:
            groups = groups + " & " + table[f"group:{column}"]
        names = pd.Categorical(groups, categories=exact.index)
        measured = MetricFrame(
            metrics=metrics,
            y_true=table["label"].to_numpy(),
            y_pred=(table["p1"] >= 0.5).to_numpy().astype(int),
            sensitive_features=names.codes,
        ).by_group
        count = spec.users * exact["share"].to_numpy()
        positives = count * exact["base_rate"].to_numpy()
        deviations = [(np.bincount(names.codes) - count) / np.sqrt(count * (1 - exact["share"].to_numpy()))]
        for name in metrics:
            rate = exact[name].to_numpy()
            trials = {"true_positive_rate": positives, "false_positive_rate": count - positives}.get(name, count)
            deviations.append((measured[name].to_numpy() - rate) / np.sqrt(rate * (1 - rate) / trials))
        assert np.abs(deviations).max() < 4


def test_the_probability_is_calibrated_in_every_shown_state_and_no_group_is_seen() -> None:
    users = draw(_other().model_copy(update={"users": 200_000}), 2).users
    states = users.groupby(SHOWN).agg(
        probability=("probability", "first"),
        kinds=("probability", "nunique"),
        rate=("label", "mean"),
        n=("label", "size"),
    )
    assert (states["kinds"] == 1).all()
    large = states[states["n"] >= 250]
    rate, probability, count = (large[name].to_numpy(np.float64) for name in ("rate", "probability", "n"))
    errors: NDArray[np.float64] = (rate - probability) / np.sqrt(probability * (1 - probability) / count)
    assert len(large) > 100
    assert errors.std() == pytest.approx(1, abs=0.15)
    assert np.abs(errors).max() < 4.5


def test_masses_sum_to_one_and_marginals_are_the_settings() -> None:
    spec = _other()
    law = joint_law(spec)
    assert law["mass"].sum() == pytest.approx(1, abs=1e-12)
    for column in COLUMNS:
        assert law.groupby(column)["mass"].sum().tolist() == pytest.approx(spec.of_values(column, "share"))
    mean = (law["length"] * law["mass"]).groupby([law["gender"], law["region"]]).sum()
    mean = mean / law.groupby(["gender", "region"])["mass"].sum()
    settings = spec.of_values("gender", "history")[:, None] + spec.of_values("region", "history")
    assert mean.to_numpy() == pytest.approx(settings.reshape(-1) / 2)


def test_without_differences_between_groups_there_is_no_gap() -> None:
    alike = {"a": GroupValue(share=0.6), "b": GroupValue(share=0.4)}
    for sees_groups in (False, True):
        gaps = bayes_gaps(KnownSpec(gender=alike, region=alike, bias=None), sees_groups=sees_groups)
        assert max(max(found.values()) for found in gaps.values()) < 1e-12


def test_the_planted_bias_takes_its_share_of_one_groups_positive_labels() -> None:
    spec = KnownSpec(bias=PlantedBias(size=0.25))
    fair, biased = (bayes_rates(one, ["gender"])["base_rate"] for one in (spec.model_copy(update={"bias": None}), spec))
    assert biased["a"] == pytest.approx(fair["a"], abs=1e-12)
    assert biased["b"] == pytest.approx(0.75 * fair["b"], abs=1e-12)


def test_seeing_the_groups_never_makes_the_bayes_rule_worse() -> None:
    for spec in (KnownSpec(), _other()):
        unseen, seen = (bayes_rates(spec, sees_groups=sees)["accuracy"].iloc[0] for sees in (False, True))
        assert seen > unseen > 0.6


# What is drawn and written.


def test_tenants_have_equal_sizes_and_the_population_its_law_at_every_skew() -> None:
    spreads: list[tuple[float, ...]] = []
    for skew in (0.0, 0.5, 1.0):
        population = draw(KnownSpec(users=40_000, skew=skew), 0)
        sizes = np.array(list(population.tenants.values()))
        assert len(sizes) == 20
        assert sizes.min() > 1800 and sizes.max() < 2200
        assert (population.users["gender"] == "b").mean() == pytest.approx(0.3, abs=0.01)
        by_tenant = population.users.assign(b=population.users["gender"] == "b").groupby("tenant")
        spreads.append(tuple(by_tenant[["b", "season"]].mean().std()))
    assert spreads[0][0] < 0.02 and spreads[0][1] < 0.06
    assert spreads[2][0] > spreads[1][0] > 0.1
    assert spreads[2][1] > spreads[1][1] > 0.3


def test_the_deployed_reader_sees_the_history_and_no_group() -> None:
    scenario = load_scenario("known", None, 3, {"users": 600, "tenants": 5})
    population = known_population({"users": 600, "tenants": 5}, 3)
    users = population.users.set_index("visitor")
    visits = users["visits"].astype(float).to_dict()
    tenants = read_tenants(scenario, split_seed=0)
    assert {tenant.name: len(tenant.examples) for tenant in tenants} == population.tenants
    assert sum(population.tenants.values()) == 600
    for tenant in tenants:
        assert set(tenant.groups) == {example.user for example in tenant.examples}
        for example in tenant.examples:
            truth = users.loc[example.user]
            assert truth["tenant"] == tenant.name
            assert example.label == truth["label"]
            assert dict(example.row) == {"visits": visits[example.user]}
            assert tenant.groups[example.user] == {"gender": truth["gender"], "region": truth["region"]}
            actions = Counter(event["action"] in EAGER for event in example.events)
            season = sum(event["item"] in INTERESTS["outdoor"] for event in example.events)
            assert (len(example.events), actions[True], season) == tuple(truth[["length", "eager", "season"]])
            assert all(set(event) == {"action", "item"} for event in example.events)


@pytest.mark.base
@pytest.mark.skipif(embedded_folder() is None, reason="the embedded base model is not installed")
def test_no_history_is_cut() -> None:
    scenario = load_scenario("known", None, 0)
    tokenizer = load_base(resolve_base(scenario.card.base))[1]
    longest = scenario.card.model_copy(
        update={"history": scenario.card.history.model_copy(update={"max_tokens": 512, "max_events": 64})}
    )
    some = replace(scenario, tenants=scenario.tenants[:5])
    for tenant in read_tenants(some, split_seed=0):
        whole = encode(tenant.examples, longest, tokenizer)
        kept = encode(tenant.examples, scenario.card, tokenizer)
        assert [tokens.tolist() for tokens in whole.tokens] == [tokens.tolist() for tokens in kept.tokens]


def test_an_experiment_runs_on_it(write_experiment: WriteExperiment) -> None:
    experiment = load_experiment(
        write_experiment(data={"dataset": "known", "limit": 30}, partition={"kind": "natural", "smallest": 10})
    )
    result = CellRunner(experiment).run(experiment.cells()[0], lambda done, rounds: None).result
    assert result["rounds"] == 2 and len(result["tenants"]) == 20
    assert sum(tenant["training_users"] + tenant["evaluation_users"] for tenant in result["tenants"]) == 600


def test_predictions_have_the_form_of_a_models() -> None:
    population = draw(KnownSpec(users=300), 0)
    table = bayes_predictions(population)
    assert list(table.columns) == ["tenant", "user", "label", "p0", "p1", "group:gender", "group:region"]
    assert [str(table[name].dtype) for name in ("user", "label", "p0", "p1")] == ["int64"] * 2 + ["float64"] * 2
    assert table["user"].is_unique and (table["p0"] + table["p1"]).tolist() == pytest.approx([1.0] * 300)
    assert list(bayes_probability(population).values()) == table["p1"].tolist()


def test_a_population_is_a_function_of_settings_and_seed() -> None:
    first, again, other = (draw(KnownSpec(users=200), seed).users for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    assert not first["label"].equals(other["label"])


def test_the_minoritys_size_is_one_setting() -> None:
    spec = KnownSpec(minority=0.05)
    assert spec.of_values("gender", "share").tolist() == pytest.approx([0.95, 0.05])
    assert bayes_rates(spec, ["gender"])["share"].tolist() == pytest.approx([0.95, 0.05])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"gender": {"a": {"share": 0.5}, "b": {"share": 0.4}}}, "gender: the shares add up to 0.9"),
        ({"interests": {"outdoor": 0.5, "cars": 0.5}}, "'cars' is no interest"),
        ({"season": "winter"}, "'winter' is no interest"),
        ({"bias": {"value": "c"}}, "'c' is no value of gender"),
        ({"max_history": 3}, "above max_history"),
        ({"eagerness": [0.0, 1.0]}, "Beta distribution"),
        ({"userz": 5}, "did you mean 'users'"),
        ({"skew": 1.5}, "less than or equal to 1"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        validate(options, KnownSpec, "data.options")
    with pytest.raises(ConfigError, match=problem):
        load_scenario("known", None, 0, options)
