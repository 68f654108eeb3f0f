"""Token ids of several records as one right-padded batch of a fixed set of lengths."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

PAD_LENGTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""A batch is padded to one of these or to the card's `max_tokens`: its cost says little about anyone's history."""


TOKENS_AT_ONCE = 4096
"""Tokens of one forward call without gradients."""


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


def pad_tokens(tokens: Sequence[NDArray[np.int32]], pad_id: int, max_tokens: int) -> TokenBatch:
    """Put records into one batch.

    Args:
        tokens: Token ids of each record; an empty one is taken as one pad token, because a vector is pooled from it.
        pad_id: What fills the places behind a record.
        max_tokens: Of the card.

    Returns:
        The batch, on the CPU.

    Raises:
        ValueError: There is no record, or one is longer than `max_tokens`.
    """
    if not tokens:
        raise ValueError("a batch needs at least one record")
    lengths = np.array([max(1, len(record)) for record in tokens])
    ids = np.full((len(tokens), padded_length(int(lengths.max()), max_tokens)), pad_id, dtype=np.int64)
    for row, record in zip(ids, tokens, strict=True):
        row[: len(record)] = record
    mask = (np.arange(ids.shape[1])[None, :] < lengths[:, None]).astype(np.int64)
    return TokenBatch(torch.from_numpy(ids), torch.from_numpy(mask))


def chunks_by_length(tokens: Sequence[NDArray[np.int32]], tokens_at_once: int = TOKENS_AT_ONCE) -> Iterator[list[int]]:
    """Split records into forward calls, those of like length together.

    Args:
        tokens: Token ids of each record.
        tokens_at_once: Bound on records times the length of the longest.

    Yields:
        Places in `tokens`; each place once. One record is a chunk however long it is.
    """
    order = sorted(range(len(tokens)), key=lambda place: len(tokens[place]))
    chunk: list[int] = []
    for place in order:
        if chunk and (len(chunk) + 1) * max(PAD_LENGTHS[0], len(tokens[place])) > tokens_at_once:
            yield chunk
            chunk = []
        chunk.append(place)
    if chunk:
        yield chunk
