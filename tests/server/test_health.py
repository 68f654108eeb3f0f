"""The standard gRPC health service, over TLS."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedprofile.common.errors import InputError
from fedprofile.server.health import SERVICE, HealthService

if TYPE_CHECKING:
    from tests.server.conftest import Server


def _check(server: "Server", service: str) -> int:
    credentials = grpc.ssl_channel_credentials(server.directory.ca.read_bytes())
    port = server.directory.settings().health_port
    with grpc.secure_channel(f"localhost:{port}", credentials, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        return int(answer.status)


def test_serves_while_the_federation_runs(make_server: Callable[..., "Server"]) -> None:
    serving = health_pb2.HealthCheckResponse.SERVING
    server = make_server().start()
    server.until(lambda: _check(server, SERVICE) == serving)
    assert _check(server, "") == serving
    with pytest.raises(grpc.RpcError) as unknown:
        _check(server, "other")
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    server.stop()
    with pytest.raises(grpc.RpcError) as gone:
        _check(server, "")
    assert gone.value.code() is grpc.StatusCode.UNAVAILABLE


def test_not_serving_before_and_after(make_server: Callable[..., "Server"]) -> None:
    server = make_server()
    paths, port = server.directory, server.directory.settings().health_port
    options: dict[str, Any] = {"host": "127.0.0.1", "certificate": paths.certificate, "key": paths.key}
    service = HealthService(port=port, **options)
    service.start()
    try:
        assert _check(server, SERVICE) == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(InputError, match=f"cannot listen on port {port}"):
            HealthService(port=port, **options)
    finally:
        service.stop()
