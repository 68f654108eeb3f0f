"""The server as a whole, with real TLS, real keys and real Flower clients."""

import json
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from flwr.app import Message, MetricRecord

from fedprofile.common.errors import InputError, RefusalCode
from fedprofile.common.messages import (
    Arrays,
    Kind,
    LedgerMark,
    Reply,
    Request,
    content_of,
    refusal_message,
    reply_message,
)
from fedprofile.server.enrolment import read_roster, revoke_tenant
from fedprofile.server.runs import LiveRoster
from fedprofile.server.status import read_status, status_text
from fedprofile.server.stopping import ServerStopped

if TYPE_CHECKING:
    from tests.server.conftest import Server

MakeServer = Callable[..., "Server"]
Add = Callable[[float], Callable[[Request, Message], Message]]


def _update(request: Request, value: float) -> Arrays:
    return {name: np.full(old.shape, value, np.float32) for name, old in request.arrays.items()}


def test_a_whole_run(make_server: MakeServer, add: Add, initial: Arrays) -> None:
    server = make_server(evaluation={"when": "start-middle-end"})
    one, two = server.enrol("one", add(1.0), users=100), server.enrol("two", add(4.0), users=200)
    server.start()
    one.start(), two.start()
    result = server.finish()
    for name, value in initial.items():
        np.testing.assert_allclose(result.arrays[name], value + 3 * 3.0, rtol=1e-6)
    lines = server.history()
    assert [(line["kind"], line["round"]) for line in lines] == [
        ("evaluate", 0), ("train", 1), ("evaluate", 1), ("train", 2), ("train", 3), ("evaluate", 3), ("deliver", 3)
    ]  # fmt: skip
    assert all(line["tenants"] == ["one", "two"] and not line["dropped"] for line in lines)
    assert all(line["bytes_up"] > 0 and line["bytes_down"] > 0 for line in lines)
    final = one.heard[-1]
    assert (final.kind, final.round) == (Kind.DELIVER, 3)
    for name, value in result.arrays.items():
        np.testing.assert_array_equal(final.arrays[name], value)
    status = read_status(server.directory.root)
    assert (status["state"], status["round"], status["running"]) == ("finished", 3, False)
    assert status["bytes_up"] == sum(line["bytes_up"] for line in lines)
    assert {tenant["name"]: tenant["answered"] for tenant in status["tenants"]} == {"one": 7, "two": 7}
    assert "epsilon=3 (delta=1e-06, unit=user, adjacency=add-or-remove-one" in status_text(status)
    assert json.loads(json.dumps(status)) == status


def test_bad_updates_are_dropped_and_refusals_counted_while_the_run_goes_on(
    make_server: MakeServer, add: Add, initial: Arrays
) -> None:
    def spoiled(change: Callable[[Arrays], Any]) -> Callable[[Request, Message], Message]:
        def answer(request: Request, message: Message) -> Message:
            arrays = _update(request, 50.0) if request.kind is Kind.TRAIN else {}
            if arrays:
                change(arrays)
            return reply_message(Reply(request.kind, request.card_hash, request.round, arrays), message)

        return answer

    def heavy(request: Request, message: Message) -> Message:
        content = content_of(Reply(request.kind, request.card_hash, request.round, _update(request, 50.0)))
        content["metrics"] = MetricRecord({"num-examples": 10**12})
        return Message(content, reply_to=message)

    def spent(request: Request, message: Message) -> Message:
        return refusal_message(RefusalCode.BUDGET, message)

    server = make_server(training={"rounds": 2}, rounds={"min_tenants": 7})
    answers: dict[str, Callable[[Request, Message], Message]] = {
        "good": add(1.0),
        "nan": spoiled(lambda arrays: arrays["head.bias"].__setitem__(0, np.nan)),
        "shape": spoiled(lambda arrays: arrays.update({"head.bias": np.zeros(5, np.float32)})),
        "name": spoiled(lambda arrays: arrays.update({"other": arrays.pop("head.bias")})),
        "norm": spoiled(lambda arrays: arrays["head.bias"].__setitem__(0, 1e9)),
        "heavy": heavy,
        "spent": spent,
    }
    tenants = [server.enrol(name, answer) for name, answer in answers.items()]
    server.start()
    for tenant in tenants:
        tenant.start()
    result = server.finish()
    for name, value in initial.items():
        np.testing.assert_allclose(result.arrays[name], value + 2.0, rtol=1e-6)
    for line in server.history()[:2]:
        assert line["tenants"] == ["good"]
        assert line["refused"] == [{"tenant": "spent", "code": "budget"}]
        reasons = {dropped["tenant"]: dropped["reason"] for dropped in line["dropped"]}
        assert reasons == {
            "nan": "update is not finite",
            "shape": "shape of 'head.bias' is not [2]",
            "name": "names are not the adapter's",
            "norm": "norm 1e+09 is above max_update_norm",
            "heavy": "message does not hold exactly the records 'arrays' and 'fields'",
        }
    [spent_status] = [one for one in read_status(server.directory.root)["tenants"] if one["name"] == "spent"]
    assert spent_status["refused"]["budget"] == 3


def test_a_stopped_server_goes_on_at_its_round_and_tenants_need_not_notice(
    make_server: MakeServer, add: Add, initial: Arrays
) -> None:
    hold = threading.Event()

    def slow(request: Request, message: Message) -> Message:
        if request.round == 3:
            hold.wait(30)
        mark = LedgerMark(request.round, f"{request.round:064x}")
        arrays = _update(request, 1.0) if request.kind is Kind.TRAIN else {}
        return reply_message(Reply(request.kind, request.card_hash, request.round, arrays, mark), message)

    server = make_server(training={"rounds": 4})
    one, two = server.enrol("one", slow).start_later(), server.enrol("two", add(1.0)).start_later()
    server.start()
    server.until(lambda: server.directory.history.exists() and len(server.history()) == 2)
    server.until(lambda: any(request.round == 3 for request in one.heard))
    server.stop()
    assert isinstance(server.error, ServerStopped)
    assert read_status(server.directory.root)["state"] == "stopped"
    hold.set()
    server.start()
    result = server.finish()
    assert [line["round"] for line in server.history() if line["kind"] == "train"] == [1, 2, 3, 4]
    for name, value in initial.items():
        np.testing.assert_allclose(result.arrays[name], value + 4.0, rtol=1e-6)
    # The ledger's mark outlives the server, and the same question comes again.
    third = [request for request in one.heard if request.round == 3 and request.kind is Kind.TRAIN]
    assert len(third) == 2 and {request.ledger for request in third} == {LedgerMark(2, f"{2:064x}")}
    for name, value in third[0].arrays.items():
        np.testing.assert_array_equal(third[1].arrays[name], value)
    assert two.heard[-1].kind is Kind.DELIVER


def test_the_server_stays_until_tenants_have_left(make_server: MakeServer, add: Add) -> None:
    """A tenant whose last answer has arrived still has to confirm it and to sign off."""
    server = make_server(rounds={"min_tenants": 1}, training={"rounds": 1})
    settings = server.directory.settings_file
    settings.write_text(settings.read_text().replace("patience = 0.5", "patience = 300"))
    one = server.enrol("one", add(1.0))
    server.start()
    one.start()
    server.until(lambda: any("deliver" in line for line in server.lines))
    time.sleep(1)
    assert server.result is None and one.can_activate()
    one.stop()
    server.finish()


def test_a_finished_run_delivers_to_who_comes_late_and_trains_nobody(make_server: MakeServer, add: Add) -> None:
    server = make_server(rounds={"min_tenants": 1})
    one = server.enrol("one", add(1.0))
    server.start()
    one.start()
    server.finish()
    late = server.enrol("late", add(1.0))
    server.start()
    late.start()
    result = server.finish()
    assert result.rounds == 3 and [request.kind for request in late.heard] == [Kind.DELIVER]
    assert [line["kind"] for line in server.history()] == ["train"] * 3 + ["deliver"] * 2


def test_who_is_enrolled_while_the_server_runs_is_let_in_and_who_is_revoked_is_out(
    make_server: MakeServer, add: Add
) -> None:
    server = make_server(training={"rounds": 500}, rounds={"timeout": 5})
    one, two = server.enrol("one", add(0.0)).start_later(), server.enrol("two", add(0.0)).start_later()
    server.start()
    server.until(lambda: two.heard)
    three = server.enrol("three", add(0.0))
    with pytest.raises(httpx.HTTPStatusError):
        three.activate()
    server.until(lambda: three.can_activate(), seconds=5)
    three.start()
    server.until(lambda: three.heard)
    revoke_tenant(server.directory.tenants, "two")
    server.until(lambda: server.history()[-1]["tenants"] == ["one", "three"])
    with pytest.raises(httpx.HTTPStatusError) as refused:
        two.pull()
    assert refused.value.response.status_code == 401
    with pytest.raises(httpx.HTTPStatusError):
        two.activate()
    count = len(two.heard)
    time.sleep(0.5)
    assert len(two.heard) == count and one.heard
    [gone] = [tenant for tenant in read_status(server.directory.root)["tenants"] if tenant["name"] == "two"]
    assert gone["revoked"] and not gone["online"]


def test_a_question_lost_at_a_restarted_tenant_is_asked_again(make_server: MakeServer, add: Add) -> None:
    server = make_server(training={"rounds": 1})
    one = server.enrol("one", add(1.0)).start_later()
    forgetful = server.enrol("two", add(1.0))
    server.start()
    server.until(forgetful.can_activate)
    forgetful.activate()
    server.until(lambda: forgetful.pull() is not None)
    # It has taken the question, the server has thrown its content away, and the process dies without a journal.
    again = server.tenant(forgetful.key, add(1.0)).start()
    server.finish()
    assert server.history()[0]["tenants"] == ["one", "two"]
    assert [request.kind for request in again.heard] == [Kind.TRAIN, Kind.DELIVER] and one.heard


def test_a_tenant_that_is_silent_does_not_hold_the_round_beyond_its_timeout(make_server: MakeServer, add: Add) -> None:
    server = make_server(training={"rounds": 1}, rounds={"timeout": 1.5})
    server.enrol("one", add(1.0)).start_later()
    silent = server.enrol("silent", add(1.0))
    server.start()
    server.until(silent.can_activate)
    server.finish()
    line = server.history()[0]
    assert line["tenants"] == ["one"] and 1.4 < line["seconds"] < 6
    assert line["dropped"] == [{"tenant": "silent", "reason": "no answer in time"}]


def test_a_tenant_that_leaves_in_mid_round_is_waited_for_only_a_while(make_server: MakeServer, add: Add) -> None:
    server = make_server(training={"rounds": 1}, rounds={"timeout": 60})
    server.enrol("one", add(1.0)).start_later()
    leaving = server.enrol("leaving", add(1.0))
    server.start()
    server.until(leaving.can_activate)
    server.until(lambda: leaving.pull() is not None)
    leaving.stop()
    server.finish()
    line = server.history()[0]
    assert line["dropped"] == [{"tenant": "leaving", "reason": "left"}] and 0.4 < line["seconds"] < 20


def test_garbage_instead_of_a_message_loses_only_that_tenants_reply(make_server: MakeServer, add: Add) -> None:
    def garbage(request: Request, message: Message) -> Message:
        reply = add(1.0)(request, message)
        content: Any = reply.content
        array = content["arrays"]["float32"] if request.kind is Kind.TRAIN else None
        if array is not None:
            array.data = b"\x93NUMPY" + b"\xff" * 100
        return reply

    server = make_server(training={"rounds": 1})
    server.enrol("one", add(1.0)).start_later()
    server.enrol("garbage", garbage).start_later()
    server.start()
    server.finish()
    line = server.history()[0]
    assert line["tenants"] == ["one"]
    assert line["dropped"] == [{"tenant": "garbage", "reason": "an array cannot be decoded"}]


def test_a_changed_card_is_refused_and_nothing_is_lost(make_server: MakeServer, add: Add) -> None:
    server = make_server(rounds={"min_tenants": 1}, training={"rounds": 1})
    server.enrol("one", add(1.0)).start_later()
    server.start()
    server.finish()
    before = server.directory.checkpoint.read_bytes()
    text = server.directory.federation.read_text()
    server.directory.federation.write_text(text.replace("rounds = 1", "rounds = 2"))
    server.start()
    with pytest.raises(InputError, match=r"put federation\.toml back"):
        server.finish()
    assert server.directory.checkpoint.read_bytes() == before


def test_who_agreed_to_another_card_stays_out(make_server: MakeServer, add: Add) -> None:
    server = make_server()
    server.enrol("one", add(1.0))
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.superlink.federation import NoOpFederationManager

    from fedprofile.server.linkstate import FederationLinkState

    state = FederationLinkState(NoOpFederationManager(), ObjectStoreFactory().store())
    card = server.directory.card()
    assert len(LiveRoster(server.directory.tenants, state, card.hash).members()) == 1
    assert len(LiveRoster(server.directory.tenants, state, "a" * 64).members()) == 0
    assert read_roster(server.directory.tenants).tenants[0].active
