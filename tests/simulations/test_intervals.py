"""Whether intervals hold the truth as often as they promise, where it is known."""

import numpy as np
import pytest
from tests.simulations.predicted import cell, found, known_frame

from fedprofile.simulations.fairness import analyse

TRUE = {"a": (0.5, 0.8, 0.3), "b": (0.35, 0.6, 0.2), "c": (0.4, 0.65, 0.25)}
SIZES = {"a": 250, "b": 180, "c": 60}
"""Demographic parity 0.55 - 0.34 = 0.21; equalised odds max(0.2, 0.1) = 0.2."""


def _selection(rates: tuple[float, float, float]) -> float:
    base, hit, alarm = rates
    return base * hit + (1 - base) * alarm


TRUTHS = {
    ("demographic_parity", "difference"): 0.21,
    ("demographic_parity", "ratio"): 0.34 / 0.55,
    ("equalized_odds", "difference"): 0.2,
    ("equalized_odds", "ratio"): 0.2 / 0.3,
    ("equal_opportunity", "difference"): 0.2,
}


def test_intervals_of_gaps_hold_the_true_gap() -> None:
    assert [_selection(TRUE[name]) for name in "ab"] == pytest.approx([0.55, 0.34])
    held = dict.fromkeys(TRUTHS, 0)
    for seed in range(100):
        results = analyse([cell(known_frame(seed, SIZES, TRUE))], replicates=300, seed=seed)
        for (metric, statistic), true in TRUTHS.items():
            row = found(results, scope="gap", column="kind", metric=metric, statistic=statistic)
            held[metric, statistic] += row["low"] <= true <= row["high"]
    assert min(held.values()) >= 90, held


def test_intervals_hold_where_groups_are_equal_and_a_rate_is_held_as_often_as_promised() -> None:
    equal = (0.4, 0.7, 0.3)
    gaps, rates = 0, 0
    for seed in range(60):
        results = analyse([cell(known_frame(seed, {"a": 150, "b": 150}, {"a": equal, "b": equal}))], replicates=300)
        gap = found(results, scope="gap", metric="equalized_odds", statistic="difference")
        rate = found(results, scope="group", group="a", metric="true_positive_rate")
        gaps += gap["low"] <= 0
        rates += rate["low"] <= 0.7 <= rate["high"]
    # 52 or fewer of 60 at 95 % have a chance of 1 %, and all of them of 5 %.
    assert gaps >= 53
    assert rates >= 53


def test_intervals_of_prices_hold_the_true_price() -> None:
    """Noise takes 0.1 of one group's true-positive rate and nothing of the other's, on the same users."""
    held = {"value": 0, "difference": 0}
    for seed in range(60):
        frame = known_frame(seed, {"a": 300, "b": 300}, {"a": (0.5, 0.8, 0.3), "b": (0.5, 0.7, 0.3)})
        lost = (np.random.default_rng([seed, 1]).random(600) < 1 / 7)[frame["user"]]
        lost &= ((frame["group:kind"] == "b") & (frame["label"] == 1)).to_numpy()
        noised = frame.assign(p1=np.where(lost, 0.2, frame["p1"]), p0=np.where(lost, 0.8, frame["p0"]))
        results = analyse([cell(frame), cell(noised, epsilon=1.0)], replicates=200, seed=seed)
        rate = found(results, kind="price", scope="group", group="b", metric="true_positive_rate")
        gap = found(results, kind="price", scope="gap", metric="equal_opportunity", statistic="difference")
        held["value"] += rate["low"] <= -0.1 <= rate["high"]
        held["difference"] += gap["low"] <= 0.1 <= gap["high"]
    assert min(held.values()) >= 53, held
