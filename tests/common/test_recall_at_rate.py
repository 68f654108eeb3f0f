"""Recall at a false-positive rate from score bins: against a sweep over thresholds, its gradient, and its interval."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from fedprofile.common.classification_tables import _recall_at
from fedprofile.common.evaluation_tables import metrics_from_table
from fedprofile.common.tasks import BinaryTask

RATE = 0.05
NAME = "recall_at_fpr_0.05"
TASK = BinaryTask.model_validate(
    {
        "kind": "binary",
        "labels": ["no", "fraud"],
        "false_positive_rate": RATE,
        "group": {"attribute": "region", "values": ["north", "south"]},
    }
)


def _people(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels = (rng.random(n) < 0.15).astype(int)
    scores = 1 / (1 + np.exp(-(1.3 * rng.normal(size=n) + 2.5 * labels - 1.5)))
    return labels, scores, rng.choice(3, n, p=[0.5, 0.3, 0.2])


def _table(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    table = np.zeros((3, 2, 10))
    np.add.at(table, (groups, labels, np.minimum((scores * 10).astype(int), 9)), 1.0)
    return table.ravel()


def test_an_exact_table_gives_the_binned_roc_curve_at_the_rate() -> None:
    labels, scores, groups = _people(np.random.default_rng(0), 5000)
    metrics = metrics_from_table(_table(labels, scores, groups), 1e-12, TASK)
    for name, rows in (("", groups >= 0), (":north", groups == 0), (":south", groups == 1), (":other", groups == 2)):
        told = metrics[f"{NAME}{name}"]
        assert told is not None
        binned = roc_curve(labels[rows], np.floor(scores[rows] * 10), drop_intermediate=False)
        assert told.value == pytest.approx(np.interp(RATE, binned[0], binned[1]), abs=1e-12)
        exact = roc_curve(labels[rows], scores[rows])
        assert told.value == pytest.approx(np.interp(RATE, exact[0], exact[1]), abs=0.06)


def test_the_gradient_is_the_finite_difference() -> None:
    labels, scores, groups = _people(np.random.default_rng(1), 3000)
    block = _table(labels, scores, groups).reshape(3, 2, 10).sum(axis=0)
    value, gradient, _ = _recall_at(RATE, block, 1e-12)
    for cell in np.ndindex(block.shape):
        moved = block.copy()
        moved[cell] += 1e-4
        assert (_recall_at(RATE, moved, 1e-12)[0] - value) / 1e-4 == pytest.approx(gradient[cell], abs=1e-6)


@pytest.mark.parametrize("metric", [NAME, f"{NAME}:north"])
def test_intervals_hold_the_truth_about_as_often_as_they_say(metric: str) -> None:
    rng = np.random.default_rng(2)
    truth = metrics_from_table(_table(*_people(rng, 400_000)), 1e-12, TASK)[metric]
    assert truth is not None
    sigma, trials, held = 1.0, 300, 0
    for _ in range(trials):
        exact = _table(*_people(rng, 4000))
        told = metrics_from_table(exact + rng.normal(size=exact.shape) * sigma, sigma**2, TASK)[metric]
        assert told is not None
        held += told.low <= truth.value <= told.high
    assert 0.91 <= held / trials <= 0.998


def test_few_false_positives_say_nothing_and_a_card_without_a_rate_has_no_such_metric() -> None:
    labels, scores, groups = _people(np.random.default_rng(3), 5000)
    table = _table(labels, scores, groups)
    assert metrics_from_table(table, 64.0, TASK)[NAME] is None
    assert metrics_from_table(table, 64.0, TASK)["auc"] is not None
    for nothing in (np.zeros(60), np.full(60, -10.0)):
        assert metrics_from_table(nothing, 9.0, TASK)[NAME] is None
    plain = BinaryTask.model_validate({"kind": "binary", "labels": ["no", "yes"]})
    assert set(metrics_from_table(table.reshape(3, 20).sum(axis=0), 1.0, plain)) == {"auc", "accuracy"}
