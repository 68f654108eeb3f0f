"""The table of a regression: group x 10 bins of the absolute error.

The bins' ends are public: the card's range times 0, 0.01, 0.04, 0.09, ... 1, closer where errors are small. A metric
is that of the bins' middles, as if every error lay in the middle of its bin; with a range of 100 the first three bins
are 1, 3 and 5 wide, so that where all errors are a few hundredths of the range, that is not exact.
"""

import math
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedprofile.common.estimates import Metrics, Table, estimated, weighted_mean
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
    for metric, measure in (("mean_absolute_error", weighted_mean), ("root_mean_squared_error", _root_mean_square)):
        of = partial(measure, task.width * MIDDLES)
        whole = task.groups * noise_variance
        metrics[metric] = estimated(cells.sum(axis=0), of, whole, share=1.0, highest=task.width)
        for name, block in zip(names, cells, strict=False):
            metrics[f"{metric}:{name}"] = estimated(block, of, noise_variance, share=1.0, highest=task.width)
    return metrics


def _root_mean_square(errors: Table, block: Table, noise_variance: float) -> tuple[float, Table, bool]:
    square, gradient, says = weighted_mean(errors**2, block, noise_variance)
    root = math.sqrt(square) if square > 0 else math.nan
    return root, gradient / (2 * root), says
