"""Scenarios 106 and 107: the published SDK searches the audit log, and adds to it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helpers.sdk import LIMIT_S, World, answered, eventually, in_asyncio


@pytest.fixture
def world(any_target: str) -> World:
    """The peers of one scenario, on each storage engine."""
    return World(any_target)


@in_asyncio
async def test_106_a_what_was_done_is_found(world: World) -> None:
    a, b, admin = await world.open(world.agent("a"), world.agent("b"), world.orchestrator())
    for _ in range(3):
        await a.send(b.topic, b"hello")
    await a.barrier()
    for key in ("k1", "k2"):
        answered(await a.client.kv_put(key, b"v", timeout=LIMIT_S), "put")
    await a.client.create_task_sync("t", world.ws, timeout=LIMIT_S)
    await b.close()

    async def find(**wanted: Any) -> Any:
        return answered(await admin.client.audit_query(workspace=world.ws, **wanted), "query")

    async def types() -> set[str]:
        return {entry.event_type for entry in (await find(limit=500)).entries}

    await eventually(types, {"connection", "message", "kv", "task", "auth"}.issubset, "rows of all types")
    found = await find(event_type="kv", operation="kv_put")
    assert [entry.resource_id for entry in found.entries] == ["k2", "k1"]
    assert found.total_count == 2
    entry = found.entries[0]
    assert (entry.actor_type, entry.actor_id, entry.success) == ("agent", a.topic, True)
    assert (entry.subject_id, entry.authority_mode, entry.source) == (a.topic, "direct", "gateway")
    assert entry.session_id == a.session_id
    assert json.loads(entry.metadata_json)["key"] == "k2"
    assert "\x00" not in entry.metadata_json
    page = await find(event_type="kv", operation="kv_put", limit=1, offset=1)
    assert [entry.resource_id for entry in page.entries] == ["k1"]
    assert page.total_count == 2
    routed = (await find(event_type="message", actor_id=a.topic)).entries
    assert sum(json.loads(one.metadata_json).get("count", 1) for one in routed if one.resource_id == b.topic) == 3
    assert (await find(only_failures=True, event_type="kv")).total_count == 0
    refused = await a.client.kv_put("", b"v", timeout=LIMIT_S)
    assert refused is None or not refused.success

    async def failures() -> list[bool]:
        return [entry.success for entry in (await find(only_failures=True, event_type="kv")).entries]

    await eventually(failures, [False].__eq__, "the refused operation, perhaps of another node")


@in_asyncio
async def test_107_a_an_entry_is_stored_with_the_sessions_actor(world: World) -> None:
    a, admin = await world.open(world.agent("a"), world.orchestrator())
    done = await a.client.submit_audit_event(
        "custom", operation="invoice_paid", resource_type="invoice", resource_id="7", metadata={"sum": "12"}
    )
    assert done is not None
    assert done.success, done
    [entry] = (await admin.client.audit_query(workspace=world.ws, event_type="custom")).entries
    assert (entry.actor_type, entry.actor_id, entry.session_id) == ("agent", a.topic, a.session_id)
    assert (entry.operation, entry.resource_id, entry.source) == ("invoice_paid", "7", "principal")
    assert json.loads(entry.metadata_json) == {"sum": "12"}
    refused = await a.client.submit_audit_event("auth", operation="pretended")
    assert refused is not None
    assert (refused.success, refused.error_code) == (False, "ERR_AUDIT_TYPE_FORBIDDEN")
    found = await admin.client.audit_query(workspace=world.ws, operation="pretended")
    assert (found.success, found.total_count) == (True, 0)
