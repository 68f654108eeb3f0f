"""Batches of fixed lengths, and pooling against a loop."""

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedprofile.common.modeling.batches import (
    PAD_LENGTHS,
    chunk_sizes,
    equal_chunks,
    pad_tokens,
    padded_length,
    padded_lengths,
)
from fedprofile.common.modeling.pooling import pool

SIZES = st.lists(st.integers(0, 200), min_size=1, max_size=20)


def _tokens(sizes: list[int]) -> list[NDArray[np.int32]]:
    return [np.arange(10, 10 + size, dtype=np.int32) for size in sizes]


@given(SIZES)
def test_a_batch_holds_its_records_and_nothing_else(sizes: list[int]) -> None:
    batch = pad_tokens(_tokens(sizes), pad_id=7, length=200)
    assert batch.ids.shape == batch.mask.shape == (len(sizes), 200)
    for row, mask, size in zip(batch.ids.tolist(), batch.mask.tolist(), sizes, strict=True):
        # An empty record is one pad token.
        assert mask == [1] * max(1, size) + [0] * (len(mask) - max(1, size))
        assert row == list(range(10, 10 + size)) + [7] * (len(row) - size)


@given(st.integers(1, 200), st.integers(1, 200))
def test_lengths_are_of_a_fixed_set(longest: int, max_tokens: int) -> None:
    if longest > max_tokens:
        with pytest.raises(ValueError, match="max_tokens"):
            padded_length(longest, max_tokens)
        return
    length = padded_length(longest, max_tokens)
    assert longest <= length <= max_tokens
    assert length in (*PAD_LENGTHS, max_tokens)


def test_no_record_is_no_batch_and_none_is_cut() -> None:
    with pytest.raises(ValueError, match="at least one record"):
        pad_tokens([], 0, 32)
    with pytest.raises(ValueError, match="more than 5 tokens"):
        pad_tokens(_tokens([6]), 0, 5)


@given(SIZES, st.integers(1, 2000))
def test_chunks_hold_each_record_once_in_a_shape_of_its_own_length(sizes: list[int], bound: int) -> None:
    lengths = padded_lengths(_tokens(sizes), 200)
    assert lengths.tolist() == [padded_length(size, 200) for size in sizes]
    chunks = [chunk.tolist() for chunk in equal_chunks(lengths, bound)]
    assert sorted(place for chunk in chunks for place in chunk) == list(range(len(sizes)))
    for chunk in chunks:
        [length] = {int(lengths[place]) for place in chunk}
        assert len(chunk) in chunk_sizes(length, bound)
        assert len(chunk) == 1 or len(chunk) * length <= bound
    # Records of one length keep their order, so that a user's are added up in an order of their own.
    for length in np.unique(lengths):
        places = [place for chunk in chunks for place in chunk if lengths[place] == length]
        assert places == sorted(places)


def test_a_bound_of_one_token_is_one_record_at_a_time() -> None:
    chunks = list(equal_chunks(np.array([32, 64, 32], dtype=np.int64), 1))
    assert [chunk.tolist() for chunk in chunks] == [[0], [2], [1]]
    assert list(equal_chunks(np.zeros(0, dtype=np.int64), 1024)) == []


@pytest.mark.parametrize("kind", ["mean", "last"])
def test_pooling_equals_a_loop_in_values_and_gradients(kind: Literal["mean", "last"]) -> None:
    torch.manual_seed(0)
    sizes = [1, 5, 3]
    hidden = torch.randn(3, 5, 4, requires_grad=True)
    mask = torch.tensor([[1] * size + [0] * (5 - size) for size in sizes])
    weights = torch.randn(3, 4)
    pooled = pool(hidden, mask, kind)
    (pooled * weights).sum().backward()
    for row, size in enumerate(sizes):
        kept = hidden[row, :size].detach()
        torch.testing.assert_close(pooled[row].detach(), kept.mean(0) if kind == "mean" else kept[-1])
        expected = torch.zeros(5, 4)
        if kind == "mean":
            expected[:size] = weights[row] / size
        else:
            expected[size - 1] = weights[row]
        assert hidden.grad is not None
        torch.testing.assert_close(hidden.grad[row], expected)
