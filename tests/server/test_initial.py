"""A federation that starts from another one's adapter: the right file, beside the right A, or a sentence."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.server.conftest import as_toml

from fedprofile.common.errors import InputError
from fedprofile.common.messages import Arrays
from fedprofile.server.checkpoint import dump_arrays
from fedprofile.server.directory import ServerDirectory
from fedprofile.server.initial import compute
from fedprofile.server.setup import make_directory

MakeServer = Callable[..., ServerDirectory]


@pytest.fixture
def make_server(tiny_base: Path, tmp_path: Path, card_data: Callable[..., dict[str, Any]]) -> MakeServer:
    """A function that gives a server's directory, its card changed by sections."""

    def make(name: str, **sections: Any) -> ServerDirectory:
        root = tmp_path / name
        make_directory(
            root,
            host="localhost",
            listen=None,
            name="test-federation",
            base=tiny_base,
            base_id="example/tiny-bert",
            port=9001,
            admin_port=9002,
            health_port=9003,
        )
        card = card_data(**sections)
        (root / "federation.toml").write_text("".join(f"{key} = {as_toml(value)}\n" for key, value in card.items()))
        return ServerDirectory(root)

    return make


def _trained(directory: ServerDirectory) -> Arrays:
    """What a first federation came to, written where its server keeps it."""
    rng = np.random.default_rng(0)
    arrays = {
        name: (value + rng.normal(size=value.shape)).astype(np.float32) for name, value in compute(directory).items()
    }
    directory.adapter.write_bytes(dump_arrays(arrays, {"card_hash": directory.card().hash, "round": "2"}))
    return arrays


@pytest.mark.parametrize("train", ["AB", "B"])
def test_it_starts_from_another_federations_adapter(train: str, make_server: MakeServer) -> None:
    first = make_server("first", adapter={"train": train})
    arrays = _trained(first)
    given = first.adapter.read_bytes()
    options = {"train": train} | ({"a_of": first.card().hash} if train == "B" else {})
    second = make_server("second", initial_adapter=hashlib.sha256(given).hexdigest(), adapter=options)
    with pytest.raises(InputError, match=r"initial\.safetensors"):
        compute(second)
    (second.root / "initial.safetensors").write_bytes(given[:-1] + b"x")
    with pytest.raises(InputError, match="expected SHA-256"):
        compute(second)
    (second.root / "initial.safetensors").write_bytes(given)
    found = compute(second)
    assert list(found) == list(arrays)
    assert all(np.array_equal(found[name], value) for name, value in arrays.items())


def test_an_adapter_of_another_shape_is_one_sentence(make_server: MakeServer) -> None:
    first = make_server("first")
    _trained(first)
    given = first.adapter.read_bytes()
    second = make_server("second", initial_adapter=hashlib.sha256(given).hexdigest(), adapter={"rank": 3})
    (second.root / "initial.safetensors").write_bytes(given)
    with pytest.raises(InputError, match="shape"):
        compute(second)
