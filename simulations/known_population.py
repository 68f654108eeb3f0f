"""The population with known truth, drawn from its law: users, their histories as text, labels, and the Bayes rule's
probabilities of them.

`fedprofile.simulations.known_spec` says what the law is, `fedprofile.simulations.known_truth` what follows from it.
The files are those of the built-in population, so that the deployed reader reads them: `events.csv` has what came
before, `visits.csv` the labelled row with the group columns, which no text and no feature may name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedprofile.common.config import validate
from fedprofile.simulations.known_spec import COLUMNS, MOST_VISITS, VISITS_RATE, KnownSpec
from fedprofile.simulations.known_truth import SHOWN, joint_law
from fedprofile.simulations.population import EAGER, IDLE, INTERESTS, START
from fedprofile.simulations.randomness import derived_seed

PULL = 2.0
"""At skew 1, how strongly tenants differ: standard deviation of a tenant's pull on one group value or interest, in
logits."""

FEWEST = 10
"""Users that a tenant file may declare at least; a tenant with fewer is left out."""

BALANCING = 200
"""Rounds of iterative proportional fitting; far more than are needed at any skew."""


@dataclass(frozen=True)
class KnownPopulation:
    """Users drawn from the law of a population.

    Args:
        spec: Of the population.
        users: One row a user: `visitor` (their id), `tenant`, `gender`, `region`, what their record shows (`length`,
            `eager`, `season`, `visits`), `wanted` and `label` (0 or 1; before and after noise and bias), and
            `probability`, which is P(label = 1 | what the record shows).
        actions: Words of each user's events, [users, max_history], of which the first `length` are real.
        items: What each event is about, the same.
        starts: Minutes after `START` at which each user's events begin, [users].
    """

    spec: KnownSpec
    users: pd.DataFrame = field(repr=False)
    actions: NDArray[np.str_] = field(repr=False)
    items: NDArray[np.str_] = field(repr=False)
    starts: NDArray[np.int64] = field(repr=False)

    @property
    def tenants(self) -> dict[str, int]:
        """Users of each tenant that has at least ten, by name."""
        counts = self.users["tenant"].value_counts().sort_index()
        return {str(name): int(count) for name, count in counts.items() if count >= FEWEST}

    def write_tenant(self, name: str, folder: Path) -> None:
        """Write one tenant's data.

        Args:
            name: Of the tenant.
            folder: Where `visits.csv` and `events.csv` are written.
        """
        places = np.flatnonzero(self.users["tenant"] == name).tolist()
        mine = self.users.iloc[places]
        lengths = mine["length"].tolist()
        visits = mine[["visitor", "visits", *COLUMNS]].assign(
            time=[self._time(place, length) for place, length in zip(places, lengths, strict=True)],
            bought=np.where(mine["label"] == 1, "yes", "no"),
        )
        visits.to_csv(folder / "visits.csv", index=False)
        rows = [
            (visitor, self._time(place, number), self.actions[place, number], self.items[place, number])
            for place, visitor, length in zip(places, mine["visitor"], lengths, strict=True)
            for number in range(length)
        ]
        pd.DataFrame(rows, columns=["visitor", "time", "action", "item"]).to_csv(folder / "events.csv", index=False)

    def _time(self, user: int, hours: int) -> str:
        return (START + timedelta(minutes=int(self.starts[user]), hours=hours)).isoformat()


def known_population(options: Mapping[str, Any], seed: int) -> KnownPopulation:
    """Draw a population by plain settings; see `KnownSpec` and `draw`.

    Raises:
        ConfigError: A setting is not one, or does not fit.
    """
    return draw(validate(dict(options), KnownSpec, "data.options"), seed)


def draw(spec: KnownSpec, seed: int) -> KnownPopulation:
    """Draw a population.

    Args:
        spec: Its law.
        seed: Of everything in it.

    Returns:
        The users.
    """
    source = np.random.Generator(np.random.Philox(derived_seed(seed, "known population")))
    count, names = spec.users, list(spec.interests)
    gender, region = (source.choice(len(spec.values(name)), count, p=spec.of_values(name, "share")) for name in COLUMNS)
    interest = source.choice(len(names), count, p=list(spec.interests.values()))
    tenant = _tenants(spec, gender, region, interest, source)

    shape = (count, spec.max_history)
    length = 1 + source.binomial(spec.max_history - 1, spec.more_events(spec.mean_history(gender, region)))
    there = np.arange(spec.max_history) < length[:, None]
    eager = source.random(shape) < source.beta(*spec.eagerness, count)[:, None]
    about = np.where(source.random(shape) < spec.focus, interest[:, None], source.integers(len(names), size=shape))
    shown = {
        "length": length,
        "eager": (eager & there).sum(axis=1),
        "season": ((np.array(names)[about] == spec.season) & there).sum(axis=1),
        "visits": source.binomial(MOST_VISITS, VISITS_RATE, count),
    }
    wanting = spec.wanting(
        eager=shown["eager"], season=shown["season"], visits=shown["visits"], gender=gender, region=region
    )
    wanted = source.random(count) < wanting
    label = wanted.copy()
    for places, name in ((gender, COLUMNS[0]), (region, COLUMNS[1])):
        label ^= source.random(count) < spec.of_values(name, "label_noise")[places]
    label &= source.random(count) >= spec.biased_against(gender, region)

    users = pd.DataFrame(
        {
            "visitor": [f"visitor-{number:06d}" for number in range(count)],
            "tenant": [f"shop-{number:03d}" for number in tenant],
            "gender": np.array(list(spec.gender))[gender],
            "region": np.array(list(spec.region))[region],
            **shown,
            "wanted": wanted.astype(np.int64),
            "label": label.astype(np.int64),
        }
    )
    truth = joint_law(spec).groupby(SHOWN)["unseen"].first().rename("probability")
    return KnownPopulation(
        spec,
        users.join(truth, on=SHOWN),
        np.where(eager, source.choice(EAGER, shape), source.choice(IDLE, shape)),
        np.array([INTERESTS[name] for name in names])[about, source.integers(5, size=shape)],
        source.integers(0, 60 * 24 * 300, count),
    )


def _tenants(
    spec: KnownSpec,
    gender: NDArray[np.int64],
    region: NDArray[np.int64],
    interest: NDArray[np.int64],
    source: np.random.Generator,
) -> NDArray[np.int64]:
    """Each user's tenant, drawn given gender, region and interest, so that the law of everybody stays what it is.

    A tenant pulls at values with normally distributed logits; iterative proportional fitting (Deming and Stephan 1940)
    then gives tenants equal expected sizes.
    """
    shares = (*(spec.of_values(name, "share") for name in COLUMNS), np.array(list(spec.interests.values())))
    pulls = [source.normal(0, PULL * spec.skew, (spec.tenants, len(share))) for share in shares]
    logits = pulls[0][:, :, None, None] + pulls[1][:, None, :, None] + pulls[2][:, None, None, :]
    cells = np.einsum("g,r,i->gri", *shares).reshape(-1)
    joint = np.exp(logits.reshape(spec.tenants, -1)) * cells
    for _ in range(BALANCING):
        joint /= joint.sum(axis=1, keepdims=True) * spec.tenants
        joint *= cells / np.where(cells > 0, joint.sum(axis=0), 1)
    cell = np.ravel_multi_index((gender, region, interest), tuple(map(len, shares)))
    thresholds = np.cumsum(joint[:, cell], axis=0)
    drawn: NDArray[np.int64] = (source.random(len(cell)) * thresholds[-1] >= thresholds).sum(axis=0)
    return drawn


def bayes_probability(population: KnownPopulation) -> dict[str, float]:
    """P(label = 1 | what the record shows) of every user, by id."""
    return dict(zip(population.users["visitor"], population.users["probability"], strict=True))


def bayes_predictions(population: KnownPopulation) -> pd.DataFrame:
    """The Bayes rule's predictions for every record, in the form of any model's.

    Args:
        population: Whose.

    Returns:
        One row a record: `tenant`, `user` (a number), `label`, `p0`, `p1`, `group:gender`, `group:region`.
    """
    users = population.users
    return pd.DataFrame(
        {
            "tenant": users["tenant"],
            "user": np.arange(len(users), dtype=np.int64),
            "label": users["label"],
            "p0": 1 - users["probability"],
            "p1": users["probability"],
            **{f"group:{name}": users[name] for name in COLUMNS},
        }
    )
