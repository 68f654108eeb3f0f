"""Flower's strategies with admission, weights from enrolment, and replies taken as a stream.

`StreamingFedAvg` replaces how Flower's FedAvg asks and averages; FedAvgM and FedAdam put Flower's own server
optimisers on top of it, cooperatively: Flower's class computes from (old arrays, aggregated arrays) as always. All of
it is double precision inside and float32 towards tenants. Who is asked is everybody who is online: nothing here is
random.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM

from fedprofile.common.card import FederationCard
from fedprofile.common.errors import RefusalCode
from fedprofile.common.evaluation_tables import Table, table_shape
from fedprofile.common.messages import TABLE, Arrays, Kind, LedgerMark, Request, contents_for
from fedprofile.server.admission import Admission, Admitted, Dropped, Member, Refused
from fedprofile.server.aggregation import Shapes, StreamingMean
from fedprofile.server.evaluation import Metrics, TableSum
from fedprofile.server.fair_weights import FairWeights

Members = Callable[[], Mapping[int, Member]]
"""Node id -> tenant, everybody who may take part at this moment."""


@dataclass
class Outcome:
    """Who did what in one question to all tenants."""

    answered: list[str] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    refused: list[tuple[str, RefusalCode]] = field(default_factory=list)
    metrics: Metrics = field(default_factory=dict)
    table: tuple[Table, float] | None = field(default=None, repr=False)
    """Of an evaluation: the sum of the noised tables, and the variance of the noise in one of its cells."""


class StreamingFedAvg(FedAvg):
    """Federated averaging of admitted updates; the new adapter is the old one plus the mean update.

    Bind it to a federation before it is used: Flower's constructors pass on only their own settings.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.outcome = Outcome()
        self.marks: dict[str, LedgerMark] = {}
        self._sent: Arrays = {}
        self._fair: FairWeights | None = None
        self._admission: Admission | None = None

    def bind(self, card: FederationCard, shapes: Shapes, members: Members, time_to_live: float) -> None:
        """Say for which federation it works.

        Args:
            card: The federation card.
            shapes: Name -> shape of the adapter's arrays.
            members: Who may take part.
            time_to_live: Seconds for which a question stays valid.
        """
        self._card, self._shapes, self._members, self._time_to_live = card, dict(shapes), members, time_to_live
        self._card_hash = card.hash
        self._fair = FairWeights(card.aggregation, card.task)

    def optimizer_state(self) -> Arrays:
        """What a checkpoint must keep beside the adapter."""
        assert self._fair is not None, "bind it first"
        return {f"error/{name}": np.array([error]) for name, error in self._fair.errors.items()}

    def restore_optimizer(self, state: Arrays) -> None:
        """Go on from `optimizer_state`."""
        assert self._fair is not None, "bind it first"
        self._fair.errors = {
            name.removeprefix("error/"): float(value[0]) for name, value in state.items() if name.startswith("error/")
        }

    def ask(
        self, kind: Kind, server_round: int, arrays: Arrays, grid: Grid, skip: Collection[str] = ()
    ) -> list[Message]:
        """One question to every member that is online.

        Args:
            kind: What is asked for.
            server_round: The round.
            arrays: The global adapter.
            grid: Says who is online.
            skip: Names of tenants that are not asked.

        Returns:
            One message for each; they share one record of arrays.
        """
        online = set(grid.get_node_ids())
        asked = {
            node_id: member
            for node_id, member in self._members().items()
            if node_id in online and member.name not in skip
        }
        self._admission = Admission(
            card_hash=self._card_hash,
            shapes=self._shapes,
            max_update_norm=self._card.max_update_norm,
            table_shape=table_shape(self._card.task),
            kind=kind,
            round_number=server_round,
            asked=asked,
        )
        request = Request(kind, self._card_hash, server_round, arrays)
        marks = [self.marks.get(member.name, LedgerMark()) for member in asked.values()]
        contents = contents_for(request, marks)
        return [
            Message(content, node_id, kind.value, ttl=self._time_to_live)
            for node_id, content in zip(asked, contents, strict=True)
        ]

    def hear(self, replies: Iterable[Message], count: Callable[[Admitted], None]) -> Outcome:
        """Judge replies as they come.

        Args:
            replies: A stream.
            count: Called with each that is admitted, which is not kept.

        Returns:
            Who did what; also as `outcome`.
        """
        assert self._admission is not None, "ask before you hear"
        self.outcome = outcome = Outcome()
        for message in replies:
            match self._admission.judge(message):
                case Admitted(member, reply) as admitted:
                    count(admitted)
                    outcome.answered.append(member.name)
                    if reply.ledger.sequence > self.marks.get(member.name, LedgerMark()).sequence:
                        self.marks[member.name] = reply.ledger
                case Refused(member, code):
                    outcome.refused.append((member.name, code))
                case Dropped() as dropped:
                    outcome.dropped.append(dropped)
        outcome.dropped.extend(Dropped(member.name, "no answer in time") for member in self._admission.silent)
        return outcome

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """See Flower's `Strategy`."""
        self._sent = numpy_of(arrays)
        return self.ask(Kind.TRAIN, server_round, self._sent, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """See Flower's `Strategy`; the arrays are float64 here."""
        mean = StreamingMean(self._shapes)
        self.hear(replies, lambda admitted: mean.add(admitted.reply.arrays, self._weight(admitted.member)))
        update = mean.mean()
        if update is None:
            return None, None
        arrays: Arrays = {
            name: self._sent[name].astype(np.float64) + self._step() * update[name] for name in self._shapes
        }
        return record_of(arrays), MetricRecord({"tenants": mean.count, "weight": mean.weight})

    def _weight(self, member: Member) -> float:
        assert self._fair is not None, "bind it first"
        return min(member.declared_users, self._card.aggregation.weight_cap) * self._fair.factor(member.name)

    def _step(self) -> float:
        """The server's learning rate, where no optimiser above applies one."""
        return self._card.aggregation.learning_rate

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """See Flower's `Strategy`."""
        return self.ask(Kind.EVALUATE, server_round, numpy_of(arrays), grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """See Flower's `Strategy`; tables are summed, never averaged."""
        assert self._fair is not None, "bind it first"
        tables = TableSum(self._card.task)
        each: dict[str, tuple[Table, float]] = {}

        def add(admitted: Admitted) -> None:
            noise = admitted.member.evaluation_noise
            tables.add(admitted.reply.arrays, noise)
            if self._card.aggregation.fairness != "none":
                each[admitted.member.name] = admitted.reply.arrays[TABLE].astype(np.float64), noise**2

        outcome = self.hear(replies, add)
        self._fair.learn(each)
        outcome.metrics, outcome.table = tables.metrics(), tables.total
        known: dict[str, int | float | list[int] | list[float]] = {
            name: interval.value for name, interval in outcome.metrics.items() if interval is not None
        }
        return MetricRecord(known) if known else None


class _Single:
    """Float32 towards tenants, whatever an optimiser computes in."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = super().aggregate_train(server_round, replies)  # type: ignore[misc]
        if arrays is None:
            return None, metrics
        return record_of({name: value.astype(np.float32) for name, value in numpy_of(arrays).items()}), metrics


class FederatedAveraging(_Single, StreamingFedAvg):
    """FedAvg (McMahan et al. 2017, https://arxiv.org/abs/1602.05629)."""


class FederatedAveragingMomentum(_Single, FedAvgM, StreamingFedAvg):
    """FedAvgM (Hsu et al. 2019, https://arxiv.org/abs/1909.06335)."""

    def _step(self) -> float:
        """Flower's class applies the learning rate."""
        return 1.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Flower's class keeps the arrays of the round before; what counts is what tenants get."""
        self.current_arrays = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def optimizer_state(self) -> Arrays:
        """The momentum."""
        momentum = self.momentum_vector or []
        named = zip(self._shapes, momentum, strict=bool(momentum))
        return super().optimizer_state() | {f"momentum/{name}": value for name, value in named}

    def restore_optimizer(self, state: Arrays) -> None:
        """The momentum."""
        super().restore_optimizer(state)
        if any(name.startswith("momentum/") for name in state):
            self.momentum_vector = [np.asarray(state[f"momentum/{name}"]) for name in self._shapes]


class FederatedAdam(_Single, FedAdam, StreamingFedAvg):
    """FedAdam (Reddi et al. 2021, https://arxiv.org/abs/2003.00295)."""

    def _step(self) -> float:
        """Flower's class applies the learning rate."""
        return 1.0

    def optimizer_state(self) -> Arrays:
        """Both moments."""
        first, second = self.m_t or {}, self.v_t or {}
        return {
            **super().optimizer_state(),
            **{f"first/{name}": value for name, value in first.items()},
            **{f"second/{name}": value for name, value in second.items()},
        }

    def restore_optimizer(self, state: Arrays) -> None:
        """Both moments."""
        super().restore_optimizer(state)
        if any(name.startswith("first/") for name in state):
            self.m_t = {name: np.asarray(state[f"first/{name}"]) for name in self._shapes}
            self.v_t = {name: np.asarray(state[f"second/{name}"]) for name in self._shapes}


def make_strategy(card: FederationCard, shapes: Shapes, members: Members, time_to_live: float) -> StreamingFedAvg:
    """The strategy that a card names.

    Args:
        card: The federation card.
        shapes: Name -> shape of the adapter's arrays.
        members: Who may take part.
        time_to_live: Seconds for which a question stays valid.

    Returns:
        The strategy, bound to the federation.
    """
    settings = card.aggregation
    strategy: StreamingFedAvg
    if settings.strategy == "fedavgm":
        strategy = FederatedAveragingMomentum(
            server_learning_rate=settings.learning_rate, server_momentum=settings.momentum
        )
    elif settings.strategy == "fedadam":
        strategy = FederatedAdam(
            eta=settings.learning_rate, beta_1=settings.momentum, beta_2=settings.beta_2, tau=settings.tau
        )
    else:
        strategy = FederatedAveraging()
    strategy.bind(card, shapes, members, time_to_live)
    return strategy


def numpy_of(record: ArrayRecord) -> Arrays:
    """A record's arrays."""
    return {name: array.numpy() for name, array in record.items()}


def record_of(arrays: Arrays) -> ArrayRecord:
    """A record of arrays, in the same order."""
    return ArrayRecord({name: Array(np.ascontiguousarray(value)) for name, value in arrays.items()})
