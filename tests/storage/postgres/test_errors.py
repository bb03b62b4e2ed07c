"""Which failures of an attempt to connect may pass by themselves."""

from __future__ import annotations

import asyncpg
import pytest
from asyncpg.exceptions import ProtocolError

from aether_trio.storage.postgres.errors import is_outage


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ConnectionResetError("reset by peer"), True),
        (TimeoutError(), True),
        (asyncpg.TooManyConnectionsError("sorry, too many clients already"), True),
        (asyncpg.CannotConnectNowError("the database system is starting up"), True),
        (asyncpg.TargetServerAttributeNotMatched("none is a primary"), True),
        # The link was cut while asyncpg went from one step of the handshake to the next.
        (asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"), True),
        (ProtocolError("unknown message 'H'"), False),
        (asyncpg.InvalidPasswordError("password authentication failed"), False),
        (asyncpg.InvalidCatalogNameError('database "x" does not exist'), False),
        (ValueError("invalid port"), False),
    ],
)
def test_an_outage_is_waited_for_and_a_mistake_is_not(error: Exception, passes: bool) -> None:
    assert is_outage(error) is passes
