"""From token activations to one vector for a record."""

from typing import Literal

import torch


def pool(hidden: torch.Tensor, mask: torch.Tensor, kind: Literal["mean", "last"]) -> torch.Tensor:
    """Pool over the real tokens.

    Args:
        hidden: [n, length, width].
        mask: [n, length], 1 at real tokens; right-padded, every row has one.
        kind: The mean over the tokens (encoders), or the last token (decoders, which see only what is before).

    Returns:
        [n, width].
    """
    if kind == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    weights = mask.to(hidden.dtype)
    # A product instead of `(hidden * weights).sum(1)`: nothing of the size of `hidden` is formed, also backward.
    return torch.bmm(weights.unsqueeze(1), hidden).squeeze(1) / weights.sum(1, keepdim=True)
