"""A record's bits beside other records: on every family, on machines that mix rows, and where nothing holds."""

import copy
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from opacus.grad_sample.utils import prepare_module
from torch import nn
from transformers import PreTrainedModel

from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.modeling.base import EMBEDDED_ID, embedded_folder, hash_base, load_base, resolve_base
from fedprofile.common.modeling.batches import (
    PASS_TOKENS,
    TokenBatch,
    chunk_sizes,
    padded_length,
)
from fedprofile.common.modeling.head import row_wise_head, summed_loss
from fedprofile.common.modeling.hollow import layer_list
from fedprofile.common.modeling.invariance import Pass, SelfTestError, may_share
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel
from fedprofile.common.tasks import MulticlassTask

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

FAMILIES = ("bert", "roberta", "distilbert", "modernbert", "gpt2", "gpt_neox", "llama", "mistral", "qwen2", "gemma2")

MakeFamily = Callable[[str], tuple[PreTrainedModel, dict[str, Any]]]
MakeModel = Callable[..., ProfileModel]
MakeRecords = Callable[..., EncodedRecords]
Stir = Callable[[ProfileModel], None]


def _gradients(head: nn.Linear, rows: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Per-sample gradients of weight and bias by Opacus's hooks, and the gradient that goes back."""
    rows = rows.clone().requires_grad_()
    hooks = prepare_module(head, "hooks", wrap_model=False, loss_reduction="sum", batch_first=True)
    task = MulticlassTask(kind="multiclass", labels=tuple(map(str, range(head.out_features))))
    summed_loss(head(rows), labels, task).backward()
    found: list[Any] = [head.weight, head.bias]
    samples = [parameter.grad_sample for parameter in found]
    hooks.cleanup()
    assert rows.grad is not None
    return (*samples, rows.grad)


@pytest.mark.parametrize("labels", [2, 5, 40])
def test_the_heads_rows_are_those_of_a_plain_linear_and_each_its_own(labels: int) -> None:
    torch.manual_seed(0)
    head, plain = row_wise_head(387, labels), nn.Linear(387, labels)
    assert type(head) is nn.Linear and not head.weight.any() and not head.bias.any()
    head.load_state_dict(plain.state_dict())
    rows, classes = torch.randn(70, 387), torch.arange(70) % labels
    torch.testing.assert_close(head(rows), plain(rows), rtol=0, atol=1e-5)
    whole = (head(rows).detach(), *_gradients(head, rows, classes))
    for found, expected in zip(whole[1:], _gradients(plain, rows, classes), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for start, stop in ((0, 1), (69, 70), (3, 20), (1, 70), (40, 42)):
        part = (head(rows[start:stop]).detach(), *_gradients(head, rows[start:stop], classes[start:stop]))
        assert all(torch.equal(found, rest[start:stop]) for found, rest in zip(part, whole, strict=True))
    twin = copy.deepcopy(head)
    with torch.no_grad():
        head.weight.zero_()
    assert torch.equal(twin(rows), whole[0])


@pytest.mark.parametrize("cached", [False, True], ids=["whole", "cached"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nobodys_bits_depend_on_the_others(
    family: str, cached: bool, make_family: MakeFamily, make_model: MakeModel, make_records: MakeRecords, stir: Stir
) -> None:
    base, adapter = make_family(family)
    model = make_model(base, adapter=adapter, history={"max_tokens": 48})
    stir(model)
    records = make_records(model, count=45, longest=48)
    together = model.predict(records, PrefixCache(model) if cached else None)
    prefixes = model.prefix(records.tokens)
    for some in (np.arange(45) == 44, np.arange(45) > 0, np.arange(45) % 3 == 1):
        fewer = records.of_users(some)
        # A new cache: what it holds of a record must not depend on which others were missing with it, either.
        assert np.array_equal(model.predict(fewer, PrefixCache(model) if cached else None), together[some])
        kept = [prefix for prefix, keep in zip(prefixes, some, strict=True) if keep]
        assert all(map(torch.equal, model.prefix(fewer.tokens), kept))


def test_a_record_is_computed_in_the_length_of_its_own(
    make_model: MakeModel, make_records: MakeRecords, stir: Stir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In passes of the shapes that were tried out, and of no others: for the cache, from it and without it."""
    model = make_model(history={"max_tokens": 48})
    stir(model)
    records = make_records(model, count=75, longest=48)
    cache = PrefixCache(model)
    kinds: tuple[Pass, ...] = ("frozen", "adapted", "whole")
    bounds = [model.tokens_at_once(kind) for kind in kinds]
    shapes: list[tuple[int, int]] = []
    own = ProfileModel.batch

    def recorded(self: ProfileModel, tokens: Sequence[NDArray[np.int32]]) -> TokenBatch:
        batch = own(self, tokens)
        assert {padded_length(len(record), 48) for record in tokens} == {batch.ids.shape[1]}
        shapes.append((len(tokens), batch.ids.shape[1]))
        return batch

    monkeypatch.setattr(ProfileModel, "batch", recorded)
    runs: list[Callable[[], object]] = [
        lambda: cache.fill(records.tokens),
        lambda: model.predict(records, cache),
        lambda: model.predict(records),
    ]
    for bound, run in zip(bounds, runs, strict=True):
        shapes.clear()
        run()
        assert sum(size for size, _ in shapes) == 75
        assert {length for _, length in shapes} == {32, 48}
        assert all(size in chunk_sizes(length, bound) for size, length in shapes)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_check_restores_the_model_and_runs_once_for_each_number_of_threads(
    threads: int, make_model: MakeModel, stir: Stir, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    stir(model)
    before = model.get_arrays()
    seen: list[tuple[Pass, int]] = []

    def counted(model: ProfileModel, kind: Pass, tokens_at_once: int) -> bool:
        seen.append((kind, torch.get_num_threads()))
        return may_share(model, kind, tokens_at_once)

    monkeypatch.setattr("fedprofile.common.modeling.profile_model.may_share", counted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    kinds: tuple[Pass, ...] = ("frozen", "adapted", "whole")
    for kind in (*kinds, *kinds):
        assert model.tokens_at_once(kind) in (1, PASS_TOKENS[kind])
    assert seen == [(kind, threads) for kind in kinds]
    assert all(np.array_equal(before[name], value) for name, value in model.get_arrays().items())
    assert all(getattr(p, "grad_sample", None) is None and p.grad is None for p in model.trainables().values())
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    model.tokens_at_once("frozen")
    assert seen[3:] == [("frozen", threads + 1)]


class _Tilt(torch.autograd.Function):
    """Gradients whose last bits depend on the place; values as they are."""

    @staticmethod
    def forward(context: Any, rows: torch.Tensor) -> torch.Tensor:
        return rows.clone()

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return _by_place(gradients[0])


def _by_place(rows: torch.Tensor) -> torch.Tensor:
    """As a kernel that sums rows at odd places in another order: one bit, for all that is large enough."""
    odd = (torch.arange(len(rows)) % 2 == 1).view(-1, *[1] * (rows.dim() - 1))
    return torch.where(odd, rows * (1 + 2.0**-22), rows)


def _last_row(rows: torch.Tensor) -> torch.Tensor:
    """As a kernel that treats the rest behind its last whole block apart, from eight rows on."""
    return torch.cat([rows[:-1], rows[-1:] * (1 + 2.0**-22)]) if len(rows) >= 8 else rows


def _tilted(rows: torch.Tensor) -> torch.Tensor:
    apply: Callable[[torch.Tensor], torch.Tensor] = _Tilt.apply
    return apply(rows) if torch.is_grad_enabled() else rows


BROKEN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "forward": _by_place,
    "backward": _tilted,
    "without autograd": lambda rows: rows if torch.is_grad_enabled() else _by_place(rows),
    "large": lambda rows: _by_place(rows) if float(rows.detach().abs().max()) > 100 else rows,
    "last row": _last_row,
    "neighbours": lambda rows: rows + 1e-6 * rows.detach().mean(0) if len(rows) > 1 else rows,
}


@pytest.mark.parametrize("kind", ["adapted", "whole"])
@pytest.mark.parametrize("part", [0.0, 0.3])
def test_the_gradient_of_activations_counts_where_records_are_moved_along_it(
    part: float, kind: Pass, make_model: MakeModel
) -> None:
    model = make_model(training={"adversarial": part})
    own: Any = model.logits

    def tilted(batch: Any, features: Any, prefix: torch.Tensor | None = None) -> torch.Tensor:
        logits: torch.Tensor = own(
            batch, features, _tilted(prefix) if prefix is not None and prefix.requires_grad else prefix
        )
        return logits

    model.logits = tilted  # type: ignore[method-assign]
    assert (model.tokens_at_once(kind) == 1) == (part > 0)


@pytest.mark.parametrize("kind", ["adapted", "whole"])
@pytest.mark.parametrize("name", BROKEN)
def test_logits_and_gradients_that_depend_on_the_pass_are_noticed(
    name: str, kind: Pass, make_model: MakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model()
    assert not model.one_at_a_time
    # Where the logits come from and where the gradient goes back.
    head: Any = model.head
    own = head.forward
    head.forward = lambda rows: BROKEN[name](own(rows))
    with caplog.at_level(logging.WARNING):
        assert model.tokens_at_once(kind) == 1
    assert model.one_at_a_time
    assert "records run one at a time" in caplog.text


def test_a_plain_matrix_product_as_head_is_right_one_record_at_a_time(
    make_model: MakeModel, make_records: MakeRecords, stir: Stir
) -> None:
    """Whatever this machine's kernels do with it: shared where it holds, alone where it does not."""
    model = make_model()
    stir(model)
    del model.head.forward
    records = make_records(model, count=40, longest=32)
    cache = PrefixCache(model)
    together = model.predict(records, cache)
    for some in (np.arange(40) > 0, np.arange(40) % 3 == 1):
        assert np.array_equal(model.predict(records.of_users(some), cache), together[some])


class _BatchMean(nn.Module):
    """A norm that takes the mean of everyone's first token and keeps nothing: only running it shows what it does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor, *rest: Any) -> torch.Tensor:
        normal: torch.Tensor = self.inner(hidden - 0.1 * hidden[:, :1].mean(0), *rest)
        return normal


class _Counting(_BatchMean):
    """Keeps how often it ran, in a buffer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.ran: torch.Tensor
        self.register_buffer("ran", torch.zeros(()), persistent=False)

    def forward(self, hidden: torch.Tensor, *rest: Any) -> torch.Tensor:
        self.ran += 1
        normal: torch.Tensor = self.inner(hidden, *rest)
        return normal


class _Transposed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normal: torch.Tensor = self.norm(hidden.transpose(1, 2))
        return normal.transpose(1, 2)


def _with_norm(make_family: MakeFamily, layer: int, change: Callable[[nn.Module], nn.Module]) -> tuple[Any, Any]:
    base, adapter = make_family("bert")
    place: Any = layer_list(base)[1][layer]
    place.output.LayerNorm = change(place.output.LayerNorm)
    base.requires_grad_(False)
    return base, adapter


@pytest.mark.parametrize("method", ["lora", "head"])
@pytest.mark.parametrize("layer", [0, 3], ids=["frozen", "adapted"])
def test_a_base_that_mixes_records_runs_them_alone(
    layer: int, method: str, make_family: MakeFamily, make_model: MakeModel, make_records: MakeRecords, stir: Stir
) -> None:
    base, adapter = _with_norm(make_family, layer, _BatchMean)
    model = make_model(base, adapter={**adapter, "method": method})
    stir(model)
    records = make_records(model, count=20)
    found = model.predict(records, PrefixCache(model))
    assert model.one_at_a_time
    assert (model.tokens_at_once("frozen") == 1) == (layer == 0 or method == "head")
    for some in (np.arange(20) == 7, np.arange(20) > 3):
        fewer = records.of_users(some)
        assert np.array_equal(model.predict(fewer, PrefixCache(model)), found[some])
        assert np.array_equal(model.predict(fewer), model.predict(records)[some])


@pytest.mark.parametrize("method", ["lora", "head"])
@pytest.mark.parametrize("layer", [0, 3])
def test_batch_norm_and_buffers_that_change_are_refused(
    layer: int, method: str, make_family: MakeFamily, make_model: MakeModel
) -> None:
    base, adapter = _with_norm(make_family, layer, lambda norm: _Transposed(32))
    with pytest.raises(ConfigError, match=rf"layer\.{layer}\.output\.LayerNorm\.norm is a BatchNorm1d"):
        make_model(base, adapter={**adapter, "method": method})
    base, adapter = _with_norm(make_family, layer, _Counting)
    with pytest.raises(ConfigError, match=r"changes its buffer .*LayerNorm\.ran"):
        make_model(base, adapter={**adapter, "method": method})


def test_a_model_that_is_another_each_time_is_refused(make_model: MakeModel, make_records: MakeRecords) -> None:
    model = make_model()
    head: Any = model.head
    own, ran = head.forward, itertools.count()
    head.forward = lambda rows: own(rows) * (1 + next(ran) * 2.0**-20)
    with pytest.raises(SelfTestError, match="other numbers each time"):
        model.predict(make_records(model))
    with pytest.raises(SelfTestError, match="other numbers each time"):
        model.tokens_at_once("adapted")


@pytest.mark.base
def test_the_embedded_model_shares_passes(card_data: Callable[..., dict[str, Any]]) -> None:
    """What the head is computed row by row for: with a matrix product there, it does not."""
    folder = embedded_folder()
    assert folder is not None
    spec = hash_base(folder, EMBEDDED_ID)
    card = FederationCard.model_validate(card_data(base=spec.model_dump(), history={"max_tokens": 64}))
    model = ProfileModel(card, *load_base(resolve_base(spec, folder)))
    if model.tokens_at_once("frozen") == 1:
        pytest.skip("this machine's kernels mix the rows of the base model itself: slow here, and right")
    assert model.tokens_at_once("adapted") == PASS_TOKENS["adapted"] and not model.one_at_a_time
