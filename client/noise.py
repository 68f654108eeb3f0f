"""Gaussian noise on a sum, on a grid.

Sum and noise are rounded separately to multiples of deviation * 2**-30 and added as whole numbers. Rounding the
noise after the sum is on the grid equals rounding their total, so the release is a function of an exact Gaussian
mechanism on the rounded sum, and the bits of a floating-point Gaussian (Mironov 2012,
https://doi.org/10.1145/2382196.2382264) never reach the server. Rounding the sum moves two neighbouring sums apart by
at most one grid step a coordinate, sqrt(d) steps in all; accounting 0.999 of the noise covers that, and `check_grid`
refuses the settings where it would not.
"""

import math

import numpy as np
from numpy.typing import NDArray

from fedprofile.client.randomness import Randomness
from fedprofile.common.accounting import ACCOUNTED_SHARE
from fedprofile.common.errors import ConfigError

GRID = 2.0**-30
"""The grid's step, in standard deviations of the noise."""


def noised_sum(values: NDArray[np.float64], deviation: float, randomness: Randomness) -> NDArray[np.float64]:
    """Add Gaussian noise to a sum.

    Args:
        values: The sum, float64, finite.
        deviation: Standard deviation of the noise, positive.
        randomness: Where the noise comes from.

    Returns:
        float64 of the same shape; every value is a whole multiple of deviation * 2**-30 (to float64's precision).
    """
    step = deviation * GRID
    drawn = randomness.gaussian(values.size).reshape(values.shape)
    return (np.rint(values / step) + np.rint(drawn / GRID)) * step


def check_grid(noise_multiplier: float, size: int) -> None:
    """Make sure that `ACCOUNTED_SHARE` covers the rounding.

    With sensitivity C the rounded sum has sensitivity C + sqrt(d) * sigma * C * 2**-30, so sigma over that is
    sigma / (1 + sqrt(d) * sigma * 2**-30). Half of the share's margin is left for float64's own rounding.

    Args:
        noise_multiplier: sigma, the deviation over the sensitivity.
        size: d, how many values the release holds.

    Raises:
        ConfigError: Noise is zero, or so large or over so many values that the accounted share would be too much.
    """
    if not noise_multiplier > 0:
        raise ConfigError(f"noise_multiplier={noise_multiplier:g} must be positive: nothing is released without noise.")
    if math.sqrt(size) * noise_multiplier * GRID > (1 / ACCOUNTED_SHARE - 1) / 2:
        raise ConfigError(
            f"noise_multiplier={noise_multiplier:g} over {size} values: rounding would cost more than the accounting "
            f"covers; raise the run's epsilon or sample less."
        )
