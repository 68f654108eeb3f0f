"""Sensitivity by brute force under an adapter that blows up last bits: remove a user, and only that user's part goes.

The adapter is one that a hostile server may send: `check_arrays` takes it. It makes the pooled text the same for
everyone up to its last bits, a head with large weights sees nothing but these bits, and its bias puts the middle
score on the edge of a bin, where cross entropy's gradient turns round. If one bit of a record's logits came from the
other records of its pass, one user less would move many others.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedprofile.client.evaluation import PrivateEvaluator
from fedprofile.client.noise import noised_sum
from fedprofile.client.training import PrivateTrainer, TrainingSettings
from fedprofile.common.adapters import check_arrays
from fedprofile.common.card import FederationCard
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.messages import TABLE, Arrays
from fedprofile.common.modeling.base import EMBEDDED_ID, embedded_folder, hash_base, load_base, resolve_base
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel

# Another thread costs more than it gives where other tests run beside these.
torch.set_num_threads(1)

MakeModel = Callable[..., ProfileModel]

# Each of them leaves a pass of another size, and moves those behind by one place.
REMOVED = (0, 1, 7, 40, 89)
USERS = 90
CLIP = 1.0


class Silent:
    """No noise, everyone sampled, the first records chosen."""

    def uniform(self, count: int) -> NDArray[np.float64]:
        return np.zeros(count)

    def gaussian(self, count: int) -> NDArray[np.float64]:
        return np.zeros(count)


@pytest.fixture(scope="module")
def make_model(tiny_base: Path, card_data: Callable[..., dict[str, Any]]) -> MakeModel:
    """A function that gives a model over the tiny base or over the embedded one."""

    def make(embedded: bool, text_scale: float = 1.0, **training: Any) -> ProfileModel:
        folder = embedded_folder() if embedded else tiny_base
        assert folder is not None
        pinned = hash_base(folder, EMBEDDED_ID if embedded else "example/tiny-bert")
        adapter, history = {"rank": 8, "alpha": 16.0}, {"max_tokens": 48}
        card = FederationCard.model_validate(
            card_data(base=pinned.model_dump(), adapter=adapter, history=history, training=training)
        )
        # Without the card's own check: the proof must not lean on a bound of the scale.
        scaled = card.adapter.model_copy(update={"text_scale": text_scale})
        loaded = load_base(resolve_base(card.base, folder))
        return ProfileModel(card.model_copy(update={"adapter": scaled}), *loaded)

    return make


def _records(model: ProfileModel, users: int, seed: int) -> EncodedRecords:
    rng = np.random.default_rng(seed)
    words = len(model.tokenizer)
    return EncodedRecords(
        users=tuple(f"u{number}" for number in range(users)),
        user=np.arange(users, dtype=np.int64),
        tokens=[
            rng.integers(words // 30 + 4, words // 3 * 2, size).astype(np.int32) for size in rng.integers(4, 41, users)
        ],
        features=np.zeros((users, model.card.features.width), np.float32),
        labels=rng.integers(0, 2, users),
        groups=np.zeros(users, np.int64),
    )


def _without(records: EncodedRecords, user: int) -> EncodedRecords:
    return records.of_users(np.arange(len(records.users)) != user)


def _hostile(model: ProfileModel) -> Arrays:
    """Made from public texts alone, as the server would."""
    public = _records(model, 60, seed=9)
    batch, features = model.batch(public.tokens), public.features
    prefix = PrefixCache(model).get(public.tokens, batch.ids.shape[1])
    rng = np.random.default_rng(1)
    arrays = {name: np.zeros_like(array) for name, array in model.initial_arrays().items()}
    factor_a, factor_b = (
        next(array for name, array in arrays.items() if f"value.{part}" in name) for part in ("lora_A", "lora_B")
    )
    # One attention head's values become one huge constant, beside which layer norm leaves nothing of the text.
    mean = prefix.sum((0, 1)).numpy()
    factor_a[0] = mean / np.abs(mean).max() * 9e3
    width = model.hidden_size
    values = width // int(model._inner[0].config.num_attention_heads)
    factor_b[:values, 0] = rng.choice([-1, 1], values) * 9e3
    model.set_arrays(arrays)
    with torch.no_grad():
        constant = model._pooled(batch, prefix).double().mean(0).numpy()
    weights = (rng.choice([-1, 1], width) * 300).astype(np.float32)
    for place in rng.integers(0, width, 50):  # Orthogonal to the constant, as far as float32 can say it.
        moved = float(weights.astype(float) @ constant) / constant[place] * 0.9
        weights[place] -= np.float32(moved if abs(moved) < 9e3 else 0.0)
    arrays["head.weight"][1, :width] = weights
    for _ in range(2):
        model.set_arrays(arrays)
        with torch.no_grad():
            middle = float(model.logits(batch, features, prefix)[:, 1].median())
        arrays["head.bias"][1] -= np.float32(middle)
    check_arrays(arrays, model.layout())
    return arrays


def _bases() -> list[Any]:
    return [pytest.param(False, id="tiny"), pytest.param(True, id="embedded", marks=pytest.mark.base)]


@pytest.mark.parametrize("embedded", _bases())
def test_a_user_less_moves_a_table_by_that_users_part(embedded: bool, make_model: MakeModel) -> None:
    model = make_model(embedded)
    arrays, records = _hostile(model), _records(model, USERS, seed=0)
    cache = PrefixCache(model)
    cache.fill(records.tokens)

    def predict(adapter: Arrays, some: EncodedRecords) -> NDArray[np.float64]:
        model.set_arrays(adapter)
        return model.predict(some, cache)

    evaluator = PrivateEvaluator(predict=predict, task=model.card.task, noise_multiplier=1.0, records_per_user=4)
    full = evaluator.evaluate(arrays, records, Silent())[TABLE]
    for user in REMOVED:
        fewer = evaluator.evaluate(arrays, _without(records, user), Silent())[TABLE]
        assert np.linalg.norm(full - fewer) <= 1 + 1e-9


@pytest.mark.parametrize("options", [{}, {"views": 2, "head_clip": 0.6, "adversarial": 0.5}])
@pytest.mark.parametrize("embedded", _bases())
def test_a_user_less_moves_the_sum_of_gradients_by_at_most_the_clip_norm(
    embedded: bool, options: dict[str, Any], make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(embedded, text_scale=1e6, **options)
    arrays, records = _hostile(model), _records(model, USERS, seed=0)
    sums: list[NDArray[np.float64]] = []

    def seen(values: NDArray[np.float64], *rest: Any) -> NDArray[np.float64]:
        sums.append(values.copy())
        return noised_sum(values, *rest)

    monkeypatch.setattr("fedprofile.client.clipping.noised_sum", seen)
    trainer = PrivateTrainer(
        model=model,
        cache=PrefixCache(model),
        settings=TrainingSettings(
            sample_rate=1.0,
            noise_multiplier=1.0,
            clip_norm=CLIP,
            records_per_user=4,
            declared_users=100,
            optimizer="sgd",
            learning_rate=1.0,
            head_learning_rate=1.0,
            momentum=0.0,
            proximal=0.0,
            max_update_norm=1e9,
            **options,
        ),
    )
    for some in (records, *(_without(records, user) for user in REMOVED)):
        trainer.train(arrays, some, steps=1, randomness=Silent())
    full, *fewer = sums
    assert max(np.linalg.norm(full - one) for one in fewer) <= CLIP * (1 + 1e-6)
