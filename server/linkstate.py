"""The state behind Flower's Fleet API: nodes, messages in flight, their content.

Kept in memory. Nothing in it has to outlive the server: tenants come from the roster, progress from the checkpoint,
and a message lost in a crash is asked anew and answered from the tenant's outbox. Four things differ from Flower's:

- A node's id follows from its public key, so that it is the same after a restart of the server.
- A node that asks for messages is online, so that tenants need not notice a restart.
- A node that activates itself while it still counts as online is a restarted process: it is let in at once instead
  of being refused until its heartbeat lapses, and what it had been handed but not answered is handed out again.
- A reply that has arrived counts, even when its sender has left since.
"""

import hashlib
from collections.abc import Iterable

from flwr.app import Message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.proto.node_pb2 import NodeInfo
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.constant import NodeStatus
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.object_store import NoObjectInStoreError

SIGN_OF_LIFE = 30.0
"""Seconds; a node that has asked for messages counts as online for twice as long."""


def node_id_of(public_key: bytes) -> int:
    """A node's id: 63 bits of its key's hash, above the ids that Flower keeps for itself.

    Args:
        public_key: PEM, as `enrolment.key_bytes` gives it.

    Returns:
        The id.
    """
    return (int.from_bytes(hashlib.sha256(public_key).digest()[:8], "big") >> 1) | 1 << 32


class FederationLinkState(InMemoryLinkState):
    """See the module's docstring."""

    def enrol(self, public_key: bytes, name: str) -> int:
        """Let a key in.

        Args:
            public_key: PEM.
            name: The tenant's.

        Returns:
            The node's id.
        """
        with self.lock:
            known = self.node_public_key_to_node_id.get(public_key)
            if known is not None and self.nodes[known].status != NodeStatus.UNREGISTERED:
                return known
            # A key that was revoked and is enrolled again.
            self.node_public_key_to_node_id.pop(public_key, None)
            return self.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_key, SIGN_OF_LIFE, name=name)

    def revoke(self, node_id: int) -> None:
        """Shut a key out; its messages go with it."""
        with self.lock:
            if node_id in self.nodes and self.nodes[node_id].status != NodeStatus.UNREGISTERED:
                self.delete_node(NOOP_FLWR_AID, node_id)
                self.delete_messages({key for key, message in self._handed_to(node_id)})

    def create_node(
        self,
        owner_aid: str,
        owner_name: str,
        public_key: bytes,
        heartbeat_interval: float,
        *,
        location: str | None = None,
        name: str | None = None,
    ) -> int:
        """Flower's own, with the id taken from the key."""
        with self.lock:
            if public_key in self.node_public_key_to_node_id:
                raise ValueError("Public key already in use")
            node_id = node_id_of(public_key)
            self.nodes[node_id] = NodeInfo(
                node_id=node_id,
                owner_aid=owner_aid,
                owner_name=owner_name,
                status=NodeStatus.REGISTERED,
                registered_at=now().isoformat(),
                online_until=0,
                heartbeat_interval=heartbeat_interval,
                public_key=public_key,
                location=location,
                name=name,
            )
            self.node_public_key_to_node_id[public_key] = node_id
            self.owner_to_node_ids.setdefault(owner_aid, set()).add(node_id)
            return node_id

    def activate_node(self, node_id: int, heartbeat_interval: float) -> bool:
        """Also for a node that still counts as online."""
        with self.lock:
            for _, message in self._handed_to(node_id):
                message.metadata.delivered_at = ""
            return self.acknowledge_node_heartbeat(node_id, heartbeat_interval)

    def get_message_ins(self, node_id: int, limit: int | None, *, run_id: int | None = None) -> list[Message]:
        """Asking is a sign of life; what is answered already is not handed out again."""
        with self.lock:
            node = self.nodes.get(node_id)
            if node is not None and node.status != NodeStatus.ONLINE:
                self.acknowledge_node_heartbeat(node_id, SIGN_OF_LIFE)
            for message_id, message in self._handed_to(node_id):
                if message_id in self.message_ins_id_to_message_res_id and not message.metadata.delivered_at:
                    message.metadata.delivered_at = now().isoformat()
            return super().get_message_ins(node_id, limit, run_id=run_id)

    def ready_replies(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies whose whole content has arrived.

        Args:
            message_ids: Of the requests.

        Returns:
            The replies' envelopes; fetch the content with `take`.
        """
        with self.lock:
            replies = (self.message_ins_id_to_message_res_id.get(message_id) for message_id in message_ids)
            found = [self.message_res_store[reply] for reply in replies if reply is not None]
        return [reply for reply in found if self._has_arrived(reply.metadata.message_id)]

    def take(self, reply: Message) -> dict[str, bytes]:
        """Fetch a reply's content and forget request and reply.

        Args:
            reply: One of `ready_replies`.

        Returns:
            Object id to content.
        """
        reply_id = reply.metadata.message_id
        tree = self.object_store.get_object_tree(reply_id)
        names = [node.object_id for node in iterate_object_tree(tree)]
        content = {name: self.object_store.get(name) or b"" for name in names}
        self.forget([reply.metadata.reply_to_message_id])
        self.object_store.delete(reply_id)
        return content

    def lost(self, message_ids: Iterable[str]) -> set[str]:
        """Requests that can no longer be answered: expired, or their content is gone."""
        with self.lock:
            current = now().timestamp()
            return {
                key
                for key in message_ids
                if (message := self.message_ins_store.get(key)) is None
                or message.metadata.created_at + message.metadata.ttl <= current
            }

    def forget(self, message_ids: Iterable[str]) -> None:
        """Delete requests, their content, and replies to them."""
        with self.lock:
            ids = set(message_ids)
            replies = [self.message_ins_id_to_message_res_id.get(key) for key in ids]
            self.delete_messages(ids)
        for key in (*ids, *(reply for reply in replies if reply is not None)):
            self.object_store.delete(key)

    def online(self) -> set[int]:
        """The ids of all nodes that are online."""
        return {node.node_id for node in self.get_node_info(statuses=[NodeStatus.ONLINE])}

    def _handed_to(self, node_id: int) -> list[tuple[str, Message]]:
        return [(key, message) for key, message in self.message_ins_store.items() if
                message.metadata.dst_node_id == node_id]  # fmt: skip

    def _has_arrived(self, object_id: str) -> bool:
        # Content is shared by its hash: what one tenant still has to send may be there because another sent the same.
        # It must not be taken away before the first one's session is over, or that one's next part is refused.
        with self._lock_object_push_sessions:
            session = self._object_push_sessions.get(self._object_push_session_by_root.get(object_id, ""))
            if session is not None and session.pending_object_ids:
                return False
        try:
            tree = self.object_store.get_object_tree(object_id)
        except NoObjectInStoreError:
            return False
        return all(self.object_store.get(node.object_id) for node in iterate_object_tree(tree))
