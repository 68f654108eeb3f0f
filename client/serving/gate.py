"""Who comes in: the token is looked at before a body is read, and a body is read no further than its limit.

Every answer of an error is one sentence that holds nothing of the request, and what fails within is told to the log
by its type alone.
"""

import asyncio
import json
import logging
from collections.abc import Collection
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedprofile.client.serving.access import Token

_log = logging.getLogger(__name__)

HEADERS = (
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    ),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
"""Of every answer."""

FAILED = "this failed here; the log names the error's type."

_DRAINED = 8
"""So many times its limit is read of a body that is too large and thrown away, for its sender to see the answer."""


class Gate:
    """In front of the application.

    Args:
        app: Gets each request with its whole body.
        token: What must be shown.
        open_paths: Of which nothing needs the token.
        max_body: Bytes.
        timeout: Seconds that a body may take to come.
    """

    def __init__(
        self, app: ASGIApp, *, token: Token, open_paths: Collection[str], max_body: int, timeout: float
    ) -> None:
        self._app, self._token, self._open = app, token, frozenset(open_paths)
        self._max_body, self._timeout = max_body, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            return
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        try:
            await self._admit(scope, receive, answer)
        except Exception as error:
            _log.error("a request failed: %s", type(error).__name__)
            if not started:
                await _refuse(answer, 500, FAILED)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if scope["path"] not in self._open and not self._token.admits(headers.get(b"authorization", b"")):
            told = (b"www-authenticate", b"Bearer")
            await _refuse(
                send, 401, "show the bearer token of `flower-client serve` in the header Authorization.", told
            )
            return
        try:
            async with asyncio.timeout(self._timeout):
                body = await self._body(receive)
        except TimeoutError:
            await _refuse(send, 408, f"the request's body did not come within {self._timeout:g} seconds.")
            return
        if body is None:
            await _refuse(send, 413, f"the request's body is larger than {self._max_body} bytes; send less history.")
            return
        await self._app(scope, _replayed(body, receive), send)

    async def _body(self, receive: Receive) -> bytes | None:
        """All of it; None where it is too large."""
        parts: list[bytes] = []
        size = 0
        while size <= _DRAINED * self._max_body:
            message = await receive()
            if message["type"] != "http.request":
                break
            part: bytes = message.get("body", b"")
            size += len(part)
            if size <= self._max_body:
                parts.append(part)
            if not message.get("more_body", False):
                break
        return b"".join(parts) if size <= self._max_body else None


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _refuse(send: Send, status: int, sentence: str, *headers: tuple[bytes, bytes]) -> None:
    content: dict[str, Any] = {"error": sentence}
    body = json.dumps(content).encode()
    start = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})
