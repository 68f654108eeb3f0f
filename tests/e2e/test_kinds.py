"""Rankings and labels that do not exclude one another, from the tenants' files to predictions, with real processes."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import tomli_w
from safetensors.numpy import load_file

if TYPE_CHECKING:
    from tests.e2e.conftest import Federation

pytestmark = pytest.mark.e2e

RANKING: dict[str, Any] = {
    "kind": "ranking",
    "candidates": ["shoes", "books", "games", "phone"],
    "negatives": 2,
    "cutoff": 1,
}
GENRES: dict[str, Any] = {"kind": "multilabel", "labels": ["shoes", "books", "games"]}


def _run(federation: Callable[..., "Federation"], task: dict[str, Any], record: str) -> "Federation":
    plain: dict[str, Any] = {"numeric": [], "categorical": []}
    run = federation(
        history={"record": record, "event": "{action} {month}"}, features=plain, evaluation={"when": "end"}
    )
    run.card["task"] = task
    (run.server_dir / "federation.toml").write_text(tomli_w.dumps(run.card), encoding="utf-8")
    for name in ("acme", "globex"):
        run.join(name, columns={"label": "item"})
        checked = run.cli("flower-client", "check", "--dir", run.tenant_dir(name), "--json")
        data = json.loads(checked.stdout)["data"]
        assert data["users"] == 60 and 60 < data["records"] <= 180 and data["records_per_user"]["high"] <= 3
    run.start_server()
    for name in ("acme", "globex"):
        run.start_client(name)
    run.finish("acme", "globex", "server")
    assert [entry["round"] for entry in run.trained()] == [1, 2]
    assert all(sorted(entry["tenants"]) == ["acme", "globex"] for entry in run.trained())
    assert all(0 < run.budget(name)["epsilon_spent"] <= 8.0 for name in ("acme", "globex"))
    return run


def _predicted(run: "Federation") -> list[dict[str, Any]]:
    folder = run.tenant_dir("acme")
    printed = run.cli("flower-client", "predict", "--dir", folder, "--input", folder / "visits.csv", "--json").stdout
    found: list[dict[str, Any]] = json.loads(printed)
    return found


def test_a_ranking_ends_in_the_best_of_the_catalogue(federation: Callable[..., "Federation"]) -> None:
    run = _run(federation, RANKING, "a visitor viewed {candidate}")
    [metrics] = [entry["metrics"] for entry in run.history() if entry["kind"] == "evaluate"]
    assert {"hit_rate_at_1", "ndcg_at_1", "mean_reciprocal_rank"} <= set(metrics)
    first = _predicted(run)[0]
    assert {one["candidate"] for one in first["best"]} == set(RANKING["candidates"])
    scores = [one["score"] for one in first["best"]]
    assert scores == sorted(scores, reverse=True) and 0 < scores[-1] < scores[0] < 1
    out = run.root / "adapter"
    run.cli("flower-server", "export", "--dir", run.server_dir, "--out", out)
    assert load_file(out / "head.safetensors")["weight"].shape[0] == 1
    assert json.loads((out / "head.json").read_text())["candidates"] == RANKING["candidates"]


def test_several_labels_end_in_a_probability_of_each(federation: Callable[..., "Federation"]) -> None:
    run = _run(federation, GENRES, "a visitor in {month}")
    [metrics] = [entry["metrics"] for entry in run.history() if entry["kind"] == "evaluate"]
    assert {"macro_auc", "label_accuracy", "auc:books"} <= set(metrics)
    first = _predicted(run)[0]
    assert set(first["probabilities"]) == set(GENRES["labels"])
    assert first["labels"] == [label for label, value in first["probabilities"].items() if value >= 0.5]
    run.cli("flower-server", "export", "--dir", run.server_dir, "--out", run.root / "adapter")
