"""The exported folder: read by plain transformers and PEFT in a fresh process, and refused when it is not whole."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel

from fedprofile.common.accounting import PrivacyLoss
from fedprofile.common.adapters import AdapterError, read_arrays, write_arrays
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import InputError
from fedprofile.common.interactions import EncodedRecords, Example, Value, encode
from fedprofile.common.modeling.base import load_base, resolve_base
from fedprofile.common.modeling.export import compare_in_fresh_process, read_adapter_folder, write_adapter_folder
from fedprofile.common.modeling.model_card import TenantPrivacy
from fedprofile.common.modeling.profile_model import ProfileModel

TENANTS = [TenantPrivacy("north-shop", PrivacyLoss(3.0, 1e-6)), TenantPrivacy("south-shop", PrivacyLoss(8.0, 1e-5))]
FEATURES = {
    "numeric": [
        {"name": "visits", "low": 0, "high": 10},
        {"name": "price", "low": 1, "high": 1000, "scale": "log", "unit": 3.0, "knots": [5, 20, 90]},
    ],
    "categorical": [{"name": "device", "values": ["phone", "desk"]}],
    "vectors": [
        {"name": "photo", "width": 2, "low": -1, "high": 3},
        {"name": "item", "width": 3, "norm": 2.0},
    ],
    "crosses": [{"numeric": "price", "categorical": "device"}],
}
COLUMNS: list[dict[str, Value]] = [
    {"visits": 3.0, "price": 17.5, "device": "desk", "photo": (0.5, 9.0), "item": (0.1, 0.2, -0.3)},
    {"visits": None, "price": 5000.0, "device": "tablet"},
    {"visits": -4.0, "price": None, "device": None},
    {"price": 90.0, "device": "phone", "item": (3.0, -4.0, 12.0)},
]
TEXTS = ["w1 w2 w3 viewed shoes", "w4", "", "searched books ; bought games ; viewed w9 w10 w11 w12 in a visitor"]

MakeModel = Callable[..., ProfileModel]
Stir = Callable[[ProfileModel], None]


def _records(model: ProfileModel, texts: Sequence[str]) -> EncodedRecords:
    examples = [
        Example(user=str(place), row={**row, "text": text})
        for place, (text, row) in enumerate(zip(texts, COLUMNS, strict=True))
    ]
    return encode(examples, model.card, model.tokenizer)


@pytest.mark.parametrize(
    "adapter",
    [
        {"text_scale": 0.3, "top_layers": 2, "train": "B"},
        {"method": "head", "text_scale": 1.7, "pooling": "last"},
        {"scaling": "rslora", "rank": 4, "train": "AB"},
    ],
)
def test_a_fresh_process_agrees(
    adapter: dict[str, Any], make_model: MakeModel, stir: Stir, tiny_base: Path, tmp_path: Path
) -> None:
    model = make_model(
        adapter=adapter, features=FEATURES, history={"record": "{text}", "event": ""}, task={"labels": ["nein", "ja"]}
    )
    stir(model)
    write_adapter_folder(model, tmp_path / "out", rounds=2, tenants=TENANTS)
    records = _records(model, TEXTS)
    assert np.ptp(model.predict(records)[:, 1]) > 0.01
    assert compare_in_fresh_process(model, tmp_path / "out", tiny_base, TEXTS, COLUMNS, records) < 1e-6
    assert (tmp_path / "out" / "adapter_model.safetensors").exists() == (adapter.get("method") != "head")


def test_a_regression_agrees_in_the_targets_own_unit(
    make_kind: MakeModel, stir: Stir, tiny_base: Path, tmp_path: Path
) -> None:
    task = {"kind": "regression", "target": "price", "low": -50, "high": 350}
    model = make_kind(task, features=FEATURES, history={"record": "{text}", "event": ""})
    stir(model)
    write_adapter_folder(model, tmp_path / "out", rounds=2, tenants=TENANTS)
    records = _records(model, TEXTS)
    assert np.ptp(model.predict(records)) > 0.01
    assert compare_in_fresh_process(model, tmp_path / "out", tiny_base, TEXTS, COLUMNS, records) < 1e-6
    assert json.loads((tmp_path / "out" / "head.json").read_text())["range"] == [-50, 350]


@pytest.mark.parametrize(
    "task",
    [
        {"kind": "multilabel", "labels": ["drama", "comedy", "war"]},
        {"kind": "ranking", "candidates": ["Alien", "Dune"], "negatives": 1, "cutoff": 1},
    ],
)
def test_labels_and_candidates_that_do_not_exclude_one_another_agree(
    task: dict[str, Any], make_kind: MakeModel, stir: Stir, tiny_base: Path, tmp_path: Path
) -> None:
    plain: dict[str, Any] = {"numeric": [], "categorical": []}
    ranked = task["kind"] == "ranking"
    model = make_kind(
        task,
        features=plain if ranked else FEATURES,
        history={"record": "{text}{candidate}" if ranked else "{text}", "event": ""},
    )
    stir(model)
    write_adapter_folder(model, tmp_path / "out", rounds=2, tenants=TENANTS)
    columns = [{} for _ in COLUMNS] if ranked else COLUMNS
    examples = [Example("u", {"text": text, "candidate": "", **row}) for text, row in zip(TEXTS, columns, strict=True)]
    records = encode(examples, model.card, model.tokenizer)
    assert np.ptp(model.predict(records)) > 0.01
    assert compare_in_fresh_process(model, tmp_path / "out", tiny_base, TEXTS, columns, records) < 1e-6


def test_a_decoder_agrees_too(
    card_data: Callable[..., dict[str, Any]],
    make_family: Callable[[str], tuple[PreTrainedModel, dict[str, Any]]],
    tiny_base: Path,
    stir: Stir,
    tmp_path: Path,
) -> None:
    base, adapter = make_family("gpt2")
    history = {"record": "{text}", "event": ""}
    card = FederationCard.model_validate(card_data(adapter=adapter, features=FEATURES, history=history))
    tokenizer = load_base(resolve_base(card.base, tiny_base))[1]
    tokenizer.pad_token, tokenizer.eos_token = None, "w59"
    model = ProfileModel(card, base, tokenizer)
    stir(model)
    base.save_pretrained(tmp_path / "base")
    write_adapter_folder(model, tmp_path / "out", rounds=2, tenants=[])
    records = _records(model, TEXTS)
    assert compare_in_fresh_process(model, tmp_path / "out", tmp_path / "base", TEXTS, COLUMNS, records) < 1e-6


def test_the_comparison_notices_a_wrong_export(
    make_model: MakeModel, stir: Stir, tiny_base: Path, tmp_path: Path
) -> None:
    model = make_model(features=FEATURES, history={"record": "{text}", "event": ""})
    stir(model)
    write_adapter_folder(model, tmp_path / "out", rounds=2, tenants=[])
    arrays = read_arrays(tmp_path / "out" / "adapter_model.safetensors")
    dropped = dict(list(arrays.items())[1:])
    records = _records(model, TEXTS)

    def compare() -> float:
        return compare_in_fresh_process(model, tmp_path / "out", tiny_base, TEXTS, COLUMNS, records)

    write_arrays(tmp_path / "out" / "adapter_model.safetensors", {name: array * 0 for name, array in arrays.items()})
    assert compare() > 1e-4
    write_arrays(tmp_path / "out" / "adapter_model.safetensors", dropped)
    with pytest.raises(AdapterError, match="missing adapter keys"):
        compare()


def test_the_loader_needs_nothing_of_this_project(make_model: MakeModel, tmp_path: Path) -> None:
    write_adapter_folder(make_model(), tmp_path / "out", rounds=2, tenants=[])
    code = "import ast, sys; tree = ast.parse(open(sys.argv[1]).read()); print(*sorted({n.names[0].name.split('.')[0] "
    code += "if isinstance(n, ast.Import) else n.module.split('.')[0] for n in ast.walk(tree) "
    code += "if isinstance(n, (ast.Import, ast.ImportFrom))} - sys.stdlib_module_names))"
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "out" / "load_adapter.py"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["numpy", "peft", "safetensors", "torch", "transformers"]


@pytest.mark.parametrize("adapter", [{"text_scale": 0.3}, {"train": "B"}, {"method": "head"}])
def test_a_folder_reads_back(adapter: dict[str, Any], make_model: MakeModel, stir: Stir, tmp_path: Path) -> None:
    model, fresh = make_model(adapter=adapter), make_model(adapter=adapter)
    stir(model)
    write_adapter_folder(model, tmp_path / "out", rounds=2, tenants=TENANTS)
    arrays = read_adapter_folder(fresh, tmp_path / "out")
    fresh.set_arrays(arrays)
    for name, array in model.get_arrays().items():
        np.testing.assert_allclose(arrays[name], array, rtol=1e-6)
    assert list(arrays) == list(model.layout())


def _drop(name: str, file: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        arrays = read_arrays(folder / file)
        del arrays[next(key for key in arrays if name in key)]
        write_arrays(folder / file, arrays)

    return change


def _change(name: str, file: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        arrays = read_arrays(folder / file)
        key = next(key for key in arrays if name in key)
        write_arrays(folder / file, arrays | {key: arrays[key] + np.float32(0.1)})

    return change


def _add(folder: Path) -> None:
    arrays = read_arrays(folder / "adapter_model.safetensors")
    write_arrays(folder / "adapter_model.safetensors", arrays | {"another": np.zeros(2, np.float32)})


def _other_card(folder: Path) -> None:
    head = json.loads((folder / "head.json").read_text())
    (folder / "head.json").write_text(json.dumps(head | {"card": "0" * 64}))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_drop("lora_B", "adapter_model.safetensors"), "1 arrays are missing"),
        (_drop("bias", "head.safetensors"), "exactly 'weight' and 'bias'"),
        (_add, "1 arrays have unknown names"),
        (_change("lora_A", "adapter_model.safetensors"), "frozen matrix"),
        (_other_card, "another federation card"),
        (lambda folder: (folder / "head.json").unlink(), "head.json"),
        (lambda folder: (folder / "head.safetensors").write_bytes(b"{}"), "not a safetensors file"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(
    change: Callable[[Path], None], text: str, make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model(adapter={"train": "B"})
    write_adapter_folder(model, tmp_path / "out", rounds=2, tenants=[])
    change(tmp_path / "out")
    with pytest.raises(AdapterError, match=text):
        read_adapter_folder(model, tmp_path / "out")


def test_the_folder_names_the_public_base_and_no_local_path(
    make_model: MakeModel, tiny_base: Path, tmp_path: Path
) -> None:
    model = make_model()
    write_adapter_folder(model, tmp_path / "out", rounds=2, tenants=TENANTS)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "example/tiny-bert"
    assert config["revision"] == "main"
    for path in (tmp_path / "out").iterdir():
        assert str(tiny_base).encode() not in path.read_bytes(), path.name
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_the_model_card_never_shows_an_epsilon_alone(make_model: MakeModel, tmp_path: Path) -> None:
    write_adapter_folder(make_model(), tmp_path / "out", rounds=2, tenants=TENANTS)
    lines = (tmp_path / "out" / "README.md").read_text().splitlines()
    with_epsilon = [line for line in lines if "epsilon" in line]
    # One for each tenant, and their sum for somebody who is at both.
    assert len(with_epsilon) == 3
    for line, tenant in zip(with_epsilon[:2], TENANTS, strict=True):
        assert tenant.tenant in line and str(tenant.promise) in line
    for line in with_epsilon:
        assert all(word in line for word in ("delta=", "unit=user", "adjacency=", "accountant=", "model=local"))


def test_a_folder_in_use_is_left_alone(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    model = make_model()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        write_adapter_folder(model, tmp_path / "out", rounds=2, tenants=[])
    (tmp_path / "out" / "mine.txt").unlink()
    write_adapter_folder(model, tmp_path / "out", rounds=2, tenants=[])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
