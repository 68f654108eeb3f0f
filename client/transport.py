"""Flower's Fleet client, bounded and patient.

What comes from the server is counted while it arrives and refused above a size known from the federation card; no
redirect is followed and nothing is unpacked, so that neither a large nor a compressed answer can fill the memory.
What does not get through is tried again for as long as the server is away, unless the run is known to be over: a
server that has ended does not come back.
"""

import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedprofile.client.egress import EgressFile

HEADROOM = 2 << 20
"""Bytes of a message beside the arrays' values: the layout (at most 1 MiB), fields, headers."""
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 3.0
FAREWELL = 5.0
"""Seconds for which a server that is away is still tried once the run is over."""
AWAY = frozenset({429, 502, 503, 504})
FAULTS = 5
"""How often an internal error of the server is tried again."""

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


@dataclass(frozen=True)
class MessageLimits:
    """How large a message of this federation can be at most.

    Args:
        objects: Parts that a message comes in.
        message_bytes: All parts together.
        answer_bytes: One answer of the server.
    """

    objects: int
    message_bytes: int
    answer_bytes: int

    @classmethod
    def of_adapter(cls, adapter_bytes: int) -> "MessageLimits":
        """The limits where adapters have a known size.

        Args:
            adapter_bytes: Of all arrays together.

        Returns:
            Limits with room for the fields, the layout and Flower's own headers.
        """
        chunks = 1 + adapter_bytes // FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
        part = min(adapter_bytes, FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE)
        return cls(objects=16 + 2 * chunks, message_bytes=adapter_bytes + HEADROOM, answer_bytes=part + HEADROOM)


class TooLargeError(Exception):
    """The server sent more than a message of this federation can hold."""


class RunOverError(Exception):
    """The run that a request belongs to is no longer running."""


class KeyRefusedError(Exception):
    """The server does not accept this key, or the clocks are too far apart."""


class ServerGoneError(Exception):
    """The run is over, and the server has been away for a while."""


class StoppedError(BaseException):
    """The process was asked to end. Not an `Exception`: nothing but the command line may catch it."""


class BoundedFleetClient(FleetHttpClient):
    """A Fleet client that reads at most `limit` bytes of any answer.

    Args:
        address: `host:port` of the Fleet listener.
        ca: The only CA certificate that is trusted, PEM.
        key: The tenant's key; every request is signed with it.
        limit: Largest answer in bytes.
        egress: Records what is sent, before it is.
    """

    def __init__(
        self, *, address: str, ca: str, key: ec.EllipticCurvePrivateKey, limit: int, egress: EgressFile | None = None
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cadata=ca)
        super().__init__(
            f"https://{address}",
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(key, key.public_key()),
            ],
            verify=context,
        )
        self._limit = limit
        self._client.follow_redirects = False
        if egress is not None:
            # httpx calls this last, when the signature is on.
            self._client.event_hooks["request"].append(egress.record)

    def _send(self, context: ProtobufRequestContext, *, stream: bool = False) -> httpx.Response:
        context.request.headers["accept-encoding"] = "identity"
        response = super()._send(context, stream=True)
        if response.is_error:
            return response  # The base class has read at most 64 KiB of it.
        context.request.extensions["timeout"]["read"] = self._client.timeout.read
        content = bytearray()
        try:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise TooLargeError
            for chunk in response.iter_raw():
                content += chunk
                if len(content) > self._limit:
                    raise TooLargeError
        finally:
            response.close()
        return httpx.Response(
            response.status_code, headers=response.headers, content=bytes(content), request=response.request
        )


class Retry:
    """Calls the server until it answers, saying so once when it goes away and once when it is back.

    Args:
        stop: Set when the process is to end.
        say: Takes plain lines for the tenant.
        on_return: Called when the server answers again after a failure.
        over: Whether the run is known to be over, so that a server that is away need not be waited for.
    """

    def __init__(
        self,
        stop: threading.Event,
        say: Callable[[str], None],
        on_return: Callable[[], None],
        over: Callable[[], bool],
    ) -> None:
        self._stop, self._say, self._on_return, self._over = stop, say, on_return, over
        self._away = False

    def __call__(self, function: Callable[[RequestT], ResponseT], request: RequestT) -> ResponseT:
        """Call, again and again where it has to be.

        Args:
            function: One of the Fleet client's calls.
            request: Its argument.

        Returns:
            The answer.

        Raises:
            RunOverError: The request belongs to a run that is no longer running.
            KeyRefusedError: The server does not accept the key.
            ServerGoneError: The run is over, and the server does not answer any more.
            StoppedError: The process is to end.
            httpx.HTTPStatusError: The server refused the request for another reason.
        """
        pause, faults, began = FIRST_PAUSE, 0, time.monotonic()
        while not self._stop.is_set():
            try:
                answer = function(request)
            except httpx.TransportError as error:
                reason = _reason(error)
            except httpx.HTTPStatusError as error:
                status = error.response.status_code
                if status == httpx.codes.FORBIDDEN:
                    raise RunOverError from error
                if status == httpx.codes.UNAUTHORIZED:
                    raise KeyRefusedError from error
                faults += status not in AWAY
                if (status < 500 and status not in AWAY) or faults > FAULTS:
                    raise
                reason = f"it answers with status {status}"
            else:
                if self._away:
                    self._away = False
                    self._say("the server is back.")
                    self._on_return()
                return answer
            if self._over() and time.monotonic() - began >= FAREWELL:
                raise ServerGoneError
            if not self._away:
                self._away = True
                self._say(f"cannot reach the server: {reason}; trying again until it answers.")
            self._stop.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        raise StoppedError


def _reason(error: httpx.TransportError) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "its certificate is not the one that the invite's CA signed for this address"
    if isinstance(error, httpx.ConnectError):
        return "nobody answers at its address"
    return f"the connection broke ({type(error).__name__})"
