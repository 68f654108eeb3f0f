"""What our link state does differently from Flower's, each difference by itself."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.superlink.federation import NoOpFederationManager

from fedprofile.server.linkstate import FederationLinkState, node_id_of
from fedprofile.server.runs import RunEntry


@pytest.fixture
def state() -> FederationLinkState:
    return FederationLinkState(NoOpFederationManager(), ObjectStoreFactory().store())


@pytest.fixture
def key() -> bytes:
    return public_key_to_bytes(ec.generate_private_key(ec.SECP384R1()).public_key())


def _ask(state: FederationLinkState, run: RunEntry, node_id: int, text: str = "question") -> str:
    message = Message(RecordDict({"fields": ConfigRecord({"text": text})}), node_id, "train", ttl=60)
    message.metadata.__dict__["_run_id"] = run.run.run_id
    message.metadata.__dict__["_message_id"] = message.object_id
    session = state.start_session(run.run.run_id)
    stored, missing = state.store_message_and_object_tree(message, get_object_tree(message), session)
    assert stored
    for name in missing:
        assert state.store_object(run.run.run_id, session, name, get_all_nested_objects(message)[name].deflate())
    return message.metadata.message_id


def _reply(question: Message, text: str = "answer") -> Message:
    reply = Message(RecordDict({"fields": ConfigRecord({"text": text})}), reply_to=question)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    return reply


def test_the_id_follows_from_the_key(state: FederationLinkState, key: bytes) -> None:
    other = FederationLinkState(NoOpFederationManager(), ObjectStoreFactory().store())
    assert state.enrol(key, "acme") == other.enrol(key, "acme") == node_id_of(key) == state.enrol(key, "acme")
    assert node_id_of(key) != node_id_of(key + b"x")
    assert 2**32 <= node_id_of(key) < 2**63


def test_asking_is_a_sign_of_life(state: FederationLinkState, key: bytes) -> None:
    node_id = state.enrol(key, "acme")
    assert state.online() == set()
    state.get_message_ins(node_id, 1)
    assert state.online() == {node_id}


def test_a_restarted_node_is_let_in_and_gets_again_what_it_had_not_answered(
    state: FederationLinkState, key: bytes
) -> None:
    run, node_id = RunEntry(state), state.enrol(key, "acme")
    assert state.activate_node(node_id, 30)
    first, second = _ask(state, run, node_id, "one"), _ask(state, run, node_id, "two")
    handed = {message.metadata.message_id: message for message in state.get_message_ins(node_id, 5)}
    assert set(handed) == {first, second}
    assert state.get_message_ins(node_id, 5) == []
    state.store_message_res(_reply(handed[first]))
    assert state.activate_node(node_id, 30)
    assert [message.metadata.message_id for message in state.get_message_ins(node_id, 5)] == [second]


def test_a_reply_counts_only_when_it_is_whole_and_also_after_its_sender_left(
    state: FederationLinkState, key: bytes
) -> None:
    run, node_id = RunEntry(state), state.enrol(key, "acme")
    state.activate_node(node_id, 30)
    asked = _ask(state, run, node_id)
    [question] = state.get_message_ins(node_id, 1)
    reply = _reply(question)
    session = state.start_session(run.run.run_id)
    _, missing = state.store_message_and_object_tree(reply, get_object_tree(reply), session)
    objects = get_all_nested_objects(reply)
    for name in missing:
        assert state.ready_replies([asked]) == []
        assert state.store_object(run.run.run_id, session, name, objects[name].deflate())
    assert state.deactivate_node(node_id)
    [envelope] = state.ready_replies([asked])
    assert envelope.metadata.src_node_id == node_id
    assert set(state.take(envelope)) == set(objects)
    assert state.num_message_ins() == state.num_message_res() == 0


def test_equal_content_of_two_tenants_is_not_taken_away_from_the_slower_one(state: FederationLinkState) -> None:
    run = RunEntry(state)
    sessions, replies, asked = [], [], []
    for name in ("one", "two"):
        key = public_key_to_bytes(ec.generate_private_key(ec.SECP384R1()).public_key())
        node_id = state.enrol(key, name)
        state.activate_node(node_id, 30)
        asked.append(_ask(state, run, node_id))
        [question] = state.get_message_ins(node_id, 1)
        replies.append(_reply(question, "the same"))
        sessions.append(state.start_session(run.run.run_id))
        _, missing = state.store_message_and_object_tree(replies[-1], get_object_tree(replies[-1]), sessions[-1])
        assert len(missing) == 3
    for number, reply in enumerate(replies):
        for name, part in get_all_nested_objects(reply).items():
            assert state.store_object(run.run.run_id, sessions[number], name, part.deflate())
            for envelope in state.ready_replies(asked):
                state.take(envelope)
                asked.remove(envelope.metadata.reply_to_message_id)
    assert asked == [] and state.object_store.__len__() == 0


def test_nothing_is_left_of_what_is_forgotten_or_lost(state: FederationLinkState, key: bytes) -> None:
    run, node_id = RunEntry(state), state.enrol(key, "acme")
    state.activate_node(node_id, 30)
    asked = _ask(state, run, node_id)
    assert state.lost([asked, "unknown"]) == {"unknown"}
    state.forget([asked])
    assert state.lost([asked]) == {asked}
    assert len(state.object_store) == 0 and state.num_message_ins() == 0


def test_a_revoked_key_is_out_until_it_is_enrolled_again(state: FederationLinkState, key: bytes) -> None:
    run, node_id = RunEntry(state), state.enrol(key, "acme")
    state.activate_node(node_id, 30)
    _ask(state, run, node_id)
    state.revoke(node_id)
    assert state.get_node_id_by_public_key(key) is None
    assert not state.activate_node(node_id, 30)
    assert state.online() == set() and state.num_message_ins() == 0
    assert state.enrol(key, "acme") == node_id
    assert state.activate_node(node_id, 30)
