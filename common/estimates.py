"""Estimates from noised counts: ratios of sums of cells, with intervals that hold noise and sampling.

By the delta method. For a ratio f with gradient g the noise adds v * sum(g**2); the sampling of users adds at most
share * sum(table * g**2), because a user's own term (g . w)**2 is at most share * sum(w * g**2) for a weight vector w
of total `share` (Jensen), and a ratio's first-order mean vanishes. A negative cell is never clipped before a ratio:
clipping would turn noise into bias.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOO_FEW = 5.0
"""Below this many noise standard deviations a denominator says nothing."""

NORMAL_95 = 1.959964

Table = NDArray[np.float64]
Measure = Callable[[Table, float], tuple[float, Table, bool]]
"""From cells and one cell's noise variance to (value, gradient, whether the denominators say anything)."""


@dataclass(frozen=True)
class Interval:
    """A value with a 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


Metrics = dict[str, Interval | None]
"""None where there are too few users to say."""


def estimated(
    block: Table, measure: Measure, noise_variance: float, *, share: float, highest: float = 1.0
) -> Interval | None:
    """A number that cells say.

    Args:
        block: The cells.
        measure: Of these.
        noise_variance: Of one cell.
        share: The largest total weight that one user has in these cells.
        highest: The largest that the number can be; the smallest is 0.

    Returns:
        The number with its interval, within its bounds; None where there are too few users to say.
    """
    with np.errstate(all="ignore"):
        value, gradient, enough = measure(block, noise_variance)
        squares = gradient**2
        variance = noise_variance * float(squares.sum()) + max(share * float((block * squares).sum()), 0.0)
    if not enough or not math.isfinite(value) or not math.isfinite(variance):
        return None
    half = NORMAL_95 * math.sqrt(variance)
    value, low, high = (min(max(number, 0.0), highest) for number in (value, value - half, value + half))
    return Interval(value, low, high)


def enough(total: float, cells: int, noise_variance: float) -> bool:
    """Whether a sum of so many cells stands out of its noise."""
    return total > 0 and total >= TOO_FEW * math.sqrt(noise_variance * cells)


def weighted_mean(values: Table, block: Table, noise_variance: float) -> tuple[float, Table, bool]:
    """The mean of a value that each cell stands for; see `Measure`."""
    total = np.float64(block.sum())
    mean = (block * values).sum() / total
    return float(mean), (values - mean) / total, enough(float(total), block.size, noise_variance)
