"""The evaluation table: its cells, its noise, and what its sum over tenants says.

One table is one release. Every evaluation user spreads a total weight of 1 over the cells, so that adding or removing
a user changes the table by at most 1 in L1 and in L2. A table travels as one flat float64 array:

    binary       group x label x 10 bins of the positive label's score
    multiclass   group x label x {wrong, right}, then predicted counts by label; half of the weight each

The server sums tables over tenants and never clips a negative cell before a ratio: clipping would turn noise into
bias. Intervals hold noise and sampling, by the delta method. For a ratio f with gradient g the noise adds
v * sum(g**2); the sampling of users adds at most share * sum(table * g**2), because a user's own term (g . w)**2 is
at most share * sum(w * g**2) for a weight vector w of total `share` (Jensen), and a ratio's first-order mean vanishes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprofile.common.accounting import solve_noise_multiplier
from fedprofile.common.card import FederationCard, TaskSpec

SCORE_BINS = 10
TOO_FEW = 5.0
"""Below this many noise standard deviations a denominator says nothing."""

_NORMAL_95 = 1.959964

Table = NDArray[np.float64]
Measure = Callable[[Table, float], tuple[float, Table, bool]]
"""From cells and one cell's noise variance to (value, gradient, whether the denominators say anything)."""


@dataclass(frozen=True)
class Interval:
    """A value with a 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def table_shape(task: TaskSpec) -> tuple[int]:
    """The shape of a task's table.

    Args:
        task: The card's task.

    Returns:
        One number: how many cells.
    """
    groups, labels = _groups(task), len(task.labels)
    if task.kind == "binary":
        return (groups * labels * SCORE_BINS,)
    return (groups * labels * 2 + labels,)


def evaluation_noise(card: FederationCard, epsilon: float, delta: float) -> float:
    """The noise of one table, which tenant and server work out alike.

    Args:
        card: How many tables there are.
        epsilon: The tenant's promise for this federation.
        delta: The tenant's promise.

    Returns:
        sigma, such that all the card's tables together stay within the promise; where the card asks for none, as for
        one.
    """
    tables = len(card.evaluation.rounds(card.training.rounds))
    return solve_noise_multiplier(epsilon, delta, 1.0, max(tables, 1))


def metrics_from_table(table: Table, noise_variance: float, task: TaskSpec) -> dict[str, Interval | None]:
    """What a summed table says.

    Args:
        table: Sum over tenants, shape `table_shape(task)`.
        noise_variance: Of one cell: the sum of the tenants' sigma squared.
        task: The card's task.

    Returns:
        "accuracy", for binary tasks "auc", for multiclass "recall:LABEL", and each of the first two by group as
        "NAME:GROUP"; None where there are too few users to say.
    """
    groups = _groups(task)
    names = task.group.all_values if task.group is not None else ()
    metrics: dict[str, Interval | None] = {}
    # Cells that are summed over groups carry the noise of all of them.
    whole = groups * noise_variance
    if task.kind == "binary":
        cells = table.reshape(groups, 2, SCORE_BINS)
        for metric, measure in (("auc", _auc), ("accuracy", _accuracy)):
            metrics[metric] = _interval(cells.sum(axis=0), measure, whole, share=1.0)
            for name, block in zip(names, cells, strict=False):
                metrics[f"{metric}:{name}"] = _interval(block, measure, noise_variance, share=1.0)
        return metrics
    labels = len(task.labels)
    cells = table[: groups * labels * 2].reshape(groups, labels, 2)
    metrics["accuracy"] = _interval(cells.sum(axis=0), _right_share, whole, share=0.5)
    for name, block in zip(names, cells, strict=False):
        metrics[f"accuracy:{name}"] = _interval(block, _right_share, noise_variance, share=0.5)
    for place, label in enumerate(task.labels):
        metrics[f"recall:{label}"] = _interval(cells[:, place].sum(axis=0), _right_share, whole, share=0.5)
    return metrics


def estimated_users(table: Table, noise_variance: float, task: TaskSpec) -> Interval:
    """How many evaluation users a summed table stands for.

    Args:
        table: Sum over tenants.
        noise_variance: Of one cell.
        task: The card's task.

    Returns:
        The table's total with the interval of its noise; may be negative.
    """
    half = _NORMAL_95 * math.sqrt(noise_variance * table.size)
    total = float(table.sum())
    return Interval(total, total - half, total + half)


def _groups(task: TaskSpec) -> int:
    return 1 if task.group is None else len(task.group.all_values)


def _interval(block: Table, measure: Measure, noise_variance: float, *, share: float) -> Interval | None:
    with np.errstate(all="ignore"):
        value, gradient, enough = measure(block, noise_variance)
        squares = gradient**2
        variance = noise_variance * float(squares.sum()) + max(share * float((block * squares).sum()), 0.0)
    if not enough or not math.isfinite(value) or not math.isfinite(variance):
        return None
    half = _NORMAL_95 * math.sqrt(variance)
    value, low, high = (min(max(number, 0.0), 1.0) for number in (value, value - half, value + half))
    return Interval(value, low, high)


def _enough(total: float, cells: int, noise_variance: float) -> bool:
    return total > 0 and total >= TOO_FEW * math.sqrt(noise_variance * cells)


def _accuracy(block: Table, noise_variance: float) -> tuple[float, Table, bool]:
    right = np.zeros(block.shape)
    right[0, : SCORE_BINS // 2] = right[1, SCORE_BINS // 2 :] = 1.0
    return _share_of(right, block, noise_variance)


def _right_share(block: Table, noise_variance: float) -> tuple[float, Table, bool]:
    right = np.zeros(block.shape)
    right[..., 1] = 1.0
    return _share_of(right, block, noise_variance)


def _share_of(chosen: Table, block: Table, noise_variance: float) -> tuple[float, Table, bool]:
    total = np.float64(block.sum())
    value = (block * chosen).sum() / total
    return float(value), (chosen - value) / total, _enough(float(total), block.size, noise_variance)


def _auc(block: Table, noise_variance: float) -> tuple[float, Table, bool]:
    """The chance that a positive scores above a negative; a tie within a bin counts half."""
    negative, positive = block
    negatives, positives = np.float64(negative.sum()), np.float64(positive.sum())
    below = np.cumsum(negative) - negative / 2
    above = positives - np.cumsum(positive) + positive / 2
    value = (positive * below).sum() / (negatives * positives)
    of_negative = above / (negatives * positives) - value / negatives
    of_positive = below / (negatives * positives) - value / positives
    enough = all(_enough(float(total), SCORE_BINS, noise_variance) for total in (negatives, positives))
    return float(value), np.stack([of_negative, of_positive]), enough
