"""A round's messages as one batch: who fails is an error reply, the others go on, and the ledger counts as at home."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from tests.modeling_fixtures import MakeModel

from fedprofile.client.sampling import TenantRecords
from fedprofile.common.config import validate
from fedprofile.common.errors import RefusalCode
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.messages import Kind, Request, content_of, refusal_of, reply_of
from fedprofile.common.modeling.prefix_cache import PrefixCache
from fedprofile.common.modeling.profile_model import ProfileModel
from fedprofile.common.tenant import TenantFile
from fedprofile.simulations.cohort import CohortTrainer, TrainingJob
from fedprofile.simulations.cohort_app import Cohort, CohortTenant
from fedprofile.simulations.federation import SimulatedTenant, open_tenant
from fedprofile.simulations.grid import InProcessGrid
from fedprofile.simulations.memory import LastReply, MemoryLedger

Records = Callable[..., EncodedRecords]


class World:
    """Three tenants over the tiny base, the second of which can be spoilt."""

    def __init__(self, model: ProfileModel, make_records: Records, trainer: CohortTrainer) -> None:
        self.model, self.cache = model, PrefixCache(model)
        self.ledgers: dict[int, MemoryLedger] = {}
        self.tenants: dict[int, CohortTenant] = {}
        self.segments = {}
        for node in (1, 2, 3):
            records = make_records(model, 40, seed=node)
            data = {
                "source": {"kind": "csv", "path": "visits.csv"},
                "columns": {"user": "who", "time": "when", "label": "bought", "group": "where"},
                "population": {"name": f"shop-{node}", "declared_users": 40},
                "budget": {"epsilon": 8.0, "delta": 1e-4},
                "run": {"epsilon": 8.0, "delta": 1e-4},
                "privacy": {"sample_rate": 0.5},
            }
            settings = validate(data, TenantFile, "tenant.toml")
            tenant = SimulatedTenant(f"shop-{node}", settings, TenantRecords(records, records))
            self.ledgers[node] = MemoryLedger(tenant.name, settings)
            self.tenants[node], self.segments[node] = open_tenant(
                model.card, model, self.cache, trainer, tenant, self.ledgers[node], LastReply(), seed=0, noise=True
            )
        self.grid = InProcessGrid(self.tenants, Cohort(model, self.cache, trainer, self.tenants))

    def ask(self, kind: Kind, number: int, **changes: Any) -> list[Message]:
        request = Request(kind, self.model.card.hash, number, self.model.initial_arrays())
        messages = [
            self.grid.create_message(
                content_of(replace(request, **changes) if node == 2 else request), kind.value, node, "1"
            )
            for node in self.tenants
        ]
        return list(self.grid.send_and_receive(messages))


@pytest.fixture
def make_world(make_model: MakeModel, make_records: Records) -> Callable[..., World]:
    def make(kind: type[CohortTrainer] = CohortTrainer) -> World:
        model = make_model()
        return World(model, make_records, kind(model, PrefixCache(model), 128))

    return make


def test_replies_are_those_of_each_tenant_alone(make_world: Callable[..., World]) -> None:
    together, alone = make_world(), make_world()
    for kind, number in ((Kind.EVALUATE, 0), (Kind.TRAIN, 1)):
        replies = together.ask(kind, number)
        for node, reply in zip(together.tenants, replies, strict=True):
            request = Request(kind, alone.model.card.hash, number, alone.model.initial_arrays())
            expected = alone.tenants[node].app.handle(request)
            found = reply_of(reply)
            assert (found.kind, found.round, found.ledger.sequence) == (kind, number, expected.ledger.sequence)
            for name, value in expected.arrays.items():
                np.testing.assert_allclose(found.arrays[name], value, rtol=1e-4, atol=1e-6)
    for node in together.tenants:
        spent = together.ledgers[node].spent(together.segments[node])
        assert spent == alone.ledgers[node].spent(alone.segments[node])
        assert spent.epsilon > 0


def test_the_same_question_costs_nothing_again(make_world: Callable[..., World]) -> None:
    world = make_world()
    first, again = (reply_of(reply) for reply in (world.ask(Kind.TRAIN, 1)[0], world.ask(Kind.TRAIN, 1)[0]))
    assert all(np.array_equal(first.arrays[name], again.arrays[name]) for name in first.arrays)
    assert world.ledgers[1].mark().sequence == 1


def test_what_one_refuses_the_others_answer(make_world: Callable[..., World]) -> None:
    world = make_world()
    replies = world.ask(Kind.TRAIN, 1, card_hash="0" * 64)
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert refusal_of(replies[1]) is RefusalCode.CARD
    assert [ledger.mark().sequence for ledger in world.ledgers.values()] == [1, 0, 1]


class Delicate(CohortTrainer):
    """Fails where a record of the second tenant is trained."""

    def train(self, jobs: Any) -> Any:
        if any(len(job.records.users) == 41 for job in jobs):
            raise ValueError("a text that nobody may see")
        return super().train(jobs)


def test_one_that_cannot_train_is_an_error_and_the_others_train(
    make_world: Callable[..., World], make_records: Records
) -> None:
    world, healthy = make_world(Delicate), make_world()
    odd = TenantRecords(*[make_records(world.model, 41)] * 2)
    world.tenants[2].app._records = lambda: odd
    replies = world.ask(Kind.TRAIN, 1)
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert refusal_of(replies[1]) is RefusalCode.UNAVAILABLE
    assert "nobody may see" not in str(replies[1].error)
    # What was reserved stays spent, and the others drew what they would have drawn.
    assert [ledger.mark().sequence for ledger in world.ledgers.values()] == [1, 1, 1]
    for place in (0, 2):
        found, expected = reply_of(replies[place]).arrays, reply_of(healthy.ask(Kind.TRAIN, 1)[place]).arrays
        assert all(np.allclose(found[name], expected[name], rtol=1e-4, atol=1e-6) for name in expected)


class Small(CohortTrainer):
    """A device whose memory ends at 3 records a pass."""

    passes: list[int]

    def _gradients(self, stacked: Any, sample: Any, chunk: Any) -> torch.Tensor:
        if len(chunk) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.passes.append(len(chunk))
        return super()._gradients(stacked, sample, chunk)


def test_where_memory_runs_out_passes_are_halved_and_nothing_is_lost(make_world: Callable[..., World]) -> None:
    world = make_world()
    model, cache = world.model, world.cache
    trainer = Small(model, cache, 512)
    trainer.passes = []

    def jobs() -> list[TrainingJob]:
        from fedprofile.simulations.randomness import SeededRandomness

        return [
            TrainingJob(
                tenant.settings,
                model.initial_arrays(),
                tenant.app._records().training,
                2,
                SeededRandomness(node),
            )
            for node, tenant in world.tenants.items()
        ]

    found, expected = trainer.train(jobs()), CohortTrainer(model, cache, 512).train(jobs())
    assert trainer._tokens_at_once < 512 and max(trainer.passes) <= 3
    for one, other in zip(found, expected, strict=True):
        assert all(np.allclose(one[name], other[name], rtol=1e-4, atol=1e-6) for name in other)


def test_a_record_that_fills_the_memory_alone_is_an_error(make_world: Callable[..., World]) -> None:
    class Full(CohortTrainer):
        def _gradients(self, *arguments: Any) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    world = make_world(Full)
    assert all(reply.has_error() for reply in world.ask(Kind.TRAIN, 1))
