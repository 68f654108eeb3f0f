"""What `make crash` found in the server, each once more without any kill."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from flwr.app import Message

from fedprofile.common.card import FederationCard
from fedprofile.common.errors import InputError, RefusalCode
from fedprofile.common.messages import Arrays, Kind, Reply, Request, refusal_message, reply_message, request_of
from fedprofile.server.admission import Member
from fedprofile.server.app import NoJournal, run_federation
from fedprofile.server.checkpoint import Checkpoint, dump_arrays, load_arrays
from fedprofile.server.export import newest_adapter
from fedprofile.server.history import RoundRecord
from fedprofile.simulations.grid import InProcessGrid

if TYPE_CHECKING:
    from tests.server.conftest import Server

Add = Callable[[float], Callable[[Request, Message], Message]]


def test_a_kill_between_checkpoint_and_adapter_leaves_no_older_adapter(
    make_server: Callable[..., "Server"], add: Add
) -> None:
    server = make_server(rounds={"min_tenants": 1})
    one = server.enrol("one", add(1.0))
    server.start()
    one.start()
    server.finish()
    directory = server.directory
    arrays, metadata = load_arrays(directory.adapter)
    older = {name: value - 1 for name, value in arrays.items()}
    directory.adapter.write_bytes(dump_arrays(older, {**metadata, "round": "2"}))
    half_written = directory.state / ".adapter.safetensors.1.part"
    half_written.write_bytes(b"half")
    server.start()
    server.finish()
    newest, number = newest_adapter(directory, directory.card())
    assert number == 3 and not half_written.exists()
    for name, value in arrays.items():
        assert newest[name].tobytes() == value.tobytes()


def test_a_tenant_without_a_table_left_still_counts_for_training(
    make_card: Callable[..., FederationCard], initial: Arrays
) -> None:
    """Tables that crashes cut off are spent. The tenant still trains, and no round may begin without it."""

    def answer(message: Message) -> Message:
        request = request_of(message)
        if request.kind is Kind.EVALUATE:
            return refusal_message(RefusalCode.BUDGET, message)
        arrays = request.arrays if request.kind is Kind.TRAIN else {}
        return reply_message(Reply(request.kind, request.card_hash, request.round, arrays), message)

    members = {1: Member("t1", 100, 1.0), 2: Member("t2", 100, 1.0)}

    class Leaves(NoJournal):
        def answered(self, record: RoundRecord, checkpoint: Checkpoint) -> None:
            members.pop(2, None)

    grid = InProcessGrid({1: answer, 2: answer})
    card = make_card(evaluation={"when": "start-middle-end"}, rounds={"min_tenants": 2})
    with pytest.raises(InputError, match="1 of at least 2 tenants"):
        run_federation(grid, card, lambda: members, initial_arrays=initial, patience=0.0, journal=Leaves())
