"""Does a record come out bit for bit the same whoever else is in its pass?

Why it is private: clipping a user and weighing a user's scores bound what that user adds, and that is the release's
sensitivity only while nobody else's part changes, too. Floating-point kernels may sum in an order that depends on a
row's place and on the number of rows. Last bits are small, but the adapter comes from a server that nobody trusts:
it can put every score on the edge of a bin, or blow last bits up until a gradient turns round, and then one user moves
everyone. No bound on an adapter's values helps, so the last bits themselves must not depend on anyone else.

In which order a kernel sums depends on shapes and never on values, so every shape that is used is tried out: for each
padded length and each number of records that a pass may hold (`fedprofile.common.modeling.batches`), the longest and
the shortest record of that length take turns at all places, and each must come out with the bits that it has alone:
- what the frozen layers give;
- logits, probabilities and Opacus's per-sample gradient of every trainable, with trainables of an ordinary size, and
  at moved activations where the card trains there (`fedprofile.common.modeling.adversarial`);
- logits without autograd, with trainables so large that attention and softmax are saturated.

The device and the number of threads are those in use. The records are synthetic, so that the outcome says nothing of
anyone, and drawn anew each time, so that nobody can make a base whose sums are exact for just these.

What is assumed: libraries that, called again with the same shapes, sum in the same order again; and that two different
orders give some other bit in one of the thousands of numbers that are compared.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample.utils import prepare_module

from fedprofile.common.errors import FedprofileError
from fedprofile.common.modeling.adversarial import moved, without
from fedprofile.common.modeling.batches import TokenBatch, chunk_sizes, padded_length
from fedprofile.common.modeling.head import scores, summed_loss

if TYPE_CHECKING:
    from fedprofile.common.modeling.profile_model import ProfileModel

Pass = Literal["frozen", "adapted", "whole"]
"""The frozen layers, which fill the cache; the adapted ones, from the cache; or all, without a cache."""

ORDINARY, LARGE = 0.1, 1e3
"""Sizes of synthetic trainables."""

Run = Callable[[NDArray[np.int64]], list[torch.Tensor]]
"""From which of two records stands at each place of a pass to tensors with one row for each place."""


class SelfTestError(FedprofileError):
    """The installed libraries do not run or train this model as the proof needs it; nothing has been spent."""


def may_share(model: "ProfileModel", kind: Pass, tokens_at_once: int) -> bool:
    """Whether a record's numbers are the same in every pass in which it may find itself.

    Args:
        model: Its trainables are as before afterwards.
        kind: Of pass.
        tokens_at_once: Bound on such a pass; see `chunk_sizes`.

    Returns:
        False where records must run one at a time.

    Raises:
        SelfTestError: Not even a record that runs alone has the same numbers twice.
    """
    trainables = list(model.trainables().values())
    before = [parameter.detach().clone() for parameter in trainables]
    try:
        return all(
            _same_in_every_chunk(pair.run, chunk_sizes(pair.length, tokens_at_once)) for pair in _pairs(model, kind)
        )
    finally:
        for parameter, value in zip(trainables, before, strict=True):
            parameter.data.copy_(value)


def _pairs(model: "ProfileModel", kind: Pass) -> Iterator["_Pair"]:
    """One for each padded length."""
    shortest, longest = 1, model.card.history.max_tokens
    while shortest <= longest:
        pair = _Pair(model, kind, shortest)
        yield pair
        shortest = pair.length + 1


class _Pair:
    """The longest and the shortest record of one padded length, and passes of nothing but copies of the two."""

    def __init__(self, model: "ProfileModel", kind: Pass, shortest: int) -> None:
        rng = np.random.default_rng()
        self._model = model
        self._kind = kind
        self.length = padded_length(shortest, model.card.history.max_tokens)
        self._tokens = [
            rng.integers(len(model.tokenizer), size=size, dtype=np.int32) for size in (self.length, shortest)
        ]
        self._features = rng.random((2, model.card.features.width), dtype=np.float32)
        rows = () if model.caches_pooled else (self.length,)
        # Not the frozen layers' own output, which whoever made the base could have made harmless.
        self._prefix = torch.from_numpy(rng.standard_normal((2, *rows, model.hidden_size), dtype=np.float32))

    def run(self, which: NDArray[np.int64]) -> list[torch.Tensor]:
        """One pass with these of the two at its places: tensors with one row for each place."""
        model = self._model
        batch = model.batch([self._tokens[record] for record in which])
        if self._kind == "frozen":
            activations = model.frozen(batch)
            return [activations if model.caches_pooled else activations * batch.mask[..., None]]
        features = self._features[which]
        prefix = self._prefix[torch.from_numpy(which)] if self._kind == "adapted" else None
        self._put(LARGE)
        with torch.no_grad():
            large = model.logits(batch, features, prefix)
        self._put(ORDINARY)
        logits, *gradients = _sample_gradients(model, batch, features, prefix, self._labels(which))
        return [large, logits, scores(logits, model.card.task), *gradients]

    def _labels(self, which: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(self._model.card.task.made_up(which))

    def _put(self, scale: float) -> None:
        for parameter in self._model.trainables().values():
            wave = torch.cos(torch.arange(parameter.numel(), dtype=torch.float32)) * scale
            parameter.data.copy_(wave.view_as(parameter))


def _sample_gradients(
    model: "ProfileModel",
    batch: TokenBatch,
    features: NDArray[np.float32],
    prefix: torch.Tensor | None,
    labels: torch.Tensor,
) -> list[torch.Tensor]:
    """Logits and every trainable's per-sample gradients, as training forms them."""
    # Opacus hangs per-sample gradients on the parameters, which no type says.
    trainables: dict[str, Any] = model.trainables()
    hooks = prepare_module(model, "hooks", wrap_model=False, loss_reduction="sum", batch_first=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            if part := model.card.training.adversarial:
                start = model.entry(batch, [], None) if prefix is None else prefix
                with without(hooks):
                    prefix = moved(model, batch, features, start, labels, part)
            logits = model.logits(batch, features, prefix)
            summed_loss(logits, labels, model.card.task).backward()
        samples = {name: getattr(parameter, "grad_sample", None) for name, parameter in trainables.items()}
    finally:
        hooks.cleanup()
        for parameter in trainables.values():
            parameter.grad = None
    found = [sample for sample in samples.values() if isinstance(sample, torch.Tensor)]
    if len(found) < len(samples):
        deaf = next(name for name, sample in samples.items() if not isinstance(sample, torch.Tensor))
        raise SelfTestError(f"no gradient reaches {deaf}; reinstall the pinned versions of torch, opacus and peft.")
    return [logits.detach(), *found]


def _same_in_every_chunk(run: Run, sizes: list[int]) -> bool:
    expected, again = _alone(run), _alone(run)
    if not all(map(_same, expected, again)):
        raise SelfTestError(
            "the base model gives one record other numbers each time it runs; use another base model, or reinstall "
            "the pinned version of torch."
        )
    for size in sizes[:-1]:  # The last is 1.
        which = np.arange(size) % 2
        if not all(_same(found, rows[which]) for found, rows in zip(run(which), expected, strict=True)):
            return False
    return True


def _alone(run: Run) -> list[torch.Tensor]:
    """Each of the two in a pass by itself, put together."""
    return [torch.cat(rows) for rows in zip(run(np.array([0])), run(np.array([1])), strict=True)]


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """By bits: minus zero is not zero, and a nan is itself."""
    one, other = (tensor.contiguous().view(torch.uint8) for tensor in (first, second))
    return torch.equal(one, other)
