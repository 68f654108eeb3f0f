"""Metrics over evaluation users as they are, which only a simulation has. NOT private: nothing here is noised."""

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    log_loss,
    mean_absolute_error,
    roc_auc_score,
    roc_curve,
    root_mean_squared_error,
)

from fedprofile.common.classification_tables import recall_name
from fedprofile.common.ranking_tables import rank_values, ranks
from fedprofile.common.tasks import LIKELY, BinaryTask, Labels, MultilabelTask, RankingTask, RegressionTask, TaskSpec


def exact_metrics(scores: NDArray[np.floating], labels: Labels, task: TaskSpec) -> dict[str, float | int | None]:
    """Metrics over evaluation users whose labels are known. NOT private.

    Args:
        scores: [n, logits].
        labels: True labels; see `TaskSpec.as_array`.
        task: The card's.

    Returns:
        Accuracy, log loss and, for two labels, the area under the ROC curve, and recall at the card's false-positive
        rate where it names one; for a regression the mean absolute and the root mean squared error, of targets clipped
        to the range; for a ranking and for labels that do not exclude one another the means of `record_values`, for
        the latter also the mean area under the ROC curve over labels. None where they have no meaning.
    """
    if isinstance(task, MultilabelTask | RankingTask):
        values = record_values(task, scores, labels)
        found: dict[str, float | None] = {name: float(np.mean(of)) if len(of) else None for name, of in values.items()}
        if isinstance(task, MultilabelTask):
            truths = task.truths(labels)
            both = len(truths) > 0 and bool((truths.any(axis=0) & ~truths.all(axis=0)).all())
            found["macro_auc"] = float(roc_auc_score(truths, scores, average="macro")) if both else None
        return {"records": len(labels) // task.rows_per_record, **found}
    if isinstance(task, RegressionTask):
        return {"records": len(labels), **_errors(task.in_unit(scores[:, 0]), task.in_unit(labels))}
    found = _classified(scores, labels)
    if isinstance(task, BinaryTask) and task.false_positive_rate is not None:
        found[recall_name(task.false_positive_rate)] = _recall_at(task.false_positive_rate, scores[:, 1], labels)
    return {"records": len(labels), **found}


def _recall_at(rate: float, scores: NDArray[np.floating], labels: Labels) -> float | None:
    if len(np.unique(labels)) < 2:
        return None
    false_positives, true_positives, _ = roc_curve(labels, scores)
    return float(np.interp(rate, false_positives, true_positives))


def _errors(predicted: NDArray[np.float64], target: NDArray[np.float64]) -> dict[str, float | None]:
    if not len(target):
        return {"mean_absolute_error": None, "root_mean_squared_error": None}
    return {
        "mean_absolute_error": float(mean_absolute_error(target, predicted)),
        "root_mean_squared_error": float(root_mean_squared_error(target, predicted)),
    }


def _classified(probabilities: NDArray[np.floating], labels: Labels) -> dict[str, float | None]:
    if not len(labels):
        return {"accuracy": None, "log_loss": None, "auc": None}
    kinds = range(probabilities.shape[1])
    both = probabilities.shape[1] == 2 and len(np.unique(labels)) == 2
    return {
        "accuracy": float(accuracy_score(labels, probabilities.argmax(axis=1))),
        "log_loss": float(log_loss(labels, probabilities, labels=list(kinds))),
        "auc": float(roc_auc_score(labels, probabilities[:, 1])) if both else None,
    }


def record_values(
    task: MultilabelTask | RankingTask, scores: NDArray[np.floating], labels: Labels
) -> dict[str, NDArray[np.float64]]:
    """What each record is worth by metrics that are means over records.

    Args:
        task: The card's.
        scores: [n * rows, logits].
        labels: True labels, [n * rows].

    Returns:
        Metric -> [n]. Of a ranking "hit_rate" and "ndcg" at the card's cutoff, and "mean_reciprocal_rank". Of labels
        that do not exclude one another "label_precision" (the label ranking average precision: of a record's labels
        the mean share of true ones among those that score as high), "label_accuracy" and "f1" of what is said at one
        half (1 where nothing is true and nothing said), and "log_loss", the mean over labels.
    """
    if isinstance(task, RankingTask):
        rank = ranks(task, scores, labels)
        return {name: values[rank] for name, values in rank_values(task).items()}
    truth, said = task.truths(labels), scores >= LIKELY
    true, both = truth.sum(axis=1), (truth & said).sum(axis=1)
    likely = np.clip(np.asarray(scores, np.float64), np.finfo(np.float64).eps, 1 - np.finfo(np.float64).eps)
    above = scores[:, None, :] >= scores[:, :, None]
    precision = (above & truth[:, None, :]).sum(axis=2) / above.sum(axis=2)
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2 * both / (true + said.sum(axis=1)), nan=1.0)
        mean_precision = np.nan_to_num((precision * truth).sum(axis=1) / true, nan=1.0)
    return {
        "label_precision": mean_precision,
        "label_accuracy": (truth == said).mean(axis=1),
        "f1": f1,
        "log_loss": -np.where(truth, np.log(likely), np.log1p(-likely)).mean(axis=1),
    }
