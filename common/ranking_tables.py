"""Tables of rankings: group x rank of the chosen candidate among those that stand beside it.

The rank is 1 plus the candidates that score higher; of equal scores the one that stands first counts as higher, and the
chosen one stands at a drawn place. So a model that gives all candidates one score has every rank equally often.
"""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedprofile.common.estimates import Metrics, Table, estimated, weighted_mean
from fedprofile.common.tasks import Labels, RankingTask


def ranking_size(task: RankingTask) -> int:
    """How many cells."""
    return task.groups * task.rows_per_record


def ranks(task: RankingTask, scores: NDArray[np.floating], labels: Labels) -> NDArray[np.int64]:
    """The rank of each record's chosen candidate, from 0.

    Args:
        task: The card's.
        scores: [n * rows, 1], the rows of a record together.
        labels: 1 for the chosen candidate of each record and 0 for the others, [n * rows].

    Returns:
        [n].
    """
    each = np.asarray(scores, np.float64).reshape(-1, task.rows_per_record)
    place = labels.reshape(each.shape).argmax(axis=1)[:, None]
    own = np.take_along_axis(each, place, axis=1)
    before = np.arange(each.shape[1]) < place
    higher: NDArray[np.int64] = ((each > own) | ((each == own) & before)).sum(axis=1)
    return higher


def ranking_cells(
    task: RankingTask, scores: NDArray[np.float64], labels: Labels, groups: NDArray[np.int64]
) -> NDArray[np.int64]:
    """See `fedprofile.common.evaluation_tables.table_cells`; one row of cells and one group for each record."""
    return (groups * task.rows_per_record + ranks(task, scores, labels))[:, None]


def rank_values(task: RankingTask) -> dict[str, Table]:
    """What each metric gives to each rank, [rows]: a metric is the mean of it over records.

    With one right candidate the ideal gain is 1, so the normalised discounted cumulative gain is 1 / log2(1 + rank).
    """
    rank = np.arange(1, task.rows_per_record + 1)
    hit = (rank <= task.cutoff).astype(np.float64)
    return {"hit_rate": hit, "ndcg": hit / np.log2(1 + rank), "mean_reciprocal_rank": 1 / rank}


def ranking_metrics(task: RankingTask, table: Table, noise_variance: float) -> Metrics:
    """See `fedprofile.common.evaluation_tables.metrics_from_table`."""
    names = task.group.all_values if task.group is not None else ()
    cells = table.reshape(task.groups, task.rows_per_record)
    metrics: Metrics = {}
    blocks = {"": (cells.sum(axis=0), task.groups * noise_variance)}
    blocks |= {f":{name}": (block, noise_variance) for name, block in zip(names, cells, strict=False)}
    for suffix, (block, variance) in blocks.items():
        for name, values in rank_values(task).items():
            at = "" if name == "mean_reciprocal_rank" else f"_at_{task.cutoff}"
            metrics[f"{name}{at}{suffix}"] = estimated(block, partial(weighted_mean, values), variance, share=1.0)
    return metrics
