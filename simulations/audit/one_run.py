"""The statistics of an audit with one training run (Steinke, Nasr and Jagielski 2023, https://arxiv.org/abs/2305.08846).

Each of m canaries is put into the data by a fair coin of its own. Whoever sees what a run released guesses the coins of
r canaries and abstains on the others; v guesses are right. Were the release (epsilon, delta)-DP when one canary is
added or removed, guesses could do little better than randomised response: v is at most, in distribution, a binomial
number of r tries at probability q = e^epsilon / (1 + e^epsilon), up to what delta allows (the paper's Theorem 5.2).

How many canaries are guessed, and which score orders them, must be settled before the coins are looked at.

Numbers, of which the paper prints the last two (Appendix D and Section 7):

>>> round(get_eps_audit(m=1000, r=1000, v=1000, p=0.05, delta=0.0), 2)
5.81
>>> round(get_eps_audit(m=1000, r=100, v=75, p=0.05, delta=1e-4), 3)
0.673
>>> round(get_eps_audit(m=100_000, r=1510, v=1439, p=0.05, delta=1e-5), 2)
2.68
"""

import numpy as np
from scipy import stats
from scipy.special import expit

STEPS = 40
"""Halvings of an interval of width 1."""


def p_value_dp_audit(m: int, r: int, v: int, eps: float, delta: float) -> float:
    """An upper bound on the probability of so many right guesses against an (eps, delta)-DP release.

    Args:
        m: Canaries, each included independently with probability 1/2.
        r: How many of them were guessed.
        v: How many guesses were right.
        eps: The claim.
        delta: The claim.

    Returns:
        P[Binomial(r, q) >= v] + 2 m delta max_i P[v > Binomial(r, q) >= v - i] / i, at most 1.

    Raises:
        ValueError: The numbers are not those of an audit.
    """
    if not 0 <= v <= r <= m:
        raise ValueError(f"v={v}, r={r}, m={m} are not an audit's; expected 0 <= v <= r <= m")
    if not eps >= 0 or not 0 <= delta <= 1:
        raise ValueError(f"eps={eps}, delta={delta} is not a claim; expected eps >= 0 and 0 <= delta <= 1")
    q = float(expit(eps))
    tail = float(stats.binom.sf(v - 1, r, q))
    below = np.cumsum(stats.binom.pmf(np.arange(v - 1, -1, -1), r, q))
    slope = float(np.max(below / np.arange(1, v + 1), initial=0.0))
    return min(tail + 2 * m * delta * slope, 1.0)


def get_eps_audit(m: int, r: int, v: int, p: float, delta: float) -> float:
    """A lower bound on the epsilon of what was audited.

    Args:
        m: Canaries, each included independently with probability 1/2.
        r: How many of them were guessed.
        v: How many guesses were right.
        p: The probability with which the bound may be too large; 0.05 gives 95 % confidence.
        delta: At which epsilon is bounded.

    Returns:
        An epsilon at which so many right guesses have a probability below `p`, as far as there is one, and 0 else.
        Such a release is not (epsilon, delta)-DP, nor with any smaller epsilon.

    Raises:
        ValueError: The numbers are not those of an audit.
    """
    if not 0 < p < 1:
        raise ValueError(f"p={p} is not a probability of error; expected 0 < p < 1")
    high = 1.0
    while p_value_dp_audit(m, r, v, high, delta) < p:
        high += 1.0
    low = 0.0 if high == 1.0 else high - 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        if p_value_dp_audit(m, r, v, middle, delta) < p:
            low = middle
        else:
            high = middle
    return low
