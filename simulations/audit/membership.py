"""How well scores tell people who took part from people who did not.

An area under the curve says how well on average; what matters to a person is whether anybody is found out for sure,
which is the true-positive rate where false alarms are rare (Carlini et al. 2022, https://arxiv.org/abs/2112.03570).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprofile.simulations.randomness import derived_seed

FALSE_POSITIVES = (0.01, 0.001)
RESAMPLES = 500


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % bootstrap interval over people.

    Args:
        value: Of all people.
        low: 2.5 % of resamples are below.
        high: 2.5 % of resamples are above.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Membership:
    """What an attack on real people came to.

    Args:
        members: How many took part.
        others: How many did not.
        auc: Area under the ROC curve; 0.5 is guessing.
        true_positives: Rate of members found at each of `FALSE_POSITIVES`.
    """

    members: int
    others: int
    auc: Estimate
    true_positives: dict[float, Estimate]


def membership(members: NDArray[np.float64], others: NDArray[np.float64], seed: int) -> Membership:
    """Judge an attack's scores.

    Args:
        members: Scores of people who took part.
        others: Scores of people who did not.
        seed: Of the bootstrap.

    Returns:
        Area and rates with intervals.

    Raises:
        ValueError: One of the two is empty.
    """
    if not len(members) or not len(others):
        raise ValueError("an attack is judged by members and others; one of the two is missing")
    draw = np.random.Generator(np.random.Philox(derived_seed(seed, "bootstrap")))
    found = _rates(members, others)
    resampled = np.array(
        [_rates(draw.choice(members, len(members)), draw.choice(others, len(others))) for _ in range(RESAMPLES)]
    )
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    estimates = [Estimate(*map(float, each)) for each in zip(found, low, high, strict=True)]
    return Membership(len(members), len(others), estimates[0], dict(zip(FALSE_POSITIVES, estimates[1:], strict=True)))


def _rates(members: NDArray[np.float64], others: NDArray[np.float64]) -> list[float]:
    """Area and true-positive rates, as scikit-learn's but without its checks, which a bootstrap would repeat."""
    ordered = np.sort(others)
    below, not_above = (np.searchsorted(ordered, members, side) for side in ("left", "right"))
    # Alarm is raised above the highest score that would still be one false alarm too many.
    limits = [ordered[len(others) - 1 - math.floor(rate * len(others))] for rate in FALSE_POSITIVES]
    return [float((below + not_above).mean()) / (2 * len(others)), *(float((members > each).mean()) for each in limits)]
