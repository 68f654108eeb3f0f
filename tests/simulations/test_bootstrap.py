"""Resamples against scikit-learn with sample weights, and how far errors can move what is made of them."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, roc_auc_score
from tests.simulations.predicted import binary_frame, cell, found, known_frame

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
