"""The one-run audit's statistics against the paper's numbers, scipy, a plain loop, and mechanisms of known epsilon."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from fedprofile.simulations.audit.one_run import get_eps_audit, p_value_dp_audit


@pytest.mark.parametrize(
    ("m", "r", "v", "delta", "bound"),
    [
        (1000, 1000, 1000, 0.0, 5.81),
        # Printed in the paper, Appendix D; and in Section 7, where the last digit is cut off.
        (1000, 100, 75, 1e-4, 0.673),
        (100_000, 1510, 1439, 1e-5, 2.6755),
    ],
)
def test_known_bounds(m: int, r: int, v: int, delta: float, bound: float) -> None:
    assert get_eps_audit(m, r, v, 0.05, delta) == pytest.approx(bound, abs=6e-3 if delta == 0 else 6e-4)


def test_all_right_without_delta_has_a_closed_form() -> None:
    for r in (10, 100, 500):
        q = 0.05 ** (1 / r)
        assert get_eps_audit(1000, r, r, 0.05, 0.0) == pytest.approx(math.log(q / (1 - q)), abs=1e-6)


@pytest.mark.parametrize(("r", "v", "eps"), [(10, 7, 0.0), (50, 40, 1.0), (200, 199, 3.0), (7, 0, 2.0)])
def test_without_delta_it_is_the_binomial_test(r: int, v: int, eps: float) -> None:
    q = math.exp(eps) / (1 + math.exp(eps))
    expected = stats.binomtest(v, r, q, alternative="greater").pvalue
    assert p_value_dp_audit(1000, r, v, eps, 0.0) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("m", "r", "v"), [(12, 8, 6), (30, 10, 10), (9, 9, 1), (5, 3, 0)])
def test_delta_enters_as_the_theorem_says(m: int, r: int, v: int) -> None:
    q, delta = Fraction(3, 4), Fraction(1, 1000)
    mass = [math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
    slopes = [sum(mass[v - i : v], Fraction()) / i for i in range(1, v + 1)]
    expected = sum(mass[v:], Fraction()) + 2 * m * delta * max(slopes, default=Fraction())
    found = p_value_dp_audit(m, r, v, math.log(3), float(delta))
    assert found == pytest.approx(min(1.0, float(expected)), rel=1e-9)


def test_more_right_guesses_bound_higher_and_delta_and_confidence_lower() -> None:
    bounds = [get_eps_audit(500, 100, v, 0.05, 1e-5) for v in range(101)]
    assert bounds == sorted(bounds) and bounds[50] == 0.0 and bounds[100] > bounds[60] > 0
    by_delta = [get_eps_audit(500, 100, 90, 0.05, delta) for delta in (0.0, 1e-5, 1e-3, 0.1)]
    assert by_delta == sorted(by_delta, reverse=True) and by_delta[0] > by_delta[2]
    assert get_eps_audit(500, 100, 90, 0.01, 0.0) < get_eps_audit(500, 100, 90, 0.05, 0.0)


@pytest.mark.parametrize("eps", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("m", [10, 40, 200])
def test_randomised_response_is_overstated_in_one_of_twenty_runs_at_most(eps: float, m: int) -> None:
    bounds = np.array([get_eps_audit(m, m, v, 0.05, 0.0) for v in range(m + 1)])
    runs = 4000
    right = np.random.default_rng(m).binomial(m, math.exp(eps) / (1 + math.exp(eps)), runs)
    overstated = float(np.mean(bounds[right] > eps))
    assert overstated <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_with_delta_too() -> None:
    # Each coin is told as it is with probability delta, and by randomised response else: (eps, delta)-DP.
    eps, delta, m, runs = 1.0, 0.01, 60, 4000
    q = delta + (1 - delta) * math.exp(eps) / (1 + math.exp(eps))
    right = np.random.default_rng(0).binomial(m, q, runs)
    bounds = np.array([get_eps_audit(m, m, v, 0.05, delta) for v in range(m + 1)])
    assert float(np.mean(bounds[right] > eps)) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_abstaining_on_the_unsure_keeps_the_promise() -> None:
    # The Laplace mechanism on each coin, guessed where it is surest: k+ and k- are fixed, the canaries are not.
    eps, m, k, runs = 1.0, 200, 20, 1000
    draw = np.random.default_rng(1)
    bounds = np.array([get_eps_audit(m, 2 * k, v, 0.05, 0.0) for v in range(2 * k + 1)])
    overstated = 0
    for _ in range(runs):
        coins = draw.random(m) < 0.5
        order = np.argsort(coins + draw.laplace(0, 1 / eps, m))
        overstated += bounds[int(coins[order[-k:]].sum() + (~coins[order[:k]]).sum())] > eps
    assert overstated / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_with_many_canaries_the_bound_is_near() -> None:
    eps, m = 2.0, 100_000
    right = int(np.random.default_rng(0).binomial(m, math.exp(eps) / (1 + math.exp(eps))))
    assert eps - 0.05 < get_eps_audit(m, m, right, 0.05, 0.0) <= eps


@pytest.mark.parametrize(("m", "r", "v", "eps", "delta"), [(10, 11, 1, 1, 0), (10, 5, 6, 1, 0), (10, 5, 5, -1, 0)])
def test_what_is_no_audit_is_refused(m: int, r: int, v: int, eps: float, delta: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        p_value_dp_audit(m, r, v, eps, delta)
    with pytest.raises(ValueError, match="expected 0 < p < 1"):
        get_eps_audit(10, 5, 5, 0.0, 0.0)
