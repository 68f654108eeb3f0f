"""Resampling of users and of seeds, and the metrics of every resample at once.

Users are drawn with replacement, each with all of their records, and a person has the same weight in every cell, so
that differences between cells are paired. Of S seeds S - 1 are drawn with replacement: the mean of so many has the
variance of the mean of all S, where S draws would have a share of (S - 1) / S of it (McCarthy and Snowden 1985; Rao and
Wu 1988, https://doi.org/10.1080/01621459.1988.10478591).

A resample is a vector of whole weights. The metrics of all resamples are weighted sums, made with one sparse product;
with weights of 1 they are scikit-learn's and fairlearn's.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from fedprofile.simulations.predictions import Records
from fedprofile.simulations.randomness import derived_seed
from fedprofile.simulations.slices import Split

Draws = NDArray[np.float64]
"""One number of every resample; the last axis is the resample."""

COVERAGE = 0.95

_AT_ONCE = 64
"""Resamples of which the AUC is computed at once."""


class Resamples:
    """Weights of users and seeds, a function of their seed.

    Args:
        users: All that occur in any cell, sorted.
        replicates: How many resamples.
        seed: Of the drawing.
    """

    def __init__(self, users: NDArray[np.int64], replicates: int, seed: int) -> None:
        self._users, self._replicates, self._seed = users, replicates, seed
        draw = self._generator("users")
        self._shares: dict[tuple[int, ...], Draws] = {}
        self._weights = draw.multinomial(len(users), np.full(len(users), 1 / len(users)), size=replicates).T.astype(
            np.float64, order="C"
        )

    def of_users(self, user: NDArray[np.int64]) -> Draws:
        """The weight of each user, [n, B]."""
        return self._weights[np.searchsorted(self._users, user)]

    def of_seeds(self, seeds: tuple[int, ...]) -> Draws:
        """The share of each seed, [S, B], which add up to 1; the same for the same seeds."""
        if seeds not in self._shares:
            drawn = max(len(seeds) - 1, 1)
            draw = self._generator("seeds", *seeds)
            counts = draw.multinomial(drawn, np.full(len(seeds), 1 / len(seeds)), size=self._replicates)
            self._shares[seeds] = counts.T / drawn
        return self._shares[seeds]

    def _generator(self, *names: str | int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(derived_seed(self._seed, "bootstrap", *names)))


def quantile_of(errors: Draws) -> float:
    """What the absolute error of a resample stays below with probability `COVERAGE`."""
    return float(np.quantile(np.abs(errors), COVERAGE, method="higher"))


def resampled(records: Records, split: Split, weights: Draws) -> dict[str, Draws]:
    """The metrics of every slice in every resample.

    Args:
        records: Of one cell.
        split: Of these records.
        weights: Of each record, [n, B].

    Returns:
        Metric -> [K, B]; NaN where a resample has nothing to divide by. Of a "client" split only rates.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        if records.kind == "binary":
            return _binary(records, split, weights)
        if records.kind == "multiclass":
            return _multiclass(records, split, weights)
        if records.values:
            ones = np.ones(len(records.user))
            total, *sums = _sums(split.codes, len(split.names), [ones, *records.values.values()], weights)
            return {name: values / total for name, values in zip(records.values, sums, strict=True)}
        error = records.decided - records.truth
        total, absolute, square, signed = _sums(
            split.codes, len(split.names), [np.ones_like(error), np.abs(error), error**2, error], weights
        )
        return {
            "mean_absolute_error": absolute / total,
            "mean_squared_error": square / total,
            "mean_error": signed / total,
        }


def weighted_auc(split: Split, truth: NDArray[np.int64], scores: NDArray[np.float64], weights: Draws) -> Draws:
    """The area under the ROC curve of every slice in every resample: the Mann-Whitney statistic with weights.

    Args:
        split: Of the records.
        truth: 0 or 1, [n].
        scores: [n].
        weights: Of each record, [n, B].

    Returns:
        [K, B]. The weighted share of pairs of a positive and a negative in which the positive scores higher; an equal
        score counts half.
    """
    order = np.lexsort((scores, split.codes))
    codes, score, positive = split.codes[order], scores[order], truth[order] == 1
    # A block is all records of one slice with one score.
    new = np.flatnonzero(np.r_[True, (codes[1:] != codes[:-1]) | (score[1:] != score[:-1])])
    block = np.searchsorted(new, np.flatnonzero(positive), side="right") - 1
    start, end = new[block], np.r_[new[1:], len(order)][block]
    first = np.searchsorted(codes, codes[positive])
    result = np.empty((len(split.names), weights.shape[1]))
    # In parts that stay in the processor's cache.
    for begin in range(0, weights.shape[1], _AT_ONCE):
        part = slice(begin, begin + _AT_ONCE)
        own = weights[order, part]
        below = np.zeros((len(order) + 1, own.shape[1]))
        np.cumsum(np.where(positive[:, None], 0.0, own), axis=0, out=below[1:])
        wins = own[positive] * ((below[start] + below[end]) / 2 - below[first])
        (won,) = _sums(codes[positive], len(split.names), [np.ones(len(wins))], wins)
        positives, negatives = _sums(codes, len(split.names), [positive, ~positive], own)
        result[:, part] = won / (positives * negatives)
    return result


def _binary(records: Records, split: Split, weights: Draws) -> dict[str, Draws]:
    decided, truth, score = records.decided, records.truth, records.probabilities[:, 1]
    features = [np.ones(len(truth)), truth, decided, truth * decided]
    if split.scope != "client":
        features += [score, _losses(records)]
    total, positives, selected, hits, *rest = _sums(split.codes, len(split.names), features, weights)
    rates = {
        "selection_rate": selected / total,
        "true_positive_rate": hits / positives,
        "false_positive_rate": (selected - hits) / (total - positives),
    }
    if split.scope == "client":
        return rates
    return rates | {
        "auc": weighted_auc(split, records.truth.astype(np.int64), score, weights),
        "accuracy": (total - positives - selected + 2 * hits) / total,
        "log_loss": rest[1] / total,
        "calibration_in_the_large": (rest[0] - positives) / total,
        "base_rate": positives / total,
    }


def _multiclass(records: Records, split: Split, weights: Draws) -> dict[str, Draws]:
    slices, labels = len(split.names), records.probabilities.shape[1]
    right = records.decided == records.truth
    total, correct, loss = _sums(split.codes, slices, [np.ones(len(right)), right, _losses(records)], weights)
    ones = np.ones(len(right))
    (actual,) = _sums(split.codes * labels + records.truth.astype(np.int64), slices * labels, [ones], weights)
    chosen, hits = _sums(
        split.codes * labels + records.decided.astype(np.int64), slices * labels, [ones, right], weights
    )
    # A label that a resample neither has nor predicts is no part of its mean, as in scikit-learn.
    scores = (2 * hits / (actual + chosen)).reshape(slices, labels, -1)
    there = ~np.isnan(scores)
    macro = np.where(there, scores, 0.0).sum(axis=1) / there.sum(axis=1)
    return {"accuracy": correct / total, "macro_f1": macro, "log_loss": loss / total}


def _losses(records: Records) -> NDArray[np.float64]:
    """The log loss of each record, clipped as scikit-learn clips it."""
    chances = np.take_along_axis(records.probabilities, records.truth.astype(np.int64)[:, None], axis=1)[:, 0]
    least = np.finfo(np.float64).eps
    losses: NDArray[np.float64] = -np.log(np.clip(chances, least, 1 - least))
    return losses


def _sums(
    codes: NDArray[np.int64],
    slices: int,
    features: Sequence[NDArray[Any]],
    weights: Draws,
) -> list[Draws]:
    """The weighted sum of each feature over each slice, [K, B] each."""
    rows = np.concatenate([codes + place * slices for place in range(len(features))])
    columns = np.tile(np.arange(len(codes)), len(features))
    values = np.concatenate([np.asarray(feature, dtype=np.float64) for feature in features])
    matrix = csr_array((values, (rows, columns)), shape=(slices * len(features), len(codes)))
    matrix.eliminate_zeros()
    return list((matrix @ weights).reshape(len(features), slices, -1))
