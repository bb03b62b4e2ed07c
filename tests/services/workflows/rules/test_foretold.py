"""FORETELL says what documents would have done with the log, and writes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from aether_trio.model.access import AccessLevel
from aether_trio.services.workflows.rules import foretelling
from aether_trio.services.workflows.rules.foretelling import FORETELL
from tests.helpers.core import World, deadlock_is_an_error
from tests.services.workflows.helpers import Client, all_taken, client, let_agents

RULE = {
    "rule_name": "pack",
    "workspace": "w",
    "source_event": "order",
    "trigger_condition": "input.amount > 100",
    "destination_template": {
        "type": "create_task",
        "task_type": "pack",
        "target_implementation": "packer",
        "payload": {"order": {"$expr": "input.order"}},
    },
}
BROKEN = {**RULE, "rule_name": "thank", "destination_template": "agent: x\ntool_name: '{{.input.customer.name}}'\n"}
FLOW = {
    "id": "flow",
    "workspace": "w",
    "trigger": {"event": "order"},
    "inputs": {"order": "string", "amount": "number"},
    "steps": [{"id": "one", "output": 1}],
}
MACHINE = {
    "id": "m",
    "workspace": "w",
    "initial_state": "a",
    "states": {"a": {"on": {"order": "b"}}, "b": {"terminal": True}},
    "bus": [{"event": "order", "key": "input.order", "creates": True}],
}
JOIN = {
    "rule_name": "gather",
    "workspace": "w",
    "source_event": "order",
    "destination_template": {
        "type": "join",
        "join": {"name": "j", "correlation_key": "input.order", "expected_count": "2",
                 "on_complete": {"agent": "x", "tool_name": "t"}},
    },
}  # fmt: skip
TABLES = "SELECT name FROM sqlite_master WHERE type = 'table'"


async def foretell(boss: Client, *documents: dict[str, Any], since_ms: int = 0) -> tuple[int, list[dict[str, Any]]]:
    """Return the number of events, and what is foretold, of all pages."""
    events, found, after = 0, [], 0
    while True:
        page = await boss.do(FORETELL, data={"documents": list(documents), "since_ms": since_ms, "after": after})
        events += page["events"]
        found += page["foretold"]
        after = page["next"]
        if not after:
            return events, found


def contents(world: World) -> dict[str, list[Any]]:
    """Return all rows of the databases that executions and messages are in."""
    found = {}
    for name, tables in (
        ("tasks", ("tasks", "task_events", "task_outbox", "workflow_executions", "workflow_history", "workflow_steps",
                   "workflow_rules", "workflow_definitions", "workflow_joins", "workflow_instances",
                   "workflow_cursors", "workflow_timers", "workflow_changes", "workflow_kept_events")),
        ("log", ("messages", "topics", "cursors")),
    ):  # fmt: skip
        if name in world.databases:
            for table in tables:
                found[table] = sorted(world.databases[name].query(f"SELECT * FROM {table}"), key=repr)
    return found


async def test_the_real_events_meet_documents_that_are_not_applied(world: World) -> None:
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as core, client(core) as boss:
        await boss.emit("order", data={"order": "o1", "amount": 250})
        await trio.sleep(3600)
        middle_ms = core.clock.now_ms()
        await boss.emit("order", "other", data={"order": "o2", "amount": 20})
        await boss.emit("order", data={"amount": 500})
        await all_taken(core, world)
        await trio.sleep(60)
        before = contents(world)
        events, found = await foretell(boss, RULE, BROKEN, FLOW, MACHINE, JOIN)
        assert contents(world) == before
        assert events == 3
        by = {(one["id"], one["offset"]): one.get("does", one.get("error")) for one in found}
        assert by["pack", 1] == {
            "type": "create_task", "task_type": "pack", "target_implementation": "packer", "payload": {"order": "o1"},
        }  # fmt: skip
        assert ("pack", 2) not in by
        assert "'name' is read of nil" in by["thank", 1]
        assert by["flow", 2]["input"] == {"order": "o2", "amount": 20}
        assert "the input of workflow flow is not as declared" in by["flow", 3]
        assert by["m", 1] == {"type": "send", "instance": "o1", "event": "order", "creates": True}
        assert "null" in by["m", 3]
        assert by["gather", 2] == {"type": "join", "join": "j", "correlation_key": "o2"}
        _, late = await foretell(boss, FLOW, since_ms=middle_ms)
        assert [one["offset"] for one in late] == [2, 3]
        later = core.clock.now_ms() + 1
        assert await foretell(boss, FLOW, since_ms=later) == (0, [])
        wrong = await boss.ask(FORETELL, data={"documents": [{"id": "x", "steps": []}]})
        assert "the workflow has no steps" in wrong.error
        assert "documents" in (await boss.ask(FORETELL, data={"since_ms": "x"})).error


async def test_the_log_is_read_page_by_page_by_those_who_may(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foretelling, "PAGE_EVENTS", 7)
    monkeypatch.setattr(foretelling, "FOUND", 5)
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as core, client(core) as boss:
        for number in range(50):
            await boss.emit("order", data={"order": f"o{number}", "amount": 1})
        events, found = await foretell(boss, FLOW)
        assert (events, len(found)) == (50, 50)
        assert len({one["offset"] for one in found}) == 50
        let_agents(core, AccessLevel.NONE)
        answer = await boss.ask(FORETELL, data={"documents": [FLOW]})
        assert "ERR_PERMISSION_DENIED" in answer.error


async def test_events_for_which_much_is_computed_are_for_several_pages(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foretelling, "PAGE_S", 0.0)  # each event takes longer than that
    monkeypatch.setattr(foretelling, "BATCH_EVENTS", 3)
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as core, client(core) as boss:
        for number in range(10):
            await boss.emit("order", data={"order": f"o{number}", "amount": number})
        never = {**RULE, "trigger_condition": "sum(map(1..1000, {# + input.amount})) < 0"}
        after, pages = 0, []
        while True:
            page = await boss.do(FORETELL, data={"documents": [never, FLOW], "after": after})
            pages.append([one["offset"] for one in page["foretold"]])
            assert page["events"] == 1
            after = page["next"]
            if not after:
                break
        assert pages == [[number + 1] for number in range(10)]


async def test_an_event_for_which_too_much_is_computed_is_an_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foretelling, "SLICE_S", 0.0)
    monkeypatch.setattr(foretelling, "EVENT_S", 0.0)
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as core, client(core) as boss:
        await boss.emit("order", data={"order": "o", "amount": 1})
        answer = await boss.ask(FORETELL, data={"documents": [FLOW]})
        assert "take more than 0 s for the event behind offset 0" in answer.error


async def test_events_are_read_in_parts_of_bounded_size(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foretelling, "BATCH_EVENTS", 4)
    monkeypatch.setattr(foretelling, "BATCH_BYTES", 3_000)
    parts: list[int] = []
    batches = foretelling._batches

    def noting(rows: Any) -> Any:
        for part in batches(rows):
            parts.append(len(part))
            yield part

    monkeypatch.setattr(foretelling, "_batches", noting)
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as core, client(core) as boss:
        for size in (1, 1, 1, 1, 1, 1_500, 1_500, 5_000, 1):
            await boss.emit("order", data={"order": "x" * size, "amount": 1})
        events, found = await foretell(boss, FLOW)
        assert (events, [one["offset"] for one in found]) == (9, list(range(1, 10)))
    assert parts == [4, 2, 1, 1, 1]
