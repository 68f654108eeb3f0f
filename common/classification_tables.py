"""Tables of tasks with named labels.

binary       group x label x 10 bins of the positive label's score
multiclass   group x label x {wrong, right}, then predicted counts by label; half of the weight each
multilabel   group x label x {not its, its} x 10 bins of the label's score; one part of the weight for each label
"""

from dataclasses import astuple
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedprofile.common.estimates import Interval, Measure, Metrics, Table, enough, estimated, weighted_mean
from fedprofile.common.tasks import BinaryTask, Labels, MulticlassTask, MultilabelTask

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
    measures: dict[str, Measure] = {"auc": _auc, "accuracy": _accuracy}
    if task.false_positive_rate is not None:
        measures[recall_name(task.false_positive_rate)] = partial(_recall_at, task.false_positive_rate)
    for metric, measure in measures.items():
        # Cells that are summed over groups carry the noise of all of them.
        metrics[metric] = estimated(cells.sum(axis=0), measure, task.groups * noise_variance, share=1.0)
        for name, block in zip(names, cells, strict=False):
            metrics[f"{metric}:{name}"] = estimated(block, measure, noise_variance, share=1.0)
    return metrics


def recall_name(rate: float) -> str:
    """What recall at a false-positive rate is called.

    >>> recall_name(0.05)
    'recall_at_fpr_0.05'
    """
    return f"recall_at_fpr_{rate:g}"


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


def multilabel_size(task: MultilabelTask) -> int:
    """How many cells."""
    return task.groups * len(task.labels) * 2 * SCORE_BINS


def multilabel_cells(
    task: MultilabelTask, scores: NDArray[np.float64], labels: Labels, groups: NDArray[np.int64]
) -> NDArray[np.int64]:
    """See `fedprofile.common.evaluation_tables.table_cells`; of each label one cell."""
    bins = np.minimum(scores * SCORE_BINS, SCORE_BINS - 1).astype(np.int64)
    label = groups[:, None] * len(task.labels) + np.arange(len(task.labels))
    return (label * 2 + task.truths(labels)) * SCORE_BINS + bins


def multilabel_metrics(task: MultilabelTask, table: Table, noise_variance: float) -> Metrics:
    """See `fedprofile.common.evaluation_tables.metrics_from_table`.

    A mean over labels stands where every label's number does; its interval is the mean of theirs, which are of the same
    users, so that it is never too narrow.
    """
    names = task.group.all_values if task.group is not None else ()
    cells = table.reshape(task.groups, len(task.labels), 2, SCORE_BINS)
    share = 1 / len(task.labels)
    metrics: Metrics = {}
    blocks = {"": (cells.sum(axis=0), task.groups * noise_variance)}
    blocks |= {f":{name}": (block, noise_variance) for name, block in zip(names, cells, strict=False)}
    for suffix, (block, variance) in blocks.items():
        areas = [estimated(of_label, _auc, variance, share=share) for of_label in block]
        known = [area for area in areas if area is not None]
        metrics[f"macro_auc{suffix}"] = _mean(known) if len(known) == len(areas) else None
        metrics[f"label_accuracy{suffix}"] = estimated(block, _label_accuracy, variance, share=1.0)
        if not suffix:
            metrics |= {f"auc:{label}": area for label, area in zip(task.labels, areas, strict=True)}
    return metrics


def _mean(intervals: list[Interval]) -> Interval:
    value, low, high = np.mean([astuple(interval) for interval in intervals], axis=0).tolist()
    return Interval(value, low, high)


def _label_accuracy(block: Table, noise_variance: float) -> tuple[float, Table, bool]:
    """The share of a record's labels that are told right at one half, over labels."""
    right = np.zeros(block.shape)
    right[:, 0, : SCORE_BINS // 2] = right[:, 1, SCORE_BINS // 2 :] = 1.0
    return weighted_mean(right, block, noise_variance)


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


def _recall_at(rate: float, block: Table, noise_variance: float) -> tuple[float, Table, bool]:
    """The share of positives above the threshold that `rate` of the negatives are above.

    Within a bin the ROC curve is a straight line, as if scores were spread evenly in it; so where nearly all negatives
    are in one bin, as with rare positives, the number says little of the model's order within that bin. The threshold
    lies in the first bin from the top at which so many negatives are reached.
    """
    negative, positive = block
    negatives, positives = np.float64(negative.sum()), np.float64(positive.sum())
    wanted = rate * negatives
    reached = np.flatnonzero(np.cumsum(negative[::-1]) >= wanted)
    if not len(reached):
        return np.nan, np.zeros(block.shape), False
    place = SCORE_BINS - 1 - int(reached[0])
    above = np.arange(SCORE_BINS) > place
    # How much of the threshold's bin lies above the threshold.
    part = (wanted - negative[above].sum()) / negative[place]
    weights = np.where(above, 1.0, 0.0)
    weights[place] = part
    value = (positive * weights).sum() / positives
    share = positive[place] / (positives * negative[place])
    of_negative = share * (rate - weights)
    of_positive = (weights - value) / positives
    # The negatives that are let through must stand out of the noise, not all of them.
    says = all(enough(float(total), SCORE_BINS, noise_variance) for total in (wanted, positives))
    return float(value), np.stack([of_negative, of_positive]), says
