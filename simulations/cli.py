"""`python simulate.py`: whole federations on one machine."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedprofile.common.cli import run_command
from fedprofile.common.errors import ConfigError

DEFAULT = Path(__file__).resolve().parents[1] / "configs" / "experiments" / "default.toml"
AUDIT = DEFAULT.with_name("audit.toml")

app = typer.Typer(
    name="simulate.py",
    help=(
        "Whole federations on one machine, before anyone spends real privacy. `simulate.py EXPERIMENT.toml` runs an "
        "experiment, and `simulate.py` alone the default one."
    ),
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def run(
    experiment: Annotated[Path, typer.Argument(help="Its TOML file.")] = DEFAULT,
    out: Annotated[Path | None, typer.Option(help="Where results go. Default ./runs/TIMESTAMP.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value of the file to replace, such as card.training.rounds=2."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in --out with what is not done yet.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Cells that run at once, each in a process of its own.")] = 1,
    engine: Annotated[str | None, typer.Option(help="in-process, or ray: Flower's own simulation engine.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="The folder that holds the data set as published.")] = None,
    audit: Annotated[
        Path | None, typer.Option(help="The --out of an audit, which the report then shows beside its results.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print every cell's result at the end.")] = False,
) -> None:
    """Run an experiment: every combination of what its file varies."""
    from fedprofile.simulations.experiment import load_experiment
    from fedprofile.simulations.sweep import run_experiment

    if resume and out is None:
        raise ConfigError("--resume needs --out, the folder of the experiment to go on with.")
    overrides = list(override or [])
    overrides += [] if engine is None else [f"engine.kind={engine}"]
    overrides += [] if data_dir is None else [f"data.data_dir={data_dir}"]
    run_experiment(
        load_experiment(experiment, overrides),
        out=out,
        resume=resume,
        jobs=jobs,
        json_output=json_output,
        command=_command(),
        audit=audit,
    )


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Where everything goes; must be empty. Default ./runs/TIMESTAMP.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="A data set of docs/datasets.md, such as online-shoppers. Default: the built-in population."),
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


@app.command()
def audit(
    file: Annotated[Path, typer.Argument(metavar="AUDIT", help="Its TOML file.")] = AUDIT,
    out: Annotated[
        Path | None,
        typer.Option(help="Where report.html, report.md and audit.json go; must be empty. Default ./runs/TIMESTAMP."),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print audit.json at the end.")] = False,
) -> None:
    """Attack a federation as its own server could, and fail where it leaks more than its ledgers claim."""
    from fedprofile.simulations.audit.command import run_audit
    from fedprofile.simulations.audit.spec import load_audit

    run_audit(load_audit(file), out=out, json_output=json_output, command=_command())


def _command() -> str:
    return shlex.join(["python", "simulate.py", *sys.argv[1:]])


def main() -> None:
    """Run the command line and leave with its exit code."""
    given = sys.argv[1:]
    if not given or given[0] not in ("run", "demo", "audit", "--help"):
        given = ["run", *given]
    run_command(app, "simulate.py", given)
