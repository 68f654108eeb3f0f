"""The base model is the card's or it is refused."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from fedprofile.common.card import load_card
from fedprofile.common.errors import ConfigError
from fedprofile.common.modeling.base import (
    EMBEDDED_ID,
    TOKENIZER_FILES,
    BaseModelFiles,
    embedded_folder,
    hash_base,
    load_base,
    resolve_base,
)


@pytest.fixture
def copy_of_base(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "copy"))


def _touch_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][0, 0] += 1e-6
    save_file(weights, folder / "model.safetensors")


def _touch_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))


def _touch_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("w7", "w8_"))


def _add_tokenizer_file(folder: Path) -> None:
    (folder / "added_tokens.json").write_text("{}")


def test_a_copy_in_another_folder_is_the_same(tiny_base: Path, copy_of_base: Path) -> None:
    spec = hash_base(tiny_base, "example/tiny", "v1")
    assert hash_base(copy_of_base, "example/tiny", "v1") == spec
    assert resolve_base(spec, copy_of_base) == BaseModelFiles(copy_of_base, spec)


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (_touch_weights, "model.safetensors"),
        (_touch_config, "config.json"),
        (_touch_tokenizer, "tokenizer"),
        (_add_tokenizer_file, "added_tokens.json"),
    ],
)
def test_changed_content_is_refused(
    change: Callable[[Path], None], file: str, tiny_base: Path, copy_of_base: Path
) -> None:
    spec = hash_base(tiny_base, "example/tiny")
    change(copy_of_base)
    found = hash_base(copy_of_base, "example/tiny")
    with pytest.raises(ConfigError, match=file) as raised:
        resolve_base(spec, copy_of_base)
    changed = [name for name in type(spec).model_fields if getattr(spec, name) != getattr(found, name)]
    assert len(changed) == 1
    assert getattr(spec, changed[0]) in str(raised.value)
    assert getattr(found, changed[0]) in str(raised.value)


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(missing: str, tiny_base: Path, copy_of_base: Path) -> None:
    (copy_of_base / missing).unlink()
    with pytest.raises(ConfigError, match=missing):
        resolve_base(hash_base(tiny_base, "example/tiny"), copy_of_base)


def test_a_folder_without_a_tokenizer_is_refused(copy_of_base: Path) -> None:
    for name in TOKENIZER_FILES:
        (copy_of_base / name).unlink(missing_ok=True)
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        hash_base(copy_of_base, "example/tiny")


def test_shards_are_hashed_by_name_and_content(tiny_base: Path, tmp_path: Path) -> None:
    def sharded(folder: Path) -> Path:
        AutoModel.from_pretrained(tiny_base).save_pretrained(folder, max_shard_size="8KB")
        shutil.copy(tiny_base / "tokenizer.json", folder)
        return folder

    first, second = sharded(tmp_path / "first"), sharded(tmp_path / "second")
    shards = sorted(first.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert hash_base(first, "x/y") == hash_base(second, "x/y")
    last = second / shards[-1].name
    weights = load_file(last)
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, last)
    assert hash_base(first, "x/y").weights_sha256 != hash_base(second, "x/y").weights_sha256


def test_a_shard_outside_the_folder_is_refused(copy_of_base: Path) -> None:
    (copy_of_base / "model.safetensors").rename(copy_of_base.parent / "elsewhere.safetensors")
    index = {"weight_map": {"a": "../elsewhere.safetensors"}}
    (copy_of_base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="outside the folder"):
        hash_base(copy_of_base, "x/y")


HUB = "import sys\nfrom fedprofile.server.cli import main\nsys.exit(main())"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "is not in the model hub's cache on this machine (LocalEntryNotFoundError); give a local folder with its "
             "files, or set FEDPROFILE_ALLOW_HUB=1 to let it be downloaded."),
        ({"FEDPROFILE_ALLOW_HUB": "1", "HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids to download it ("),
        # No network: a port of this machine that nobody listens at.
        ({"FEDPROFILE_ALLOW_HUB": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}, "is not to be had from the model hub ("),
    ],
)  # fmt: skip
def test_a_hub_id_that_cannot_be_had_is_one_sentence(
    environment: dict[str, str], expected: str, tmp_path: Path
) -> None:
    """Through the operator's command; tenants come to the same function by their card."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "FEDPROFILE_"))}
    command = [sys.executable, "-c", HUB, "init", str(tmp_path / "server"), "--base-id", "example/none"]
    ran = subprocess.run(
        command,
        env={**kept, "HF_HOME": str(tmp_path / "hub"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2, ran.stderr
    assert expected in ran.stderr and "give a local folder" in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1 and not (tmp_path / "server").exists()


def test_a_hub_id_is_found_in_the_hubs_cache(tiny_base: Path, tmp_path: Path) -> None:
    """As huggingface_hub lays it out: what one process has downloaded, another one finds without a network."""
    cache = tmp_path / "hub" / "hub" / "models--example--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny_base, cache / "snapshots" / ("0" * 40))
    command = [sys.executable, "-c", HUB, "init", str(tmp_path / "server"), "--base-id", "example/tiny"]
    subprocess.run(command, env={**os.environ, "HF_HOME": str(tmp_path / "hub")}, check=True, capture_output=True)
    card = load_card(tmp_path / "server" / "federation.toml")
    assert card.base == hash_base(tiny_base, "example/tiny", "main")
    assert card.adapter.targets == ("query", "value") and card.adapter.pooling == "mean"


def test_a_card_whose_base_is_nowhere_says_what_to_do(tiny_base: Path) -> None:
    spec = hash_base(tiny_base, "example/there-is-no-such-model")
    with pytest.raises(ConfigError, match="FEDPROFILE_ALLOW_HUB=1"):
        resolve_base(spec)


def test_loading_gives_a_frozen_float32_model_with_its_tokenizer(tiny_base: Path) -> None:
    base, tokenizer = load_base(BaseModelFiles(tiny_base, hash_base(tiny_base, "example/tiny")))
    assert not any(parameter.requires_grad for parameter in base.parameters())
    assert {parameter.dtype for parameter in base.parameters()} == {torch.float32}
    assert base.config._attn_implementation == "sdpa"
    assert tokenizer("w1 w2")["input_ids"] == [2, 5, 6, 3]


def test_half_precision_weights_are_loaded_as_float32(tiny_base: Path, tmp_path: Path) -> None:
    AutoModel.from_pretrained(tiny_base).half().save_pretrained(tmp_path / "half")
    shutil.copy(tiny_base / "tokenizer.json", tmp_path / "half")
    shutil.copy(tiny_base / "tokenizer_config.json", tmp_path / "half")
    base, _ = load_base(BaseModelFiles(tmp_path / "half", hash_base(tmp_path / "half", "example/half")))
    assert {parameter.dtype for parameter in base.parameters()} == {torch.float32}


def test_pickled_weights_are_not_loaded(tiny_base: Path, copy_of_base: Path) -> None:
    files = BaseModelFiles(copy_of_base, hash_base(copy_of_base, "example/tiny"))
    weights = load_file(copy_of_base / "model.safetensors")
    (copy_of_base / "model.safetensors").unlink()
    torch.save(weights, copy_of_base / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot load this base model"):
        load_base(files)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(value: float, copy_of_base: Path) -> None:
    """The embedding of one word: a client would fail exactly where someone's history holds it."""
    weights = load_file(copy_of_base / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][63] = value
    save_file(weights, copy_of_base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"parameter 'embeddings\.word_embeddings\.weight' holds values that are not"):
        load_base(BaseModelFiles(copy_of_base, hash_base(copy_of_base, "example/tiny")))


def test_a_token_without_an_embedding_is_refused(copy_of_base: Path) -> None:
    """One word whose id is beyond the table: the same hole by the tokenizer."""
    path = copy_of_base / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["rare"] = 5000
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="token ids up to 5000, the model has embeddings for 76"):
        load_base(BaseModelFiles(copy_of_base, hash_base(copy_of_base, "example/tiny")))


@pytest.mark.base
def test_the_embedded_package_holds_the_genuine_weights() -> None:
    folder = embedded_folder()
    if folder is None:
        pytest.skip("the embedded base model is not installed")
    spec = hash_base(folder, EMBEDDED_ID)
    assert spec.weights_sha256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert resolve_base(spec).folder == folder
