"""A whole run with real processes: rounds, budget, export, predictions, and who may not take part."""

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.numpy import load_file

if TYPE_CHECKING:
    from tests.e2e.conftest import Federation

pytestmark = pytest.mark.e2e


def _status(url: str, ca: Path, method: str = "GET") -> int:
    request = urllib.request.Request(url, method=method, data=b"{}" if method == "POST" else None)
    try:
        with urllib.request.urlopen(request, context=ssl.create_default_context(cafile=str(ca))) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return int(error.code)


def test_two_tenants_run_to_the_end(federation: Callable[..., "Federation"], tmp_path: Path) -> None:
    run = federation()
    for name in ("acme", "globex"):
        run.join(name)
    run.start_server()
    run.start_client("acme")
    run.start_client("globex")
    ca = run.server_dir / "ca.crt"
    run.wait_until("the first round", lambda: run.trained())
    for path in ("/", "/docs", "/openapi.json", "/v1/control/list-runs", "/v1/runtime/acquire-task"):
        assert _status(f"https://127.0.0.1:{run.public}{path}", ca) == 404
        assert _status(f"https://127.0.0.1:{run.public}{path}", ca, "POST") == 404
    assert _status(f"https://127.0.0.1:{run.public}/health", ca) == 200
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


def test_an_unknown_key_waits_and_never_takes_part(federation: Callable[..., "Federation"]) -> None:
    run = federation()
    for name in ("acme", "globex"):
        run.join(name)
    run.join("stranger", enroll=False)
    run.start_server()
    run.start_client("stranger")
    run.wait_until("the stranger to be told", lambda: "enrol" in run.output("stranger"))
    run.start_client("acme")
    run.start_client("globex")
    run.finish("acme", "globex", "server")
    assert all("stranger" not in entry["tenants"] for entry in run.history())
    assert run.budget("stranger")["releases"] == []


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
            assert expected in failed.stderr
            assert "Traceback" not in failed.stderr
            assert "yesterday" not in failed.stderr and "perhaps" not in failed.stderr
        path.write_text(text)
    assert (directory / "tenant.toml").read_text() == tenant
    assert (directory / "visits.csv").read_text() == visits
    assert run.budget("acme") == before
    card = run.server_dir / "federation.toml"
    card.write_text(card.read_text().replace("max_update_norm", "max_update_norms"))
    failed = run.cli("flower-server", "start", "--dir", run.server_dir, code=2)
    assert "did you mean 'max_update_norm'" in failed.stderr
    _check_spoiled_invite(run)


def _check_spoiled_invite(run: "Federation") -> None:
    source = run.tenant_dir("acme") / "invite.json"
    invite: dict[str, Any] = json.loads(source.read_text())
    invite["card_hash"] = "0" * 64
    spoiled = run.root / "spoiled.invite"
    spoiled.write_text(json.dumps(invite))
    failed = run.cli("flower-client", "join", spoiled, "--dir", run.root / "elsewhere", code=2)
    assert "hash" in failed.stderr
