from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.transport.framed.harness import FramedPeer, TransportServer, agent, open_transport


@pytest.fixture
async def transport() -> AsyncIterator[TransportServer]:
    async with open_transport() as opened:
        yield opened


@pytest.fixture
async def a(transport: TransportServer) -> FramedPeer:
    return await transport.connect(agent("a"))


@pytest.fixture
async def b(transport: TransportServer) -> FramedPeer:
    return await transport.connect(agent("b"))
