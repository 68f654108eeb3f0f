"""The table of a regression: group x 10 bins of the absolute error.

The bins' ends are public: the card's range times 0, 0.01, 0.04, 0.09, ... 1, closer where errors are small. A metric
is that of the bins' middles, as if every error lay in the middle of its bin; with a range of 100 the first three bins
are 1, 3 and 5 wide, so that where all errors are a few hundredths of the range, that is not exact.
"""

import math
from dataclasses import astuple
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedprofile.common.estimates import Interval, Metrics, Table, estimated, weighted_mean
from fedprofile.common.tasks import Labels, RegressionTask

ERROR_BINS = 10
ENDS = (np.arange(ERROR_BINS + 1) / ERROR_BINS) ** 2
"""Of the bins, as shares of the range."""
MIDDLES = (ENDS[:-1] + ENDS[1:]) / 2


def regression_size(task: RegressionTask) -> int:
    """How many cells."""
    return task.groups * ERROR_BINS


def regression_cells(
    task: RegressionTask, scores: NDArray[np.float64], labels: Labels, groups: NDArray[np.int64]
) -> NDArray[np.int64]:
    """See `fedprofile.common.evaluation_tables.table_cells`."""
    errors = np.abs(scores[:, 0] - labels)
    return (groups * ERROR_BINS + np.searchsorted(ENDS[1:-1], errors, side="right"))[:, None]


def regression_metrics(task: RegressionTask, table: Table, noise_variance: float) -> Metrics:
    """See `fedprofile.common.evaluation_tables.metrics_from_table`; in the target's unit."""
    names = task.group.all_values if task.group is not None else ()
    cells = table.reshape(task.groups, ERROR_BINS)
    metrics: Metrics = {}
    blocks = {"": (cells.sum(axis=0), task.groups * noise_variance)}
    blocks |= {f":{name}": (block, noise_variance) for name, block in zip(names, cells, strict=False)}
    for suffix, (block, variance) in blocks.items():
        errors = task.width * MIDDLES
        mean = partial(weighted_mean, errors)
        square = partial(weighted_mean, errors**2)
        metrics[f"mean_absolute_error{suffix}"] = estimated(block, mean, variance, share=1.0, highest=task.width)
        found = estimated(block, square, variance, share=1.0, highest=task.width**2)
        # The interval of the mean square, end by end: its root is far from linear where noise is large.
        metrics[f"root_mean_squared_error{suffix}"] = found and Interval(*map(math.sqrt, astuple(found)))
    return metrics
