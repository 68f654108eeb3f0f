"""A deployment on one machine: the server and every tenant as real processes, with TLS and enrolled keys.

Setting up calls the functions that the commands call; what runs afterwards are the commands themselves.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from fedprofile.client.agreement import agree
from fedprofile.client.directory import TenantDirectory
from fedprofile.client.enrolment import accept_invite
from fedprofile.client.ledger_summary import summary
from fedprofile.client.segments import plan_segment
from fedprofile.common.errors import ConfigError, FedprofileError
from fedprofile.common.evaluation_tables import evaluation_noise
from fedprofile.server.directory import ServerDirectory
from fedprofile.server.enrolment import enroll_tenant, invite_tenant, read_enrolment, write_invite
from fedprofile.server.history import read_lines
from fedprofile.server.setup import make_directory
from fedprofile.simulations.randomness import split_key
from fedprofile.simulations.scenarios import Scenario, ScenarioTenant

LOOK = 0.2
"""Seconds between two looks at the running processes."""


class RehearsalFailed(FedprofileError):
    """A process of the rehearsal ended with an error."""


@dataclass
class Rehearsal:
    """A federation that is laid out in a folder and can be run.

    Args:
        root: DIR.
        scenario: What is rehearsed.
        server: The server's directory, `DIR/server`.
        tenants: Each tenant's directory, `DIR/tenants/NAME`, by name.
    """

    root: Path
    scenario: Scenario
    server: ServerDirectory
    tenants: dict[str, TenantDirectory] = field(default_factory=dict)

    def ledger(self, name: str) -> Path:
        """The ledger of a tenant's population."""
        return self.root / "populations" / f"{name}.sqlite"

    def history(self) -> list[dict[str, Any]]:
        """What the server has asked so far."""
        return list(read_lines(self.server.history)) if self.server.history.exists() else []

    def spent(self, name: str) -> dict[str, Any]:
        """What `flower-client budget --json` shows."""
        return summary(self.ledger(name)).as_dict()


def prepare(root: Path, scenario: Scenario, *, epsilon: float | None, split_seed: int | None) -> Rehearsal:
    """Lay a federation out: certificates, keys, data, ledgers, enrolments.

    Args:
        root: Empty or not there yet.
        scenario: What is rehearsed.
        epsilon: Life and run budget of every tenant, instead of the scenario's.
        split_seed: Fixes which users are evaluation users.

    Returns:
        The rehearsal, ready to run.

    Raises:
        ConfigError: The folder is not empty.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigError(f"{root}: is not empty; choose another --out, or empty it.")
    port, admin_port, health_port = _free_ports(3)
    server = make_directory(
        root / "server",
        host="127.0.0.1",
        listen="127.0.0.1",
        port=port,
        admin_port=admin_port,
        health_port=health_port,
        name=scenario.card.name,
    )
    card = scenario.card
    server.federation.write_text(tomli_w.dumps(card.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    rehearsal = Rehearsal(root, scenario, server)
    for tenant in scenario.tenants:
        rehearsal.tenants[tenant.name] = _join(rehearsal, tenant, epsilon, split_seed)
    return rehearsal


def _join(
    rehearsal: Rehearsal, tenant: ScenarioTenant, epsilon: float | None, split_seed: int | None
) -> TenantDirectory:
    """What operator and tenant do by hand: invite, join, edit, agree, enroll."""
    card, server = rehearsal.scenario.card, rehearsal.server
    settings = server.settings()
    invite_file = server.root / f"{tenant.name}.invite"
    write_invite(
        invite_tenant(server.tenants, tenant.name, card, settings.address, server.ca.read_bytes()), invite_file
    )
    directory = TenantDirectory(rehearsal.root / "tenants" / tenant.name)
    invite = accept_invite(directory, invite_file)
    file = rehearsal.scenario.tenant_file(tenant, epsilon, Path("..") / ".." / "populations" / f"{tenant.name}.sqlite")
    directory.tenant_file.write_text(tomli_w.dumps(file.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    tenant.write(directory.root)
    key = None if split_seed is None else split_key(split_seed, tenant.name)
    _, enrolment_file = agree(
        directory, invite=invite, card=card, tenant=file, plan=plan_segment(card, file), registry=None, split_key=key
    )
    enrolment = read_enrolment(enrolment_file)
    noise = evaluation_noise(card, enrolment.promise.epsilon, enrolment.promise.delta)
    enroll_tenant(server.tenants, enrolment, card, noise)
    return directory


def run(rehearsal: Rehearsal, on_look: Callable[[], None]) -> float:
    """Start every process and wait for the end of the run.

    Args:
        rehearsal: From `prepare`.
        on_look: Called a few times a second.

    Returns:
        Seconds from the start of the first process to the end of the last.

    Raises:
        RehearsalFailed: A process failed; what it printed stands in `DIR/logs`.
    """
    logs = rehearsal.root / "logs"
    logs.mkdir()
    # A state folder of its own: a rehearsal's populations are none of this machine's real ones.
    state = (rehearsal.root / "state").absolute()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(state)}
    programs = Path(sys.executable).parent
    commands: dict[str, list[str | Path]] = {
        "server": [programs / "flower-server", "start", "--dir", rehearsal.server.root]
    }
    for name, directory in rehearsal.tenants.items():
        commands[name] = [programs / "flower-client", "start", "--dir", directory.root]
    started = time.monotonic()
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in commands.items():
            with (logs / f"{name}.log").open("wb") as log:
                processes[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        while any(process.poll() is None for process in processes.values()):
            on_look()
            for name, process in processes.items():
                if process.poll():
                    text = (logs / f"{name}.log").read_text(errors="replace").strip().splitlines()
                    raise RehearsalFailed(f"'{name}' ended with an error: {text[-1] if text else 'no output'}")
            time.sleep(LOOK)
        on_look()
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.terminate()
        for process in processes.values():
            process.wait()
    return time.monotonic() - started


def export(rehearsal: Rehearsal, out: Path) -> None:
    """`flower-server export`, which loads the folder again in a fresh process and compares.

    Args:
        rehearsal: After `run`.
        out: The adapter folder.

    Raises:
        RehearsalFailed: The export failed.
    """
    program = Path(sys.executable).parent / "flower-server"
    command: list[str | Path] = [program, "export", "--dir", rehearsal.server.root, "--out", out]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RehearsalFailed(f"export failed: {ended.stderr.strip() or ended.stdout.strip()}")


def _free_ports(count: int) -> list[int]:
    """Ports of loopback that were free a moment ago."""
    listeners = [socket.socket() for _ in range(count)]
    try:
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()
