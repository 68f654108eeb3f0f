"""Everything that is measured in one cell: each number's value and its resamples.

Values overall, of groups and of gaps come from fairlearn and scikit-learn. Those of tenants and of their own groups are
the same sums as the resamples', with weights of 1: fairlearn takes a second for a hundred slices, and every cell has as
many. Tests hold these values against fairlearn.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedprofile.simulations.bootstrap import Draws, resampled
from fedprofile.simulations.fairness_metrics import METRICS, Metric, measured
from fedprofile.simulations.gaps import RATES, GapStatistic, gap_value, resampled_gap
from fedprofile.simulations.predictions import Records
from fedprofile.simulations.slices import Limits, Split
from fedprofile.simulations.spread import SpreadStatistic, spread, spread_reach, worst_mean

Scale = Literal["plain", "log", "root"]
STATISTICS: tuple[GapStatistic, ...] = ("difference", "ratio")


class Key(NamedTuple):
    """What a number is; the results' columns of the same names."""

    scope: str
    column: str
    group: str
    metric: str
    statistic: str


@dataclass(frozen=True, eq=False)
class Number:
    """One number of one cell.

    Args:
        value: What was measured.
        draws: The same of each resample, [B].
        users: On whom it stands.
        reach: How far each resample's errors can move it, [B], on its scale; None for a mean or a rate, which the
            resamples' own errors are right for.
        scale: On which `reach` is: plain, logarithm, or square root.
        low: The smallest that it can be.
        high: The largest that it can be.
        where: Of a worst group or tenant, which it is.
    """

    value: float
    draws: Draws = field(repr=False)
    users: int
    reach: Draws | None = field(default=None, repr=False)
    scale: Scale = "plain"
    low: float = 0.0
    high: float = 1.0
    where: str = ""


Measurements = dict[Key, Number | None]
"""None where the number is suppressed."""


def measure(records: Records, splits: list[Split], weights: Draws, limits: Limits) -> Measurements:
    """Measure one cell.

    Args:
        records: Its records.
        splits: Of these.
        weights: Of each record in each resample, [n, B].
        limits: Below which a number is suppressed.

    Returns:
        Every number that the results have of it; none of a ratio of two rates that are 0.
    """
    found: Measurements = {}
    for split in splits:
        if split.scope == "client":
            found.update(_client_gaps(records, split, weights, limits))
            continue
        slices = _Slices(records, split, weights, limits)
        found.update(slices.levels())
        if split.scope in ("group", "intersection"):
            found.update(slices.gaps())
        if split.scope == "tenant":
            found.update(slices.spreads())
    return {key: number for key, number in found.items() if number is None or not math.isnan(number.value)}


class _Slices:
    """The metrics of one split's slices, and what is made of them."""

    def __init__(self, records: Records, split: Split, weights: Draws, limits: Limits) -> None:
        self._records, self._split = records, split
        self._metrics = METRICS[records.kind]
        self._allowed = {metric.name: split.enough(metric.needs, limits) for metric in self._metrics}
        self._frame = None if split.scope == "tenant" else measured(records, split, self._allowed)
        self._points = _exact(records, split) if split.scope == "tenant" else self._of_frame()
        self._draws = _without_gaps(self._points, resampled(records, split, weights))

    def levels(self) -> Iterator[tuple[Key, Number | None]]:
        """Each metric of each slice."""
        split = self._split
        for place in np.flatnonzero(split.users):
            for metric in self._metrics:
                key = Key(split.scope, split.column, split.names[place], metric.name, "value")
                if not self._allowed[metric.name][place]:
                    yield key, None
                    continue
                point, draws = self._points[metric.name][place], self._draws[metric.name][place]
                yield key, Number(float(point), draws, int(split.users[place]), low=metric.low, high=metric.high)

    def gaps(self) -> Iterator[tuple[Key, Number | None]]:
        """The gaps between the slices, and the worst slice of each metric."""
        column = self._split.column
        if self._records.kind == "binary":
            for gap, rates in RATES.items():
                for statistic in STATISTICS:
                    yield Key("gap", column, "", gap, statistic), self._gap(gap, rates, statistic)
        for metric in self._metrics:
            # The differences of these two have names of their own.
            if metric.name not in ("selection_rate", "true_positive_rate"):
                yield Key("gap", column, "", metric.name, "difference"), self._difference(metric)
            if metric.worst is not None:
                yield Key("gap", column, "", metric.name, "worst"), self._worst(metric)

    def spreads(self) -> Iterator[tuple[Key, Number | None]]:
        """How each metric differs over the slices."""
        for metric in self._metrics:
            statistics: list[SpreadStatistic] = ["variance"]
            if metric.worst is not None:
                statistics.append("worst_tenth")
            if metric.low == 0:
                statistics.append("gini")
            for statistic in statistics:
                yield Key("spread", "", "", metric.name, statistic), self._spread(metric, statistic)

    def _of_frame(self) -> dict[str, NDArray[np.float64]]:
        """Metric -> value of each slice, [K]; NaN where it is too small."""
        slices = len(self._split.names)
        if self._frame is None:
            return {metric.name: np.full(slices, np.nan) for metric in self._metrics}
        table = self._frame.by_group.reindex(range(slices)).astype(np.float64)
        return {metric.name: table[metric.name].to_numpy() for metric in self._metrics}

    def _gap(self, gap: str, rates: tuple[str, ...], statistic: GapStatistic) -> Number | None:
        if self._frame is None or any(self._allowed[rate].sum() < 2 for rate in rates):
            return None
        value = gap_value(self._frame.difference(), self._frame.ratio(), gap, statistic)
        return self._of_slices(value, rates, statistic)

    def _difference(self, metric: Metric) -> Number | None:
        if self._frame is None or self._allowed[metric.name].sum() < 2:
            return None
        value = float(self._frame.difference()[metric.name])
        return self._of_slices(value, (metric.name,), "difference", metric.high - metric.low)

    def _of_slices(self, value: float, rates: tuple[str, ...], statistic: GapStatistic, high: float = 1.0) -> Number:
        found = resampled_gap(self._points, self._draws, self._allowed, rates, statistic)
        users = self._split.users_in(np.any([self._allowed[rate] for rate in rates], axis=0), self._records.user)
        return Number(value, found.draws, users, found.reach, "log" if statistic == "ratio" else "plain", high=high)

    def _worst(self, metric: Metric) -> Number | None:
        chosen = np.flatnonzero(self._allowed[metric.name])
        if len(chosen) < 2 or metric.worst is None:
            return None
        points, draws = self._points[metric.name][chosen], self._draws[metric.name][chosen]
        badness = {"lowest": -points, "highest": points, "largest": np.abs(points)}[metric.worst]
        return Number(
            float(worst_mean(points, metric.worst, 1)),
            worst_mean(draws, metric.worst, 1),
            self._split.users_in(self._allowed[metric.name], self._records.user),
            worst_mean(draws - points[:, None], "largest", 1),
            high=metric.high,
            where=self._split.names[chosen[badness.argmax()]],
        )

    def _spread(self, metric: Metric, statistic: SpreadStatistic) -> Number | None:
        chosen = self._allowed[metric.name]
        if chosen.sum() < 2:
            return None
        points, draws = self._points[metric.name][chosen], self._draws[metric.name][chosen]
        return Number(
            float(spread(points, statistic, metric.worst)),
            spread(draws, statistic, metric.worst),
            self._split.users_in(chosen, self._records.user),
            spread_reach(points, draws, statistic),
            "root" if statistic == "variance" else "plain",
            high=metric.high if statistic == "worst_tenth" else np.inf if statistic == "variance" else 1.0,
        )


def _client_gaps(records: Records, split: Split, weights: Draws, limits: Limits) -> Iterator[tuple[Key, Number | None]]:
    """The gaps between each tenant's own groups, their mean and the largest."""
    points = _exact(records, split)
    exact = {rate: values[:, None] for rate, values in points.items()}
    drawn = _without_gaps(points, resampled(records, split, weights))
    needs = {metric.name: metric.needs for metric in METRICS[records.kind]}
    large = {rate: split.enough(needs[rate], limits) for rate in points}
    owners = np.array(split.tenants)
    for gap, rates in RATES.items():
        differences: list[Number] = []
        for tenant in dict.fromkeys(split.tenants):
            own = {rate: large[rate] & (owners == tenant) for rate in rates}
            several = all(chosen.sum() > 1 for chosen in own.values())
            users = split.users_in(np.any(list(own.values()), axis=0), records.user)
            for statistic in STATISTICS:
                key = Key("client_gap", split.column, tenant, gap, statistic)
                if not several:
                    yield key, None
                    continue
                value = float(resampled_gap(points, exact, own, rates, statistic).draws[0])
                found = resampled_gap(points, drawn, own, rates, statistic)
                scale: Scale = "log" if statistic == "ratio" else "plain"
                number = Number(value, found.draws, users, found.reach, scale, where=tenant)
                if statistic == "difference":
                    differences.append(number)
                yield key, number
        for key, number_of_all in _over_tenants(split.column, gap, differences):
            yield key, number_of_all


def _over_tenants(column: str, gap: str, numbers: list[Number]) -> Iterator[tuple[Key, Number | None]]:
    """The mean and the largest of the tenants' own gaps."""
    mean, worst = Key("client_gap", column, "", gap, "mean"), Key("client_gap", column, "", gap, "worst")
    if not numbers:
        yield mean, None
        yield worst, None
        return
    # Nobody is counted twice but who is at several tenants.
    users = sum(number.users for number in numbers)
    draws = np.stack([number.draws for number in numbers])
    reach = np.stack([number.reach for number in numbers if number.reach is not None])
    values = [number.value for number in numbers]
    largest = numbers[int(np.argmax(values))]
    yield mean, Number(float(np.mean(values)), draws.mean(axis=0), users, reach.mean(axis=0))
    yield worst, Number(largest.value, draws.max(axis=0), users, reach.max(axis=0), where=largest.where)


def _exact(records: Records, split: Split) -> dict[str, NDArray[np.float64]]:
    """Metric -> value of each slice, [K], as the sums with weights of 1; tests hold them against fairlearn."""
    weights = np.ones((len(records.user), 1))
    return {name: draws[:, 0] for name, draws in resampled(records, split, weights).items()}


def _without_gaps(points: dict[str, NDArray[np.float64]], draws: dict[str, Draws]) -> dict[str, Draws]:
    """The resamples with the value itself where one has nothing to divide by, which is rare above the limits."""
    return {name: np.where(np.isnan(drawn), points[name][:, None], drawn) for name, drawn in draws.items()}
