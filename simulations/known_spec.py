"""The settings of the population with known truth, and the law of everything in it that a label depends on.

A user has a `gender` and a `region` (drawn independently), an interest, and a history of `length` events, each of
which is eager or idle and is about some interest. What a record shows of that is x = (length, eager, season, visits):
how many events there are, how many of them are eager, how many are about the shop's season, and the number of earlier
visits. Given group and interest, with sigma(z) = 1 / (1 + exp(-z)):

    length ~ 1 + Binomial(max_history - 1, (mean - 1) / (max_history - 1)),  mean = that of gender and region, averaged
    eager  | length ~ Beta-binomial(length, eagerness)
    season | length ~ Binomial(length, focus * [interest = season] + (1 - focus) / interests)
    visits ~ Binomial(MOST_VISITS, VISITS_RATE)
    wanted | x, group ~ Bernoulli(sigma(intercept + effects * x + base rates of gender and region))
    label  : wanted, flipped with the label noise of gender, then with that of region; of the positive labels of the
             group that the bias is planted against, a share of `bias.size` is recorded as negative.

Everything is discrete, so that probabilities of labels and of any rule's errors are finite sums; see
`fedprofile.simulations.known_truth`.
"""

import math
from collections.abc import Mapping
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.special import expit

from fedprofile.common.config import Frozen
from fedprofile.simulations.population import INTERESTS

COLUMNS: tuple[Literal["gender", "region"], ...] = ("gender", "region")
"""The group columns."""

MOST_VISITS = 5
VISITS_RATE = 0.4


class GroupValue(Frozen):
    """The users with one value of a group column."""

    share: float = Field(gt=0, le=1)
    """Of all users; a column's shares add up to 1."""
    base_rate: float = 0.0
    """Added to the logit of wanting: a real difference between groups that no record shows."""
    label_noise: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that a label is flipped."""
    history: float = Field(default=4.0, ge=1)
    """Mean number of events."""


class PlantedBias(Frozen):
    """Labels that are unjust to one group, by a known share."""

    column: Literal["gender", "region"] = "gender"
    value: str = "b"
    size: float = Field(default=0.2, ge=0, lt=1)
    """Of the group's positive labels that are recorded as negative."""


class KnownSpec(Frozen):
    """A population with known truth. See the module's docstring."""

    tenants: int = Field(default=20, ge=1)
    users: int = Field(default=4000, ge=10)
    skew: float = Field(default=0.5, ge=0, le=1)
    """How differently groups and interests are spread over tenants: 0 alike, 1 strongly. Tenants have equal expected
    sizes, and the population as a whole has the same law, at every skew."""
    gender: Mapping[str, GroupValue] = {
        "a": GroupValue(share=0.7, label_noise=0.03, history=4.5),
        "b": GroupValue(share=0.3, base_rate=-0.5, label_noise=0.08, history=2.5),
    }
    region: Mapping[str, GroupValue] = {
        "north": GroupValue(share=0.65, history=4.5),
        "south": GroupValue(share=0.35, base_rate=-0.3, label_noise=0.03, history=2.5),
    }
    minority: float | None = Field(default=None, gt=0, lt=1)
    """The share of the last value of `gender` instead of the one given there; the others keep their proportions."""
    bias: PlantedBias | None = PlantedBias()
    interests: Mapping[str, float] = dict.fromkeys(INTERESTS, 0.25)
    """Each interest's share of the users."""
    season: str = "outdoor"
    """The interest that raises the probability of a positive label."""
    focus: float = Field(default=0.8, ge=0, le=1)
    """Probability that an event is about the user's interest; otherwise it is about any."""
    eagerness: tuple[float, float] = (1.2, 1.6)
    """Beta distribution of a user's probability that an event is eager."""
    max_history: int = Field(default=6, ge=2, le=32)
    intercept: float = -2.6
    eager_effect: float = 0.9
    season_effect: float = 0.4
    visits_effect: float = 0.4
    """Added to the logit for each eager event, each event about the season, and each earlier visit."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for column in COLUMNS:
            values: Mapping[str, GroupValue] = getattr(self, column)
            _check_shares(column, {name: value.share for name, value in values.items()})
            for name, value in values.items():
                if value.history > self.max_history:
                    raise ValueError(f"{column}.{name}.history={value.history:g} is above max_history; lower it")
        _check_shares("interests", self.interests)
        if unknown := sorted({*self.interests, self.season} - set(INTERESTS)):
            raise ValueError(f"'{unknown[0]}' is no interest; use some of: {', '.join(INTERESTS)}")
        if min(self.eagerness) <= 0:
            raise ValueError("eagerness: both parameters of a Beta distribution must be above 0")
        if self.bias is not None and self.bias.value not in getattr(self, self.bias.column):
            raise ValueError(f"bias.value: '{self.bias.value}' is no value of {self.bias.column}")
        return self

    def values(self, column: Literal["gender", "region"]) -> dict[str, GroupValue]:
        """The values of a group column, in order, with the shares that hold."""
        values: dict[str, GroupValue] = dict(getattr(self, column))
        if column == "gender" and self.minority is not None:
            *others, last = values
            rest = sum(values[name].share for name in others)
            shares = {name: values[name].share / rest * (1 - self.minority) for name in others} | {last: self.minority}
            values = {name: value.model_copy(update={"share": shares[name]}) for name, value in values.items()}
        return values

    def of_values(
        self, column: Literal["gender", "region"], setting: Literal["share", "base_rate", "label_noise", "history"]
    ) -> NDArray[np.float64]:
        """One setting of a group column's values, in order."""
        return np.array([getattr(value, setting) for value in self.values(column).values()], dtype=np.float64)

    def mean_history(self, gender: NDArray[np.int64], region: NDArray[np.int64]) -> NDArray[np.float64]:
        """Mean number of events of users by the places of their group values."""
        return (self.of_values("gender", "history")[gender] + self.of_values("region", "history")[region]) / 2

    def more_events(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability of each of the `max_history - 1` possible events beyond the first."""
        return (mean - 1) / (self.max_history - 1)

    def wanting(
        self,
        *,
        eager: NDArray[np.int64],
        season: NDArray[np.int64],
        visits: NDArray[np.int64],
        gender: NDArray[np.int64],
        region: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Probability that a user wants to buy, before noise and bias; groups by the places of their values."""
        logit = self.intercept + self.eager_effect * eager + self.season_effect * season + self.visits_effect * visits
        logit = logit + self.of_values("gender", "base_rate")[gender] + self.of_values("region", "base_rate")[region]
        found: NDArray[np.float64] = expit(logit)
        return found

    def biased_against(self, gender: NDArray[np.int64], region: NDArray[np.int64]) -> NDArray[np.float64]:
        """Probability that a positive label of a user is recorded as negative."""
        if self.bias is None:
            return np.zeros(len(gender))
        places = {"gender": gender, "region": region}[self.bias.column]
        return np.where(places == list(self.values(self.bias.column)).index(self.bias.value), self.bias.size, 0.0)


def _check_shares(name: str, shares: Mapping[str, float]) -> None:
    if not shares or min(shares.values()) < 0 or not math.isclose(sum(shares.values()), 1, abs_tol=1e-9):
        raise ValueError(f"{name}: the shares add up to {sum(shares.values()):g}; make them add up to 1")
