"""The Fleet calls, answered by Flower's own handlers and checked by Flower's own authentication.

Flower reaches its handlers through a web framework with a dozen layers and several changes of thread a request, 7 ms
of processor time on a slow machine, and a round of ten tenants makes some 200 requests. Here a request goes straight
from its bytes to the handler. Three checks are added: a message may only be sent by the node whose key signed the
request, it may not announce more parts than a reply of this federation can have, and a run that this process does not
know, because it was another's before a crash, is over (Flower's handlers fail on it, and the client would try again).
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from fastapi import HTTPException
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.run_pb2 import GetRunRequest
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.superlink.servicer.fleet import fleet_handlers
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as ProtobufMessage
from starlette.datastructures import Headers

from fedprofile.server.linkstate import FederationLinkState

PREFIX = "/v1/fleet/"
PROTOBUF = "application/protobuf"
MOST_PARTS = 4096
"""Parts of one message; 5 MiB of an array are one part."""

_STATE = ("state",)
_STATE_AND_STORE = ("state", "store")

# What a client calls. Registering over the Fleet API and fetching code are not among it.
_CALLS: dict[str, tuple[type[ProtobufMessage], Callable[..., ProtobufMessage], tuple[str, ...]]] = {
    "activate-node": (ActivateNodeRequest, fleet_handlers.activate_node, _STATE),
    "deactivate-node": (DeactivateNodeRequest, fleet_handlers.deactivate_node, _STATE),
    "send-node-heartbeat": (SendNodeHeartbeatRequest, fleet_handlers.send_node_heartbeat, _STATE),
    "pull-messages": (PullMessagesRequest, fleet_handlers.pull_messages, _STATE_AND_STORE),
    "push-messages": (PushMessagesRequest, fleet_handlers.push_messages, _STATE),
    "get-run": (GetRunRequest, fleet_handlers.get_run, _STATE),
    "pull-object": (PullObjectRequest, fleet_handlers.pull_object, _STATE),
    "push-object": (PushObjectRequest, fleet_handlers.push_object, _STATE),
    "confirm-message-received": (
        ConfirmMessageReceivedRequest,
        fleet_handlers.confirm_message_received,
        _STATE_AND_STORE,
    ),
}

PATHS = frozenset(f"{PREFIX}{call}" for call in _CALLS)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    media_type: str
    body: bytes


class FleetCalls:
    """See the module's docstring.

    Args:
        factory: Gives the link state.
        state: The same link state.
    """

    def __init__(self, factory: LinkStateFactory, state: FederationLinkState) -> None:
        self._app = SimpleNamespace(state=SimpleNamespace(linkstate_factory=factory))
        self._state = state
        self._parts: dict[str, Any] = {"state": state, "store": state.object_store}

    def answer(self, method: str, path: str, headers: Headers, body: bytes) -> Answer:
        """Answer one request.

        Args:
            method: HTTP method.
            path: One of `PATHS`.
            headers: Of the request.
            body: All of it.

        Returns:
            What Flower's application would have answered.
        """
        if method != "POST":
            return _error(405, {"detail": "Method Not Allowed"})
        if headers.get("content-type", "").partition(";")[0].strip().lower() != PROTOBUF:
            return _error(415, {"detail": "Unsupported Media Type"})
        kind, handler, parts = _CALLS[path.removeprefix(PREFIX)]
        request = kind()
        try:
            request.ParseFromString(body)
            signed = SimpleNamespace(headers=headers, state=SimpleNamespace(protobuf_request=request), app=self._app)
            authenticate_node(signed)  # type: ignore[arg-type]
            if isinstance(request, PushMessagesRequest):
                _check_push(request)
            self._check_run(request)
            found = handler(request=request, **{part: self._parts[part] for part in parts})
            return Answer(200, PROTOBUF, found.SerializeToString())
        except DecodeError:
            return _error(400, {"detail": "Invalid protobuf payload"})
        except HTTPException as error:
            return _error(error.status_code, {"detail": error.detail})
        except FlowerError as error:
            known = API_ERROR_MAP[error.code]
            return _error(known.http_status_code, error.to_json(known.public_message))
        except Exception as error:
            # The text may hold a part of what was sent; the operator gets the type, the sender nothing.
            logging.getLogger(__name__).error("%s: %s", path, type(error).__name__)
            return _error(500, {"detail": "Internal server error"})

    def _check_run(self, request: ProtobufMessage) -> None:
        run_id: int | None
        if isinstance(request, PushMessagesRequest):
            run_id = request.messages_list[0].metadata.run_id
        else:
            run_id = getattr(request, "run_id", None)
        if run_id is not None and not self._state.get_run_status({run_id}):
            raise FlowerError(ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED, f"run_id={run_id} is not of this process")


def _check_push(request: PushMessagesRequest) -> None:
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        raise HTTPException(400, "exactly one message")
    if request.messages_list[0].metadata.src_node_id != request.node.node_id:
        raise HTTPException(403, "the message is another node's")
    for count, _ in enumerate(iterate_object_tree(request.message_object_trees[0]), start=1):
        if count > MOST_PARTS:
            raise HTTPException(413, "too many parts")


def _error(status: int, content: dict[str, Any]) -> Answer:
    return Answer(status, "application/json", json.dumps(content).encode())
