"""A federation on loopback, laid out with the commands that people type: a server, two tenants, a tiny base model."""

import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from tests.conftest import _write_tiny_bert
from tests.crash.forks import run_to_end
from tests.e2e.conftest import free_ports, write_visits

from fedprofile.client import cli as client_cli
from fedprofile.client.directory import TenantDirectory
from fedprofile.client.segments import plan_segment
from fedprofile.common.modeling.base import hash_base
from fedprofile.server import cli as server_cli
from fedprofile.server import initial
from fedprofile.server.directory import ServerDirectory
from fedprofile.server.setup import make_directory

TENANTS = {"acme": 60, "globex": 90}
"""Name -> users."""

_BASE_ID = "example/tiny-bert"
_PATIENCE = 15
_SPARE_ROUNDS = 2000
"""What is drawn anew after a kill is paid for anew; a run that is killed all the time needs many."""


@dataclass(frozen=True)
class Places:
    """Where everything of a federation lies.

    Args:
        root: Its folder.
    """

    root: Path

    @property
    def server(self) -> ServerDirectory:
        """The server's directory."""
        return ServerDirectory(self.root / "server")

    def tenant(self, name: str) -> TenantDirectory:
        """A tenant's directory."""
        return TenantDirectory(self.root / "tenants" / name)

    def ledger(self, name: str) -> Path:
        """The ledger of a tenant's population."""
        return self.root / "populations" / f"{name}.sqlite"

    def output(self, name: str) -> Path:
        """What a process has printed."""
        return self.root / f"{name}.out"

    @property
    def received(self) -> Path:
        """What the server has received; see `ArrivalLog`."""
        return self.root / "received"

    @property
    def environment(self) -> dict[str, str]:
        """What its processes have in their environment."""
        return {"XDG_STATE_HOME": str(self.root / "state")}

    @property
    def notes(self) -> Path:
        """What the processes have passed; see `Points`."""
        return self.root / "notes"


def make_base(folder: Path) -> None:
    """Write the tiny base model."""
    run_to_end(lambda: _write_tiny_bert(folder), folder.with_suffix(".out"))


def card_data(base: Path, rounds: int) -> dict[str, Any]:
    """A federation card with short rounds."""
    return {
        "name": "crash-federation",
        "task": {
            "kind": "binary",
            "labels": ["no", "yes"],
            "group": {"attribute": "region", "values": ["north", "south"]},
        },
        "history": {"record": "a visitor in {month}", "event": "{action} {item}", "max_tokens": 32},
        "features": {
            "numeric": [{"name": "visits", "low": 0, "high": 10}],
            "categorical": [{"name": "device", "values": ["phone", "desk"]}],
        },
        "base": hash_base(base, _BASE_ID, "main").model_dump(),
        "adapter": {"rank": 2, "alpha": 4.0, "top_layers": 1},
        "training": {"rounds": rounds, "local_steps": 1, "learning_rate": 0.01, "head_learning_rate": 0.05},
        "rounds": {"min_tenants": len(TENANTS), "timeout": 600},
        "max_update_norm": 10.0,
    }


def lay_out(root: Path, base: Path, rounds: int) -> Places:
    """Make a federation whose tenants have joined and are enrolled.

    Args:
        root: Its folder, which must not exist.
        base: The base model's.
        rounds: Of the card.

    Returns:
        Its places.
    """
    places = Places(root)
    public, admin, health = free_ports(3)
    root.mkdir()
    places.notes.mkdir()
    server = make_directory(
        places.server.root,
        host="127.0.0.1",
        listen=None,
        port=public,
        admin_port=admin,
        health_port=health,
        name="crash-federation",
        base=base,
        base_id=_BASE_ID,
    )
    server.federation.write_text(tomli_w.dumps(card_data(base, rounds)), encoding="utf-8")
    # Where a tenant that has the final adapter is killed before it signs off, the server waits for it so long.
    settings = tomllib.loads(server.settings_file.read_text()) | {"patience": _PATIENCE}
    server.settings_file.write_text(tomli_w.dumps(settings), encoding="utf-8")
    for name, users in TENANTS.items():
        _join(places, name, users, base)
    run_to_end(lambda: _compute_initial_adapter(server.root), places.output("initial"))
    return places


def _compute_initial_adapter(root: Path) -> None:
    """What `flower-server start` has a process of its own do at the first start."""
    raise SystemExit(initial.main(str(root)))


def _join(places: Places, name: str, users: int, base: Path) -> None:
    """What operator and tenant type."""
    server, place = places.server.root, places.tenant(name).root
    invite, enrolment = server / f"{name}.invite", place / f"{name}.enroll"
    _command(places, name, server_cli.main, "flower-server", "invite", name, "--dir", server)
    _command(places, name, client_cli.main, "flower-client", "join", invite, "--dir", place)
    write_visits(place / "visits.csv", users, seed=users)
    tenant = {
        "source": {"kind": "csv", "path": "visits.csv"},
        "columns": {"user": "who", "time": "when", "label": "bought", "group": "where"},
        "population": {"name": name, "declared_users": users, "ledger": f"../../populations/{name}.sqlite"},
        "budget": {"epsilon": 8.0, "delta": 1e-5},
        "run": {"epsilon": 8.0, "delta": 1e-5, "spare_rounds": _SPARE_ROUNDS},
        "privacy": {"sample_rate": 0.2},
        "policy": {"reply_every": 0.25},
        "base": {"path": str(base)},
    }
    places.tenant(name).tenant_file.write_text(tomli_w.dumps(tenant), encoding="utf-8")
    # Solved here, so that the forks find it done.
    plan_segment(places.server.card(), places.tenant(name).read_tenant_file())
    _command(places, name, client_cli.main, "flower-client", "join", "--dir", place, "--yes")
    _command(places, name, server_cli.main, "flower-server", "enroll", enrolment, "--dir", server)


def _command(places: Places, name: str, main: Callable[[], None], *arguments: object) -> None:
    def run() -> None:
        sys.argv = list(map(str, arguments))
        main()

    run_to_end(run, places.output(name), places.environment)
