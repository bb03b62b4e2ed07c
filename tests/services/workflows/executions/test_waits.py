"""Executions wait for events: each reaches a wait once, also if it came before."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.workflows.executions import waits
from aether_trio.services.workflows.rules import event_handler, unfinished_events
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, deadlock_is_an_error, message_to
from tests.services.workflows.helpers import Client, all_taken, client

Op = pb.WorkflowOperation


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


def waiting(event: str = "paid", **more: Any) -> dict[str, Any]:
    """Return a step that waits for an event of the execution's order."""
    wait = {"event": event, "key": "input.order", "equals": "trigger.order", **more}
    return {key: one for key, one in wait.items() if one is not None}


def flow(*steps: dict[str, Any], **outputs: Any) -> dict[str, Any]:
    """Return a workflow."""
    return {"name": "flow", "steps": list(steps), "outputs": outputs}


async def result(boss: Client, execution_id: str) -> str:
    """Wait for an execution's end; return its result."""
    found = await boss.ended(execution_id)
    assert found["execution"]["Status"] == "completed", found
    return (await boss.task(execution_id)).metadata["_result"]


async def running(boss: Client) -> set[str]:
    """Return the executions that have not ended."""
    return {one["ExecutionID"] for one in await boss.do(Op.LIST_EXECUTIONS)}


def rows(world: World, *tables: str) -> list[str]:
    """Return which of the tables of waits have rows."""
    every = ("waits", "interests", "kept_events", "kept_keys", "taken_events")
    query = world.databases["tasks"].query
    return [one for one in tables or every if query(f"SELECT 1 FROM workflow_{one}")]


async def test_an_event_reaches_the_execution_with_its_key(core: Core, world: World) -> None:
    async with client(core) as boss:
        await boss.create(flow({"id": "pay", "wait": waiting()}, sum={"$expr": "steps.pay.result.sum"}))
        first, second = await boss.run({"order": "a"}), await boss.run({"order": 5})
        await boss.emit("paid", data={"order": "b", "sum": 1})
        await boss.emit("paid", data={"sum": 1})
        await boss.emit("paid", data={"order": "5", "sum": 1})
        await boss.emit("sent", data={"order": "a", "sum": 1})
        await all_taken(core, world)
        assert await running(boss) == {first, second}
        [step] = (await boss.execution(first))["steps"]
        assert (step["Status"], step["WaitsFor"]["event"]) == ("waiting", "paid")
        await boss.emit("paid", data={"order": 5.0, "sum": 2})
        assert await result(boss, second) == '{"sum":2}'
        await boss.emit("paid", data={"order": "a", "sum": 3})
        assert await result(boss, first) == '{"sum":3}'
        assert rows(world) == [], "nothing is kept for executions that have ended"


async def test_a_key_may_be_given_as_an_expression_of_a_tree(core: Core, world: World) -> None:
    wait = {"event": "paid", "key": {"$expr": "input.order"}, "equals": {"$expr": "trigger.order"}}
    async with client(core) as boss:
        await boss.create(flow({"id": "pay", "wait": wait}, n={"$expr": "steps.pay.result.n"}))
        execution_id = await boss.run({"order": "a"})
        await boss.emit("paid", data={"order": "b", "n": 1})
        await boss.emit("paid", data={"order": "a", "n": 2})
        assert await result(boss, execution_id) == '{"n":2}'
        wrong = {"name": "flow", "steps": [{"id": "pay", "wait": {"event": "e", "key": 5, "equals": "5"}}]}
        answer = await boss.ask(Op.CREATE_WORKFLOW, data={"ID": "wrong", "Workspace": "w", "Definition": wrong})
        assert "key has to be an expression over the event" in answer.error


async def test_an_event_since_the_begin_counts(core: Core, world: World) -> None:
    steps = [
        {"id": "sleep", "wait": {"duration": "1m"}},
        {"id": "pay", "wait": waiting(condition="input.sum > 1"), "depends_on": ["sleep"]},
    ]
    async with client(core) as boss:
        await boss.create(flow(*steps, sum={"$expr": "steps.pay.result.sum"}))
        other = await boss.run({"order": "b"})
        await boss.emit("paid", data={"order": "a", "sum": 7})  # before it begins
        await all_taken(core, world)
        execution_id = await boss.run({"order": "a"})
        for number in (1, 2, 3):
            await boss.emit("paid", data={"order": "a", "sum": number})
        await all_taken(core, world)
        assert await result(boss, execution_id) == '{"sum":2}', "the first that fits"
        assert await running(boss) == {other}
        assert len(world.databases["tasks"].query("SELECT number FROM workflow_kept_events")) == 4


async def test_rounds_and_items_take_each_event_once(core: Core, world: World) -> None:
    rounds = {
        "id": "each", "while": {"condition": "round < 3"}, "wait": {"event": "tick"}, "depends_on": ["sleep"],
    }  # fmt: skip
    items = {
        "id": "all", "for_each": {"items": {"$expr": "['x', 'y']"}}, "depends_on": ["sleep"],
        "wait": {"event": "done", "key": "input.item", "equals": "item"},
    }  # fmt: skip
    late = {"id": "late", "wait": {"event": "tick"}, "depends_on": ["each"]}
    steps = [{"id": "sleep", "wait": {"duration": "1m"}}, rounds, items, late]
    outputs = {
        "each": {"$expr": "steps.each.result.n"}, "all": {"$expr": "map(steps.all.result, .n)"},
        "late": {"$expr": "steps.late.result.n"},
    }  # fmt: skip
    async with client(core) as boss:
        await boss.create(flow(*steps, **outputs))
        execution_id = await boss.run()
        await boss.emit("tick", data={"n": 1})
        await boss.emit("done", data={"item": "y", "n": 10})
        await boss.emit("tick", data={"n": 2})
        await all_taken(core, world)
        await trio.sleep(61)
        await boss.emit("done", data={"item": "x", "n": 20})
        await all_taken(core, world)
        assert await running(boss) == {execution_id}, "the third round waits"
        await boss.emit("tick", data={"n": 3})
        assert await result(boss, execution_id) == '{"each":3,"all":[20,10],"late":1}'
        assert rows(world) == []


async def test_a_trigger_is_not_what_its_execution_waits_for(core: Core, world: World) -> None:
    definition = flow({"id": "again", "wait": {"event": "made"}}, n={"$expr": "steps.again.result.n"})
    async with client(core) as boss:
        await boss.create({**definition, "trigger": {"event": "made"}})
        for number in range(3):
            await boss.emit("made", data={"n": number})
        await all_taken(core, world)
        runs = await boss.do(Op.LIST_EXECUTIONS, status_filter="all")
        results = {
            run["TriggerData"]["n"]: (await boss.task(run["ExecutionID"])).metadata.get("_result") for run in runs
        }
        assert results == {0: '{"n":1}', 1: '{"n":2}', 2: None}


async def test_events_of_other_workspaces_reach_no_wait(core: Core, world: World) -> None:
    async with client(core) as boss, connect(core, agent("x", "liar", "1")) as x:
        await boss.create(flow({"id": "pay", "wait": waiting()}))
        execution_id = await boss.run({"order": "a"})
        await Client(x).emit("paid", data={"order": "a"}, workspace="w")
        await all_taken(core, world)
        assert await running(boss) == {execution_id}
        assert rows(world) == ["waits", "interests"]


async def test_a_wait_that_is_over_takes_nothing(core: Core, world: World) -> None:
    steps = [
        {"id": "pay", "wait": waiting(default={"sum": 0}), "timeout": "1m"},
        {"id": "sleep", "wait": {"duration": "1h"}, "depends_on": ["pay"]},
    ]
    async with client(core) as boss:
        await boss.create(flow(*steps, sum={"$expr": "steps.pay.result.sum"}))
        execution_id, cancelled = await boss.run({"order": "a"}), await boss.run({"order": "b"})
        await trio.sleep(61)
        assert rows(world) == ["interests"]
        await boss.emit("paid", data={"order": "a", "sum": 5})
        await boss.do(Op.CANCEL_EXECUTION, cancelled)
        await all_taken(core, world)
        await trio.sleep(3600)
        assert await result(boss, execution_id) == '{"sum":0}'
        assert rows(world) == []


async def test_a_retried_execution_waits_again(core: Core, world: World) -> None:
    async with client(core) as boss:
        await boss.create(flow({"id": "pay", "wait": waiting(), "timeout": "1m"}, n={"$expr": "steps.pay.result.n"}))
        execution_id = await boss.run({"order": "a"})
        assert (await boss.ended(execution_id))["execution"]["Status"] == "failed"
        assert rows(world) == []
        await boss.do(104, execution_id)
        await boss.emit("paid", data={"order": "a", "n": 2})
        assert await result(boss, execution_id) == '{"n":2}'


async def test_many_waits_for_one_event_take_several_transactions(
    core: Core, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_handler, "TURN_COST", 50)
    monkeypatch.setattr(unfinished_events, "TIMER_COST", 30)
    async with client(core) as boss:
        await boss.create(flow({"id": "go", "wait": {"event": "go"}}, n={"$expr": "steps.go.result.n"}))
        ids = [await boss.run() for _ in range(30)]
        await boss.emit("go", data={"n": 1})
        late = await boss.run()
        await boss.emit("other")
        await all_taken(core, world)
        assert await running(boss) in ({late}, set())
        for one in ids:
            assert await result(boss, one) == '{"n":1}'


async def test_the_latest_events_are_kept(core: Core, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "KEPT_EVENTS", 3)
    monkeypatch.setattr(waits, "PRUNE_EVERY", 1)
    steps = [
        {"id": "sleep", "wait": {"duration": "1m"}},
        {"id": "pay", "wait": {"event": "paid"}, "depends_on": ["sleep"]},
    ]
    async with client(core) as boss:
        await boss.create(flow(*steps, n={"$expr": "steps.pay.result.n"}))
        execution_id = await boss.run()
        for number in range(6):
            await boss.emit("paid", data={"n": number})
        await all_taken(core, world)
        assert world.databases["tasks"].query("SELECT COUNT(*) FROM workflow_kept_events") == [(3,)]
        assert await result(boss, execution_id) == '{"n":3}'
        monkeypatch.setattr(waits, "KEPT_BYTES", 100)
        execution_id = await boss.run()
        for number in range(6):
            await boss.emit("paid", data={"n": number, "text": "x" * 30})
        await all_taken(core, world)
        assert await result(boss, execution_id) == '{"n":4}'
        execution_id = await boss.run()
        for number in range(3):
            await boss.emit("paid", data={"n": number, "text": "x" * 300})
        await all_taken(core, world)
        assert await result(boss, execution_id) == '{"n":2}'


async def test_a_restart_loses_no_wait_and_no_event(world: World) -> None:
    steps = [
        {"id": "sleep", "wait": {"duration": "1m"}},
        {"id": "pay", "wait": waiting(), "depends_on": ["sleep"]},
        {"id": "ship", "wait": waiting("shipped")},
    ]
    settings = {"workflow": {"engine": "embedded"}}
    async with deadlock_is_an_error():
        async with world.open(**settings) as core, client(core) as boss:  # type: ignore[arg-type]
            await boss.create(flow(*steps, n={"$expr": "steps.pay.result.n + steps.ship.result.n"}))
            execution_id = await boss.run({"order": "a"})
            await boss.emit("paid", data={"order": "a", "n": 1})
            await all_taken(core, world)
        async with world.open(**settings) as core, client(core) as boss:  # type: ignore[arg-type]
            await boss.emit("shipped", data={"order": "a", "n": 2})
            assert await result(boss, execution_id) == '{"n":3}'


@pytest.mark.parametrize("seed", range(3))
async def test_random_events_reach_the_waits_that_they_should(world: World, seed: int) -> None:
    """Executions take the first event that fits since their begin."""
    random = Random(seed)
    steps = [
        {"id": "sleep", "wait": {"duration": "{{.trigger.nap}}s"}},
        {
            "id": "pay", "depends_on": ["sleep"],
            "wait": waiting(condition="int(input.n) % 2 == int(trigger.odd)"),
        },
        {"id": "ship", "depends_on": ["pay"], "wait": {"event": "shipped", "key": "input.order", "equals": "trigger.order"}},
    ]  # fmt: skip
    outputs = {"paid": {"$expr": "steps.pay.result.n"}, "shipped": {"$expr": "steps.ship.result.n"}}
    started: dict[str, tuple[int, dict[str, Any]]] = {}
    events: list[tuple[str, str]] = []
    async with deadlock_is_an_error():
        for life in range(3):
            async with world.open(workflow={"engine": "embedded"}) as core, client(core) as boss:
                if not life:
                    await boss.create(flow(*steps, **outputs))
                for _ in range(20):
                    order = random.choice("abc")
                    match random.randrange(5):
                        case 0 | 1:
                            given = {"order": order, "nap": random.choice((1, 20, 200)), "odd": random.randrange(2)}
                            started[await boss.run(given)] = len(events), given
                        case 2:
                            await trio.sleep(random.choice((1, 30)))
                        case _:
                            name = random.choice(("paid", "shipped"))
                            await boss.emit(name, data={"order": order, "n": len(events)})
                            events.append((name, order))
                            await all_taken(core, world)
        async with world.open(workflow={"engine": "embedded"}) as core, client(core) as boss:
            await trio.sleep(300)
            wanted: dict[str, str | None] = {}
            for execution_id, (begin, given) in started.items():
                mine = [(n, name) for n, (name, order) in enumerate(events) if n >= begin and order == given["order"]]
                paid = next((n for n, name in mine if name == "paid" and n % 2 == given["odd"]), None)
                shipped = next((n for n, name in mine if name == "shipped"), None)
                both = paid is not None and shipped is not None
                wanted[execution_id] = f'{{"paid":{paid},"shipped":{shipped}}}' if both else None
            found = {one: (await boss.task(one)).metadata.get("_result") for one in started}
            assert found == wanted
            for execution_id in await running(boss):
                await boss.do(Op.CANCEL_EXECUTION, execution_id)
            assert rows(world) == []


async def test_what_came_while_an_execution_worked_is_for_the_next_one_of_its_chain(core: Core, world: World) -> None:
    """No event is lost between two executions, and none is taken by both."""
    steps = [
        {"id": "take", "wait": {"event": "paid"}},
        {"id": "work", "depends_on": ["take"], "wait": {"signal": "worked"}},
        {"id": "next", "depends_on": ["work"], "continue_as": {"input": {"$expr": "steps.take.result"}}},
    ]
    async with client(core) as boss:
        await boss.create(flow(*steps))
        await boss.emit("paid", data={"n": -1})
        one = await boss.run()
        for number in range(3):
            await boss.emit("paid", data={"n": number})
        for number in range(3):
            await all_taken(core, world)
            await boss.do(101, one, "worked")
            one = (await boss.ended(one))["execution"]["Result"]["continued_as"]
            found = await boss.execution(one)
            assert found["execution"]["TriggerData"] == {"n": number}
        assert {each["StepID"]: each["Status"] for each in found["steps"]}["take"] == "waiting"
        assert world.databases["tasks"].query("SELECT execution_id, after_number FROM workflow_interests") == [(one, 3)]
        assert rows(world, "taken_events") == []
        await boss.do(Op.CANCEL_EXECUTION, one)
        assert rows(world) == []


async def test_an_event_has_few_different_keys(core: Core, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "MOST_KEYS", 3)
    keys = ["input.a", "input.b", "input.c"]
    three = [{"id": f"s{number}", "wait": waiting(key=key)} for number, key in enumerate(keys)]
    text = "executions wait for event 'paid' in workspace w by 3 different keys, and this would be 1 more"
    async with client(core) as boss, client(core, "hand") as hand:
        await boss.create(flow(*three))
        await boss.create(flow({"id": "a", "wait": waiting(key="input.d")}), "other")
        await boss.create(flow(*three, {"id": "a", "wait": waiting(key="input.d")}), "many")
        await boss.create(flow({"id": "a", "wait": waiting("made", key="input.d")}), "else")
        for known in (False, True):
            one = await boss.run({"order": 1})
            for name in ("other", "many"):
                answer = await boss.ask(100, name, data={"order": 1})
                assert text in answer.error, (name, known)
        await boss.run({"order": 1}, "else")
        await hand.do(120, "act", data={})
        await hand.do(120, "takes", data={"events": {"paid": "input.d"}})
        assert text in (await boss.ask(100, "takes", data={})).error
        run = await boss.run({}, "act")
        await hand.operate(run, pb.TaskOperation.CLAIM)
        waits_for = {"do": "open", "step": "s", "kind": "wait", "event": "paid", "key": "input.d", "equals": 1}
        answer = await hand.do(121, run, data={"assignment": 1, "after": 0, "do": [waits_for]})
        assert text in answer["entries"][-1]["entry"]["error"]
        for execution in await running(boss):
            await boss.do(Op.CANCEL_EXECUTION, execution)
        assert one not in await running(boss)
        await boss.run({"order": 1}, "other")


async def test_schedules_after_an_event_count_for_its_transaction(
    core: Core, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = {"schedule_type": "event_delayed", "schedule_expr": "1m", "event": "paid", "workspace": "w"}
    schedule["action"] = {"type": "emit_event", "event_name": "late"}
    monkeypatch.setattr(event_handler, "TURN_COST", 2 * event_handler.ACTION_COST)
    pages = list[int]()
    page = event_handler.EventHandler._page

    def noted(self: Any, tx: Any, events: Any) -> Any:
        done = yield from page(self, tx, events)
        pages.append(done)
        return done

    monkeypatch.setattr(event_handler.EventHandler, "_page", noted)
    async with client(core) as boss:
        for name in ("a", "b"):
            await boss.do(Op.CREATE_SCHEDULE, data={"id": name, **schedule})
        payload = json.dumps({"event_names": ["paid"], "data": {}}).encode()
        boss.link.send(*(message_to("event::*", payload, pb.EVENT) for _ in range(20)))
        await barrier(boss.link)
        await all_taken(core, world)
        assert sum(pages) >= 20
        assert max(pages) == 1
        assert [one["planned"] for one in await boss.do(Op.LIST_SCHEDULES)] == [20, 20]
