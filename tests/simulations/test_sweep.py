"""Whole experiments by the command line: reproducible, stopped and resumed, in several processes, on Ray."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.simulations.conftest import WriteExperiment

from fedprofile.simulations.cells import CellRunner
from fedprofile.simulations.experiment import as_json, load_experiment

ROOT = Path(__file__).parents[2]


def _simulate(*arguments: object, fails: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, ROOT / "simulate.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == fails, done.stdout + done.stderr
    return done


def _cells(out: Path) -> dict[str, dict[str, Any]]:
    """Finished cells without what differs between two runs of the same."""
    found = {}
    for path in sorted((out / "cells").glob("*.json")):
        cell = json.loads(path.read_text())
        del cell["timing"], cell["machine"]
        found[cell["cell"]] = cell
    return found


SWEEP = {"epsilon": [float("inf"), 8.0], "seed": [0, 1]}


def test_a_sweep_is_reproducible_also_after_a_stop_and_in_several_processes(
    write_experiment: WriteExperiment, tmp_path: Path
) -> None:
    path = write_experiment(sweep=SWEEP)
    done = _simulate(path, "--out", tmp_path / "whole", "--json")
    whole = _cells(tmp_path / "whole")
    assert len(whole) == 4 and len({cell["adapter_sha256"] for cell in whole.values()}) == 4
    assert [cell["cell"] for cell in json.loads(done.stdout)] == [
        *("epsilon-inf_seed-0", "epsilon-inf_seed-1", "epsilon-8.0_seed-0", "epsilon-8.0_seed-1")
    ]
    for cell in whole.values():
        assert cell["rounds"] == 2 and cell["reason"] == "rounds" and not cell["refused"] and not cell["dropped"]
        for tenant in cell["tenants"]:
            spent = tenant["spent"]
            assert (spent is None) == (not cell["noise"])
            assert spent is None or (0 < spent["epsilon"] <= 8.0 and spent["unit"] == "user" and spent["delta"] > 0)
    for personal in ("cache", "predictions"):
        assert not (tmp_path / "whole" / personal).exists(), "it holds personal data"

    stopped = tmp_path / "stopped"
    # A process in the background may have inherited that Ctrl-C is ignored; one at a terminal has not.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, ROOT / "simulate.py", path, "--out", stopped],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    finally:
        signal.signal(signal.SIGINT, inherited)
    while not list((stopped / "cells").glob("*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output = process.communicate()[0]
    assert process.returncode == 130
    assert "Go on with the same command and --resume" in output and "Traceback" not in output
    first = {name: (stopped / "cells" / f"{name}.json").stat().st_mtime_ns for name in _cells(stopped)}
    assert 1 <= len(first) < 4
    _simulate(path, "--out", stopped, "--resume")
    assert _cells(stopped) == whole
    assert all((stopped / "cells" / f"{name}.json").stat().st_mtime_ns == at for name, at in first.items())

    _simulate(path, "--out", tmp_path / "jobs", "--jobs", 2)
    assert _cells(tmp_path / "jobs") == whole

    results = [pd.read_parquet(tmp_path / run / "results.parquet") for run in ("whole", "stopped", "jobs")]
    assert results[0].equals(results[1]) and results[0].equals(results[2])
    overall = results[0].query("kind == 'level' and scope == 'overall' and metric == 'accuracy'")
    for epsilon in (float("inf"), 8.0):
        cells = [cell for cell in whole.values() if cell["noise"] == (epsilon != float("inf"))]
        [row] = overall[overall["epsilon"] == epsilon].to_dict("records")
        assert row["seeds"] == 2 and row["low"] <= row["value"] <= row["high"]
        assert row["value"] == pytest.approx(np.mean([cell["exact_metrics"]["accuracy"] for cell in cells]))
    prices = results[0].query("kind == 'price' and scope == 'overall' and metric == 'accuracy'")
    assert list(prices["value"]) == pytest.approx(
        [float(overall["value"][overall["epsilon"] == 8.0].iloc[0] - overall["value"][overall["epsilon"] > 9].iloc[0])]
    )
    report = (tmp_path / "whole" / "report.html").read_text(encoding="utf-8")
    assert "price of privacy" in report.lower() and "add-or-remove-one" in report

    table = pd.read_parquet(tmp_path / "stopped" / "cells.parquet")
    assert list(table["cell"]) == list(dict.fromkeys(cell["cell"] for cell in json.loads(done.stdout)))
    assert list(table["adapter_sha256"]) == [whole[name]["adapter_sha256"] for name in table["cell"]]
    assert list(table["epsilon"]) == ["inf", "inf", "8.0", "8.0"]


def test_an_error_also_says_that_personal_data_is_left(write_experiment: WriteExperiment, tmp_path: Path) -> None:
    path, out = write_experiment(), tmp_path / "out"
    # A cell's predictions cannot be written where a folder is in their way.
    (out / "predictions" / "only.parquet").mkdir(parents=True)
    (out / "experiment.json").write_text(json.dumps(as_json(load_experiment(path).model_dump())))
    done = _simulate(path, "--out", out, "--resume", fails=1)
    assert "IsADirectoryError" in done.stderr
    assert "0 of 1 cells are done" in done.stdout
    assert "until then its folders cache/ and predictions/ hold personal data" in " ".join(done.stdout.split())
    (out / "predictions" / "only.parquet").rmdir()
    _simulate(path, "--out", out, "--resume")
    assert not (out / "cache").exists() and not (out / "predictions").exists()


def _run(path: Path, *overrides: str) -> dict[str, Any]:
    experiment = load_experiment(path, overrides)
    [cell] = experiment.cells()
    return CellRunner(experiment).run(cell, lambda done, rounds: None).result


def test_what_the_engine_runs_on_changes_no_number(write_experiment: WriteExperiment) -> None:
    """Caches of any kind give the same bits; another block or pass adds in another order."""
    path = write_experiment()
    stored = [_run(path, f"engine.{engine}") for engine in ("cache=full", "cache=lazy", "cache_mib=1")]
    assert len({cell["adapter_sha256"] for cell in stored}) == 1
    # Without a cache activations are not rounded to 16 bits.
    others = [_run(path, f"engine.{engine}") for engine in ("cache=none", "block=1", "tokens_at_once=200")]
    expected = _numbers(stored[0]["exact_metrics"])
    losses = [cell["exact_metrics"]["log_loss"] for cell in [stored[0], *others]]
    assert losses[1:] == pytest.approx([losses[0]] * len(others), rel=1e-3)
    # Of the few users two may change places in the ranking.
    assert all(_numbers(cell["exact_metrics"]) == pytest.approx(expected, rel=0.02) for cell in others)
    # A base in 16 bits is another base, if a near one.
    short = _run(path, "engine.dtype=bfloat16")
    assert short["adapter_sha256"] != stored[0]["adapter_sha256"]
    assert _numbers(short["exact_metrics"]) == pytest.approx(expected, rel=0.05)
    sizes = [cell["timing"]["cache_mib"] for cell in stored]
    assert 0 < sizes[2] <= 1 and others[0]["timing"]["cache_mib"] == 0


def test_a_cells_tenant_file_decides_who_is_evaluated(write_experiment: WriteExperiment) -> None:
    cell = _run(write_experiment(), "tenant.privacy.evaluation_users=0.5", "card.training.rounds=1")
    users = [(tenant["evaluation_users"], tenant["training_users"]) for tenant in cell["tenants"]]
    assert 0.4 < sum(one for one, _ in users) / sum(map(sum, users)) < 0.6


def test_ray_gives_the_numbers_of_the_process(write_experiment: WriteExperiment, tmp_path: Path) -> None:
    path = write_experiment(engine={"cache": "none"})
    _simulate(path, "--out", tmp_path / "here")
    _simulate(path, "--out", tmp_path / "ray", "--engine", "ray")
    [here], [ray] = _cells(tmp_path / "here").values(), _cells(tmp_path / "ray").values()
    assert [tenant["name"] for tenant in ray["tenants"]] == [tenant["name"] for tenant in here["tenants"]]
    for one, other in zip(here["tenants"], ray["tenants"], strict=True):
        assert one["spent"] == other["spent"] and one["training_users"] == other["training_users"]
        assert _numbers(other["exact_metrics"]) == pytest.approx(_numbers(one["exact_metrics"]), rel=1e-4)
    assert _numbers(ray["exact_metrics"]) == pytest.approx(_numbers(here["exact_metrics"]), rel=1e-4)
    assert ray["noised_metrics"].keys() == here["noised_metrics"].keys()


def _numbers(metrics: dict[str, Any]) -> list[float]:
    assert all(value is not None for value in metrics.values())
    return list(np.array(list(metrics.values()), dtype=float))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--set", "sweep.rounds=[1]"], "cannot be varied"),
        (["--set", "card.training.round=1"], "did you mean 'rounds'"),
        (["--set", "sweep.epsilon=[3, 3.0]"], "are the same one"),
        (["--set", "tenant.privacy.clip=1"], "did you mean 'clip_norm'"),
        (["--set", "engine.device=abacus"], "engine.device='abacus' is not here"),
        (["--set", "data.dataset=nothing", "--data-dir", "/"], "choose from"),
        (["--jobs", "2", "--set", "engine.cache=lazy"], "cannot fill one cache"),
        (["--engine", "ray", "--set", 'sweep.arm=["alone"]'], "runs in process only"),
        (
            ["--set", "mitigation.kind=thresholds", "--set", 'sweep.arm=["alone"]'],
            "needs arm='federated' and a binary card",
        ),
        (["--set", "mitigation.kind=group-rates", "--set", "mitigation.group_shares.x=0.5"], "is no group of"),
        (["--resume"], "--resume needs --out"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_runs(
    options: list[str], said: str, write_experiment: WriteExperiment, tmp_path: Path
) -> None:
    out = [] if options == ["--resume"] else ["--out", tmp_path / "out"]
    done = _simulate(write_experiment(), *out, *options, fails=2)
    assert said in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("out/cells/*"))


def test_a_folder_of_another_experiment_is_left_alone(write_experiment: WriteExperiment, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "cells").mkdir(parents=True)
    (out / "mine.txt").write_text("kept")
    path = write_experiment()
    assert "is not empty" in _simulate(path, "--out", out, fails=2).stderr
    assert "holds no experiment to resume" in _simulate(path, "--out", out, "--resume", fails=2).stderr
    assert "is not a folder" in _simulate(path, "--out", out / "mine.txt", fails=2).stderr
    # What is cheap to see is said first, before every cell's noise is solved for.
    assert "is not empty" in _simulate(path, "--out", out, "--set", "tenant.privacy.clip=1", fails=2).stderr
    assert (out / "mine.txt").read_text() == "kept"
    (out / "experiment.json").write_text('{"name": "other"}')
    assert "holds another experiment" in _simulate(path, "--out", out, "--resume", fails=2).stderr
