"""How large is the noise really? Read off what no candidate explains.

The auditor knows every candidate's gradient, and the candidates are all who can be in the audited tenant's sum. The
part of a noised sum that lies in no direction of theirs is noise alone, and its squares over the variance that the
ledger accounts for are chi-squared distributed. Users of several records add a little to that part, since which of
their records were drawn is not known; they can hide missing noise and not feign it. Guesses at canaries need many
canaries to tell noise of half its size from the whole; this reading tells nine tenths.

It is a reading of one step of SGD a round, where an update is the noised sum itself, and where an update was not scaled
down to the card's largest norm. Elsewhere there is none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fedprofile.client.training import TrainingSettings
from fedprofile.common.messages import Arrays

Residual = tuple[float, int]
"""Sum of squares of what is not explained, and of how many coordinates."""

SCALED = 0.999
"""An update of this part of the largest norm may have been scaled down to it."""


@dataclass(frozen=True)
class NoiseReading:
    """The noise of a tenant's updates.

    Args:
        claimed: Standard deviation that the ledger accounts for.
        found: Standard deviation that was seen.
        low: Lower end of its interval at the audit's confidence.
        high: Upper end.
        coordinates: In how many coordinates, all rounds together.
    """

    claimed: float
    found: float
    low: float
    high: float
    coordinates: int

    @property
    def too_small(self) -> bool:
        """Whether there is less noise than is accounted for."""
        return self.high < self.claimed


def residual(total: NDArray[np.float64], gradients: NDArray[np.floating], jitter: float) -> Residual | None:
    """What of a noised sum the candidates do not explain.

    Args:
        total: [size].
        gradients: Of each candidate, [n, size].
        jitter: Added to the kernel's diagonal, in parts of its mean.

    Returns:
        Sum of squares and coordinates; None where there are not more coordinates than candidates.
    """
    size, count = len(total), len(gradients)
    if size <= count:
        return None
    kernel, products = (gradients @ gradients.T).astype(np.float64), gradients @ total
    kernel += jitter * float(np.trace(kernel)) / count * np.eye(count)
    return max(float(total @ total - products @ np.linalg.solve(kernel, products)), 0.0), size - count


def is_readable(update: Arrays, settings: TrainingSettings, steps: int) -> bool:
    """Whether an update is a noised sum, up to a known factor."""
    norm = math.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in update.values()))
    plain = settings.optimizer == "sgd" and steps == 1 and settings.head_clip is None
    return plain and norm < SCALED * settings.max_update_norm


def read_noise(residuals: Sequence[Residual], claimed: float, confidence: float) -> NoiseReading | None:
    """The noise of all rounds together.

    Args:
        residuals: Of each round.
        claimed: Standard deviation that the ledger accounts for.
        confidence: Of the interval, two-sided.

    Returns:
        The reading; None where there is nothing to read.
    """
    squares, coordinates = sum(one for one, _ in residuals), sum(many for _, many in residuals)
    if not coordinates:
        return None
    tail = (1 - confidence) / 2
    low, high = (math.sqrt(squares / stats.chi2.ppf(at, coordinates)) for at in (1 - tail, tail))
    return NoiseReading(claimed, math.sqrt(squares / coordinates), low, high, coordinates)
