"""One noised table over the evaluation users.

Why it is private: each user has total weight 1, split evenly over at most m records, and a score is a function of its
record alone, down to the last bit (see `Predict`). So a table has sensitivity 1 whatever scores the adapter gives (ten
records of one user in one cell would turn a claimed epsilon of 1 into 14.4). A score that is not a number counts
as 0: it changes a cell, never the weight. Nothing is skipped because of data;
a tenant without evaluation users releases noise. Into which cells a record goes, `table_cells` says for each kind of
task; the table here gives each record its weight once and spreads it evenly over these.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedprofile.client.noise import check_grid, noised_sum
from fedprofile.client.randomness import Randomness
from fedprofile.client.sampling import choose_records, take_records
from fedprofile.client.segments import SegmentPlan
from fedprofile.common.card import FederationCard
from fedprofile.common.evaluation_tables import table_cells, table_shape
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.messages import TABLE, Arrays
from fedprofile.common.tasks import Labels, TaskSpec

Predict = Callable[[Arrays, EncodedRecords], NDArray[np.floating]]
"""From an adapter and records to scores [n, outputs], each row of which has the same bits whichever other records
there are: a hostile adapter can put every score on the edge of a bin. `ProfileModel.predict` is such a function."""


def evaluation_table(
    scores: NDArray[np.floating],
    *,
    labels: Labels,
    groups: NDArray[np.int64],
    user: NDArray[np.int64],
    task: TaskSpec,
) -> NDArray[np.float64]:
    """The exact table of some records.

    Args:
        scores: [n, logits]; may hold anything.
        labels: True labels; see `TaskSpec.as_array`.
        groups: Index in the group's values, int64 [n]; ignored where the task has no group.
        user: Whose row it is, int64 [n]; at most m records each, and all rows of a record together.
        task: The card's task.

    Returns:
        float64, shape `table_shape(task)`; every user adds 1 in all.
    """
    table = np.zeros(table_shape(task))
    if len(labels) == 0:
        return table
    # A record of several rows is one record of one user: it has one weight and goes into its cells once.
    first = slice(None, None, task.rows_per_record)
    _, inverse, counts = np.unique(user[first], return_inverse=True, return_counts=True)
    weight = 1.0 / counts[inverse]
    bounded = np.clip(np.nan_to_num(np.asarray(scores, np.float64), nan=0.0), 0.0, 1.0)
    group = groups[first] if task.group is not None else np.zeros_like(groups[first])
    cells = table_cells(task, bounded, labels, group)
    parts = cells.shape[1]
    np.add.at(table, cells.ravel(), np.repeat(weight / parts, parts))
    return table


class PrivateEvaluator:
    """Answers `evaluate`.

    Args:
        predict: Scores of some records under an adapter.
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
        scores = self._predict(arrays, few) if len(few) else np.zeros((0, self._task.logits))
        return self.table(few, scores, randomness)

    def choose(self, records: EncodedRecords, randomness: Randomness) -> EncodedRecords:
        """At most m records of each user; the first thing that a table draws."""
        everyone, rows = np.arange(len(records.users)), self._task.rows_per_record
        places = choose_records(records.user, everyone, self._records_per_user, randomness, rows)
        return take_records(records, places)

    def table(self, few: EncodedRecords, scores: NDArray[np.floating], randomness: Randomness) -> Arrays:
        """The noised table of chosen records; the last thing that a table draws.

        Args:
            few: From `choose`.
            scores: [n, outputs] of these records.
            randomness: The same as for `choose`.

        Returns:
            See `evaluate`.
        """
        exact = evaluation_table(scores, labels=few.labels, groups=few.groups, user=few.user, task=self._task)
        return {TABLE: noised_sum(exact, self._noise_multiplier, randomness)}
