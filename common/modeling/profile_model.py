"""The model of a federation: a frozen base, LoRA on its top layers, pooling, fused features and a linear head.

Guarantees:
- Its start is a function of the federation card alone: server and tenants compute the same arrays (a head that starts
  from label names, the same up to floating-point rounding; it travels, and A, which does not, never depends on it).
- What is trained is exactly `trainables()`; every one belongs to a plain `nn.Linear`, so that Opacus's per-record
  gradients are right. Everything else is frozen and shared with the base that was given.
- Every dropout is off, and the model stays in training mode, because Opacus's hooks work in no other.
- With a cache it starts from stored activations (see `hollow`), without one it runs whole; both give the same up to
  the cache's number format.
- What `prefix` and `predict` give for a record has the same bits whichever other records there are: passes hold
  records of one padded length, in numbers that were tried out (see `invariance`). Where that fails on a machine,
  records run one at a time, `one_at_a_time` says so, and the log does.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, __version__

from fedprofile.common.adapters import Arrays, Layout, check_arrays
from fedprofile.common.card import FederationCard
from fedprofile.common.interactions import EncodedRecords, fit_texts
from fedprofile.common.modeling.batches import (
    PASS_TOKENS,
    TokenBatch,
    equal_chunks,
    pad_tokens,
    padded_length,
    padded_lengths,
)
from fedprofile.common.modeling.freezing import check_length, check_stateless, frozen_copy, pad_id, switch_dropout_off
from fedprofile.common.modeling.head import row_wise_head, scores
from fedprofile.common.modeling.hollow import Hollow, check_hollow
from fedprofile.common.modeling.invariance import Pass, may_share
from fedprofile.common.modeling.last_token import LastToken, last_token
from fedprofile.common.modeling.lora import add_lora, audit_trainables, wire_name
from fedprofile.common.modeling.pooling import pool

HEAD_WEIGHT = "head.weight"
HEAD_BIAS = "head.bias"

Tokens = Sequence[NDArray[np.int32]]

_log = logging.getLogger(__name__)


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
        ConfigError: The card's adapter does not fit the base, or the base cannot be used (see `freezing`, `hollow`,
            `lora`).
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
                scaling=adapter.scaling,
                targets=adapter.targets,
                top_layers=adapter.top_layers,
                train=adapter.train,
                card_hash=adapter.a_of or card.hash,
                base_id=card.base.id,
                revision=card.base.revision,
            )
        # The encoder's inner model is called directly: PEFT's wrapper adds nothing for this task.
        self._inner = [inner]
        inputs = int(inner.config.hidden_size) + card.features.width
        self.head = row_wise_head(inputs, card.task.logits).to(next(inner.parameters()).device)
        self.train()
        switch_dropout_off(self)
        audit_trainables(self)
        check_stateless(inner)
        self._last_token: LastToken | None = None
        self._short = False
        if self._hollow is not None:
            check_hollow(inner, self._hollow)
            self._last_token = last_token(inner) if adapter.pooling == "last" else None
        # Walking the modules for them in every step would cost more than a small step itself.
        self._trainables = {wire_name(name).removeprefix("encoder."): value for name, value in self.named_trainables()}
        if adapter.label_head:
            self._start_from_labels(adapter.label_head)
        self._start = self.get_arrays()
        self._bounds: dict[tuple[Pass, int], int] = {}

    @property
    def device(self) -> torch.device:
        """Where the base's weights are."""
        device: torch.device = self.head.weight.device
        return device

    @property
    def precision(self) -> float:
        """The relative rounding of the base's number format."""
        return float(torch.finfo(self._inner[0].dtype).eps)

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

    @property
    def one_at_a_time(self) -> bool:
        """Whether some passes, of those that were asked for so far, hold one record because more would mix."""
        return 1 in self._bounds.values()

    def tokens_at_once(self, kind: Pass) -> int:
        """How many padded tokens a pass may hold without a record's numbers depending on the others in it.

        Args:
            kind: Of pass.

        Returns:
            The bound for `equal_chunks`; 1 where records must run one at a time. It is found out once for a kind and
            a number of threads, on synthetic tokens.

        Raises:
            SelfTestError: This base cannot be run at all so that the proof holds; see `invariance`.
        """
        key = (kind, torch.get_num_threads())
        if key not in self._bounds:
            bound = PASS_TOKENS[kind]
            shared = may_share(self, kind, bound)
            if not shared:
                _log.warning(
                    "records run one at a time (%s layers): here a record's numbers change with the others in its pass",
                    kind,
                )
            self._bounds[key] = bound if shared else 1
        return self._bounds[key]

    @contextlib.contextmanager
    def short_cuts(self) -> Iterator[None]:
        """Within the block the top layer runs for last tokens alone, where that is what is pooled and it can.

        For simulations: products of so few rows depend in their last bits on how many there are, so that a deployed
        model would have to run records one at a time.
        """
        self._short = True
        try:
            yield
        finally:
            self._short = False

    def trainables(self) -> dict[str, nn.Parameter]:
        """What is trained, by wire name, in the order of the wire: LoRA factors from the lowest layer up, the head."""
        return dict(self._trainables)

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
            float32 [n, logits], on `device`.

        Raises:
            ValueError: There is no record, or the cache is of another model.
        """
        return self.logits_of(self.batch(tokens), tokens, features, cache)

    def logits_of(
        self, batch: TokenBatch, tokens: Tokens, features: NDArray[np.float32], cache: Prefixes | None
    ) -> torch.Tensor:
        """As `forward`, of a batch that is padded already."""
        return self.logits(batch, features, None if cache is None else self.entry(batch, tokens, cache))

    def entry(self, batch: TokenBatch, tokens: Tokens, cache: Prefixes | None) -> torch.Tensor:
        """What a cache holds of a padded batch, or would hold: see `logits`.

        Raises:
            ValueError: The cache is of another model.
        """
        if cache is None:
            activations = self.frozen(batch)
            return activations.squeeze(1) if self.caches_pooled else activations * batch.mask[..., None]
        if cache.space != self.prefix_space:
            raise ValueError("the prefix cache belongs to another model")
        return cache.get(tokens, batch.ids.shape[1])

    def batch(self, tokens: Tokens, length: int | None = None) -> TokenBatch:
        """Records as one padded batch on `device`; see `pad_tokens`.

        Args:
            tokens: Token ids of each record.
            length: Of the batch; None pads to a length of which there are few (see `padded_length`).
        """
        if length is None:
            length = padded_length(max(map(len, tokens), default=0), self.card.history.max_tokens)
        return pad_tokens(tokens, self.pad_id, length).to(self.device)

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
            [n, logits].
        """
        pooled = self._pooled(batch, prefix) * self.card.adapter.text_scale
        if features.shape[1]:
            pooled = torch.cat([pooled, torch.from_numpy(features).to(self.device)], dim=1)
        logits: torch.Tensor = self.head(pooled)
        return logits

    def frozen(self, batch: TokenBatch) -> torch.Tensor:
        """Run the frozen part on one batch.

        Args:
            batch: From `batch`.

        Returns:
            [n, length, hidden], or [n, 1, hidden] where `caches_pooled`; without gradient, finite or not.
        """
        if self._hollow is not None:
            return self._hollow.capture(batch.ids, batch.mask).float()
        with torch.no_grad():
            return self._pooled(batch, None).unsqueeze(1)

    def prefix(self, tokens: Tokens) -> list[torch.Tensor]:
        """Run the frozen part.

        Args:
            tokens: Token ids of each record.

        Returns:
            For each record [its tokens, hidden], or [1, hidden] where `caches_pooled`; float32 on the CPU. A record's
            values are the same whichever others are asked for with it; they may be not finite.

        Raises:
            SelfTestError: See `tokens_at_once`.
        """
        found: list[torch.Tensor] = [torch.empty(0)] * len(tokens)
        for chunk in self._chunks(tokens, "frozen"):
            activations = self.frozen(self.batch([tokens[place] for place in chunk])).cpu()
            for row, place in enumerate(chunk):
                length = 1 if self.caches_pooled else max(1, len(tokens[place]))
                found[place] = activations[row, :length]
        return found

    def predict(self, records: EncodedRecords, cache: Prefixes | None = None) -> NDArray[np.float64]:
        """Scores of the task's outputs; see `fedprofile.common.modeling.head.scores`.

        Args:
            records: Any number.
            cache: See `forward`.

        Returns:
            [n, logits]; each row is the same whichever other records there are.

        Raises:
            SelfTestError: See `tokens_at_once`.
        """
        found = np.zeros((len(records), self.card.task.logits))
        for chunk in self._chunks(records.tokens, "whole" if cache is None else "adapted"):
            with torch.no_grad():
                logits = self([records.tokens[place] for place in chunk], records.features[chunk], cache)
            found[chunk] = scores(logits, self.card.task).cpu().numpy()
        return found

    def _start_from_labels(self, logit: float) -> None:
        """Make the head a nearest-neighbour classifier over the base's embeddings of the label names, before any data.

        With r the embeddings minus their mean m, the logit of label i for a pooled text x is
        s * ((x - m) . r_i - |r_i|^2 / 2), which is largest for the nearest label. Columns start at zero.

        Args:
            logit: The card's `label_head`; s is this over the mean of |r_i|^2.
        """
        names = fit_texts(
            [[label.replace("_", " ")] for label in self.card.task.outputs],
            self.tokenizer,
            self.card.history.max_tokens,
        )
        with torch.no_grad():
            texts = torch.cat([self._pooled(self.batch([name]), None) for name in names]).double()
            mean = texts.mean(dim=0)
            rows = texts - mean
            sizes = rows.square().sum(dim=1)
            # Where all names are the same text to the base, all start at zero.
            scale = logit / float(sizes.mean().clamp(min=1e-12))
            self.head.weight[:, : self.hidden_size] = rows * (scale / self.card.adapter.text_scale)
            self.head.bias.copy_(-scale * (rows @ mean + sizes / 2))

    def _chunks(self, tokens: Tokens, kind: Pass) -> Iterator[NDArray[np.int64]]:
        """Passes over records; none for no records."""
        return equal_chunks(padded_lengths(tokens, self.card.history.max_tokens), self.tokens_at_once(kind))

    def _pooled(self, batch: TokenBatch, prefix: torch.Tensor | None) -> torch.Tensor:
        inner, kind = self._inner[0], self.card.adapter.pooling
        if self._hollow is None:
            if prefix is not None:
                return prefix.to(self.device)
            with torch.no_grad():
                hidden = inner(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
                return pool(hidden, batch.mask, kind).float()
        with contextlib.ExitStack() as switched:
            if prefix is not None:
                switched.enter_context(self._hollow.filled(prefix.to(self.device, inner.dtype)))
            short = self._last_token if self._short else None
            if short is not None:
                switched.enter_context(short.only(batch.mask))
            hidden = inner(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
        pooled: torch.Tensor = hidden.squeeze(1) if short is not None else pool(hidden, batch.mask, kind)
        return pooled.float()
