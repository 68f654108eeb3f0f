"""The table of results: against fairlearn and scikit-learn called plainly, and what it leaves out."""

from dataclasses import replace

import fairlearn.metrics as fairlearn
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss, mean_absolute_error, mean_squared_error, roc_auc_score
from tests.simulations.predicted import NO_NOISE, binary_frame, cell, condition, found, known_frame

from fedprofile.common.errors import ConfigError, DataError
from fedprofile.simulations.fairness import COLUMNS, analyse
from fedprofile.simulations.predictions import CellPredictions, GroupThresholds
from fedprofile.simulations.slices import Limits

SEEDS = (0, 1)
FEW = 50


@pytest.fixture(scope="module")
def frames() -> dict[tuple[float, int], pd.DataFrame]:
    return {
        (epsilon, seed): binary_frame(seed, noise=0.2 + 1 / epsilon) for epsilon in (NO_NOISE, 1.0) for seed in SEEDS
    }


@pytest.fixture(scope="module")
def results(frames: dict[tuple[float, int], pd.DataFrame]) -> pd.DataFrame:
    cells = [cell(frame, seed, epsilon) for (epsilon, seed), frame in frames.items()]
    return analyse(cells, replicates=FEW)


def _rows(frame: pd.DataFrame, chosen: tuple[tuple[str, str], ...]) -> pd.DataFrame:
    for column, value in chosen:
        frame = frame[frame[column] == value]
    return frame


def _plain(frame: pd.DataFrame) -> dict[str, float]:
    """The metrics of some rows, as anyone would compute them."""
    label, score = frame["label"], frame["p1"]
    decided = (score >= 0.5).astype(int)
    return {
        "auc": roc_auc_score(label, score),
        "accuracy": accuracy_score(label, decided),
        "log_loss": log_loss(label, score),
        "calibration_in_the_large": score.mean() - label.mean(),
        "base_rate": label.mean(),
        "selection_rate": fairlearn.selection_rate(label, decided),
        "true_positive_rate": fairlearn.true_positive_rate(label, decided),
        "false_positive_rate": fairlearn.false_positive_rate(label, decided),
    }


GAPS = {
    ("demographic_parity", "difference"): fairlearn.demographic_parity_difference,
    ("demographic_parity", "ratio"): fairlearn.demographic_parity_ratio,
    ("equal_opportunity", "difference"): fairlearn.equal_opportunity_difference,
    ("equal_opportunity", "ratio"): fairlearn.equal_opportunity_ratio,
    ("equalized_odds", "difference"): fairlearn.equalized_odds_difference,
    ("equalized_odds", "ratio"): fairlearn.equalized_odds_ratio,
}


def _gaps(frame: pd.DataFrame, columns: list[str]) -> dict[tuple[str, str], float]:
    decided = (frame["p1"] >= 0.5).astype(int)
    return {
        key: float(function(frame["label"], decided, sensitive_features=frame[columns]))
        for key, function in GAPS.items()
    }


def test_columns_and_order(results: pd.DataFrame) -> None:
    assert list(results.columns) == list(COLUMNS)
    assert results["suppressed"].dtype == bool
    assert not results.duplicated(["epsilon", "kind", "scope", "column", "group", "metric", "statistic"]).any()
    shown = results[~results["suppressed"]]
    assert (shown["low"] <= shown["value"]).all() and (shown["value"] <= shown["high"]).all()


@pytest.mark.parametrize("epsilon", [NO_NOISE, 1.0])
def test_levels_are_the_mean_over_seeds_of_the_plain_metrics(
    results: pd.DataFrame, frames: dict[tuple[float, int], pd.DataFrame], epsilon: float
) -> None:
    slices: list[tuple[str, str, str, tuple[tuple[str, str], ...]]] = [("overall", "", "", ())]
    slices += [("group", "gender", group, (("group:gender", group),)) for group in ("f", "m")]
    slices += [
        ("intersection", "gender & age", f"m & {age}", (("group:gender", "m"), ("group:age", age)))
        for age in ("old", "mid", "young")
    ]
    slices += [("tenant", "", name, (("tenant", name),)) for name in ("tenant-0", "tenant-3")]
    for scope, column, group, chosen in slices:
        own = [_rows(frames[epsilon, seed], chosen) for seed in SEEDS]
        expected = [_plain(frame) for frame in own]
        for metric in expected[0]:
            row = found(
                results, kind="level", epsilon=epsilon, scope=scope, column=column, group=group, metric=metric,
                statistic="value",
            )  # fmt: skip
            assert row["value"] == pytest.approx(np.mean([metrics[metric] for metrics in expected]), abs=1e-12)
            assert row["seeds"] == 2
            assert row["users"] == min(frame["user"].nunique() for frame in own)


@pytest.mark.parametrize("columns", [["gender"], ["age"], ["gender", "age"]])
def test_gaps_are_fairlearns(
    results: pd.DataFrame, frames: dict[tuple[float, int], pd.DataFrame], columns: list[str]
) -> None:
    own = [_gaps(frames[1.0, seed], [f"group:{name}" for name in columns]) for seed in SEEDS]
    for metric, statistic in GAPS:
        row = found(
            results, kind="level", epsilon=1.0, scope="gap", column=" & ".join(columns), metric=metric,
            statistic=statistic,
        )  # fmt: skip
        assert row["value"] == pytest.approx(np.mean([gaps[metric, statistic] for gaps in own]), abs=1e-12)


def test_each_tenants_own_gaps_are_fairlearns_and_their_mean_and_largest_are_reported(
    results: pd.DataFrame, frames: dict[tuple[float, int], pd.DataFrame]
) -> None:
    one = results[(results["kind"] == "level") & (results["epsilon"] == 1.0) & (results["scope"] == "client_gap")]
    tenants = [f"tenant-{number}" for number in range(4)]
    own = [
        [_gaps(frame[frame["tenant"] == tenant], ["group:gender"]) for tenant in tenants]
        for frame in (frames[1.0, seed] for seed in SEEDS)
    ]
    for metric, statistic in GAPS:
        values = np.array([[gaps[metric, statistic] for gaps in of_seed] for of_seed in own])
        for place, tenant in enumerate(tenants):
            row = found(one, column="gender", group=tenant, metric=metric, statistic=statistic)
            assert row["value"] == pytest.approx(values[:, place].mean(), abs=1e-12)
        if statistic == "difference":
            mean = found(one, column="gender", metric=metric, statistic="mean")
            worst = found(one, column="gender", metric=metric, statistic="worst")
            assert mean["value"] == pytest.approx(values.mean(), abs=1e-12)
            assert worst["value"] == pytest.approx(values.max(axis=1).mean(), abs=1e-12)


def test_a_gap_of_every_tenant_can_be_hidden_in_a_global_gap_of_none() -> None:
    high, low = (0.5, 0.9, 0.5), (0.5, 0.5, 0.1)
    first = known_frame(0, {"a": 500, "b": 500}, {"a": high, "b": low}, tenant="first")
    second = known_frame(1, {"a": 500, "b": 500}, {"a": low, "b": high}, tenant="second")
    second["user"] += 1000
    results = analyse([cell(pd.concat([first, second], ignore_index=True))], replicates=FEW)
    shown = {"column": "kind", "metric": "demographic_parity"}
    assert found(results, scope="gap", statistic="difference", **shown)["value"] < 0.06
    mean = found(results, scope="client_gap", statistic="mean", **shown)
    assert mean["value"] == pytest.approx(0.4, abs=0.06)
    assert mean["low"] > 0.25


def test_worst_group_is_named(results: pd.DataFrame, frames: dict[tuple[float, int], pd.DataFrame]) -> None:
    worst = found(results, kind="level", epsilon=1.0, scope="gap", column="age", metric="auc", statistic="worst")
    by_age = [{age: _plain(own)["auc"] for age, own in frames[1.0, seed].groupby("group:age")} for seed in SEEDS]
    assert worst["value"] == pytest.approx(np.mean([min(own.values()) for own in by_age]), abs=1e-12)
    assert worst["group"] in {min(own, key=lambda age: own[age]) for own in by_age}
    highest = found(results, kind="level", epsilon=1.0, scope="gap", column="age", metric="log_loss", statistic="worst")
    losses = [max(_plain(own)["log_loss"] for _, own in frames[1.0, seed].groupby("group:age")) for seed in SEEDS]
    assert highest["value"] == pytest.approx(np.mean(losses), abs=1e-12)


def test_a_price_is_the_paired_difference_and_narrower_than_an_unpaired_one(
    results: pd.DataFrame, frames: dict[tuple[float, int], pd.DataFrame]
) -> None:
    for key in (
        {"scope": "overall", "metric": "auc", "statistic": "value"},
        {"scope": "gap", "column": "gender", "metric": "equalized_odds", "statistic": "difference"},
        {"scope": "spread", "metric": "accuracy", "statistic": "variance"},
    ):
        levels = [found(results, kind="level", epsilon=epsilon, **key) for epsilon in (1.0, NO_NOISE)]
        price = found(results, kind="price", epsilon=1.0, **key)
        assert price["value"] == pytest.approx(levels[0]["value"] - levels[1]["value"], abs=1e-12)
        unpaired = np.hypot(*(level["high"] - level["low"] for level in levels))
        assert price["high"] - price["low"] < 0.8 * unpaired
    assert set(results.loc[results["kind"] == "price", "epsilon"]) == {1.0}
    nothing = found(results, kind="price", epsilon=1.0, scope="overall", metric="base_rate")
    assert nothing["value"] == nothing["low"] == nothing["high"] == 0, "noise in training does not change the labels"


def test_price_is_of_the_same_condition_alone(frames: dict[tuple[float, int], pd.DataFrame]) -> None:
    cells = [
        cell(frames[NO_NOISE, 0]),
        cell(frames[1.0, 0], epsilon=1.0, strategy="fedadam"),
        cell(frames[1.0, 0], epsilon=1.0, arm="alone"),
        cell(frames[1.0, 0], arm="alone"),
    ]
    results = analyse(cells, replicates=FEW)
    prices = results[results["kind"] == "price"]
    assert set(prices["arm"]) == {"alone"}
    assert (prices["value"].dropna() == 0).all()


def test_price_uses_the_seeds_that_both_have(frames: dict[tuple[float, int], pd.DataFrame]) -> None:
    cells = [cell(frames[NO_NOISE, 1], 1), cell(frames[1.0, 0], 0, 1.0), cell(frames[1.0, 1], 1, 1.0)]
    row = found(analyse(cells, replicates=FEW), kind="price", scope="overall", metric="auc")
    assert row["seeds"] == 1
    assert row["value"] == pytest.approx(_plain(frames[1.0, 1])["auc"] - _plain(frames[NO_NOISE, 1])["auc"])


def test_the_same_seed_gives_the_same_table(frames: dict[tuple[float, int], pd.DataFrame]) -> None:
    cells = [cell(frames[1.0, seed], seed, 1.0) for seed in SEEDS]
    first, second = analyse(cells, replicates=FEW), analyse(cells, replicates=FEW)
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    other = analyse(cells, replicates=FEW, seed=1)
    assert (other["value"].dropna() == first["value"].dropna()).all()
    assert (other["low"].dropna() != first["low"].dropna()).mean() > 0.5


def test_small_cells_have_no_numbers() -> None:
    rates = (0.5, 0.7, 0.3)
    frame = known_frame(0, {"a": 200, "b": 20, "c": 19}, dict.fromkeys("abc", rates))
    results = analyse([cell(frame)], replicates=FEW)
    groups = results[results["scope"] == "group"]
    small = groups[groups["group"] == "c"]
    assert len(small) == 8 and small["suppressed"].all()
    assert small[["value", "low", "high"]].isna().all(axis=None) and (small["users"] == 0).all()
    assert not groups[(groups["group"] == "b") & (groups["metric"] == "accuracy")]["suppressed"].any()
    two = frame[frame["group:kind"] != "c"]
    gap = found(results, scope="gap", metric="demographic_parity", statistic="difference")
    assert gap["value"] == pytest.approx(_gaps(two, ["group:kind"])["demographic_parity", "difference"])
    assert gap["users"] == 220


def test_a_gap_needs_two_groups() -> None:
    frame = known_frame(0, {"a": 200, "b": 5}, {"a": (0.5, 0.7, 0.3), "b": (0.5, 0.7, 0.3)})
    gaps = analyse([cell(frame)], replicates=FEW).query("scope == 'gap'")
    assert len(gaps) and gaps["suppressed"].all()


def test_a_rate_needs_enough_of_its_label() -> None:
    frame = known_frame(0, {"a": 300, "b": 300}, {"a": (0.5, 0.7, 0.3), "b": (0.02, 0.7, 0.3)})
    assert 0 < frame[(frame["group:kind"] == "b") & (frame["label"] == 1)]["user"].nunique() < 10
    results = analyse([cell(frame)], replicates=FEW)
    own = results[(results["scope"] == "group") & (results["group"] == "b")].set_index("metric")["suppressed"]
    assert own[["true_positive_rate", "auc"]].all()
    assert not own[["false_positive_rate", "selection_rate", "accuracy"]].any()
    gaps = results[(results["scope"] == "gap") & (results["statistic"] == "difference")].set_index("metric")
    assert gaps.loc[["equal_opportunity", "equalized_odds", "auc"], "suppressed"].all()
    assert not gaps.loc[["demographic_parity", "false_positive_rate"], "suppressed"].any()
    looser = analyse([cell(frame)], limits=Limits(min_label=1), replicates=FEW)
    assert not found(looser, scope="gap", metric="equal_opportunity", statistic="difference")["suppressed"]


def test_thresholds_of_groups_decide(frames: dict[tuple[float, int], pd.DataFrame]) -> None:
    frame = frames[1.0, 0]
    thresholds = GroupThresholds("gender", {"f": 0.3})
    mitigated = CellPredictions(condition(1.0, mitigation="thresholds"), 0, frame, thresholds)
    results = analyse([mitigated], replicates=FEW)
    for group, threshold in (("f", 0.3), ("m", 0.5)):
        own = frame[frame["group:gender"] == group]
        row = found(results, kind="level", scope="group", column="gender", group=group, metric="selection_rate")
        assert row["value"] == pytest.approx((own["p1"] >= threshold).mean(), abs=1e-12)
    auc = found(results, kind="level", scope="overall", metric="auc")
    assert auc["value"] == pytest.approx(roc_auc_score(frame["label"], frame["p1"]))


def test_rates_of_zero_have_differences_and_ratios_only_where_they_mean_something() -> None:
    """A model with much noise selects nobody."""
    frame = known_frame(0, {"a": 200, "b": 200}, {"a": (0.5, 0.6, 0.3), "b": (0.5, 0.0, 0.0)})
    nobody = frame.assign(p0=0.8, p1=0.2)
    results = analyse([cell(frame), cell(nobody, epsilon=1.0)], replicates=FEW)
    gaps = results[(results["scope"] == "gap") & (results["metric"] == "demographic_parity")]
    ratio = found(gaps, kind="level", epsilon=NO_NOISE, statistic="ratio")
    assert (ratio["value"], ratio["low"], ratio["high"]) == (0, 0, 1)
    assert found(gaps, kind="level", epsilon=1.0, statistic="difference")["value"] == 0
    assert set(gaps.loc[gaps["epsilon"] == 1.0, "statistic"]) == {"difference"}, "a ratio of 0 and 0 is no number"
    price = found(gaps, kind="price", statistic="difference")
    assert price["high"] < 0, "nobody is treated differently any more"


def test_multiclass_metrics_are_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    users = 400
    probabilities = draw.dirichlet([1.0, 1.0, 1.0, 0.5], users)
    labels = np.array([draw.choice(4, p=row) for row in probabilities])
    group = np.where(draw.random(users) < 0.4, "a", "b")
    # A label that one group never has.
    labels[(group == "a") & (labels == 3)] = 0
    frame = pd.DataFrame({"tenant": "only", "user": np.arange(users), "label": labels, "group:kind": group})
    frame[[f"p{number}" for number in range(4)]] = probabilities
    results = analyse([cell(frame)], replicates=FEW)
    assert set(results["scope"]) == {"overall", "group", "tenant", "gap", "spread"}
    decided = probabilities.argmax(axis=1)
    for scope, name, rows in (("overall", "", group != ""), ("group", "a", group == "a"), ("group", "b", group == "b")):
        expected = {
            "accuracy": accuracy_score(labels[rows], decided[rows]),
            "macro_f1": f1_score(labels[rows], decided[rows], average="macro"),
            "log_loss": log_loss(labels[rows], probabilities[rows], labels=range(4)),
        }
        for metric, value in expected.items():
            assert found(results, scope=scope, group=name, metric=metric)["value"] == pytest.approx(value, abs=1e-12)


def test_regression_errors_are_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    target = draw.normal(50, 20, 300)
    frame = pd.DataFrame(
        {"tenant": "only", "user": np.arange(300), "target": target, "group:kind": ["a", "b", "b"] * 100}
    )
    frame["prediction"] = target + draw.normal(2, 10, 300)
    results = analyse([cell(frame)], replicates=FEW)
    own = frame[frame["group:kind"] == "b"]
    for metric, function in (("mean_absolute_error", mean_absolute_error), ("mean_squared_error", mean_squared_error)):
        row = found(results, scope="group", group="b", metric=metric)
        assert row["value"] == pytest.approx(function(own["target"], own["prediction"]))
        assert row["low"] < row["value"] < row["high"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda frame: frame.drop(columns="user"), "column.s. user missing"),
        (lambda frame: frame.assign(p1=2.0), "do not add up to 1"),
        (lambda frame: frame.assign(p1=np.nan), "do not add up to 1"),
        (lambda frame: frame.assign(**{"group:age": None}), "or group is missing"),
        (lambda frame: frame.assign(label=2), "is not one of the 2"),
        (lambda frame: frame.iloc[:0], "hold no evaluation record"),
    ],
)
def test_a_frame_that_is_not_one_is_refused(change: object, said: str) -> None:
    assert callable(change)
    with pytest.raises(DataError, match=said):
        analyse([cell(change(binary_frame(0)))], replicates=FEW)


def test_cells_that_cannot_be_paired_are_refused() -> None:
    frame = binary_frame(0)
    with pytest.raises(DataError, match="other evaluation records"):
        analyse([cell(frame), cell(frame.iloc[::-1], epsilon=1.0)], replicates=FEW)
    with pytest.raises(DataError, match="seed 0 twice"):
        analyse([cell(frame), cell(frame)], replicates=FEW)


def test_thresholds_of_a_column_that_is_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="'region' is no group column; expected one of gender, age"):
        analyse([replace(cell(binary_frame(0)), thresholds=GroupThresholds("region", {}))], replicates=FEW)
