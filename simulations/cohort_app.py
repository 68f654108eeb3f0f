"""All tenants of a simulated federation, who answer a round's messages together.

Each tenant has the deployed `TenantApp` with a policy, a ledger and an outbox of its own, and goes through it: what it
refuses, it refuses here. Between reserving and replying, where a deployed client trains or evaluates by itself, all
tenants of a block do so at once. One that fails is an error reply, and the others go on.
"""

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from flwr.app import Message

from fedprofile.client.app import Reserved, TenantApp
from fedprofile.client.evaluation import PrivateEvaluator
from fedprofile.client.training import TrainingSettings
from fedprofile.common.interactions import joined
from fedprofile.common.messages import Arrays, Kind, Reply, reply_message, request_of
from fedprofile.common.modeling.profile_model import Prefixes, ProfileModel
from fedprofile.simulations.cohort import CohortTrainer, TrainingJob

_log = logging.getLogger(__name__)

BLOCK = 128
"""How many tenants train at once. More are no faster on a CPU, and each holds some MiB while it trains."""


@dataclass(frozen=True)
class CohortTenant:
    """One tenant.

    Args:
        app: Its client.
        settings: How it trains, and how privately.
        steps: Of one training.
        evaluator: Of its tables.
    """

    app: TenantApp
    settings: TrainingSettings
    steps: int
    evaluator: PrivateEvaluator


class Cohort:
    """Answers a round's messages for all tenants; see `InProcessGrid`.

    Args:
        model: Of the card.
        cache: Of the model, or None.
        trainer: Of both.
        tenants: By node id.
        block: How many tenants train at once.
    """

    def __init__(
        self,
        model: ProfileModel,
        cache: Prefixes | None,
        trainer: CohortTrainer,
        tenants: Mapping[int, CohortTenant],
        block: int = BLOCK,
    ) -> None:
        self._model, self._cache, self._trainer = model, cache, trainer
        self._tenants = dict(tenants)
        self._block = block

    def answer(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Answer messages to any of the tenants.

        Args:
            messages: Each to another tenant; taken block by block.

        Yields:
            A reply to each, in their order.
        """
        rest = iter(messages)
        while block := list(islice(rest, self._block)):
            yield from self._answer(block)

    def _answer(self, messages: Sequence[Message]) -> list[Message]:
        tenants = [self._tenants[message.metadata.dst_node_id] for message in messages]
        begun = [_begin(tenant, message) for tenant, message in zip(tenants, messages, strict=True)]
        drawn = {**self._train(tenants, begun), **self._evaluate(tenants, begun)}
        return [
            start if isinstance(start, Message) else _finish(tenant, message, start, drawn[place])
            for place, (tenant, message, start) in enumerate(zip(tenants, messages, begun, strict=True))
        ]

    def _train(
        self, tenants: Sequence[CohortTenant], begun: Sequence[Message | Reserved]
    ) -> dict[int, Arrays | Exception]:
        """What each training draws, by place."""
        asked = {
            place: (tenant, start)
            for place, (tenant, start) in enumerate(zip(tenants, begun, strict=True))
            if isinstance(start, Reserved) and start.request.kind is Kind.TRAIN
        }
        if not asked:
            return {}
        try:
            updates = self._trainer.train([_job(*each) for each in asked.values()])
            return dict(zip(asked, updates, strict=True))
        except Exception as error:
            _log.warning("the tenants could not train together (%s), so each trains alone.", type(error).__name__)
        alone: dict[int, Arrays | Exception] = {}
        for place, each in asked.items():
            try:
                [alone[place]] = self._trainer.train([_job(*each)])
            except Exception as error:
                alone[place] = error
        return alone

    def _evaluate(
        self, tenants: Sequence[CohortTenant], begun: Sequence[Message | Reserved]
    ) -> dict[int, Arrays | Exception]:
        """Each table, by place; all records go through the model together."""
        starts = {
            place: start
            for place, start in enumerate(begun)
            if isinstance(start, Reserved) and start.request.kind is Kind.EVALUATE
        }
        found: dict[int, Arrays | Exception] = {}
        for key in dict.fromkeys(start.key for start in starts.values()):
            asked = {place: start for place, start in starts.items() if start.key == key}
            try:
                found |= self._tables({place: (tenants[place], start) for place, start in asked.items()})
            except Exception as error:
                found |= dict.fromkeys(asked, error)
        return found

    def _tables(self, asked: Mapping[int, tuple[CohortTenant, Reserved]]) -> dict[int, Arrays]:
        """The tables of tenants that got the same question."""
        chosen = {
            place: tenant.evaluator.choose(start.records, start.randomness) for place, (tenant, start) in asked.items()
        }
        _, first = next(iter(asked.values()))
        self._model.set_arrays(first.request.arrays)
        probabilities = self._model.predict(joined(list(chosen.values())), self._cache)
        ends = np.cumsum([len(few) for few in chosen.values()])[:-1]
        parts = dict(zip(chosen, np.split(probabilities, ends), strict=True))
        return {
            place: tenant.evaluator.table(chosen[place], parts[place], start.randomness)
            for place, (tenant, start) in asked.items()
        }


def _job(tenant: CohortTenant, start: Reserved) -> TrainingJob:
    """A training from its beginning, also where an earlier attempt has drawn from the same source."""
    randomness = copy.deepcopy(start.randomness)
    request = start.request
    return TrainingJob(tenant.settings, request.arrays, start.records, tenant.steps, randomness, request.round)


def _begin(tenant: CohortTenant, message: Message) -> Message | Reserved:
    try:
        begun = tenant.app.begin(request_of(message))
    except Exception as error:
        return tenant.app.refuse(error, message)
    return reply_message(begun, message) if isinstance(begun, Reply) else begun


def _finish(tenant: CohortTenant, message: Message, start: Reserved, drawn: Arrays | Exception) -> Message:
    try:
        if isinstance(drawn, Exception):
            raise drawn
        return reply_message(tenant.app.finish(start, drawn), message)
    except Exception as error:
        return tenant.app.refuse(error, message)
