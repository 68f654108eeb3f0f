"""One noised table over the evaluation users.

Why it is private: each user has total weight 1, split evenly over at most m records, and a score is a function of its
record alone, down to the last bit (see `Predict`). So a table has sensitivity 1 whatever scores the adapter gives (ten
records of one user in one cell would turn a claimed epsilon of 1 into 14.4). A score that is not a number falls into
the lowest bin, or counts as the first label: it changes a cell, never the weight. Nothing is skipped because of data;
a tenant without evaluation users releases noise.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedprofile.client.noise import check_grid, noised_sum
from fedprofile.client.randomness import Randomness
from fedprofile.client.sampling import choose_records, take_records
from fedprofile.client.segments import SegmentPlan
from fedprofile.common.card import FederationCard, TaskSpec
from fedprofile.common.evaluation_tables import SCORE_BINS, table_shape
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.messages import TABLE, Arrays

Predict = Callable[[Arrays, EncodedRecords], NDArray[np.floating]]
"""From an adapter and records to probabilities [n, labels], each row of which has the same bits whichever other records
there are: a hostile adapter can put every score on the edge of a bin. `ProfileModel.predict` is such a function."""


def evaluation_table(
    probabilities: NDArray[np.floating],
    *,
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    user: NDArray[np.int64],
    task: TaskSpec,
) -> NDArray[np.float64]:
    """The exact table of some records.

    Args:
        probabilities: [n, labels]; may hold anything.
        labels: True labels, int64 [n].
        groups: Index in the group's values, int64 [n]; ignored where the task has no group.
        user: Whose record it is, int64 [n]; at most m records each.
        task: The card's task.

    Returns:
        float64, shape `table_shape(task)`; every user adds 1 in all.
    """
    table = np.zeros(table_shape(task))
    if len(labels) == 0:
        return table
    _, inverse, counts = np.unique(user, return_inverse=True, return_counts=True)
    weight = 1.0 / counts[inverse]
    scores = np.clip(np.nan_to_num(np.asarray(probabilities, np.float64), nan=0.0), 0.0, 1.0)
    group = groups if task.group is not None else np.zeros_like(labels)
    row = group * len(task.labels) + labels
    if task.kind == "binary":
        bins = np.minimum(scores[:, 1] * SCORE_BINS, SCORE_BINS - 1).astype(np.int64)
        np.add.at(table, row * SCORE_BINS + bins, weight)
        return table
    predicted = scores.argmax(axis=1)
    np.add.at(table, row * 2 + (predicted == labels), weight / 2)
    np.add.at(table, len(table) - len(task.labels) + predicted, weight / 2)
    return table


class PrivateEvaluator:
    """Answers `evaluate`.

    Args:
        predict: Probabilities of some records under an adapter.
        task: The card's task.
        noise_multiplier: sigma of one table.
        records_per_user: m.

    Raises:
        ConfigError: The accounting would not cover the rounding (see `check_grid`).
    """

    def __init__(self, *, predict: Predict, task: TaskSpec, noise_multiplier: float, records_per_user: int) -> None:
        check_grid(noise_multiplier, table_shape(task)[0])
        self._predict = predict
        self._task = task
        self._noise_multiplier = noise_multiplier
        self._records_per_user = records_per_user

    @classmethod
    def of(cls, card: FederationCard, plan: SegmentPlan, *, predict: Predict) -> "PrivateEvaluator":
        """The evaluator of a run."""
        return cls(
            predict=predict,
            task=card.task,
            noise_multiplier=plan.evaluation_noise_multiplier,
            records_per_user=plan.records_per_user,
        )

    def evaluate(self, arrays: Arrays, records: EncodedRecords, randomness: Randomness) -> Arrays:
        """One release.

        Args:
            arrays: The adapter to judge.
            records: Of the evaluation users.
            randomness: Made for this reservation alone.

        Returns:
            The noised table under the name `TABLE`.
        """
        few = self.choose(records, randomness)
        probabilities = self._predict(arrays, few) if len(few) else np.zeros((0, len(self._task.labels)))
        return self.table(few, probabilities, randomness)

    def choose(self, records: EncodedRecords, randomness: Randomness) -> EncodedRecords:
        """At most m records of each user; the first thing that a table draws."""
        everyone = np.arange(len(records.users))
        return take_records(records, choose_records(records.user, everyone, self._records_per_user, randomness))

    def table(self, few: EncodedRecords, probabilities: NDArray[np.floating], randomness: Randomness) -> Arrays:
        """The noised table of chosen records; the last thing that a table draws.

        Args:
            few: From `choose`.
            probabilities: [n, labels] of these records.
            randomness: The same as for `choose`.

        Returns:
            See `evaluate`.
        """
        exact = evaluation_table(probabilities, labels=few.labels, groups=few.groups, user=few.user, task=self._task)
        return {TABLE: noised_sum(exact, self._noise_multiplier, randomness)}
