"""What makes a pretrained model ready to be adapted: own modules over shared frozen weights, no dropout, no state."""

import copy
import inspect

import torch
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


def check_stateless(model: PreTrainedModel) -> None:
    """Refuse a model in which one record's output depends on the records that were run with it or before it.

    Batch norm takes mean and variance over everyone in the batch, and in training mode keeps a running mean of
    everyone who ever passed, so that nothing that comes out is a function of one user's records.

    Args:
        model: Its forward pass runs once, on synthetic tokens.

    Raises:
        ConfigError: A module is of a batch-norm type, or the forward pass changes a buffer.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"base model of type {model.config.model_type}: {name} is a {type(module).__name__}, which mixes the "
                "records of a batch; use a base model with layer norm."
            )
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    ids = (torch.arange(7, device=next(model.parameters()).device)[None] * 5 + 3) % int(model.config.vocab_size)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    for name, buffer in model.named_buffers():
        if name not in before or not torch.equal(buffer, before[name]):
            raise ConfigError(
                f"base model of type {model.config.model_type}: a forward pass changes its buffer {name}, so that "
                "records depend on those before them; use another base model."
            )


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
