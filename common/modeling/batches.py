"""Token ids of several records as one right-padded batch of a fixed set of shapes.

A pass holds records of one padded length, and its number of records is a power of two. So the shape in which a record
is computed comes from its own length and from a short list, which `fedprofile.common.modeling.invariance` tries out
whole: the low bits of a matrix product may depend on its shape, and a record's values must not depend on other users'.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

PAD_LENGTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""A batch is padded to one of these or to the card's `max_tokens`: its cost says little about anyone's history."""

PASS_TOKENS = {"frozen": 1024, "adapted": 1024, "whole": 256}
"""Padded tokens of one pass through the frozen layers, the adapted ones, or all. On a CPU more is hardly faster, and
every size is tried out before the first one is used."""


@dataclass(frozen=True)
class TokenBatch:
    """Right-padded token ids.

    Args:
        ids: int64 [n, length].
        mask: int64 [n, length], 1 at real tokens; every row begins with one.
    """

    ids: torch.Tensor
    mask: torch.Tensor

    def to(self, device: torch.device) -> "TokenBatch":
        """The same batch on a device."""
        return TokenBatch(self.ids.to(device), self.mask.to(device))


def padded_length(longest: int, max_tokens: int) -> int:
    """The length to which a batch is padded.

    Args:
        longest: Tokens of the longest record.
        max_tokens: Of the card; no record is longer.

    Returns:
        The smallest of `PAD_LENGTHS` that is enough, or `max_tokens` where that is smaller.

    Raises:
        ValueError: A record is longer than `max_tokens`.

    >>> padded_length(33, 256), padded_length(33, 48)
    (64, 48)
    """
    if longest > max_tokens:
        raise ValueError(f"a record is longer than max_tokens={max_tokens}")
    return min(next((length for length in PAD_LENGTHS if length >= longest), max_tokens), max_tokens)


def pad_tokens(tokens: Sequence[NDArray[np.int32]], pad_id: int, length: int) -> TokenBatch:
    """Put records into one batch.

    Args:
        tokens: Token ids of each record; an empty one is taken as one pad token, because a vector is pooled from it.
        pad_id: What fills the places behind a record.
        length: Of the batch.

    Returns:
        The batch, on the CPU.

    Raises:
        ValueError: There is no record, or one is longer than `length`.
    """
    lengths = np.array([max(1, len(record)) for record in tokens], dtype=np.int64)
    if not tokens or int(lengths.max()) > length:
        raise ValueError(f"a batch needs at least one record, and none of more than {length} tokens")
    ids = np.full((len(tokens), length), pad_id, dtype=np.int64)
    for row, record in zip(ids, tokens, strict=True):
        row[: len(record)] = record
    mask = (np.arange(ids.shape[1])[None, :] < lengths[:, None]).astype(np.int64)
    return TokenBatch(torch.from_numpy(ids), torch.from_numpy(mask))


def padded_lengths(tokens: Sequence[NDArray[np.int32]], max_tokens: int) -> NDArray[np.int64]:
    """`padded_length` of each record by itself, int64 [n]."""
    return np.array([padded_length(len(record), max_tokens) for record in tokens], dtype=np.int64)


def chunk_sizes(length: int, tokens_at_once: int) -> list[int]:
    """How many records of a padded length one pass may hold.

    Args:
        length: Padded length.
        tokens_at_once: Bound on records times length.

    Returns:
        Powers of two, largest first; the last is 1, however long a record is.

    >>> chunk_sizes(32, 256), chunk_sizes(512, 256)
    ([8, 4, 2, 1], [1])
    """
    return [1 << power for power in reversed(range(max(1, tokens_at_once // length).bit_length()))]


def equal_chunks(lengths: NDArray[np.int64], tokens_at_once: int) -> Iterator[NDArray[np.int64]]:
    """Split records into passes of one padded length and of a size in `chunk_sizes`.

    Args:
        lengths: Padded length of each record.
        tokens_at_once: See `chunk_sizes`.

    Yields:
        Places in `lengths`, ascending; each place once. Those of one length come in their order.
    """
    for length in np.unique(lengths):
        rest = np.flatnonzero(lengths == length)
        for size in chunk_sizes(int(length), tokens_at_once):
            full = len(rest) // size * size
            yield from rest[:full].reshape(-1, size)
            rest = rest[full:]
