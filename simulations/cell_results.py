"""What is written down of a finished cell: whom it was about, what was predicted, and what it cost people."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError
from fedprofile.common.tasks import MultilabelTask, RankingTask, RegressionTask
from fedprofile.simulations.arms import ArmResult
from fedprofile.simulations.exact_metrics import record_values
from fedprofile.simulations.experiment import Cell
from fedprofile.simulations.federation import SimulatedTenant
from fedprofile.simulations.people import Part, personal_losses
from fedprofile.simulations.predictions import GROUP_PREFIX, VALUE_PREFIX, GroupThresholds
from fedprofile.simulations.small_counts import safe_count, safe_counts
from fedprofile.simulations.tenants import TenantExamples, people_at_several
from fedprofile.simulations.thresholds import fit_thresholds

BAYES = "bayes"
"""Column of predictions: the probability that the Bayes rule gives, of the population with known truth."""


@dataclass(frozen=True)
class PreparedCell:
    """A cell with its card and its tenants.

    Args:
        cell: Which.
        card: The federation's.
        tenants: With their records as the card's model takes them.
        examples: The same before they were encoded, with the users' group values.
        everybody: All users as one tenant's, where that is who trains.
    """

    cell: Cell
    card: FederationCard
    tenants: list[SimulatedTenant] = field(repr=False)
    examples: list[TenantExamples] = field(repr=False)
    everybody: SimulatedTenant | None = field(default=None, repr=False)


def predictions(
    prepared: PreparedCell,
    scores: Sequence[NDArray[np.float64]],
    numbers: Mapping[str, int],
    truth: Mapping[str, float] | None,
) -> pd.DataFrame:
    """What was predicted, record by record; see `fedprofile.simulations.predictions`.

    Args:
        prepared: The cell.
        scores: Of each tenant's evaluation records, [n, outputs].
        numbers: User -> the number that stands for them.
        truth: User -> probability by the Bayes rule, where it is known.

    Returns:
        The frame, with the column `BAYES` where the truth is known.
    """
    groups = [each.groups for each in prepared.examples]
    columns = list(dict.fromkeys(name for of in groups for values in of.values() for name in values))
    frames = []
    task = prepared.card.task
    for tenant, of, own in zip(prepared.tenants, groups, scores, strict=True):
        records = tenant.records.evaluation
        users = [records.users[place] for place in records.user[:: task.rows_per_record]]
        frame = pd.DataFrame({"tenant": tenant.name, "user": [numbers[user] for user in users]})
        if isinstance(task, RegressionTask):
            frame["target"], frame["prediction"] = task.in_unit(records.labels), task.in_unit(own[:, 0])
        elif isinstance(task, MultilabelTask | RankingTask):
            for name, values in record_values(task, own, records.labels).items():
                frame[f"{VALUE_PREFIX}{name}"] = values
        else:
            frame["label"] = records.labels
            names = [f"p{number}" for number in range(own.shape[1])]
            frame = pd.concat([frame, pd.DataFrame(own, columns=names)], axis=1)
        for name in columns:
            frame[f"{GROUP_PREFIX}{name}"] = [of.get(user, {}).get(name, "") for user in users]
        if truth is not None:
            frame[BAYES] = [truth[user] for user in users]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def thresholds(prepared: PreparedCell, result: ArmResult) -> dict[str, Any] | None:
    """Thresholds for each group, where that is the cell's mitigation: from the last noised tables.

    Where too few groups stand out of the noise, everybody keeps 0.5.
    """
    if prepared.cell.mitigation.kind != "thresholds":
        return None
    tables = [record.outcome.table for record in result.records if record.outcome.table is not None]
    if not tables:
        raise ConfigError("mitigation.kind='thresholds': needs evaluation tables; set card.evaluation.when to 'end'.")
    table, variance = tables[-1]
    task = prepared.card.task
    try:
        return asdict(fit_thresholds(table, variance if prepared.cell.noise else 0.0, task))
    except ConfigError:
        assert task.group is not None, "checked before the first cell"
        return asdict(GroupThresholds(task.group.attribute, {}))


def people(prepared: PreparedCell, result: ArmResult) -> list[dict[str, Any]]:
    """What those have lost who are at several tenants, the largest loss first for each number of tenants.

    How many they are is left out where they are few.
    """
    if not result.released or prepared.everybody is not None:
        return []
    places: dict[int, dict[str, Part]] = {
        number: {
            tenant.name: "evaluate" if tenant.evaluation_user(user) else "train"
            for tenant in prepared.examples
            if tenant.name in names
        }
        for number, (user, names) in enumerate(people_at_several(prepared.examples).items())
    }
    delta = max(tenant.settings.run_delta for tenant in prepared.tenants)
    found: dict[int, dict[str, Any]] = {}
    for loss in personal_losses(result.released, places, delta):
        here = found.setdefault(
            len(loss.tenants), {"tenants": len(loss.tenants), "people": 0, "loss": loss.loss.as_dict()}
        )
        here["people"] += loss.people
    for here in found.values():
        here["people"] = safe_count(here["people"])
    return list(found.values())


def picture(prepared: PreparedCell) -> dict[str, Any]:
    """How many users of each label and each group value are at each tenant, without small counts.

    A user's label is that of the first row; of a regression, the quarter of the range that it lies in; of a ranking,
    that there is one, for a catalogue is too long to be drawn.
    """
    task = prepared.card.task
    labels: dict[str, Counter[str]] = {}
    groups: dict[str, dict[str, Counter[str]]] = {}
    for tenant in prepared.examples:
        first = {example.user: example.label for example in reversed(tenant.examples) if example.label >= 0}
        ranked = isinstance(task, RankingTask)
        labels[tenant.name] = Counter(task.name_of(1 if ranked else label) for label in first.values())
        for values in tenant.groups.values():
            for name, value in values.items():
                groups.setdefault(name, {}).setdefault(tenant.name, Counter())[value] += 1
    return {"labels": safe_counts(labels), "groups": {name: safe_counts(found) for name, found in groups.items()}}
