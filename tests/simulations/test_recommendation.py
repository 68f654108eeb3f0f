"""Rankings and interest profiles through a whole cell: tables, exact metrics, and what the analysis makes of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score, label_ranking_average_precision_score, log_loss, ndcg_score, roc_auc_score
from tests.simulations.conftest import WriteExperiment
from tests.simulations.predicted import found
from tests.simulations.test_movielens import WRITERS

from fedprofile.common.tasks import MultilabelTask, RankingTask
from fedprofile.simulations.cells import CellOutcome, CellRunner
from fedprofile.simulations.exact_metrics import exact_metrics, record_values
from fedprofile.simulations.experiment import load_experiment
from fedprofile.simulations.fairness import analyse
from fedprofile.simulations.predictions import CellPredictions, Condition

GENRES = MultilabelTask.model_validate({"kind": "multilabel", "labels": ["a", "b", "c", "d"]})
FILMS = RankingTask.model_validate({"kind": "ranking", "candidates": list("abcdefgh"), "negatives": 4, "cutoff": 2})


def _run(write_experiment: WriteExperiment, tmp_path: Path, task: str) -> CellOutcome:
    folder, write = WRITERS["movielens-100k"]
    write(tmp_path / folder)
    path = write_experiment(
        data={"dataset": "movielens-100k", "data_dir": str(tmp_path), "options": {"task": task}},
        tenant={"privacy": {"sample_rate": 0.5, "evaluation_users": 0.5, "records_per_user": 5}},
        card={"history": {"max_tokens": 32}, "evaluation": {"when": "end"}},
        partition={"kind": "natural"},
        sweep={"epsilon": [float("inf")]},
    )
    experiment = load_experiment(path)
    [cell] = experiment.cells()
    return CellRunner(experiment).run(cell, lambda done, rounds: None)


def _overall(outcome: CellOutcome, metric: str) -> float:
    condition = Condition("federated", float("inf"), "none", "natural", "fedavg")
    results = analyse([CellPredictions(condition, 0, outcome.predictions)], replicates=50)
    assert not results[(results["scope"] == "group") & (results["column"] == "gender")].empty
    shown = found(results, kind="level", scope="overall", metric=metric, statistic="value")
    return float(shown["value"])


def test_a_cell_of_next_films(write_experiment: WriteExperiment, tmp_path: Path) -> None:
    outcome = _run(write_experiment, tmp_path, "ranking")
    exact, told = outcome.result["exact_metrics"], outcome.result["noised_metrics"]["2"]
    assert exact["records"] == len(outcome.predictions) > 20
    for name, own in (("hit_rate_at_3", "hit_rate"), ("ndcg_at_3", "ndcg"), ("mean_reciprocal_rank",) * 2):
        assert exact[own] == pytest.approx(outcome.predictions[f"value:{own}"].mean())
        # Without noise the table has each user once, however many films were liked.
        by_user = outcome.predictions.groupby("user")[f"value:{own}"].mean().mean()
        assert told[name]["value"] == pytest.approx(by_user, abs=1e-3)
        assert _overall(outcome, own) == pytest.approx(exact[own])


def test_a_cell_of_interests(write_experiment: WriteExperiment, tmp_path: Path) -> None:
    outcome = _run(write_experiment, tmp_path, "multilabel")
    exact, told = outcome.result["exact_metrics"], outcome.result["noised_metrics"]["2"]
    assert exact["records"] == len(outcome.predictions) > 20
    # So few users do not stand out of the noise that the table would have.
    assert set(told) >= {"macro_auc", "auc:War", "label_accuracy:female"} and set(told.values()) == {None}
    for name in ("label_precision", "label_accuracy", "f1", "log_loss"):
        assert _overall(outcome, name) == pytest.approx(exact[name])


def test_exact_numbers_of_labels_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    truth, scores = rng.random((300, 4)) < 0.4, rng.random((300, 4)).round(1)
    labels = truth @ [1, 2, 4, 8]
    exact = exact_metrics(scores, labels, GENRES)
    assert exact["label_precision"] == pytest.approx(label_ranking_average_precision_score(truth, scores))
    assert exact["f1"] == pytest.approx(f1_score(truth, scores >= 0.5, average="samples", zero_division=1.0))
    assert exact["macro_auc"] == pytest.approx(roc_auc_score(truth, scores, average="macro"))
    each = [log_loss(truth[:, place], scores[:, place]) for place in range(4)]
    assert exact["log_loss"] == pytest.approx(np.mean(each))
    assert exact["label_accuracy"] == pytest.approx(((scores >= 0.5) == truth).mean())


def test_exact_numbers_of_ranks_are_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    scores, chosen = rng.random((300, 5)), rng.integers(0, 5, 300)
    truth = np.eye(5, dtype=np.int64)[chosen]
    values: dict[str, Any] = record_values(FILMS, scores.reshape(-1, 1), truth.ravel())
    assert values["ndcg"].mean() == pytest.approx(ndcg_score(truth, scores, k=2))
    assert values["mean_reciprocal_rank"].mean() == pytest.approx(label_ranking_average_precision_score(truth, scores))
    assert exact_metrics(np.zeros((0, 1)), np.zeros(0, np.int64), FILMS) == {
        "records": 0,
        "hit_rate": None,
        "ndcg": None,
        "mean_reciprocal_rank": None,
    }
