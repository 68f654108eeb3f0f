"""What privacy costs: epsilon as a type that cannot be shown bare, composition, and the noise for a target.

An epsilon travels with delta, unit, adjacency, trust model and accountant. The ledger stores events (sample rate,
noise multiplier, steps) and never an epsilon; these functions turn events into one. Composition is Opacus's PRV
accountant (Gopi et al. 2021, https://arxiv.org/abs/2106.02848), whose value is an upper bound; RDP (Mironov et al.
2019, https://arxiv.org/abs/1908.10530) goes first, because PRV can run for minutes where epsilon is very large.

Numbers, computed with these functions:

>>> print(compose([MechanismEvent(sample_rate=0.02, noise_multiplier=1.0, steps=1000)], delta=1e-5))
epsilon=3.91 (delta=1e-05, unit=user, adjacency=add-or-remove-one, model=local, accountant=prv)
>>> compose([MechanismEvent(1.0, 1.998, 1)], delta=1e-5).epsilon < 2.02
True
>>> round(solve_noise_multiplier(epsilon=3.0, delta=1e-5, sample_rate=0.02, steps=1000), 2)
1.15
"""

import math
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

from fedprofile.common.errors import BudgetRefusal, ConfigError

ACCOUNTED_SHARE = 0.999
"""Noise of standard deviation sigma * C is accounted as this share of sigma: it covers the rounding of sum and
noise to the grid of sigma * C * 2**-30, which moves a sum of d values by at most 2**-30 * sqrt(d) sigma C."""

EPSILON_CEILING = 50.0
"""Above it nothing is promised and PRV is not called."""

_WHOLE_ORDERS = list(range(2, 65))
_NEAR = 1e-3
"""How close the solved noise comes to the smallest."""


@dataclass(frozen=True)
class PrivacyLoss:
    """(epsilon, delta) with everything that gives the two numbers a meaning.

    Args:
        epsilon: Bound on the privacy loss; `math.inf` where nothing is promised.
        delta: Probability with which the bound may fail.
        accountant: How the composition was computed: "prv", "rdp", or "none" for no event at all.
        unit: Who is protected.
        adjacency: How neighbouring data sets differ.
        model: "local" where the noise is added at the tenant.
    """

    epsilon: float
    delta: float
    accountant: str = "prv"
    unit: str = "user"
    adjacency: str = "add-or-remove-one"
    model: str = "local"

    def __str__(self) -> str:
        return (
            f"epsilon={self.epsilon:.3g} (delta={self.delta:g}, unit={self.unit}, adjacency={self.adjacency}, "
            f"model={self.model}, accountant={self.accountant})"
        )

    def as_dict(self) -> dict[str, float | str]:
        """For JSON: all fields."""
        return asdict(self)


@dataclass(frozen=True)
class MechanismEvent:
    """One release of a Poisson-subsampled Gaussian mechanism, composed `steps` times with itself.

    Args:
        sample_rate: Probability with which each user enters a step; 1.0 for a table over all users.
        noise_multiplier: The ACCOUNTED noise standard deviation over the sensitivity.
        steps: How often.
    """

    sample_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        if not 0 < self.sample_rate <= 1 or not self.noise_multiplier > 0 or self.steps < 0:
            raise ConfigError(
                f"sample_rate={self.sample_rate}, noise_multiplier={self.noise_multiplier}, steps={self.steps} is not "
                "a mechanism; expected 0 < sample_rate <= 1, noise_multiplier > 0, steps >= 0."
            )


def compose(events: Iterable[MechanismEvent], delta: float) -> PrivacyLoss:
    """The privacy loss of all events together.

    Args:
        events: In any order; equal ones are merged.
        delta: For which epsilon is asked.

    Returns:
        An upper bound. Epsilon is `math.inf` where RDP already puts it above `EPSILON_CEILING`.

    Raises:
        ConfigError: `delta` is not between 0 and 1.
    """
    if not 0 < delta < 1:
        raise ConfigError(f"delta={delta} must lie between 0 and 1.")
    merged: Counter[tuple[float, float]] = Counter()
    for event in events:
        merged[event.noise_multiplier, event.sample_rate] += event.steps
    return _compose(tuple((sigma, rate, steps) for (sigma, rate), steps in sorted(merged.items()) if steps > 0), delta)


@lru_cache(maxsize=1024)
def _compose(history: tuple[tuple[float, float, int], ...], delta: float) -> PrivacyLoss:
    """`compose` of merged events (noise multiplier, sample rate, steps); it takes half a second and is asked again."""
    if not history:
        return PrivacyLoss(0.0, delta, accountant="none")
    # Whole orders alone are a looser bound and many times faster; mostly they are enough to know that PRV is.
    if (
        not _epsilon("rdp", history, delta, alphas=_WHOLE_ORDERS) <= EPSILON_CEILING
        and not _epsilon("rdp", history, delta) <= EPSILON_CEILING
    ):
        return PrivacyLoss(math.inf, delta, accountant="rdp")
    try:
        prv = _epsilon("prv", history, delta)
    except (ValueError, RuntimeError, ArithmeticError):
        prv = math.inf
    if not math.isfinite(prv):
        # PRV's discretisation can fail at extreme deltas; RDP is a looser upper bound and always there.
        return PrivacyLoss(_epsilon("rdp", history, delta), delta, accountant="rdp")
    return PrivacyLoss(max(prv, 0.0), delta)


@lru_cache(maxsize=256)
def solve_noise_multiplier(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """The smallest noise (to 0.1 %) that keeps `steps` steps within a target.

    Args:
        epsilon: The target.
        delta: The target.
        sample_rate: Probability with which each user enters a step.
        steps: Of the whole run.

    Returns:
        sigma: noise of standard deviation sigma * C is to be drawn, and `ACCOUNTED_SHARE` * sigma accounted.

    Raises:
        BudgetRefusal: No reasonable noise reaches the target.
    """

    def cost(sigma: float) -> float:
        return compose([MechanismEvent(sample_rate, ACCOUNTED_SHARE * sigma, steps)], delta).epsilon

    high, at_high = 1.0, cost(1.0)
    low, at_low = high, at_high
    while at_high > epsilon:
        low, at_low, high = high, at_high, 2 * high
        at_high = cost(high)
        if high > 1e5:
            raise BudgetRefusal(
                f"epsilon={epsilon:g} (delta={delta:g}) is too small for {steps} steps at sample rate "
                f"{sample_rate:g}: no noise multiplier below 100,000 reaches it; raise the share or lower the rounds."
            )
    while at_low <= epsilon and low > 0.025:
        high, at_high, low = low, at_low, low / 2
        at_low = cost(low)
    # Near enough is as good in epsilon as in sigma, because epsilon falls at least as fast as sigma grows.
    turn = 0
    while at_low > epsilon and high - low > _NEAR * high and at_high < (1 - _NEAR) * epsilon:
        middle, turn = (low + high) / 2, turn + 1
        if math.isfinite(at_low) and turn % 3:
            # Epsilon is close to a power of sigma: a line in logarithms, aimed at the middle of what is near enough.
            share = math.log(at_low / ((1 - _NEAR / 2) * epsilon)) / math.log(at_low / at_high)
            middle = low * (high / low) ** min(max(share, 0.02), 0.98)
        if (found := cost(middle)) <= epsilon:
            high, at_high = middle, found
        else:
            low, at_low = middle, found
    return high


def _epsilon(
    mechanism: str, history: tuple[tuple[float, float, int], ...], delta: float, **options: list[int]
) -> float:
    # Imported late: it brings torch.
    from opacus.accountants import create_accountant

    accountant = create_accountant(mechanism)
    accountant.history = list(history)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # At sample rate 1 PRV evaluates log(0) in a branch that it then discards; RDP warns about its largest order.
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta, **options))
