"""LoRA in the right places, with a start that every machine computes for itself."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.modeling_fixtures import FAMILIES, MakeFamily, MakeFamilyFolder
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedprofile.common.errors import ConfigError
from fedprofile.common.modeling.families import usual
from fedprofile.common.modeling.lora import audit_trainables, initial_a
from fedprofile.common.modeling.profile_model import ProfileModel

MakeModel = Callable[..., ProfileModel]


START_HASH = "48908d465a51a4a41cb946c884cb1cedd4fd1228934ed9f8fe9283425cddea47"


def test_the_start_is_the_same_everywhere() -> None:
    # Written down once: a change of numpy, of the platform or of the code would split a federation.
    start = initial_a("0" * 64, "layer.lora_A.weight", (2, 16))
    assert start.dtype == np.float32
    assert hashlib.sha256(start.astype("<f4").tobytes()).hexdigest() == START_HASH


def test_the_start_has_pefts_range() -> None:
    start = initial_a("a" * 64, "x", (64, 400))
    bound = 1 / math.sqrt(400)
    reference = torch.empty(64, 400)
    nn.init.kaiming_uniform_(reference, a=math.sqrt(5))
    assert np.abs(start).max() < bound
    assert np.abs(start).max() > 0.99 * bound
    assert abs(float(reference.abs().max()) - float(np.abs(start).max())) < 0.01 * bound
    assert abs(start.mean()) < 0.02 * bound
    assert abs(start.std() - bound / math.sqrt(3)) < 0.02 * bound


def test_the_start_depends_on_card_and_name() -> None:
    starts = [initial_a("a" * 64, "x", (4, 4)), initial_a("b" * 64, "x", (4, 4)), initial_a("a" * 64, "y", (4, 4))]
    assert len({start.tobytes() for start in starts}) == 3


def test_only_the_top_layers_are_adapted(make_model: MakeModel) -> None:
    names = list(make_model(adapter={"top_layers": 2}).layout())
    layers = [name.split(".layer.")[1].split(".")[0] for name in names if "lora" in name]
    assert layers == ["1"] * 4 + ["2"] * 4
    assert names[-2:] == ["head.weight", "head.bias"]
    assert names[0] == "base_model.model.encoder.layer.1.attention.self.query.lora_A.weight"


def test_an_unknown_target_names_those_that_exist(make_model: MakeModel) -> None:
    expected = r"'q_proj'; a base model of type bert has dense, key, query, value; usual for it: query, value\."
    with pytest.raises(ConfigError, match=expected):
        make_model(adapter={"targets": ["query", "q_proj"]})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_usual_targets_fit_each_family_and_no_other_is_taken(
    family: str, make_model: MakeModel, make_family_folder: MakeFamilyFolder, make_family: MakeFamily
) -> None:
    folder, fixture = make_family_folder(family)
    known = usual(folder)
    assert list(known.targets) == fixture["targets"] and known.pooling == fixture["pooling"]
    base, adapter = make_family(family)
    make_model(base, adapter=adapter | {"targets": known.targets, "pooling": known.pooling})
    wrong = ["query_key"] if "query" in known.targets else ["query", "value"]
    with pytest.raises(ConfigError, match=rf"adapter\.targets: .*usual for it: {', '.join(known.targets)}\."):
        make_model(base, adapter=adapter | {"targets": wrong})


@pytest.mark.parametrize("config", ['{"model_type": "t5"}', '{"model_type": "vit"}', "{}", "[]", "{"])
def test_nothing_is_usual_for_what_is_no_plain_encoder_or_decoder(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigError, match=r"nothing is known of|cannot be read as"):
        usual(tmp_path)


def test_a_target_named_twice_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match="two targets name the same module"):
        make_model(adapter={"targets": ["query", "self.query"]})


def test_building_a_model_leaves_the_global_generator_alone(make_model: MakeModel) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    make_model()
    assert torch.equal(torch.rand(4), expected)


def test_transposed_layers_are_recognised(
    make_model: MakeModel, make_family: Callable[[str], tuple[PreTrainedModel, dict[str, Any]]], tmp_path: Path
) -> None:
    base, adapter = make_family("gpt2")
    model: Any = make_model(base, adapter=adapter)
    assert model.encoder.peft_config["default"].fan_in_fan_out is True
    adapted: Any = next(m for name, m in model.named_modules() if name.endswith("h.3.attn.c_attn"))
    assert isinstance(adapted.base_layer, Conv1D)


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)
        self.two.weight = self.one.weight


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), "1.weight"),
        (nn.Sequential(nn.Embedding(3, 2)), "0.weight"),
        (nn.Sequential(Conv1D(2, 2)), "0.weight"),
        (nn.Sequential(nn.Bilinear(2, 2, 2)), "0.weight"),
        (_Tied(), "two.weight"),
    ],
)
def test_trainables_that_opacus_gets_wrong_are_refused(model: nn.Module, name: str) -> None:
    # Tied parameters are listed once by PyTorch, so the audit walks the modules.
    with pytest.raises(ConfigError, match=name):
        audit_trainables(model)


def test_frozen_parameters_of_any_kind_pass() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    model[1].requires_grad_(False)
    audit_trainables(model)
