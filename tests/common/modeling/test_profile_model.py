"""The whole model: its start, its wire form, what is trained, dropout, features, text scale, the probe."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opacus.grad_sample.utils import prepare_module
from pydantic import ValidationError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedprofile.common.adapters import AdapterError
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError
from fedprofile.common.interactions import EncodedRecords, fit_texts
from fedprofile.common.modeling.base import load_base, resolve_base
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel

MakeModel = Callable[..., ProfileModel]
MakeRecords = Callable[..., EncodedRecords]
Stir = Callable[[ProfileModel], None]


def _logits(model: ProfileModel, records: EncodedRecords, cache: PrefixCache | None = None) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(records.tokens, records.features, cache)
    return logits


def test_two_machines_start_alike(make_model: MakeModel) -> None:
    torch.manual_seed(1)
    first = make_model().initial_arrays()
    torch.manual_seed(2)
    second = make_model().initial_arrays()
    assert list(first) == list(second)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert all(not first[name].any() for name in first if "lora_A" not in name)
    assert all(first[name].any() for name in first if "lora_A" in name)


def test_another_card_starts_elsewhere(make_model: MakeModel) -> None:
    first, second = make_model().initial_arrays(), make_model(name="another").initial_arrays()
    assert not any(np.array_equal(first[name], second[name]) for name in first if "lora_A" in name)


@pytest.mark.parametrize("train", ["AB", "B"])
def test_an_adapter_goes_on_under_another_card_as_it_was(
    train: str, make_model: MakeModel, make_records: MakeRecords, stir: Stir
) -> None:
    """With B alone only beside the A that it was trained with, which `a_of` names."""
    first = make_model(adapter={"train": train})
    records = make_records(first)
    stir(first)
    options = {"train": train} | ({"a_of": first.card.hash} if train == "B" else {})
    second = make_model(name="another", initial_adapter="d" * 64, adapter=options)
    second.set_arrays(first.get_arrays())
    assert torch.equal(_logits(second, records), _logits(first, records))
    third = make_model(name="another", adapter={"train": train})
    third.set_arrays(first.get_arrays())
    assert torch.equal(_logits(third, records), _logits(first, records)) == (train == "AB")


@pytest.mark.parametrize("method", ["lora", "head"])
def test_a_head_that_starts_from_label_names_knows_them(method: str, make_model: MakeModel) -> None:
    labels = ["w1_w2", "w9 w7 w8", "w20", "w31 shoes"]
    task = {"kind": "multiclass", "labels": labels}
    adapter = {"method": method, "label_head": 8.0, "text_scale": 0.5}
    model = make_model(task=task, adapter=adapter)
    tokens = fit_texts([[label.replace("_", " ")] for label in labels], model.tokenizer, 32)
    columns = np.random.default_rng(0).random((4, model.card.features.width), dtype=np.float32)
    with torch.no_grad():
        logits = model(tokens, columns).double()
    assert logits.argmax(dim=1).tolist() == [0, 1, 2, 3]
    # By hand, from the texts alone: half the squared distance to each label, scaled.
    probe = make_model(task=task, adapter={"method": "head"})
    texts = torch.cat(probe.prefix(tokens)).double()
    near = torch.cdist(texts, texts).square() / 2
    scale = 8.0 / float((texts - texts.mean(dim=0)).square().sum(dim=1).mean())
    assert torch.allclose(logits - logits.diagonal()[:, None], -scale * near, atol=1e-3)
    plain = make_model(task=task, adapter={"method": method}).initial_arrays()
    started = model.initial_arrays()
    assert not plain["head.weight"].any() and not plain["head.bias"].any()
    assert not started["head.weight"][:, model.hidden_size :].any(), "the columns start at zero"
    again = make_model(task=task, adapter=adapter).initial_arrays()
    assert all(np.array_equal(again[name], started[name]) for name in started)


def test_b_only_sends_half_and_freezes_a(make_model: MakeModel, make_records: MakeRecords) -> None:
    both, half = make_model(), make_model(adapter={"train": "B"})
    assert [name for name in both.layout() if "lora_A" not in name] == list(half.layout())
    frozen = {name: value for name, value in half.named_parameters() if "lora_A" in name}
    assert len(frozen) == 2
    assert not any(parameter.requires_grad for parameter in frozen.values())
    again = dict(make_model(adapter={"train": "B"}).named_parameters())
    assert all(value.any() and torch.equal(value, again[name]) for name, value in frozen.items())
    records = make_records(half)
    nn.functional.cross_entropy(half(records.tokens, records.features), torch.from_numpy(records.labels)).backward()
    assert all(value.grad is None for value in frozen.values())


def test_arrays_round_trip(make_model: MakeModel, make_records: MakeRecords, stir: Stir) -> None:
    model, other = make_model(), make_model()
    stir(model)
    records = make_records(model)
    assert not torch.equal(_logits(model, records), _logits(other, records))
    other.set_arrays(model.get_arrays())
    assert torch.equal(_logits(model, records), _logits(other, records))
    # Copies, both ways: nothing that the caller does to them reaches the model.
    arrays = other.get_arrays()
    for array in (*arrays.values(), *model.initial_arrays().values()):
        array += 1.0
    assert torch.equal(_logits(model, records), _logits(other, records))
    assert not any(value.any() for name, value in other.initial_arrays().items() if "lora_A" not in name)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "dtype", "nan"])
def test_arrays_that_do_not_fit_are_refused(change: str, make_model: MakeModel) -> None:
    model = make_model()
    arrays = model.get_arrays()
    bias = arrays.pop("head.bias")
    if change == "unknown":
        arrays |= {"head.bias": bias, "head.other": bias}
    elif change != "missing":
        arrays["head.bias"] = {"shape": bias[:1], "dtype": bias.astype(np.float64), "nan": bias * np.nan}[change]
    before = model.get_arrays()
    with pytest.raises(AdapterError):
        model.set_arrays(arrays)
    assert all(np.array_equal(before[name], value) for name, value in model.get_arrays().items())


def test_models_share_one_base_and_do_not_disturb_each_other(
    tiny_base: Path, card_data: Callable[..., dict[str, Any]], make_records: MakeRecords, stir: Stir
) -> None:
    card = FederationCard.model_validate(card_data())
    base, tokenizer = load_base(resolve_base(card.base, tiny_base))
    before = {name: value.clone() for name, value in base.state_dict().items()}
    first, second = ProfileModel(card, base, tokenizer), ProfileModel(card, base, tokenizer)
    stir(first)
    shared = {value.data_ptr() for value in base.parameters()}
    for model in (first, second):
        frozen = [value for value in model.parameters() if not value.requires_grad]
        assert {value.data_ptr() for value in frozen} <= shared
    records = make_records(first)
    # The second one's head is zero, whatever the first one holds.
    assert not _logits(second, records).any()
    assert _logits(first, records).any()
    after = base.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_every_dropout_is_off_in_training_mode(
    make_model: MakeModel,
    make_family: Callable[[str], tuple[PreTrainedModel, dict[str, Any]]],
    make_records: MakeRecords,
    stir: Stir,
) -> None:
    for family in ("bert", "distilbert", "gpt2"):
        base, adapter = make_family(family)
        assert any(isinstance(module, nn.Dropout) and module.p > 0 for module in base.modules())
        model = make_model(base, adapter=adapter)
        stir(model)
        assert model.training
        assert all(module.training for module in model.modules())
        records = make_records(model)
        assert torch.equal(_logits(model, records), _logits(model, records))
        # The base that was given keeps its own.
        assert any(isinstance(module, nn.Dropout) and module.p > 0 for module in base.modules())


def test_right_padding_does_not_matter(make_model: MakeModel, make_records: MakeRecords, stir: Stir) -> None:
    model = make_model()
    stir(model)
    records = make_records(model, count=5)
    together = _logits(model, records)
    for place in range(5):
        with torch.no_grad():
            alone = model(records.tokens[place : place + 1], records.features[place : place + 1])
        torch.testing.assert_close(alone[0], together[place], rtol=0, atol=1e-5)


def test_features_and_text_scale_reach_the_head(make_model: MakeModel, make_records: MakeRecords) -> None:
    model = make_model(adapter={"text_scale": 3.0})
    records = make_records(model)
    weight = np.zeros((2, model.hidden_size + model.card.features.width), np.float32)
    weight[1, :] = 0.5
    model.set_arrays(model.get_arrays() | {"head.weight": weight, "head.bias": np.array([0, 0.25], np.float32)})
    encoder: Any = model._inner[0]
    for tokens, features, logits in zip(records.tokens, records.features, _logits(model, records), strict=True):
        with torch.no_grad():
            pooled = encoder(input_ids=torch.tensor(tokens[None].astype(np.int64))).last_hidden_state[0].mean(0)
        expected = 0.5 * (3.0 * float(pooled.sum()) + float(features.sum())) + 0.25
        np.testing.assert_allclose(logits.numpy(), [0.0, expected], rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 100.5, float("inf"), float("nan")])
def test_a_text_scale_that_would_blow_up_rounding_is_refused(
    scale: float, card_data: Callable[..., dict[str, Any]]
) -> None:
    adapter = card_data()["adapter"]
    assert FederationCard.model_validate(card_data(adapter={"text_scale": 100.0})).adapter.text_scale == 100.0
    with pytest.raises(ValidationError, match="text_scale"):
        FederationCard.model_validate({**card_data(), "adapter": {**adapter, "text_scale": scale}})


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_the_probe_trains_the_head_alone(make_model: MakeModel, make_records: MakeRecords, stir: Stir) -> None:
    model = make_model(adapter={"method": "head"})
    assert list(model.layout()) == ["head.weight", "head.bias"]
    stir(model)
    records = make_records(model)
    cache = PrefixCache(model)
    full, short = _logits(model, records), _logits(model, records, cache)
    torch.testing.assert_close(short, full, rtol=0, atol=1e-5)
    assert cache.get(records.tokens, 32).shape == (len(records), model.hidden_size)
    hooks = prepare_module(model, "hooks", wrap_model=False, loss_reduction="sum", batch_first=True)
    labels = torch.from_numpy(records.labels)
    nn.functional.cross_entropy(model(records.tokens, records.features, cache), labels, reduction="sum").backward()
    errors = torch.softmax(full, 1) - nn.functional.one_hot(labels, 2)
    bias: Any = model.head.bias
    torch.testing.assert_close(bias.grad_sample, errors, rtol=0, atol=1e-5)
    hooks.cleanup()


def test_predictions_are_probabilities_in_the_records_order(
    make_model: MakeModel, make_records: MakeRecords, stir: Stir
) -> None:
    model = make_model(task={"kind": "multiclass", "labels": ["a", "b", "c"]})
    stir(model)
    records = make_records(model, count=200, longest=32)
    found = model.predict(records)
    assert found.shape == (200, 3)
    np.testing.assert_allclose(found.sum(1), 1.0)
    np.testing.assert_allclose(found, model.predict(records, PrefixCache(model)), atol=5e-3)
    for place in (0, 17, 199):
        with torch.no_grad():
            logits = model([records.tokens[place]], records.features[place : place + 1])
        np.testing.assert_allclose(found[place], torch.softmax(logits.double(), 1)[0].numpy(), atol=1e-6)
    none = replace(records, user=records.user[:0], tokens=[], features=records.features[:0], labels=records.labels[:0])
    assert model.predict(none).shape == (0, 3)


def test_a_cache_of_another_model_is_refused(make_model: MakeModel, make_records: MakeRecords) -> None:
    model, other = make_model(), make_model(adapter={"top_layers": 2})
    records = make_records(model)
    with pytest.raises(ValueError, match="another model"):
        model(records.tokens, records.features, PrefixCache(other))
    # Rank, targets and label names do not change what the frozen layers give.
    sibling = make_model(adapter={"rank": 4, "targets": ["key"]}, name="sibling")
    model(records.tokens, records.features, PrefixCache(sibling))


def test_a_longer_history_than_the_base_has_positions_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match="at most 64 tokens"):
        make_model(history={"max_tokens": 65})


def test_a_decoder_without_a_pad_token_uses_its_end_token(
    tiny_base: Path,
    card_data: Callable[..., dict[str, Any]],
    make_family: Callable[[str], tuple[PreTrainedModel, dict[str, Any]]],
) -> None:
    base, adapter = make_family("gpt2")
    card = FederationCard.model_validate(card_data(adapter=adapter))
    tokenizer: PreTrainedTokenizerBase = load_base(resolve_base(card.base, tiny_base))[1]
    tokenizer.pad_token = None
    with pytest.raises(ConfigError, match="neither a pad nor an end token"):
        ProfileModel(card, base, tokenizer)
    tokenizer.eos_token = "w3"
    assert ProfileModel(card, base, tokenizer).pad_id == 7
