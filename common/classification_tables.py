"""Tables of tasks with one right label for each record.

binary       group x label x 10 bins of the positive label's score
multiclass   group x label x {wrong, right}, then predicted counts by label; half of the weight each
"""

import numpy as np
from numpy.typing import NDArray

from fedprofile.common.estimates import Metrics, Table, enough, estimated, weighted_mean
from fedprofile.common.tasks import BinaryTask, Labels, MulticlassTask

SCORE_BINS = 10


def binary_size(task: BinaryTask) -> int:
    """How many cells."""
    return task.groups * 2 * SCORE_BINS


def binary_cells(
    task: BinaryTask, scores: NDArray[np.float64], labels: Labels, groups: NDArray[np.int64]
) -> NDArray[np.int64]:
    """See `fedprofile.common.evaluation_tables.table_cells`."""
    bins = np.minimum(scores[:, 1] * SCORE_BINS, SCORE_BINS - 1).astype(np.int64)
    return ((groups * 2 + labels.astype(np.int64)) * SCORE_BINS + bins)[:, None]


def binary_metrics(task: BinaryTask, table: Table, noise_variance: float) -> Metrics:
    """See `fedprofile.common.evaluation_tables.metrics_from_table`."""
    names = task.group.all_values if task.group is not None else ()
    cells = table.reshape(task.groups, 2, SCORE_BINS)
    metrics: Metrics = {}
    for metric, measure in (("auc", _auc), ("accuracy", _accuracy)):
        # Cells that are summed over groups carry the noise of all of them.
        metrics[metric] = estimated(cells.sum(axis=0), measure, task.groups * noise_variance, share=1.0)
        for name, block in zip(names, cells, strict=False):
            metrics[f"{metric}:{name}"] = estimated(block, measure, noise_variance, share=1.0)
    return metrics


def multiclass_size(task: MulticlassTask) -> int:
    """How many cells."""
    return task.groups * len(task.labels) * 2 + len(task.labels)


def multiclass_cells(
    task: MulticlassTask, scores: NDArray[np.float64], labels: Labels, groups: NDArray[np.int64]
) -> NDArray[np.int64]:
    """See `fedprofile.common.evaluation_tables.table_cells`."""
    count, predicted = len(task.labels), scores.argmax(axis=1)
    right = (groups * count + labels.astype(np.int64)) * 2 + (predicted == labels)
    return np.stack([right, task.groups * count * 2 + predicted], axis=1)


def multiclass_metrics(task: MulticlassTask, table: Table, noise_variance: float) -> Metrics:
    """See `fedprofile.common.evaluation_tables.metrics_from_table`."""
    names = task.group.all_values if task.group is not None else ()
    labels, whole = len(task.labels), task.groups * noise_variance
    cells = table[: task.groups * labels * 2].reshape(task.groups, labels, 2)
    metrics: Metrics = {"accuracy": estimated(cells.sum(axis=0), _right_share, whole, share=0.5)}
    for name, block in zip(names, cells, strict=False):
        metrics[f"accuracy:{name}"] = estimated(block, _right_share, noise_variance, share=0.5)
    for place, label in enumerate(task.labels):
        metrics[f"recall:{label}"] = estimated(cells[:, place].sum(axis=0), _right_share, whole, share=0.5)
    return metrics


def _accuracy(block: Table, noise_variance: float) -> tuple[float, Table, bool]:
    right = np.zeros(block.shape)
    right[0, : SCORE_BINS // 2] = right[1, SCORE_BINS // 2 :] = 1.0
    return weighted_mean(right, block, noise_variance)


def _right_share(block: Table, noise_variance: float) -> tuple[float, Table, bool]:
    right = np.zeros(block.shape)
    right[..., 1] = 1.0
    return weighted_mean(right, block, noise_variance)


def _auc(block: Table, noise_variance: float) -> tuple[float, Table, bool]:
    """The chance that a positive scores above a negative; a tie within a bin counts half."""
    negative, positive = block
    negatives, positives = np.float64(negative.sum()), np.float64(positive.sum())
    below = np.cumsum(negative) - negative / 2
    above = positives - np.cumsum(positive) + positive / 2
    value = (positive * below).sum() / (negatives * positives)
    of_negative = above / (negatives * positives) - value / negatives
    of_positive = below / (negatives * positives) - value / positives
    says = all(enough(float(total), SCORE_BINS, noise_variance) for total in (negatives, positives))
    return float(value), np.stack([of_negative, of_positive]), says
