"""What an experiment tracks: the noised figures of each cell, in files, by processes that must not call anybody."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.simulations.conftest import WriteExperiment
from tests.tracked import read_runs

SECRET = "not-to-be-written"

CLOSED = """
import os, runpy, socket, sys
def watch(event, arguments):
    host = None
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    if host not in (None, "", "127.0.0.1", "::1", "localhost", b"127.0.0.1", b"localhost"):
        os.write(2, f"{event} {host}".encode())
        os._exit(99)
sys.addaudithook(watch)
socket.gethostname = lambda: "not-to-be-written.example"
print("not-to-be-written")
program = sys.argv.pop(1)
runpy.run_path(program, run_name="__main__")
"""
"""Ends the process at the first look at another host; what is not Python is seen by the proxy that it is given."""

ROOT = Path(__file__).parents[2]


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a proxy that takes no request, and the requests that it was given."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    heard.append(connection.recv(1000))

        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", heard
        server.shutdown(socket.SHUT_RDWR)


def _closed(proxy: str, program: Path, *arguments: object, where: Path) -> subprocess.CompletedProcess[str]:
    names = ("http_proxy", "https_proxy", "all_proxy")
    proxies = {name: proxy for lower in names for name in (lower, lower.upper())} if proxy else {}
    secret = dict.fromkeys(("USER", "LOGNAME", "USERNAME", "WANDB_EMAIL", "SOME_PASSWORD"), SECRET)
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_CURRENT_TEST")}
    return subprocess.run(
        [sys.executable, "-c", CLOSED, str(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=where,
        env=kept | proxies | secret | {"OMP_NUM_THREADS": "1", "HOME": str(where / "home")},
    )


def test_a_call_to_anybody_would_be_seen(proxy: tuple[str, list[bytes]], tmp_path: Path) -> None:
    program = tmp_path / "calls.py"
    program.write_text("import urllib.request; urllib.request.urlopen('http://example.com/', timeout=5)")
    assert _closed("", program, where=tmp_path).returncode == 99
    address, heard = proxy
    assert _closed(address, program, where=tmp_path).returncode == 1
    assert heard and b"example.com" in heard[0]


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow", "wandb"])
def test_the_noised_figures_of_each_cell_are_tracked_and_nobody_is_called(
    kind: str, write_experiment: WriteExperiment, proxy: tuple[str, list[bytes]], tmp_path: Path
) -> None:
    path = write_experiment(tracking={"kind": kind}, sweep={"epsilon": [float("inf"), 8.0]})
    git = tmp_path / ".git"
    for folder in ("objects", "refs"):
        (git / folder).mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "config").write_text(f'[remote "origin"]\n\turl = https://{SECRET}.example/it\n')
    (tmp_path / "home").mkdir()
    address, heard = proxy
    out = tmp_path / "out"
    done = _closed(address, ROOT / "simulate.py", path, "--out", out, where=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not heard
    assert not [file for file in (tmp_path / "home").rglob("*") if kind in str(file).lower()]

    cells = {file.stem: json.loads(file.read_text()) for file in (out / "cells").glob("*.json")}
    runs = {run.name: run for run in read_runs(kind, out / "tracking")}
    assert runs.keys() == cells.keys() == {"epsilon-inf", "epsilon-8.0"}
    for name, cell in cells.items():
        run, noised = runs[name], cell["noised_metrics"]
        metrics = {
            figure: values for figure, values in run.figures.items() if figure[0].endswith(("value", "low", "high"))
        }
        expected = {
            (f"evaluate/{metric}/{part}", int(at)): [pytest.approx(number, rel=1e-6)]
            for at, found in noised.items()
            for metric, interval in found.items()
            for part, number in (interval or {}).items()
        }
        assert metrics == expected
        names = {figure.split("/")[1] for figure, _ in run.figures.keys() - metrics.keys()}
        assert names == {"asked", "answered", "refused", "dropped", "seconds", "bytes_up", "bytes_down"}
        assert run.figures["train/answered", 2] == [len(cell["tenants"])]
        promises = {note: text for note, text in run.notes.items() if note.startswith("promise/")}
        assert run.notes.keys() - promises.keys() == {"federation", "card", "base", "rounds"}
        assert len(promises) == (len(cell["tenants"]) if cell["noise"] else 0)
        for text in promises.values():
            assert text.startswith("epsilon=8 (delta=") and text.endswith("model=local, accountant=prv)")
    for file in (out / "tracking").rglob("*"):
        assert SECRET not in file.name, file
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def test_tracking_changes_no_result(write_experiment: WriteExperiment, tmp_path: Path) -> None:
    hashes = []
    for kind in ("none", "wandb"):
        out = tmp_path / kind
        path = write_experiment(tracking={"kind": kind})
        done = _closed("", ROOT / "simulate.py", path, "--out", out, where=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        hashes.append(json.loads((out / "cells" / "only.json").read_text())["adapter_sha256"])
    assert hashes[0] == hashes[1]
    assert not (tmp_path / "none" / "tracking").exists()
