"""The Open Inference Protocol over gRPC, with the standard health and reflection services."""

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fedprofile.client.given import GivenError, Wrong
from fedprofile.client.serving.access import Token
from fedprofile.client.serving.batching import QueueFullError
from fedprofile.client.serving.gate import FAILED
from fedprofile.client.serving.inference import (
    UnknownModelError,
    check_input,
    find_model,
    infer,
    model_metadata,
    server_metadata,
)
from fedprofile.client.serving.inference_binary import check_count, packed, unpacked
from fedprofile.client.serving.inference_proto import METHODS, POOL, SERVICE, message
from fedprofile.client.serving.service import LateError, Service
from fedprofile.common.errors import ConfigError

OPEN = ("ServerLive", "ServerReady")
"""Methods that say nothing but that the server runs, and so need no token."""

_log = logging.getLogger(__name__)

_Handler = Callable[[Any, Any], Awaitable[Any]]


@contextlib.asynccontextmanager
async def listen(
    service: Service, token: Token, address: str, *, secured: tuple[bytes, bytes] | None, max_body: int, grace: float
) -> AsyncIterator[int]:
    """Answer within the block.

    Args:
        service: Answers.
        token: What must be shown.
        address: Host and port; port 0 takes a free one.
        secured: Key and certificate, PEM; None for plain text.
        max_body: Bytes of a message.
        grace: Seconds for what is being answered at the end.

    Yields:
        The port.

    Raises:
        ConfigError: The port cannot be had.
    """
    options = [("grpc.max_receive_message_length", max_body), ("grpc.so_reuseport", 0)]
    server = grpc.aio.server(options=options)
    methods = {
        name: grpc.unary_unary_rpc_method_handler(
            _guarded(handler, None if name in OPEN else token),
            request_deserializer=message(f"{name}Request").FromString,
            response_serializer=message(f"{name}Response").SerializeToString,
        )
        for name, handler in _handlers(service).items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    for name in ("", SERVICE):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    _add_reflection(server)
    try:
        if secured is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, grpc.ssl_server_credentials([secured]))
    except RuntimeError:
        raise ConfigError(f"--grpc-port: {address} cannot be listened at; give another port.") from None
    await server.start()
    try:
        yield port
    finally:
        await checks.enter_graceful_shutdown()
        await server.stop(grace)


def _handlers(service: Service) -> dict[str, _Handler]:
    async def live(request: Any, context: Any) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def ready(request: Any, context: Any) -> Any:
        return message("ServerReadyResponse")(ready=True)

    async def model_ready(request: Any, context: Any) -> Any:
        find_model(service, request.name, request.version)
        return message("ModelReadyResponse")(ready=True)

    async def metadata(request: Any, context: Any) -> Any:
        return message("ServerMetadataResponse")(**server_metadata())

    async def of_model(request: Any, context: Any) -> Any:
        return message("ModelMetadataResponse")(**model_metadata(find_model(service, request.name, request.version)))

    async def run(request: Any, context: Any) -> Any:
        return await _infer(service, request)

    return dict(zip(METHODS, (live, ready, model_ready, metadata, of_model, run), strict=True))


async def _infer(service: Service, request: Any) -> Any:
    federation = find_model(service, request.model_name, request.model_version)
    given = [(tensor.name, tensor.datatype, tensor.shape) for tensor in request.inputs]
    count = check_input(given, service.batcher.most)
    if raw := list(request.raw_input_contents):
        if len(raw) != 1 or request.inputs[0].HasField("contents"):
            raise GivenError([Wrong("raw_input_contents", "is not the one input's, or stands beside its contents")])
        elements = unpacked(raw[0])
    else:
        elements = list(request.inputs[0].contents.bytes_contents)
    inferred = await infer(
        service, federation, check_count(elements, count), [output.name for output in request.outputs]
    )
    response = message("ModelInferResponse")(model_name=federation.name, model_version=inferred.version, id=request.id)
    for tensor in inferred.outputs:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.values.shape)
        response.raw_output_contents.append(packed(tensor))
    return response


def _guarded(handler: _Handler, token: Token | None) -> _Handler:
    """A method that looks at the token first, and says errors as statuses that hold nothing of the request."""

    async def guarded(request: Any, context: Any) -> Any:
        if token is not None:
            shown = dict(context.invocation_metadata()).get("authorization", "")
            if not token.admits(shown.encode() if isinstance(shown, str) else shown):
                sentence = "show the bearer token of `flower-client serve` as authorization."
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, sentence)
        try:
            return await handler(request, context)
        except GivenError as error:
            code, sentence = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except UnknownModelError:
            code, sentence = grpc.StatusCode.NOT_FOUND, "no model of this name and version is here."
        except QueueFullError:
            code, sentence = grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests wait here; ask again later."
        except LateError:
            code, sentence = grpc.StatusCode.DEADLINE_EXCEEDED, "the models did not answer in time; ask again later."
        except Exception as error:
            _log.error("a request failed: %s", type(error).__name__)
            code, sentence = grpc.StatusCode.INTERNAL, FAILED
        return await context.abort(code, sentence)

    return guarded


def _add_reflection(server: Any) -> None:
    names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
    for name in names[1:]:
        # Into the protocol's own pool, for one pool is asked.
        file = descriptor_pool.Default().FindFileContainingSymbol(name)
        copied = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(copied)
        POOL.Add(copied)
    reflection.enable_server_reflection(names, server, pool=POOL)
