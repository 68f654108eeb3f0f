"""The strategies against references in plain numpy, going on from their saved state, and their memory."""

import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message
from numpy.typing import NDArray

from fedprofile.common.card import FederationCard
from fedprofile.common.messages import Arrays, Kind, Reply, reply_message
from fedprofile.server.admission import Member
from fedprofile.server.strategy import StreamingFedAvg, make_strategy, numpy_of, record_of
from fedprofile.simulations.grid import InProcessGrid

MakeCard = Callable[..., FederationCard]
USERS = {"one": 100, "two": 5000, "three": 250}
CAP = 1000
SHAPES: dict[str, tuple[int, ...]] = {"b": (2, 3), "a": (4,)}
MEMBERS = {node: Member(name, users, 1.0) for node, (name, users) in enumerate(USERS.items(), start=1)}


def _updates(round_number: int) -> list[Arrays]:
    draw = np.random.default_rng(round_number)
    return [{name: draw.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()} for _ in USERS]


def _mean(round_number: int, name: str) -> NDArray[np.float64]:
    weights = [min(users, CAP) for users in USERS.values()]
    stacked = np.stack([update[name].astype(np.float64) for update in _updates(round_number)])
    return np.asarray(np.average(stacked, axis=0, weights=weights))


def _round(strategy: StreamingFedAvg, card: FederationCard, number: int, arrays: Arrays) -> Arrays:
    grid = InProcessGrid(dict.fromkeys(MEMBERS, lambda message: message))
    questions = strategy.configure_train(number, record_of(arrays), ConfigRecord(), grid)
    replies = [
        reply_message(Reply(Kind.TRAIN, card.hash, number, update), question)
        for update, question in zip(_updates(number), questions, strict=True)
    ]
    found, _ = strategy.aggregate_train(number, replies)
    assert found is not None
    return numpy_of(found)


def _start() -> Arrays:
    return {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}


Reference = Callable[[str], Iterator[NDArray[np.float64]]]


def _fedavg(rate: float) -> Reference:
    def run(name: str) -> Iterator[NDArray[np.float64]]:
        value = np.ones(SHAPES[name])
        for number in range(1, 5):
            value = (value + rate * _mean(number, name)).astype(np.float32).astype(np.float64)
            yield value

    return run


def _fedavgm(rate: float, momentum: float) -> Reference:
    """Hsu et al. 2019: v = momentum v + delta; x = x + rate v, with v = delta in the first round."""

    def run(name: str) -> Iterator[NDArray[np.float64]]:
        value, velocity = np.ones(SHAPES[name]), np.zeros(SHAPES[name])
        for number in range(1, 5):
            velocity = momentum * velocity + _mean(number, name)
            value = (value + rate * velocity).astype(np.float32).astype(np.float64)
            yield value

    return run


def _fedadam(rate: float, first: float, second: float, tau: float) -> Reference:
    """Reddi et al. 2021 with Flower's correction of the step by round + 1."""

    def run(name: str) -> Iterator[NDArray[np.float64]]:
        value, m, v = np.ones(SHAPES[name]), np.zeros(SHAPES[name]), np.zeros(SHAPES[name])
        for number in range(1, 5):
            delta = _mean(number, name)
            m = first * m + (1 - first) * delta
            v = second * v + (1 - second) * delta**2
            step = rate * np.sqrt(1 - second ** (number + 1)) / (1 - first ** (number + 1))
            value = (value + step * m / (np.sqrt(v) + tau)).astype(np.float32).astype(np.float64)
            yield value

    return run


CASES: dict[str, tuple[dict[str, float | str], Reference]] = {
    "fedavg": ({"strategy": "fedavg"}, _fedavg(1.0)),
    "fedavg with a rate": ({"strategy": "fedavg", "learning_rate": 0.5}, _fedavg(0.5)),
    "fedavgm": ({"strategy": "fedavgm", "learning_rate": 0.7, "momentum": 0.9}, _fedavgm(0.7, 0.9)),
    "fedavgm without momentum": ({"strategy": "fedavgm", "learning_rate": 0.7}, _fedavgm(0.7, 0.0)),
    "fedadam": (
        {"strategy": "fedadam", "learning_rate": 0.1, "momentum": 0.9, "beta_2": 0.99, "tau": 0.01},
        _fedadam(0.1, 0.9, 0.99, 0.01),
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("interrupted", [False, True])
def test_equals_the_reference_also_when_interrupted(make_card: MakeCard, case: str, interrupted: bool) -> None:
    settings, reference = CASES[case]
    card = make_card(aggregation={**settings, "weight_cap": CAP})
    strategy = make_strategy(card, SHAPES, lambda: MEMBERS, 60.0)
    expected = {name: reference(name) for name in SHAPES}
    arrays = _start()
    for number in range(1, 5):
        if interrupted:
            state = strategy.optimizer_state()
            strategy = make_strategy(card, SHAPES, lambda: MEMBERS, 60.0)
            strategy.restore_optimizer(state)
        arrays = _round(strategy, card, number, arrays)
        assert list(arrays) == list(SHAPES)
        for name, value in arrays.items():
            assert value.dtype == np.float32
            np.testing.assert_allclose(value, next(expected[name]), rtol=2e-6, atol=2e-7)


def test_a_round_without_updates_changes_nothing(make_card: MakeCard) -> None:
    for settings in ("fedavg", "fedavgm", "fedadam"):
        strategy = make_strategy(
            make_card(aggregation={"strategy": settings, "momentum": 0.9}), SHAPES, lambda: MEMBERS, 60.0
        )
        grid = InProcessGrid(dict.fromkeys(MEMBERS, lambda message: message))
        list(strategy.configure_train(1, record_of(_start()), ConfigRecord(), grid))
        assert strategy.aggregate_train(1, []) == (None, None)
        assert strategy.optimizer_state() == {}
        assert [dropped.reason for dropped in strategy.outcome.dropped] == ["no answer in time"] * 3


def test_questions_share_one_record_of_arrays_and_only_members_online_are_asked(make_card: MakeCard) -> None:
    strategy = make_strategy(make_card(), SHAPES, lambda: MEMBERS, 60.0)
    grid = InProcessGrid(dict.fromkeys([1, 3, 99], lambda message: message))
    questions = strategy.ask(Kind.TRAIN, 1, _start(), grid)
    assert [question.metadata.dst_node_id for question in questions] == [1, 3]
    assert questions[0].content["arrays"] is questions[1].content["arrays"]
    assert strategy.ask(Kind.TRAIN, 1, _start(), grid, skip=["one", "three"]) == []


def _peak(card: FederationCard, tenants: int) -> int:
    shapes = {"a": (200, 200)}
    members = {node: Member(f"t{node}", 100, 1.0) for node in range(1, tenants + 1)}
    strategy = make_strategy(card, shapes, lambda: members, 60.0)
    grid = InProcessGrid(dict.fromkeys(members, lambda message: message))
    start = record_of({"a": np.zeros((200, 200), np.float32)})
    questions = list(strategy.configure_train(1, start, ConfigRecord(), grid))

    def replies() -> Iterator[Message]:
        for question in questions:
            arrays: Arrays = {"a": np.full((200, 200), question.metadata.dst_node_id / 1000, np.float32)}
            yield reply_message(Reply(Kind.TRAIN, card.hash, 1, arrays), question)

    tracemalloc.start()
    strategy.aggregate_train(1, replies())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(strategy.outcome.answered) == tenants
    return peak


def test_memory_does_not_grow_with_the_number_of_tenants(make_card: MakeCard) -> None:
    card = make_card(max_update_norm=1e6)
    _peak(card, 2)
    assert _peak(card, 200) < 1.2 * _peak(card, 10)
