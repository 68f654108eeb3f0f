"""Errors from bins: against exact errors, whether intervals hold what they promise, and in the target's own unit."""

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from fedprofile.common.evaluation_tables import metrics_from_table, table_cells, table_shape
from fedprofile.common.regression_tables import ENDS, MIDDLES
from fedprofile.common.tasks import RegressionTask

TASK = RegressionTask.model_validate(
    {
        "kind": "regression",
        "target": "mark",
        "low": 20,
        "high": 120,
        "group": {"attribute": "region", "values": ["north", "south"]},
    }
)


def _people(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets and predictions in their unit, and groups; some of both lie beyond the range."""
    target = rng.normal(70, 25, n)
    return target, 70 + 0.8 * (target - 70) + rng.normal(0, 12, n), rng.choice(3, n, p=[0.5, 0.3, 0.2])


def _table(target: np.ndarray, predicted: np.ndarray, groups: np.ndarray) -> np.ndarray:
    labels = TASK.as_array([TASK.scaled(value) for value in target])
    scores = np.array([[TASK.scaled(value)] for value in predicted])
    table = np.zeros(table_shape(TASK))
    np.add.at(table, table_cells(TASK, scores, labels, groups)[:, 0], 1.0)
    return table


def _binned(errors: np.ndarray) -> np.ndarray:
    """Each error moved to the middle of its bin, by looking for the bin one by one."""
    ends = 100 * (np.arange(11) / 10) ** 2
    places = [max(place for place in range(10) if error >= ends[place] - 1e-9) for error in errors]
    return np.array([(ends[place] + ends[place + 1]) / 2 for place in places])


def test_bins_cover_the_range_once() -> None:
    assert ENDS[0] == 0 and ENDS[-1] == 1 and (np.diff(ENDS) > 0).all()
    assert table_shape(TASK) == (30,)
    assert ((ENDS[:-1] < MIDDLES) & (ENDS[1:] > MIDDLES)).all()


def test_metrics_of_an_exact_table_are_those_of_the_bins_middles_and_near_the_exact_ones() -> None:
    target, predicted, groups = _people(np.random.default_rng(0), 3000)
    metrics = metrics_from_table(_table(target, predicted, groups), 1e-12, TASK)
    clipped, told = np.clip(target, 20, 120), np.clip(predicted, 20, 120)
    middle = _binned(np.abs(clipped - told))
    for name, rows in (("", groups >= 0), (":north", groups == 0), (":south", groups == 1), (":other", groups == 2)):
        absolute, square = metrics[f"mean_absolute_error{name}"], metrics[f"root_mean_squared_error{name}"]
        assert absolute is not None and square is not None
        assert absolute.value == pytest.approx(middle[rows].mean())
        assert square.value == pytest.approx(np.sqrt((middle[rows] ** 2).mean()))
        assert absolute.value == pytest.approx(mean_absolute_error(clipped[rows], told[rows]), rel=0.05)
        assert square.value == pytest.approx(root_mean_squared_error(clipped[rows], told[rows]), rel=0.05)


@pytest.mark.parametrize("metric", ["mean_absolute_error", "root_mean_squared_error", "root_mean_squared_error:south"])
def test_intervals_hold_the_truth_about_as_often_as_they_say(metric: str) -> None:
    rng = np.random.default_rng(1)
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
    rng = np.random.default_rng(2)
    for table in (rng.normal(size=30) * 3, np.zeros(30), np.full(30, -10.0)):
        assert set(metrics_from_table(table, 9.0, TASK).values()) == {None}
