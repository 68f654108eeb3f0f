"""What the federation of every scenario is worth, beside the alternatives.

    python benchmarks/scenarios.py --data-dir DATA [--out DIR] [--only NAME] [--splits 3]

Runs each `configs/scenarios/NAME/experiment.toml` (what is done in DIR is not done again), adds its figures to
`results/scenarios.json` and prints the table of all that is there. The measure is the exact area under the ROC curve of
all tenants' evaluation users, for customer-service the accuracy: mean over splits into training and evaluation users,
and in brackets the smallest and the largest. Before training all scores are alike (the head starts at zero): AUC 0.5.
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
    "alone, epsilon 8": ("alone", 8.0, "lora"),
    "federated, epsilon 3": ("federated", 3.0, "lora"),
    "federated, epsilon 8": ("federated", 8.0, "lora"),
    "federated, no noise": ("federated", float("inf"), "lora"),
    "pooled, no noise": ("pooled", float("inf"), "lora"),
    "DP linear probe, epsilon 8": ("federated", 8.0, "head"),
    "DP regression on columns, epsilon 8": ("federated", 8.0, "columns"),
}
PLAIN = {
    "purchase-intention": "0.767 boosted trees",
    "advertising-response": "0.775 boosted trees",
    "credit-risk": "0.780 boosted trees",
    "customer-service": "0.910 TF-IDF and LR",
}
"""Without privacy, on pooled data, untuned."""


def figures(folder: Path) -> dict[str, list[float]]:
    """Of each way, the measure of every seed."""
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for path in sorted((folder / "cells").glob("*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        exact, settings = cell["exact_metrics"], cell["settings"]
        kind = settings.get("card.adapter.method", "lora")
        kind = "columns" if "card.adapter.text_scale" in settings else kind
        way = settings.get("arm", "federated"), float(settings["epsilon"]), kind
        name = next((name for name, each in WAYS.items() if each == way), None)
        if name is not None:
            found[name].append(exact["accuracy"] if exact["auc"] is None else exact["auc"])
    return {name: values for name, values in found.items() if values}


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
    for experiment in sorted((ROOT / "configs" / "scenarios").glob("*/experiment.toml")):
        name = experiment.parent.name
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
            known[name] = figures(folder)
            RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    table = Table("scenario", *WAYS, "best plain baseline")
    for name, ways in sorted(known.items()):
        table.add_row(name, *(shown(ways[way]) if way in ways else "" for way in WAYS), PLAIN.get(name, ""))
    Console(width=240).print(table)


if __name__ == "__main__":
    typer.run(main)
