"""Intervals of differences against the closed form, and numbers as they are printed."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from fedprofile.simulations.report.estimates import MINUS, Estimate

Z = norm.ppf(0.975)


def test_a_difference_of_two_normal_estimates_has_the_interval_of_the_closed_form() -> None:
    one, two = Estimate(0.7, 0.7 - Z * 0.03, 0.7 + Z * 0.03), Estimate(0.6, 0.6 - Z * 0.04, 0.6 + Z * 0.04)
    difference = one.minus(two)
    assert difference.value == pytest.approx(0.1)
    assert (difference.low, difference.high) == pytest.approx((0.1 - Z * 0.05, 0.1 + Z * 0.05))


def test_a_skewed_interval_keeps_its_skew() -> None:
    difference = Estimate(0.02, 0.0, 0.10).minus(Estimate(0.0, -0.03, 0.01))
    assert difference.low == pytest.approx(0.02 - math.hypot(0.02, 0.01))
    assert difference.high == pytest.approx(0.02 + math.hypot(0.08, 0.03))


@pytest.mark.parametrize("comparisons", [1, 3, 10])
def test_the_interval_is_widened_by_bonferronis_rule(comparisons: int) -> None:
    difference = Estimate(0.7, 0.7 - Z * 0.03, 0.7 + Z * 0.03).minus(Estimate(0.7, 0.7, 0.7), comparisons)
    assert difference.high - difference.value == pytest.approx(0.03 * norm.ppf(1 - 0.025 / comparisons))


def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    found = draw.normal((0.7, 0.6), (0.03, 0.04), size=(4000, 2))
    covered = 0
    for one, two in found:
        difference = Estimate(one, one - Z * 0.03, one + Z * 0.03).minus(Estimate(two, two - Z * 0.04, two + Z * 0.04))
        covered += difference.low <= 0.1 <= difference.high
    assert 0.94 < covered / len(found) < 0.96


def test_without_an_interval_there_is_no_direction() -> None:
    assert Estimate(0.5).sign == 0
    assert not Estimate(0.5).minus(Estimate(0.1, 0.0, 0.2)).has_interval
    assert Estimate(0.5).text() == "0.500"


@given(st.floats(-1, 1), st.floats(0.001, 0.5))
def test_printing_keeps_the_side_of_zero(value: float, half: float) -> None:
    found = Estimate(value, value - half, value + half)
    low, high = (float(end.replace(MINUS, "-")) for end in found.text().split("[")[1].rstrip("]").split(", "))
    assert low == pytest.approx(found.low, abs=0.006) and high == pytest.approx(found.high, abs=0.006)
    if found.sign > 0 and found.low >= 5e-4:
        assert low > 0
    if found.sign < 0 and found.high <= -5e-4:
        assert high < 0
    if found.sign == 0:
        assert low <= 0 <= high


def test_turning_the_sign_turns_the_interval() -> None:
    turned = -Estimate(-0.08, -0.11, -0.05)
    assert (turned.value, turned.low, turned.high) == (0.08, 0.05, 0.11)
