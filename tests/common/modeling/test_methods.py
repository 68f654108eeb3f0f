"""Adapter methods: what a card may ask for is trained rightly; each reason for a refusal is held against PEFT."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import peft
import pytest
import torch
from opacus.grad_sample.utils import prepare_module
from torch import nn
from transformers import BertConfig, BertModel

from fedprofile.common.card import NOT_PRIVATE, FederationCard
from fedprofile.common.config import validate
from fedprofile.common.errors import ConfigError
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.modeling.lora import audit_trainables, lora_layers
from fedprofile.common.modeling.profile_model import ProfileModel

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

RECORDS, HIDDEN, VIRTUAL = 4, 16, 3
LORA: dict[str, Any] = {"r": 2, "target_modules": ["query", "value"]}
PEFTS: dict[str, Any] = {
    "adalora": lambda task: peft.AdaLoraConfig(
        task_type=task, init_r=2, target_r=1, total_step=9, target_modules=["query", "value"]
    ),
    "dora": lambda task: peft.LoraConfig(task_type=task, use_dora=True, **LORA),
    "ia3": lambda task: peft.IA3Config(task_type=task, target_modules=["query", "value"], feedforward_modules=[]),
    "lora": lambda task: peft.LoraConfig(task_type=task, **LORA),
    "p-tuning": lambda task: peft.PromptEncoderConfig(
        task_type=task, num_virtual_tokens=VIRTUAL, encoder_hidden_size=8
    ),
    "prefix": lambda task: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=VIRTUAL),
    "prompt": lambda task: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=VIRTUAL),
}


def _adapted(method: str) -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    base = BertModel(config, add_pooling_layer=False).requires_grad_(False)
    model: Any = peft.get_peft_model(base, PEFTS[method]("FEATURE_EXTRACTION")).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def _loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    hidden: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    return hidden.mean(1).square().sum()


def _samples(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor | None]:
    """What Opacus hangs on each trainable, all records at once."""
    hooks = prepare_module(model, "hooks", wrap_model=False, loss_reduction="sum", batch_first=True)
    try:
        _loss(model, ids).backward()
        return {name: getattr(p, "grad_sample", None) for name, p in model.named_parameters() if p.requires_grad}
    finally:
        hooks.cleanup()


def _alone(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Each record by itself, by autograd."""
    names, trained = zip(*((name, p) for name, p in model.named_parameters() if p.requires_grad), strict=True)
    found = [torch.autograd.grad(_loss(model, row[None]), trained) for row in ids]
    return {name: torch.stack(parts) for name, parts in zip(names, zip(*found, strict=True), strict=True)}


def _ids() -> torch.Tensor:
    return torch.arange(RECORDS * 7).view(RECORDS, 7) * 3 % 50


def test_the_comparison_finds_lora_right() -> None:
    model = _adapted("lora")
    audit_trainables(model)
    expected = _alone(model, _ids())
    for name, sample in _samples(model, _ids()).items():
        assert sample is not None
        torch.testing.assert_close(sample, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", sorted(NOT_PRIVATE))
def test_the_audit_refuses_what_a_card_may_not_ask_for(method: str) -> None:
    with pytest.raises(ConfigError, match="cannot be trained with per-record gradients"):
        audit_trainables(_adapted(method))


@pytest.mark.parametrize("method", ["adalora", "ia3"])
def test_bare_weights_get_no_gradient_by_record(method: str) -> None:
    samples = _samples(_adapted(method), _ids())
    assert samples and all(sample is None for sample in samples.values())


@pytest.mark.parametrize("method", ["prompt", "p-tuning"])
def test_virtual_tokens_get_one_gradient_for_all_records(method: str) -> None:
    """Clipping it would bound the batch and not a user."""
    model = _adapted(method)
    expected, samples = _alone(model, _ids()), _samples(model, _ids())
    for name, sample in samples.items():
        assert sample is not None and sample.shape[0] == 1
        torch.testing.assert_close(sample[0], expected[name].sum(0), rtol=1e-3, atol=1e-5)


def test_a_prefix_reaches_into_the_lowest_layer() -> None:
    model = _adapted("prefix")
    seen: list[torch.Tensor] = []
    model.base_model.encoder.layer[0].register_forward_hook(
        lambda module, args, output: seen.append(output[0].detach())
    )
    for _ in range(2):
        _loss(model, _ids())
        model.prompt_encoder["default"].embedding.weight.data.mul_(2)
    assert float((seen[0] - seen[1]).abs().max()) > 1e-3


def test_dora_leaves_its_factors_without_gradients_by_record() -> None:
    """Even with its magnitudes frozen: autograd has a gradient for each record, Opacus waits for another one."""
    model = _adapted("dora")
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.requires_grad_(False)
    expected, samples = _alone(model, _ids()), _samples(model, _ids())
    assert all(bool(gradients.abs().sum() > 0) for gradients in expected.values())
    assert all(sample is None for sample in samples.values())


@pytest.mark.parametrize(
    "named", ["adalora", "AdaLoRA", "dora", "ia3", "prefix", "prefix_tuning", "prompt-tuning", "p_tuning", "ptuning"]
)
def test_a_card_that_names_it_is_refused_with_the_reason(named: str, card_data: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(card_data(adapter={"method": named}), FederationCard, "federation.toml")
    assert caught.value.exit_code == 2
    said = str(caught.value)
    assert said.startswith("federation.toml: 'adapter.method': cannot be trained privately here: ")
    assert said.endswith(f"use 'lora' (with scaling) or 'head' (found '{named}').") and "\n" not in said


def test_rslora_scales_by_the_root_of_the_rank(make_model: Callable[..., ProfileModel]) -> None:
    scales = {
        scaling: {layer.scaling["default"] for layer in lora_layers(model.encoder).values()}
        for scaling in ("lora", "rslora")
        for model in [make_model(adapter={"scaling": scaling, "rank": 9, "alpha": 6.0})]
    }
    assert scales == {"lora": {6 / 9}, "rslora": {6 / math.sqrt(9)}}


def test_rslora_is_lora_with_a_larger_alpha(
    make_model: Callable[..., ProfileModel],
    make_records: Callable[..., EncodedRecords],
    stir: Callable[[ProfileModel], None],
) -> None:
    models = [
        make_model(adapter={"scaling": "rslora", "rank": 4, "alpha": 3.0}),
        make_model(adapter={"scaling": "lora", "rank": 4, "alpha": 6.0}),
    ]
    for model in models:
        stir(model)
    models[1].set_arrays(models[0].get_arrays())
    records = make_records(models[0])
    rs, plain = (model.predict(records) for model in models)
    assert np.array_equal(rs, plain) and np.ptp(rs[:, 1]) > 1e-3
