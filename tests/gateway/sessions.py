"""Find the session of a client that is connected to a real gateway."""

from __future__ import annotations

from aether_trio.gateway import Gateway
from aether_trio.session.session import Session


def session_of(gateway: Gateway, identity: str) -> Session:
    session = gateway.core.registry.holder(identity)
    assert isinstance(session, Session)
    return session
