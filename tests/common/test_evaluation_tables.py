"""What a summed table says: against exact counting, and whether its intervals hold what they promise."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedprofile.common.accounting import ACCOUNTED_SHARE, MechanismEvent, compose
from fedprofile.common.card import FederationCard
from fedprofile.common.evaluation_tables import (
    SCORE_BINS,
    estimated_users,
    evaluation_noise,
    metrics_from_table,
    table_shape,
)
from fedprofile.common.tasks import BinaryTask, MulticlassTask

BINARY = BinaryTask.model_validate(
    {"kind": "binary", "labels": ["no", "yes"], "group": {"attribute": "region", "values": ["north", "south"]}}
)
MULTI = MulticlassTask.model_validate({"kind": "multiclass", "labels": ["a", "b", "c"]})


def _binary_table(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    table = np.zeros((3, 2, SCORE_BINS))
    np.add.at(table, (groups, labels, np.minimum((scores * SCORE_BINS).astype(int), SCORE_BINS - 1)), 1.0)
    return table.ravel()


def _people(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels = (rng.random(n) < 0.3).astype(int)
    scores = 1 / (1 + np.exp(-(rng.normal(size=n) + 1.2 * labels - 0.6)))
    return labels, scores, rng.choice(3, n, p=[0.5, 0.3, 0.2])


def test_shapes() -> None:
    assert table_shape(BINARY) == (3 * 2 * 10,)
    assert table_shape(MULTI) == (1 * 3 * 2 + 3,)


def test_binary_metrics_of_an_exact_table_are_the_metrics_of_binned_scores() -> None:
    labels, scores, groups = _people(np.random.default_rng(0), 4000)
    metrics = metrics_from_table(_binary_table(labels, scores, groups), 1e-12, BINARY)
    binned = np.floor(scores * SCORE_BINS)
    for name, rows in (
        ("", np.full(4000, True)),
        (":north", groups == 0),
        (":south", groups == 1),
        (":other", groups == 2),
    ):
        auc, accuracy = metrics[f"auc{name}"], metrics[f"accuracy{name}"]
        assert auc is not None and accuracy is not None
        assert auc.value == pytest.approx(roc_auc_score(labels[rows], binned[rows]), abs=1e-12)
        assert accuracy.value == pytest.approx(((scores[rows] >= 0.5) == labels[rows]).mean(), abs=1e-12)
        assert auc.low < auc.value < auc.high


def test_multiclass_metrics_of_an_exact_table() -> None:
    right_wrong = np.array([[10, 30], [5, 15], [20, 20]]) / 2  # label x {wrong, right}, half the weight
    table = np.concatenate([right_wrong.ravel(), np.array([40, 30, 30]) / 2])
    metrics = metrics_from_table(table, 1e-12, MULTI)
    values = {name: interval.value for name, interval in metrics.items() if interval is not None}
    assert values == pytest.approx({"accuracy": 0.65, "recall:a": 0.75, "recall:b": 0.75, "recall:c": 0.5})


@pytest.mark.parametrize("metric", ["auc", "accuracy", "auc:south", "accuracy:south"])
def test_intervals_hold_the_truth_about_as_often_as_they_say(metric: str) -> None:
    """The truth is the value over a large population; people and noise are drawn anew each time."""
    rng = np.random.default_rng(1)
    truth = metrics_from_table(_binary_table(*_people(rng, 400_000)), 1e-12, BINARY)[metric]
    assert truth is not None
    sigma, trials, held = 2.0, 400, 0
    for _ in range(trials):
        exact = _binary_table(*_people(rng, 1500))
        told = metrics_from_table(exact + rng.normal(size=exact.shape) * sigma, sigma**2, BINARY)[metric]
        assert told is not None
        held += told.low <= truth.value <= told.high
    assert 0.91 <= held / trials <= 0.995


def test_multiclass_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(2)
    sigma, trials, held = 3.0, 400, 0
    for _ in range(trials):
        labels, right = rng.integers(0, 3, 800), rng.random(800) < 0.6
        table = np.zeros(9)
        np.add.at(table, labels * 2 + right, 0.5)
        told = metrics_from_table(table + rng.normal(size=9) * sigma, sigma**2, MULTI)["accuracy"]
        assert told is not None
        held += told.low <= 0.6 <= told.high
    assert 0.91 <= held / trials <= 0.995


def test_negative_cells_are_not_clipped_before_the_ratio() -> None:
    """Averaged over the noise the accuracy of a sparse table is right; clipping would pull it towards one half."""
    rng = np.random.default_rng(3)
    exact = np.zeros((3, 2, SCORE_BINS))
    exact[0, 0, 1] = 900.0
    exact[0, 1, 8] = 100.0
    values: list[float] = []
    clipped: list[float] = []
    for _ in range(2000):
        noisy = exact.ravel() + rng.normal(size=60) * 5
        for table, found in ((noisy, values), (np.clip(noisy, 0, None), clipped)):
            told = metrics_from_table(table, 25.0, BINARY)["accuracy"]
            found.append(told.value if told is not None else np.nan)
    # Values are cut at 1, so the mean lies a little below; clipping of cells costs far more.
    assert np.mean(values) > 0.98
    assert np.mean(clipped) < 0.96


def test_too_few_to_say_below_five_noise_deviations() -> None:
    def table(users: float) -> np.ndarray:
        cells = np.zeros((3, 2, SCORE_BINS))
        cells[1, 0, 2] = cells[1, 1, 7] = users / 2
        return cells.ravel()

    sigma = 2.0
    per_group, whole = sigma * np.sqrt(20), sigma * np.sqrt(60)
    assert metrics_from_table(table(5.01 * per_group), sigma**2, BINARY)["accuracy:south"] is not None
    assert metrics_from_table(table(4.99 * per_group), sigma**2, BINARY)["accuracy:south"] is None
    assert metrics_from_table(table(5.01 * whole), sigma**2, BINARY)["accuracy"] is not None
    assert metrics_from_table(table(4.99 * whole), sigma**2, BINARY)["accuracy"] is None
    # The AUC needs both labels: each sum over ten bins carries sqrt(10) sigma, and sqrt(3) more over three groups.
    each = sigma * np.sqrt(10)
    assert metrics_from_table(table(2 * 5.01 * each), sigma**2, BINARY)["auc:south"] is not None
    assert metrics_from_table(table(2 * 4.99 * each), sigma**2, BINARY)["auc:south"] is None


def test_pure_noise_and_nothing_say_nothing() -> None:
    rng = np.random.default_rng(4)
    for table in (rng.normal(size=60) * 3, np.zeros(60), np.full(60, -10.0)):
        assert set(metrics_from_table(table, 9.0, BINARY).values()) == {None}
    assert set(metrics_from_table(np.zeros(60), 0.0, BINARY).values()) == {None}


def test_estimated_users_are_the_total_with_its_noise() -> None:
    told = estimated_users(np.full(60, 10.0), 4.0, BINARY)
    assert told.value == 600
    assert told.high - told.value == pytest.approx(1.96 * np.sqrt(60 * 4), rel=1e-3)


def test_the_noise_keeps_all_the_cards_tables_within_the_promise(card_data: Any) -> None:
    for when, tables in (("end", 1), ("every-round", 11), ("never", 1)):
        card = FederationCard.model_validate(card_data(evaluation={"when": when}, training={"rounds": 10}))
        sigma = evaluation_noise(card, 2.0, 1e-5)
        spent = compose([MechanismEvent(1.0, ACCOUNTED_SHARE * sigma, tables)], 1e-5).epsilon
        assert 1.98 < spent <= 2.0
    # PRIVACY.md's figures for the exact Gaussian mechanism: 2.0 for one table.
    card = FederationCard.model_validate(card_data(evaluation={"when": "end"}))
    assert evaluation_noise(card, 2.0, 1e-5) == pytest.approx(2.0, abs=0.05)
