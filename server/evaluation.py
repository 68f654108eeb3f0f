"""Evaluation tables are summed over tenants; metrics, intervals and early stopping come from the sum."""

from dataclasses import dataclass

import numpy as np

from fedprofile.common.evaluation_tables import Interval, Metrics, Table, metrics_from_table, table_shape
from fedprofile.common.messages import TABLE, Arrays
from fedprofile.common.tasks import RegressionTask, TaskSpec

__all__ = ["EarlyStopping", "Metrics", "TableSum", "headline", "merit"]


class TableSum:
    """The sum of noised tables and of their noise.

    Args:
        task: The card's task.
    """

    def __init__(self, task: TaskSpec) -> None:
        self._task = task
        self._sum = np.zeros(table_shape(task), dtype=np.float64)
        self._noise_variance = 0.0
        self._count = 0

    def add(self, arrays: Arrays, noise: float) -> None:
        """Add one tenant's table.

        Args:
            arrays: The reply's.
            noise: Standard deviation of one of its cells.
        """
        self._sum += arrays[TABLE].astype(np.float64)
        self._noise_variance += noise**2
        self._count += 1

    @property
    def total(self) -> tuple[Table, float] | None:
        """The sum, and the variance of the noise in one of its cells; None where no table was added."""
        return (self._sum.copy(), self._noise_variance) if self._count else None

    def metrics(self) -> Metrics:
        """What the sum says; nothing where no table was added."""
        if not self._count:
            return {}
        return metrics_from_table(self._sum, self._noise_variance, self._task)


_HEADLINES = {
    "binary": "auc",
    "multiclass": "accuracy",
    "multilabel": "macro_auc",
    "regression": "mean_absolute_error",
    "ranking": "mean_reciprocal_rank",
}


def headline(task: TaskSpec) -> str:
    """The metric that early stopping and fair weights look at."""
    return _HEADLINES[task.kind]


def merit(metrics: Metrics, name: str, task: TaskSpec) -> Interval | None:
    """A headline metric as a number between 0 and 1 of which more is better.

    Args:
        metrics: From `metrics_from_table`.
        name: The headline, or the headline of a group.
        task: The card's.

    Returns:
        The metric itself; of an error, one minus its share of the range.
    """
    found = metrics.get(name)
    if found is None or not isinstance(task, RegressionTask):
        return found
    value, low, high = (1 - error / task.width for error in (found.value, found.high, found.low))
    return Interval(value, low, high)


@dataclass
class EarlyStopping:
    """Stops when evaluations no longer gain beyond their own uncertainty.

    A gain is a value above the interval of the best evaluation so far. An evaluation that says nothing neither
    counts nor gains.

    Args:
        patience: Evaluations without a gain after which it stops; 0 never does.
        best: The best evaluation so far.
        waited: Evaluations since.
    """

    patience: int
    best: Interval | None = None
    waited: int = 0

    def update(self, interval: Interval | None) -> bool:
        """Look at one evaluation.

        Args:
            interval: Of the headline metric; see `merit`.

        Returns:
            Whether to stop.
        """
        if interval is None:
            return False
        if self.best is None or interval.value > self.best.high:
            self.best, self.waited = interval, 0
        else:
            self.waited += 1
        return 0 < self.patience <= self.waited
