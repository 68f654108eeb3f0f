"""LoRA on the top layers of a base model by PEFT, with a start that every machine computes for itself.

The A matrices start from a Philox stream keyed by SHA-256 of (card hash, tensor name), in PEFT's own range; B starts
at zero. So server and tenants agree on the start without sending it, and with `train = "B"`, where A stays frozen,
A never travels at all.
"""

import hashlib
import math
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedprofile.common.errors import ConfigError
from fedprofile.common.modeling.families import usual_targets
from fedprofile.common.modeling.hollow import layer_list

ADAPTER = "default"
"""PEFT's name of the one adapter; it stands in parameter names and not in files."""


def add_lora(
    model: PreTrainedModel,
    *,
    rank: int,
    alpha: float,
    scaling: Literal["lora", "rslora"],
    targets: Sequence[str],
    top_layers: int,
    train: Literal["AB", "B"],
    card_hash: str,
    base_id: str,
    revision: str,
) -> PeftModel:
    """Put LoRA modules into the top layers of a model.

    Args:
        model: A bare encoder or decoder; changed in place.
        rank: Of the two factors.
        alpha: The factors' product is multiplied by alpha / rank.
        scaling: With "rslora" by alpha / sqrt(rank) instead.
        targets: Names of linear modules within a layer, such as `query`.
        top_layers: How many layers, counted from the top.
        train: Both factors, or B alone with A frozen.
        card_hash: Seeds A.
        base_id: The base's public id, which the adapter's file names.
        revision: The base's revision.

    Returns:
        The PEFT model; only the factors to train require gradients.

    Raises:
        ConfigError: A target is not a linear module of every one of these layers.
    """
    name, layers = layer_list(model)
    places = list(range(len(layers) - top_layers, len(layers)))
    targeted = _targeted(layers, places, targets, str(model.config.model_type))
    config = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=rank,
        lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,
        use_rslora=scaling == "rslora",
        lora_dropout=0.0,
        target_modules=sorted(targets),
        layers_to_transform=places,
        layers_pattern=name.rsplit(".", 1)[-1],
        fan_in_fan_out=isinstance(targeted[0], Conv1D),
    )
    # PEFT draws a start from torch's global generator, which the deterministic one below replaces.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        adapted = get_peft_model(model, config)
    adapted.peft_config[ADAPTER].base_model_name_or_path = base_id
    adapted.peft_config[ADAPTER].revision = revision
    found = len(lora_layers(adapted))
    if found != len(targeted):
        raise ConfigError(f"adapter.targets: PEFT adapted {found} modules, not those of the top {top_layers} layers.")
    for parameter_name, parameter in adapted.named_parameters():
        if ".lora_A." in parameter_name:
            start = initial_a(card_hash, wire_name(parameter_name), tuple(parameter.shape))
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(start))
            parameter.requires_grad_(train == "AB")
    return adapted


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The adapted modules of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def wire_name(parameter_name: str) -> str:
    """A parameter's name in PEFT's files and on the wire, without the adapter's local name."""
    return parameter_name.replace(f".{ADAPTER}.", ".")


def initial_a(card_hash: str, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The start of one A matrix, bit for bit the same on every machine.

    Args:
        card_hash: The federation's identity.
        name: The tensor's wire name.
        shape: (rank, inputs).

    Returns:
        Uniform between -1 and 1 over the square root of the inputs (Kaiming with a = sqrt(5), as in PEFT). Built on
        Philox's raw numbers, whose stream numpy keeps, unlike that of its distributions.
    """
    key = hashlib.sha256(f"{card_hash} {name}".encode()).digest()[:16]
    raw = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(math.prod(shape))
    unit = (np.asarray(raw, dtype=np.uint64) >> np.uint64(40)).astype(np.float64) * 2.0**-24
    start: NDArray[np.float32] = ((2.0 * unit - 1.0) / math.sqrt(shape[1])).astype(np.float32).reshape(shape)
    return start


def audit_trainables(model: nn.Module) -> None:
    """Refuse trainable parameters whose per-record gradients Opacus's hooks would get wrong without a word.

    Args:
        model: The whole model that will be trained.

    Raises:
        ConfigError: A trainable parameter belongs to something else than a plain `nn.Linear`, or to two modules.
    """
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if type(module) is not nn.Linear or id(parameter) in seen:
                raise ConfigError(
                    f"{module_name}.{name} cannot be trained with per-record gradients "
                    f"({type(module).__name__}, or shared between modules); choose other adapter.targets."
                )
            seen.add(id(parameter))


def _targeted(layers: nn.ModuleList, places: Sequence[int], targets: Sequence[str], family: str) -> list[nn.Module]:
    """The modules to adapt; every target must be in every layer."""
    found: list[nn.Module] = []
    for place in places:
        linear = {
            name: module for name, module in layers[place].named_modules() if isinstance(module, nn.Linear | Conv1D)
        }
        for target in targets:
            matched = [module for name, module in linear.items() if name == target or name.endswith(f".{target}")]
            if not matched:
                known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
                usual = usual_targets(family)
                advice = f"; usual for it: {', '.join(usual)}" if usual else ""
                raise ConfigError(
                    f"adapter.targets: layer {place} has no linear module '{target}'; a base model of type {family} "
                    f"has {known}{advice}."
                )
            found.extend(matched)
    if len({id(module) for module in found}) < len(found):
        raise ConfigError("adapter.targets: two targets name the same module.")
    if len({isinstance(module, Conv1D) for module in found}) > 1:
        raise ConfigError("adapter.targets: the base model mixes two kinds of linear modules; name targets of one.")
    return found
