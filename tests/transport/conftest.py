"""A clock for real sockets; a gRPC server of the probe service, and one client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from trio.testing import MockClock

from aether_trio.transport.grpc.limits import GrpcLimits
from aether_trio.transport.grpc.server import GrpcServer
from tests.transport.grpc.harness import Port, Probe, RawClient, serving


@pytest.fixture
def jumpy() -> MockClock:
    """A clock that jumps to the next deadline when all sockets have been quiet for a moment."""
    return MockClock(autojump_threshold=0.2)


@pytest.fixture
def limits() -> GrpcLimits | None:
    """The limits of `server`. A test may parametrise them."""
    return None


@pytest.fixture
def probe() -> Probe:
    return Probe()


@pytest.fixture
def server(probe: Probe, limits: GrpcLimits | None) -> GrpcServer:
    return GrpcServer([probe], limits=limits)


@pytest.fixture
async def port(server: GrpcServer) -> AsyncIterator[Port]:
    async with serving(server) as opened:
        yield opened


@pytest.fixture
async def client(port: Port) -> RawClient:
    return await RawClient.connect(port)
