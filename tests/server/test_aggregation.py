"""The streaming mean against numpy, and its memory."""

import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedprofile.common.messages import Arrays
from fedprofile.server.aggregation import StreamingMean

SHAPES = {"a": (3, 2), "b": (4,), "none": (0, 5), "scalar": ()}


def _update(seed: int) -> Arrays:
    draw = np.random.default_rng(seed)
    return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 10**7)), min_size=1, max_size=8))
def test_equals_numpys_weighted_average(given_updates: list[tuple[int, int]]) -> None:
    mean = StreamingMean(SHAPES)
    for seed, weight in given_updates:
        mean.add(_update(seed), weight)
    found = mean.mean()
    assert found is not None
    weights = [weight for _, weight in given_updates]
    for name in SHAPES:
        stacked = np.stack([_update(seed)[name].astype(np.float64) for seed, _ in given_updates])
        np.testing.assert_allclose(found[name], np.average(stacked, axis=0, weights=weights), rtol=1e-12, atol=1e-15)
        assert found[name].dtype == np.float64


def test_nothing_added_is_no_mean() -> None:
    assert StreamingMean(SHAPES).mean() is None


def _peak(updates: int) -> int:
    shapes = {"a": (300, 300)}
    mean = StreamingMean(shapes)
    tracemalloc.start()
    for number in range(updates):
        mean.add({"a": np.full((300, 300), number, np.float32)}, 1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_number_of_updates() -> None:
    assert _peak(200) < 1.1 * _peak(10)
