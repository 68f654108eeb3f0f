"""Columns fused with the pooled text at the head, scaled and expanded by public constants of the card only."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedprofile.common.feature_specs import CategoricalFeature, FeaturesSpec, NumericFeature, VectorFeature


def expand(values: NDArray[np.float64], feature: NumericFeature) -> NDArray[np.float64]:
    """A numeric column as inputs of the head.

    Args:
        values: [n] as found; not-a-number where there is none.
        feature: Range, scale and knots.

    Returns:
        [n, feature.width]: the position on the range, or the hat functions of its ends and knots, which sum to 1;
        zeros where there is no value.

    >>> from fedprofile.common.feature_specs import NumericFeature
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


def bound(vector: Sequence[float], feature: VectorFeature) -> NDArray[np.float64]:
    """A vector as inputs of the head.

    Args:
        vector: [feature.width], finite as 32-bit numbers.
        feature: Its public bounds.

    Returns:
        [feature.width], each between -1 and 1; with `norm` also of an L2 norm of at most 1.

    >>> from fedprofile.common.feature_specs import VectorFeature
    >>> bound((0.0, 5.0, 99.0), VectorFeature(name="x", width=3, low=0, high=10)).tolist()
    [-1.0, 0.0, 1.0]
    >>> bound((3.0, 4.0), VectorFeature(name="x", width=2, norm=10)).tolist()
    [0.3, 0.4]
    """
    values = np.asarray(vector, dtype=np.float64)
    if feature.norm is not None:
        # The norm of 1e38 times 64 is far within float64.
        return values / max(feature.norm, float(np.linalg.norm(values)))
    ends = np.array([feature.low, feature.high], dtype=np.float64)
    return np.interp(values, ends, [-1.0, 1.0])


def encode_features(
    rows: Sequence[Mapping[str, str | float | tuple[float, ...] | None]], features: FeaturesSpec
) -> NDArray[np.float32]:
    """Columns as inputs of the head.

    Args:
        rows: Values by card name; numeric columns hold floats, categorical ones strings, vectors tuples of floats, and
            each may hold None.
        features: Ranges, knots, categories and bounds of the card.

    Returns:
        [n, features.width]; a missing value or vector, or an unlisted category, gives zeros.

    Raises:
        ValueError: A vector is not as wide as the card says.
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
        else:
            # One by one: a record's numbers must not hang on how many others there are.
            for inputs, value in zip(block, column, strict=True):
                if isinstance(value, tuple):
                    inputs[:] = _exactly(bound(value, feature), feature)
        start += feature.width
    for cross in features.crosses:
        product = blocks[cross.categorical][:, :, None] * blocks[cross.numeric][:, None, :]
        width = product.shape[1] * product.shape[2]
        encoded[:, start : start + width] = product.reshape(len(rows), width)
        start += width
    return encoded


def _exactly(inputs: NDArray[np.float64], feature: VectorFeature) -> NDArray[np.float64]:
    """NumPy alone would repeat a vector of one value."""
    if inputs.shape != (feature.width,):
        raise ValueError(f"a vector of '{feature.name}' does not have the card's {feature.width} values")
    return inputs


def _number(value: str | float | tuple[float, ...] | None) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan
