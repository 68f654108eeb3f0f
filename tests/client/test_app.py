"""Requests through the tenant's app: the order of the checks, the outbox, and what a failure tells."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray
from tests.client.questions import key_of

from fedprofile.client.app import TenantApp, client_app
from fedprofile.client.evaluation import PrivateEvaluator
from fedprofile.client.ledger import Ledger
from fedprofile.client.ledger_summary import LedgerSummary, summary
from fedprofile.client.outbox import Outbox
from fedprofile.client.policy import Policy
from fedprofile.client.randomness import Randomness, SecureRandomness
from fedprofile.client.sampling import TenantRecords
from fedprofile.client.segments import SegmentPlan
from fedprofile.common.adapters import Layout, arrays_hash
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import BudgetRefusal, DataError, PolicyRefusal, Problem, RefusalCode, ReleaseError
from fedprofile.common.interactions import EncodedRecords
from fedprofile.common.messages import (
    TABLE,
    Arrays,
    Kind,
    LedgerMark,
    Reply,
    Request,
    content_of,
    refusal_of,
    reply_of,
)

LAYOUT: Layout = {"w": ((4,), "float32")}
SECRET = "alice@example.org paid 913.55"


@dataclass
class Linear:
    """A trainer of a few lines behind the same interface: the sum of features, noised."""

    failure: Exception | None = None
    calls: int = 0
    tests: int = 0
    seen_entries: list[int] = field(default_factory=list)
    seen_rounds: list[int] = field(default_factory=list)
    seen_users: list[tuple[str, ...]] = field(default_factory=list)
    ledger: Ledger | None = None

    def self_test(self) -> None:
        self.tests += 1
        assert self.ledger is not None and self.ledger.mark().sequence == 0, "the self-test comes before the spend"

    def train(
        self, arrays: Arrays, records: EncodedRecords, *, steps: int, randomness: Randomness, round_number: int = 1
    ) -> Arrays:
        self.calls += 1
        self.seen_rounds.append(round_number)
        self.seen_users.append(records.users)
        assert self.ledger is not None
        self.seen_entries.append(self.ledger.mark().sequence)
        if self.failure is not None:
            raise self.failure
        total = records.features.sum(axis=0) + randomness.gaussian(4) * steps
        return {"w": total.astype(np.float32)}


@dataclass
class World:
    """Everything that one tenant's app is made of."""

    app: TenantApp
    card: FederationCard
    ledger: Ledger
    outbox: Outbox
    trainer: Linear
    users: list[str]
    delivered: list[tuple[int, str]]
    sources: list[Randomness]
    reads: list[int]
    evaluated: list[tuple[str, ...]]

    def request(self, kind: Kind = Kind.TRAIN, number: int = 1, **changes: Any) -> Request:
        request = Request(kind, self.card.hash, number, {"w": np.arange(4, dtype=np.float32)})
        return replace(request, **changes)

    def read(self) -> LedgerSummary:
        return summary(self.ledger.path)


def _envelope(content: RecordDict, kind: str) -> Message:
    # Flower lets only a process with a task's identity make a message.
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    return Message(content, dst_node_id=5, message_type=kind)


def _message(request: Request, number: int = 1, run: int = 1) -> Message:
    message = _envelope(content_of(request), request.kind.value)
    message.metadata.__dict__["_message_id"] = f"message-{run}-{number}"
    message.metadata.__dict__["_run_id"] = run
    return message


def _records(users: list[str]) -> EncodedRecords:
    n = len(users)
    return EncodedRecords(
        users=tuple(users),
        user=np.arange(n),
        tokens=[np.ones(1, np.int32)] * n,
        features=np.ones((n, 4), np.float32),
        labels=np.zeros(n, np.int64),
        groups=np.zeros(n, np.int64),
    )


@pytest.fixture
def world(tmp_path: Path, card_data: Callable[..., dict[str, Any]]) -> Iterator[World]:
    card = FederationCard.model_validate(card_data(training={"rounds": 5, "local_steps": 10}))
    plan = SegmentPlan(card.hash, 3.0, 1e-6, 0.1, 2.0, 1.0, 4, 10, 30, 5.0, 2)
    ledger = Ledger.open(
        tmp_path / "pop.sqlite", population="p", user_column="user", epsilon=3.0, delta=1e-6, evaluation_users=0.2
    )
    trainer, outbox = Linear(ledger=ledger), Outbox(tmp_path / "outbox")
    users = [f"user-{number}" for number in range(20)]
    delivered: list[tuple[int, str]] = []
    sources: list[Randomness] = []
    reads: list[int] = []
    evaluated: list[tuple[str, ...]] = []

    def predict(arrays: Arrays, records: EncodedRecords) -> NDArray[np.floating]:
        evaluated.append(records.users)
        return np.full((len(records), 2), 0.5)

    def source() -> TenantRecords:
        reads.append(len(users))
        return TenantRecords(training=_records(users[4:]), evaluation=_records(users[:4]))

    def randomness() -> Randomness:
        sources.append(SecureRandomness())
        return sources[-1]

    app = TenantApp(
        card=card,
        layout=LAYOUT,
        trainer=trainer,
        evaluator=PrivateEvaluator.of(card, plan, predict=predict),
        records=source,
        ledger=ledger,
        segment=ledger.open_segment(plan),
        outbox=outbox,
        policy=Policy(frozenset({"train", "evaluate", "deliver"}), 100),
        make_randomness=randomness,
        on_adapter=lambda arrays, number: delivered.append((number, arrays_hash(arrays))),
    )
    with ledger:
        yield World(app, card, ledger, outbox, trainer, users, delivered, sources, reads, evaluated)


def test_training_reserves_first_draws_then_and_answers(world: World) -> None:
    reply = world.app.handle(world.request())
    assert world.trainer.seen_entries == [1], "the entry was there when the trainer drew"
    assert reply.kind is Kind.TRAIN and reply.round == 1 and reply.card_hash == world.card.hash
    assert reply.ledger == world.ledger.mark() and reply.arrays["w"].dtype == np.float32
    told = world.read()
    assert [(row.kind, row.steps, row.question) for row in told.releases] == [
        ("train", 10, arrays_hash(world.request().arrays))
    ]
    assert told.payloads == {1: arrays_hash(reply.arrays)}


def test_the_trainer_is_told_the_round_that_was_checked(world: World) -> None:
    for number in (1, 4):
        world.app.handle(world.request(round=number))
    assert world.trainer.seen_rounds == [1, 4]
    with pytest.raises(PolicyRefusal):
        world.app.handle(world.request(round=6))
    assert world.trainer.seen_rounds == [1, 4]


def test_each_reservation_has_its_own_randomness(world: World) -> None:
    first = world.app.handle(world.request(number=1))
    second = world.app.handle(world.request(number=2))
    assert len(world.sources) == 2
    assert not np.array_equal(first.arrays["w"], second.arrays["w"])


def test_evaluation_is_one_table_over_the_evaluation_users(world: World) -> None:
    reply = world.app.handle(world.request(Kind.EVALUATE, 0))
    assert set(reply.arrays) == {TABLE} and reply.arrays[TABLE].shape == (3 * 2 * 10,)
    [row] = world.read().releases
    assert (row.kind, row.sample_rate, row.steps) == ("evaluate", 1.0, 1)
    # An evaluation that the installed libraries cannot do rightly is refused before it is paid for, too.
    assert world.trainer.tests == 1


def test_a_delivered_adapter_is_handed_on_free_of_cost(world: World) -> None:
    request = world.request(Kind.DELIVER, 5)
    reply = world.app.handle(request)
    assert reply.arrays == {} and world.delivered == [(5, arrays_hash(request.arrays))]
    assert world.read().releases == ()


def test_the_same_question_in_another_run_and_message_gets_the_same_bytes_free(world: World) -> None:
    first = world.app.answer(_message(world.request(), number=1, run=1))
    again = world.app.answer(_message(world.request(ledger=world.ledger.mark()), number=77, run=2))
    assert first.metadata.reply_to_message_id != again.metadata.reply_to_message_id
    assert first.content["arrays"].object_id == again.content["arrays"].object_id
    assert first.content["fields"].object_id == again.content["fields"].object_id
    assert world.trainer.calls == 1 and len(world.read().releases) == 1 and len(world.sources) == 1


def test_another_question_in_the_same_round_reserves(world: World) -> None:
    world.app.handle(world.request())
    world.app.handle(world.request(arrays={"w": np.ones(4, np.float32)}))
    assert len(world.read().releases) == 2


def test_a_restarted_process_gives_what_it_had_finished(world: World, tmp_path: Path) -> None:
    reply = world.app.handle(world.request())
    world.app._outbox = Outbox(tmp_path / "outbox")
    again = world.app.handle(world.request())
    assert again.arrays["w"].tobytes() == reply.arrays["w"].tobytes() and again.ledger == reply.ledger
    assert len(world.read().releases) == 1


def test_a_training_that_was_cut_off_is_paid_for_and_drawn_anew(world: World) -> None:
    world.trainer.failure = MemoryError()
    assert refusal_of(world.app.answer(_message(world.request()))) is RefusalCode.UNAVAILABLE
    world.trainer.failure = None
    world.app.handle(world.request())
    assert len(world.read().releases) == 2 and len(world.sources) == 2
    assert list(world.read().payloads) == [2]


def test_a_finished_reply_stays_when_someone_leaves(world: World) -> None:
    """Old bytes for one who stays and new ones for one who leaves would tell the server who left, without noise."""
    first = world.app.handle(world.request())
    world.users.pop()
    again = world.app.handle(world.request())
    assert again.arrays["w"].tobytes() == first.arrays["w"].tobytes() and again.ledger == first.ledger
    assert len(world.read().releases) == 1


def _stored(world: World, request: Request) -> Path:
    return world.outbox._folder / f"{key_of(request)}.safetensors"


def _forge(world: World, request: Request, **changes: Any) -> None:
    found = world.outbox.get(key_of(request))
    assert found is not None
    world.outbox.put(key_of(request), replace(found, **changes))


OTHERS: list[dict[str, Any]] = [
    {"arrays": {"user u17 bought insulin": np.array([17.0, 1.0])}},
    {"arrays": {"w": np.zeros(5, np.float32)}},
    {"arrays": {"w": np.zeros(4, np.float64)}},
    {"arrays": {"w": np.zeros(4, np.float32), "v": np.zeros(4, np.float32)}},
    {"arrays": {"w": np.full(4, 7, np.float32)}},
    {"arrays": {}},
    {"kind": Kind.EVALUATE},
    {"card_hash": "0" * 64},
    {"round": 2},
]


@pytest.mark.parametrize("change", OTHERS, ids=[str(number) for number in range(len(OTHERS))])
def test_a_stored_reply_that_is_not_what_was_released_is_never_sent(
    world: World, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    first = world.app.handle(world.request())
    _forge(world, world.request(), **change)
    with pytest.raises(ReleaseError):
        world.app.handle(world.request())
    assert refusal_of(world.app.answer(_message(world.request()))) is RefusalCode.UNAVAILABLE
    assert "restore" in caplog.text and "paid for, anew" in caplog.text
    # Nothing was drawn in its place, nothing was paid, and the note stays.
    assert len(world.read().releases) == 1 and len(world.sources) == 1
    assert world.read().payloads == {1: arrays_hash(first.arrays)}
    world.app.handle(world.request(number=3))


def test_a_run_that_was_joined_anew_with_other_settings_gives_the_same_bytes(world: World) -> None:
    """Another segment of the same card: the question is the same, and other noise over it would cost again."""
    first = world.app.handle(world.request())
    plan = replace(world.app._segment.plan, epsilon=1.0, delta=1e-7)
    world.ledger.raise_budget(9.0, 1e-5, "for the test")
    world.app._segment = world.ledger.open_segment(plan)
    again = world.app.handle(world.request())
    assert again.arrays["w"].tobytes() == first.arrays["w"].tobytes() and len(world.read().releases) == 1
    _stored(world, world.request()).write_bytes(b"damaged")
    with pytest.raises(ReleaseError):
        world.app.handle(world.request())


def test_a_stored_table_must_be_one(world: World) -> None:
    world.app.handle(world.request(Kind.EVALUATE, 0))
    _forge(world, world.request(Kind.EVALUATE, 0), arrays={TABLE: np.zeros(9)})
    with pytest.raises(ReleaseError):
        world.app.handle(world.request(Kind.EVALUATE, 0))


@pytest.mark.parametrize("other", [{"number": 2}, {"arrays": {"w": np.ones(4, np.float32)}}], ids=["round", "arrays"])
def test_the_reply_to_another_question_is_never_sent(world: World, other: dict[str, Any]) -> None:
    world.app.handle(world.request())
    world.app.handle(world.request(**other))
    _stored(world, world.request()).write_bytes(_stored(world, world.request(**other)).read_bytes())
    with pytest.raises(ReleaseError):
        world.app.handle(world.request())


def test_a_damaged_reply_that_was_released_is_drawn_anew_only_when_a_person_deletes_it(world: World) -> None:
    world.app.handle(world.request())
    _stored(world, world.request()).write_bytes(b"damaged")
    with pytest.raises(ReleaseError, match=r"restore it\. Where it is lost, delete it"):
        world.app.handle(world.request())
    assert len(world.read().releases) == 1
    _stored(world, world.request()).unlink()
    world.app.handle(world.request())
    assert len(world.read().releases) == 2


def test_a_damaged_reply_that_was_never_released_is_as_a_training_that_was_cut_off(world: World) -> None:
    def cut(released: LedgerMark, payload: str) -> None:
        raise OSError(28, "No space left on device")

    noted, world.ledger.mark_released = world.ledger.mark_released, cut  # type: ignore[method-assign]
    with pytest.raises(OSError):
        world.app.handle(world.request())
    world.ledger.mark_released = noted  # type: ignore[method-assign]
    _stored(world, world.request()).write_bytes(b"damaged")
    reply = world.app.handle(world.request())
    assert len(world.read().releases) == 2 and world.read().payloads == {2: arrays_hash(reply.arrays)}


def test_each_kind_sees_only_its_own_users(world: World) -> None:
    """The larger of two costs counts only because nobody is in both."""
    for number in (1, 2):
        world.app.handle(world.request(number=number))
        world.app.handle(world.request(Kind.EVALUATE, number))
    assert world.trainer.seen_users == [tuple(world.users[4:])] * 2
    assert {user for users in world.evaluated for user in users} == set(world.users[:4])


@pytest.mark.parametrize(
    ("policy", "number"),
    [
        (Policy(frozenset({"evaluate"}), 100), 1),
        (Policy(frozenset({"train"}), 100), 6),
        (Policy(frozenset({"train"}), 100, date(2020, 1, 1)), 1),
        (Policy(frozenset({"train"}), 0), 1),
    ],
    ids=["kind", "round", "end date", "rounds a day"],
)
def test_a_policy_refuses_before_the_data_is_looked_at(world: World, policy: Policy, number: int) -> None:
    world.app._policy = policy
    assert refusal_of(world.app.answer(_message(world.request(number=number)))) is RefusalCode.POLICY
    assert world.reads == [] and world.read().releases == ()


def test_a_spent_budget_refuses_before_the_data_is_looked_at(world: World) -> None:
    for number in (1, 2, 3):
        world.app.handle(world.request(number=number))
    assert len(world.reads) == 3
    assert refusal_of(world.app.answer(_message(world.request(number=4)))) is RefusalCode.BUDGET
    assert len(world.reads) == 3


REFUSED: list[tuple[dict[str, Any], RefusalCode]] = [
    ({"card_hash": "0" * 64}, RefusalCode.CARD),
    ({"round": 6}, RefusalCode.POLICY),
    ({"arrays": {"w": np.full(4, np.nan, np.float32)}}, RefusalCode.ADAPTER),
    ({"arrays": {"w": np.full(4, np.inf, np.float32)}}, RefusalCode.ADAPTER),
    ({"arrays": {"w": np.full(4, 1e9, np.float32)}}, RefusalCode.ADAPTER),
    ({"arrays": {"w": np.ones(5, np.float32)}}, RefusalCode.ADAPTER),
    ({"arrays": {"w": np.ones(4, np.float64)}}, RefusalCode.ADAPTER),
    ({"arrays": {"v": np.ones(4, np.float32)}}, RefusalCode.ADAPTER),
    ({"arrays": {}}, RefusalCode.ADAPTER),
    ({"ledger": LedgerMark(3, "d" * 64)}, RefusalCode.LEDGER),
]


@pytest.mark.parametrize(("change", "code"), REFUSED)
@pytest.mark.parametrize("kind", list(Kind))
def test_what_is_refused_costs_nothing_and_has_its_code(
    world: World, kind: Kind, change: dict[str, Any], code: RefusalCode
) -> None:
    answer = world.app.answer(_message(replace(world.request(kind), **change)))
    assert answer.has_error() and refusal_of(answer) is code and answer.error.reason == code.value
    told = world.read()
    assert told.releases == () and told.refusals == {code.value: 1}
    assert world.trainer.calls == 0 and not world.sources and not world.delivered


def test_a_spent_budget_is_refused_with_its_code_and_others_go_on(world: World) -> None:
    for number in (1, 2, 3):
        world.app.handle(world.request(number=number))
    with pytest.raises(BudgetRefusal):
        world.app.handle(world.request(number=4))
    assert refusal_of(world.app.answer(_message(world.request(number=4)))) is RefusalCode.BUDGET
    assert len(world.sources) == 3
    assert world.app.handle(world.request(Kind.EVALUATE, 3)).arrays
    assert world.app.handle(world.request(number=2)).arrays, "what is in the outbox is still free"


FAILURES = [
    ValueError(SECRET),
    RuntimeError(SECRET),
    MemoryError(SECRET),
    KeyError(SECRET),
    FloatingPointError(SECRET),
    UnicodeDecodeError("utf-8", b"x", 0, 1, SECRET),
    DataError(SECRET, (Problem("source", 1, None, SECRET),)),
    OSError(28, SECRET),
    StopIteration(SECRET),
    RecursionError(SECRET),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("where", ["source", "trainer", "randomness", "delivery", "ledger"])
def test_every_failure_is_one_constant_code_and_tells_nothing(
    world: World, failure: Exception, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise failure

    kind = Kind.TRAIN
    if where == "source":
        world.app._records = fail
    elif where == "trainer":
        world.trainer.failure = failure
    elif where == "randomness":
        world.app._make_randomness = fail
    elif where == "ledger":
        world.ledger.close()
    else:
        world.app._on_adapter, kind = fail, Kind.DELIVER
    with caplog.at_level(logging.DEBUG):
        answer = world.app.answer(_message(world.request(kind)))
    assert answer.has_error() and not answer.has_content()
    assert (answer.error.code, answer.error.reason) == (1000, "unavailable")
    assert SECRET not in caplog.text
    if where not in ("trainer", "ledger"):
        assert type(failure).__name__ in caplog.text
    assert SECRET not in repr(answer)


def _bad_messages(world: World) -> Iterator[Message]:
    yield _envelope(RecordDict({}), "train")
    yield _envelope(RecordDict({"arrays": ConfigRecord({"x": 1})}), "train")
    other = content_of(world.request())
    other["more"] = ConfigRecord({"code": "import os"})
    yield _envelope(other, "train")
    yield _envelope(content_of(world.request()), "query.anything")


def test_messages_that_are_not_of_the_schema_are_unavailable(world: World) -> None:
    for number, message in enumerate(_bad_messages(world)):
        message.metadata.__dict__["_message_id"] = f"bad-{number}"
        assert refusal_of(world.app.answer(message)) is RefusalCode.UNAVAILABLE
    assert world.read().releases == ()


def test_the_self_test_runs_once_and_before_the_first_spend(world: World) -> None:
    for number in (1, 2):
        world.app.handle(world.request(number=number))
    assert world.trainer.tests == 1


def test_a_failing_self_test_spends_nothing(world: World) -> None:
    def fail() -> None:
        raise RuntimeError("no gradient reaches w")

    world.trainer.self_test = fail  # type: ignore[method-assign]
    assert refusal_of(world.app.answer(_message(world.request()))) is RefusalCode.UNAVAILABLE
    assert world.read().releases == () and not world.sources


def test_the_days_rounds_are_bounded_by_the_ledger_and_not_by_the_process(world: World) -> None:
    world.app._policy = Policy(frozenset({"train"}), max_rounds_a_day=1)
    world.app.handle(world.request(number=1))
    assert refusal_of(world.app.answer(_message(world.request(number=2)))) is RefusalCode.POLICY
    assert world.app.handle(world.request(number=1)).arrays, "repeating is free and not counted"


def test_as_a_flower_app_the_same_logic_answers(world: World) -> None:
    app = client_app(lambda message, context: world.app.answer(message))
    context = Context(1, 5, {}, RecordDict({}), {})
    reply = reply_of(app(_message(world.request()), context))
    assert isinstance(reply, Reply) and reply.round == 1
    for kind, number in ((Kind.EVALUATE, 0), (Kind.DELIVER, 5)):
        assert reply_of(app(_message(world.request(kind, number)), context)).kind is kind
    assert len(world.read().releases) == 2
