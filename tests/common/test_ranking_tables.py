"""Ranks from tables: against scikit-learn's, whether intervals hold what they promise, and what noise alone says."""

import numpy as np
import pytest
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score, top_k_accuracy_score

from fedprofile.common.evaluation_tables import metrics_from_table, table_cells, table_shape
from fedprofile.common.tasks import RankingTask

TASK = RankingTask.model_validate(
    {
        "kind": "ranking",
        "candidates": [f"film {number}" for number in range(30)],
        "negatives": 9,
        "cutoff": 3,
        "group": {"attribute": "region", "values": ["north", "south"]},
    }
)


def _people(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores [n, 10] in which the chosen one is higher on average, its place [n], and groups [n]."""
    chosen = rng.integers(0, 10, n)
    scores = rng.random((n, 10))
    scores[np.arange(n), chosen] += rng.random(n) * 0.4
    return scores, chosen, rng.choice(3, n, p=[0.5, 0.3, 0.2])


def _table(scores: np.ndarray, chosen: np.ndarray, groups: np.ndarray) -> np.ndarray:
    table = np.zeros(table_shape(TASK))
    cells = table_cells(TASK, scores.reshape(-1, 1), np.eye(10, dtype=np.int64)[chosen].ravel(), groups)
    np.add.at(table, cells[:, 0], 1.0)
    return table


def test_metrics_of_an_exact_table_are_scikit_learns() -> None:
    scores, chosen, groups = _people(np.random.default_rng(0), 2000)
    metrics = metrics_from_table(_table(scores, chosen, groups), 1e-12, TASK)
    for name, rows in (("", groups >= 0), (":north", groups == 0), (":south", groups == 1), (":other", groups == 2)):
        truth = np.eye(10)[chosen[rows]]
        expected = {
            "hit_rate_at_3": top_k_accuracy_score(chosen[rows], scores[rows], k=3, labels=np.arange(10)),
            "ndcg_at_3": ndcg_score(truth, scores[rows], k=3),
            "mean_reciprocal_rank": label_ranking_average_precision_score(truth, scores[rows]),
        }
        for metric, value in expected.items():
            found = metrics[f"{metric}{name}"]
            assert found is not None and found.value == pytest.approx(value)


def test_a_model_that_scores_all_alike_is_worth_what_guessing_is() -> None:
    rng = np.random.default_rng(1)
    _, chosen, groups = _people(rng, 20_000)
    metrics = metrics_from_table(_table(np.full((20_000, 10), 0.5), chosen, groups), 1e-12, TASK)
    hit = metrics["hit_rate_at_3"]
    assert hit is not None and hit.low < 0.3 < hit.high


@pytest.mark.parametrize("metric", ["hit_rate_at_3", "ndcg_at_3", "mean_reciprocal_rank:south"])
def test_intervals_hold_the_truth_about_as_often_as_they_say(metric: str) -> None:
    rng = np.random.default_rng(2)
    truth = metrics_from_table(_table(*_people(rng, 200_000)), 1e-12, TASK)[metric]
    assert truth is not None
    sigma, trials, held = 2.0, 300, 0
    for _ in range(trials):
        exact = _table(*_people(rng, 600))
        told = metrics_from_table(exact + rng.normal(size=exact.shape) * sigma, sigma**2, TASK)[metric]
        assert told is not None
        held += told.low <= truth.value <= told.high
    assert 0.91 <= held / trials <= 0.998


def test_noise_alone_says_nothing() -> None:
    rng = np.random.default_rng(3)
    for table in (rng.normal(size=30) * 3, np.zeros(30), np.full(30, -10.0)):
        assert set(metrics_from_table(table, 9.0, TASK).values()) == {None}
