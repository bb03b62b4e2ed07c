from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.transport.websocket.harness import TransportServer, open_transport


@pytest.fixture
async def transport() -> AsyncIterator[TransportServer]:
    async with open_transport() as opened:
        yield opened
