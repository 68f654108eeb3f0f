"""Decision thresholds for each group, fitted to noised evaluation tables and to nothing else.

fairlearn's `ThresholdOptimizer` (Hardt, Price and Srebro 2016, https://arxiv.org/abs/1610.02413) finds the rate that
all groups can share at the highest accuracy. It takes no weights, so each cell of a table becomes that many records
with the score of its bin's middle; a cell below 0 becomes none. Where its answer draws lots between two thresholds,
this takes the one threshold that has the same rate if scores are spread evenly within a bin: two people with the same
score and group are decided alike. Equalised odds cannot be had without lots and are refused.

What is made from a noised table is as private as the table (post-processing); the table is part of the budget.
"""

from typing import Literal

import numpy as np
from fairlearn.postprocessing import ThresholdOptimizer
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin

from fedprofile.common.errors import ConfigError
from fedprofile.common.evaluation_tables import SCORE_BINS, TOO_FEW, Table, table_shape
from fedprofile.common.tasks import TaskSpec
from fedprofile.simulations.predictions import THRESHOLD, GroupThresholds

Constraint = Literal["equal_opportunity", "demographic_parity"]

_FAIRLEARN = {"equal_opportunity": "true_positive_rate_parity", "demographic_parity": "demographic_parity"}
_EDGES = np.linspace(0.0, 1.0, SCORE_BINS + 1)
_MIDDLES = (_EDGES[:-1] + _EDGES[1:]) / 2


class _Scores(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier whose input is its score; there is nothing to fit."""

    def fit(self, scores: NDArray[np.float64], labels: NDArray[np.int64]) -> "_Scores":
        """What scikit-learn knows an estimator by."""
        self.fitted_ = True
        return self

    def predict_proba(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """[n, 1] to [n, 2]."""
        return np.column_stack([1 - scores[:, 0], scores[:, 0]])


def fit_thresholds(
    table: Table, noise_variance: float, task: TaskSpec, constraint: Constraint = "equal_opportunity"
) -> GroupThresholds:
    """Fit a threshold for each group.

    Args:
        table: Noised evaluation table, summed over tenants; shape `table_shape(task)`.
        noise_variance: Of one of its cells.
        task: The card's; binary, with a group attribute.
        constraint: What is to be the same in all groups: true-positive or selection rate.

    Returns:
        Thresholds. A group of which the table says too little keeps 0.5: its positives or its negatives are fewer than
        `TOO_FEW` standard deviations of their noise.

    Raises:
        ConfigError: The task or the table is another one, or fewer than two groups are large enough.
    """
    if task.kind != "binary" or task.group is None:
        raise ConfigError("thresholds: need a binary task whose card has a group attribute ([task.group]).")
    if table.shape != table_shape(task):
        raise ConfigError(f"thresholds: a table of shape {table.shape}; expected {table_shape(task)}.")
    cells = table.reshape(len(task.group.all_values), 2, SCORE_BINS)
    counts = np.rint(np.maximum(cells, 0.0)).astype(np.int64)
    least = max(TOO_FEW * np.sqrt(noise_variance * SCORE_BINS), 1.0)
    large = (cells.sum(axis=2) >= least).all(axis=1) & (counts.sum(axis=2) > 0).all(axis=1)
    if large.sum() < 2:
        raise ConfigError(
            f"thresholds: {int(large.sum())} group(s) of '{task.group.attribute}' stand out of the noise; expected two "
            "or more. Evaluate more users, or with less noise."
        )
    rate = _shared_rate(counts[large], constraint)
    thresholds = {}
    for name, own in zip(np.array(task.group.all_values)[large], counts[large], strict=True):
        counted = own[1] if constraint == "equal_opportunity" else own.sum(axis=0)
        thresholds[str(name)] = _threshold(counted, rate)
    # Whatever the card does not name is counted as its last value.
    return GroupThresholds(task.group.attribute, thresholds, thresholds.get(task.group.all_values[-1], THRESHOLD))


def _shared_rate(counts: NDArray[np.int64], constraint: Constraint) -> float:
    """The rate that fairlearn gives all groups."""
    group, label, place = (axis.ravel() for axis in np.indices(counts.shape))
    repeats = counts.ravel()
    score, truth, groups = (np.repeat(values, repeats) for values in (_MIDDLES[place], label, group))
    optimizer = ThresholdOptimizer(
        estimator=_Scores(),
        constraints=_FAIRLEARN[constraint],
        objective="accuracy_score",
        predict_method="predict_proba",
    )
    optimizer.fit(score[:, None], truth, sensitive_features=groups)
    rule = optimizer.interpolated_thresholder_.interpolation_dict[0]
    counted = (groups == 0) & ((truth == 1) | (constraint == "demographic_parity"))
    kept = rule.p0 * rule.operation0(score[counted]) + rule.p1 * rule.operation1(score[counted])
    return float(np.mean(kept))


def _threshold(counted: NDArray[np.int64], rate: float) -> float:
    """The threshold that a share `rate` of records is above, in bins of even density."""
    above = np.r_[np.cumsum(counted[::-1])[::-1], 0] / counted.sum()
    # `np.interp` wants what rises; of a stretch without records it takes one end.
    return float(np.interp(rate, above[::-1], _EDGES[::-1]))
