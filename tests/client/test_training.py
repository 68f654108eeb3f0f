"""Private training over a real (tiny) encoder: against a loop over users, and as a pure function."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedprofile.client.randomness import SecureRandomness
from fedprofile.client.training import GROUP_USERS, PrivateTrainer, TrainingSettings, user_groups
from fedprofile.common.adapters import arrays_hash, update_norm
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.messages import Arrays
from fedprofile.common.modeling.base import load_base, resolve_base
from fedprofile.common.modeling.batches import chunk_sizes
from fedprofile.common.modeling.invariance import SelfTestError
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel
from fedprofile.common.schedule import Schedule


class Seeded:
    """A reproducible source; `scale` 0 draws no noise."""

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        self._generator = np.random.Generator(np.random.Philox(seed))
        self._scale = scale

    def uniform(self, count: int) -> np.ndarray:
        return self._generator.random(count)

    def gaussian(self, count: int) -> np.ndarray:
        return self._generator.standard_normal(count) * self._scale


@pytest.fixture(scope="module")
def make_model(tiny_base: Path, card_data: Callable[..., dict[str, Any]]) -> Callable[..., ProfileModel]:
    def make(**sections: Any) -> ProfileModel:
        card = FederationCard.model_validate(card_data(**sections))
        base, tokenizer = load_base(resolve_base(card.base, tiny_base))
        return ProfileModel(card, base, tokenizer)

    return make


def _records(model: ProfileModel, users: int, seed: int = 0, longest: int = 32) -> EncodedRecords:
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), rng.integers(1, 6, users))
    n = len(user)
    return EncodedRecords(
        users=tuple(f"u{number}" for number in range(users)),
        user=user.astype(np.int64),
        tokens=[rng.integers(4, 60, rng.integers(1, longest + 1)).astype(np.int32) for _ in range(n)],
        features=rng.random((n, model.card.features.width), dtype=np.float32),
        labels=rng.integers(0, 2, n),
        groups=np.zeros(n, np.int64),
    )


def _start(model: ProfileModel, seed: int = 5) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: (rng.normal(size=a.shape) * 0.2).astype(np.float32) for name, a in model.initial_arrays().items()}


def _trainer(model: ProfileModel, cache: PrefixCache | None = None, **changes: Any) -> PrivateTrainer:
    settings: dict[str, Any] = {
        "sample_rate": 0.5,
        "noise_multiplier": 1.0,
        "clip_norm": 0.5,
        "records_per_user": 3,
        "declared_users": 30,
        "optimizer": "sgd",
        "learning_rate": 0.5,
        "head_learning_rate": 2.0,
        "momentum": 0.0,
        "proximal": 0.0,
        "max_update_norm": 1e6,
    }
    return PrivateTrainer(model=model, cache=cache, settings=TrainingSettings(**{**settings, **changes}))


def test_one_step_equals_a_loop_over_users(make_model: Callable[..., ProfileModel]) -> None:
    model = make_model()
    records, start = _records(model, 20), _start(model)
    trainer = _trainer(model, sample_rate=1.0, records_per_user=10)
    update = trainer.train(start, records, steps=1, randomness=Seeded(1, scale=0.0))
    model.set_arrays(start)
    trainables = model.trainables()
    total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in trainables.items()}
    for user in range(20):
        mine = np.flatnonzero(records.user == user)
        for parameter in trainables.values():
            parameter.grad = None
        for place in mine:  # one record at a time, without a cache, padding or hooks
            logits = model([records.tokens[place]], records.features[[place]])
            (nn.functional.cross_entropy(logits, torch.tensor([records.labels[place]])) / len(mine)).backward()
        mean = {name: p.grad.double() for name, p in trainables.items() if p.grad is not None}
        norm = float(torch.cat([g.flatten() for g in mean.values()]).norm())
        for name, gradient in mean.items():
            total[name] += gradient * min(1.0, 0.5 / norm)
    for name, moved in update.items():
        rate = 2.0 if name.startswith("head.") else 0.5
        expected = -rate * total[name].numpy() / (1.0 * 30)
        assert np.allclose(moved, expected, atol=2e-6), name
        assert moved.dtype == np.float32


def test_training_is_a_pure_function_of_its_inputs(make_model: Callable[..., ProfileModel]) -> None:
    model = make_model()
    records, start = _records(model, 30), _start(model)
    before = {name: value.copy() for name, value in start.items()}
    trainer = _trainer(model, optimizer="adam", learning_rate=0.01, head_learning_rate=0.01, proximal=0.1)
    first = trainer.train(start, records, steps=3, randomness=Seeded(7))
    trainer.train(_start(model, 9), _records(model, 10, seed=4), steps=2, randomness=Seeded(8))
    trainer.self_test()
    again = trainer.train(start, records, steps=3, randomness=Seeded(7))
    assert arrays_hash(first) == arrays_hash(again), "optimiser state or an earlier round reached a release"
    assert arrays_hash(start) == arrays_hash(before)
    other = trainer.train(start, records, steps=3, randomness=Seeded(9))
    assert arrays_hash(first) != arrays_hash(other)
    leftovers = [p for p in model.parameters() if getattr(p, "grad_sample", None) is not None or p.grad is not None]
    assert not leftovers, "gradients of records stayed in memory"


def test_the_cache_changes_nothing_but_its_rounding(make_model: Callable[..., ProfileModel]) -> None:
    model = make_model()
    records, start = _records(model, 20), _start(model)
    whole = _trainer(model).train(start, records, steps=2, randomness=Seeded(3, 0.0))
    cache = PrefixCache(model, number_format="float32")
    cached = _trainer(model, cache).train(start, records, steps=2, randomness=Seeded(3, 0.0))
    for name, value in whole.items():
        assert np.allclose(value, cached[name], atol=1e-6), name


@pytest.mark.parametrize("adapter", [{"train": "B"}, {"method": "head"}, {"top_layers": 2}])
def test_every_kind_of_adapter_trains_what_it_names(
    make_model: Callable[..., ProfileModel], adapter: dict[str, Any]
) -> None:
    model = make_model(adapter=adapter)
    trainer = _trainer(model, PrefixCache(model))
    trainer.self_test()
    start = {name: value + np.float32(0.01) for name, value in model.initial_arrays().items()}
    update = trainer.train(start, _records(model, 30), steps=2, randomness=Seeded(1, 0.0))
    assert set(update) == set(model.layout())
    assert all(np.abs(value).max() > 0 for value in update.values())


def test_nobody_sampled_and_nobody_there_still_release_noise(make_model: Callable[..., ProfileModel]) -> None:
    model = make_model()
    start = _start(model)
    for records in (_records(model, 20), _records(model, 0)):
        trainer = _trainer(model, sample_rate=1e-9, declared_users=10**9, learning_rate=1.0, head_learning_rate=1.0)
        update = trainer.train(start, records, steps=4, randomness=SecureRandomness())
        values = np.concatenate([value.ravel() for value in update.values()])
        assert abs(values.std() / (0.5 * 2) - 1) < 0.3  # four steps of sigma * C = 0.5 each


def test_the_noise_is_divided_by_the_declared_and_never_the_counted_users(
    make_model: Callable[..., ProfileModel],
) -> None:
    model = make_model()
    start = _start(model)
    trainer = _trainer(model, sample_rate=0.37, declared_users=13, learning_rate=1.0, head_learning_rate=1.0)
    for users in (0, 5, 50):
        records = _records(model, users)
        noisy = trainer.train(start, records, steps=1, randomness=Seeded(2, 1.0))
        quiet = trainer.train(start, records, steps=1, randomness=Seeded(2, 0.0))
        noise = np.concatenate([(noisy[name] - quiet[name]).ravel() for name in noisy])
        assert abs(noise.std() / (0.5 / (0.37 * 13)) - 1) < 0.25


def test_the_proximal_term_pulls_back_after_the_noise(make_model: Callable[..., ProfileModel]) -> None:
    """Without data two steps are start -> -n1 -> -n1 - (n2 - mu * n1): the term acts on noised values alone."""
    model = make_model()
    start, nobody = _start(model), _records(model, 0)
    options: dict[str, Any] = {"learning_rate": 1.0, "head_learning_rate": 1.0}
    one = _trainer(model, **options).train(start, nobody, steps=1, randomness=Seeded(4))
    two = _trainer(model, **options).train(start, nobody, steps=2, randomness=Seeded(4))
    pulled = _trainer(model, proximal=0.25, **options).train(start, nobody, steps=2, randomness=Seeded(4))
    for name in two:
        assert np.allclose(pulled[name], two[name] - 0.25 * one[name], atol=1e-6)


def test_weight_decay_depends_on_nothing_but_the_adapter(make_model: Callable[..., ProfileModel]) -> None:
    """Without data and noise three steps shrink what is trained by (1 - rate * decay)^3, whatever else there is."""
    model = make_model()
    start, nobody = _start(model), _records(model, 0)
    trainer = _trainer(model, optimizer="adamw", weight_decay=0.1, learning_rate=0.5, head_learning_rate=2.0)
    update = trainer.train(start, nobody, steps=3, randomness=Seeded(4, 0.0))
    for name, moved in update.items():
        rate = 2.0 if name.startswith("head.") else 0.5
        assert np.allclose(moved, start[name] * ((1 - rate * 0.1) ** 3 - 1), atol=1e-6), name


def test_the_learning_rates_follow_the_run_and_no_round_raises_them(make_model: Callable[..., ProfileModel]) -> None:
    model = make_model()
    start, nobody = _start(model), _records(model, 0)
    scheduled = _trainer(model, schedule=Schedule("linear", 0.0, 4))
    plain = _trainer(model).train(start, nobody, steps=1, randomness=Seeded(4))
    for number, factor in {1: 1.0, 2: 0.75, 4: 0.25, 10**9: 0.25, -(10**9): 1.0}.items():
        update = scheduled.train(start, nobody, steps=1, randomness=Seeded(4), round_number=number)
        assert all(np.allclose(update[name], factor * plain[name], atol=1e-6) for name in plain), number


def test_views_count_as_one_record_before_clipping(make_model: Callable[..., ProfileModel]) -> None:
    """The user's gradient is the mean over records of the mean over views; m counts records."""
    model = make_model()
    records, start = _records(model, 8), _start(model)
    options: dict[str, Any] = {"sample_rate": 1.0, "clip_norm": 1e-3}
    seen = _trainer(model, views=3, records_per_user=5, **options).train(
        start, records, steps=1, randomness=Seeded(1, 0.0)
    )
    by_hand = _trainer(model, records_per_user=15, **options).train(
        start, records.with_views(3), steps=1, randomness=Seeded(1, 0.0)
    )
    assert all(np.allclose(seen[name], by_hand[name], rtol=1e-4, atol=1e-9) for name in seen)
    alone = records.of_users(np.arange(8) == 0)
    one = _trainer(model, views=3, records_per_user=5, **options).train(
        start, alone, steps=1, randomness=Seeded(1, 0.0)
    )
    scaled = np.concatenate([value.ravel() / (2.0 if name.startswith("head.") else 0.5) for name, value in one.items()])
    assert np.linalg.norm(scaled) * 30 <= 1e-3 * (1 + 1e-4)


@pytest.mark.parametrize("adapter", [{"train": "AB", "top_layers": 2}, {"train": "B"}, {"method": "head"}])
def test_the_adversarial_step_equals_a_loop_over_records(
    adapter: dict[str, Any], make_model: Callable[..., ProfileModel]
) -> None:
    """Exact beside Opacus: by plain autograd, each record by itself, its activations moved by hand."""
    model = make_model(adapter=adapter)
    records, start = _records(model, 8), _start(model)
    cache = PrefixCache(model)
    trainer = _trainer(model, cache, adversarial=0.4, sample_rate=1.0, records_per_user=10, clip_norm=1e4)
    update = trainer.train(start, records, steps=1, randomness=Seeded(1, 0.0))
    model.set_arrays(start)
    trainables = model.trainables()
    total = {name: torch.zeros(p.shape) for name, p in trainables.items()}
    for place in range(len(records)):
        weight = 1 / int((records.user == records.user[place]).sum())
        batch = model.batch([records.tokens[place]])
        label = torch.tensor([records.labels[place]])
        before = cache.get([records.tokens[place]], batch.ids.shape[1]).requires_grad_()
        loss = nn.functional.cross_entropy(model.logits(batch, records.features[[place]], before), label)
        [slope] = torch.autograd.grad(loss, before)
        near = (before + 0.4 * before.norm() * slope / slope.norm()).detach()
        loss = nn.functional.cross_entropy(model.logits(batch, records.features[[place]], near), label)
        for name, gradient in zip(total, torch.autograd.grad(loss, list(trainables.values())), strict=True):
            total[name] += weight * gradient
    for name, moved in update.items():
        rate = 2.0 if name.startswith("head.") else 0.5
        assert np.allclose(moved, -rate * total[name].numpy() / 30, atol=2e-6), name


def test_the_update_is_scaled_to_the_cards_norm(make_model: Callable[..., ProfileModel]) -> None:
    model = make_model()
    records, start = _records(model, 20), _start(model)
    free = _trainer(model).train(start, records, steps=2, randomness=Seeded(6))
    bounded = _trainer(model, max_update_norm=0.01).train(start, records, steps=2, randomness=Seeded(6))
    assert update_norm(free) > 0.01
    assert update_norm(bounded) <= 0.01 * (1 + 1e-5)
    ratio = 0.01 / update_norm(free)
    assert all(np.allclose(bounded[name], free[name] * ratio, rtol=1e-4, atol=1e-9) for name in free)


def test_a_user_with_broken_numbers_changes_nothing_but_the_sample(make_model: Callable[..., ProfileModel]) -> None:
    model = make_model()
    records, start = _records(model, 20), _start(model)
    features = records.features.copy()
    features[records.user == 3] = np.nan
    features[np.flatnonzero(records.user == 4)[0]] = np.inf
    options: dict[str, Any] = {"sample_rate": 1.0, "records_per_user": 10}
    update = _trainer(model, **options).train(
        start, replace(records, features=features), steps=1, randomness=Seeded(1, 0.0)
    )
    keep = np.array([number not in (3, 4) for number in range(20)])
    without = _trainer(model, **options).train(start, records.of_users(keep), steps=1, randomness=Seeded(1, 0.0))
    for name, value in update.items():
        assert np.isfinite(value).all()
        assert np.allclose(value, without[name], atol=1e-6), name


def test_training_that_overflows_releases_zeros_and_no_message(make_model: Callable[..., ProfileModel]) -> None:
    model = make_model()
    trainer = _trainer(model, learning_rate=3e38, head_learning_rate=3e38, declared_users=1)
    update = trainer.train(_start(model), _records(model, 20), steps=3, randomness=Seeded(1))
    assert all(not value.any() for value in update.values())


def test_noise_beyond_the_accounted_grid_is_refused_before_anything(make_model: Callable[..., ProfileModel]) -> None:
    with pytest.raises(ConfigError, match="rounding"):
        _trainer(make_model(), noise_multiplier=1e8)


def test_groups_hold_whole_users_and_chunks_one_padded_length() -> None:
    rng = np.random.default_rng(0)
    owner = np.sort(rng.integers(0, 200, 900)).astype(np.int64)
    places = rng.permutation(900).astype(np.int64)
    lengths = rng.choice([32, 64, 256], 900)
    seen: list[int] = []
    for counts, chunks in user_groups(owner, places, lengths, 2048):
        assert len(counts) <= GROUP_USERS
        inside = np.concatenate([chunk.users for chunk in chunks])
        assert np.bincount(inside, minlength=len(counts)).tolist() == counts
        for chunk in chunks:
            rows = [int(np.flatnonzero(places == place)[0]) for place in chunk.places]
            assert len({int(lengths[row]) for row in rows}) == 1
            assert len(rows) in chunk_sizes(int(lengths[rows[0]]), 2048)
            seen += rows
    assert sorted(seen) == list(range(900))


@pytest.mark.parametrize("cached", [False, True])
def test_where_passes_mix_records_each_is_trained_on_alone(
    cached: bool, make_model: Callable[..., ProfileModel]
) -> None:
    """The head stands for a kernel that treats the rows of a batch differently by their place."""
    plain, mixing = make_model(), make_model()
    head: Any = mixing.head
    own, sizes = head.forward, set()

    def by_place(rows: torch.Tensor) -> torch.Tensor:
        sizes.add(len(rows))
        return own(rows) * (1 + 1e-5 * torch.arange(len(rows))[:, None])  # type: ignore[no-any-return]

    head.forward = by_place
    updates = []
    for model in (plain, mixing):
        trainer = _trainer(model, PrefixCache(model) if cached else None)
        trainer.self_test()
        sizes.clear()
        updates.append(trainer.train(_start(model), _records(model, 30), steps=2, randomness=Seeded(3, 0.0)))
    assert mixing.one_at_a_time and sizes == {1}
    for name, value in updates[0].items():
        assert np.allclose(value, updates[1][name], atol=1e-6), name


def test_the_self_test_refuses_a_model_that_is_another_each_time(make_model: Callable[..., ProfileModel]) -> None:
    model = make_model()
    head: Any = model.head
    own, ran = head.forward, itertools.count()
    head.forward = lambda rows: own(rows) * (1 + next(ran) * 2.0**-20)
    with pytest.raises(SelfTestError, match="other numbers each time"):
        _trainer(model, PrefixCache(model)).self_test()
