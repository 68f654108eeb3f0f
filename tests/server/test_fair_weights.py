"""Weights from noised tables: against plain arithmetic, after an interruption, and where tables say nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord
from numpy.typing import NDArray
from tests.server.test_strategy import MEMBERS, SHAPES, USERS, MakeCard, _start, _updates

from fedprofile.common.card import FederationCard
from fedprofile.common.evaluation_tables import SCORE_BINS
from fedprofile.common.messages import TABLE, Arrays, Kind, Reply, reply_message
from fedprofile.server.admission import Member
from fedprofile.server.fair_weights import LARGEST_FACTOR, FairWeights
from fedprofile.server.strategy import StreamingFedAvg, make_strategy, numpy_of, record_of
from fedprofile.simulations.grid import InProcessGrid

GROUPED = {"kind": "binary", "labels": ["no", "yes"], "group": {"attribute": "kind", "values": ["a", "b"]}}


def _table(*aucs: float, users: int = 400) -> NDArray[np.float64]:
    """One block a group (a, b, other): half of the users negative, and an AUC of exactly so much."""
    table = np.zeros((3, 2, SCORE_BINS))
    for block, auc in zip(table, aucs, strict=False):
        # Negatives in one bin, positives above it with a chance of `auc` and below it otherwise.
        block[0, 5] = users / 2
        block[1, 8], block[1, 2] = users / 2 * auc, users / 2 * (1 - auc)
    return table.ravel()


def _evaluated(strategy: StreamingFedAvg, card: FederationCard, tables: list[NDArray[np.float64]]) -> None:
    grid = InProcessGrid(dict.fromkeys(MEMBERS, lambda message: message))
    questions = strategy.configure_evaluate(0, record_of(_start()), ConfigRecord(), grid)
    replies = [
        reply_message(Reply(Kind.EVALUATE, card.hash, 0, {TABLE: table}), question)
        for table, question in zip(tables, questions, strict=True)
    ]
    strategy.aggregate_evaluate(0, replies)
    assert len(strategy.outcome.answered) == len(tables)


def _trained(strategy: StreamingFedAvg, card: FederationCard) -> Arrays:
    grid = InProcessGrid(dict.fromkeys(MEMBERS, lambda message: message))
    questions = strategy.configure_train(1, record_of(_start()), ConfigRecord(), grid)
    replies = [
        reply_message(Reply(Kind.TRAIN, card.hash, 1, update), question)
        for update, question in zip(_updates(1), questions, strict=True)
    ]
    found, _ = strategy.aggregate_train(1, replies)
    assert found is not None
    return numpy_of(found)


def _expected(factors: list[float]) -> Arrays:
    weights = np.array(list(USERS.values())) * np.array(factors)
    return {
        name: (
            1 + np.average([update[name].astype(np.float64) for update in _updates(1)], axis=0, weights=weights)
        ).astype(np.float32)
        for name in SHAPES
    }


ERRORS = [0.4, 0.1, 0.2]
"""Of the worst group of each tenant; the tables' other group is better."""


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam"])
@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({"fairness": "none"}, [1.0, 1.0, 1.0]),
        ({"fairness": "q"}, [error / np.mean(ERRORS) for error in ERRORS]),
        ({"fairness": "q", "fairness_q": 2.0}, [max((e / np.mean(ERRORS)) ** 2, 1 / LARGEST_FACTOR) for e in ERRORS]),
        ({"fairness": "worst-tenants"}, [LARGEST_FACTOR, 1.0, 1.0]),
    ],
)
def test_weights_are_users_times_error(
    make_card: MakeCard, settings: dict[str, Any], factors: list[float], strategy: str, interrupted: bool
) -> None:
    card = make_card(task=GROUPED, aggregation={"strategy": strategy, **settings})
    found = make_strategy(card, SHAPES, lambda: MEMBERS, 60.0)
    _evaluated(found, card, [_table(1 - error, 0.95) for error in ERRORS])
    if interrupted:
        state = found.optimizer_state()
        found = make_strategy(card, SHAPES, lambda: MEMBERS, 60.0)
        found.restore_optimizer(state)
    if strategy == "fedavg":
        expected = _expected(factors)
        for name, value in _trained(found, card).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-5)
    weights = {member.name: found._weight(member) / member.declared_users for member in MEMBERS.values()}
    assert list(weights.values()) == pytest.approx(factors, rel=1e-6)


def test_without_groups_it_is_the_tenant_that_counts(make_card: Callable[..., FederationCard]) -> None:
    task = {"kind": "binary", "labels": ["no", "yes"]}
    card = make_card(task=task, aggregation={"fairness": "q"})
    fair = FairWeights(card.aggregation, card.task)
    block = len(_table(0.9)) // 3
    fair.learn({"good": (_table(0.9)[:block], 1.0), "bad": (_table(0.6)[:block], 1.0)})
    assert fair.errors == pytest.approx({"good": 0.1, "bad": 0.4})
    assert fair.factor("good") == pytest.approx(0.4) and fair.factor("bad") == pytest.approx(1.6)
    assert fair.factor("unheard") == 1.0


def test_a_table_that_says_nothing_weighs_as_the_federation(make_card: Callable[..., FederationCard]) -> None:
    card = make_card(task=GROUPED, aggregation={"fairness": "q"})
    fair = FairWeights(card.aggregation, card.task)
    draw = np.random.default_rng(0)
    noise = 30.0
    small = _table(0.5, 0.5, users=6) + draw.normal(0, noise, 60)
    fair.learn({"large": (_table(0.8, 0.9, users=20_000), noise**2), "small": (small, noise**2)})
    assert fair.errors["small"] == pytest.approx(0.2, abs=0.02) and fair.errors["large"] == pytest.approx(0.2)
    assert 0.9 < fair.factor("small") < 1.1
    # And where nobody's table says anything, all weigh what they declare.
    silent = FairWeights(card.aggregation, card.task)
    silent.learn({"small": (small, noise**2)})
    assert silent.errors == {} and silent.factor("small") == 1.0


def test_no_factor_is_out_of_bounds(make_card: Callable[..., FederationCard]) -> None:
    card = make_card(task=GROUPED, aggregation={"fairness": "q", "fairness_q": 5.0})
    fair = FairWeights(card.aggregation, card.task)
    fair.learn({"best": (_table(1.0, 1.0), 1.0), **{f"t{n}": (_table(0.5, 0.5), 1.0) for n in range(9)}})
    assert fair.factor("best") == 1 / LARGEST_FACTOR
    assert all(1 / LARGEST_FACTOR <= fair.factor(name) <= LARGEST_FACTOR for name in fair.errors)


def test_members_weights_stay_below_the_cap(make_card: Callable[..., FederationCard]) -> None:
    card = make_card(aggregation={"weight_cap": 50})
    strategy = make_strategy(card, SHAPES, lambda: MEMBERS, 60.0)
    assert strategy._weight(Member("one", 1000, 1.0)) == 50
