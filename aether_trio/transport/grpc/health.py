"""Serves the standard gRPC health service on trio; "" names the server as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import trio
from grpclib.const import Status as GrpclibStatus
from grpclib.exceptions import GRPCError
from grpclib.health.v1.health_grpc import HealthBase
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from aether_trio.transport.grpc.stream import ServerStream

if TYPE_CHECKING:
    ServingStatus: TypeAlias = HealthCheckResponse.ServingStatus.ValueType

OVERALL: Final = ""
GATEWAY: Final = "aether.v1.AetherGateway"
SERVING: Final = HealthCheckResponse.SERVING
NOT_SERVING: Final = HealthCheckResponse.NOT_SERVING


class GrpcHealth(HealthBase):
    """The gRPC health service: Check and Watch. Known services start as NOT_SERVING."""

    def __init__(self, services: tuple[str, ...] = (OVERALL, GATEWAY)) -> None:
        self._statuses: dict[str, ServingStatus] = dict.fromkeys(services, NOT_SERVING)
        self._changed = trio.Event()
        self._closing = False

    def close(self) -> None:
        """Report NOT_SERVING from now on and end all Watch calls, for a shutdown."""
        self._closing = True
        self.set_status(NOT_SERVING)

    def set_status(self, status: ServingStatus, *services: str) -> None:
        """Set the health status of `services` (default: all) and notify Watch calls."""
        for service in services or tuple(self._statuses):
            self._statuses[service] = status
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def status(self, service: str = OVERALL) -> ServingStatus | None:
        """Return the health status of a service; None for an unknown service."""
        return self._statuses.get(service)

    async def Check(self, stream: ServerStream) -> None:  # type: ignore[override]  # noqa: N802
        request = await _request(stream)
        status = self._statuses.get(request.service)
        if status is None:
            await stream.send_trailing_metadata(status=GrpclibStatus.NOT_FOUND, status_message="unknown service")
        else:
            await stream.send_message(HealthCheckResponse(status=status))

    async def Watch(self, stream: ServerStream) -> None:  # type: ignore[override]  # noqa: N802
        """Stream the health status of a service: once now and at each change."""
        request = await _request(stream)
        last: ServingStatus | None = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, HealthCheckResponse.SERVICE_UNKNOWN)
            if status != last:
                last = status
                await stream.send_message(HealthCheckResponse(status=status))
            elif self._closing:
                raise GRPCError(GrpclibStatus.UNAVAILABLE, "the Watch call ends: the server is shutting down")
            else:
                await changed.wait()


async def _request(stream: ServerStream) -> HealthCheckRequest:
    request = await stream.recv_message()
    return HealthCheckRequest() if request is None else request
