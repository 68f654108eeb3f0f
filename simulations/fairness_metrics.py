"""The metrics of a slice of records: their values, from fairlearn and scikit-learn.

Each record counts once, so that somebody with many records counts as often. Calibration is calibration in the large,
the mean predicted probability minus the share of positives: signed, and unbiased in small groups, where the expected
calibration error of a perfectly calibrated model is far above 0.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
    roc_auc_score,
)

from fedprofile.simulations.predictions import Kind, Records
from fedprofile.simulations.slices import Split

Rows = NDArray[np.int64]
Worst = Literal["lowest", "highest", "largest"]
"""Which value of several is the worst; "largest" is the one furthest from 0."""


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        name: In the results.
        value: Of some rows of some records.
        worst: Which value is the worst one; None where none is better than another.
        needs: Labels that it divides by the number of.
        low: The smallest that it can be.
        high: The largest that it can be.
    """

    name: str
    value: Callable[[Records, Rows], float]
    worst: Worst | None
    needs: tuple[int, ...] = ()
    low: float = 0.0
    high: float = 1.0


def _base_rate(records: Records, rows: Rows) -> float:
    return float(np.mean(records.truth[rows]))


def _selection_rate(records: Records, rows: Rows) -> float:
    return float(selection_rate(records.truth[rows], records.decided[rows], pos_label=1))


def _true_positive_rate(records: Records, rows: Rows) -> float:
    return float(true_positive_rate(records.truth[rows], records.decided[rows], pos_label=1))


def _false_positive_rate(records: Records, rows: Rows) -> float:
    return float(false_positive_rate(records.truth[rows], records.decided[rows], pos_label=1))


def _accuracy(records: Records, rows: Rows) -> float:
    return float(accuracy_score(records.truth[rows], records.decided[rows]))


def _auc(records: Records, rows: Rows) -> float:
    return float(roc_auc_score(records.truth[rows], records.probabilities[rows, 1]))


def _log_loss(records: Records, rows: Rows) -> float:
    labels = np.arange(records.probabilities.shape[1])
    return float(log_loss(records.truth[rows], records.probabilities[rows], labels=labels))


def _calibration(records: Records, rows: Rows) -> float:
    return float(np.mean(records.probabilities[rows, 1]) - np.mean(records.truth[rows]))


def _macro_f1(records: Records, rows: Rows) -> float:
    return float(f1_score(records.truth[rows], records.decided[rows], average="macro"))


def _mean_absolute_error(records: Records, rows: Rows) -> float:
    return float(mean_absolute_error(records.truth[rows], records.decided[rows]))


def _mean_squared_error(records: Records, rows: Rows) -> float:
    return float(mean_squared_error(records.truth[rows], records.decided[rows]))


def _mean_error(records: Records, rows: Rows) -> float:
    return float(np.mean(records.decided[rows] - records.truth[rows]))


def _mean_of(name: str) -> Callable[[Records, Rows], float]:
    def mean(records: Records, rows: Rows) -> float:
        return float(np.mean(records.values[name][rows]))

    return mean


METRICS: dict[Kind, tuple[Metric, ...]] = {
    "binary": (
        Metric("auc", _auc, "lowest", needs=(0, 1)),
        Metric("accuracy", _accuracy, "lowest"),
        Metric("log_loss", _log_loss, "highest", high=np.inf),
        Metric("calibration_in_the_large", _calibration, "largest", low=-1.0),
        Metric("base_rate", _base_rate, None),
        Metric("selection_rate", _selection_rate, "lowest"),
        Metric("true_positive_rate", _true_positive_rate, "lowest", needs=(1,)),
        Metric("false_positive_rate", _false_positive_rate, "highest", needs=(0,)),
    ),
    "multiclass": (
        Metric("accuracy", _accuracy, "lowest"),
        Metric("macro_f1", _macro_f1, "lowest"),
        Metric("log_loss", _log_loss, "highest", high=np.inf),
    ),
    "multilabel": (
        *(Metric(name, _mean_of(name), "lowest") for name in ("label_precision", "label_accuracy", "f1")),
        Metric("log_loss", _mean_of("log_loss"), "highest", high=np.inf),
    ),
    "ranking": tuple(Metric(name, _mean_of(name), "lowest") for name in ("ndcg", "hit_rate", "mean_reciprocal_rank")),
    "regression": (
        Metric("mean_absolute_error", _mean_absolute_error, "highest", high=np.inf),
        Metric("mean_squared_error", _mean_squared_error, "highest", high=np.inf),
        Metric("mean_error", _mean_error, "largest", low=-np.inf, high=np.inf),
    ),
}


def measured(records: Records, split: Split, allowed: Mapping[str, NDArray[np.bool_]]) -> MetricFrame | None:
    """The metrics of every slice of a split.

    Args:
        records: Of one cell.
        split: Of these records.
        allowed: Metric -> which slices are large enough for it, [K].

    Returns:
        fairlearn's frame by slice number, NaN where a slice is too small for a metric; None where all are for all.
    """

    rows = np.split(
        np.argsort(split.codes, kind="stable"), np.cumsum(np.bincount(split.codes, minlength=len(split.names)))[:-1]
    )

    def of(metric: Metric) -> Callable[[Rows, Rows], float]:
        """For fairlearn, which hands on the slices that it has chosen: one, or for its overall value all."""

        def value(_: Rows, chosen: Rows) -> float:
            if len(chosen) > 1 or not allowed[metric.name][chosen[0]]:
                return np.nan
            return metric.value(records, rows[chosen[0]])

        return value

    metrics = METRICS[records.kind]
    shown = np.flatnonzero(np.any([allowed[metric.name] for metric in metrics], axis=0))
    if not len(shown):
        return None
    with config_context(assume_finite=True, skip_parameter_validation=True):
        # fairlearn copies every row for every metric; a slice, which it does not look into, is one row to it.
        return MetricFrame(
            metrics={metric.name: of(metric) for metric in metrics},
            y_true=shown,
            y_pred=shown,
            sensitive_features=pd.Series(shown),
        )
