"""`python simulate.py demo`: rehearse a deployment, show it live, and sum it up.

DIR/summary.json has the figures, DIR/server and DIR/tenants/NAME are what a deployment has, DIR/populations holds the
ledgers, DIR/adapter the exported adapter, DIR/logs what each process printed.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fedprofile.common.card import FederationCard
from fedprofile.common.config import validate
from fedprofile.common.errors import ConfigError
from fedprofile.common.tasks import BinaryTask, TaskSpec
from fedprofile.server.evaluation import headline
from fedprofile.server.status import read_status
from fedprofile.simulations.rehearsal import Rehearsal, export, prepare, run
from fedprofile.simulations.scenarios import Scenario, load_scenario

SHOWN_LABELS = 5
"""Of a prediction on the screen, the most likely ones; `predict` gives all."""


def run_demo(
    *,
    out: Path | None,
    dataset: str | None,
    data_dir: Path | None,
    epsilon: float | None,
    rounds: int | None,
    seed: int,
    split_seed: int | None,
    compare: bool,
    json_output: bool,
) -> None:
    """Run the rehearsal from the first key to the last table; see the command's options.

    Raises:
        ConfigError: An option or the folder cannot be used.
        DataError: The data set cannot be read.
        RehearsalFailed: A process failed.
    """
    root = out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    console = Console(stderr=json_output, soft_wrap=True)
    scenario = _shortened(load_scenario(dataset, data_dir, seed), rounds)
    if compare and not isinstance(scenario.card.task, BinaryTask):
        raise ConfigError(
            f"--compare: compares areas under curves of binary tasks; this one is {scenario.card.task.kind}."
        )
    console.print(
        f"A federation '{scenario.card.name}' of {len(scenario.tenants)} tenants on this machine, in {root}. "
        f"Nothing of it is private towards you: you own all the data."
    )
    rehearsal = prepare(root, scenario, epsilon=epsilon, split_seed=split_seed)
    console.print("Certificates, keys, ledgers and enrolments are made; starting the server and every tenant.")
    seconds = run(rehearsal, _Watch(rehearsal, console).look)
    console.print("The run is over; exporting the adapter and loading it in a fresh process.")
    with ThreadPoolExecutor(1) as beside:
        exported = beside.submit(export, rehearsal, root / "adapter")
        # Imported late: they bring torch, which the federation's own processes needed the memory for.
        from fedprofile.simulations.judgement import judge

        verdict = judge(rehearsal, seed=seed, compare=compare)
        exported.result()
    summary = _summary(rehearsal, seconds)
    summary["exact_metrics"] = {**verdict.exact, "private": False, "users": verdict.users}
    summary["comparison"] = verdict.comparison
    (root / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    _show(console, summary, verdict.predictions, scenario.card.task)
    console.print(
        f"\nEverything is in {root}; `flower-client budget --dir {root}/tenants/NAME` shows a tenant's ledger."
    )
    if json_output:
        print(json.dumps(summary, indent=2))


def _shortened(scenario: Scenario, rounds: int | None) -> Scenario:
    if rounds is None:
        return scenario
    data = scenario.card.model_dump(mode="json")
    data["training"]["rounds"] = rounds
    return Scenario(validate(data, FederationCard, "--rounds"), scenario.template, scenario.tenants)


class _Watch:
    """Prints a line for every question that the server has asked, with what the tenants have spent."""

    def __init__(self, rehearsal: Rehearsal, console: Console) -> None:
        self._rehearsal, self._console, self._seen = rehearsal, console, 0

    def look(self) -> None:
        history = self._rehearsal.history()
        for line in history[self._seen :]:
            self._console.print(self._line(line))
        self._seen = len(history)

    def _line(self, line: dict[str, Any]) -> str:
        spent = [self._rehearsal.spent(name)["epsilon_spent"] for name in self._rehearsal.tenants]
        parts = [
            f"round {line['round']:>3} {line['kind']:<8} {len(line['tenants'])} tenants in {line['seconds']:.1f} s"
        ]
        if line["kind"] == "evaluate":
            parts += [
                f"{name} {_interval(line['metrics'].get(name))}" for name in ("auc", "accuracy") if line["metrics"]
            ]
        parts += [f"dropped {one['tenant']} ({one['reason']})" for one in line["dropped"]]
        parts += [f"refused by {one['tenant']} ({one['code']})" for one in line["refused"]]
        parts.append(f"epsilon spent {min(spent):.2f} to {max(spent):.2f} (user level, prv)")
        return ", ".join(parts)


def _interval(metric: dict[str, float] | None) -> str:
    if metric is None:
        return "too few users to say"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def _summary(rehearsal: Rehearsal, seconds: float) -> dict[str, Any]:
    status = read_status(rehearsal.server.root)
    tenants = []
    for tenant in rehearsal.scenario.tenants:
        spent = rehearsal.spent(tenant.name)
        tenants.append(
            {"name": tenant.name, "declared_users": tenant.declared_users}
            | {key: spent[key] for key in ("epsilon", "epsilon_spent", "delta", "unit", "adjacency", "accountant")}
            | {"releases": len(spent["releases"]), "refused": spent["refused"]}
        )
    return {
        "federation": status["federation"],
        "card_hash": status["card_hash"],
        "rounds": status["round"],
        "seconds": round(seconds, 2),
        "tenants": tenants,
        "metrics": {name: metric for name, metric in status["metrics"].items() if metric is not None},
        "bytes_up": status["bytes_up"],
        "bytes_down": status["bytes_down"],
    }


def _show(console: Console, summary: dict[str, Any], predictions: list[dict[str, Any]], task: TaskSpec) -> None:
    title = f"{summary['federation']}: {summary['rounds']} rounds in {summary['seconds']:.0f} s"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for column in ("tenant", "declared", "epsilon cap", "spent", "delta", "releases", "refused"):
        is_name = column == "tenant"
        table.add_column(column, justify="left" if is_name else "right", no_wrap=is_name, overflow="fold")
    for tenant in summary["tenants"]:
        numbers = (tenant["declared_users"], f"{tenant['epsilon']:g}", f"{tenant['epsilon_spent']:.2f}")
        rest = (f"{tenant['delta']:g}", tenant["releases"], tenant["refused"])
        table.add_row(tenant["name"], *map(str, (*numbers, *rest)))
    console.print(table)
    console.print("declared: users; epsilon: unit=user, adjacency=add-or-remove-one, model=local, accountant=prv")
    for name in dict.fromkeys(("auc", "accuracy", headline(task))):
        if name in summary["metrics"]:
            console.print(f"{name} from the noised tables: {_interval(summary['metrics'][name])}")
    exact = summary["exact_metrics"]
    name = headline(task)
    value = "too few users to say" if exact[name] is None else f"{exact[name]:.3f}"
    console.print(f"exact {name} over {exact['users']} evaluation users (NOT private: a rehearsal): {value}")
    for name, values in summary["comparison"].items():
        console.print(f"  {name}: exact auc {values['auc']:.3f}")
    for prediction in predictions:
        columns = ", ".join(f"{name} {value}" for name, value in prediction["columns"].items())
        likely = sorted(prediction["probabilities"].items(), key=lambda item: -item[1])[:SHOWN_LABELS]
        console.print(f"prediction: {prediction['text']!r}; {columns} -> {dict(likely)}")
