"""How long a whole federation takes: Flower's Ray engine, a sequential Opacus loop, the same with a cache, the cohort.

    python benchmarks/simulation.py --tenants 32 --top-layers 2 --rounds 10 --engines ray,sequential,cached,cohort

Every engine does the same work: K tenants with 200 records of ragged text, one record a user, Poisson samples of 10 on
average, 5 steps of Adam a round with per-record clipping and noise, federated averaging, no evaluation. Each runs in
a process of its own, one after another, on all cores that this process may use.

    ray          Flower 1.41's own engine; the client builds model (transformers and PEFT alone), optimiser and Opacus's
                 PrivacyEngine in every message, as Flower's Opacus examples do; one actor a core
    sequential   one model and Opacus's hooks in this process, one tenant after another, the base run whole
    cached       the same, from cached activations of the frozen layers
    cohort       `python simulate.py`'s engine: server app, strategy, ledgers and all
    later        the cohort as a later cell of a sweep, whose cache is there

Memory is the proportional set size of the whole process tree, sampled; pages of the mapped cache are counted apart.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

ENGINES = ("ray", "sequential", "cached", "cohort", "later")


def main(
    tenants: Annotated[int, typer.Option(help="K.")] = 32,
    top_layers: Annotated[int, typer.Option(help="How many layers have LoRA, from the top.")] = 2,
    rounds: Annotated[int, typer.Option(help="Training rounds.")] = 10,
    engines: Annotated[str, typer.Option(help=f"Some of {','.join(ENGINES)}.")] = "ray,sequential,cached,cohort",
    pooling: Annotated[str, typer.Option(help="mean or last.")] = "mean",
    train: Annotated[str, typer.Option(help="AB or B.")] = "AB",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows there.")] = None,
) -> None:
    """Run every engine and print a table."""
    work: dict[str, Any] = {
        "tenants": tenants,
        "top_layers": top_layers,
        "rounds": rounds,
        "pooling": pooling,
        "train": train,
        "device": device,
    }
    rows = []
    with tempfile.TemporaryDirectory() as kept:
        for name in engines.split(","):
            if name not in ENGINES:
                raise typer.BadParameter(f"{name} is none of {', '.join(ENGINES)}")
            row = {"engine": name, **work, **_measured(name, work, Path(kept))}
            rows.append(row)
            numbers = " ".join(f"{key}={value}" for key, value in row.items() if key not in work)
            print(f"tenants={tenants} top_layers={top_layers} pooling={pooling} {numbers}", flush=True)
    if device == "cpu" and not _has_cuda():
        print("GPU: there is no CUDA device here, so nothing was measured on one; with one, use --device=cuda.")
    first = rows[0]
    for row in rows[1:]:
        ratios = {
            key: round(first[key] / row[key], 2) for key in ("wall_s", "cpu_s", "round_s", "peak_mib") if row[key]
        }
        print(f"{first['engine']} over {row['engine']}: " + " ".join(f"{key}={value}" for key, value in ratios.items()))
    if json_file is not None:
        json_file.write_text(json.dumps({"rows": rows, "machine": _machine()}, indent=1))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _measured(name: str, work: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run one engine in a process of its own and watch it."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "RAY_USAGE_STATS_ENABLED": "0"}
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.simulation_engines", name, json.dumps(work), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    watch = _Watch(process.pid, folder)
    output = process.communicate()[0]
    wall = time.monotonic() - started
    watch.stop()
    if process.returncode:
        raise SystemExit(f"{name} failed")
    found = json.loads(output.strip().splitlines()[-1])
    return {
        "wall_s": round(wall, 2),
        "cpu_s": round(watch.cpu, 2),
        "peak_mib": round(watch.peak),
        "cache_mib": round(watch.mapped),
        **found,
    }


class _Watch:
    """CPU seconds and peak memory of a process and all that it starts."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.peak = self.mapped = 0.0
        self._seconds: dict[tuple[int, float], float] = {}
        self._root, self._folder = psutil.Process(pid), str(folder)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def cpu(self) -> float:
        return sum(self._seconds.values())

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.5):
            total = mapped = 0.0
            try:
                processes = [self._root, *self._root.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
            for process in processes:
                try:
                    times = process.cpu_times()
                    self._seconds[process.pid, process.create_time()] = times.user + times.system
                    whole, cache = _proportional(process.pid, self._folder)
                except (psutil.NoSuchProcess, OSError):
                    continue
                total, mapped = total + whole - cache, mapped + cache
            self.peak, self.mapped = max(self.peak, total), max(self.mapped, mapped)


def _proportional(pid: int, folder: str) -> tuple[float, float]:
    """MiB of a process, each shared page split over those that share it; and those of files below a folder."""
    whole = cache = 0.0
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if line.startswith("Pss:"):
            size = int(line.split()[1]) / 1024
            whole += size
            cache += size if inside else 0.0
        elif "-" in line.split(" ", 1)[0]:
            inside = folder in line
    return whole, cache


def _machine() -> dict[str, Any]:
    import platform
    from importlib.metadata import version

    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": next(
            (
                line.split(":")[1].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if "model name" in line
            ),
            platform.processor(),
        ),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "opacus", "flwr")},
    }


if __name__ == "__main__":
    typer.run(main)
