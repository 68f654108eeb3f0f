"""The fused columns against scikit-learn's splines and one-hot encoder, and against hand-written values."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import OneHotEncoder, SplineTransformer

from fedprofile.common.feature_specs import FeaturesSpec
from fedprofile.common.features import encode_features


def _spec(**parts: Any) -> FeaturesSpec:
    return FeaturesSpec.model_validate(parts)


def _numeric(values: list[float | None], **feature: Any) -> np.ndarray:
    spec = _spec(numeric=({"name": "x", **feature},))
    return encode_features([{"x": value} for value in values], spec)


def test_a_number_is_scaled_and_clipped() -> None:
    found = _numeric([-5.0, 10.0, 15.0, 30.0, 1e9, -math.inf], low=10, high=30)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:5, 0], [0, 0, 0.25, 1, 1])


@pytest.mark.parametrize("knots", [(), (3.0, 7.0)])
@pytest.mark.parametrize("missing", [None, math.nan, math.inf, "text"])
def test_what_is_missing_gives_zeros(missing: Any, knots: tuple[float, ...]) -> None:
    assert not _numeric([missing], low=-10, high=10, knots=knots).any()


def test_a_logarithmic_scale_counts_in_its_unit() -> None:
    values = [0.0, 2.0, 6.0, 30.0]
    found = _numeric([value + 5 for value in values], low=5, high=35, scale="log", unit=2.0)
    expected = [math.log(1 + value / 2) / math.log(1 + 30 / 2) for value in values]
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6)


@given(st.lists(st.floats(-20, 40, width=32), min_size=1, max_size=20))
def test_hat_functions_are_scikit_learns_linear_splines(values: list[float]) -> None:
    found = _numeric([float(value) for value in values], low=0, high=20, knots=(1, 5, 12))
    splines = SplineTransformer(degree=1, knots=np.array([[0.0], [1], [5], [12], [20]]), extrapolation="constant")
    expected = splines.fit(np.array([[0.0], [20.0]])).transform(np.array(values)[:, None])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1.0, rtol=1e-6)


def test_hat_functions_on_a_logarithmic_scale_bend_at_the_knots() -> None:
    found = _numeric([1.0, 10.0, 100.0, 31.622776], low=1, high=100, scale="log", unit=1e-9, knots=(10,))
    np.testing.assert_allclose(found[:3], np.eye(3), atol=1e-6)
    # With a tiny unit distances are counted by their ratio to it, so the geometric mean is near the middle.
    between = (math.log(30.622776e9) - math.log(9e9)) / (math.log(99e9) - math.log(9e9))
    np.testing.assert_allclose(found[3], [0, 1 - between, between], atol=1e-5)


@given(st.lists(st.sampled_from(["a", "b", "c", "unlisted", None]), min_size=1, max_size=10))
def test_categories_are_one_hot(values: list[str | None]) -> None:
    spec = _spec(categorical=({"name": "c", "values": ("b", "a", "c")},))
    found = encode_features([{"c": value} for value in values], spec)
    encoder = OneHotEncoder(categories=[["b", "a", "c"]], handle_unknown="ignore", sparse_output=False)
    expected = encoder.fit([["a"]]).transform([[value or "unlisted"] for value in values])
    np.testing.assert_array_equal(found, expected)


def test_the_order_is_numeric_categorical_crosses() -> None:
    spec = _spec(
        numeric=({"name": "x", "low": 0, "high": 4}, {"name": "y", "low": 0, "high": 2, "knots": (1,)}),
        categorical=({"name": "c", "values": ("p", "q")},),
        crosses=({"numeric": "y", "categorical": "c"},),
    )
    rows: list[dict[str, str | float | None]] = [{"x": 1.0, "y": 1.5, "c": "q"}, {"x": 4.0, "y": 0.0}]
    found = encode_features(rows, spec)
    hats = [0.0, 0.5, 0.5]
    np.testing.assert_array_equal(found[0], [0.25, *hats, 0, 1, 0, 0, 0, *hats])
    np.testing.assert_array_equal(found[1], [1.0, 1, 0, 0, 0, 0, *[0] * 6])
    assert found.shape == (2, spec.width)


@pytest.mark.parametrize("rows", [0, 3])
def test_without_features_or_rows_there_is_an_empty_array(rows: int) -> None:
    assert encode_features([{"x": 1.0}] * rows, FeaturesSpec()).shape == (rows, 0)
    spec = _spec(numeric=({"name": "x", "low": 0, "high": 1, "knots": (0.5,)},))
    assert encode_features([{"x": 1.0}] * rows, spec).shape == (rows, 3)


def test_one_row_does_not_depend_on_the_others() -> None:
    spec = _spec(
        numeric=({"name": "x", "low": 0, "high": 9, "knots": (2, 5)},),
        categorical=({"name": "c", "values": ("p", "q")},),
        crosses=({"numeric": "x", "categorical": "c"},),
    )
    rng = np.random.default_rng(0)
    rows: list[dict[str, str | float | None]] = [
        {"x": float(x), "c": str(c)}
        for x, c in zip(rng.uniform(0, 9, 30), rng.choice(["p", "q", "r"], 30), strict=True)
    ]
    together = encode_features(rows, spec)
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(encode_features([row], spec)[0], together[place])
