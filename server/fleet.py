"""The two listeners.

    public   TLS, for tenants: exactly the Fleet calls that a client needs, and /health. Every other path is 404,
             whatever its method. Requests are signed by tenants' keys; the body is limited by counting its bytes.
    admin    loopback, for the operator: Flower's Control and Runtime APIs. Without the operator's token every path
             but /health is 401; the Runtime API checks its own secret on top.

Flower's own server has all of them on one port and protects only the Fleet API. Here the public listener does not hold
the other routes at all.
"""

import asyncio
import hmac
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from flwr.common.constant import TRANSPORT_TYPE_GRPC_RERE
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.main import create_app
from starlette.datastructures import Headers

from fedprofile.common.errors import InputError
from fedprofile.server.fleet_calls import PATHS, FleetCalls
from fedprofile.server.linkstate import FederationLinkState

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

GRACE = 0.5
"""Seconds that answers in progress get when the server stops."""

INLINE = 64 << 10
"""Bytes; a larger request is answered in a thread, so that hashing it does not hold up the others."""


@dataclass
class Traffic:
    """Bytes of bodies on the public listener.

    Args:
        up: From tenants.
        down: To tenants.
    """

    up: int = 0
    down: int = 0


class PublicListener:
    """Answers the Fleet calls and /health, bounded, and counts bytes.

    Args:
        calls: Answers the Fleet calls.
        largest_body: Bytes; above it a request is answered 413 before anything looks at it.
        traffic: Where bytes are counted.
    """

    def __init__(self, calls: FleetCalls, largest_body: int, traffic: Traffic) -> None:
        self._calls, self._largest_body, self._traffic = calls, largest_body, traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path == "/health":
            await _answer(send, 200)
        elif path not in PATHS:
            await _answer(send, 404)
        elif (body := await self._read(receive)) is None:
            await _answer(send, 413)
        else:
            request = (scope["method"], path, Headers(raw=scope["headers"]), body)
            if len(body) > INLINE:
                answer = await asyncio.to_thread(self._calls.answer, *request)
            else:
                answer = self._calls.answer(*request)
            self._traffic.up += len(body)
            self._traffic.down += len(answer.body)
            await _answer(send, answer.status, answer.media_type, answer.body)

    async def _read(self, receive: Receive) -> bytes | None:
        # What Content-Length claims does not matter: a chunked upload has none.
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            if len(body) > self._largest_body:
                return None
            if not message.get("more_body", False):
                return bytes(body)


class AdminGate:
    """Lets the operator in.

    Args:
        app: What is behind it.
        token: The operator's.
    """

    def __init__(self, app: Application, token: str) -> None:
        self._app, self._expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            if scope["path"] == "/health":
                await _answer(send, 200)
                return
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                await _answer(send, 401)
                return
        elif scope["type"] != "lifespan":
            return
        await self._app(scope, receive, send)


async def _answer(send: Send, status: int, media_type: str = "text/plain", body: bytes = b"") -> None:
    headers = [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Fleet:
    """Both listeners over one link state, in a thread of their own.

    Args:
        host: The address that the public listener binds to.
        port: Its port.
        admin_port: The admin listener's, on loopback.
        certificate: PEM file of the public listener.
        key: Its key.
        operator_token: Bearer token of the admin listener.
        largest_body: Bytes of the largest request from a tenant.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        admin_port: int,
        certificate: Path,
        key: Path,
        operator_token: str,
        largest_body: int,
    ) -> None:
        self.traffic = Traffic()
        manager = NoOpFederationManager()
        stores = ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)
        self.state = FederationLinkState(manager, stores.store())
        factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, manager, stores)
        factory.state_instance = self.state
        public = PublicListener(FleetCalls(factory, self.state), largest_body, self.traffic)
        admin = AdminGate(_operator_application(factory, admin_port), operator_token)
        quiet: dict[str, Any] = {"access_log": False, "log_config": None, "server_header": False}
        self._places = ((host, port), ("127.0.0.1", admin_port))
        self._servers = (
            uvicorn.Server(
                uvicorn.Config(public, ssl_certfile=certificate, ssl_keyfile=str(key), lifespan="off", **quiet)
            ),
            uvicorn.Server(uvicorn.Config(admin, lifespan="on", **quiet)),
        )
        self._thread: threading.Thread | None = None

    def start(self, timeout: float = 30.0) -> None:
        """Start both; returns when both listen.

        Args:
            timeout: Seconds.

        Raises:
            InputError: A port is taken, or an address is not this machine's.
        """
        # Bound here, because uvicorn ends the process where it cannot bind.
        sockets: list[socket.socket] = []
        try:
            sockets.extend(_bound(*place) for place in self._places)
        except InputError:
            for one in sockets:
                one.close()
            raise
        self._thread = threading.Thread(target=self._serve, args=(sockets,), name="fleet", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + timeout
        while not all(server.started for server in self._servers):
            if time.monotonic() > deadline or not self._thread.is_alive():
                self.stop()
                raise InputError("the listeners do not come up; see state/server.log for what they say.")
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop both and wait for it."""
        for server in self._servers:
            server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _serve(self, sockets: list[socket.socket]) -> None:
        async def run() -> None:
            serving = asyncio.gather(
                *(server.serve(sockets=[one]) for server, one in zip(self._servers, sockets, strict=True))
            )
            while not serving.done() and not any(server.should_exit for server in self._servers):
                await asyncio.sleep(0.05)
            # Answers in progress get a moment. Then connections are cut: closing TLS politely waits for the other
            # side, which may be asleep until its next question.
            await asyncio.wait({serving}, timeout=GRACE)
            for server in self._servers:
                for connection in list(server.server_state.connections):
                    if connection.transport is not None:
                        connection.transport.abort()
            await serving

        asyncio.run(run())


def _bound(host: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise InputError(
            f"cannot listen on {host} port {port} ({error.strerror}); choose another in server.toml."
        ) from None
    return made


def _operator_application(factory: LinkStateFactory, port: int) -> FastAPI:
    app = create_app(
        SuperLinkLifespanConfig(
            control_address="",
            health_server_address=None,
            host="127.0.0.1",
            port=port,
            insecure=True,
            certificates=None,
            # Runs are executed in this process and by nobody else, so nobody else knows the secret.
            superexec_auth_secret=secrets.token_bytes(32),
            authn_plugin=NoOpControlAuthnPlugin(),
            event_log_plugin=None,
            fleet_event_log_plugin=None,
            enable_event_log=False,
            artifact_provider=None,
            enable_supernode_auth=True,
            fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
            fleet_api_address=None,
            simulation=False,
            ssl_ca_certfile=None,
            ssl_certfile=None,
            ssl_keyfile=None,
            database=FLWR_IN_MEMORY_DB_NAME,
            # "process": Flower starts nothing; there is no bundle to run.
            isolation="process",
            runtime_dependency_install=False,
        ),
        SuperLinkLifespan,
    )
    app.state.linkstate_factory = factory
    app.state.runtime_state_factory = factory
    return app
