"""A real federation on loopback: one server and its tenants as processes, with TLS, keys and a tiny random base."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedprofile.client.agreement import agree
from fedprofile.client.directory import TenantDirectory
from fedprofile.client.enrolment import accept_invite
from fedprofile.client.registry import Registry
from fedprofile.client.segments import SegmentPlan, plan_segment
from fedprofile.server.directory import ServerDirectory
from fedprofile.server.enrolment import enroll_tenant, invite_tenant, read_enrolment, write_invite
from fedprofile.server.setup import make_directory

BIN = Path(sys.executable).parent
ODD_CLIENT = Path(__file__).with_name("odd_client.py")
PATIENCE = 600.0
"""Seconds after which a test gives up; nothing here is timed."""


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()


def write_visits(path: Path, users: int, seed: int) -> None:
    """Generated visits whose label depends on the numeric column."""
    draw = random.Random(seed)
    lines = ["who,when,month,visits,device,action,item,where,bought"]
    for user in range(users):
        for day in range(draw.randint(1, 3)):
            visits = draw.randint(0, 10)
            bought = "yes" if draw.random() < visits / 10 else "no"
            lines.append(
                f"user{user:04d},2026-01-{day + 1:02d},w{draw.randint(0, 11)},{visits},"
                f"{draw.choice(['phone', 'desk'])},viewed,{draw.choice(['shoes', 'books', 'games'])},"
                f"{draw.choice(['north', 'south', 'east'])},{bought}"
            )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


class Federation:
    """Starts, watches and kills the processes of one federation.

    Args:
        root: Where `server/` and `tenants/NAME/` are made.
        base: The base model's folder.
        card: The federation card as plain data.
        by_hand: Lay it out with the commands that operator and tenants type, instead of with what these call, which
            saves the seconds that each of them takes to load.
    """

    def __init__(self, root: Path, base: Path, card: dict[str, Any], by_hand: bool = False) -> None:
        self.root, self.base, self.card, self.by_hand = root, base, card, by_hand
        self.server_dir = root / "server"
        self.environment = {**os.environ, "XDG_STATE_HOME": str(root / "state"), "OMP_NUM_THREADS": "1"}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._plans: dict[str, SegmentPlan] = {}
        self.public, self.admin, self.health = free_ports(3)
        if by_hand:
            self.cli(
                "flower-server", "init", self.server_dir, "--host", "127.0.0.1", "--port", self.public,
                "--admin-port", self.admin, "--health-port", self.health,
                "--base", base, "--base-id", card["base"]["id"],
            )  # fmt: skip
        else:
            make_directory(
                self.server_dir,
                host="127.0.0.1",
                listen=None,
                port=self.public,
                admin_port=self.admin,
                health_port=self.health,
                name=card["name"],
                base=base,
                base_id=card["base"]["id"],
            )
        (self.server_dir / "federation.toml").write_text(tomli_w.dumps(card), encoding="utf-8")

    def cli(self, program: str, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and check its exit code."""
        run = subprocess.run(
            [BIN / program, *map(str, arguments)],
            capture_output=True, text=True, env=self.environment, check=False, timeout=PATIENCE,
        )  # fmt: skip
        assert run.returncode == code, f"{program} {arguments}: {run.returncode}\n{run.stdout}\n{run.stderr}"
        return run

    def tenant_dir(self, name: str) -> Path:
        """The directory of a tenant."""
        return self.root / "tenants" / name

    def tenant_file(self, name: str, **sections: Any) -> dict[str, Any]:
        """A tenant file as plain data; sections can be overridden."""
        data: dict[str, Any] = {
            "source": {"kind": "csv", "path": "visits.csv"},
            "columns": {"user": "who", "time": "when", "label": "bought", "group": "where"},
            "population": {"name": name, "declared_users": 60, "ledger": f"../../populations/{name}.sqlite"},
            "budget": {"epsilon": 8.0, "delta": 1e-5},
            "run": {"epsilon": 8.0, "delta": 1e-5},
            "privacy": {"sample_rate": 0.5},
            "policy": {"reply_every": 0.25},
            "base": {"path": str(self.base)},
        }
        for section, values in sections.items():
            data[section] = {**data.get(section, {}), **values}
        return data

    def join(self, name: str, users: int = 60, enroll: bool = True, **sections: Any) -> Path:
        """Invite a tenant, have it join, and enroll it."""
        directory, invite = self.tenant_dir(name), self.server_dir / f"{name}.invite"
        server, place = ServerDirectory(self.server_dir), TenantDirectory(directory)
        if self.by_hand:
            self.cli("flower-server", "invite", name, "--dir", self.server_dir)
            self.cli("flower-client", "join", invite, "--dir", directory)
        else:
            ca = server.ca.read_bytes()
            write_invite(invite_tenant(server.tenants, name, server.card(), server.settings().address, ca), invite)
            accept_invite(place, invite)
        write_visits(directory / "visits.csv", users, seed=len(name) + users)
        place.tenant_file.write_text(tomli_w.dumps(self.tenant_file(name, **sections)), encoding="utf-8")
        if self.by_hand:
            self.cli("flower-client", "join", "--dir", directory, "--yes")
            if enroll:
                self.cli("flower-server", "enroll", directory / f"{name}.enroll", "--dir", self.server_dir)
            return directory
        plan = self._plan(place)
        tenant = place.read_tenant_file()
        registry = Registry(self.root / "state" / "fedprofile" / "populations")
        _, enrolment = agree(
            place, invite=place.read_invite(), card=server.card(), tenant=tenant, plan=plan, registry=registry
        )
        if enroll:
            noise = plan.evaluation_noise_multiplier
            enroll_tenant(server.tenants, read_enrolment(enrolment), server.card(), noise)
        return directory

    def _plan(self, place: TenantDirectory) -> SegmentPlan:
        """Solving takes seconds, and most tenants of a test have the same settings."""
        tenant = place.read_tenant_file()
        key = f"{tenant.run} {tenant.privacy} {tenant.life_delta}"
        if key not in self._plans:
            self._plans[key] = plan_segment(place.read_invite().read_card(), tenant)
        return self._plans[key]

    def set_patience(self, seconds: float) -> None:
        """For how long the server waits for a tenant that has left."""
        path = ServerDirectory(self.server_dir).settings_file
        settings = tomllib.loads(path.read_text()) | {"patience": seconds}
        path.write_text(tomli_w.dumps(settings), encoding="utf-8")

    def start_server(self) -> subprocess.Popen[bytes]:
        """Start the server; it goes on where it was."""
        return self._start("server", [BIN / "flower-server", "start", "--dir", self.server_dir])

    def start_client(self, name: str, *options: object) -> subprocess.Popen[bytes]:
        """Start a tenant's client."""
        return self._start(name, [BIN / "flower-client", "start", "--dir", self.tenant_dir(name), *options])

    def start_odd_clients(self, **modes: str) -> subprocess.Popen[bytes]:
        """Start a process, named "odd", that takes the place of some tenants' clients; see `odd_client`."""
        arguments = [part for name, mode in modes.items() for part in (self.tenant_dir(name), mode)]
        return self._start("odd", [sys.executable, ODD_CLIENT, *arguments])

    def _start(self, name: str, command: list[Any]) -> subprocess.Popen[bytes]:
        with (self.root / f"{name}.out").open("ab") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=self.environment)
        self.processes[name] = process
        return process

    def kill(self, name: str) -> None:
        """Kill -9."""
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def output(self, name: str) -> str:
        """What a process has printed so far."""
        path = self.root / f"{name}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def history(self) -> list[dict[str, Any]]:
        """The server's finished rounds."""
        path = self.server_dir / "state" / "history.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def trained(self) -> list[dict[str, Any]]:
        """The finished training rounds."""
        return [entry for entry in self.history() if entry["kind"] == "train"]

    def budget(self, name: str) -> dict[str, Any]:
        """What `flower-client budget --json` prints."""
        run = self.cli("flower-client", "budget", "--dir", self.tenant_dir(name), "--json")
        return dict(json.loads(run.stdout))

    def wait_until(self, what: str, condition: Callable[[], object]) -> None:
        """Wait for something to become true; where it does not, or a process fails, fail with everybody's output."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            failed = [name for name, process in self.processes.items() if (process.poll() or 0) > 0]
            if failed or time.monotonic() > deadline:
                outputs = "\n".join(f"--- {name}\n{self.output(name)}" for name in self.processes)
                raise AssertionError(f"waited in vain for: {what} (failed: {failed})\n{outputs}")
            time.sleep(0.05)

    def finish(self, *names: str) -> None:
        """Wait for processes to end by themselves with exit code 0."""
        for name in names:
            self.wait_until(f"{name} to end", partial(self._ended, name))
            assert self.processes[name].returncode == 0, self.output(name)

    def _ended(self, name: str) -> bool:
        return self.processes[name].poll() is not None

    def stop(self) -> None:
        """End what still runs."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()


Make = Callable[..., Federation]


@contextmanager
def _federations(root: Path, base: Path, card_data: Callable[..., dict[str, Any]]) -> Iterator[Make]:
    made: list[Federation] = []

    def make(by_hand: bool = False, **sections: Any) -> Federation:
        made.append(Federation(root / f"federation{len(made)}", base, card_data(**sections), by_hand))
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            one.stop()


@pytest.fixture
def federation(tmp_path: Path, tiny_base: Path, card_data: Callable[..., dict[str, Any]]) -> Iterator[Make]:
    """A function that makes a federation over the tiny base; sections of the card can be overridden."""
    with _federations(tmp_path, tiny_base, card_data) as make:
        yield make


@pytest.fixture(scope="module")
def shared_federation(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, card_data: Callable[..., dict[str, Any]]
) -> Iterator[Make]:
    """The same for federations that several tests of a module look at."""
    with _federations(tmp_path_factory.mktemp("shared"), tiny_base, card_data) as make:
        yield make
