"""The fast path of last-token pooling: the top layer computed for each record's last token alone.

Pooling takes one vector of the top layer's output, and of the layer's products only keys and values concern the other
tokens. So query, attention, its output and the feed-forward block run on one token of each record: of the twelve
hidden x hidden products that a token costs in a BERT layer, two are left. It holds for training as well as for
prediction: the gradient of what is left out is zero.

It is for simulations. A product of one row for each record is summed in an order that depends on the number of records
on common processors, so that the proof of a deployed tenant (`fedprofile.common.modeling.invariance`) would make its
records run one at a time, which costs more than the short cut saves.

Known layers only, by the names of their parts; every other family, and every layer that does not give the same as its
own forward on synthetic tokens, runs whole.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import rotate_half

from fedprofile.common.modeling.hollow import layer_list

TOLERANCE = 1e-4
"""Largest difference from the whole layer, relative to its largest output."""
ROUNDINGS = 8.0
"""The same in roundings of the base's number format, where that is more."""

Forward = Callable[..., torch.Tensor]


class LastToken:
    """Switches a model's top layer between its own forward and one for last tokens.

    Args:
        model: A bare encoder or decoder, adapted by PEFT or not, with every dropout off.
        forward: Of its top layer, from `_FORWARDS`.
    """

    def __init__(self, model: PreTrainedModel, forward: Forward) -> None:
        self._layer, self._forward = layer_list(model)[1][-1], forward

    @contextlib.contextmanager
    def only(self, mask: torch.Tensor) -> Iterator[None]:
        """Within the block the model gives [n, 1, hidden]: of each record its last token.

        Args:
            mask: [n, length], 1 at real tokens; right-padded, of the batch that the forward call gets.
        """
        last = mask.sum(1) - 1

        def forward(
            hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any
        ) -> torch.Tensor:
            return self._forward(self._layer, hidden_states, attention_mask, last, **kwargs)

        self._layer.forward = forward
        try:
            yield
        finally:
            del self._layer.forward


def last_token(model: PreTrainedModel) -> LastToken | None:
    """The fast path of a model, where it has one.

    Args:
        model: See `LastToken`; it runs twice, on synthetic tokens.

    Returns:
        None where the top layer is not a known one, or does not give the same.
    """
    forward = _FORWARDS.get(type(layer_list(model)[1][-1]).__name__)
    if forward is None or getattr(model.config, "_attn_implementation", None) not in ("sdpa", "eager"):
        return None
    found = LastToken(model, forward)
    tolerance = max(TOLERANCE, ROUNDINGS * torch.finfo(model.dtype).eps)
    ids = (torch.arange(14, device=next(model.parameters()).device).reshape(2, 7) * 5 + 3) % int(
        model.config.vocab_size
    )
    for lengths in ((7, 7), (7, 4)):
        mask = (torch.arange(7)[None] < torch.tensor(lengths)[:, None]).long().to(ids.device)
        with torch.no_grad():
            whole = model(input_ids=ids, attention_mask=mask).last_hidden_state
            with found.only(mask):
                short = model(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = whole[torch.arange(2), mask.sum(1) - 1][:, None]
        near = tolerance * float(expected.abs().max())
        if short.shape != expected.shape or float((short - expected).abs().max()) > near:
            return None
    return found


def _bert(layer: Any, hidden: torch.Tensor, mask: torch.Tensor | None, last: torch.Tensor, **_: Any) -> torch.Tensor:
    """BERT's kin: normalised behind each block."""
    attention = layer.attention.self
    token = _at(hidden, last)
    query, key, value = (
        _heads(product, attention.attention_head_size)
        for product in (attention.query(token), attention.key(hidden), attention.value(hidden))
    )
    found = _attended(query, key, value, mask, last, attention.scaling)
    output: torch.Tensor = layer.feed_forward_chunk(layer.attention.output(found, token))
    return output


def _llama(
    layer: Any,
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
    last: torch.Tensor,
    *,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **_: Any,
) -> torch.Tensor:
    """Llama's kin: normalised before each block, rotary positions, keys shared by several queries."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    query, key, value = (
        _heads(product, attention.head_dim)
        for product in (attention.q_proj(_at(normed, last)), attention.k_proj(normed), attention.v_proj(normed))
    )
    cos, sin = (table.expand(len(hidden), -1, -1) for table in position_embeddings)
    query = _rotated(query, _at(cos, last), _at(sin, last))
    key = _rotated(key, cos, sin)
    key, value = (part.repeat_interleave(attention.num_key_value_groups, dim=1) for part in (key, value))
    token = _at(hidden, last) + attention.o_proj(_attended(query, key, value, mask, last, attention.scaling))
    output: torch.Tensor = token + layer.mlp(layer.post_attention_layernorm(token))
    return output


_FORWARDS: dict[str, Forward] = {
    **dict.fromkeys(("BertLayer", "ElectraLayer", "RobertaLayer", "XLMRobertaLayer"), _bert),
    **dict.fromkeys(("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"), _llama),
}


def _at(rows: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """[n, 1, width] of [n, length, width]."""
    return rows[torch.arange(len(rows), device=rows.device), last].unsqueeze(1)


def _heads(product: torch.Tensor, width: int) -> torch.Tensor:
    """[n, heads, length, width] of [n, length, heads * width]."""
    parted: torch.Tensor = product.unflatten(-1, (-1, width))
    return parted.transpose(1, 2)


def _rotated(part: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    turned: torch.Tensor = part * cos.unsqueeze(1) + rotate_half(part) * sin.unsqueeze(1)
    return turned


def _attended(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    last: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """[n, 1, heads * width]; where there is no mask, the last token sees all others."""
    if mask is not None:
        mask = mask if mask.shape[2] == 1 else mask[torch.arange(len(last), device=last.device), :, last].unsqueeze(2)
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return found.transpose(1, 2).flatten(2)
