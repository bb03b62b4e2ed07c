"""What a client asks of workflows is done once, though its commit is not answered."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import pytest
import trio
from standardwebhooks import Webhook

from aether_trio.gateway.core import Core
from aether_trio.services.tasks.handlers.dead_letters import DeadLetters
from aether_trio.services.workflows.operations.function_operations import REGISTER_FUNCTION
from aether_trio.services.workflows.webhooks.accepting import CHANGE_WEBHOOK
from tests.helpers.core import World, deadlock_is_an_error, pump
from tests.services.workflows.helpers import Client, Op, all_taken, client

BACKFILL = 112
CANCEL, SIGNAL, PAUSE, RESUME, RETRY, HISTORY, ANSWER = Op.CANCEL_EXECUTION, 101, 102, 103, 104, 105, 106


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


async def status(boss: Client, execution_id: str) -> str:
    found: str = (await boss.execution(execution_id))["execution"]["Status"]
    return found


async def test_a_signal_is_delivered_once(core: Core, world: World) -> None:
    steps = [{"id": "a", "wait": {"signal": "go"}}, {"id": "b", "depends_on": ["a"], "wait": {"signal": "go"}}]
    async with client(core) as boss:
        await boss.create({"steps": steps})
        one = await boss.run()
        world.databases["tasks"].unanswered_writes = 1
        await boss.do(SIGNAL, one, "go")
        assert await status(boss, one) == "running"
        await boss.do(SIGNAL, one, "go")
        assert await status(boss, one) == "completed"


async def test_a_signal_with_a_key_comes_once(core: Core, world: World) -> None:
    steps = [{"id": "a", "wait": {"signal": "go"}}, {"id": "b", "depends_on": ["a"], "wait": {"signal": "go"}}]
    async with client(core) as boss:
        await boss.create({"steps": steps})
        one, two = await boss.run(), await boss.run()
        refused = await boss.ask(SIGNAL, one, "stop", data=1, status_filter="k")
        assert "no step of the workflow waits" in refused.error
        for _ in range(2):  # a refused one leaves its key free
            await boss.do(SIGNAL, one, "go", data=1, status_filter="k")
        assert await status(boss, one) == "running"
        other = await boss.ask(SIGNAL, one, "go", data=2, status_filter="k")
        assert other.error.startswith("idempotency_key was used for another request before")
        await boss.do(SIGNAL, two, "go", data=2, status_filter="k")
        await boss.do(SIGNAL, one, "go", data=1, status_filter="l")
        assert await status(boss, one) == "completed"
        await boss.do(SIGNAL, one, "go", data=1, status_filter="l")
        assert "has ended" in (await boss.ask(SIGNAL, one, "go", data=1, status_filter="m")).error
        await boss.do(SIGNAL, two, "go", data=3)
        assert await status(boss, two) == "completed"


async def test_a_signal_that_ends_an_execution_is_answered(core: Core, world: World) -> None:
    async with client(core) as boss:
        await boss.create({"steps": [{"id": "a", "wait": {"signal": "go"}}]})
        one = await boss.run()
        world.databases["tasks"].unanswered_writes = 1
        await boss.do(SIGNAL, one, "go")
        assert await status(boss, one) == "completed"


async def test_an_answer_is_taken(core: Core, world: World) -> None:
    async with client(core) as boss:
        await boss.create({"steps": [{"id": "a", "ask": {"question": "yes?"}}]})
        one = await boss.run()
        world.databases["tasks"].unanswered_writes = 1
        await boss.do(ANSWER, one, "a", data={"approved": True})
        assert await status(boss, one) == "completed"


async def test_a_cancel_is_answered(core: Core, world: World) -> None:
    async with client(core) as boss:
        await boss.create({"steps": [{"id": "a", "wait": {"signal": "go"}}]})
        one = await boss.run()
        world.databases["tasks"].unanswered_writes = 1
        await boss.do(CANCEL, one)
        assert await status(boss, one) == "cancelled"


async def test_a_retry_is_answered(core: Core, world: World) -> None:
    async with client(core) as boss:
        await boss.create({"steps": [{"id": "a", "wait": {"signal": "go"}}]})
        one = await boss.run()
        await boss.do(CANCEL, one)
        world.databases["tasks"].unanswered_writes = 1
        await boss.do(RETRY, one)
        assert await status(boss, one) == "running"


async def test_a_retry_is_made_once(core: Core, world: World) -> None:
    async with client(core) as boss:
        await boss.create({"steps": [{"id": "a", "fail": "no"}]})
        one = await boss.run()
        world.databases["tasks"].unanswered_writes = 1
        await boss.do(RETRY, one)
        history = await boss.do(HISTORY, one)
        assert str(history).count("RetryAsked") == 1


async def test_a_pause_and_a_resume_are_answered(core: Core, world: World) -> None:
    async with client(core) as boss:
        await boss.create({"steps": [{"id": "a", "wait": {"signal": "go"}}]})
        one = await boss.run()
        for op in PAUSE, RESUME:
            world.databases["tasks"].unanswered_writes = 1
            await boss.do(op, one)


@pytest.mark.parametrize(
    "bound",
    [
        {"flow": {"concurrency": {"limit": 1}}},
        {"flow": {"idempotency": {"key": "trigger.n", "period": "1h"}}},
        {"flow": {"rate": {"limit": 2, "period": "1h"}}},
        {"max_executions": 1},
    ],
)
async def test_a_start_that_has_ended_by_then_leaves_no_place_taken(
    core: Core, world: World, bound: dict[str, Any]
) -> None:
    async with client(core) as boss:
        await boss.create({"steps": [{"id": "a", "output": 1}], **bound})
        for number in range(2):
            world.databases["tasks"].unanswered_writes = 1
            one = await boss.run({"n": number})
            assert await status(boss, one) == "completed"


async def test_a_batch_takes_a_start_once(core: Core, world: World) -> None:
    async with client(core) as boss:
        await boss.create(
            {
                "steps": [{"id": "a", "output": {"$expr": "len(trigger.items)"}}],
                "flow": {"batch": {"size": 2, "timeout": "1m"}},
            }
        )
        one = await boss.run({"n": 1})
        world.databases["tasks"].unanswered_writes = 1
        two = await boss.run({"n": 2})
        await trio.sleep(120)
        assert two == one
        assert len(await boss.tasks(workspace="w", task_type="workflow_run")) == 1


async def test_what_is_applied_is_told_with_its_secret(core: Core, world: World) -> None:
    documents = [
        {"id": "g", "steps": [{"id": "a", "output": 1}]},
        {"kind": "webhook", "name": "h", "event": "e"},
    ]
    async with client(core) as boss:
        for changes in (["created", "created"], ["unchanged", "unchanged"]):
            world.databases["tasks"].unanswered_writes = 1
            applied = (await boss.do(107, data={"documents": documents}, workspace="w"))["applied"]
            assert [one["change"] for one in applied] == changes
            assert applied[1].get("secret", "").startswith("whsec_") == (changes[1] == "created")


async def test_what_is_applied_is_told_though_other_nodes_cannot_be_asked(core: Core, world: World) -> None:
    """Its secret is told once, so the answer is not that storage is away."""
    tasks = world.databases["tasks"]
    async with client(core) as boss, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def go_away_when_it_is_written() -> None:
            while not tasks.query("SELECT 1 FROM workflow_webhooks"):
                await trio.lowlevel.checkpoint()
            tasks.failing = True

        answer = await boss.ask(107, data={"documents": [HOOK]}, workspace="w")
        tasks.failing = False
        assert answer.success, answer.error
        assert json.loads(answer.data)["applied"][0]["secret"].startswith("whsec_")
        assert "as storage does not answer" in answer.message


async def test_a_schedule_is_created_once(core: Core, world: World) -> None:
    action = {"type": "emit_event", "event_name": "tick"}
    data = {"id": "s", "schedule_type": "interval", "schedule_expr": "1m", "workspace": "w", "action": action}
    async with client(core) as boss:
        world.databases["tasks"].unanswered_writes = 1
        await boss.do(Op.CREATE_SCHEDULE, data=data)
        assert "already" in (await boss.ask(Op.CREATE_SCHEDULE, data=data)).error


async def test_a_backfill_is_planned_once(core: Core, world: World) -> None:
    """Also if its slots have fired before its program runs again."""
    action = {"type": "emit_event", "event_name": "tick"}
    data = {"id": "s", "schedule_type": "interval", "schedule_expr": "1h", "workspace": "w", "action": action}

    async def look_for_what_is_due() -> None:
        while True:
            core.tasks.engine.timer.look()
            await trio.sleep(0.01)

    async with client(core) as boss:
        await boss.do(Op.CREATE_SCHEDULE, data=data)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look_for_what_is_due)
            world.databases["tasks"].unanswered_writes = 1
            between = {"from": "2023-11-14T12:00:00Z", "until": "2023-11-14T18:00:00Z"}
            assert "6 slots" in (await boss.ask(BACKFILL, "s", data=between)).message
            nursery.cancel_scope.cancel()
        await trio.sleep(10)
        [found] = await boss.do(Op.LIST_SCHEDULES)
        assert (found["fired"], found["planned"]) == (6, 0)


GRAPH = {"id": "g", "steps": [{"id": "a", "output": 1}]}
MACHINE = {"id": "m", "initial_state": "open", "states": {"open": {"on": {"close": "closed"}}, "closed": {}}}
HOOK = {"kind": "webhook", "name": "h", "event": "e"}


@pytest.mark.parametrize(
    ("op", "about", "second", "data"),
    [
        (Op.CREATE_WORKFLOW, "", "", {"ID": "new", "Version": 1, "Workspace": "w", "Definition": GRAPH}),
        (Op.DELETE_WORKFLOW, "g", "", None),
        (Op.DELETE_STATE_MACHINE, "m", "", None),
        (CHANGE_WEBHOOK, "h", "rotate", None),
        (CHANGE_WEBHOOK, "h", "delete", None),
        (REGISTER_FUNCTION, "f", "", {}),
    ],
)
async def test_a_definition_is_changed_once(
    core: Core, world: World, op: int, about: str, second: str, data: Any
) -> None:
    async with client(core) as boss:
        await boss.do(107, data={"documents": [GRAPH, MACHINE, HOOK]}, workspace="w")
        await pump()
        world.databases["tasks"].unanswered_writes = 1
        await boss.do(op, about, second, data=data, workspace="w")
        assert world.databases["tasks"].unanswered_writes == 0


async def test_the_secret_before_a_rotation_stays_valid(core: Core, world: World) -> None:
    async with client(core) as boss:
        applied = (await boss.do(107, data={"documents": [HOOK]}, workspace="w"))["applied"]
        await pump()
        world.databases["tasks"].unanswered_writes = 1
        made = await boss.do(CHANGE_WEBHOOK, "h", "rotate", workspace="w")
        assert world.databases["tasks"].unanswered_writes == 0
        moment = datetime.fromtimestamp(core.clock.now_ms() / 1000, UTC)

        async def read(_known: bool) -> bytes:
            return b"{}"

        for name, secret in (("before", applied[0]["secret"]), ("new", made["secret"])):
            headers = {
                "webhook-id": name,
                "webhook-timestamp": str(int(moment.timestamp())),
                "webhook-signature": Webhook(secret).sign(name, moment, "{}"),
            }
            assert core.webhooks is not None
            answer = await core.webhooks.receive("w", "h", headers, "192.0.2.1:1", read)
            assert answer.status is HTTPStatus.ACCEPTED


async def test_a_dead_letter_is_requeued_and_resolved(core: Core, world: World) -> None:
    rule = {"rule_name": "r", "source_event": "e", "destination_template": {"agent": "{{.input.no}}"}}
    letters = DeadLetters(core.tasks.engine)
    async with client(core) as boss:
        await boss.do(107, data={"documents": [rule]}, workspace="w")
        await boss.emit("e", data={})
        await all_taken(core, world)
        [letter] = await letters.page()
        mended = {**rule, "destination_template": {"type": "emit_event", "event_name": "done"}}
        await boss.do(107, data={"documents": [mended]}, workspace="w")
        await pump()
        world.databases["tasks"].unanswered_writes = 1
        assert await letters.requeue(letter.task_id, "ops")
        assert not await letters.requeue(letter.task_id, "ops")
        await boss.do(107, data={"documents": [rule]}, workspace="w")
        await boss.emit("e", data={})
        await all_taken(core, world)
        [letter] = await letters.page()
        world.databases["tasks"].unanswered_writes = 1
        assert await letters.resolve(letter.task_id, "ops")
        assert not await letters.resolve(letter.task_id, "ops")
