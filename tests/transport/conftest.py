"""A clock for real sockets, certificates, and a gRPC server with a client."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from trio.testing import MockClock

from aether_trio.transport.grpc.limits import GrpcLimits
from aether_trio.transport.grpc.server import GrpcServer
from tests.transport.grpc.harness import Port, Probe, RawClient, serving
from tests.transport.pki import Pki


@pytest.fixture
def jumpy() -> MockClock:
    """Jumps to the next deadline when all sockets have been quiet for 0.2 s."""
    return MockClock(autojump_threshold=0.2)


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


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
