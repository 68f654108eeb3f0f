"""`flower-server export` ends only when a fresh process that loads the folder agrees with the federation's model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
