"""A tenant's directory with an adapter, and `flower-client serve` on it as a real process."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.client.test_commands import TENANT, invite_for, visits

from fedprofile.client.cli import app
from fedprofile.client.directory import TenantDirectory
from fedprofile.client.received import AdapterFolder
from fedprofile.client.site import load_model
from fedprofile.common.card import FederationCard
from fedprofile.common.cli import run_command
from fedprofile.common.enrolment import file_text
from fedprofile.common.messages import Arrays

JUDGEMENT = """
[judgement]
band = [0.4, 0.6]
replies = "replies.csv"
"""


@dataclass
class Served:
    """A process that serves.

    Args:
        process: Runs.
        http: Its address.
        grpc: Its address.
        token: What to show.
    """

    process: subprocess.Popen[str]
    http: str
    grpc: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.http, headers=self.headers, timeout=60, trust_env=False, **options)

    def profile(self, request: Any) -> Any:
        with self.client() as client:
            response = client.post("/profile", json=request)
        assert response.status_code == 200, response.text
        return response.json()["profile"]


def adapter(root: Path, round_number: int, seed: int = 0) -> Arrays:
    """Give a directory an adapter in which every array matters; the same for the same seed."""
    place = TenantDirectory(root)
    card = place.read_agreed_card()
    assert card is not None
    model, _ = load_model(card, place.read_tenant_file(), root)
    draw = np.random.default_rng(seed)
    arrays = {
        name: (array + 0.3 * draw.standard_normal(array.shape)).astype(np.float32)
        for name, array in model.initial_arrays().items()
    }
    AdapterFolder(place, card.hash).keep(arrays, round_number)
    return arrays


def join(root: Path, card: FederationCard, base: Path, edit: Callable[[str], str] = str) -> None:
    """Make a directory that has joined a card's federation."""
    root.parent.mkdir(parents=True, exist_ok=True)
    invite = root.parent / f"{root.name}.invite"
    invite.write_text(file_text(invite_for(card)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(root.parent / "state"))
        for arguments in ([str(invite)], ["--yes"]):
            with pytest.raises(SystemExit) as ended:
                run_command(app, "flower-client", ["join", *arguments, "--dir", str(root)])
            assert ended.value.code == 0
            (root / "tenant.toml").write_text(edit(TENANT.format(base=base)))
            (root / "visits.csv").write_text(visits())


@pytest.fixture(scope="session")
def directories(
    card_data: Callable[..., dict[str, Any]], tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with two federations over one population, with an adapter each: `buy` (binary, judged), `spend`."""
    folder = tmp_path_factory.mktemp("serving")

    def small(text: str) -> str:
        return text.replace("epsilon = 4.0", "epsilon = 2.0").replace("delta = 5e-5", "delta = 2e-5")

    join(folder / "buy", FederationCard.model_validate(card_data(name="buy")), tiny_base, small)
    spend = FederationCard.model_validate(
        card_data(
            name="spend",
            history={"record": "a visitor in {month}", "event": "{item}"},
            features={"numeric": [], "categorical": []},
        )
        | {"task": {"kind": "regression", "target": "visits", "low": 0, "high": 10}}
    )
    join(folder / "spend", spend, tiny_base, lambda text: small(text).replace('label = "bought"', 'label = "visits"'))
    with (folder / "buy" / "tenant.toml").open("a") as file:
        file.write(JUDGEMENT)
    (folder / "buy" / "replies.csv").write_text("label,reply\nyes,We hold it for you.\n")
    adapter(folder / "buy", 1, seed=1)
    adapter(folder / "spend", 2, seed=2)
    return folder


@pytest.fixture
def copies(directories: Path, tmp_path: Path) -> Path:
    """A copy of `directories` for one test."""
    return Path(shutil.copytree(directories, tmp_path / "serving"))


Serve = Callable[..., Served]


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """A function that starts `flower-client serve` and waits until it answers; all are ended after the module."""
    started: list[subprocess.Popen[str]] = []

    def start(*roots: Path, options: tuple[str, ...] = ()) -> Served:
        process = start_process(*roots, options=options)
        started.append(process)
        assert process.stdout is not None
        found = json.loads(_first_object(process))
        return Served(process, found["http"], found["grpc"], Path(found["token"]).read_text().strip())

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in started:
        process.communicate(timeout=60)


def start_process(*roots: Path, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """`flower-client serve` on free ports."""
    places = [part for root in roots for part in ("--dir", str(root))]
    ports = ("--port", "0", "--grpc-port", "0", "--threads", "1", "--json")
    command = [
        sys.executable,
        "-c",
        "from fedprofile.client.cli import main; main()",
        "serve",
        *places,
        *ports,
        *options,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def _first_object(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None and process.stderr is not None
    lines: list[str] = []
    while not lines or lines[-1] != "}\n":
        line = process.stdout.readline()
        if not line:
            raise AssertionError(process.stderr.read())
        lines.append(line)
    return "".join(lines)


def asked(seed: int = 0, events: int = 5) -> dict[str, Any]:
    """A request that both federations can read."""
    draw = random.Random(seed)
    row = {"time": "2026-02-01", "month": f"w{draw.randint(0, 9)}", "visits": draw.randint(0, 9), "device": "phone"}
    history = [
        {
            "time": f"2026-01-{draw.randint(1, 28):02d}",
            "action": draw.choice(["viewed", "bought", "searched"]),
            "item": draw.choice(["shoes", "books", "games"]),
        }
        for _ in range(events)
    ]
    return {"row": row, "events": history}
