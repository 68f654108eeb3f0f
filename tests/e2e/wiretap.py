"""Every byte that clients send, after TLS: a relay that holds the server's certificate and writes down what passes."""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER

from fedprofile.server.directory import ServerDirectory

BLOCK = 1 << 16


@dataclass(frozen=True)
class Sent:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    head: bytes = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def key(self) -> str:
        """The public key of the tenant that sent it."""
        return self.headers[FLEET_HTTP_PUBLIC_KEY_HEADER]


class Wiretap:
    """Takes the place of a server's public port and hands everything on.

    Args:
        listen: The port that clients know.
        server: Whose certificate it shows.
        port: The port where the server really is.
    """

    def __init__(self, listen: int, server: ServerDirectory, port: int) -> None:
        self._mine = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._mine.load_cert_chain(server.certificate, server.key)
        self._theirs = ssl.create_default_context(cafile=str(server.ca))
        self._listen, self._port = listen, port
        self._heard: list[bytearray] = []
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._ready.wait()

    def requests(self) -> Iterator[Sent]:
        """Everything that was sent; the end of a connection that broke in a request is its last one's body."""
        for heard in self._heard:
            left = bytes(heard)
            while b"\r\n\r\n" in left:
                head, _, left = left.partition(b"\r\n\r\n")
                first, *lines = head.decode("latin-1").split("\r\n")
                path = first.split(" ")[1]
                headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
                size = int(headers.get("content-length", "0"))
                yield Sent(path, headers, head, left[:size])
                left = left[size:]

    def close(self) -> None:
        """Take no more connections."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._relay, "127.0.0.1", self._listen, ssl=self._mine)
        self._ready.set()
        await self._stop.wait()
        server.close()

    async def _relay(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        heard = bytearray()
        self._heard.append(heard)
        with contextlib.suppress(OSError):
            server, to_server = await asyncio.open_connection("127.0.0.1", self._port, ssl=self._theirs)
            await asyncio.gather(_pass(client, to_server, heard), _pass(server, to_client, bytearray()))
        to_client.close()


async def _pass(source: asyncio.StreamReader, sink: asyncio.StreamWriter, heard: bytearray) -> None:
    with contextlib.suppress(OSError):
        while block := await source.read(BLOCK):
            heard += block
            sink.write(block)
            await sink.drain()
    sink.close()
