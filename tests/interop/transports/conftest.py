"""The participants of a scenario through our own client."""

from __future__ import annotations

import pytest

from tests.interop.transports.world import World


@pytest.fixture
def world(target: str, transport: str) -> World:
    """The clients of one scenario on the shared gateway. The test opens and closes it."""
    return World(target, transport)
