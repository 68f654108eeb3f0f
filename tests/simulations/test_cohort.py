"""The cohort trainer against the deployed one: the same draws, the same cache, the same updates."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.modeling_fixtures import FAMILIES, MakeFamily, MakeModel

from fedprofile.client.randomness import Randomness
from fedprofile.client.training import PrivateTrainer, TrainingSettings
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.messages import Arrays
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel
from fedprofile.common.schedule import Schedule
from fedprofile.simulations.cohort import CohortTrainer, TrainingJob
from fedprofile.simulations.randomness import NoNoise, SeededRandomness

SETTINGS = TrainingSettings(
    sample_rate=0.4,
    noise_multiplier=1.0,
    clip_norm=0.5,
    records_per_user=3,
    declared_users=20,
    optimizer="sgd",
    learning_rate=0.5,
    head_learning_rate=2.0,
    momentum=0.0,
    proximal=0.0,
    max_update_norm=1e6,
)


def _records(model: ProfileModel, users: int, seed: int, longest: int = 32) -> EncodedRecords:
    """Several records a user, in no order of users; lengths from 1 to `longest`."""
    rng = np.random.default_rng(seed)
    rows = model.card.task.rows_per_record
    user = np.repeat(rng.permutation(np.repeat(np.arange(users), rng.integers(1, 6, users))), rows)
    n = len(user)
    return EncodedRecords(
        users=tuple(f"u{number}" for number in range(users)),
        user=user.astype(np.int64),
        tokens=[rng.integers(4, 60, size).astype(np.int32) for size in rng.integers(1, longest + 1, n)],
        features=rng.random((n, model.card.features.width), dtype=np.float32),
        labels=model.card.task.made_up(np.arange(n) if rows > 1 else rng.integers(0, 100, n)),
        groups=np.zeros(n, np.int64),
    )


def _start(model: ProfileModel, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        name: (value + 0.2 * rng.standard_normal(value.shape)).astype(np.float32)
        for name, value in model.initial_arrays().items()
    }


Source = Callable[[int], Randomness]


def _jobs(model: ProfileModel, source: Source, **changes: Any) -> list[TrainingJob]:
    """Tenants that differ in all that they may: sizes, sampling, clipping, noise, records, steps, adapters.

    One has no users, and one samples so rarely that most of its steps are empty.
    """
    shape = [
        (replace(SETTINGS, **changes), 12, 3),
        (replace(SETTINGS, sample_rate=0.9, clip_norm=0.05, records_per_user=1, **changes), 30, 3),
        (replace(SETTINGS, sample_rate=0.02, noise_multiplier=3.0, declared_users=7, **changes), 6, 3),
        (replace(SETTINGS, records_per_user=5, max_update_norm=0.01, **changes), 9, 2),
        (replace(SETTINGS, **changes), 0, 3),
    ]
    return [
        TrainingJob(
            settings, _start(model, number), _records(model, users, number), steps, source(number), 1 + number % 2
        )
        for number, (settings, users, steps) in enumerate(shape)
    ]


def _deployed(model: ProfileModel, cache: PrefixCache | None, jobs: list[TrainingJob]) -> list[Arrays]:
    return [
        PrivateTrainer(model=model, cache=cache, settings=job.settings).train(
            job.arrays, job.records, steps=job.steps, randomness=job.randomness, round_number=job.round_number
        )
        for job in jobs
    ]


def _distance(found: Arrays, expected: Arrays) -> float:
    """Relative L2 distance of two updates."""
    assert list(found) == list(expected)
    flat = [np.concatenate([value.ravel() for value in arrays.values()]).astype(float) for arrays in (found, expected)]
    norm = float(np.linalg.norm(flat[1]))
    return float(np.linalg.norm(flat[0] - flat[1])) / norm if norm else float(np.linalg.norm(flat[0]))


def _compare(model: ProfileModel, cached: bool, source: type[SeededRandomness], limit: float, **changes: Any) -> None:
    cache = PrefixCache(model) if cached else None
    expected = _deployed(model, cache, _jobs(model, lambda number: source(1, number), **changes))
    jobs = _jobs(model, lambda number: source(1, number), **changes)
    found = CohortTrainer(model, cache, tokens_at_once=96).train(jobs)
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert _distance(one, other) <= limit, number
    assert all(np.abs(np.concatenate([v.ravel() for v in update.values()])).max() > 0 for update in found[:2])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cohort_is_its_tenants(family: str, make_family: MakeFamily, make_model: MakeModel) -> None:
    base, adapter = make_family(family)
    _compare(make_model(base, adapter=adapter), True, NoNoise, 1e-5)


@pytest.mark.parametrize(
    "adapter",
    [
        {"train": "B"},
        {"method": "head"},
        {"top_layers": 3, "rank": 3},
        {"pooling": "last"},
        {"scaling": "rslora", "rank": 4},
        {"targets": ["dense"]},
    ],
)
@pytest.mark.parametrize("cached", [True, False])
def test_also_with_other_adapters_and_without_a_cache(
    adapter: dict[str, Any], cached: bool, make_model: MakeModel
) -> None:
    _compare(make_model(adapter=adapter), cached, NoNoise, 1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adam", "learning_rate": 0.01, "head_learning_rate": 0.05},
        {"momentum": 0.9, "proximal": 0.3},
    ],
)
def test_also_with_other_optimisers(changes: dict[str, Any], make_model: MakeModel) -> None:
    # Adam divides by the gradient's own size, and where that is next to nothing, float32's last bits are all there is.
    _compare(make_model(), True, NoNoise, 1e-3 if "optimizer" in changes else 1e-5, **changes)


@pytest.mark.parametrize(
    ("changes", "matters", "cached"),
    [
        ({"schedule": Schedule("cosine", 0.4, 3)}, {"schedule": Schedule()}, True),
        ({"head_clip": 0.3}, {"head_clip": None}, True),
        ({"views": 3}, {"views": 1}, True),
        ({"adversarial": 0.3}, {"adversarial": 0.0}, True),
        ({"adversarial": 0.3}, {"adversarial": 0.0}, False),
        ({"optimizer": "adamw", "weight_decay": 0.3, "views": 2, "head_clip": 0.9}, {"weight_decay": 0.0}, True),
    ],
)
def test_also_with_what_makes_private_training_better(
    changes: dict[str, Any], matters: dict[str, Any], cached: bool, make_model: MakeModel
) -> None:
    """And each of it changes an update, so that the two trainers do not agree by leaving it out."""
    model = make_model(adapter={"train": "AB"})
    _compare(model, cached, NoNoise, 1e-3 if "optimizer" in changes else 1e-5, **changes)
    without, given = (
        CohortTrainer(model, None).train(_jobs(model, lambda number: NoNoise(1, number), **options))
        for options in ({**changes, **matters}, changes)
    )
    assert all(_distance(one, other) > 1e-3 for one, other in zip(given[:2], without[:2], strict=True))


def test_clip_groups_also_where_noise_is_drawn(make_model: MakeModel) -> None:
    _compare(make_model(), True, SeededRandomness, 1e-5, head_clip=0.5, schedule=Schedule("linear", 0.0, 2), views=2)


REGRESSION = {"kind": "regression", "target": "rating", "low": 1, "high": 5}
KINDS: list[dict[str, Any]] = [
    {"kind": "multiclass", "labels": ["a", "b", "c"]},
    REGRESSION,
    {**REGRESSION, "loss": "huber"},
    {"kind": "multilabel", "labels": ["a", "b", "c"]},
    {"kind": "ranking", "candidates": list("abcdef"), "negatives": 3},
]
RANKED: dict[str, Any] = {"history": {"record": "{candidate}"}, "features": {"numeric": [], "categorical": []}}


@pytest.mark.parametrize("task", KINDS, ids=lambda task: f"{task['kind']}-{task.get('loss', '')}")
def test_also_for_every_kind_of_task(task: dict[str, Any], make_kind: MakeModel) -> None:
    sections = RANKED if task["kind"] == "ranking" else {}
    _compare(make_kind(task=task, **sections), True, NoNoise, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_also_over_a_base_in_16_bits(
    family: str, dtype: torch.dtype, make_family: MakeFamily, make_model: MakeModel
) -> None:
    base, adapter = make_family(family)
    torch.nn.Module.to(base, dtype)
    model = make_model(base, adapter=adapter)
    trainer = CohortTrainer(model, PrefixCache(model))
    trainer.self_test(SETTINGS)
    assert {str(value.dtype) for value in model.get_arrays().values()} == {"float32"}
    _compare(model, True, NoNoise, 50 * model.precision)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_each_tenant_gets_the_noise_that_its_client_would_draw(optimizer: str, make_model: MakeModel) -> None:
    _compare(make_model(), True, SeededRandomness, 1e-5, optimizer=optimizer)
