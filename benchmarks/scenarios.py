"""What the federation of every scenario is worth, beside the alternatives.

    python benchmarks/scenarios.py --data-dir DATA [--out DIR] [--only NAME] [--splits 3]

Runs each `configs/scenarios/NAME/experiment.toml` and education's `mark.toml` (what is done in DIR is not done again),
adds its figures to `results/scenarios.json` and prints the table of all that is there. The measure is exact, over all
tenants' evaluation users: the area under the ROC curve, for customer-service the accuracy, and for education-mark the
mean absolute error in marks out of 100, where less is better. Each is the mean over splits into training and evaluation
users, and in brackets the smallest and the largest.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "scenarios.json"
WAYS = {
    "before training": ("federated", float("inf"), "untrained"),
    "alone, epsilon 8": ("alone", 8.0, "lora"),
    "federated, epsilon 3": ("federated", 3.0, "lora"),
    "federated, epsilon 8": ("federated", 8.0, "lora"),
    "federated, no noise": ("federated", float("inf"), "lora"),
    "pooled, no noise": ("pooled", float("inf"), "lora"),
    "DP linear probe, epsilon 8": ("federated", 8.0, "head"),
    "DP regression on columns, epsilon 8": ("federated", 8.0, "columns"),
}
PLAIN = "plain baseline, no privacy"
"""Written by `benchmarks/plain_baselines.py`: on the same people, all at one place."""


def figures(folder: Path) -> dict[str, list[float]]:
    """Of each way, the measure of every seed."""
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for path in sorted((folder / "cells").glob("*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        exact, settings = cell["exact_metrics"], cell["settings"]
        kind = settings.get("card.adapter.method", "lora")
        kind = "columns" if "card.adapter.text_scale" in settings else kind
        kind = "untrained" if "card.training.rounds" in settings else kind
        way = settings.get("arm", "federated"), float(settings["epsilon"]), kind
        name = next((name for name, each in WAYS.items() if each == way), None)
        if name is not None:
            found[name].append(measure(exact))
    return {name: values for name, values in found.items() if values}


def measure(exact: dict[str, Any]) -> float:
    """Of a regression the mean absolute error, else the area under the ROC curve, or the accuracy where it has none."""
    for name in ("mean_absolute_error", "auc", "accuracy"):
        if exact.get(name) is not None:
            return float(exact[name])
    raise ValueError(f"none of the measures is among {', '.join(exact)}")


def experiments() -> dict[str, Path]:
    """Of each scenario with data."""
    folder = ROOT / "configs" / "scenarios"
    found = {path.parent.name: path for path in folder.glob("*/experiment.toml")}
    return dict(sorted({**found, "education-mark": folder / "education" / "mark.toml"}.items()))


def shown(values: list[float]) -> str:
    """Mean and range."""
    mean = sum(values) / len(values)
    return f"{mean:.3f} [{min(values):.3f}, {max(values):.3f}]" if len(values) > 1 else f"{mean:.3f}"


def main(
    data_dir: Annotated[Path, typer.Option(help="The folder that holds the data sets as published.")],
    out: Annotated[Path, typer.Option(help="Where the experiments' results go.")] = Path("runs/scenarios"),
    only: Annotated[list[str] | None, typer.Option(help="Scenarios to run; default all with data.")] = None,
    splits: Annotated[int, typer.Option(min=1, max=3, help="Split seeds 1 to N.")] = 3,
) -> None:
    """Run what is missing and print the table."""
    known: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name, experiment in experiments().items():
        if only and name not in only:
            continue
        folder = out / name
        reduced = folder.parent / f"{name}.toml"
        folder.parent.mkdir(parents=True, exist_ok=True)
        text = experiment.read_text(encoding="utf-8")
        reduced.write_text(
            text.replace("split_seed = [1, 2, 3]", f"split_seed = {list(range(1, splits + 1))}"), encoding="utf-8"
        )
        command = [sys.executable, str(ROOT / "simulate.py"), str(reduced), "--out", str(folder)]
        command += ["--data-dir", str(data_dir)] + (["--resume"] if (folder / "experiment.json").exists() else [])
        if subprocess.run(command, check=False).returncode == 0:
            known[name] = {**known.get(name, {}), **figures(folder)}
            RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    columns = (*WAYS, PLAIN)
    table = Table("scenario", *columns)
    for name, ways in sorted(known.items()):
        table.add_row(name, *(shown(ways[way]) if way in ways else "" for way in columns))
    Console(width=240).print(table)


if __name__ == "__main__":
    typer.run(main)
