"""Thresholds from noised tables: gaps fall on records that the fit never saw, and nothing but the table is used."""

import inspect

import numpy as np
import pytest
from fairlearn.metrics import demographic_parity_difference, equal_opportunity_difference
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score

from fedprofile.client.evaluation import evaluation_table
from fedprofile.common.errors import ConfigError
from fedprofile.common.evaluation_tables import table_shape
from fedprofile.common.tasks import BinaryTask, MulticlassTask
from fedprofile.simulations.predictions import GroupThresholds
from fedprofile.simulations.thresholds import fit_thresholds

TASK = BinaryTask.model_validate(
    {"kind": "binary", "labels": ["no", "yes"], "group": {"attribute": "kind", "values": ["a", "b"]}}
)
NAMES = np.array(["a", "b", "other"])


def _people(seed: int, users: int) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Labels, scores and group numbers; scores of group b are too low."""
    draw = np.random.default_rng(seed)
    group = draw.choice(2, users, p=[0.6, 0.4])
    logit = draw.normal(0.0, 1.5, users)
    label = (draw.random(users) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    return label, 1 / (1 + np.exp(-(logit - 1.0 * (group == 1)))), group


def _table(seed: int, users: int, noise: float) -> NDArray[np.float64]:
    label, score, group = _people(seed, users)
    table = evaluation_table(
        np.column_stack([1 - score, score]), labels=label, groups=group, user=np.arange(users), task=TASK
    )
    return table + noise * np.random.default_rng([seed, 1]).normal(size=table.shape)


@pytest.mark.parametrize("noise", [1e-3, 5.0])
def test_the_gap_of_equal_opportunity_falls_for_people_who_were_not_in_the_table(noise: float) -> None:
    thresholds = fit_thresholds(_table(0, 6000, noise), noise**2, TASK)
    label, score, group = _people(1, 20_000)
    plain, mitigated = (score >= 0.5).astype(int), thresholds.decide(score, NAMES[group])
    before = equal_opportunity_difference(label, plain, sensitive_features=group)
    after = equal_opportunity_difference(label, mitigated, sensitive_features=group)
    assert before > 0.2
    assert after < 0.05
    assert accuracy_score(label, mitigated) > accuracy_score(label, plain) - 0.01


def test_the_gap_of_demographic_parity_falls() -> None:
    thresholds = fit_thresholds(_table(0, 6000, 1e-3), 1e-6, TASK, "demographic_parity")
    label, score, group = _people(1, 20_000)
    plain, mitigated = (score >= 0.5).astype(int), thresholds.decide(score, NAMES[group])
    assert demographic_parity_difference(label, plain, sensitive_features=group) > 0.2
    assert demographic_parity_difference(label, mitigated, sensitive_features=group) < 0.05


def test_thresholds_are_a_function_of_the_table_and_decide_without_lots() -> None:
    assert list(inspect.signature(fit_thresholds).parameters) == ["table", "noise_variance", "task", "constraint"]
    table = _table(0, 3000, 2.0)
    first, second = fit_thresholds(table, 4.0, TASK), fit_thresholds(table.copy(), 4.0, TASK)
    assert first == second
    assert set(first.by_group) == {"a", "b"}
    assert first.by_group["b"] < first.by_group["a"]
    _, score, group = _people(2, 500)
    np.testing.assert_array_equal(first.decide(score, NAMES[group]), second.decide(score, NAMES[group]))


def test_the_table_itself_has_the_same_rate_in_both_groups() -> None:
    """Scores evenly within a bin, so that a threshold within a bin has a rate that is known."""
    table = np.zeros((3, 2, 10))
    table[0, 1], table[0, 0] = np.arange(10) * 40, np.arange(10)[::-1] * 40
    table[1, 1], table[1, 0] = np.arange(10)[::-1] * 30 + 5, np.full(10, 60)
    thresholds = fit_thresholds(table.ravel(), 1e-9, TASK)
    rates = []
    for place, name in enumerate("ab"):
        edge, counts = thresholds.by_group[name] * 10, table[place, 1]
        whole = int(edge)
        part = counts[whole] * (whole + 1 - edge) if whole < 10 else 0.0
        rates.append((counts[whole + 1 :].sum() + part) / counts.sum())
    assert rates[0] == pytest.approx(rates[1], abs=1e-9)


def test_a_group_that_the_noise_hides_keeps_the_usual_threshold() -> None:
    noise = 3.0
    thresholds = fit_thresholds(_table(0, 6000, noise), noise**2, TASK)
    assert "other" not in thresholds.by_group, "nobody is in it: its cells are noise"
    assert thresholds.default == 0.5
    with pytest.raises(ConfigError, match=r"0 group\(s\) of 'kind' stand out of the noise"):
        fit_thresholds(_table(0, 100, 30.0), 900.0, TASK)


def test_what_the_card_does_not_name_is_decided_as_its_last_value() -> None:
    table = _table(0, 6000, 1e-3).reshape(3, 2, 10)
    table[2] = table[1]
    thresholds = fit_thresholds(table.ravel(), 1e-6, TASK)
    assert thresholds.default == thresholds.by_group["other"]
    assert thresholds.decide(np.array([thresholds.default]), np.array(["unheard of"])).tolist() == [1]


def test_other_tasks_and_tables_are_refused() -> None:
    multi = MulticlassTask.model_validate({"kind": "multiclass", "labels": ["x", "y", "z"]})
    with pytest.raises(ConfigError, match="need a binary task"):
        fit_thresholds(np.zeros(table_shape(multi)), 1.0, multi)
    with pytest.raises(ConfigError, match=r"expected .60,."):
        fit_thresholds(np.zeros(40), 1.0, TASK)


def test_groups_are_decided_by_their_own_threshold() -> None:
    thresholds = GroupThresholds("kind", {"a": 0.7, "b": 0.2}, default=0.4)
    scores, groups = np.array([0.6, 0.7, 0.1, 0.3, 0.3, 0.5]), np.array(["a", "a", "b", "b", "c", "c"])
    assert thresholds.decide(scores, groups).tolist() == [0, 1, 0, 1, 0, 1]
