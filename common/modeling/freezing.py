"""What makes a pretrained model ready to be adapted: its own modules over shared frozen weights, and no dropout."""

import copy
import inspect

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedprofile.common.errors import ConfigError


def frozen_copy(base: PreTrainedModel) -> PreTrainedModel:
    """A model with its own modules over the same weights.

    Args:
        base: Stays as it is, but for its parameters, which are frozen.

    Returns:
        Can be changed by PEFT without changing `base`; takes no memory for weights.
    """
    shared = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
    model: PreTrainedModel = copy.deepcopy(base, shared)
    model.requires_grad_(False)
    model.config.use_cache = False
    if "add_pooling_layer" in inspect.signature(type(model).__init__).parameters:
        # BERT's kin compute a vector that is not used here unless they have None for a pooler.
        setattr(model, "pooler", None)  # noqa: B010  (declared as a module)
    return model


def switch_dropout_off(model: nn.Module) -> None:
    """Set every dropout's probability to 0, also those that a module or its config holds as a plain number."""
    holders = list(model.modules())
    configs = {id(config): config for holder in holders if (config := vars(holder).get("config")) is not None}
    for module in holders:
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    for holder in (*holders, *configs.values()):
        for name, value in list(vars(holder).items()):
            if "drop" in name and isinstance(value, float):
                setattr(holder, name, 0.0)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills padded places: the pad token, or the end token where a decoder has no pad token.

    Raises:
        ConfigError: There is neither.
    """
    for found in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(found, int):
            return found
    raise ConfigError("the base model's tokenizer has neither a pad nor an end token; use another base model.")


def check_length(model: PreTrainedModel, max_tokens: int) -> None:
    """Refuse histories that the model has no positions for.

    Raises:
        ConfigError: `max_tokens` is above the model's limit.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    # RoBERTa counts positions from the pad id + 1.
    offset = int(model.config.pad_token_id or 0) + 1 if "roberta" in str(model.config.model_type) else 0
    if isinstance(limit, int) and max_tokens > limit - offset:
        raise ConfigError(f"history.max_tokens is {max_tokens}, the base model takes at most {limit - offset} tokens.")
