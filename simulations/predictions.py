"""What a cell of an experiment predicted, record by record, and what was decided from it.

A frame has one row for each evaluation record:

    tenant          whose record it is
    user            a number, not an id; the same person has the same number in every cell
    label, p0, p1.. the true label and the probability of each; or target and prediction for a regression
    value:METRIC    instead of these for a ranking and for labels that do not exclude one another: what the record is
                    worth by a metric that is a mean over records; see `fedprofile.simulations.exact_metrics`
    group:NAME      one column for each group column; never seen by the model
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedprofile.common.errors import ConfigError, DataError

Kind = Literal["binary", "multiclass", "multilabel", "regression", "ranking"]

GROUP_PREFIX = "group:"
VALUE_PREFIX = "value:"
THRESHOLD = 0.5


@dataclass(frozen=True)
class Condition:
    """What distinguishes cells that differ by more than their seed.

    Args:
        arm: Who trained: "federated", "alone", "pooled", or "bayes" for the population's own rule.
        epsilon: `inf` where no noise was drawn.
        mitigation: "none", or its name.
        partition: Which users are at which tenant.
        strategy: How the server aggregates.
    """

    arm: str
    epsilon: float
    mitigation: str
    partition: str
    strategy: str

    def without_noise(self) -> "Condition":
        """The condition that the price of privacy is measured against."""
        return replace(self, epsilon=float("inf"))


@dataclass(frozen=True)
class GroupThresholds:
    """A decision threshold for each group; binary tasks.

    Args:
        column: Group column, without the prefix.
        by_group: Group -> threshold; other groups are decided at `default`.
        default: Of groups that are not named.
    """

    column: str
    by_group: Mapping[str, float]
    default: float = THRESHOLD

    def decide(self, scores: NDArray[np.float64], groups: NDArray[np.str_]) -> NDArray[np.int64]:
        """Decide each record.

        Args:
            scores: Probability of the positive label, [n].
            groups: Value of the group column, [n].

        Returns:
            1 where the score is at least its group's threshold, int64 [n].
        """
        names, codes = np.unique(groups, return_inverse=True)
        thresholds = np.array([self.by_group.get(str(name), self.default) for name in names])
        return (scores >= thresholds[codes]).astype(np.int64)


@dataclass(frozen=True, eq=False)
class CellPredictions:
    """One cell of an experiment.

    Args:
        condition: All but the seed.
        seed: Of the cell.
        frame: See the module's docstring.
        thresholds: To decide by, instead of 0.5 for everybody.
    """

    condition: Condition
    seed: int
    frame: pd.DataFrame = field(repr=False)
    thresholds: GroupThresholds | None = None


@dataclass(frozen=True, eq=False)
class Records:
    """A cell's frame, checked and as arrays.

    Args:
        kind: Of the task.
        tenant: [n].
        user: int64 [n].
        truth: Labels, int64 [n]; targets, float64 [n], for a regression.
        decided: Labels, int64 [n]; predictions, float64 [n], for a regression.
        probabilities: float64 [n, labels], rows that add up to 1; [n, 0] for all other kinds.
        groups: Group column, without the prefix -> values, [n].
        values: Metric, without the prefix -> what each record is worth by it, float64 [n]; nothing where the kind has
            truth and decisions, which are zeros where it has not.
    """

    kind: Kind
    tenant: NDArray[np.str_]
    user: NDArray[np.int64]
    truth: NDArray[np.int64] | NDArray[np.float64]
    decided: NDArray[np.int64] | NDArray[np.float64]
    probabilities: NDArray[np.float64]
    groups: dict[str, NDArray[np.str_]]
    values: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @classmethod
    def of(cls, cell: CellPredictions) -> "Records":
        """Read a cell.

        Raises:
            DataError: A column is missing, or a value is not what it should be.
            ConfigError: The thresholds are of a column that is not there, or of a task that is not binary.
        """
        frame = cell.frame
        scores = [name for name in frame.columns if name[:1] == "p" and name[1:].isdigit()]
        valued = [name for name in frame.columns if name.startswith(VALUE_PREFIX)]
        kind: Kind = "regression" if not scores else "binary" if len(scores) == 2 else "multiclass"
        if valued:
            kind = "ranking" if f"{VALUE_PREFIX}ndcg" in valued else "multilabel"
        needed = valued or (["label"] if scores else ["target", "prediction"])
        _require(frame, ["tenant", "user", *needed])
        if frame.empty:
            raise DataError("predictions: hold no evaluation record; expected one row for each.")
        groups = {
            name.removeprefix(GROUP_PREFIX): frame[name].to_numpy(dtype=np.str_)
            for name in frame.columns
            if name.startswith(GROUP_PREFIX)
        }
        tenant, user = frame["tenant"].to_numpy(dtype=np.str_), frame["user"].to_numpy(dtype=np.int64)
        if valued:
            if cell.thresholds is not None:
                raise ConfigError(f"thresholds: belong to a binary task; this one is {kind}.")
            values = {name.removeprefix(VALUE_PREFIX): frame[name].to_numpy(dtype=np.float64) for name in valued}
            if not all(np.isfinite(of).all() for of in values.values()):
                raise DataError("predictions: a record's value is not a finite number.")
            nothing = np.zeros(len(frame), dtype=np.int64)
            return cls(kind, tenant, user, nothing, nothing, np.zeros((len(frame), 0)), groups, values)
        if kind == "regression":
            target, prediction = (frame[name].to_numpy(dtype=np.float64) for name in ("target", "prediction"))
            if cell.thresholds is not None:
                raise ConfigError("thresholds: belong to a binary task; this one is a regression.")
            if not (np.isfinite(target).all() and np.isfinite(prediction).all()):
                raise DataError("predictions: a target or a prediction is not a finite number.")
            return cls(kind, tenant, user, target, prediction, np.zeros((len(frame), 0)), groups)
        probabilities = frame[[f"p{number}" for number in range(len(scores))]].to_numpy(dtype=np.float64)
        labels = frame["label"].to_numpy(dtype=np.int64)
        _check_labels(labels, probabilities)
        probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
        decided = _decide(probabilities, groups, cell.thresholds)
        return cls(kind, tenant, user, labels, decided, probabilities, groups)


def _decide(
    probabilities: NDArray[np.float64], groups: Mapping[str, NDArray[np.str_]], thresholds: GroupThresholds | None
) -> NDArray[np.int64]:
    if probabilities.shape[1] > 2:
        if thresholds is not None:
            raise ConfigError(f"thresholds: belong to a binary task; this one has {probabilities.shape[1]} labels.")
        return np.asarray(probabilities.argmax(axis=1), dtype=np.int64)
    if thresholds is None:
        return (probabilities[:, 1] >= THRESHOLD).astype(np.int64)
    if thresholds.column not in groups:
        there = ", ".join(groups) or "none"
        raise ConfigError(f"thresholds.column='{thresholds.column}' is no group column; expected one of {there}.")
    return thresholds.decide(probabilities[:, 1], groups[thresholds.column])


def _require(frame: pd.DataFrame, names: list[str]) -> None:
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise DataError(
            f"predictions: column(s) {', '.join(missing)} missing; expected tenant, user, label, p0, p1, ... and "
            f"{GROUP_PREFIX}NAME, target and prediction for a regression, or {VALUE_PREFIX}METRIC for other kinds."
        )
    groups = [name for name in frame.columns if name.startswith(GROUP_PREFIX)]
    if frame[[*names, *groups]].isna().any(axis=None):
        raise DataError(
            "predictions: a tenant, user, label, target, prediction or group is missing; expected one in each row."
        )


def _check_labels(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> None:
    if not ((probabilities >= 0).all() and np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-3)):
        raise DataError("predictions: the probabilities of a row are not in [0, 1], or do not add up to 1.")
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        raise DataError(f"predictions: a label is not one of the {probabilities.shape[1]} that have a probability.")
