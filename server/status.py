"""`flower-server status`: the state of a server's directory, whether a server runs there or not.

A running server keeps `state/status.json` up to date; see `journal`.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedprofile.server.directory import ServerDirectory
from fedprofile.server.enrolment import RosterEntry, read_roster


def tenant_as_dict(entry: RosterEntry) -> dict[str, Any]:
    """What the roster says of a tenant, for JSON."""
    enrolled = entry.enrolled
    return {
        "name": entry.name,
        "enrolled": enrolled is not None,
        "revoked": entry.revoked_at is not None,
        "declared_users": None if enrolled is None else enrolled.declared_users,
        "promise": None if enrolled is None else enrolled.promise.model_dump(mode="json"),
    }


def read_status(root: Path) -> dict[str, Any]:
    """The status of a server's directory, running or not.

    Args:
        root: DIR.

    Returns:
        The content of `status.json` with "running" added, and the roster as it is now.

    Raises:
        ConfigError: It is not a server's directory.
    """
    directory = ServerDirectory(root)
    card = directory.card()
    roster = read_roster(directory.tenants)
    status: dict[str, Any] = {
        "federation": card.name,
        "card_hash": card.hash,
        "state": "not started",
        "note": "",
        "round": 0,
        "rounds": card.training.rounds,
        "metrics_round": None,
        "metrics": {},
        "tenants": [],
        "bytes_up": 0,
        "bytes_down": 0,
        "pid": None,
    }
    if directory.status.exists():
        status |= json.loads(directory.status.read_text())
    running = directory.is_held()
    if not running and status["state"] not in ("not started", "finished", "failed", "stopped"):
        status["state"] = "killed"
    known = {tenant["name"]: tenant for tenant in status["tenants"]}
    nothing = {"online": False, "answered": 0, "refused": {}, "dropped": {}}
    status["tenants"] = [nothing | known.get(entry.name, {}) | tenant_as_dict(entry) for entry in roster.tenants]
    for tenant in status["tenants"]:
        tenant["online"] = tenant["online"] and running
    return status | {"running": running, "read_at": datetime.now(UTC).isoformat(timespec="seconds")}


def status_text(status: dict[str, Any]) -> str:
    """`read_status` for a person."""
    lines = [
        f"federation '{status['federation']}', card {status['card_hash'][:12]}...",
        f"{status['state']}: round {status['round']} of {status['rounds']}",
    ]
    if status["note"]:
        lines.append(status["note"])
    for tenant in status["tenants"]:
        promise = tenant["promise"]
        how = "revoked" if tenant["revoked"] else "enrolled" if tenant["enrolled"] else "invited"
        parts = [f"  {tenant['name']}: {how}", "online" if tenant["online"] else "offline"]
        if promise is not None:
            parts.append(f"{tenant['declared_users']} declared users")
            parts.append(
                f"epsilon={promise['epsilon']:g} (delta={promise['delta']:g}, unit={promise['unit']}, "
                f"adjacency={promise['adjacency']}, model={promise['model']}, accountant={promise['accountant']})"
            )
        parts.append(f"{tenant['answered']} answers")
        parts += [f"{count} refused ({code})" for code, count in tenant["refused"].items()]
        parts += [f"{count} dropped ({reason})" for reason, count in tenant["dropped"].items()]
        lines.append(", ".join(parts))
    if status["metrics"]:
        lines.append(f"noised metrics after round {status['metrics_round']}:")
        for name, interval in status["metrics"].items():
            said = (
                "too few users to say"
                if interval is None
                else f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"
            )
            lines.append(f"  {name} {said}")
    return "\n".join(lines)
