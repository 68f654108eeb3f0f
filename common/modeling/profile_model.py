"""The model of a federation: a frozen base, LoRA on its top layers, pooling, fused features and a linear head.

Guarantees:
- Its start is a function of the federation card alone: server and tenants compute the same arrays.
- What is trained is exactly `trainables()`; every one belongs to a plain `nn.Linear`, so that Opacus's per-record
  gradients are right. Everything else is frozen and shared with the base that was given.
- Every dropout is off, and the model stays in training mode, because Opacus's hooks work in no other.
- With a cache it starts from stored activations (see `hollow`), without one it runs whole; both give the same up to
  the cache's number format.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, __version__

from fedprofile.common.adapters import Arrays, Layout, check_arrays
from fedprofile.common.card import FederationCard
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.modeling.batches import TokenBatch, chunks_by_length, pad_tokens
from fedprofile.common.modeling.freezing import check_length, frozen_copy, pad_id, switch_dropout_off
from fedprofile.common.modeling.hollow import ActivationError, Hollow, check_hollow
from fedprofile.common.modeling.lora import add_lora, audit_trainables, wire_name
from fedprofile.common.modeling.pooling import pool

HEAD_WEIGHT = "head.weight"
HEAD_BIAS = "head.bias"

Tokens = Sequence[NDArray[np.int32]]


class Prefixes(Protocol):
    """Where stored activations come from; see `fedprofile.common.modeling.prefix_cache.PrefixCache`."""

    @property
    def space(self) -> str:
        """What the activations depend on besides the tokens; `ProfileModel.prefix_space`."""
        ...

    def get(self, tokens: Tokens, length: int) -> torch.Tensor:
        """float32 [n, length, hidden] filled with zeros behind each record; [n, hidden] for pooled vectors."""
        ...


class ProfileModel(nn.Module):
    """Logits from token ids and features.

    Args:
        card: The federation.
        base: From `load_base`, on its device. Its weights are shared and frozen; the object itself is not changed
            otherwise and may serve any number of profile models.
        tokenizer: Of the base.

    Raises:
        ConfigError: The card's adapter does not fit the base, or the base cannot be used (see `hollow`, `lora`).
    """

    def __init__(self, card: FederationCard, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.card = card
        self.tokenizer = tokenizer
        self.pad_id = pad_id(tokenizer)
        inner = frozen_copy(base)
        check_length(inner, card.history.max_tokens)
        adapter = card.adapter
        self.encoder: PeftModel | PreTrainedModel = inner
        self._hollow: Hollow | None = None
        if adapter.method == "lora":
            self._hollow = Hollow(inner, adapter.top_layers)
            self.encoder = add_lora(
                inner,
                rank=adapter.rank,
                alpha=adapter.alpha,
                targets=adapter.targets,
                top_layers=adapter.top_layers,
                train=adapter.train,
                card_hash=card.hash,
                base_id=card.base.id,
                revision=card.base.revision,
            )
        # The encoder's inner model is called directly: PEFT's wrapper adds nothing for this task.
        self._inner = [inner]
        inputs = int(inner.config.hidden_size) + card.features.width
        # PyTorch's own start would draw from its global generator.
        self.head = nn.utils.skip_init(nn.Linear, inputs, len(card.task.labels))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.head.to(self.device)
        self.train()
        switch_dropout_off(self)
        audit_trainables(self)
        if self._hollow is not None:
            check_hollow(inner, self._hollow)
        self._start = self.get_arrays()

    @property
    def device(self) -> torch.device:
        """Where the base's weights are."""
        return next(self._inner[0].parameters()).device

    @property
    def prefix_space(self) -> str:
        """All that the frozen part's output depends on besides the tokens; caches of equal spaces are exchangeable."""
        base, inner = self.card.base, self._inner[0]
        entry = f"layer {self._hollow.depth}" if self._hollow else f"pooled by {self.card.adapter.pooling}"
        parts = (base.weights_sha256, base.config_sha256, base.tokenizer_sha256, entry, str(inner.dtype))
        attention = str(inner.config._attn_implementation)
        return " | ".join((*parts, attention, f"{self.card.history.max_tokens} tokens", f"transformers {__version__}"))

    @property
    def hidden_size(self) -> int:
        """Width of an activation."""
        return int(self._inner[0].config.hidden_size)

    @property
    def caches_pooled(self) -> bool:
        """Whether the whole encoder is frozen, so that a prefix is the pooled vector."""
        return self._hollow is None

    def trainables(self) -> dict[str, nn.Parameter]:
        """What is trained, by wire name, in the order of the wire: LoRA factors from the lowest layer up, the head."""
        return {wire_name(name).removeprefix("encoder."): value for name, value in self.named_trainables()}

    def named_trainables(self) -> list[tuple[str, nn.Parameter]]:
        """The same parameters under their names within this module."""
        return [(name, value) for name, value in self.named_parameters() if value.requires_grad]

    def layout(self) -> Layout:
        """Shape and dtype of each array on the wire."""
        return {name: (tuple(array.shape), str(array.dtype)) for name, array in self._start.items()}

    def initial_arrays(self) -> Arrays:
        """The federation's start; the same on every machine."""
        return {name: array.copy() for name, array in self._start.items()}

    def get_arrays(self) -> Arrays:
        """Copies of the trainables, float32, by wire name."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self.trainables().items()}

    def set_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Put values into the trainables.

        Args:
            arrays: Of `layout()`.

        Raises:
            AdapterError: They are not.
        """
        check_arrays(arrays, self.layout())
        with torch.no_grad():
            for name, parameter in self.trainables().items():
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(arrays[name])))

    def forward(self, tokens: Tokens, features: NDArray[np.float32], cache: Prefixes | None = None) -> torch.Tensor:
        """Logits of one physical chunk.

        Args:
            tokens: Token ids of each record.
            features: [n, features.width].
            cache: Start from its activations instead of running the frozen layers.

        Returns:
            float32 [n, labels], on `device`.

        Raises:
            ValueError: There is no record, or the cache is of another model.
        """
        batch = self.batch(tokens)
        if cache is None:
            return self.logits(batch, features)
        if cache.space != self.prefix_space:
            raise ValueError("the prefix cache belongs to another model")
        return self.logits(batch, features, cache.get(tokens, batch.ids.shape[1]))

    def batch(self, tokens: Tokens) -> TokenBatch:
        """Records as one padded batch on `device`; see `pad_tokens`."""
        return pad_tokens(tokens, self.pad_id, self.card.history.max_tokens).to(self.device)

    def logits(
        self, batch: TokenBatch, features: NDArray[np.float32], prefix: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits of a padded batch; see `forward`.

        Args:
            batch: From `batch`.
            features: [n, features.width].
            prefix: What a cache holds of the same records: activations [n, length, hidden], or pooled vectors
                [n, hidden] where `caches_pooled`.

        Returns:
            [n, labels].
        """
        pooled = self._pooled(batch, prefix) * self.card.adapter.text_scale
        if features.shape[1]:
            pooled = torch.cat([pooled, torch.from_numpy(features).to(self.device)], dim=1)
        logits: torch.Tensor = self.head(pooled)
        return logits

    def prefix(self, tokens: Tokens) -> list[torch.Tensor]:
        """Run the frozen part.

        Args:
            tokens: Token ids of each record.

        Returns:
            For each record [its tokens, hidden], or [1, hidden] where `caches_pooled`; float32 on the CPU.

        Raises:
            ActivationError: A value is not finite.
        """
        found: list[torch.Tensor] = [torch.empty(0)] * len(tokens)
        for chunk in chunks_by_length(tokens):
            batch = self.batch([tokens[place] for place in chunk])
            if self._hollow is not None:
                activations = self._hollow.capture(batch.ids, batch.mask).cpu()
            else:
                with torch.no_grad():
                    activations = self._pooled(batch, None).unsqueeze(1).cpu()
                if not bool(torch.isfinite(activations).all()):
                    raise ActivationError
            for row, place in enumerate(chunk):
                length = 1 if self.caches_pooled else max(1, len(tokens[place]))
                found[place] = activations[row, :length]
        return found

    def predict(self, records: EncodedRecords, cache: Prefixes | None = None) -> NDArray[np.float64]:
        """Probabilities of the labels.

        Args:
            records: Any number.
            cache: See `forward`.

        Returns:
            [n, labels]; each row sums to 1.
        """
        probabilities = np.zeros((len(records), len(self.card.task.labels)))
        for chunk in chunks_by_length(records.tokens):
            with torch.no_grad():
                logits = self([records.tokens[place] for place in chunk], records.features[chunk], cache)
            probabilities[chunk] = torch.softmax(logits.double(), dim=1).cpu().numpy()
        return probabilities

    def _pooled(self, batch: TokenBatch, prefix: torch.Tensor | None) -> torch.Tensor:
        inner, kind = self._inner[0], self.card.adapter.pooling
        if self._hollow is None:
            if prefix is not None:
                return prefix.to(self.device)
            with torch.no_grad():
                return pool(inner(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state, batch.mask, kind)
        if prefix is None:
            hidden = inner(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
        else:
            with self._hollow.filled(prefix.to(self.device)):
                hidden = inner(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
        return pool(hidden, batch.mask, kind)
