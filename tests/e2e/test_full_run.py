"""A whole run by hand, with real processes: listeners, rounds, budget, export, predictions; and bad input."""

import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from safetensors.numpy import load_file

from fedprofile.server.directory import ServerDirectory
from fedprofile.server.fleet_calls import PATHS

if TYPE_CHECKING:
    from tests.e2e.conftest import Federation

pytestmark = pytest.mark.e2e


def test_two_tenants_run_to_the_end(federation: Callable[..., "Federation"], tmp_path: Path) -> None:
    run = federation(by_hand=True, rounds={"timeout": 600})
    for name in ("acme", "globex"):
        run.join(name)
    run.start_server()
    run.start_client("acme")
    run.wait_until("a tenant to be let in", lambda: "connected" in run.output("acme"))
    # The second tenant is not there yet, so the server waits.
    _check_listeners(run)
    run.start_client("globex")
    run.finish("acme", "globex", "server")

    assert [entry["round"] for entry in run.trained()] == [1, 2]
    assert all(sorted(entry["tenants"]) == ["acme", "globex"] for entry in run.trained())
    assert any(entry["kind"] == "evaluate" and entry["metrics"] for entry in run.history())
    for name in ("acme", "globex"):
        budget = run.budget(name)
        assert budget["epsilon"] == 8.0
        assert 0 < budget["epsilon_spent"] <= 8.0
        assert [row["round"] for row in budget["releases"] if row["kind"] == "train"] == [1, 2]
        assert sum(row["kind"] == "evaluate" for row in budget["releases"]) == 3

    status = json.loads(run.cli("flower-server", "status", "--dir", run.server_dir, "--json").stdout)
    assert {tenant["name"] for tenant in status["tenants"]} == {"acme", "globex"}
    out = tmp_path / "adapter"
    run.cli("flower-server", "export", "--dir", run.server_dir, "--out", out)
    assert (out / "adapter_config.json").is_file()
    assert load_file(out / "head.safetensors")["weight"].shape[0] == 2
    predictions = run.cli(
        "flower-client", "predict", "--dir", run.tenant_dir("acme"),
        "--input", run.tenant_dir("acme") / "visits.csv", "--json",
    )  # fmt: skip
    first = json.loads(predictions.stdout)[0]
    assert sum(first["probabilities"].values()) == pytest.approx(1.0)


def _check_listeners(run: "Federation") -> None:
    directory = ServerDirectory(run.server_dir)
    right = {"Authorization": f"Bearer {directory.operator_token.read_text().strip()}"}
    wrong = {"Authorization": f"{right['Authorization']}x"}
    trust = ssl.create_default_context(cafile=str(directory.ca))
    with (
        httpx.Client(base_url=f"https://127.0.0.1:{run.public}", verify=trust) as public,
        httpx.Client(base_url=f"http://127.0.0.1:{run.admin}") as admin,
    ):
        assert public.get("/health").status_code == admin.get("/health").status_code == 200
        paths = admin.get("/openapi.json", headers=right).json()["paths"].keys() - {"/health"}
        assert {"/v1/control/list-runs", "/v1/runtime/acquire-task", "/v1/fleet/register-node"} <= paths
        assert paths > PATHS
        for path in ("/", "/docs", "/openapi.json", *paths):
            for method, unsigned in (("GET", 405), ("POST", 415)):
                assert admin.request(method, path).status_code == 401, path
                assert admin.request(method, path, headers=wrong).status_code == 401, path
                expected = unsigned if path in PATHS else 404
                assert public.request(method, path, headers=right).status_code == expected, path


def test_bad_input_is_one_sentence_and_loses_nothing(federation: Callable[..., "Federation"]) -> None:
    run = federation()
    directory = run.join("acme")
    before = run.budget("acme")
    tenant = (directory / "tenant.toml").read_text()
    visits = (directory / "visits.csv").read_text()
    cases: list[tuple[str, str, str, str]] = [
        ("tenant.toml", "declared_users", "declared_user", "did you mean 'declared_users'"),
        ("visits.csv", "visits,device", "visit,device", "column 'visits' is missing"),
        ("visits.csv", "2026-01-01", "yesterday", "is not an ISO 8601"),
        ("visits.csv", ",yes\n", ",perhaps\n", "not one of the card's labels"),
    ]
    for file, old, new, expected in cases:
        path = directory / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        for command in (["check"], ["start"]):
            failed = run.cli("flower-client", *command, "--dir", directory, code=2)
            assert failed.stderr.startswith("error: ") and expected in failed.stderr
            assert "Traceback" not in failed.stderr
            assert "yesterday" not in failed.stderr and "perhaps" not in failed.stderr
        path.write_text(text)
    assert (directory / "tenant.toml").read_text() == tenant
    assert (directory / "visits.csv").read_text() == visits
    assert run.budget("acme") == before
    _check_spoiled_invite(run)
    card = run.server_dir / "federation.toml"
    card.write_text(card.read_text().replace("max_update_norm", "max_update_norms"))
    failed = run.cli("flower-server", "start", "--dir", run.server_dir, code=2)
    assert "did you mean 'max_update_norm'" in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_a_base_model_with_other_weights_than_the_cards_is_refused(federation: Callable[..., "Federation"]) -> None:
    run = federation(base={"weights_sha256": "0" * 64})
    directory = run.join("acme")
    for program, place in (("flower-server", run.server_dir), ("flower-client", directory)):
        failed = run.cli(program, "start", "--dir", place, code=2)
        assert failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1
        assert "model.safetensors: sha256 is " in failed.stderr and "0" * 64 in failed.stderr
    assert run.history() == [] and run.budget("acme")["releases"] == []


def _check_spoiled_invite(run: "Federation") -> None:
    source = run.tenant_dir("acme") / "invite.json"
    invite: dict[str, Any] = json.loads(source.read_text())
    invite["card_hash"] = "0" * 64
    spoiled = run.root / "spoiled.invite"
    spoiled.write_text(json.dumps(invite))
    failed = run.cli("flower-client", "join", spoiled, "--dir", run.root / "elsewhere", code=2)
    assert "hash" in failed.stderr and failed.stderr.count("\n") == 1
    assert not (run.root / "elsewhere").exists()
