"""Resamples against scikit-learn with sample weights, and whether intervals hold what they promise."""

import time

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, roc_auc_score
from tests.simulations.predicted import NO_NOISE, binary_frame, cell, found, known_frame

from fedprofile.simulations.bootstrap import Resamples, resampled
from fedprofile.simulations.fairness import analyse
from fedprofile.simulations.fairness_metrics import METRICS, measured
from fedprofile.simulations.gaps import resampled_gap
from fedprofile.simulations.predictions import Records
from fedprofile.simulations.slices import Limits, splits_of
from fedprofile.simulations.spread import SpreadStatistic, spread, spread_reach

NO_LIMITS = Limits(min_cell=1, min_label=1)


def _multiclass() -> Records:
    draw = np.random.default_rng(1)
    frame = pd.DataFrame(
        {"tenant": "only", "user": np.arange(300), "label": draw.integers(0, 4, 300), "group:kind": ["a", "b"] * 150}
    )
    frame[[f"p{number}" for number in range(5)]] = draw.dirichlet(np.ones(5), 300)
    return Records.of(cell(frame))


@pytest.mark.parametrize("records", [Records.of(cell(binary_frame(3))), _multiclass()], ids=["binary", "multiclass"])
def test_weights_of_one_give_the_values_of_fairlearn_and_scikit_learn(records: Records) -> None:
    for split in splits_of(records):
        if split.scope == "client":
            continue
        allowed = {metric.name: split.enough(metric.needs, NO_LIMITS) for metric in METRICS[records.kind]}
        frame = measured(records, split, allowed)
        assert frame is not None
        draws = resampled(records, split, np.ones((len(records.user), 2)))
        for metric in METRICS[records.kind]:
            expected = frame.by_group[metric.name].to_numpy()
            np.testing.assert_allclose(draws[metric.name], np.stack([expected] * 2, axis=1), rtol=0, atol=1e-12)


def test_any_weights_give_what_scikit_learn_gives_with_sample_weights() -> None:
    records = Records.of(cell(binary_frame(4)))
    score = records.probabilities[:, 1]
    assert len(np.unique(score)) < len(score) / 3, "scores must tie"
    weights = np.random.default_rng(0).poisson(1.0, (len(score), 3)).astype(np.float64)
    for split in splits_of(records):
        draws = resampled(records, split, weights)
        for place in range(len(split.names)):
            rows = split.codes == place
            for number in range(3):
                truth, decided, weight = records.truth[rows], records.decided[rows], weights[rows, number]
                (tn, fp), (fn, tp) = confusion_matrix(truth, decided, sample_weight=weight, labels=[0, 1])
                expected = {
                    "selection_rate": (tp + fp) / weight.sum(),
                    "true_positive_rate": tp / (tp + fn),
                    "false_positive_rate": fp / (fp + tn),
                }
                if split.scope != "client":
                    expected |= {
                        "auc": roc_auc_score(truth, score[rows], sample_weight=weight),
                        "accuracy": accuracy_score(truth, decided, sample_weight=weight),
                        "log_loss": log_loss(truth, score[rows], sample_weight=weight, labels=[0, 1]),
                        "calibration_in_the_large": np.average(score[rows] - truth, weights=weight),
                        "base_rate": np.average(truth, weights=weight),
                    }
                assert draws.keys() == expected.keys()
                for metric, value in expected.items():
                    assert draws[metric][place, number] == pytest.approx(value, abs=1e-12), (split.scope, metric)


def test_whole_weights_give_the_macro_f1_of_the_repeated_records() -> None:
    records = _multiclass()
    weights = np.random.default_rng(0).poisson(0.5, (len(records.user), 4)).astype(np.float64)
    split = splits_of(records)[1]
    draws = resampled(records, split, weights)["macro_f1"]
    for place in range(2):
        for number in range(4):
            rows = np.repeat(np.arange(len(records.user)), (weights[:, number] * (split.codes == place)).astype(int))
            expected = f1_score(records.truth[rows], records.decided[rows], average="macro")
            assert draws[place, number] == pytest.approx(expected, abs=1e-12)


def test_a_user_weighs_the_same_everywhere_and_all_weigh_as_many_as_they_are() -> None:
    resamples = Resamples(np.array([2, 5, 9, 30]), 400, seed=0)
    weights = resamples.of_users(np.array([9, 2, 9, 30, 5]))
    np.testing.assert_array_equal(weights[0], weights[2])
    assert (weights[[0, 1, 3, 4]].sum(axis=0) == 4).all()
    assert weights.mean() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_seeds_are_resampled_with_the_variance_of_their_mean(count: int) -> None:
    values = np.random.default_rng(0).normal(size=count)
    means = values @ Resamples(np.arange(2), 200_000, seed=0).of_seeds(tuple(range(count)))
    assert means.mean() == pytest.approx(values.mean(), abs=0.01)
    assert means.var() == pytest.approx(values.var(ddof=1) / count, rel=0.02)


@pytest.mark.parametrize("statistic", ["difference", "ratio"])
def test_no_error_moves_a_gap_further_than_its_reach(statistic: str) -> None:
    draw = np.random.default_rng(0)
    everybody = {rate: np.ones(5, dtype=bool) for rate in ("first", "second")}
    for _ in range(50):
        truth = {rate: draw.uniform(0.01, 0.99, 5) for rate in everybody}
        drawn = {rate: np.clip(own[:, None] + draw.normal(0, 0.2, (5, 40)), 0.01, 0.99) for rate, own in truth.items()}
        gap = resampled_gap(truth, drawn, everybody, ("first", "second"), statistic)  # type: ignore[arg-type]
        if statistic == "difference":
            moved = gap.draws - max(np.ptp(own) for own in truth.values())
        else:
            moved = np.log(gap.draws) - np.log(min(own.min() / own.max() for own in truth.values()))
        assert (np.abs(moved) <= gap.reach + 1e-12).all()


@pytest.mark.parametrize("statistic", ["variance", "worst_tenth"])
def test_no_error_moves_a_spread_further_than_its_reach(statistic: SpreadStatistic) -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        truth = draw.uniform(0, 1, 15)
        drawn = truth[:, None] + draw.normal(0, 0.2, (15, 40))
        value, draws = spread(truth, statistic, "lowest"), spread(drawn, statistic, "lowest")
        moved = np.sqrt(draws) - np.sqrt(value) if statistic == "variance" else draws - value
        assert (np.abs(moved) <= spread_reach(truth, drawn, statistic) + 1e-12).all()


def test_spreads_in_closed_form() -> None:
    values = np.array([0.1, 0.2, 0.3, 0.4])
    assert spread(values, "variance") == pytest.approx(0.0125)
    pairs = np.abs(values[:, None] - values[None, :]).mean()
    assert spread(values, "gini") == pytest.approx(pairs / (2 * 0.25))
    assert spread(np.array([0.0, 0.0, 0.0, 1.0]), "gini") == pytest.approx(0.75), "one has all: 1 - 1/n"
    assert spread(values, "worst_tenth", "lowest") == pytest.approx(0.1)
    assert spread(np.arange(20.0), "worst_tenth", "highest") == pytest.approx(18.5)
    assert spread(np.array([-0.5, 0.1, 0.3]), "worst_tenth", "largest") == pytest.approx(0.5)


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


def test_a_users_records_are_resampled_together() -> None:
    """Ten equal records a user say no more than one."""
    once = known_frame(0, {"a": 200, "b": 200}, {"a": (0.5, 0.7, 0.3), "b": (0.5, 0.7, 0.3)})
    once = once.drop_duplicates("user")
    often = once.loc[once.index.repeat(10)].reset_index(drop=True)
    for scope, metric, statistic in (("overall", "accuracy", "value"), ("gap", "demographic_parity", "difference")):
        rows = [
            found(analyse([cell(frame)], replicates=300), scope=scope, metric=metric, statistic=statistic)
            for frame in (once, often)
        ]
        assert rows[1]["high"] - rows[1]["low"] == pytest.approx(rows[0]["high"] - rows[0]["low"], rel=1e-9)


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


def test_the_default_experiment_is_measured_in_time() -> None:
    """4 epsilons x 2 strategies x 3 seeds, 20 tenants of 100 users: under 30 s of one core."""
    cells = [
        cell(frame, seed, epsilon, strategy=strategy)
        for epsilon in (NO_NOISE, 8.0, 3.0, 1.0)
        for seed in range(3)
        for frame in [binary_frame(seed, users=2000, tenants=20, noise=0.5 + 1 / epsilon)]
        for strategy in ("fedavg", "fedadam")
    ]
    started = time.process_time()
    results = analyse(cells)
    assert time.process_time() - started < 30
    assert results["suppressed"].mean() < 0.1
