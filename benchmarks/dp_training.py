"""Which training settings help under differential privacy? Each option against the shipped default, paired.

    python -m benchmarks.dp_training --data-dir DATA [--stage screen|confirm] [--dataset NAME] [--options A,B]

A cell is one federation run by the simulation engine, with seed and split of the same number, and a line of
`results/dp_training.jsonl`, written when it is done; what is there is not computed again. `screen` runs every option
once, on seed 100; `confirm` runs the named options on seeds 0, 1, 2, ..., which took no part in choosing them. All
cells of one call share one store of activations. Tables go to the standard output.

Cells are smaller than the shipped scenarios (SMALL), so that they can be run again on two cores. The default is the
scenario's own card at that size; the probe trains the head alone on the frozen text and the same columns, `spline` is a
regression on the same columns without text, and `logistic` one on the columns as they are.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.purchase_intention import interval

RESULTS = Path(__file__).parent / "results" / "dp_training.jsonl"
EPSILONS = (8.0, 3.0)
SCREEN_SEED = 100
NO_TEXT = 1e-9

Settings = dict[str, Any]
"""Dotted keys of a cell."""

SMALL: dict[str, Settings] = {
    "online-shoppers": {"card.training.rounds": 20, "tenant.privacy.sample_rate": 0.05},
    "clinc150": {"card.training.rounds": 20},
    "vehicle-coupon": {
        "card.training.rounds": 20,
        "card.history.max_tokens": 32,
        "card.history.max_events": 1,
        "tenant.privacy.records_per_user": 1,
    },
}
"""What differs from the shipped scenario in every cell of a data set."""

LIMIT = {"clinc150": 200}
"""Users of each tenant at most."""

CHEAP: dict[str, Settings] = {
    "probe": {"card.adapter.method": "head"},
    "spline": {"card.adapter.method": "head", "card.adapter.text_scale": NO_TEXT},
}
"""The alternatives without fine-tuning that every data set with columns has."""

COMMON: dict[str, Settings] = {
    "warmup-cosine": {"card.training.schedule": "cosine", "card.training.warmup": 0.1},
    "head-clip-0.5": {"card.training.head_clip": 0.5},
    "head-clip-0.9": {"card.training.head_clip": 0.9},
    "views-2": {"card.training.views": 2},
    "average-5": {"card.aggregation.average_last": 5},
    "adversarial-0.1": {"card.training.adversarial": 0.1},
    "label-head-3": {"card.adapter.label_head": 3.0},
    "train-AB": {"card.adapter.train": "AB"},
}
"""Options of all data sets."""

OWN: dict[str, dict[str, Settings]] = {
    "online-shoppers": {
        "adamw": {
            "card.training.optimizer": "adamw",
            "card.training.weight_decay": 0.01,
            "card.training.learning_rate": 0.02,
            "card.training.head_learning_rate": 0.05,
        },
        "momentum-0.9": {
            "card.training.momentum": 0.9,
            "card.training.learning_rate": 0.1,
            "card.training.head_learning_rate": 0.25,
        },
        "twice-the-sample": {"card.training.rounds": 10, "tenant.privacy.sample_rate": 0.1},
    },
    "clinc150": {
        "adamw": {
            "card.training.optimizer": "adamw",
            "card.training.weight_decay": 0.01,
            "card.training.learning_rate": 0.02,
            "card.training.head_learning_rate": 0.05,
        },
        "label-head-0": {"card.adapter.label_head": 0.0},
        "untrained": {
            "card.adapter.method": "head",
            "card.training.rounds": 1,
            "card.training.head_learning_rate": 1e-30,
        },
        "twice-the-sample": {"card.training.rounds": 10, "tenant.privacy.sample_rate": 0.4},
    },
    "vehicle-coupon": {
        "adamw": {
            "card.training.optimizer": "adamw",
            "card.training.weight_decay": 0.01,
            "card.training.learning_rate": 0.02,
            "card.training.head_learning_rate": 0.05,
        },
        "twice-the-sample": {"card.training.rounds": 10, "tenant.privacy.sample_rate": 0.4},
    },
}
"""Options of one data set."""


def options(dataset: str) -> dict[str, Settings]:
    """Everything that can be run on a data set, the default first."""
    found = {"default": {}, **CHEAP, **COMMON, **OWN[dataset]}
    if dataset == "clinc150":
        del found["spline"]  # It has no columns.
    if dataset == "online-shoppers":
        found["logistic"] = _logistic(dataset)  # The other's columns have neither knots nor crosses.
    return found


def _logistic(dataset: str) -> Settings:
    """A regression on the columns as they are; see `fedprofile.simulations.comparison`."""
    from fedprofile.common.card import load_card
    from fedprofile.simulations.scenarios import CARDS, CONFIGS

    columns = load_card(CONFIGS / CARDS[dataset] / "federation.toml").features.model_dump(mode="json")["numeric"]
    plain = [{**column, "knots": []} for column in columns]
    return {**CHEAP["spline"], "card.features.numeric": plain, "card.features.crosses": []}


def read_cells() -> list[Settings]:
    """What is done."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def run_cells(dataset: str, data_dir: Path, wanted: list[tuple[str, float, int]]) -> None:
    """Run what is missing of some cells, over one store of activations.

    Args:
        dataset: Of all of them.
        data_dir: Where it lies.
        wanted: Option, epsilon and seed of each.
    """
    from fedprofile.simulations.cells import CellRunner
    from fedprofile.simulations.experiment import DataSpec, EngineSpec, Experiment

    done = {(cell["dataset"], cell["option"], cell["epsilon"], cell["seed"]) for cell in read_cells()}
    missing = [key for key in wanted if (dataset, *key) not in done]
    if not missing:
        return
    tables = [
        {
            name: [value]
            for name, value in {
                **SMALL[dataset],
                **options(dataset)[option],
                "card.evaluation.when": "never",
                "epsilon": epsilon,
                "seed": seed,
                "split_seed": seed,
            }.items()
        }
        for option, epsilon, seed in missing
    ]
    experiment = Experiment(
        name="dp-training",
        data=DataSpec(dataset=dataset, data_dir=data_dir, limit=LIMIT.get(dataset)),
        engine=EngineSpec(cache="lazy"),
    )
    runner = CellRunner(experiment)
    for (option, epsilon, seed), table in zip(missing, tables, strict=True):
        [cell] = experiment.model_copy(update={"sweep": table}).cells()
        found = runner.run(cell, lambda done, rounds: None).result
        exact = found["exact_metrics"]
        line = {
            "dataset": dataset,
            "option": option,
            "epsilon": epsilon,
            "seed": seed,
            **{name: exact[name] for name in ("auc", "accuracy", "log_loss")},
            "spent": max(tenant["spent"]["epsilon"] for tenant in found["tenants"]),
            "seconds": found["timing"]["federation_s"],
        }
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)


def table(dataset: str, cells: list[Settings], seeds: range) -> list[str]:
    """Lines of a Markdown table: each option's metric, and its difference to the default on the same seeds.

    Args:
        dataset: Which.
        cells: Of all data sets.
        seeds: Which seeds count.
    """
    metric = "accuracy" if dataset == "clinc150" else "auc"
    by = {(c["option"], c["epsilon"], c["seed"]): c[metric] for c in cells if c["dataset"] == dataset}
    lines = []
    for option in options(dataset):
        row = [f"{dataset}", option]
        for epsilon in EPSILONS:
            both = [s for s in seeds if (option, epsilon, s) in by and ("default", epsilon, s) in by]
            gains = [by[option, epsilon, s] - by["default", epsilon, s] for s in both]
            mean = f"{np.mean([by[option, epsilon, s] for s in both]):.4f}" if both else ""
            row += [mean, interval(gains) if gains and option != "default" else "", str(len(both))]
        if any(row[2:]):
            lines.append("| " + " | ".join(row) + " |")
    return lines


def main(
    data_dir: Annotated[Path, typer.Option(help="The folder that holds the data sets as published.")],
    dataset: Annotated[str, typer.Option(help="One of them, or all.")] = "all",
    stage: Annotated[str, typer.Option(help="screen, confirm, or table for what is there.")] = "screen",
    chosen: Annotated[str, typer.Option("--options", help="Some options, by comma; all where none is named.")] = "",
    seeds: Annotated[int, typer.Option(help="Of confirm: seeds 0 to N-1.")] = 3,
    epsilons: Annotated[str, typer.Option(help="Privacy budgets, by comma.")] = "8,3",
) -> None:
    """Compute what is missing and print the tables."""
    names = list(SMALL) if dataset == "all" else [dataset]
    numbers = [SCREEN_SEED] if stage == "screen" else list(range(seeds))
    for name in names:
        if stage != "table":
            some = ["default", *chosen.split(",")] if chosen else list(options(name))
            wanted = [
                (option, float(epsilon), seed)
                for seed in numbers
                for epsilon in epsilons.split(",")
                for option in dict.fromkeys(some)
            ]
            run_cells(name, data_dir, wanted)
    print("| data | option | epsilon 8 | difference | seeds | epsilon 3 | difference | seeds |\n" + "|---" * 8 + "|")
    for name in names:
        for line in table(
            name, read_cells(), range(SCREEN_SEED, SCREEN_SEED + 1) if stage == "screen" else range(seeds)
        ):
            print(line)


if __name__ == "__main__":
    typer.run(main)
