"""`python simulate.py`: whole federations on one machine."""

from pathlib import Path
from typing import Annotated

import typer

from fedprofile.common.cli import run_command
from fedprofile.common.errors import ConfigError

app = typer.Typer(
    name="simulate.py",
    help="Whole federations on one machine, before anyone spends real privacy.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def nothing(context: typer.Context) -> None:
    """Whole federations on one machine, before anyone spends real privacy."""
    if context.invoked_subcommand is None:
        raise ConfigError(
            "simulate.py needs a verb, and the one that exists is `demo`: a deployment rehearsal on one machine "
            "(`python simulate.py demo --help`). Experiments over many federations come later."
        )


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Where everything goes; must be empty. Default ./runs/TIMESTAMP.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A real data set: online-shoppers. Default: a generated population.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="The folder that holds the data set as published.")] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Life and run budget of every tenant (delta stays 1e-5).")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Training rounds, instead of the scenario's.")] = None,
    seed: Annotated[int, typer.Option(help="Of the generated population and of the comparison.")] = 0,
    split_seed: Annotated[
        int | None, typer.Option(help="Fix which users are evaluation users; for rehearsals only.")
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Also run, in process: no noise, alone, DP linear probe, DP logistic regression."
        ),
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print summary.json at the end.")] = False,
) -> None:
    """Rehearse a deployment: one server and its tenants as real processes, with TLS and enrolled keys."""
    from fedprofile.simulations.demo import run_demo

    run_demo(
        out=out,
        dataset=dataset,
        data_dir=data_dir,
        epsilon=epsilon,
        rounds=rounds,
        seed=seed,
        split_seed=split_seed,
        compare=compare,
        json_output=json_output,
    )


def main() -> None:
    """Run the command line and leave with its exit code."""
    run_command(app, "simulate.py")
