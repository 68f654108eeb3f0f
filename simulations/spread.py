"""How unequal tenants are: statistics of one metric over tenants, and how far errors in it can move them.

A spread is larger between estimates than between what they estimate. Like a gap it is bounded by the same statistic of
the errors (see `fedprofile.simulations.gaps`); `spread_reach` holds that bound for each resample.
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedprofile.simulations.fairness_metrics import Worst

SpreadStatistic = Literal["variance", "worst_tenth", "gini"]
Numbers = NDArray[np.float64]


def spread(values: Numbers, statistic: SpreadStatistic, worst: Worst | None = None) -> Numbers:
    """A statistic over tenants.

    Args:
        values: Of each tenant, [K] or [K, B].
        statistic: "variance" over tenants (not of a sample of them); "worst_tenth", the mean of the worst tenth of
            tenants, at least one (Li et al. 2020, https://arxiv.org/abs/1905.10497); or "gini".
        worst: Which values are the worst ones; for "worst_tenth".

    Returns:
        A number, or [B].
    """
    if statistic == "variance":
        return np.asarray(np.var(values, axis=0))
    if statistic == "gini":
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(_mean_difference(values) / (2 * np.mean(values, axis=0)))
    return worst_mean(values, worst or "lowest", tenth(len(values)))


def spread_reach(values: Numbers, draws: Numbers, statistic: SpreadStatistic) -> Numbers:
    """How far each resample's errors can move a spread; on the scale of its root for a variance.

    Args:
        values: Of each tenant, [K].
        draws: Resamples, [K, B].
        statistic: See `spread`.

    Returns:
        [B].
    """
    errors = draws - values[:, None]
    if statistic == "variance":
        return np.asarray(np.std(errors, axis=0))
    if statistic == "gini":
        with np.errstate(divide="ignore", invalid="ignore"):
            return _mean_difference(errors) / (2 * np.mean(values))
    return worst_mean(errors, "largest", tenth(len(values)))


def worst_mean(values: Numbers, worst: Worst, count: int) -> Numbers:
    """The mean of the worst values.

    Args:
        values: [K] or [K, B].
        worst: Which are the worst ones; the absolute values of the "largest".
        count: Of how many.

    Returns:
        A number, or [B].
    """
    if worst == "lowest":
        return np.asarray(np.mean(np.sort(values, axis=0)[:count], axis=0))
    ordered = np.sort(np.abs(values) if worst == "largest" else values, axis=0)
    return np.asarray(np.mean(ordered[len(values) - count :], axis=0))


def tenth(count: int) -> int:
    """How many of some tenants are a tenth of them, at least one.

    >>> tenth(20), tenth(11), tenth(3)
    (2, 2, 1)
    """
    return math.ceil(count / 10)


def _mean_difference(values: Numbers) -> Numbers:
    """The mean absolute difference of all pairs, each with itself included."""
    count = len(values)
    ranks = 2 * np.arange(1, count + 1) - count - 1
    return np.asarray(2 * np.tensordot(ranks, np.sort(values, axis=0), axes=1) / count**2)
