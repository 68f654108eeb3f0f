"""The top layer for last tokens alone, against the whole layer and against whole passes of one record."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.common.modeling.test_hollow import Stir, _gradients, _gradients_one_by_one
from tests.modeling_fixtures import FAMILIES, MakeFamily, MakeModel
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertLayer as PlainBertLayer

from fedprofile.common.modeling.last_token import last_token
from fedprofile.common.modeling.pooling import pool
from fedprofile.common.modeling.prefix_cache import PrefixCache

FAST = {"bert", "roberta", "xlm_roberta", "llama", "mistral", "qwen2"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("top_layers", [1, 2])
def test_logits_are_those_of_the_whole_layer(
    family: str, top_layers: int, make_family: MakeFamily, make_model: MakeModel, make_records: Any, stir: Stir
) -> None:
    base, adapter = make_family(family)
    model = make_model(base, adapter={**adapter, "pooling": "last", "top_layers": top_layers})
    assert (model._last_token is not None) == (family in FAST)
    stir(model)
    records = make_records(model, count=7)
    batch = model.batch(records.tokens)
    encoder: Any = model.encoder
    with torch.no_grad():
        with model.short_cuts():
            found = model(records.tokens, records.features)
            cached = model(records.tokens, records.features, PrefixCache(model, number_format="float32"))
        whole = encoder(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
        assert whole.shape[1] == batch.ids.shape[1], "the model's own forward is as it was"
        pooled = pool(whole, batch.mask, "last") * model.card.adapter.text_scale
        expected = model.head(torch.cat([pooled, torch.from_numpy(records.features)], dim=1))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(cached, expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("family", sorted(FAST))
@pytest.mark.parametrize("targets", ["some", "all"])
def test_per_record_gradients_equal_a_loop(
    family: str, targets: str, make_family: MakeFamily, make_model: MakeModel, make_records: Any, stir: Stir
) -> None:
    base, adapter = make_family(family)
    if targets == "all":
        kin = ["query", "key", "value", "dense"], ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
        adapter["targets"] = kin[family not in ("bert", "roberta", "xlm_roberta")]
    model = make_model(base, adapter={**adapter, "pooling": "last", "text_scale": 0.7})
    assert model._last_token is not None
    stir(model)
    records = make_records(model)
    with model.short_cuts():
        hooked = _gradients(model, records, PrefixCache(model, number_format="float32"))
    looped = _gradients_one_by_one(model, records)
    assert np.abs(hooked - looped).max() / np.abs(looped).max() < 5e-6


def test_a_layer_that_computes_something_else_runs_whole() -> None:
    class BertLayer(PlainBertLayer):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs) * 1.01

    config = BertConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    model = BertModel(config, add_pooling_layer=False).eval()
    assert last_token(model) is not None
    model.encoder.layer[-1] = BertLayer(config).eval()  # type: ignore[no-untyped-call]
    assert last_token(model) is None
