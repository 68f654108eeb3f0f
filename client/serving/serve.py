"""`flower-client serve`: everything that listens, from start to end."""

import asyncio
import contextlib
import importlib.util
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import uvicorn

from fedprofile.client.directory import TenantDirectory
from fedprofile.client.explanation import explain
from fedprofile.client.serving.access import Token
from fedprofile.client.serving.batching import Batcher
from fedprofile.client.serving.federation import Federation, open_all
from fedprofile.client.serving.gate import Gate
from fedprofile.client.serving.http import PAGE, build_app
from fedprofile.client.serving.inference_grpc import listen
from fedprofile.client.serving.inference_http import HEALTH, add_inference, body_schemas
from fedprofile.client.serving.reload import follow
from fedprofile.client.serving.service import Explain, Service
from fedprofile.common.environment import LOOPBACK_NAMES
from fedprofile.common.errors import ConfigError

BACKLOG = 2048
"""Connections that the system holds until they are taken."""
KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than clients keep one, so that none asks on one that closes."""
GRACE = 10
"""Seconds for what is being answered when the end is asked for."""


@dataclass(frozen=True)
class TlsFiles:
    """What proves who listens.

    Args:
        certificate: PEM.
        key: PEM.

    Raises:
        ConfigError: One of them cannot be read.
    """

    certificate: Path
    key: Path

    def __post_init__(self) -> None:
        for option, path in (("--tls-cert", self.certificate), ("--tls-key", self.key)):
            try:
                path.open("rb").close()
            except OSError as error:
                raise ConfigError(f"{option} {path}: cannot be read ({error.strerror}).") from None


@dataclass(frozen=True)
class Listening:
    """Where to ask.

    Args:
        http: Address of the HTTP interface.
        grpc: Address of the gRPC interface; None where there is none.
        token: The file that holds what to show.
        federations: Name -> round.
    """

    http: str
    grpc: str | None
    token: Path
    federations: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"token": str(self.token)}


def check_place(host: str, tls: TlsFiles | None, *, expose: bool) -> None:
    """Refuse to listen where others could ask, unless a person says so and the way is encrypted.

    Args:
        host: Where to listen.
        tls: None for plain text.
        expose: What the person says.

    Raises:
        ConfigError: It is not this machine alone, and is not both.
    """
    if host in LOOPBACK_NAMES:
        return
    if not expose or tls is None:
        raise ConfigError(
            f"--host {host}: others on the network could ask; give --expose, and --tls-cert and --tls-key so that "
            "profiles do not travel in the clear, or leave --host out."
        )


def serve(
    roots: Sequence[Path],
    say: Callable[[Listening], None],
    *,
    host: str,
    port: int,
    grpc_port: int | None,
    tls: TlsFiles | None,
    threads: int,
    max_batch: int,
    batch_wait: float,
    max_waiting: int,
    max_events: int,
    max_body: int,
    timeout: float,
) -> None:
    """Answer until a signal ends it.

    Args:
        roots: Tenant's directories; the token is kept in the first.
        say: Told where to ask, once that is possible.
        host: Where to listen; see `check_place`.
        port: Of HTTP; 0 takes a free one.
        grpc_port: Of gRPC; 0 takes a free one, None does without.
        tls: For both.
        threads: Of the models; 0 leaves it to torch.
        max_batch: Records of one batch.
        batch_wait: Seconds that a batch waits for company.
        max_waiting: Records in the queue.
        max_events: Of one request.
        max_body: Bytes of one request.
        timeout: Seconds that a request waits for its answer, and its body may take to come.

    Raises:
        ConfigError: A directory cannot be served, or a port not be had.
        PolicyRefusal: See `Federation.open`.
    """
    token_file = TenantDirectory(roots[0]).serve_token
    federations = open_all(roots)
    token = Token.of(token_file)
    with _bound(host, port) as listener:
        batcher = Batcher(
            federations,
            max_batch=max_batch,
            max_waiting=max_waiting,
            wait=batch_wait,
        )
        # Which passes the models may share is found out before anyone asks.
        batcher.between(partial(_prepare, list(federations.values()), threads)).result()
        service = Service(federations, batcher, timeout=timeout, max_events=max_events, explain=_explainer())
        page = host in LOOPBACK_NAMES
        app = build_app(service, page=page, bodies=body_schemas())
        add_inference(app, service)
        gate = Gate(
            app,
            token=token,
            open_paths=[*HEALTH, *(PAGE if page else ())],
            max_body=max_body,
            timeout=timeout,
        )
        server = _Server(
            uvicorn.Config(
                gate,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE,
                ws="none",
                timeout_graceful_shutdown=GRACE,
                ssl_certfile=None if tls is None else str(tls.certificate),
                ssl_keyfile=None if tls is None else str(tls.key),
            )
        )
        # Other people's loggers may put anything into their lines.
        for name in ("uvicorn", "asyncio", "grpc"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            asyncio.run(_run(service, server, listener, token, token_file, say, host, grpc_port, tls, max_body))
        finally:
            batcher.close()


class _Server(uvicorn.Server):
    """Ends when it is told, so that what stands around it ends as well; uvicorn's own would pass the signal on."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def end(self) -> None:
        """Answer what was asked, and end; at once where it is said twice."""
        self.force_exit = self.should_exit
        self.should_exit = True


async def _run(
    service: Service,
    server: _Server,
    listener: socket.socket,
    token: Token,
    token_file: Path,
    say: Callable[[Listening], None],
    host: str,
    grpc_port: int | None,
    tls: TlsFiles | None,
    max_body: int,
) -> None:
    shown = f"[{host}]" if ":" in host else host
    async with contextlib.AsyncExitStack() as stack:
        grpc_address = None
        if grpc_port is not None:
            secured = None if tls is None else (tls.key.read_bytes(), tls.certificate.read_bytes())
            address = f"{shown}:{grpc_port}"
            taken = await stack.enter_async_context(
                listen(service, token, address, secured=secured, max_body=max_body, grace=GRACE)
            )
            grpc_address = f"{shown}:{taken}"
        await stack.enter_async_context(_following(service))
        scheme = "http" if tls is None else "https"
        rounds = {name: one.profiler.round for name, one in service.federations.items()}
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.end)
        say(Listening(f"{scheme}://{shown}:{listener.getsockname()[1]}", grpc_address, token_file, rounds))
        await server.serve(sockets=[listener])


@contextlib.asynccontextmanager
async def _following(service: Service) -> AsyncIterator[None]:
    task = asyncio.create_task(follow(list(service.federations.values()), service.batcher))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _prepare(federations: Sequence[Federation], threads: int) -> None:
    if threads:
        torch.set_num_threads(threads)
    for federation in federations:
        federation.profiler.model.tokens_at_once("whole")


def _explainer() -> Explain | None:
    """By ablation, which costs one pass for each event; None where captum is not installed."""
    if importlib.util.find_spec("captum") is None:
        return None
    return lambda profiler, example: explain(profiler, example).as_dict()


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only of a socket that says TCP does asyncio send small answers at once; others wait 40 ms for company.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"--host {host} --port {port}: cannot be listened at ({error.strerror}).") from None
    return listener
