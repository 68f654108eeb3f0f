"""Training at the point near a record where its loss is higher (Miyato et al. 2017, https://arxiv.org/abs/1605.07725).

A record's activations are moved by a part of their own norm in the direction in which the record's own loss rises, and
the gradient that is trained on is the one there.

Why it costs no privacy: the move is a function of one record, the received adapter and the card, so the record's
gradient still is; a user's mean is clipped as ever and the sensitivity stays C. The first gradient is computed with
Opacus's hooks off and never reaches a parameter. That a record is moved with the same bits whoever else is in its pass
is tried out with the rest (`fedprofile.common.modeling.invariance`); where it fails, records run one at a time.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedprofile.common.modeling.batches import TokenBatch
from fedprofile.common.modeling.head import summed_loss

if TYPE_CHECKING:
    from fedprofile.common.modeling.profile_model import ProfileModel


def moved(
    model: "ProfileModel",
    batch: TokenBatch,
    features: NDArray[np.float32],
    prefix: torch.Tensor,
    labels: torch.Tensor,
    part: float,
) -> torch.Tensor:
    """Activations where each record's loss is higher.

    Args:
        model: With the adapter that is trained.
        batch: The records.
        features: Of the records.
        prefix: Their activations; see `ProfileModel.logits`.
        labels: Of the records; see `fedprofile.common.tasks.TaskSpec.as_array`.
        part: How far, in parts of the norm of a record's activations.

    Returns:
        As `prefix`, without gradient; unchanged for a record whose gradient is zero.
    """
    start = prefix.detach().to(model.device).requires_grad_()
    [gradients] = torch.autograd.grad(summed_loss(model.logits(batch, features, start), labels, model.card.task), start)
    start = start.detach()
    norms = gradients.flatten(1).norm(dim=1)
    steps = torch.where(norms > 0, part * start.flatten(1).norm(dim=1) / norms, 0.0)
    return start + gradients * steps.view(-1, *[1] * (gradients.dim() - 1))


@contextlib.contextmanager
def without(hooks: Any) -> Iterator[None]:
    """Within the block Opacus takes no per-sample gradients.

    Args:
        hooks: From Opacus's `prepare_module`.
    """
    hooks.disable_hooks()
    try:
        yield
    finally:
        hooks.enable_hooks()
