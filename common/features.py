"""Columns fused with the pooled text at the head, scaled and expanded by public constants of the card only."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedprofile.common.card import CategoricalFeature, FeaturesSpec, NumericFeature


def expand(values: NDArray[np.float64], feature: NumericFeature) -> NDArray[np.float64]:
    """A numeric column as inputs of the head.

    Args:
        values: [n] as found; not-a-number where there is none.
        feature: Range, scale and knots.

    Returns:
        [n, feature.width]: the position on the range, or the hat functions of its ends and knots, which sum to 1;
        zeros where there is no value.

    >>> from fedprofile.common.card import NumericFeature
    >>> expand(np.array([15.0, np.nan]), NumericFeature(name="x", low=0, high=20, knots=(10,))).tolist()
    [[0.0, 0.5, 0.5], [0.0, 0.0, 0.0]]
    >>> expand(np.array([9.0]), NumericFeature(name="x", low=0, high=99, scale="log")).tolist()
    [[0.5]]
    """
    ends = _distances(np.array([feature.low, *feature.knots, feature.high]), feature)
    positions = _distances(values, feature)
    if feature.knots:
        inputs = np.stack([np.interp(positions, ends, hat) for hat in np.eye(len(ends))], axis=1)
    else:
        inputs = (positions / ends[-1])[:, None]
    inputs[np.isnan(values)] = 0.0
    return inputs


def _distances(values: NDArray[np.float64], feature: NumericFeature) -> NDArray[np.float64]:
    """Distances from the range's lower end, on the feature's scale."""
    distances = np.clip(values, feature.low, feature.high) - feature.low
    return np.log1p(distances / feature.unit) if feature.scale == "log" else distances


def encode_features(rows: Sequence[Mapping[str, str | float | None]], features: FeaturesSpec) -> NDArray[np.float32]:
    """Columns as inputs of the head.

    Args:
        rows: Values by card name; numeric columns hold floats, categorical ones strings, either may hold None.
        features: Ranges, knots and categories of the card.

    Returns:
        [n, features.width]; a missing value or an unlisted category gives zeros.
    """
    encoded = np.zeros((len(rows), features.width), dtype=np.float32)
    blocks: dict[str, NDArray[np.float32]] = {}
    start = 0
    for feature in features.all:
        block = blocks[feature.name] = encoded[:, start : start + feature.width]
        column = [row.get(feature.name) for row in rows]
        if isinstance(feature, NumericFeature):
            block[:] = expand(np.array([_number(value) for value in column], dtype=np.float64), feature)
        elif isinstance(feature, CategoricalFeature):
            block[:] = np.array([[value == known for known in feature.values] for value in column]).reshape(block.shape)
        start += feature.width
    for cross in features.crosses:
        product = blocks[cross.categorical][:, :, None] * blocks[cross.numeric][:, None, :]
        width = product.shape[1] * product.shape[2]
        encoded[:, start : start + width] = product.reshape(len(rows), width)
        start += width
    return encoded


def _number(value: str | float | None) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan
