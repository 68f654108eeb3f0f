"""`python simulate.py EXPERIMENT.toml`: all cells of an experiment, each stored when it is done.

OUT/experiment.json           what was asked for; `--resume` goes on with the same and nothing else
OUT/cells/NAME.json           one finished cell
OUT/cells.parquet             one row for each finished cell
OUT/report.html, report.md    what came out, for people; and every number of it in results.parquet
OUT/tracking/                 each cell's rounds for TensorBoard, MLflow or Weights & Biases, as `[tracking]` says
OUT/predictions/, OUT/cache/  each record's prediction, and activations of the frozen layers: personal data, deleted
                              when the experiment is over
"""

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedprofile.common.errors import ConfigError
from fedprofile.server.trackers import usable
from fedprofile.simulations.analysis import check_conditions, write_analysis
from fedprofile.simulations.audit.shown import read_audit
from fedprofile.simulations.cells import CellOutcome, CellRunner, check_cell, read_scenario
from fedprofile.simulations.experiment import Cell, Experiment, as_json
from fedprofile.simulations.report.metrics import UTILITY


def run_experiment(
    experiment: Experiment,
    *,
    out: Path | None,
    resume: bool,
    jobs: int,
    json_output: bool,
    command: str = "python simulate.py",
    audit: Path | None = None,
) -> None:
    """Run what is not done yet of an experiment, and write its report; see the command's options.

    Args:
        experiment: Which.
        out: Where results go.
        resume: Go on there.
        jobs: Cells that run at once.
        json_output: Print every cell's result at the end.
        command: What the report says that it was made with.
        audit: The folder of an audit that the report shows.

    Raises:
        ConfigError: A cell's settings cannot be used, the audit cannot be read, or the folder is another
            experiment's; nothing was run.
    """
    root = out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    _check_folder(root, experiment, resume)
    shown = None if audit is None else read_audit(audit)
    cells = experiment.cells()
    scenario = read_scenario(experiment.data)
    if jobs > 1 and experiment.engine.cache == "lazy":
        raise ConfigError("--jobs with engine.cache='lazy': processes cannot fill one cache; use 'full' or 'none'.")
    for cell in cells:
        check_cell(cell, scenario)
        if cell.arm != "federated" and experiment.engine.kind == "ray":
            raise ConfigError(f"arm='{cell.arm}' with engine 'ray': runs in process only; leave --engine out.")
    check_conditions(cells, scenario)
    console = Console(stderr=json_output, soft_wrap=True)
    tracked = experiment.model_copy(update={"tracking": usable(experiment.tracking, console.print)})
    _open(root, experiment)
    analysed = (root / "results.parquet").is_file()
    waiting = [
        cell for cell in cells if not (_file(root, cell).is_file() and (analysed or _predictions(root, cell).is_file()))
    ]
    console.print(
        f"Experiment '{experiment.name}': {len(cells)} cells, {len(waiting)} to run, in {root}. A simulation on real "
        "data is outside every ledger: its exact figures are not private."
    )
    progress = _Progress(console, len(cells), len(cells) - len(waiting))
    try:
        with progress:
            for cell, outcome in _outcomes(tracked, waiting, root, jobs, progress):
                outcome.predictions.to_parquet(_predictions(root, cell), index=False)
                result = {"experiment": experiment.name, **outcome.result}
                _write(_file(root, cell), json.dumps(result, indent=1) + "\n")
                progress.done(cell, outcome.result)
        if not analysed:
            found = [json.loads(_file(root, cell).read_text(encoding="utf-8")) for cell in cells]
            frames = [pd.read_parquet(_predictions(root, cell)) for cell in cells]
            write_analysis(experiment, list(zip(cells, found, frames, strict=True)), root, command, shown)
    except BaseException:
        # Whatever it was, a person has to know that personal data is left for `--resume`.
        done = sum(_file(root, cell).is_file() for cell in cells)
        console.print(
            f"\nstopped; {done} of {len(cells)} cells are done. Go on with the same command and "
            "--resume; until then its folders cache/ and predictions/ hold personal data."
        )
        raise
    finally:
        _write_table(root, cells)
    for personal in ("cache", "predictions"):
        shutil.rmtree(root / personal, ignore_errors=True)
    console.print(f"All cells are done: {root}/report.html, report.md, results.parquet and cells.parquet.")
    if json_output:
        print(json.dumps([json.loads(_file(root, cell).read_text(encoding="utf-8")) for cell in cells], indent=1))


def _check_folder(root: Path, experiment: Experiment, resume: bool) -> None:
    """Refuse a folder that holds something else, before cells are checked, which takes seconds."""
    asked = as_json(experiment.model_dump())
    file = root / "experiment.json"
    if resume:
        if not file.is_file():
            raise ConfigError(f"{root}: holds no experiment to resume; name its folder with --out.")
        if json.loads(file.read_text(encoding="utf-8")) != asked:
            raise ConfigError(f"{root}: holds another experiment than this file says; give another --out to start it.")
    elif root.exists() and not root.is_dir():
        raise ConfigError(f"{root}: is not a folder; give another --out.")
    elif root.exists() and any(root.iterdir()):
        raise ConfigError(f"{root}: is not empty; give another --out, or go on there with --resume.")


def _open(root: Path, experiment: Experiment) -> None:
    """Make the folder, or go on in it."""
    (root / "cells").mkdir(parents=True, exist_ok=True)
    (root / "predictions").mkdir(mode=0o700, exist_ok=True)
    for leftover in (root / "cells").glob("*.part"):
        leftover.unlink()
    _write(root / "experiment.json", json.dumps(as_json(experiment.model_dump()), indent=1) + "\n")


def _outcomes(
    experiment: Experiment, cells: Sequence[Cell], root: Path, jobs: int, progress: "_Progress"
) -> Iterator[tuple[Cell, CellOutcome]]:
    """Each cell with what it came to, as it is done."""
    runner = CellRunner(experiment, root / "cache", results=root)
    if jobs == 1 or len(cells) < 2:
        for cell in cells:
            progress.start(cell)
            yield cell, runner.run(cell, progress.round)
        return
    # One process may write a cache: this one, before the others begin.
    for cell in cells:
        runner.fill(runner.prepare(cell))
    del runner
    threads = max(1, torch.get_num_threads() // jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _begin_process, (experiment, root, threads)) as pool:
        futures = {pool.submit(_run_in_process, cell): cell for cell in cells}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_runner: CellRunner | None = None
"""Of a process of `--jobs`."""


def _begin_process(experiment: Experiment, root: Path, threads: int) -> None:
    global _runner
    torch.set_num_threads(threads)
    _runner = CellRunner(experiment, root / "cache", results=root)


def _run_in_process(cell: Cell) -> CellOutcome:
    assert _runner is not None
    return _runner.run(cell, lambda done, rounds: None)


def _file(root: Path, cell: Cell) -> Path:
    return root / "cells" / f"{cell.name}.json"


def _predictions(root: Path, cell: Cell) -> Path:
    return root / "predictions" / f"{cell.name}.parquet"


def _write(path: Path, text: str) -> None:
    """As one step: after a kill there is the old file or the new one."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _write_table(root: Path, cells: Sequence[Cell]) -> None:
    """One row for each finished cell, in the experiment's order."""
    rows = []
    for cell in cells:
        if _file(root, cell).is_file():
            found = json.loads(_file(root, cell).read_text(encoding="utf-8"))
            rows.append(
                {
                    "cell": found["cell"],
                    **{key: str(value) if key == "epsilon" else value for key, value in found["settings"].items()},
                    "noise": found["noise"],
                    "tenants": len(found["tenants"]),
                    "rounds": found["rounds"],
                    **found["exact_metrics"],
                    "epsilon_spent": max((t["spent"]["epsilon"] for t in found["tenants"] if t["spent"]), default=None),
                    "delta": max((t["spent"]["delta"] for t in found["tenants"] if t["spent"]), default=None),
                    "adapter_sha256": found["adapter_sha256"],
                    **{name: found["timing"][name] for name in ("federation_s", "round_s", "peak_mib")},
                }
            )
    if rows:
        part = root / "cells.parquet.part"
        pd.DataFrame(rows).to_parquet(part, index=False)
        part.replace(root / "cells.parquet")


class _Progress:
    """Bars of cells and of the running cell's rounds on a terminal; one line a cell elsewhere."""

    def __init__(self, console: Console, cells: int, done: int) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._cells = self._bars.add_task("cells", total=cells, completed=done)
        self._rounds = self._bars.add_task("rounds", total=None)

    def start(self, cell: Cell) -> None:
        """A cell begins."""
        self._bars.reset(self._rounds, total=None, description=cell.name)

    def round(self, done: int, rounds: int) -> None:
        """A round is done."""
        self._bars.update(self._rounds, completed=done, total=rounds)

    def done(self, cell: Cell, result: dict[str, Any]) -> None:
        """A cell is done."""
        self._bars.advance(self._cells)
        exact = result["exact_metrics"]
        names = [name for name in UTILITY if exact.get(name) is not None]
        figure = f"exact {names[0]} {exact[names[0]]:.3f}" if names else "no evaluation users"
        timing = result["timing"]
        self._bars.console.print(
            f"{cell.name}: {figure}; {result['rounds']} rounds of {timing['round_s']:.2f} s, "
            f"peak {timing['peak_mib']:.0f} MiB, cache {timing['cache_mib']:.0f} MiB."
        )

    def __enter__(self) -> "_Progress":
        self._bars.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._bars.stop()
