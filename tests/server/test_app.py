"""The run without any transport: its order, its ends, and that an interrupted run is the same run."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from fedprofile.common.card import FederationCard
from fedprofile.common.errors import InputError, RefusalCode
from fedprofile.common.messages import TABLE, Arrays, Kind, Reply, Request, refusal_message, reply_message, request_of
from fedprofile.server.admission import Member
from fedprofile.server.app import FederationResult, NoJournal, RunFailed, build_server_app, run_federation
from fedprofile.server.checkpoint import Checkpoint, read_checkpoint
from fedprofile.server.history import RoundRecord
from fedprofile.server.stopping import ServerStopped
from fedprofile.simulations.grid import InProcessGrid

MakeCard = Callable[..., FederationCard]
Answer = Callable[[Message], Message]


def _table(auc_is_good: bool) -> Arrays:
    """A table of a thousand users whose scores are right, or are coin flips."""
    table = np.full((2, 10), 50.0)
    if auc_is_good:
        table[0, 5:], table[1, :5] = 0.0, 0.0
    return {TABLE: table.ravel()}


def _tenant(
    value: float = 1.0, good: bool = True, refuse: Callable[[Request], RefusalCode | None] | None = None
) -> Answer:
    def answer(message: Message) -> Message:
        request = request_of(message)
        code = refuse(request) if refuse else None
        if code is not None:
            return refusal_message(code, message)
        arrays: Arrays = {}
        if request.kind is Kind.TRAIN:
            # Depends on what was received and on the round, so that a wrong resume would show.
            arrays = {
                name: (0.1 * old + value * request.round).astype(np.float32) for name, old in request.arrays.items()
            }
        elif request.kind is Kind.EVALUATE:
            arrays = _table(good)
        return reply_message(Reply(request.kind, request.card_hash, request.round, arrays), message)

    return answer


def _run(card: FederationCard, initial: Arrays, *answers: Answer, **options: Any) -> FederationResult:
    members = {node: Member(f"t{node}", 100 * node, 1.0) for node in range(1, len(answers) + 1)}
    grid = InProcessGrid(dict(enumerate(answers, start=1)))
    start: dict[str, Any] = {} if "checkpoint" in options else {"initial_arrays": initial}
    return run_federation(grid, card, lambda: members, patience=0.0, late=0.0, **start, **options)


def _order(result: FederationResult) -> list[tuple[str, int]]:
    return [(record.kind.name, record.round) for record in result.records]


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("never", "T1 T2 T3 D3"),
        ("end", "T1 T2 T3 E3 D3"),
        ("start-middle-end", "E0 T1 E1 T2 T3 E3 D3"),
        ("every-round", "E0 T1 E1 T2 E2 T3 E3 D3"),
    ],
)
def test_the_card_says_what_is_asked_when(make_card: MakeCard, initial: Arrays, when: str, expected: str) -> None:
    result = _run(make_card(evaluation={"when": when}), initial, _tenant(), _tenant())
    assert " ".join(f"{kind[0]}{number}" for kind, number in _order(result)) == expected
    assert (result.rounds, result.reason) == (3, "rounds")


class _Keeper(NoJournal):
    """Keeps a copy of every checkpoint, as a file would."""

    def __init__(self) -> None:
        self.kept: list[Checkpoint] = []

    def answered(self, record: RoundRecord, checkpoint: Checkpoint) -> None:
        copies: Any = {"marks": dict(checkpoint.marks), "evaluated": list(checkpoint.evaluated)}
        self.kept.append(replace(checkpoint, **copies, stopping=replace(checkpoint.stopping)))


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam"])
def test_going_on_from_any_checkpoint_is_the_same_run(make_card: MakeCard, initial: Arrays, strategy: str) -> None:
    card = make_card(
        aggregation={"strategy": strategy, "learning_rate": 0.5, "momentum": 0.9}, evaluation={"when": "every-round"}
    )
    keeper = _Keeper()
    whole = _run(card, initial, _tenant(1.0), _tenant(2.0), journal=keeper)
    assert len(keeper.kept) == len(whole.records)
    for number, checkpoint in enumerate(keeper.kept, start=1):
        rest = _run(card, initial, _tenant(1.0), _tenant(2.0), checkpoint=checkpoint)
        assert _order(rest) == _order(whole)[number:]
        for name, value in whole.arrays.items():
            assert rest.arrays[name].tobytes() == value.tobytes()


def test_the_average_of_the_last_rounds_is_what_comes_out_and_never_what_is_trained(
    make_card: MakeCard, initial: Arrays, tmp_path: Path
) -> None:
    """Also after a stop in any place, through the checkpoint's file."""
    received: dict[tuple[Kind, int], Arrays] = {}

    def watched(message: Message) -> Message:
        request = request_of(message)
        received[request.kind, request.round] = {name: value.copy() for name, value in request.arrays.items()}
        return _tenant(1.0)(message)

    card = make_card(aggregation={"average_last": 2}, evaluation={"when": "every-round"})
    keeper = _Keeper()
    whole = _run(card, initial, watched, _tenant(2.0), journal=keeper)
    last = [
        _run(make_card(training={"rounds": rounds}), initial, _tenant(1.0), _tenant(2.0)).arrays for rounds in (1, 2, 3)
    ]
    for name in initial:
        assert np.array_equal(received[Kind.TRAIN, 2][name], last[0][name])
        assert np.array_equal(received[Kind.TRAIN, 3][name], last[1][name])
        assert np.array_equal(received[Kind.EVALUATE, 1][name], last[0][name])
        expected = (last[1][name].astype(float) + last[2][name]) / 2
        for found in (whole.arrays, received[Kind.EVALUATE, 3], received[Kind.DELIVER, 3]):
            assert found[name].dtype == np.float32
            assert np.allclose(found[name], expected, rtol=1e-6)
    for number, checkpoint in enumerate(keeper.kept):
        checkpoint.write(tmp_path / f"{number}")
        read = read_checkpoint(tmp_path / f"{number}", card.hash, 0)
        rest = _run(card, initial, _tenant(1.0), _tenant(2.0), checkpoint=read)
        assert all(rest.arrays[name].tobytes() == value.tobytes() for name, value in whole.arrays.items())


def test_stops_early_on_the_noised_tables(make_card: MakeCard, initial: Arrays) -> None:
    card = make_card(training={"rounds": 50}, evaluation={"when": "every-round", "patience": 2})
    result = _run(card, initial, _tenant(good=False), _tenant(good=False))
    assert (result.rounds, result.reason) == (2, "early stopping")
    assert _order(result)[-2:] == [("EVALUATE", 2), ("DELIVER", 2)]


def test_a_tenant_whose_budget_ends_does_not_stop_the_others(make_card: MakeCard, initial: Arrays) -> None:
    def spent(request: Request) -> RefusalCode | None:
        return RefusalCode.BUDGET if request.kind is Kind.TRAIN and request.round > 1 else None

    result = _run(make_card(rounds={"min_tenants": 2}), initial, _tenant(), _tenant(refuse=spent))
    assert result.rounds == 3
    assert [record.outcome.answered for record in result.records][:3] == [["t1", "t2"], ["t1"], ["t1"]]
    assert result.records[1].outcome.refused == [("t2", RefusalCode.BUDGET)]


def test_when_all_budgets_are_spent_the_adapter_is_delivered(make_card: MakeCard, initial: Arrays) -> None:
    def spent(request: Request) -> RefusalCode | None:
        return RefusalCode.BUDGET if request.kind is Kind.TRAIN and request.round > 2 else None

    result = _run(make_card(), initial, _tenant(refuse=spent), _tenant(refuse=spent))
    assert (result.rounds, result.reason) == (2, "budgets spent")
    assert result.records[-1].kind is Kind.DELIVER and result.records[-1].outcome.answered == ["t1", "t2"]


def test_fails_where_nobody_can_go_on(make_card: MakeCard, initial: Arrays) -> None:
    with pytest.raises(RunFailed, match="every tenant declined \\(card\\)"):
        _run(make_card(), initial, *[_tenant(refuse=lambda request: RefusalCode.CARD)] * 2)


def test_asks_again_where_no_update_was_admitted_and_then_fails(make_card: MakeCard, initial: Arrays) -> None:
    asked = 0

    def unavailable(request: Request) -> RefusalCode | None:
        nonlocal asked
        asked += 1
        return RefusalCode.UNAVAILABLE if asked <= 2 else None

    result = _run(make_card(rounds={"min_tenants": 1}), initial, _tenant(refuse=unavailable))
    assert [(record.kind.name, record.round) for record in result.records][:3] == [("TRAIN", 1)] * 3
    assert result.rounds == 3
    with pytest.raises(RunFailed, match="no update was admitted in 3 attempts"):
        _run(make_card(), initial, *[_tenant(refuse=lambda request: RefusalCode.UNAVAILABLE)] * 2)


def test_too_few_tenants_are_an_error_where_nobody_can_come(make_card: MakeCard, initial: Arrays) -> None:
    with pytest.raises(InputError, match="1 of at least 2 tenants"):
        _run(make_card(), initial, _tenant())
    with pytest.raises(InputError, match="initial_arrays or a checkpoint"):
        run_federation(InProcessGrid({}), make_card(), dict)


def test_waiting_can_be_stopped(make_card: MakeCard, initial: Arrays) -> None:
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(ServerStopped):
        run_federation(InProcessGrid({}), make_card(), dict, initial_arrays=initial, stopped=stopped)


def test_weights_are_the_declared_users_capped(make_card: MakeCard, initial: Arrays) -> None:
    zero = {name: np.zeros_like(value) for name, value in initial.items()}
    card = make_card(training={"rounds": 1}, aggregation={"weight_cap": 150})
    result = _run(card, zero, _tenant(0.0), _tenant(1.0))  # 100 and 200 declared users
    np.testing.assert_allclose(result.arrays["head.bias"], 150 / 250, rtol=1e-6)


def test_a_new_member_takes_part_from_the_next_question(make_card: MakeCard, initial: Arrays) -> None:
    members = {1: Member("t1", 100, 1.0), 2: Member("t2", 100, 1.0)}

    class Enrol(NoJournal):
        def answered(self, record: RoundRecord, checkpoint: Checkpoint) -> None:
            members[3] = Member("t3", 100, 1.0)
            members.pop(1, None)

    grid = InProcessGrid({1: _tenant(), 2: _tenant(), 3: _tenant()})
    result = run_federation(grid, make_card(), lambda: members, initial_arrays=initial, patience=0.0, journal=Enrol())
    assert [record.outcome.answered for record in result.records][:2] == [["t1", "t2"], ["t2", "t3"]]


def test_as_a_server_app_of_flowers(make_card: MakeCard, initial: Arrays) -> None:
    card = make_card()
    members = {1: Member("t1", 100, 1.0), 2: Member("t2", 200, 1.0)}
    results: list[FederationResult] = []
    app = build_server_app(card, lambda grid: members, initial, results.append)
    grid = InProcessGrid({1: _tenant(1.0), 2: _tenant(2.0)})
    app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}))
    expected = _run(card, initial, _tenant(1.0), _tenant(2.0))
    for name, value in expected.arrays.items():
        assert results[0].arrays[name].tobytes() == value.tobytes()
