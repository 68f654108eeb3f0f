"""Weights of tenants by how badly the adapter serves them, from the noised evaluation tables and from nothing else.

The tables are releases that are paid for, so weights made of them cost no privacy (post-processing). Training losses,
on which q-FedAvg (Li et al. 2020, https://arxiv.org/abs/1905.10497) and agnostic federated learning (Mohri et al. 2019,
https://arxiv.org/abs/1902.00146) build, never leave a tenant here: they would be another release.

A tenant's error is that of the group that is served worst there; where its table is too noisy to say, of the whole
tenant; and where that is too noisy as well, of the federation. With few users at a tenant it is mostly the last.
"""

import numpy as np

from fedprofile.common.card import AggregationSpec
from fedprofile.common.evaluation_tables import Table, metrics_from_table
from fedprofile.common.tasks import TaskSpec
from fedprofile.server.evaluation import headline, merit

LARGEST_FACTOR = 4.0
"""No tenant weighs more than this many times, or less than one over this many times, what its users say."""
SMALLEST_ERROR = 0.01


class FairWeights:
    """What each tenant's declared users are multiplied by.

    Args:
        settings: The card's.
        task: The card's.
    """

    def __init__(self, settings: AggregationSpec, task: TaskSpec) -> None:
        self._settings, self._task = settings, task
        self.errors: dict[str, float] = {}
        """By tenant, of the latest tables; nothing before the first."""

    def learn(self, tables: dict[str, tuple[Table, float]]) -> None:
        """Take the tables of one evaluation.

        Args:
            tables: By tenant its noised table, and the variance of the noise in one cell.
        """
        if self._settings.fairness == "none" or not tables:
            return
        total = sum(variance for _, variance in tables.values())
        everyone = self._error(np.sum([table for table, _ in tables.values()], axis=0), total)
        if everyone is None:
            return
        for name, (table, variance) in tables.items():
            own = self._error(table, variance)
            self.errors[name] = everyone if own is None else own

    def factor(self, name: str) -> float:
        """What a tenant's declared users are multiplied by; 1 before anything is known of it.

        Args:
            name: Of the tenant.
        """
        if name not in self.errors:
            return 1.0
        error, errors = self.errors[name], sorted(self.errors.values())
        if self._settings.fairness == "worst-tenants":
            return LARGEST_FACTOR if error > errors[(len(errors) - 1) // 2] else 1.0
        mean = sum(errors) / len(errors)
        return float(min(max((error / mean) ** self._settings.fairness_q, 1 / LARGEST_FACTOR), LARGEST_FACTOR))

    def _error(self, table: Table, variance: float) -> float | None:
        """Of the group that is served worst, one minus the headline's merit."""
        metrics, name = metrics_from_table(table, variance, self._task), headline(self._task)
        names = [key for key in metrics if key == name or key.startswith(f"{name}:")]
        merits = [own.value for key in names if (own := merit(metrics, key, self._task)) is not None]
        return max(1.0 - min(merits), SMALLEST_ERROR) if merits else None
