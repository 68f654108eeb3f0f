"""The hollow model against the full one, and Opacus's per-record gradients against a loop, for every family."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from opacus.grad_sample.utils import prepare_module
from peft import PeftModel
from tests.modeling_fixtures import FAMILIES
from torch import nn
from transformers import AutoModel, BertConfig, BertModel, PreTrainedModel, T5Config, T5Model

from fedprofile.common.errors import ConfigError
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.modeling.hollow import Hollow, check_hollow, layer_list
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel

pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

MakeFamily = Callable[[str], tuple[PreTrainedModel, dict[str, Any]]]
MakeModel = Callable[..., ProfileModel]
MakeRecords = Callable[..., EncodedRecords]
Stir = Callable[[ProfileModel], None]


def _gradients(model: ProfileModel, records: EncodedRecords, cache: PrefixCache) -> NDArray[np.float32]:
    """Per-record gradients by Opacus's hooks in one hollow pass, [n, all trainables]."""
    hooks = prepare_module(model, "hooks", wrap_model=False, loss_reduction="sum", batch_first=True)
    logits = model(records.tokens, records.features, cache)
    nn.functional.cross_entropy(logits, torch.from_numpy(records.labels), reduction="sum").backward()
    samples: list[torch.Tensor] = [getattr(p, "grad_sample").flatten(1) for p in model.trainables().values()]  # noqa: B009
    hooks.cleanup()
    return torch.cat(samples, 1).numpy()


def _gradients_one_by_one(model: ProfileModel, records: EncodedRecords) -> NDArray[np.float32]:
    """The same by one full, unpadded pass for each record, without Opacus and without this project's padding."""
    found = []
    encoder: Any = model.encoder
    for tokens, features, label in zip(records.tokens, records.features, records.labels, strict=True):
        model.zero_grad()
        hidden = encoder(input_ids=torch.tensor(tokens[None].astype(np.int64))).last_hidden_state[0]
        pooled = hidden.mean(0) if model.card.adapter.pooling == "mean" else hidden[-1]
        inputs = torch.cat([pooled * model.card.adapter.text_scale, torch.from_numpy(features)])
        logits = model.head(inputs[None])[0]
        nn.functional.cross_entropy(logits, torch.tensor(label)).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.trainables().values() if p.grad is not None]).numpy())
    return np.stack(found)


def _embeddings(base: Any) -> Any:
    return base.get_input_embeddings()


@pytest.mark.parametrize("family", FAMILIES)
def test_hollow_equals_full(
    family: str, make_family: MakeFamily, make_model: MakeModel, make_records: MakeRecords, stir: Stir
) -> None:
    base, adapter = make_family(family)
    model = make_model(base, adapter=adapter)
    stir(model)
    records = make_records(model)
    with torch.no_grad():
        full = model(records.tokens, records.features)
        exact = model(records.tokens, records.features, PrefixCache(model, number_format="float32"))
        short = model(records.tokens, records.features, PrefixCache(model))
    # The cache is filled in other batches than the full pass, so sums round differently; nothing else differs.
    torch.testing.assert_close(exact, full, rtol=0, atol=1e-5)
    torch.testing.assert_close(short, full, rtol=0, atol=2e-2)
    assert float((full[0] - full[1]).abs().max()) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_per_record_gradients_equal_a_loop(
    family: str, make_family: MakeFamily, make_model: MakeModel, make_records: MakeRecords, stir: Stir
) -> None:
    base, adapter = make_family(family)
    model = make_model(base, adapter={**adapter, "text_scale": 0.7})
    stir(model)
    records = make_records(model)
    hooked = _gradients(model, records, PrefixCache(model, number_format="float32"))
    looped = _gradients_one_by_one(model, records)
    assert all(np.abs(looped[row]).max() > 1e-3 for row in range(len(records)))
    assert np.abs(hooked - looped).max() / np.abs(looped).max() < 5e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_loads_with_plain_peft(
    family: str, make_family: MakeFamily, make_model: MakeModel, make_records: MakeRecords, stir: Stir, tmp_path: Path
) -> None:
    base, adapter = make_family(family)
    base.save_pretrained(tmp_path / "base")
    model = make_model(base, adapter=adapter)
    stir(model)
    assert isinstance(model.encoder, PeftModel)
    records = make_records(model, count=3)
    batch = model.batch(records.tokens)
    # Saving works in the middle of a hollow pass: the names are those of the whole model.
    assert model._hollow is not None
    with model._hollow.filled(torch.zeros(1, 1, 32)):
        model.encoder.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    plain = PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "base"), str(tmp_path / "adapter")).eval()
    untouched = AutoModel.from_pretrained(tmp_path / "base").eval()
    with torch.no_grad():
        ours = model.encoder(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
        theirs = plain(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
        without = untouched(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
    kept = batch.mask.bool()
    assert float((ours - theirs)[kept].abs().max()) == 0.0
    assert float((ours - without)[kept].abs().max()) > 1e-3


def test_the_whole_encoder_can_be_adapted(make_model: MakeModel, make_records: MakeRecords, stir: Stir) -> None:
    model = make_model(adapter={"top_layers": 3})
    stir(model)
    records = make_records(model)
    with torch.no_grad():
        full = model(records.tokens, records.features)
        exact = model(records.tokens, records.features, PrefixCache(model, number_format="float32"))
    torch.testing.assert_close(exact, full, rtol=0, atol=1e-6)


def test_the_frozen_layers_do_not_run(make_model: MakeModel, make_records: MakeRecords) -> None:
    model = make_model()
    records = make_records(model)
    cache = PrefixCache(model)
    cache.fill(records.tokens)
    ran: list[int] = []
    _, layers = layer_list(model._inner[0])
    for place, layer in enumerate(layers):
        layer.register_forward_hook(lambda module, args, output, place=place: ran.append(place))
    model(records.tokens, records.features, cache)
    assert ran == [2]
    model(records.tokens, records.features)
    assert ran == [2, 0, 1, 2]


def test_the_model_is_whole_again_after_an_error(make_model: MakeModel) -> None:
    model = make_model()
    before = [id(layer) for layer in layer_list(model._inner[0])[1]]
    assert model._hollow is not None
    with pytest.raises(RuntimeError, match="within"), model._hollow.filled(torch.zeros(1)):
        raise RuntimeError("within")
    assert [id(layer) for layer in layer_list(model._inner[0])[1]] == before
    assert not layer_list(model._inner[0])[1][2]._forward_pre_hooks


def test_several_lists_of_layers_are_refused() -> None:
    small: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
    with pytest.raises(ConfigError, match="4 lists of 2 layers instead of one"):
        layer_list(T5Model(T5Config(**small)))


def test_more_layers_than_there_are_are_refused(make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match="top_layers is 4, the base model has 3 layers"):
        make_model(adapter={"top_layers": 4})


def test_activations_that_are_not_finite_stay_with_their_record(
    make_model: MakeModel, make_records: MakeRecords, make_family: MakeFamily, stir: Stir
) -> None:
    """Whoever shares a batch with such a record has the same activations, outputs and gradients, bit by bit."""
    base, adapter = make_family("bert")
    models = [make_model(base, adapter=adapter | change) for change in ({}, {"method": "head"})]
    # Words of exactly one record, broken only after the model's own check at construction.
    records = make_records(models[0], count=6)
    records.tokens[1][:] = 150
    kept = [place for place in range(6) if place != 1]
    whole = [model.prefix(records.tokens) for model in models]
    for model in models:
        stir(model)
    before = [_gradients(model, records, PrefixCache(model)) for model in models]
    with torch.no_grad():
        logits = [model(records.tokens, records.features, PrefixCache(model)) for model in models]
        _embeddings(base).weight[150] = torch.nan
    for model, prefixes, gradients, found in zip(models, whole, before, logits, strict=True):
        cache = PrefixCache(model)
        cache.fill(records.tokens)
        assert cache.broken(records.tokens).tolist() == [place == 1 for place in range(6)]
        broken = model.prefix(records.tokens)
        assert all(torch.equal(broken[place], prefixes[place]) for place in kept)
        with torch.no_grad():
            now = model(records.tokens, records.features, cache)
        assert torch.equal(now[kept], found[kept]) and bool(now[1].isnan().all())
        after = _gradients(model, records, cache)
        assert np.array_equal(after[kept], gradients[kept]) and not np.isfinite(after[1]).all()


def test_activations_beyond_the_number_format_are_not_finite(make_model: MakeModel, make_family: MakeFamily) -> None:
    base, adapter = make_family("llama")
    with torch.no_grad():
        _embeddings(base).weight.mul_(1e7)
    model = make_model(base, adapter=adapter)
    tokens = [np.array([5, 6], dtype=np.int32)]
    assert PrefixCache(model).broken(tokens).all()
    assert not PrefixCache(model, number_format="bfloat16").broken(tokens).any()


class _Doubling(nn.Module):
    """A frozen layer's successor that reads more than its input: it breaks when the layers below do not run."""

    def __init__(self, inner: nn.Module, below: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen: list[torch.Tensor] = []
        below.register_forward_hook(lambda module, args, output: self.seen.append(output))

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        extra = self.seen.pop() if self.seen else torch.zeros_like(hidden_states)
        return self.inner(hidden_states + extra, *args, **kwargs)


def test_a_model_that_cannot_be_hollow_is_refused() -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2)
    model = BertModel(config).eval()
    check_hollow(model, Hollow(model, 1))
    tricky = copy.deepcopy(model)
    layers = layer_list(tricky)[1]
    layers[2] = doubling = _Doubling(layers[2], layers[0])
    tricky.register_forward_pre_hook(lambda module, args: doubling.seen.clear())
    with pytest.raises(ConfigError, match="starting at layer 2"):
        check_hollow(tricky, Hollow(tricky, 1))


def test_a_model_with_dropout_left_on_is_refused() -> None:
    model = BertModel(
        BertConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2)
    ).train()
    with pytest.raises(ConfigError, match="not deterministic"):
        check_hollow(model, Hollow(model, 1))
