"""The standard gRPC health service (grpc.health.v1) on a port of its own, with the server's certificate.

`fedprofile.Federation` serves while a run is waiting for tenants or in progress; the empty name stands for the
process.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedprofile.common.errors import InputError

SERVICE = "fedprofile.Federation"


class HealthService:
    """Answers health checks.

    Args:
        host: The address to bind to.
        port: The port.
        certificate: PEM file.
        key: PEM file.
    """

    def __init__(self, *, host: str, port: int, certificate: Path, key: Path) -> None:
        self._server = grpc.server(ThreadPoolExecutor(max_workers=2), options=[("grpc.so_reuseport", 0)])
        self._servicer = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
        try:
            bound = self._server.add_secure_port(f"{host}:{port}", credentials)
        except RuntimeError:
            bound = 0
        if not bound:
            raise InputError(
                f"cannot listen on port {port} for health checks: it is taken; choose another health_port."
            )

    def start(self) -> None:
        """Start answering: the process is up, the federation not yet."""
        self._servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        self.set_serving(False)
        self._server.start()

    def set_serving(self, serving: bool) -> None:
        """Whether the federation serves."""
        status = health_pb2.HealthCheckResponse
        self._servicer.set(SERVICE, status.SERVING if serving else status.NOT_SERVING)

    def stop(self) -> None:
        """Stop answering."""
        self._servicer.enter_graceful_shutdown()
        self._server.stop(grace=1.0).wait()
