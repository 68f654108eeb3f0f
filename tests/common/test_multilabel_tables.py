"""Labels that do not exclude one another, from tables: against scikit-learn's numbers, and whether intervals hold."""

import numpy as np
import pytest
from sklearn.metrics import hamming_loss, roc_auc_score

from fedprofile.common.evaluation_tables import metrics_from_table, table_cells, table_shape
from fedprofile.common.tasks import MultilabelTask

TASK = MultilabelTask.model_validate(
    {
        "kind": "multilabel",
        "labels": ["drama", "comedy", "war"],
        "group": {"attribute": "region", "values": ["north", "south"]},
    }
)


def _people(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores [n, 3] in the middles of bins, truth [n, 3], and groups [n]."""
    truth = rng.random((n, 3)) < [0.5, 0.3, 0.2]
    scores = np.clip(0.4 + 0.25 * truth + rng.normal(0, 0.2, (n, 3)), 0, 0.999)
    return np.floor(scores * 10) / 10 + 0.05, truth, rng.choice(3, n, p=[0.5, 0.3, 0.2])


def _table(scores: np.ndarray, truth: np.ndarray, groups: np.ndarray) -> np.ndarray:
    table = np.zeros(table_shape(TASK))
    np.add.at(table, table_cells(TASK, scores, truth @ [1, 2, 4], groups), 1 / 3)
    return table


def test_metrics_of_an_exact_table_are_scikit_learns() -> None:
    scores, truth, groups = _people(np.random.default_rng(0), 3000)
    metrics = metrics_from_table(_table(scores, truth, groups), 1e-12, TASK)
    for name, rows in (("", groups >= 0), (":north", groups == 0), (":south", groups == 1), (":other", groups == 2)):
        area, right = metrics[f"macro_auc{name}"], metrics[f"label_accuracy{name}"]
        assert area is not None and right is not None
        assert area.value == pytest.approx(roc_auc_score(truth[rows], scores[rows], average="macro"))
        assert right.value == pytest.approx(1 - hamming_loss(truth[rows], scores[rows] >= 0.5))
    for place, label in enumerate(TASK.labels):
        own = metrics[f"auc:{label}"]
        assert own is not None and own.value == pytest.approx(roc_auc_score(truth[:, place], scores[:, place]))


@pytest.mark.parametrize("metric", ["macro_auc", "label_accuracy", "auc:war"])
def test_intervals_hold_the_truth_at_least_as_often_as_they_say(metric: str) -> None:
    """Those of a mean over labels are wider than need be: labels' errors are taken to go the same way."""
    rng = np.random.default_rng(1)
    truth = metrics_from_table(_table(*_people(rng, 200_000)), 1e-12, TASK)[metric]
    assert truth is not None
    sigma, trials, held = 1.0, 300, 0
    for _ in range(trials):
        exact = _table(*_people(rng, 900))
        told = metrics_from_table(exact + rng.normal(size=exact.shape) * sigma, sigma**2, TASK)[metric]
        assert told is not None
        held += told.low <= truth.value <= told.high
    assert held / trials >= 0.91


def test_a_label_that_nobody_has_leaves_the_mean_unsaid() -> None:
    scores, truth, groups = _people(np.random.default_rng(2), 600)
    truth[:, 2] = False
    metrics = metrics_from_table(_table(scores, truth, groups), 1.0, TASK)
    assert metrics["auc:war"] is None and metrics["macro_auc"] is None
    assert metrics["auc:drama"] is not None and metrics["label_accuracy"] is not None


def test_noise_alone_says_nothing() -> None:
    rng = np.random.default_rng(3)
    size = table_shape(TASK)[0]
    for table in (rng.normal(size=size) * 3, np.zeros(size), np.full(size, -10.0)):
        assert set(metrics_from_table(table, 9.0, TASK).values()) == {None}
