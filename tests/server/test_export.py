"""`flower-server export` ends only when a fresh process that loads the folder agrees with the federation's model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from fedprofile.common.card import FederationCard
from fedprofile.common.errors import InputError
from fedprofile.common.modeling.base import load_base, resolve_base
from fedprofile.common.modeling.profile_model import ProfileModel
from fedprofile.server.checkpoint import dump_arrays
from fedprofile.server.directory import ServerDirectory
from fedprofile.server.export import export_adapter

from .conftest import as_toml

FEATURES = {"numeric": [{"name": f"w{number}", "low": 0, "high": 10} for number in range(8)]}
"""Their names are the words of the texts that are compared."""


@pytest.fixture
def trained(
    card_data: Callable[..., dict[str, Any]], tiny_base: Path, tmp_path: Path
) -> Callable[..., ServerDirectory]:
    """A function that gives a server's directory whose newest adapter is not the start."""

    def make(**sections: Any) -> ServerDirectory:
        data = card_data(**{"features": FEATURES, **sections})
        card = FederationCard.model_validate(data)
        directory = ServerDirectory(tmp_path / "server")
        directory.state.mkdir(parents=True)
        directory.federation.write_text("".join(f"{name} = {as_toml(value)}\n" for name, value in data.items()))
        directory.settings_file.write_text(f"base = {json.dumps(str(tiny_base))}\n")
        assert directory.card().hash == card.hash
        draw = np.random.default_rng(0)
        start = ProfileModel(card, *load_base(resolve_base(card.base, tiny_base))).initial_arrays()
        arrays = {name: value + draw.normal(size=value.shape).astype(np.float32) for name, value in start.items()}
        metadata = {"card_hash": card.hash, "round": "2"}
        directory.adapter.write_bytes(dump_arrays(arrays, metadata))
        return directory

    return make


def _history(directory: ServerDirectory) -> list[dict[str, Any]]:
    """Evaluations around the adapter's round 2, and one of a later round, with what else a history has."""
    rest = {"started": "2026-01-01T00:00:00.000+00:00", "seconds": 1.0, "dropped": [], "refused": []}
    rest |= {"bytes_up": 1, "bytes_down": 1}
    both = ["north-shop", "south-shop"]
    lines = [{"round": 0, "kind": "evaluate", "tenants": both, "metrics": {"auc": _interval(0.5), "auc:east": None}}]
    lines += [
        {"round": number, "kind": "train", "tenants": both[: number % 2 + 1], "metrics": {}} for number in (1, 2, 3)
    ]
    for number in (2, 3):
        metrics = {"auc": _interval(0.6 + number / 100), "auc:east": None, "auc:other": _interval(number / 7)}
        lines.append({"round": number, "kind": "evaluate", "tenants": both, "metrics": metrics})
    directory.history.write_text("".join(json.dumps(line | rest) + "\n" for line in lines))
    return lines


def _interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value / 3, "high": 1 - value / 9}


def test_the_model_card_has_the_figures_of_the_history(trained: Callable[..., ServerDirectory], tmp_path: Path) -> None:
    group = {"attribute": "area", "values": ["east"]}
    directory = trained(task={"kind": "binary", "labels": ["no", "yes"], "group": group})
    lines = _history(directory)
    tenants = []
    for name, epsilon in {"north-shop": 3.0, "south-shop": 8.0, "gone-shop": 1.0}.items():
        promise = {"epsilon": epsilon, "delta": 1e-6}
        enrolled = {"public_key": "", "card_hash": directory.card().hash, "declared_users": 500, "promise": promise}
        enrolled |= {"evaluation_noise": 1.0, "at": ""}
        revoked = "now" if name == "gone-shop" else None
        tenants.append({"name": name, "invited_at": "", "enrolled": enrolled, "revoked_at": revoked})
    directory.tenants.write_text(json.dumps({"tenants": tenants}))
    with pytest.raises(InputError, match=r"--license 'My licence': is not a name"):
        export_adapter(directory.root, tmp_path / "out", licence="My licence")
    export_adapter(directory.root, tmp_path / "out", licence="cc-by-4.0")
    found: Any = ModelCard.load(tmp_path / "out" / "README.md")
    assert found.data.license == "cc-by-4.0"
    [auc, other] = [lines[-2]["metrics"][name] for name in ("auc", "auc:other")]
    for metric, shown in ((auc, "`auc`"), (other, "`other`")):
        assert f"| {shown} | {metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}] |" in found.text
    assert "| `east` | too few users to say |" in found.text
    assert found.text.count(" [0.") == 2, "no other evaluation's figure"
    rest = "(delta=1e-06, unit=user, adjacency=add-or-remove-one, model=local, accountant=prv)"
    for name, epsilon, rounds in (("north-shop", 3, 2), ("south-shop", 8, 1), ("gone-shop", 1, 0)):
        assert f"| `{name}` | 500 | {rounds} | epsilon={epsilon} {rest} |" in found.text
    assert "epsilon=12 (delta=3e-06, " in found.text


@pytest.mark.parametrize("max_tokens", [8, 32])
def test_the_fresh_process_agrees_also_where_texts_are_cut(
    max_tokens: int, trained: Callable[..., ServerDirectory], tmp_path: Path
) -> None:
    directory = trained(history={"max_tokens": max_tokens})
    summary = export_adapter(directory.root, tmp_path / "out")
    assert summary["difference"] <= 1e-5
    assert summary["round"] == 2
    assert (tmp_path / "out" / "head.json").exists()


def test_an_export_that_a_fresh_process_reads_otherwise_is_refused(
    trained: Callable[..., ServerDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = trained()
    loader = "import sys; rows = sys.stdin.readlines(); print('\\n'.join(['{\"no\": 1.0, \"yes\": 0.0}'] * len(rows)))"
    read_text = Path.read_text

    def other(path: Path, *arguments: Any, **named: Any) -> str:
        return loader if path.name == "plain_loader.py" else read_text(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", other)
    with pytest.raises(InputError, match=r"a fresh process that loads it differs by .*; do not use it"):
        export_adapter(directory.root, tmp_path / "out")
