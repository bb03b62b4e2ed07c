"""Changes of keys are events for rules and triggers that take them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.access import AccessLevel
from aether_trio.model.access.rules import Rule
from aether_trio.services.access.records import rule_value
from aether_trio.services.workflows.actions.event_dead_letters import RULE_FAILED
from aether_trio.services.workflows.events.kv_events import KeyEventMover
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, deadlock_is_an_error
from tests.services.workflows.helpers import Client, all_taken, client

Kv = pb.KVOperation
APPLY = 107


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


def rule(event: str, name: str = "first", **more: Any) -> dict[str, Any]:
    """Return a rule that creates a task "seen" with what it sees."""
    sees = {"input": {"$expr": "input"}, "source": {"$expr": "source"}}
    destination = {"type": "create_task", "task_type": "seen", "target_implementation": "none", "payload": sees}
    return {"rule_name": name, "source_event": event, "destination_template": destination, **more}


async def do(boss: Client, op: int, key: str, value: bytes = b"", **more: Any) -> pb.KVResponse:
    """Perform an operation on a key of the workspace."""
    request = Kv(op=op, key=key, value=value, scope=Kv.WORKSPACE, request_id="k", **more)  # type: ignore[arg-type]
    boss.link.send(pb.UpstreamMessage(kv_op=request))
    return (await boss.link.next("kv")).kv


async def seen(core: Core, world: World, count: int) -> Sequence[tuple[str, Any]]:
    """Return (event, input) of what rules have seen, once there are `count`."""
    sql = """SELECT COALESCE(t.payload, p.payload) FROM tasks t LEFT JOIN task_payloads p ON p.task_id = t.task_id
        WHERE task_type = 'seen' ORDER BY created_ms, t.task_id"""
    while True:
        while world.state.query("SELECT id FROM kv_changes"):
            await trio.sleep(0.1)
        await all_taken(core, world)
        found = [json.loads(payload) for (payload,) in world.databases["tasks"].query(sql)]
        if len(found) >= count:
            return sorted(((one["source"]["event"], one["input"]) for one in found), key=str)
        await trio.sleep(0.1)


async def test_writes_of_a_prefix_are_events(core: Core, world: World) -> None:
    async with client(core) as boss:
        rules = [rule("kv.put:orders/*"), rule("kv.delete:orders/1", "second")]
        await boss.do(APPLY, data={"documents": rules}, workspace="w")
        await do(boss, Kv.PUT, "orders/1", b"paid")
        await do(boss, Kv.PUT, "others/1", b"paid")
        await do(boss, Kv.SET_NX, "orders/1", b"late")
        await do(boss, Kv.INCREMENT, "orders/2")
        await do(boss, Kv.SET_ADD, "orders/3", b"ann")
        await do(boss, Kv.SET_ADD, "orders/3", b"ann")
        await do(boss, Kv.DELETE, "orders/2")
        await do(boss, Kv.DELETE, "orders/1")
        await do(boss, Kv.DELETE, "orders/1")
        assert await seen(core, world, 4) == [
            ("kv.delete:orders/1", {"key": "orders/1", "operation": "DELETE"}),
            ("kv.put:orders/*", {"key": "orders/1", "operation": "PUT", "value": "paid"}),
            ("kv.put:orders/*", {"key": "orders/2", "operation": "INCREMENT", "value": "1"}),
            ("kv.put:orders/*", {"key": "orders/3", "operation": "SET_ADD", "members": 1}),
        ]
        [[payload]] = world.databases["tasks"].query(
            "SELECT COALESCE(t.payload, p.payload) FROM tasks t LEFT JOIN task_payloads p ON p.task_id = t.task_id LIMIT 1"
        )
        source = json.loads(payload)["source"]
        assert (source["agent"], source["principal"], source["workspace"]) == ("kv", "ag::w::boss::1", "w")


async def test_an_expired_key_is_deleted_and_other_keys_have_no_events(core: Core, world: World) -> None:
    async with client(core) as boss:
        await do(boss, Kv.PUT, "a", b"1")
        await boss.do(APPLY, data={"documents": [rule("kv.delete:a*")]}, workspace="w")
        await do(boss, Kv.PUT, "a", b"2", ttl=5)
        await do(boss, Kv.PUT, "b", b"2", ttl=5)
        exclusive = Kv(op=Kv.PUT, key="a", value=b"3", ttl=5, scope=Kv.WORKSPACE_EXCLUSIVE, request_id="k")
        boss.link.send(pb.UpstreamMessage(kv_op=exclusive))
        await boss.link.next("kv")
        assert await seen(core, world, 1) == [("kv.delete:a*", {"key": "a", "operation": "EXPIRE"})]


async def test_a_trigger_takes_keys_and_waits_do_not(core: Core, world: World) -> None:
    triggered = {
        "id": "on",
        "trigger": {"event": "kv.put:a"},
        "steps": [{"id": "s", "output": {"$expr": "trigger.value"}}],
    }
    waits = {"id": "flow", "steps": [{"id": "s", "wait": {"event": "kv.put:a"}}]}
    async with client(core) as boss:
        await boss.do(APPLY, data={"documents": [triggered, waits]}, workspace="w")
        waiting = await boss.run()
        await do(boss, Kv.PUT, "a", b"x")
        await seen(core, world, 0)
        while len(found := await boss.do(pb.WorkflowOperation.LIST_EXECUTIONS, "on", status_filter="all")) < 1:
            await trio.sleep(0.1)
        assert found[0]["TriggerData"] == {"key": "a", "operation": "PUT", "value": "x"}
        assert (await boss.execution(waiting))["execution"]["Status"] == "running"


async def test_the_owner_must_be_allowed_to_read_the_key(core: Core, world: World) -> None:
    async with client(core) as boss, client(core, "other") as other:
        await boss.do(APPLY, data={"documents": [rule("kv.put:*")]}, workspace="w")
        deny = Rule("deny", "agent", "ag::w::boss::1", "kv_key", "secret", AccessLevel.NONE)
        core.authorizer._rules_changed([("deny", rule_value(deny))], False)
        await do(other, Kv.PUT, "secret", b"x")
        await do(other, Kv.PUT, "open", b"y")
        found = await seen(core, world, 1)
        assert [one["key"] for _, one in found] == ["open"]
        [dead] = world.databases["tasks"].query(f"SELECT error, creator FROM tasks WHERE task_type = '{RULE_FAILED}'")
        assert "may not read the key" in dead[0]
        assert dead[1] == ""


async def test_an_event_is_moved_once_whatever_is_killed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stuck(*_: Any) -> None:
        await trio.sleep_forever()

    async with deadlock_is_an_error():
        with monkeypatch.context() as patched:
            patched.setattr(KeyEventMover, "move_all", stuck)
            async with world.open(workflow={"engine": "embedded"}) as first, client(first) as boss:
                await boss.do(APPLY, data={"documents": [rule("kv.put:*")]}, workspace="w")
                await do(boss, Kv.PUT, "a", b"x")
        [row] = world.state.query("SELECT id, payload FROM kv_changes")
        async with world.open(workflow={"engine": "embedded"}) as second, client(second):
            assert len(await seen(second, world, 1)) == 1
            # It dies after the outbox has the event, and before the row is deleted.
            await world.state.execute("INSERT INTO kv_changes (id, payload) VALUES ($1, $2)", *row)
            await trio.sleep(10)
            assert len(await seen(second, world, 1)) == 1


async def test_the_events_of_a_key_are_in_their_order_though_the_log_is_slow(core: Core, world: World) -> None:
    def waiting() -> int:
        (rows,) = world.state.query("SELECT COUNT(*) FROM kv_changes")
        moved = world.databases["tasks"].query("SELECT COUNT(*) FROM task_outbox WHERE task_id LIKE 'kv %'")
        return int(moved[0][0]) if rows[0] == 0 else -1

    async with client(core) as boss:
        await boss.do(APPLY, data={"documents": [rule("kv.put:a")]}, workspace="w")
        world.log.before_write.close()
        for number in range(8):
            await do(boss, Kv.PUT, "a", str(number).encode())
            while waiting() != number + 1:
                await trio.sleep(0.01)
        world.log.before_write.open()
        await seen(core, world, 8)
        payloads = world.databases["tasks"].query(
            "SELECT payload FROM tasks WHERE task_type = 'seen' ORDER BY order_us"
        )
        values = [json.loads(payload)["input"]["value"] for (payload,) in payloads]
        assert values == [str(number) for number in range(8)]


async def test_what_is_foretold_shows_no_key_that_the_caller_may_not_read(core: Core, world: World) -> None:
    machine = {
        "id": "m", "workspace": "w", "initial_state": "a", "states": {"a": {"terminal": True}},
        "bus": [{"event": "kv.put:open", "key": "input.key", "creates": True}],
    }  # fmt: skip
    async with client(core) as boss, client(core, "other") as other:
        await boss.do(APPLY, data={"documents": [rule("kv.put:*")]}, workspace="w")
        deny = Rule("deny", "agent", "ag::w::other::1", "kv_key", "secret", AccessLevel.NONE)
        core.authorizer._rules_changed([("deny", rule_value(deny))], False)
        await do(boss, Kv.PUT, "secret", b"x")
        await do(boss, Kv.PUT, "open", b"y")
        assert len(await seen(core, world, 2)) == 2
        for one, keys in ((other, ["open"]), (boss, ["secret", "open"])):
            found = await one.do(119, data={"documents": [rule("kv.put:*"), machine]}, workspace="w")
            assert [each["does"]["payload"]["input"]["key"] for each in found["foretold"]] == keys
            assert found["events"] == len(keys)
