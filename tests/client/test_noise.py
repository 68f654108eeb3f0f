"""Noise on the grid, and the settings in which the accounting covers the rounding."""

import numpy as np
import pytest

from fedprofile.client.noise import GRID, check_grid, noised_sum
from fedprofile.client.randomness import SecureRandomness
from fedprofile.common.accounting import ACCOUNTED_SHARE
from fedprofile.common.errors import ConfigError


class Fixed:
    """A source that gives the same values each time; rounding is what is tested with it."""

    def __init__(self, value: float) -> None:
        self._value = value

    def uniform(self, count: int) -> np.ndarray:
        return np.full(count, self._value)

    def gaussian(self, count: int) -> np.ndarray:
        return np.full(count, self._value)


def test_sum_and_noise_are_rounded_separately() -> None:
    step = 0.7 * GRID
    # Each alone rounds down to nothing; their total would round up.
    assert noised_sum(np.full(3, 0.4 * step), 0.7, Fixed(0.4 * GRID)).tolist() == [0.0, 0.0, 0.0]
    assert noised_sum(np.full(1, 0.6 * step), 0.7, Fixed(0.6 * GRID)).tolist() == [2 * step]


def test_what_is_released_lies_on_the_grid() -> None:
    deviation = 2.0 * 0.25
    released = noised_sum(np.random.default_rng(0).normal(size=500) * 3, deviation, SecureRandomness())
    whole = released / (deviation * GRID)
    assert np.array_equal(whole, np.rint(whole))


def test_the_noise_has_the_deviation_that_was_asked_for() -> None:
    exact = np.linspace(-5, 5, 100_000)
    noise = noised_sum(exact, 3.0, SecureRandomness()) - exact
    assert abs(noise.std() - 3.0) < 5 * 3.0 / np.sqrt(2 * len(noise))
    assert abs(noise.mean()) < 5 * 3.0 / np.sqrt(len(noise))


def test_rounding_a_neighbours_sum_stays_within_the_accounted_share() -> None:
    """The worst pair of sums: every coordinate moves by a hair over half a step, at the largest noise allowed."""
    size, clip = 10_000, 1.0
    sigma = (1 / ACCOUNTED_SHARE - 1) / 2 / (np.sqrt(size) * GRID)
    check_grid(sigma * 0.999999, size)
    step = sigma * clip * GRID
    one = np.random.default_rng(1).normal(size=size)
    user = np.random.default_rng(2).normal(size=size)
    user *= clip / np.linalg.norm(user)
    apart = noised_sum(one + user, sigma * clip, Fixed(0.0)) - noised_sum(one, sigma * clip, Fixed(0.0))
    assert np.linalg.norm(apart) <= clip + step * np.sqrt(size)
    assert sigma * clip / (clip + step * np.sqrt(size)) >= ACCOUNTED_SHARE * sigma


def test_settings_that_the_share_would_not_cover_are_refused() -> None:
    check_grid(1000.0, 75_268)
    with pytest.raises(ConfigError, match="rounding would cost more"):
        check_grid(100_000.0, 75_268)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_no_noise_is_refused(sigma: float) -> None:
    with pytest.raises(ConfigError, match="nothing is released without noise"):
        check_grid(sigma, 10)
