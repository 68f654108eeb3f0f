"""Gaps between groups: their values, their resamples, and how far an error in the rates can move them.

A gap is the largest difference of a rate between two groups. It can only be 0 or more, so that noise in the rates makes
it larger: a resampled gap is not centred on the gap, and where the true gap is near 0 no percentile of the resamples
says so. But a largest difference is a seminorm of the rates: whatever the true rates are, the gap of the estimates is
within the GAP OF THE ERRORS of the true one. That is what `Gap.reach` holds, and what the interval is made of.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedprofile.simulations.bootstrap import Draws

RATES = {
    "demographic_parity": ("selection_rate",),
    "equal_opportunity": ("true_positive_rate",),
    "equalized_odds": ("true_positive_rate", "false_positive_rate"),
}
"""Gap -> the rates whose largest difference, or smallest ratio, it is."""

GapStatistic = Literal["difference", "ratio"]


@dataclass(frozen=True, eq=False)
class Gap:
    """A gap's resamples.

    Args:
        draws: The gap of each resample, [B].
        reach: The gap of each resample's errors, [B]; of errors of logarithms for a ratio.
    """

    draws: Draws
    reach: Draws


def gap_value(
    differences: Mapping[str, float], ratios: Mapping[str, float], gap: str, statistic: GapStatistic
) -> float:
    """A gap, from what fairlearn's `MetricFrame` says of its rates.

    Args:
        differences: Rate -> largest difference.
        ratios: Rate -> smallest ratio.
        gap: A key of `RATES`.
        statistic: "difference" or "ratio".
    """
    if statistic == "difference":
        return max(float(differences[rate]) for rate in RATES[gap])
    return min(float(ratios[rate]) for rate in RATES[gap])


def resampled_gap(
    points: Mapping[str, NDArray[np.float64]],
    draws: Mapping[str, Draws],
    chosen: Mapping[str, NDArray[np.bool_]],
    rates: tuple[str, ...],
    statistic: GapStatistic,
) -> Gap:
    """A gap's resamples.

    Args:
        points: Rate -> value of each slice, [K].
        draws: Rate -> its resamples, [K, B].
        chosen: Rate -> slices to compare, [K].
        rates: Of which the largest difference, or the smallest ratio, is the gap.
        statistic: "difference" or "ratio".

    Returns:
        Its resamples, and those of its errors.
    """
    found: list[Draws] = []
    reaches: list[Draws] = []
    for rate in rates:
        drawn, point = draws[rate][chosen[rate]], points[rate][chosen[rate]][:, None]
        if statistic == "difference":
            found.append(np.ptp(drawn, axis=0))
            reaches.append(np.ptp(drawn - point, axis=0))
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append(drawn.min(axis=0) / drawn.max(axis=0))
            # A rate of 0 has no logarithm: nothing is known of the ratio then.
            reaches.append(np.nan_to_num(np.ptp(np.log(drawn / point), axis=0), nan=np.inf, posinf=np.inf))
    worst = np.max if statistic == "difference" else np.min
    return Gap(worst(found, axis=0), np.max(reaches, axis=0))
