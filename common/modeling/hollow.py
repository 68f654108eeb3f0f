"""The hollow model: skip the frozen layers, and start the adapted ones from cached activations.

Below the lowest adapted layer nothing ever changes, so its input is computed once for each record. The model is not
cut: for the length of a forward call the frozen layers are replaced by pass-throughs, and the input of the lowest
adapted layer is replaced by the cached activations. transformers' own forward runs with the real ids and mask, so
that masks, positions, rotary tables and sliding windows are its own, and every parameter keeps its name.

What is refused, in `Hollow` and in `check_hollow`:
- a model whose layers cannot be found for certain: not exactly one `ModuleList` with `num_hidden_layers` entries;
- a model whose hollow forward differs from its full forward, or whose forward is not deterministic.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from fedprofile.common.errors import ConfigError


class _EntryReachedError(Exception):
    """Ends a forward call at the lowest adapted layer."""


class _PassThrough(nn.Module):
    """Stands where a frozen layer stood, with its plain attributes: ModernBERT reads a layer's attention type."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name, value in vars(layer).items():
            if not name.startswith("_") and name != "training":
                setattr(self, name, value)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states


def layer_list(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of the model's layers.

    Args:
        model: A bare encoder or decoder.

    Returns:
        Its name within the model, and the list.

    Raises:
        ConfigError: There is not exactly one list of `num_hidden_layers` modules.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if len(found) != 1:
        raise ConfigError(
            f"base model of type {model.config.model_type}: {len(found)} lists of {count} layers instead of one; "
            "use a plain encoder or decoder such as BERT, GPT-2, Llama or Qwen."
        )
    return found[0]


class Hollow:
    """Switches a model between its full forward and one that starts at a layer.

    Args:
        model: A bare encoder or decoder, adapted by PEFT or not.
        top_layers: How many layers are adapted, counted from the top; those below are frozen.

    Raises:
        ConfigError: As for `layer_list`, or there is no such layer.
    """

    def __init__(self, model: PreTrainedModel, top_layers: int) -> None:
        self.name, self._layers = layer_list(model)
        if not 1 <= top_layers <= len(self._layers):
            raise ConfigError(f"adapter.top_layers is {top_layers}, the base model has {len(self._layers)} layers.")
        self.depth = len(self._layers) - top_layers
        self._model = model
        self._frozen = list(self._layers[: self.depth])
        self._stand_ins = [_PassThrough(layer) for layer in self._frozen]

    @contextlib.contextmanager
    def filled(self, activations: torch.Tensor) -> Iterator[None]:
        """Within the block, forward calls start from `activations` at the lowest adapted layer.

        Args:
            activations: [n, length, hidden], for the ids that the forward call gets.
        """

        def replace(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (activations, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": activations}

        handle = self._layers[self.depth].register_forward_pre_hook(replace, with_kwargs=True)
        try:
            for place, stand_in in enumerate(self._stand_ins):
                self._layers[place] = stand_in
            yield
        finally:
            for place, layer in enumerate(self._frozen):
                self._layers[place] = layer
            handle.remove()

    def capture(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Run the frozen layers and stop where the lowest adapted one begins.

        Args:
            ids: [n, length], right-padded.
            mask: [n, length], 1 at real tokens.

        Returns:
            [n, length, hidden], without gradient; finite or not.
        """
        entered: list[torch.Tensor] = []

        def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entered.append(args[0] if args else kwargs["hidden_states"])
            raise _EntryReachedError

        handle = self._layers[self.depth].register_forward_pre_hook(catch, with_kwargs=True)
        try:
            with torch.no_grad(), contextlib.suppress(_EntryReachedError):
                self._model(input_ids=ids, attention_mask=mask)
        finally:
            handle.remove()
        return entered[0]


def check_hollow(model: PreTrainedModel, hollow: Hollow) -> None:
    """Run a few synthetic tokens through the full and the hollow model and compare.

    Args:
        model: The model that `hollow` switches.
        hollow: The switch.

    Raises:
        ConfigError: The two differ, or the same input gives different outputs: this family cannot be used.
    """
    device = next(model.parameters()).device
    vocabulary = int(model.config.vocab_size)
    ids = (torch.arange(14, device=device).reshape(2, 7) * 7 + 5) % vocabulary
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    with torch.no_grad():
        full, again = (model(input_ids=ids, attention_mask=mask).last_hidden_state for _ in range(2))
        activations = hollow.capture(ids, mask)
        # What a padded place holds must not matter: the cache fills it with zeros.
        with hollow.filled(activations * mask[..., None]):
            short = model(input_ids=ids, attention_mask=mask).last_hidden_state
    kept = mask.bool()
    if not torch.equal(full, again) or full.shape != short.shape:
        raise ConfigError(f"base model of type {model.config.model_type}: its forward pass is not deterministic.")
    if float((full[kept] - short[kept]).abs().max()) > 1e-3 * max(1.0, float(full[kept].abs().max())):
        raise ConfigError(
            f"base model of type {model.config.model_type}: starting at layer {hollow.depth} does not give what the "
            "whole model gives; use another base model."
        )
