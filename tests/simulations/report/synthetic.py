"""A table of results as an experiment makes it, and facts to go with it, drawn from a rule that is known here.

Four epsilons, two strategies, three merged seeds, two group columns and their intersection, twenty tenants, two
mitigations at one epsilon, numbers that must not be shown, and an audit with a failing row. Group "b" of gender pays
for privacy, the groups of age all pay alike, and tenants have larger gaps than all users together.
"""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from fedprofile.common.accounting import PrivacyLoss
from fedprofile.simulations.report import (
    AuditRow,
    CellTime,
    Composed,
    KnownTruth,
    PartitionPicture,
    ReportFacts,
    Spent,
)

EPSILONS = (math.inf, 8.0, 3.0, 1.0)
STRATEGIES = ("fedavg", "fedadam")
TENANTS = tuple(f"tenant-{number:03d}" for number in range(20))
GROUPS = {"gender": ("a", "b"), "age": ("18-29", "30-49", "50-64", "65+")}
LOST = {math.inf: 0.0, 8.0: 0.003, 3.0: 0.03, 1.0: 0.1}
"""What every metric loses at each epsilon; group b of gender loses three times as much."""
SECRET = 0.98765432109
"""The value of every number that must not be shown."""
SECRET_USERS = 13
"""On how many users these stand."""
PROMISE = PrivacyLoss(3.0, 1e-5)

Row = dict[str, object]


class Synthetic:
    """Makes the table.

    Args:
        group: What group "b" of gender is called.
        seed: Of the numbers' errors.
    """

    def __init__(self, group: str = "b", seed: int = 0) -> None:
        self._draw = np.random.Generator(np.random.Philox(seed))
        self.groups = GROUPS | {"gender": ("a", group)}

    def table(self) -> pd.DataFrame:
        """All rows."""
        rows: list[Row] = []
        for epsilon in EPSILONS:
            for strategy in STRATEGIES:
                rows += self._federated(epsilon, strategy, "none")
                rows += self._overall("alone", epsilon, strategy, 0.05)
            rows += self._overall("pooled", epsilon, STRATEGIES[0], -0.02)
        for mitigation in ("balanced-sampling", "group-thresholds"):
            rows += self._federated(3.0, STRATEGIES[0], mitigation)
        rows += self._gaps("bayes", math.inf, "", "none", 0.0)
        return pd.DataFrame(rows)

    def _federated(self, epsilon: float, strategy: str, mitigation: str) -> Iterator[Row]:
        """The numbers of one condition."""
        where = ("federated", epsilon, strategy, mitigation)
        yield from self._overall("federated", epsilon, strategy, 0.0, mitigation)
        for column, names in self.groups.items():
            for name in names:
                lost = self._lost(epsilon, column, name)
                yield from self._level_and_price(where, "group", column, name, "true_positive_rate", 0.66, lost)
                yield from self._level_and_price(where, "group", column, name, "selection_rate", 0.3, lost)
            # Too few for an AUC in one group.
            yield from self._level_and_price(where, "group", column, names[0], "auc", 0.74, LOST[epsilon])
            yield self._hidden(where, "group", column, names[-1], "auc")
            worst = self._lost(epsilon, column, names[-1])
            yield self._row(where, "gap", column, names[-1], "true_positive_rate", 0.66 - worst, 0.02, "worst")
        crossed = [f"{gender} & {age}" for gender in self.groups["gender"] for age in self.groups["age"]]
        for name in crossed[:-1]:
            yield self._row(
                where, "intersection", "gender & age", name, "true_positive_rate", 0.66 - LOST[epsilon], 0.04
            )
        yield self._hidden(where, "intersection", "gender & age", crossed[-1], "true_positive_rate")
        yield from self._gaps(*where, LOST[epsilon] / (3 if mitigation == "group-thresholds" else 1))
        yield from self._tenants(where)

    def _overall(
        self, arm: str, epsilon: float, strategy: str, worse: float, mitigation: str = "none"
    ) -> Iterator[Row]:
        where = (arm, epsilon, strategy, mitigation)
        yield from self._level_and_price(where, "overall", "", "", "auc", 0.74 - worse, LOST[epsilon])
        yield from self._level_and_price(where, "overall", "", "", "accuracy", 0.71 - worse, LOST[epsilon])

    def _gaps(self, arm: str, epsilon: float, strategy: str, mitigation: str, lost: float) -> Iterator[Row]:
        where = (arm, epsilon, strategy, mitigation)
        for column in self.groups:
            for metric, start in (("demographic_parity", 0.06), ("equalized_odds", 0.09)):
                size = start + (2 * lost if column == "gender" else 0.0)
                yield self._row(where, "gap", column, "", metric, size, 0.02, "difference")
                yield self._row(where, "gap", column, "", metric, 1 - size, 0.03, "ratio")
                if arm == "federated" and math.isfinite(epsilon):
                    yield self._row(where, "gap", column, "", metric, size - start, 0.02, "difference", kind="price")

    def _tenants(self, where: tuple[str, float, str, str]) -> Iterator[Row]:
        for number, name in enumerate(TENANTS):
            if number == len(TENANTS) - 1:
                yield self._hidden(where, "tenant", "", name, "auc")
                continue
            shift = 0.004 * (number - 10)
            yield from self._level_and_price(where, "tenant", "", name, "auc", 0.74 + shift, LOST[where[1]])
            gap = 0.35 if number < 2 else 0.1
            yield self._row(where, "client_gap", "gender", name, "equalized_odds", gap, 0.05, "difference")
        yield self._row(where, "client_gap", "gender", "", "equalized_odds", 0.12, 0.1, "mean")
        yield self._row(where, "client_gap", "gender", TENANTS[1], "equalized_odds", 0.36, 0.06, "worst")
        for statistic, value in (("variance", 0.002), ("worst_tenth", 0.69 - LOST[where[1]]), ("gini", 0.03)):
            yield self._row(where, "spread", "", "", "auc", value, value / 10, statistic)

    def _lost(self, epsilon: float, column: str, group: str) -> float:
        return LOST[epsilon] * (3 if column == "gender" and group == self.groups["gender"][1] else 1)

    def _level_and_price(
        self,
        where: tuple[str, float, str, str],
        scope: str,
        column: str,
        group: str,
        metric: str,
        start: float,
        lost: float,
    ) -> Iterator[Row]:
        yield self._row(where, scope, column, group, metric, start - lost, 0.02)
        if math.isfinite(where[1]):
            yield self._row(where, scope, column, group, metric, -lost, 0.012, kind="price")

    def _row(
        self,
        where: tuple[str, float, str, str],
        scope: str,
        column: str,
        group: str,
        metric: str,
        value: float,
        half: float,
        statistic: str = "value",
        *,
        kind: str = "level",
    ) -> Row:
        arm, epsilon, strategy, mitigation = where
        found = value + float(self._draw.normal(0, half / 20))
        return {
            "arm": arm,
            "epsilon": epsilon,
            "mitigation": mitigation,
            "partition": "label-skew",
            "strategy": strategy,
            "kind": kind,
            "scope": scope,
            "column": column,
            "group": group,
            "metric": metric,
            "statistic": statistic,
            "value": found,
            "low": max(0.0, found - half) if scope in ("gap", "client_gap") and kind == "level" else found - half,
            "high": found + half,
            "users": 1200 if scope == "overall" else 61,
            "seeds": 3,
            "suppressed": False,
        }

    def _hidden(self, where: tuple[str, float, str, str], scope: str, column: str, group: str, metric: str) -> Row:
        row = self._row(where, scope, column, group, metric, SECRET, 0.0)
        return row | {"value": SECRET, "low": SECRET, "high": SECRET, "users": SECRET_USERS, "suppressed": True}


def facts(group: str = "b", *, real_data: bool = False) -> ReportFacts:
    """Facts to go with the table; the audit has a row that fails.

    Args:
        group: What group "b" of gender is called.
        real_data: Whether the data are said to be real.
    """
    labels = {name: {"no": 150 + 4 * place, "yes": 25 + place} for place, name in enumerate(TENANTS)}
    labels[TENANTS[-1]] = {"no": 88, "yes": SECRET_USERS}
    genders = {name: {"a": 110 + place, group: 65 + 4 * place} for place, name in enumerate(TENANTS)}
    return ReportFacts(
        experiment="price-of-privacy",
        command="python simulate.py configs/experiments/price-of-privacy.toml --out runs/price",
        dataset="vehicle-coupon" if real_data else "built-in population",
        real_data=real_data,
        promise=PROMISE,
        seeds=(0, 1, 2),
        partitions=(PartitionPicture("label-skew", labels, {"gender": genders}),),
        cells=tuple(
            CellTime(f"epsilon-{epsilon:g}_strategy-{strategy}_seed-{seed}", 9.5 + seed)
            for epsilon in EPSILONS
            for strategy in STRATEGIES
            for seed in range(3)
        ),
        spent=tuple(
            Spent(epsilon, tenant, PrivacyLoss(0.9 * epsilon + 0.001 * place, 1e-5))
            for epsilon in EPSILONS[1:]
            for place, tenant in enumerate(TENANTS)
        ),
        composed=(
            Composed(3.0, 2, 140, PrivacyLoss(5.1, 2e-5)),
            Composed(3.0, 3, SECRET_USERS, PrivacyLoss(7.4, 3e-5)),
        ),
        audit=(
            AuditRow("one run, final adapter", None, 1000, 500, 487, 3.4, needed=3.0),
            AuditRow("one run, final adapter", PrivacyLoss(8.0, 1e-5), 1000, 500, 312, 0.41),
            AuditRow("one run, updates", PrivacyLoss(1.0, 1e-5), 1000, 500, 430, 1.52),
        ),
        truth=(
            KnownTruth("gap", "gender", "", "demographic_parity", "difference", 0.061),
            KnownTruth("gap", "gender", "", "equalized_odds", "difference", 0.2),
        ),
        settings={"card.training.rounds": "10", "tenant.privacy.sample_rate": "0.1", "partition.alpha": "0.3"},
        versions={"torch": "2.13.0", "flwr": "1.41.0", "fairlearn": "0.15.0"},
        machine={"cores": "2", "threads": "2", "device": "cpu"},
        caveats=("The built-in population has one interest for each visitor.",),
    )
