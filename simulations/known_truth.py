"""What is known in closed form of the population of `fedprofile.simulations.known_spec`.

With x what a record shows, g = (gender, region), P(x, g) the law and q(x, g) = P(label = 1 | x, g), the Bayes-rule
predictor that, like every model here, does not see the group is

    d(x) = 1 where  sum_g P(x, g) q(x, g) / sum_g P(x, g) >= 1/2,

and over the users with value v of a group column

    selection rate       P(d = 1 | v)            = sum P(x, g) d(x)               / sum P(x, g)
    true positive rate   P(d = 1 | label = 1, v) = sum P(x, g) q(x, g) d(x)       / sum P(x, g) q(x, g)
    false positive rate  P(d = 1 | label = 0, v) = sum P(x, g) (1 - q(x, g)) d(x) / sum P(x, g) (1 - q(x, g)),

each sum over x and over the g that have v. The sums are finite and exact. The demographic parity difference is the
largest selection rate minus the smallest, and the equalised-odds difference the larger of the two like differences of
true and false positive rates (Agarwal et al. 2018, https://arxiv.org/abs/1803.02453), as fairlearn computes them.
"Label" is the recorded one, with its noise and the planted bias.

A record does not show its tenant: where groups are spread unevenly, a predictor that knew it could do better.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import betabinom, binom

from fedprofile.simulations.known_spec import COLUMNS, MOST_VISITS, VISITS_RATE, KnownSpec

SHOWN = ["length", "eager", "season", "visits"]
"""What a record shows."""


def joint_law(spec: KnownSpec) -> pd.DataFrame:
    """Every combination of what a record shows and of group values.

    Args:
        spec: Of the population.

    Returns:
        Columns `length`, `eager`, `season`, `visits`; `gender` and `region` (places of their values); `mass`, which
        sums to 1; `positive`, P(label = 1 | x, group); and `unseen`, P(label = 1 | x).
    """
    counts = range(spec.max_history + 1)
    sizes = [counts[1:], counts, counts, range(MOST_VISITS + 1), *(range(len(spec.values(name))) for name in COLUMNS)]
    table = pd.MultiIndex.from_product(sizes, names=[*SHOWN, *COLUMNS]).to_frame(index=False)
    table = table[(table.eager <= table.length) & (table.season <= table.length)].reset_index(drop=True)
    length, eager, season, visits, gender, region = (table[name].to_numpy() for name in [*SHOWN, *COLUMNS])
    more = spec.more_events(spec.mean_history(gender, region))
    mass = spec.of_values("gender", "share")[gender] * spec.of_values("region", "share")[region]
    mass = mass * binom.pmf(length - 1, spec.max_history - 1, more)
    mass = mass * betabinom.pmf(eager, length, *spec.eagerness)
    mass = mass * sum(
        share * binom.pmf(season, length, spec.focus * (name == spec.season) + (1 - spec.focus) / len(spec.interests))
        for name, share in spec.interests.items()
    )
    mass = mass * binom.pmf(visits, MOST_VISITS, VISITS_RATE)
    positive = spec.wanting(eager=eager, season=season, visits=visits, gender=gender, region=region)
    for places, name in ((gender, COLUMNS[0]), (region, COLUMNS[1])):
        noise = spec.of_values(name, "label_noise")[places]
        positive = positive * (1 - noise) + (1 - positive) * noise
    positive = positive * (1 - spec.biased_against(gender, region))
    table["mass"], table["positive"] = mass, positive
    sums = table.assign(both=mass * positive).groupby(SHOWN)[["mass", "both"]].transform("sum")
    table["unseen"] = sums["both"] / sums["mass"]
    return table


def bayes_rates(spec: KnownSpec, columns: Sequence[str] = (), *, sees_groups: bool = False) -> pd.DataFrame:
    """The rates of the Bayes-rule predictor.

    Args:
        spec: Of the population.
        columns: Group columns; one row for each combination of their values, or one for everybody.
        sees_groups: For the predictor that knows gender and region, and not only what a record shows.

    Returns:
        Columns `share`, `base_rate`, `selection_rate`, `true_positive_rate`, `false_positive_rate` and `accuracy`,
        indexed by the group's values joined by " & ".
    """
    law = joint_law(spec)
    chosen = (law["positive" if sees_groups else "unseen"] >= 0.5).astype(float)
    names = [np.array(list(spec.values(name)))[law[name]] for name in COLUMNS if name in columns]
    key = [" & ".join(values) for values in zip(*names, strict=True)] if names else [""] * len(law)
    positive, negative = law.mass * law.positive, law.mass * (1 - law.positive)
    parts = {
        "share": law.mass,
        "positives": positive,
        "negatives": negative,
        "selected": law.mass * chosen,
        "hits": positive * chosen,
        "false": negative * chosen,
    }
    sums = pd.DataFrame(parts).groupby(np.array(key)).sum()
    return pd.DataFrame(
        {
            "share": sums["share"],
            "base_rate": sums["positives"] / sums["share"],
            "selection_rate": sums["selected"] / sums["share"],
            "true_positive_rate": sums["hits"] / sums["positives"],
            "false_positive_rate": sums["false"] / sums["negatives"],
            "accuracy": (sums["hits"] + sums["negatives"] - sums["false"]) / sums["share"],
        }
    )


def bayes_gaps(spec: KnownSpec, *, sees_groups: bool = False) -> dict[str, dict[str, float]]:
    """The fairness gaps of the Bayes-rule predictor, exactly.

    Args:
        spec: Of the population.
        sees_groups: For the predictor that knows gender and region.

    Returns:
        `demographic_parity_difference`, `equalized_odds_difference` and `equal_opportunity_difference` for each of
        "gender", "region" and "gender & region".
    """
    gaps = {}
    for columns in (COLUMNS[:1], COLUMNS[1:], COLUMNS):
        rates = bayes_rates(spec, columns, sees_groups=sees_groups)
        spans = rates.max() - rates.min()
        gaps[" & ".join(columns)] = {
            "demographic_parity_difference": float(spans["selection_rate"]),
            "equalized_odds_difference": float(max(spans["true_positive_rate"], spans["false_positive_rate"])),
            "equal_opportunity_difference": float(spans["true_positive_rate"]),
        }
    return gaps
