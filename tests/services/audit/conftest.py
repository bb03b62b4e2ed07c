"""A database of tasks on either engine, with the partition for the clock's time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aether_trio.model.audit import AuditEvent, EventType
from aether_trio.services.audit.checkpoints import SigningKey
from aether_trio.services.audit.trees import AUDIT_LOG, AuditTree, begin_tree
from aether_trio.storage.base import Database
from tests.helpers.clocks import ManualClock
from tests.helpers.engines import Engine

WEEK_MS = 7 * 24 * 3600 * 1000


@pytest.fixture
async def database(engine: Engine, clock: ManualClock) -> AsyncIterator[Database]:
    async with engine.open("tasks") as opened:
        if opened.shared:
            for now_ms in (0, clock.now_ms()):
                await opened.run(lambda now_ms=now_ms: AUDIT_LOG.ensure(now_ms, WEEK_MS))  # type: ignore[misc]
        yield opened


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.from_seed(bytes(range(32)))


@pytest.fixture
async def tree(database: Database, key: SigningKey, clock: ManualClock) -> AuditTree:
    program = begin_tree("node-1", "aether-audit/node-1/00010203", key.public_raw, clock.now_ms())
    return await database.run(lambda: program)


def event(number: int = 0, at_ms: int = 5, **fields: object) -> AuditEvent:
    """An event that differs from the others by its number."""
    made: dict[str, object] = {
        "at_ms": at_ms,
        "event_type": EventType.KV,
        "operation": "kv_put",
        "actor_type": "agent",
        "actor_id": "ag::w::a::1",
        "resource_type": "kv_key",
        "resource_id": f"key-{number}",
        "workspace": "w",
        **fields,
    }
    return AuditEvent(**made)  # type: ignore[arg-type]
