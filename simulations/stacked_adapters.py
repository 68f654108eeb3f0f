"""The adapters of many tenants side by side on one frozen base, with exact per-record gradients of every one.

A profile model's own forward runs, so that any base that can be deployed can be simulated. While a chunk is computed,
its LoRA layers and its head are replaced: each record meets its own tenant's factors, and the backward pass writes
each record's gradient into its row of one buffer. The base's matrix products are shared by all records, whoever's they
are, which is what makes many tenants cheap.

A record's row is its gradient of the SUMMED loss, what Opacus's hooks give in a tenant's own training
(`fedprofile.client.training`). Per-example gradients of a linear layer as products of its input and output gradient:
Goodfellow 2015, https://arxiv.org/abs/1510.01799.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from types import MethodType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import nn

from fedprofile.common.messages import Arrays
from fedprofile.common.modeling.lora import ADAPTER, wire_name
from fedprofile.common.modeling.profile_model import HEAD_BIAS, HEAD_WEIGHT, ProfileModel


class StackedAdapters:
    """K rows of everything that is trained.

    Args:
        model: Whose trainables are stacked; its own parameters are neither read nor changed.
        adapters: One for each tenant, by wire name.
    """

    def __init__(self, model: ProfileModel, adapters: Sequence[Arrays]) -> None:
        self._model = model
        self._shapes = {name: tuple(parameter.shape) for name, parameter in model.trainables().items()}
        sizes = [math.prod(shape) for shape in self._shapes.values()]
        ends = np.cumsum(sizes).tolist()
        self._places = dict(zip(self._shapes, zip([0, *ends], ends, strict=False), strict=True))
        self.size: int = ends[-1]
        # Factors come first and the head last: an optimiser has a learning rate for each of the two.
        self._border = self._places[HEAD_WEIGHT][0]
        rows = [np.concatenate([np.ravel(arrays[name]) for name in self._shapes]) for arrays in adapters]
        stacked = torch.from_numpy(np.stack(rows).astype(np.float32, copy=False)).to(model.device)
        self.factors = stacked[:, : self._border].clone()
        """LoRA factors, [K, .]; an optimiser changes them in place."""
        self.heads = stacked[:, self._border :].clone()
        """Weight and bias of each tenant's head, [K, .]; the same."""
        self._lora = [
            (module, _LoraForward(self, module, f"{name}.lora_{{}}.{ADAPTER}.weight"))
            for name, module in model.encoder.named_modules()
            if isinstance(module, LoraLayer)
        ]
        self._buffer = torch.empty((0, self.size), device=model.device)
        self._rows = torch.empty(0, dtype=torch.int64, device=model.device)
        self._written: set[str] = set()

    def arrays(self, row: int) -> Arrays:
        """One tenant's adapter, by wire name."""
        flat = torch.cat([self.factors[row], self.heads[row]]).cpu().numpy()
        return {name: flat[start:end].reshape(self._shapes[name]) for name, (start, end) in self._places.items()}

    def gradients(self, summed_loss: Callable[[], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        """Run one chunk forward and backward.

        Args:
            summed_loss: Runs the model on the chunk.
            rows: The row of each record's tenant, int64 [n].

        Returns:
            Each record's gradient, [n, size], in the order of `ProfileModel.trainables`; valid until the next call.
        """
        if len(self._buffer) < len(rows):
            self._buffer = torch.empty((len(rows), self.size), device=self._buffer.device)
        self._rows = rows
        self._written.clear()
        with self._in_place():
            summed_loss().backward()
        if self._written != self._shapes.keys():
            raise RuntimeError(f"no gradient reached {sorted(self._shapes.keys() - self._written)}")
        return self._buffer[: len(rows)]

    def forget(self) -> None:
        """Let go of the gradients' buffer."""
        self._buffer = self._buffer[:0].clone()

    def trains(self, name: str) -> bool:
        """Whether a matrix is trained, by wire name."""
        return name in self._shapes

    def of_records(self, name: str) -> torch.Tensor:
        """The matrix that each record of the chunk meets, [n, *shape]."""
        start, end = self._places[name]
        if end <= self._border:
            stacked = self.factors[:, start:end]
        else:
            stacked = self.heads[:, start - self._border : end - self._border]
        found: torch.Tensor = stacked[self._rows].unflatten(1, self._shapes[name])
        return found

    def put(self, name: str, gradients: torch.Tensor) -> None:
        """Take each record's gradient of one matrix, [n, *shape]."""
        start, end = self._places[name]
        self._buffer[: len(gradients), start:end].unflatten(1, self._shapes[name]).copy_(gradients)
        self._written.add(name)

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        """Within the block the model's LoRA layers and head are those of the records' tenants."""
        head = self._model.head
        replaced: list[tuple[nn.Module, Any]] = [(head, head.forward)]
        try:
            head.forward = MethodType(_head_forward, self)  # type: ignore[method-assign]
            for module, forward in self._lora:
                replaced.append((module, None))
                module.forward = forward
            yield
        finally:
            for module, forward in replaced:
                if forward is None:
                    del module.forward
                else:
                    module.forward = forward


class _LoraForward:
    """Stands for a LoRA layer's forward: its base layer, and each record's own factors."""

    def __init__(self, adapters: StackedAdapters, layer: Any, names: str) -> None:
        self._adapters, self._base, self._scale = adapters, layer.base_layer, float(layer.scaling[ADAPTER])
        self._a, self._b = (wire_name(names.format(factor)) for factor in "AB")
        self._frozen_a = None if adapters.trains(self._a) else layer.lora_A[ADAPTER].weight.detach()

    def __call__(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        output: torch.Tensor = self._base(hidden, *args, **kwargs)
        names = (self._a, self._b)
        added: torch.Tensor = _Lora.apply(  # type: ignore[no-untyped-call]
            output, hidden, _anchor(hidden), self._adapters, names, self._frozen_a, self._scale
        )
        return added


class _Lora(torch.autograd.Function):
    """Adds scale * B A x to a base layer's output, in place, with A and B of each record's tenant."""

    @staticmethod
    def forward(
        ctx: Any,
        output: torch.Tensor,
        hidden: torch.Tensor,
        anchor: torch.Tensor,
        adapters: StackedAdapters,
        names: tuple[str, str],
        frozen_a: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        """[n, length, outputs] from [n, length, inputs]."""
        b = adapters.of_records(names[1]).to(hidden.dtype)
        if frozen_a is None:
            a = adapters.of_records(names[0]).to(hidden.dtype)
            inner = torch.bmm(hidden, a.transpose(1, 2))
        else:
            a = frozen_a.to(hidden.dtype)
            inner = F.linear(hidden, a)
        output.baddbmm_(inner, b.transpose(1, 2), alpha=scale)
        ctx.mark_dirty(output)
        ctx.save_for_backward(hidden, inner, a, b)
        ctx.constants = adapters, names, frozen_a is None, scale
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Keeps the factors' gradients; gives those of output and input."""
        hidden, inner, a, b = ctx.saved_tensors
        adapters, names, trains_a, scale = ctx.constants
        adapters.put(names[1], torch.bmm(gradient.transpose(1, 2), inner).mul_(scale))
        to_hidden = None
        if trains_a or ctx.needs_input_grad[1]:
            to_inner = torch.bmm(gradient, b).mul_(scale)
            if trains_a:
                adapters.put(names[0], torch.bmm(to_inner.transpose(1, 2), hidden))
            if ctx.needs_input_grad[1]:
                to_hidden = torch.bmm(to_inner, a) if trains_a else to_inner @ a
        return gradient, to_hidden, None, None, None, None, None


def _head_forward(adapters: StackedAdapters, pooled: torch.Tensor) -> torch.Tensor:
    """Stands for the head's forward."""
    logits: torch.Tensor = _Head.apply(pooled, _anchor(pooled), adapters)  # type: ignore[no-untyped-call]
    return logits


class _Head(torch.autograd.Function):
    """Logits in float64 sums, as those of `fedprofile.common.modeling.head`, with each record's tenant's head."""

    @staticmethod
    def forward(ctx: Any, pooled: torch.Tensor, anchor: torch.Tensor, adapters: StackedAdapters) -> torch.Tensor:
        """[n, labels] from [n, inputs]."""
        weight, bias = adapters.of_records(HEAD_WEIGHT), adapters.of_records(HEAD_BIAS)
        ctx.save_for_backward(pooled, weight)
        ctx.adapters = adapters
        products = pooled.double().unsqueeze(1) * weight.double()
        return (products.sum(dim=2) + bias.double()).to(pooled.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Keeps the head's gradients; gives those of its input."""
        pooled, weight = ctx.saved_tensors
        ctx.adapters.put(HEAD_WEIGHT, gradient.unsqueeze(2) * pooled.unsqueeze(1))
        ctx.adapters.put(HEAD_BIAS, gradient)
        to_pooled = None
        if ctx.needs_input_grad[0]:
            to_pooled = torch.bmm(gradient.unsqueeze(1), weight.to(gradient.dtype)).squeeze(1)
        return to_pooled, None, None


def _anchor(like: torch.Tensor) -> torch.Tensor:
    """Makes autograd run a function backward where nothing that goes into it has a gradient."""
    return torch.zeros((), device=like.device, requires_grad=True)
