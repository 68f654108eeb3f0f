"""Generated predictions of whole cells, with rates that are known."""

import numpy as np
import pandas as pd

from fedprofile.simulations.predictions import CellPredictions, Condition

NO_NOISE = float("inf")


def condition(epsilon: float = NO_NOISE, **other: str) -> Condition:
    """A condition that differs from the usual one in what is named."""
    plain = {"arm": "federated", "mitigation": "none", "partition": "natural", "strategy": "fedavg"}
    return Condition(epsilon=epsilon, **{**plain, **other})


def binary_frame(seed: int, users: int = 600, tenants: int = 4, noise: float = 0.3) -> pd.DataFrame:
    """Scores with ties, one to three records a user, two group columns; the labels are the same for any noise."""
    draw, error = np.random.default_rng([seed, 0]), np.random.default_rng([seed, round(noise * 1000)])
    user = np.repeat(np.arange(users), draw.integers(1, 4, users))
    n = len(user)
    gender = np.array(["f", "m"])[draw.integers(0, 2, users)][user]
    age = np.array(["old", "mid", "young"])[draw.integers(0, 3, users)][user]
    logit = draw.normal(size=n) + 0.6 * (gender == "m") - 0.3
    label = (draw.random(n) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    score = np.clip(np.round(1 / (1 + np.exp(-logit - noise * error.normal(size=n))), 2), 0.01, 0.99)
    return pd.DataFrame(
        {
            "tenant": np.array([f"tenant-{number}" for number in range(tenants)])[draw.integers(0, tenants, users)][
                user
            ],
            "user": user,
            "label": label,
            "p0": 1 - score,
            "p1": score,
            "group:gender": gender,
            "group:age": age,
        }
    )


def known_frame(
    seed: int, sizes: dict[str, int], rates: dict[str, tuple[float, float, float]], tenant: str = "only"
) -> pd.DataFrame:
    """Users of one to three equal records each.

    Args:
        seed: Of the draw.
        sizes: Group -> users.
        rates: Group -> base rate, true-positive and false-positive rate.
        tenant: Whose users they are.
    """
    draw = np.random.default_rng(seed)
    group = np.repeat(list(sizes), list(sizes.values()))
    base, hit, alarm = np.array([rates[name] for name in group]).T
    label = draw.random(len(group)) < base
    decided = draw.random(len(group)) < np.where(label, hit, alarm)
    records = draw.integers(1, 4, len(group))
    frame = pd.DataFrame(
        {
            "tenant": tenant,
            "user": np.arange(len(group)),
            "label": label.astype(np.int64),
            "p0": np.where(decided, 0.2, 0.8),
            "p1": np.where(decided, 0.8, 0.2),
            "group:kind": group,
        }
    )
    return frame.loc[frame.index.repeat(records)].reset_index(drop=True)


def cell(frame: pd.DataFrame, seed: int = 0, epsilon: float = NO_NOISE, **other: str) -> CellPredictions:
    """A cell of the usual condition."""
    return CellPredictions(condition(epsilon, **other), seed, frame)


def found(results: pd.DataFrame, **where: object) -> pd.Series:
    """The one row of some results."""
    rows = results
    for column, value in where.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1, f"{len(rows)} rows where {where}"
    return rows.iloc[0]
