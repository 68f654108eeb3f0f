"""kill -9 of a client and of the server in the middle of a round: the run goes on at that round, and nothing is lost.

The kills do not depend on luck: globex's client is made of the product's own parts and stops at known steps
(`odd_client`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fedprofile.client.directory import TenantDirectory
from fedprofile.common.adapters import arrays_hash, read_arrays
from fedprofile.server.checkpoint import load_arrays
from fedprofile.server.directory import ServerDirectory

if TYPE_CHECKING:
    from tests.e2e.conftest import Federation

pytestmark = pytest.mark.e2e


def test_kills_lose_no_round_and_no_budget(federation: Callable[..., "Federation"]) -> None:
    run = federation(training={"rounds": 4}, rounds={"timeout": 600})
    run.set_patience(600)
    run.join("acme")
    globex = run.join("globex", run={"spare_rounds": 1})
    run.start_server()
    run.start_client("acme")

    _kill_the_client_in_round_2(run, globex)
    _kill_the_server_in_round_3(run, globex)
    _kill_both_at_the_delivery(run, globex)

    assert [(entry["round"], sorted(entry["tenants"])) for entry in run.trained()] == [
        (number, ["acme", "globex"]) for number in (1, 2, 3, 4)
    ]
    # What had been answered was answered again with the same bytes, at no cost. Only the training that was cut off
    # is paid for twice: its reservation stays, because the ledger never counts less than what may have left.
    assert _trained(run, "acme") == [1, 2, 3, 4]
    assert _trained(run, "globex") == [1, 2, 2, 3, 4]
    payloads = [row["payload"] for row in run.budget("globex")["releases"] if row["kind"] == "train"]
    assert [payload is None for payload in payloads] == [False, True, False, False, False]
    assert run.budget("globex")["epsilon_spent"] <= 8.0
    final, _ = load_arrays(ServerDirectory(run.server_dir).adapter)
    for name in ("acme", "globex"):
        place = TenantDirectory(run.tenant_dir(name))
        latest = place.read_latest_adapter()
        assert latest is not None and latest.round == 4
        assert arrays_hash(read_arrays(place.adapters / latest.file)) == arrays_hash(final)


def _kill_the_client_in_round_2(run: "Federation", globex: Path) -> None:
    run.start_odd_clients(globex="hold=train-2")
    run.wait_until("round 2 to be reserved", (globex / "held-train-2").exists)
    assert _trained(run, "globex") == [1, 2]
    run.kill("odd")
    assert [entry["round"] for entry in run.trained()] == [1]


def _kill_the_server_in_round_3(run: "Federation", globex: Path) -> None:
    run.start_odd_clients(globex="hold=train-3,deliver-4")
    run.wait_until("round 3 to be reserved", (globex / "held-train-3").exists)
    run.kill("server")
    assert [entry["round"] for entry in run.trained()] == [1, 2]
    run.start_server()
    (globex / "go-train-3").touch()
    run.wait_until("the final adapter to be handed over", (globex / "held-deliver-4").exists)
    assert "going on after round 2 of 4" in run.output("server")
    # The reply of round 3 was for the dead server's run: that is said at once, and not tried again and again.
    assert "that request is dropped" in run.output("odd")
    assert "status 500" not in run.output("odd")


def _kill_both_at_the_delivery(run: "Federation", globex: Path) -> None:
    run.finish("acme")
    run.kill("server")
    run.kill("odd")
    # Whoever has the final adapter ends by itself, though the server never heard so and is gone.
    run.start_client("globex")
    run.finish("globex")
    assert "nobody answers" in run.output("globex")


def _trained(run: "Federation", name: str) -> list[int]:
    return [row["round"] for row in run.budget(name)["releases"] if row["kind"] == "train"]
