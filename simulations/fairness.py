"""From the predictions of many cells to the table of results: levels, gaps, spreads and the price of privacy.

A condition's number is the mean over its seeds of what each seed's model does: a gap is the mean of the models' gaps,
not the gap of an average model, which nobody meets. Its interval holds users and seeds (`fedprofile.simulations.
bootstrap`). With a 95 % quantile q of the resamples:

    rate, mean, AUC     value +- q of |resample - value|
    gap, spread, worst  value +- q of (how far seeds move it + how far errors in the rates can move it)
    price               value +- q of |resample - value|, condition and reference in the same resample

The second line holds whatever the true rates are, also where groups are equal (`fedprofile.simulations.gaps`); for two
groups it is the interval of their signed difference, and for more it is wider, for all pairs together. A price of a gap
is a difference of two gaps with much the same noise, which it does not count twice. docs/fairness.md has the coverage.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fedprofile.common.errors import DataError
from fedprofile.simulations.bootstrap import Draws, Resamples, quantile_of
from fedprofile.simulations.measurement import Key, Measurements, Number, measure
from fedprofile.simulations.predictions import CellPredictions, Condition, Records
from fedprofile.simulations.slices import Limits, Split, splits_of

REPLICATES = 1000
LIMITS = Limits()

COLUMNS = (
    *("arm", "epsilon", "mitigation", "partition", "strategy", "kind", "scope", "column", "group", "metric"),
    *("statistic", "value", "low", "high", "users", "seeds", "suppressed"),
)

Row = dict[str, Any]


def analyse(
    cells: Sequence[CellPredictions], *, limits: Limits = LIMITS, replicates: int = REPLICATES, seed: int = 0
) -> pd.DataFrame:
    """Measure all cells of an experiment.

    Args:
        cells: In the order of the results; of one task.
        limits: Below which a number is suppressed.
        replicates: Resamples of every interval.
        seed: Of the resampling.

    Returns:
        One row for each number, with the columns `COLUMNS`. The same for the same arguments. `users` is the smallest
        number over the seeds, and 0 where the number is suppressed. `epsilon` of a price is that of the condition, not
        of the reference.

    Raises:
        DataError: A frame is not as `fedprofile.simulations.predictions` says, or cells of one partition and seed have
            not the same records in the same order.
        ConfigError: Thresholds do not fit a frame.
    """
    if not cells:
        return pd.DataFrame([], columns=list(COLUMNS))
    partitions: dict[str, list[CellPredictions]] = {}
    for cell in cells:
        partitions.setdefault(cell.condition.partition, []).append(cell)
    rows = [row for own in partitions.values() for row in _Partition(own, limits, replicates, seed).rows()]
    types = {"epsilon": "float64", "value": "float64", "low": "float64", "high": "float64"}
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(
        types | {"users": "int64", "seeds": "int64", "suppressed": "bool"}
    )


class _Partition:
    """The cells of one partition, whose users and tenants are the same in every condition."""

    def __init__(self, cells: Sequence[CellPredictions], limits: Limits, replicates: int, seed: int) -> None:
        self._cells, self._limits = [(cell, Records.of(cell)) for cell in cells], limits
        users = np.unique(np.concatenate([records.user for _, records in self._cells]))
        self._resamples = Resamples(users, replicates, seed)
        self._splits: dict[int, tuple[Records, list[Split]]] = {}

    def rows(self) -> Iterator[Row]:
        """All rows: of each condition its levels and, where it has noise and a reference, its prices."""
        conditions = list(dict.fromkeys(cell.condition for cell, _ in self._cells))
        for reference in dict.fromkeys(condition.without_noise() for condition in conditions):
            base = self._measured(reference)
            for condition in conditions:
                if condition.without_noise() != reference:
                    continue
                noised = math.isfinite(condition.epsilon)
                found = self._measured(condition) if noised else base
                for key in _keys(found):
                    yield self._level(condition, key, found)
                    if noised and base:
                        yield self._price(condition, key, found, base)

    def _measured(self, condition: Condition) -> dict[int, Measurements]:
        """Seed -> what was measured."""
        found: dict[int, Measurements] = {}
        for cell, records in self._cells:
            if cell.condition == condition:
                if cell.seed in found:
                    raise DataError(f"predictions: {condition} has seed {cell.seed} twice; expected one cell for each.")
                weights = self._resamples.of_users(records.user)
                found[cell.seed] = measure(records, self._splits_of(cell, records), weights, self._limits)
        return found

    def _splits_of(self, cell: CellPredictions, records: Records) -> list[Split]:
        if cell.seed not in self._splits:
            self._splits[cell.seed] = records, splits_of(records)
        first, splits = self._splits[cell.seed]
        if not _same_records(first, records):
            raise DataError(
                f"predictions: {cell.condition} at seed {cell.seed} has other evaluation records, or in another order, "
                "than another condition of its partition and seed; expected the same, so that they can be compared "
                "user by user."
            )
        return splits

    def _level(self, condition: Condition, key: Key, found: dict[int, Measurements]) -> Row:
        numbers = {seed: number for seed, own in found.items() if (number := own.get(key)) is not None}
        if not numbers:
            return _row(condition, "level", key)
        seeds, shares = tuple(numbers), self._resamples.of_seeds(tuple(numbers))
        first = numbers[seeds[0]]
        values = np.array([number.value for number in numbers.values()])
        value = float(values.mean())
        if first.reach is None:
            draws = _mean(shares, [number.draws for number in numbers.values()])
            low, high = _plain(value, quantile_of(draws - value))
        else:
            moved = _moved(values @ shares, value, first.scale)
            reach = _mean(shares, [number.reach for number in numbers.values() if number.reach is not None])
            low, high = _around(value, quantile_of(np.abs(moved) + reach), first.scale)
        return _row(
            condition, "level", _named(key, list(numbers.values())), value, max(low, first.low), min(high, first.high),
            min(number.users for number in numbers.values()), len(seeds),
        )  # fmt: skip

    def _price(
        self, condition: Condition, key: Key, found: dict[int, Measurements], base: dict[int, Measurements]
    ) -> Row:
        pairs = {
            seed: (number, reference)
            for seed, own in found.items()
            if (number := own.get(key)) is not None and (reference := base.get(seed, {}).get(key)) is not None
        }
        if not pairs:
            return _row(condition, "price", key)
        shares = self._resamples.of_seeds(tuple(pairs))
        value = float(np.mean([number.value - reference.value for number, reference in pairs.values()]))
        draws = _mean(shares, [number.draws - reference.draws for number, reference in pairs.values()])
        # A resampled ratio of two rates that are 0 says nothing.
        low, high = _plain(value, quantile_of(np.nan_to_num(draws - value, nan=np.inf)))
        numbers = [number for number, _ in pairs.values()]
        most = numbers[0].high - numbers[0].low
        low, high = max(low, -most), min(high, most)
        users = min(number.users for number in numbers)
        return _row(condition, "price", _named(key, numbers), value, low, high, users, len(pairs))


def _keys(found: dict[int, Measurements]) -> list[Key]:
    """All keys of all seeds, in order."""
    return list(dict.fromkeys(key for own in found.values() for key in own))


def _same_records(first: Records, second: Records) -> bool:
    return (
        np.array_equal(first.tenant, second.tenant)
        and np.array_equal(first.user, second.user)
        and np.array_equal(first.truth, second.truth)
        and first.groups.keys() == second.groups.keys()
        and all(np.array_equal(values, second.groups[column]) for column, values in first.groups.items())
    )


def _mean(shares: Draws, draws: list[Draws]) -> Draws:
    """The mean over seeds of each resample; a seed that a resample leaves out counts nothing, whatever it has."""
    with np.errstate(invalid="ignore"):
        total: Draws = np.where(shares > 0, shares * np.stack(draws), 0.0).sum(axis=0)
    return total


def _moved(values: Draws, value: float, scale: str) -> Draws:
    """How far each resample of the seeds alone is from the value, on a scale."""
    if scale == "log":
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.nan_to_num(np.log(values / value), nan=np.inf, posinf=np.inf, neginf=-np.inf)
    return np.sqrt(values) - math.sqrt(value) if scale == "root" else values - value


def _plain(value: float, half: float) -> tuple[float, float]:
    return value - half, value + half


def _around(value: float, half: float, scale: str) -> tuple[float, float]:
    """An interval of so much on each side on a scale."""
    if scale == "log":
        # Where a rate is 0 nothing is known of a ratio.
        return (0.0, math.inf) if value == 0 or math.isinf(half) else (value * math.exp(-half), value * math.exp(half))
    if scale == "root":
        return max(math.sqrt(value) - half, 0.0) ** 2, (math.sqrt(value) + half) ** 2
    return _plain(value, half)


def _named(key: Key, numbers: list[Number]) -> Key:
    """The key of a worst group or tenant with its name: of the one that it is in most seeds."""
    if key.statistic != "worst":
        return key
    names = [number.where for number in numbers]
    return key._replace(group=max(dict.fromkeys(names), key=names.count))


def _row(
    condition: Condition,
    kind: str,
    key: Key,
    value: float = math.nan,
    low: float = math.nan,
    high: float = math.nan,
    users: int = 0,
    seeds: int = 0,
) -> Row:
    """A row of the results; a suppressed one where there is no value."""
    return {
        **{name: getattr(condition, name) for name in ("arm", "epsilon", "mitigation", "partition", "strategy")},
        "kind": kind,
        **key._asdict(),
        "value": value,
        "low": low,
        "high": high,
        "users": users,
        "seeds": seeds,
        "suppressed": seeds == 0,
    }
