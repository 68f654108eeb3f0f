"""What is usual for a family of base models: which modules carry LoRA, and how its text is pooled.

A card says both; this is for the card that `flower-server init` writes, and for an error that tells a card's author
what the base has. The lists are PEFT's and transformers' own; the few that PEFT has none for are those of its kin:
query and value, or the one module that holds both.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedprofile.common.errors import ConfigError

_NOT_PEFTS = {"distilbert": ("q_lin", "v_lin"), "modernbert": ("Wqkv",), "mpnet": ("q", "v")}


@dataclass(frozen=True)
class Usual:
    """What a card over a family says, where nothing else is known.

    Args:
        targets: Names of linear modules within a layer.
        pooling: The mean over tokens of an encoder, the last token of a decoder.
    """

    targets: tuple[str, ...]
    pooling: Literal["mean", "last"]


def usual_targets(family: str) -> tuple[str, ...]:
    """The modules that usually carry LoRA.

    Args:
        family: transformers' `model_type`.

    Returns:
        Names of linear modules within a layer; none where that is not known.
    """
    # Imported late: `flower-server init` needs nothing else of these.
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFTS

    return _NOT_PEFTS.get(family) or tuple(PEFTS.get(family, ()))


def usual(folder: Path) -> Usual:
    """What a card over a base model says, where nothing else is known.

    Args:
        folder: Of the base.

    Returns:
        Targets and pooling.

    Raises:
        ConfigError: The base's family is not known, or it is no plain encoder or decoder.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    try:
        config: Any = json.loads((folder / "config.json").read_bytes())
        family = str(config["model_type"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{folder / 'config.json'}: cannot be read as a base model's config; see its hub page."
        ) from error
    encoder = family in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    targets = usual_targets(family)
    if not targets or not (encoder or family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        raise ConfigError(
            f"{folder}: nothing is known of base models of type '{family}'; use a plain encoder or decoder such as "
            "BERT, XLM-R, GPT-2, Llama or Qwen."
        )
    return Usual(targets, "mean" if encoder else "last")
