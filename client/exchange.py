"""One request in, one reply out, in Flower's parts: objects named by their hash, pulled and pushed one by one."""

import threading

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedprofile.client.transport import BoundedFleetClient, MessageLimits, Retry, StoppedError, TooLargeError

AVAILABLE_PAUSE = 0.1


class LostRequestError(Exception):
    """The server no longer holds the content of a request."""


class Exchange:
    """Pulls the content of requests and pushes replies.

    - A request with more objects or bytes than this federation's messages can have is not read to its end.
    - An object that is not what its name says is refused.
    - Sending the same reply to the same request again sends the parts that the server does not have yet.

    Args:
        client: The connection.
        call: How calls are tried again.
        limits: How large a message of this federation can be.
        stop: Set when the process is to end.
    """

    def __init__(self, client: BoundedFleetClient, call: Retry, limits: MessageLimits, stop: threading.Event) -> None:
        self._client, self._call, self._limits, self._stop = client, call, limits, stop

    def receive(self, node: Node, envelope: PullMessagesResponse) -> Message | None:
        """Pull a request's content.

        Args:
            node: This tenant's node.
            envelope: The request's header and the names of its objects.

        Returns:
            The request; None where it cannot be a message of this federation.

        Raises:
            LostRequestError: The server has forgotten it.
            RunOverError: The run has ended.
        """
        header, tree = envelope.messages_list[0], envelope.message_object_trees[0]
        names = list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
        if len(names) > self._limits.objects:
            return None
        contents: dict[str, bytes] = {}
        size = 0
        for name in names:
            try:
                contents[name] = self._pull(node, header.metadata.run_id, name)
            except TooLargeError:
                return None
            size += len(contents[name])
            if size > self._limits.message_bytes or get_object_id(contents[name]) != name:
                return None
        try:
            request = inflate_object_from_contents(tree.object_id, contents)
        except Exception:
            # Flower's decoders raise whatever malformed bytes lead to; all of it is one refusal.
            return None
        if not isinstance(request, Message) or request.metadata.run_id != header.metadata.run_id:
            return None
        request.metadata.__dict__["_message_id"] = tree.object_id
        return request

    def _pull(self, node: Node, run_id: int, name: str) -> bytes:
        request = PullObjectRequest(node=node, run_id=run_id, object_id=name)
        while True:
            response = self._call(self._client.PullObject, request)
            if not response.object_found:
                raise LostRequestError
            if response.object_available:
                return response.object_content
            if self._stop.wait(AVAILABLE_PAUSE):
                raise StoppedError

    def send(self, node: Node, reply: Message, request: Message) -> None:
        """Send a reply, and let the server forget the request.

        Args:
            node: This tenant's node.
            reply: The answer; its envelope's clock is overwritten.
            request: What it answers.

        Raises:
            RunOverError: Nobody waits for it any more.
            httpx.HTTPStatusError: The server does not take it.
        """
        run_id = request.metadata.run_id
        # The request's own clock: when the reply was made is nobody's business, and the same reply keeps its id.
        reply.metadata.created_at, reply.metadata.ttl = request.metadata.created_at, request.metadata.ttl
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects = get_all_nested_objects(reply)
            pushed = self._call(
                self._client.PushMessages,
                PushMessagesRequest(
                    node=node,
                    messages_list=[message_to_proto(remove_content_from_message(reply))],
                    message_object_trees=[get_object_tree(reply)],
                    clientapp_runtime_list=[0.0],
                ),
            )
            for name in pushed.objects_to_push:
                self._call(
                    self._client.PushObject,
                    PushObjectRequest(
                        node=node,
                        run_id=run_id,
                        object_id=name,
                        object_content=objects[name].deflate(),
                        session_id=pushed.session_id,
                    ),
                )
        self._call(
            self._client.ConfirmMessageReceived,
            ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=request.metadata.message_id),
        )
