"""A number with its 95 % interval: how it is printed, and what two of them say about their difference."""

import math
from dataclasses import dataclass
from statistics import NormalDist

MINUS = "−"


@dataclass(frozen=True)
class Estimate:
    """A number and the 95 % interval that was measured for it.

    Args:
        value: The point estimate.
        low: Lower end; NaN where no interval was measured.
        high: Upper end; NaN where no interval was measured.
    """

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def has_interval(self) -> bool:
        """Whether both ends are there."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies on that side of zero; 0 where it does not, or there is none."""
        if not self.has_interval:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    def __neg__(self) -> "Estimate":
        return Estimate(-self.value, -self.high, -self.low)

    def minus(self, other: "Estimate", comparisons: int = 1) -> "Estimate":
        """The difference of two estimates, with an interval made from theirs.

        The interval is that of Zou and Donner (2008, https://doi.org/10.1002/sim.3095), which takes the two as
        independent. Two models judged on the same users are not: their errors go together, and the interval is then
        wider than it need be.

        Args:
            other: What is taken away.
            comparisons: How many differences this one was chosen from; the interval is widened by Bonferroni's rule.

        Returns:
            The difference; without an interval where one of the two has none.
        """
        value = self.value - other.value
        if not (self.has_interval and other.has_interval):
            return Estimate(value)
        normal = NormalDist()
        widened = normal.inv_cdf(1 - 0.025 / comparisons) / normal.inv_cdf(0.975)
        below = math.hypot(self.value - self.low, other.high - other.value)
        above = math.hypot(self.high - self.value, other.value - other.low)
        return Estimate(value, value - widened * below, value + widened * above)

    @property
    def decimals(self) -> int:
        """Two to four: the interval's half shows a digit, and an end that is not zero does not look like it."""
        if not self.has_interval:
            return 3
        half = (self.high - self.low) / 2
        needed = 2 if half <= 0 else min(max(math.ceil(-math.log10(half)), 2), 4)
        while needed < 4 and any(end != 0 and round(end, needed) == 0 for end in (self.low, self.high)):
            needed += 1
        return needed

    def text(self, signed: bool = False) -> str:
        """`0.71 [0.69, 0.73]`; with a sign before every number where it is a difference.

        >>> Estimate(0.7123, 0.6904, 0.7296).text()
        '0.71 [0.69, 0.73]'
        >>> Estimate(-0.03, -0.05, -0.002).text(signed=True)
        '−0.030 [−0.050, −0.002]'
        """
        places = self.decimals
        middle = number(self.value, places, signed)
        if not self.has_interval:
            return middle
        return f"{middle} [{number(self.low, places, signed)}, {number(self.high, places, signed)}]"


def number(value: float, places: int = 3, signed: bool = False) -> str:
    """A number as it is printed; a dash where there is none.

    >>> number(-0.0004), number(0.25, 2, signed=True), number(math.nan), number(math.inf)
    ('0.000', '+0.25', '–', 'infinite')
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "infinite" if value > 0 else f"{MINUS}infinite"
    rounded = round(value, places) + 0.0
    return f"{rounded:{'+' if signed and rounded else ''}.{places}f}".replace("-", MINUS)


def epsilon_text(epsilon: float) -> str:
    """`3`, `0.5` or, for infinity, `no noise`."""
    return "no noise" if math.isinf(epsilon) else f"{epsilon:g}"
