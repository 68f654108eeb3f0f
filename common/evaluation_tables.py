"""The evaluation table: its cells, its noise, and what its sum over tenants says.

One table is one release. Every evaluation user spreads a total weight of 1 evenly over at most m records. Whatever the
kind of task, a record spreads its weight evenly over a fixed number of cells that its own score, label and group
choose (`table_cells`). So adding or removing a user adds or removes cells that are not negative and sum to 1: the
table changes by 1 in L1, and by at most 1 in L2. A table travels as one flat float64 array:

    binary       group x label x 10 bins of the positive label's score
    multiclass   group x label x {wrong, right}, then predicted counts by label; half of the weight each
    multilabel   group x label x {not its, its} x 10 bins of the label's score; one part of the weight for each label
    regression   group x 10 public bins of the absolute error
    ranking      group x rank of the chosen candidate among those that stand beside it

The server sums tables over tenants and never clips a negative cell before a ratio; `fedprofile.common.estimates` says
what intervals hold. Each kind has a module of its own.
"""

import math

import numpy as np
from numpy.typing import NDArray

from fedprofile.common.accounting import solve_noise_multiplier
from fedprofile.common.card import FederationCard
from fedprofile.common.classification_tables import (
    SCORE_BINS,
    binary_cells,
    binary_metrics,
    binary_size,
    multiclass_cells,
    multiclass_metrics,
    multiclass_size,
    multilabel_cells,
    multilabel_metrics,
    multilabel_size,
)
from fedprofile.common.estimates import NORMAL_95, TOO_FEW, Interval, Metrics, Table
from fedprofile.common.ranking_tables import ranking_cells, ranking_metrics, ranking_size
from fedprofile.common.regression_tables import regression_cells, regression_metrics, regression_size
from fedprofile.common.tasks import (
    BinaryTask,
    Labels,
    MulticlassTask,
    MultilabelTask,
    RankingTask,
    RegressionTask,
    TaskSpec,
)

__all__ = [
    "SCORE_BINS",
    "TOO_FEW",
    "Interval",
    "Metrics",
    "Table",
    "estimated_users",
    "evaluation_noise",
    "metrics_from_table",
    "table_cells",
    "table_shape",
]


def table_shape(task: TaskSpec) -> tuple[int]:
    """The shape of a task's table.

    Args:
        task: The card's task.

    Returns:
        One number: how many cells.
    """
    match task:
        case BinaryTask():
            return (binary_size(task),)
        case MulticlassTask():
            return (multiclass_size(task),)
        case MultilabelTask():
            return (multilabel_size(task),)
        case RegressionTask():
            return (regression_size(task),)
        case RankingTask():
            return (ranking_size(task),)
    raise TypeError(task.kind)


def table_cells(
    task: TaskSpec, scores: NDArray[np.float64], labels: Labels, groups: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Into which cells each record goes, with an equal part of its weight into each.

    Args:
        task: The card's task.
        scores: What the model says of each row, [n * rows, logits], each in [0, 1].
        labels: True labels, [n * rows]; see `TaskSpec.as_array` and `TaskSpec.rows_per_record`.
        groups: Index in the group's values, int64 [n], of each record; zeros where the task has no group.

    Returns:
        Places in the table, [n, k]; the k of a record are different cells, and k depends on the task alone.
    """
    match task:
        case BinaryTask():
            return binary_cells(task, scores, labels, groups)
        case MulticlassTask():
            return multiclass_cells(task, scores, labels, groups)
        case MultilabelTask():
            return multilabel_cells(task, scores, labels, groups)
        case RankingTask():
            return ranking_cells(task, scores, labels, groups)
        case RegressionTask():
            return regression_cells(task, scores, labels, groups)
    raise TypeError(task.kind)


def metrics_from_table(table: Table, noise_variance: float, task: TaskSpec) -> Metrics:
    """What a summed table says.

    Args:
        table: Sum over tenants, shape `table_shape(task)`.
        noise_variance: Of one cell: the sum of the tenants' sigma squared.
        task: The card's task.

    Returns:
        None where there are too few users to say, else a number with its interval:

            binary       "auc", "accuracy", and "recall_at_fpr_RATE" where the card names a false-positive rate; a
                         group's is at that rate of its own negatives
            multiclass   "accuracy", and "recall:LABEL" of each label
            multilabel   "macro_auc", "label_accuracy", and "auc:LABEL" of each label
            ranking      "hit_rate_at_K", "ndcg_at_K" and "mean_reciprocal_rank"
            regression   "mean_absolute_error" and "root_mean_squared_error", from the bins' middles

        and each but those of a label by group as well, as "NAME:GROUP".
    """
    match task:
        case BinaryTask():
            return binary_metrics(task, table, noise_variance)
        case MulticlassTask():
            return multiclass_metrics(task, table, noise_variance)
        case MultilabelTask():
            return multilabel_metrics(task, table, noise_variance)
        case RankingTask():
            return ranking_metrics(task, table, noise_variance)
        case RegressionTask():
            return regression_metrics(task, table, noise_variance)
    raise TypeError(task.kind)


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


def estimated_users(table: Table, noise_variance: float, task: TaskSpec) -> Interval:
    """How many evaluation users a summed table stands for.

    Args:
        table: Sum over tenants.
        noise_variance: Of one cell.
        task: The card's task.

    Returns:
        The table's total with the interval of its noise; may be negative.
    """
    half = NORMAL_95 * math.sqrt(noise_variance * table.size)
    total = float(table.sum())
    return Interval(total, total - half, total + half)
