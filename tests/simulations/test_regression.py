"""A regression through a whole cell: tables, exact errors, and what the analysis makes of them."""

from pathlib import Path

import pytest
from sklearn.metrics import mean_absolute_error, root_mean_squared_error
from tests.simulations.conftest import WriteExperiment
from tests.simulations.predicted import found
from tests.simulations.test_movielens import WRITERS

from fedprofile.simulations.cells import CellRunner
from fedprofile.simulations.experiment import load_experiment
from fedprofile.simulations.fairness import analyse
from fedprofile.simulations.predictions import CellPredictions, Condition


def test_a_cell_of_ratings(write_experiment: WriteExperiment, tmp_path: Path) -> None:
    folder, write = WRITERS["movielens-100k"]
    write(tmp_path / folder)
    data = {"dataset": "movielens-100k", "data_dir": str(tmp_path), "options": {"task": "regression"}}
    tenant = {"privacy": {"sample_rate": 0.5, "evaluation_users": 0.5, "records_per_user": 5}}
    path = write_experiment(
        data=data,
        tenant=tenant,
        # One table, so that its noise is small beside the few users that there are.
        card={"history": {"max_tokens": 32}, "evaluation": {"when": "end"}},
        partition={"kind": "natural"},
        sweep={"epsilon": [float("inf")]},
    )
    experiment = load_experiment(path)
    [cell] = experiment.cells()
    outcome = CellRunner(experiment).run(cell, lambda done, rounds: None)
    frame, exact = outcome.predictions, outcome.result["exact_metrics"]
    assert set(frame["target"]) == {1, 2, 3, 4, 5} and frame["prediction"].between(1, 5).all()
    assert exact["records"] == len(frame)
    absolute = mean_absolute_error(frame["target"], frame["prediction"])
    assert exact["mean_absolute_error"] == pytest.approx(absolute)
    assert exact["root_mean_squared_error"] == pytest.approx(
        root_mean_squared_error(frame["target"], frame["prediction"])
    )
    # Everybody has as many records, and without noise the table differs by its bins alone.
    told = outcome.result["noised_metrics"]["2"]["mean_absolute_error"]
    assert told["value"] == pytest.approx(absolute, abs=0.15)
    condition = Condition("federated", float("inf"), "none", "natural", "fedavg")
    results = analyse([CellPredictions(condition, 0, frame)], replicates=50)
    shown = found(results, kind="level", scope="overall", metric="mean_absolute_error", statistic="value")
    assert shown["value"] == pytest.approx(absolute)
    assert not results[(results["scope"] == "group") & (results["column"] == "gender")].empty
