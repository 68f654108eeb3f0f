"""The table of results as the report reads it: checked, without suppressed numbers, and asked by condition."""

import math
from dataclasses import dataclass, replace

import pandas as pd

from fedprofile.common.errors import DataError
from fedprofile.simulations.report.estimates import Estimate
from fedprofile.simulations.report.metrics import standard_name

TEXT = ("arm", "mitigation", "partition", "strategy", "kind", "scope", "column", "group", "metric", "statistic")
NUMBERS = ("epsilon", "value", "low", "high")
COUNTS = ("users", "seeds")
COLUMNS = (*("arm", "epsilon"), *TEXT[1:], *NUMBERS[1:], *COUNTS, "suppressed")
KEY = ("arm", "epsilon", *TEXT[1:])
"""Two rows that agree in these are the same number."""
NO_MITIGATION = "none"
SUPPRESSED = "too few people"
"""What stands in place of a suppressed number."""


@dataclass(frozen=True)
class Condition:
    """What was run; see the columns of the same names."""

    arm: str
    epsilon: float
    mitigation: str
    partition: str
    strategy: str

    def at(self, epsilon: float) -> "Condition":
        """The same at another epsilon."""
        return replace(self, epsilon=epsilon)

    def having(
        self, *, mitigation: str | None = None, partition: str | None = None, strategy: str | None = None
    ) -> "Condition":
        """The same with another mitigation, partition or strategy."""
        return replace(
            self,
            mitigation=self.mitigation if mitigation is None else mitigation,
            partition=self.partition if partition is None else partition,
            strategy=self.strategy if strategy is None else strategy,
        )


@dataclass(frozen=True)
class Measured:
    """One number of the table with what it is about.

    Args:
        column: Group column(s).
        group: Value(s) of the group column, or the tenant.
        estimate: None where it is suppressed.
        users: On how many users it stands; None where it is suppressed.
    """

    column: str
    group: str
    estimate: Estimate | None
    users: int | None


Key = tuple[Condition, str, str, str, str]
"""Condition, kind, scope, metric and statistic."""


class Results:
    """The results of an experiment.

    Args:
        table: One row for each number, with the columns `COLUMNS`.

    Raises:
        DataError: A column is missing, there is no row, or the same number is there twice.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        missing = [name for name in COLUMNS if name not in table.columns]
        if missing:
            raise DataError(f"results: without the column(s) {', '.join(missing)}; expected {', '.join(COLUMNS)}.")
        if table.empty:
            raise DataError("results: have no row; run at least one cell before writing a report.")
        self.table = _without_suppressed(table)
        twice = self.table.duplicated(list(KEY))
        if twice.any():
            raise DataError(
                f"results: {int(twice.sum())} row(s) have the same {', '.join(KEY)} as another; expected one row for "
                "each number."
            )
        shown = self.table.copy()
        for name in TEXT:
            shown[name] = shown[name].map(printable)
        shown["metric"] = shown["metric"].map(standard_name)
        # The Bayes rule knows no epsilon.
        shown["epsilon"] = shown["epsilon"].fillna(math.inf)
        self._shown = shown
        self._index = _indexed(shown)
        self._conditions = {key[0] for key in self._index}
        federated = shown[shown["arm"] == "federated"]
        self._federated = federated if len(federated) else shown

    def holds(self, condition: Condition) -> bool:
        """Whether anything was measured under a condition."""
        return condition in self._conditions

    def main(self) -> Condition:
        """The federation without noise and without mitigation, on the partition and strategy that come first."""
        plain = self._federated[self._federated["mitigation"] == NO_MITIGATION]
        first = (plain if len(plain) else self._federated).iloc[0]
        return Condition(first["arm"], math.inf, first["mitigation"], first["partition"], first["strategy"])

    def values(self, name: str) -> list[str]:
        """The federation's values of `mitigation`, `partition` or `strategy`, in the order of the table."""
        return list(dict.fromkeys(self._federated[name]))

    def epsilons(self) -> list[float]:
        """The federation's epsilons with noise, smallest first."""
        return sorted(float(found) for found in self._federated["epsilon"].unique() if math.isfinite(found))

    def columns(self, scope: str) -> list[str]:
        """Group columns of a scope, in the order of the table."""
        return list(dict.fromkeys(self._shown.loc[self._shown["scope"] == scope, "column"]))

    def metrics(self, scope: str, statistic: str = "value") -> list[str]:
        """Metrics of a scope, in the order of the table."""
        rows = self._shown[(self._shown["scope"] == scope) & (self._shown["statistic"] == statistic)]
        return list(dict.fromkeys(rows["metric"]))

    def statistics(self, scope: str) -> list[str]:
        """Statistics of a scope, in the order of the table."""
        return list(dict.fromkeys(self._shown.loc[self._shown["scope"] == scope, "statistic"]))

    def find(
        self,
        condition: Condition,
        scope: str,
        metric: str,
        *,
        column: str | None = None,
        statistic: str = "value",
        kind: str = "level",
    ) -> list[Measured]:
        """All numbers of one kind under one condition.

        Args:
            condition: Compared with the columns of the same names.
            scope: See the column.
            metric: Standard name.
            column: None for every group column.
            statistic: See the column.
            kind: "level" or "price".

        Returns:
            In the order of the table; suppressed ones too.
        """
        found = self._index.get((condition, kind, scope, metric, statistic), [])
        return [entry for entry in found if column in (None, entry.column)]

    def worst(self, condition: Condition, scope: str, metric: str, *, column: str) -> Measured | None:
        """The worst group or tenant, with its name."""
        return next(iter(self.find(condition, scope, metric, column=column, statistic="worst")), None)

    def one(
        self,
        condition: Condition,
        scope: str,
        metric: str,
        *,
        column: str = "",
        group: str | None = None,
        statistic: str = "value",
        kind: str = "level",
    ) -> Estimate | None:
        """One number; None where it is not there or suppressed."""
        found = self.find(condition, scope, metric, column=column, statistic=statistic, kind=kind)
        return next((entry.estimate for entry in found if group is None or entry.group == group), None)

    def beside(self, condition: Condition, arm: str) -> Condition | None:
        """Another arm's condition to put beside one of the federation.

        An arm may not know strategies, partitions or, for the Bayes rule, epsilons: what is there is taken, the same
        value where there is one.

        Returns:
            None where the arm was not run at this epsilon.
        """
        rows = self._shown[(self._shown["arm"] == arm) & (self._shown["kind"] == "level")]
        if arm != "bayes":
            rows = rows[rows["epsilon"] == condition.epsilon]
        for name in ("mitigation", "partition", "strategy"):
            same = rows[rows[name] == getattr(condition, name)]
            rows = same if len(same) else rows
        if rows.empty:
            return None
        first = rows.iloc[0]
        return Condition(arm, float(first["epsilon"]), first["mitigation"], first["partition"], first["strategy"])

    @property
    def suppressed(self) -> int:
        """How many numbers are."""
        return int(self.table["suppressed"].sum())


def _indexed(rows: pd.DataFrame) -> dict[Key, list[Measured]]:
    found: dict[Key, list[Measured]] = {}
    for row in rows.to_dict("records"):
        condition = Condition(row["arm"], row["epsilon"], row["mitigation"], row["partition"], row["strategy"])
        entries = found.setdefault((condition, row["kind"], row["scope"], row["metric"], row["statistic"]), [])
        if row["suppressed"]:
            entries.append(Measured(row["column"], row["group"], None, None))
        elif not math.isnan(row["value"]):
            estimate = Estimate(row["value"], row["low"], row["high"])
            entries.append(Measured(row["column"], row["group"], estimate, int(row["users"])))
    return found


def _without_suppressed(table: pd.DataFrame) -> pd.DataFrame:
    """The known columns, with nothing but the fact left of what is suppressed: not even on how many users it stood."""
    kept = table.loc[:, list(COLUMNS)].reset_index(drop=True)
    for name in NUMBERS:
        kept[name] = kept[name].astype("float64")
    for name in COUNTS:
        kept[name] = kept[name].astype("int64")
    for name in TEXT:
        kept[name] = kept[name].astype("string").fillna("")
    kept["suppressed"] = kept["suppressed"].astype("bool")
    kept.loc[kept["suppressed"], ["value", "low", "high"]] = math.nan
    kept.loc[kept["suppressed"], "users"] = 0
    return kept


def printable(text: str) -> str:
    """Without line breaks, control characters and characters that turn the direction of writing."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
