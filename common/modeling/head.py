"""The linear head, computed for each record by itself.

Why it is private: the sensitivity proof needs a record's logits to be a function of that record alone. A matrix product
with few outputs is summed in an order that depends on the row's place and on the number of rows, so the last bits of
one record's logits tell which other records are there; a hostile adapter can make every score hang on those bits, and
one user more or less then moves everyone. Here every logit is a sum over its own row's products and over nothing else:
in float64, where the products of two float32 are exact, in an order that the number of inputs decides. The same holds
for the gradient that goes back to the pooled text, a sum over the labels of one row.
"""

from types import MethodType

import torch
from torch import nn

from fedprofile.common.tasks import MultilabelTask, RankingTask, RegressionTask, TaskSpec

MIDDLE = 0.5
"""Of a regression's range. Its logit is the distance from there, so that a head of zeros predicts the middle."""


def row_wise_head(inputs: int, labels: int) -> nn.Linear:
    """A linear layer that starts at zero and computes row by row, forward and backward.

    It stays a plain `nn.Linear` to everything that looks at its type: Opacus's per-sample gradients of weight and bias
    are outer products of one row each, and those of this forward.

    Args:
        inputs: Width of a row.
        labels: How many logits.

    Returns:
        The layer, float32, on the CPU; takes [n, inputs] and gives [n, labels].
    """
    # PyTorch's own start would draw from its global generator.
    head: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, labels)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    head.forward = MethodType(_row_by_row, head)  # type: ignore[method-assign]
    return head


def _row_by_row(head: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    products = rows.double().unsqueeze(1) * head.weight.double()
    return (products.sum(dim=2) + head.bias.double()).to(rows.dtype)


def scores(logits: torch.Tensor, task: TaskSpec) -> torch.Tensor:
    """What the logits say, in float64.

    Args:
        logits: [n, logits].
        task: The card's.

    Returns:
        [n, logits]: probabilities of the labels, which sum to 1 in each row where one label excludes the others; of a
        candidate, how likely it is the chosen one among those that it was trained beside; or the predicted target as
        a share of the public range, in [0, 1] and not a number where the logit is none.
    """
    wide = logits.double()
    if isinstance(task, RegressionTask):
        return (wide + MIDDLE).clamp(0.0, 1.0)
    if isinstance(task, MultilabelTask | RankingTask):
        return torch.sigmoid(wide)
    return torch.softmax(wide, dim=1)


def summed_loss(logits: torch.Tensor, labels: torch.Tensor, task: TaskSpec) -> torch.Tensor:
    """The loss summed over the records, so that each one's gradient is its own.

    Cross entropy; where labels do not exclude one another its mean over the labels, each a question of its own; of a
    ranking that of each row, whether this candidate is the chosen one; for a regression the squared or the Huber loss
    of the prediction before it is clipped to the range, with errors as shares of the range.

    Args:
        logits: [n, outputs].
        labels: Of `TaskSpec.as_array`, on any device.
        task: The card's.

    Returns:
        A scalar.
    """
    labels = labels.to(logits.device)
    if isinstance(task, RegressionTask):
        predicted, target = logits[:, 0] + MIDDLE, labels.to(logits.dtype)
        if task.loss == "huber":
            return nn.functional.huber_loss(predicted, target, reduction="sum", delta=task.huber_delta)
        return nn.functional.mse_loss(predicted, target, reduction="sum")
    if isinstance(task, MultilabelTask | RankingTask):
        truths = labels[:, None]
        if isinstance(task, MultilabelTask):
            truths = (truths >> torch.arange(len(task.labels), device=labels.device)) & 1
        summed = nn.functional.binary_cross_entropy_with_logits(logits, truths.to(logits.dtype), reduction="sum")
        return summed / task.logits
    return nn.functional.cross_entropy(logits, labels, reduction="sum")
