"""From an experiment's finished cells to its report: who got what, at which promise, and what it cost whom."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from fedprofile.common.accounting import PrivacyLoss
from fedprofile.common.card import FederationCard
from fedprofile.common.config import validate
from fedprofile.common.errors import ConfigError
from fedprofile.simulations.audit.shown import audit_rows, membership_rows
from fedprofile.simulations.cell_results import BAYES
from fedprofile.simulations.cells import cell_card, read_scenario
from fedprofile.simulations.experiment import SECTIONS, Cell, Experiment, as_json
from fedprofile.simulations.fairness import analyse
from fedprofile.simulations.known_spec import KnownSpec
from fedprofile.simulations.known_truth import bayes_gaps, bayes_rates
from fedprofile.simulations.predictions import CellPredictions, Condition, GroupThresholds
from fedprofile.simulations.report import (
    CellTime,
    Composed,
    KnownTruth,
    PartitionPicture,
    ReportFacts,
    Spent,
    write_report,
)
from fedprofile.simulations.scenarios import KNOWN, Scenario, is_generated

SEED_STEP = 1_000_003
"""Tells a split seed from a seed where both are varied."""

Outcomes = Sequence[tuple[Cell, Mapping[str, Any], pd.DataFrame]]
"""Each cell with its JSON file's content and its predictions."""


def write_analysis(
    experiment: Experiment, outcomes: Outcomes, out: Path, command: str, audit: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """Measure all cells and write `report.html`, `report.md` and `results.parquet`.

    Args:
        experiment: Whose cells.
        outcomes: All of them.
        out: Where the files go.
        command: That ran it.
        audit: Content of an `audit.json` that the report shows.

    Returns:
        The results, one row for each number.
    """
    scenario = read_scenario(experiment.data)
    results = analyse(_predictions(outcomes, scenario))
    facts = _facts(experiment, scenario, outcomes, command)
    if audit is not None:
        facts = replace(facts, audit=audit_rows(audit), membership=membership_rows(audit))
    write_report(out, results, facts)
    return results


def check_conditions(cells: Sequence[Cell], scenario: Scenario) -> None:
    """Refuse cells that no result could tell apart, before any is run.

    Args:
        cells: Of one experiment.
        scenario: Of its data.

    Raises:
        ConfigError: Two cells have the same condition and seed.
    """
    known: dict[tuple[Condition, int], Cell] = {}
    for cell in cells:
        first = known.setdefault((_condition(cell, scenario), _seed(cell)), cell)
        if first is not cell:
            raise ConfigError(f"cells '{first.name}' and '{cell.name}' are the same one; leave one of them out.")


def _predictions(outcomes: Outcomes, scenario: Scenario) -> list[CellPredictions]:
    found: list[CellPredictions] = []
    truths: set[tuple[str, int]] = set()
    for cell, result, frame in outcomes:
        condition, seed = _condition(cell, scenario), _seed(cell)
        thresholds = result["thresholds"]
        found.append(
            CellPredictions(
                condition,
                seed,
                frame.drop(columns=[BAYES], errors="ignore"),
                None if thresholds is None else GroupThresholds(**thresholds),
            )
        )
        if BAYES in frame and (condition.partition, seed) not in truths:
            truths.add((condition.partition, seed))
            rule = frame.assign(p0=1 - frame[BAYES], p1=frame[BAYES]).drop(columns=[BAYES])
            found.append(CellPredictions(Condition("bayes", math.inf, "none", condition.partition, ""), seed, rule))
    return found


def _condition(cell: Cell, scenario: Scenario) -> Condition:
    """All but the seed. What else is varied is part of the partition's or the strategy's name.

    Who trains alone or has all users has a strategy only where that, or what is part of its name, is varied.
    """
    partition: list[str] = [cell.partition.kind]
    strategy: list[str] = [cell_card(cell, scenario).aggregation.strategy]
    named = ("seed", "split_seed", "epsilon", "arm", "partition.kind", "card.aggregation.strategy", "mitigation.kind")
    has_strategy = cell.arm == "federated" or "card.aggregation.strategy" in cell.settings
    for key, value in cell.settings.items():
        if key not in named:
            of = partition if key.startswith("partition.") else strategy
            has_strategy = has_strategy or of is strategy
            of.append(f"{key.rsplit('.', 1)[-1]} {value}")
    return Condition(
        cell.arm,
        _epsilon(cell, scenario),
        cell.mitigation.kind,
        ", ".join(partition),
        ", ".join(strategy) if has_strategy else "",
    )


def _epsilon(cell: Cell, scenario: Scenario) -> float:
    if not cell.noise:
        return math.inf
    return scenario.template.run.epsilon if cell.epsilon is None else cell.epsilon


def _seed(cell: Cell) -> int:
    return cell.seed + SEED_STEP * cell.split_seed


def _facts(experiment: Experiment, scenario: Scenario, outcomes: Outcomes, command: str) -> ReportFacts:
    spent = [
        Spent(_epsilon(cell, scenario), tenant["name"], PrivacyLoss(**tenant["spent"]))
        for cell, result, _ in outcomes
        for tenant in result["tenants"]
        if tenant["spent"] is not None
    ]
    largest: dict[tuple[float, str], Spent] = {}
    for each in spent:
        key = each.asked, each.tenant
        if key not in largest or each.loss.epsilon > largest[key].loss.epsilon:
            largest[key] = each
    composed: dict[tuple[float, int], Composed] = {}
    for cell, result, _ in outcomes:
        for each in result["people"]:
            found = Composed(_epsilon(cell, scenario), each["tenants"], each["people"], PrivacyLoss(**each["loss"]))
            before = composed.setdefault((found.asked, found.tenants), found)
            if found.loss.epsilon > before.loss.epsilon:
                composed[found.asked, found.tenants] = found
    pictures: dict[str, PartitionPicture] = {}
    for cell, result, _ in outcomes:
        name = _condition(cell, scenario).partition
        pictures.setdefault(name, PartitionPicture(name, result["picture"]["labels"], result["picture"]["groups"]))
    machine = outcomes[0][1]["machine"]
    packages = ("torch", "transformers", "peft", "opacus", "flwr")
    return ReportFacts(
        experiment=experiment.name,
        command=command,
        dataset=experiment.data.dataset,
        real_data=not is_generated(experiment.data.dataset),
        promise=spent[0].loss if spent else None,
        seeds=tuple(sorted({cell.seed for cell, _, _ in outcomes})),
        partitions=tuple(pictures.values()),
        cells=tuple(CellTime(cell.name, sum_of(result["timing"])) for cell, result, _ in outcomes),
        spent=tuple(largest.values()),
        composed=tuple(composed.values()),
        truth=_truth(experiment) if experiment.data.dataset == KNOWN else None,
        settings=_settings(experiment, scenario),
        versions={name: str(machine[name]) for name in packages},
        machine={key: str(value) for key, value in machine.items() if key not in packages},
        caveats=_caveats(experiment, outcomes),
    )


def sum_of(timing: Mapping[str, float]) -> float:
    """Seconds of a cell in all."""
    return sum(timing[name] for name in ("prepare_s", "fill_s", "federation_s"))


def _truth(experiment: Experiment) -> tuple[KnownTruth, ...]:
    spec = validate(dict(experiment.data.options), KnownSpec, "data.options")
    names = {
        "demographic_parity_difference": "demographic_parity",
        "equalized_odds_difference": "equalized_odds",
        "equal_opportunity_difference": "equal_opportunity",
    }
    gaps = [
        KnownTruth("gap", column, "", names[gap], "difference", value)
        for column, found in bayes_gaps(spec).items()
        for gap, value in found.items()
    ]
    rates = [
        KnownTruth("group", column, str(group), metric, "value", float(row[metric]))
        for column in ("gender", "region")
        for group, row in bayes_rates(spec, [column]).iterrows()
        for metric in ("selection_rate", "true_positive_rate", "false_positive_rate")
    ]
    return (*gaps, *rates)


def _settings(experiment: Experiment, scenario: Scenario) -> dict[str, str]:
    """What the file says, and what the card says that it leaves open."""
    given = as_json(experiment.model_dump(exclude_unset=True))
    found = {
        f"{section}.{key}": str(value)
        for section in ("data", "engine", *SECTIONS)
        for key, value in _flat(given.get(section, {}))
    }
    found |= {f"sweep.{key}": json.dumps(value) for key, value in given.get("sweep", {}).items()}
    for table in given.get("also", []):
        found |= {f"also.{key}": json.dumps(value) for key, value in table.items()}
    card: FederationCard = scenario.card
    named = (*found, *(name.partition(".")[2] for name in found if name.startswith(("sweep.", "also."))))
    scenario_says = {
        f"scenario: {section}.{key}": str(value)
        for section, model in (("training", card.training), ("adapter", card.adapter))
        for key, value in model.model_dump().items()
        if f"card.{section}.{key}" not in named
    }
    return found | scenario_says


def _flat(section: Mapping[str, Any]) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in section.items():
        flat += [(f"{key}.{inner}", v) for inner, v in _flat(value)] if isinstance(value, Mapping) else [(key, value)]
    return flat


def _caveats(experiment: Experiment, outcomes: Outcomes) -> tuple[str, ...]:
    said = [
        "The exact figures are of people whose labels the simulation knows. A deployed federation sees noised "
        "tables alone, and its own figures are less certain than these."
    ]
    if any(not cell.noise for cell, _, _ in outcomes):
        said.append("Cells without noise are not private; they are there to compare with.")
    if experiment.engine.dtype != "float32":
        said.append(f"The base model ran in {experiment.engine.dtype}: another base than the one that is deployed.")
    if any(cell.mitigation.kind == "group-rates" for cell, _, _ in outcomes):
        said.append(
            "With rates by group the ledger claims the largest rate's epsilon for everyone; users of a group with a "
            "lower rate lose less than that."
        )
    if any(cell.mitigation.kind == "thresholds" for cell, _, _ in outcomes):
        said.append(
            "Thresholds for each group are fitted to the noised tables of the users that they are then judged on, so "
            "that they look better here than on new users; without noise most of all."
        )
    return tuple(said)
