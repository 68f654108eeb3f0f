"""The weighted mean of updates, taken one by one: what is held does not grow with the number of tenants."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedprofile.common.messages import Arrays

Shapes = Mapping[str, tuple[int, ...]]


class StreamingMean:
    """Weighted mean of arrays in double precision.

    Holds one sum and one array of scratch space, however many updates are added.

    Args:
        shapes: Name -> shape of every array of an update.
    """

    def __init__(self, shapes: Shapes) -> None:
        self._sums = {name: np.zeros(shape, dtype=np.float64) for name, shape in shapes.items()}
        largest = max((total.size for total in self._sums.values()), default=0)
        self._scratch = np.empty(largest, dtype=np.float64)
        self._weight = 0.0
        self._count = 0

    @property
    def count(self) -> int:
        """How many updates were added."""
        return self._count

    @property
    def weight(self) -> float:
        """The sum of their weights."""
        return self._weight

    def add(self, update: Arrays, weight: float) -> None:
        """Add one update; nothing of it is kept.

        Args:
            update: Arrays of exactly the mean's names and shapes.
            weight: Above 0.
        """
        for name, total in self._sums.items():
            scaled = self._scratch[: total.size].reshape(total.shape)
            # Without the dtype numpy would multiply in the update's single precision.
            np.multiply(update[name], weight, out=scaled, dtype=np.float64)
            total += scaled
        self._weight += weight
        self._count += 1

    def mean(self) -> dict[str, NDArray[np.float64]] | None:
        """The mean, or None where nothing was added."""
        if not self._count:
            return None
        return {name: total / self._weight for name, total in self._sums.items()}
