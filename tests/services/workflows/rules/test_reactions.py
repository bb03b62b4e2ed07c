"""What follows events: rules and triggers act once each, for those who may."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
import trio

from aether_trio.client.operations.workflow import APPLY
from aether_trio.gateway.core import Core
from aether_trio.model.access import AccessLevel
from aether_trio.services.tasks.handlers.dead_letters import DeadLetters
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.workflows.actions.event_dead_letters import EVENT_FAILED, RULE_FAILED, TRIGGER_FAILED
from aether_trio.services.workflows.events.intake import StalePageError
from aether_trio.services.workflows.events.taken_events import TakenEvent
from aether_trio.services.workflows.rules import event_handler, unfinished_events
from aether_trio.services.workflows.rules.reactions import EventReactions, Turn
from aether_trio.storage.base import Program
from aether_trio.testing.memory import MemoryLink, message_to
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect, deadlock_is_an_error
from tests.services.workflows.helpers import Client, all_taken, client, let_agents, let_only, worker

Op = pb.WorkflowOperation
TaskOp = pb.TaskOperation


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


def rule(destination: Any, name: str = "first", **more: Any) -> dict[str, Any]:
    """Return a rule of workspace w for the event "made"."""
    return {
        "rule_name": name, "source_event": "made", "workspace": "w", "destination_template": destination, **more,
    }  # fmt: skip


def tell(said: str, to: str = "hand") -> dict[str, Any]:
    """Return a destination: a message with what the event says."""
    return {"agent": to, "tool_name": said, "arguments": {"input": {"$expr": "input"}}}


async def told(link: MemoryLink, core: Core, world: World) -> list[Any]:
    """Return what an agent was sent, once all events are handled."""
    await all_taken(core, world)
    found = []
    with trio.move_on_after(1):
        while True:
            message = (await link.next("msg")).msg
            assert message.message_type == pb.CONTROL
            found.append(json.loads(message.payload))
    return found


def sent(world: World, kind: pb.MessageType.ValueType = pb.CONTROL) -> list[pb.IncomingMessage]:
    """Return the messages of the log that are of a kind."""
    found = world.log.query("SELECT data FROM messages ORDER BY message_key")
    messages = [pb.DownstreamMessage.FromString(data).msg for (data,) in found]
    return [one for one in messages if one.message_type == kind]


async def dead_letters(boss: Client, **filters: Any) -> list[pb.TaskInfo]:
    """Return the dead letters of events in workspace w."""
    found = await boss.tasks(workspace="w", **filters)
    return [task for task in found if task.task_type in (RULE_FAILED, TRIGGER_FAILED, EVENT_FAILED)]


async def test_a_rule_sends_a_message(core: Core, world: World) -> None:
    template = """
agent: hand
tool_name: greet
arguments:
  who: "{{.input.who}}"
  count: {{.input.count}}
metadata: {from: "{{.source.agent}}/{{.source.workspace}}/{{.source.event}}/{{.source.principal}}"}
"""
    async with client(core) as boss, connect(core, agent("w", "hand", "default")) as hand:
        await boss.do(Op.CREATE_RULE, data=rule(template))
        await boss.emit("other", data={"who": "bob", "count": 1})
        await boss.emit("made", data={"who": "ann", "count": 5})
        metadata = {"from": "boss/w/made/ag::w::boss::1"}
        assert await told(hand, core, world) == [
            {"tool_name": "greet", "arguments": {"who": "ann", "count": 5}, "metadata": metadata}
        ]


async def test_a_rule_creates_a_task(core: Core, world: World) -> None:
    destination = {
        "type": "create_task", "task_type": "job", "target_implementation": "hand",
        "payload": {"order": {"$expr": "input.order"}}, "metadata": {"size": {"$expr": "input.size"}},
        "correlation_id": "{{.input.order}}", "priority": 3, "idempotency_key": "{{.input.order}}",
        "retry": {"max_attempts": 4, "initial": "2s"},
    }  # fmt: skip
    async with client(core) as boss:
        await boss.do(Op.CREATE_RULE, data=rule(destination))
        await boss.emit("made", data={"order": "o1", "size": 5})
        await all_taken(core, world)
        [task] = await boss.tasks(workspace="w", task_type="job")
        assert (task.correlation_id, task.priority, task.metadata["size"]) == ("o1", 3, "5")
        assert json.loads(task.metadata["_hops"]) == ["rule:first"]
        [[payload, policy]] = world.databases["tasks"].query("SELECT payload, retry_policy FROM tasks")
        assert json.loads(payload) == {"order": "o1"}
        assert json.loads(policy)["max_attempts"] == 4
        await boss.emit("made", data={"order": "o1", "size": 6})
        await all_taken(core, world)
        [dead] = await dead_letters(boss)
        assert "idempotency_key 'o1'" in dead.error


async def test_no_data_of_an_event_is_the_key_of_a_run(core: Core, world: World) -> None:
    destination = {
        "type": "create_task", "task_type": "job", "target_implementation": "hand",
        "idempotency_key": {"$expr": "input.key"},
    }  # fmt: skip
    parts = ["run", "w", "flow", "k"]
    async with client(core) as boss:
        await boss.do(Op.CREATE_RULE, data=rule(destination))
        await boss.create({"steps": [{"id": "a", "output": 1}]})
        forged = ["workflow_run\0flow\0k", "\0".join(parts), json.dumps(parts), "workflow_run flow k", "k"]
        for key in forged:
            await boss.emit("made", data={"key": key})
        await all_taken(core, world)
        assert len(await boss.tasks(workspace="w", task_type="job")) == 3
        dead = [one.error for one in await dead_letters(boss)]
        assert len(dead) == 2
        assert all("has a zero byte" in one for one in dead)
        jobs = {one.task_id for one in await boss.tasks(workspace="w", task_type="job")}
        run = await boss.do(100, "flow", "k", data={})
        assert run["execution_id"] not in jobs
        assert (await boss.execution(run["execution_id"]))["execution"]["Status"] == "completed"


async def test_an_emitted_event_reaches_rules_and_starts_workflows(core: Core, world: World) -> None:
    emit = {"type": "emit_event", "event_name": "passed_on", "payload": {"n": {"$expr": "input.n + 1"}}}
    flow = {
        "name": "flow",
        "trigger": {"event": "passed_on", "source_agent": "workflow-engine", "condition": "input.n == 6"},
        "steps": [{"id": "say", "output": {"$expr": "trigger.n * 2"}}],
    }
    async with client(core) as boss, connect(core, agent("w", "hand", "default")) as hand:
        await boss.create(flow)
        await boss.do(Op.CREATE_RULE, data=rule(emit))
        await boss.do(Op.CREATE_RULE, data=rule(tell("hear"), "second", source_event="passed_on"))
        await boss.emit("made", data={"n": 5})
        [heard] = await told(hand, core, world)
        assert heard["arguments"] == {"input": {"n": 6}}
        [run] = await boss.do(Op.LIST_EXECUTIONS, status_filter="all")
        assert (run["Status"], run["TriggerData"]) == ("completed", {"n": 6})
        await boss.emit("made", data={"n": 6})
        assert len(await told(hand, core, world)) == 1
        assert len(await boss.do(Op.LIST_EXECUTIONS, status_filter="all")) == 1
        assert await dead_letters(boss) == []


async def test_all_rules_that_match_act_by_priority(core: Core, world: World) -> None:
    async with client(core) as boss, connect(core, agent("w", "hand", "default")) as hand:
        rules: dict[str, dict[str, Any]] = {
            "late": {"priority": -1},
            "plain": {},
            "early": {"priority": 7},
            "also_plain": {},
            "of_boss": {"source_agent": "boss", "priority": 1},
            "of_other": {"source_agent": "other", "priority": 1},
            "holds": {"trigger_condition": "input.n > 4 && source.agent == 'boss'"},
            "fails": {"trigger_condition": "input.n > 5"},
            "equal": {"trigger_condition": "input.kind == 'a' and input.n == 5"},
            "unequal": {"trigger_condition": "input.kind == 'b'"},
        }
        for name, more in rules.items():
            await boss.do(Op.CREATE_RULE, data=rule(tell(name), name, **more))
        made = await boss.do(Op.CREATE_RULE, data=rule(tell("off"), "off"))
        await boss.do(Op.UPDATE_RULE, str(made["ID"]), data=rule(tell("off"), "off", active=False))
        await boss.emit("made", data={"n": 5, "kind": "a"})
        found = [one["tool_name"] for one in await told(hand, core, world)]
        # Messages of one transaction have no order in the outbox.
        assert sorted(found) == ["also_plain", "early", "equal", "holds", "late", "of_boss", "plain"]
        ids = world.databases["tasks"].query("SELECT id, name FROM workflow_rules ORDER BY id")
        names: dict[int, str] = dict(ids)
        env = {"input": {"n": 5.0, "kind": "a"}, "source": {}}
        order = core.workflows.intake._handle.__self__._reactions.rules.candidates("made", "boss", "w", env)  # type: ignore[attr-defined]
        assert [names[one.id] for one in order][:3] == ["early", "of_boss", "plain"]
        assert names[order[-1].id] == "late"


async def test_every_name_of_an_event_counts_alone(core: Core, world: World) -> None:
    async with client(core) as boss, connect(core, agent("w", "hand", "default")) as hand:
        await boss.do(Op.CREATE_RULE, data=rule(tell("{{.source.event}}")))
        await boss.do(Op.CREATE_RULE, data=rule(tell("{{.source.event}}"), "second", source_event="also"))
        await boss.emit("made", "also", "made")
        assert sorted(one["tool_name"] for one in await told(hand, core, world)) == ["also", "made"]


async def test_what_a_rule_cannot_do_is_a_dead_letter_and_others_go_on(core: Core, world: World) -> None:
    async with client(core) as boss, connect(core, agent("w", "hand", "default")) as hand:
        let_only(core, boss="w")
        bad = {
            "condition": rule(tell("x"), "condition", trigger_condition="input.a.b > 1"),
            "no_bool": rule(tell("x"), "no_bool", trigger_condition="input.n"),
            "template": rule("agent: {{.input.a.b}}", "template"),
            "yaml": rule("agent: hand\n{{if .input.text}}arguments: [{{end}}", "yaml"),
            "action": rule("type: create_task", "action"),
            "workspace": rule({**tell("x"), "workspace": "{{.input.where}}"}, "workspace"),
            "written": rule({**tell("x"), "workspace": "elsewhere"}, "written"),
            "join": rule({"type": "join", "join": {"name": "j", "correlation_key": "input.none"}}, "join"),
        }
        for one in bad.values():
            answer = await boss.ask(Op.CREATE_RULE, data=one)
            assert answer.success == (one["rule_name"] not in ("action", "written")), answer.error
        await boss.do(Op.CREATE_RULE, data=rule(tell("good"), "good", priority=-1))
        await boss.emit("made", data={"n": 5, "text": "t", "where": "elsewhere"})
        assert [one["tool_name"] for one in await told(hand, core, world)] == ["good"]
        dead = {one.metadata["name"]: one for one in await dead_letters(boss)}
        assert set(dead) == {"condition", "no_bool", "template", "yaml", "workspace", "join"}
        for letter in dead.values():
            assert letter.task_type == "workflow_rule"
            assert letter.metadata["_dead_letter"] == "true"
            assert letter.metadata["event"] == "made"
            assert letter.metadata["source"] == "ag::w::boss::1"
            assert letter.metadata["reason"] == letter.error
        assert "may not act in workspace elsewhere" in dead["workspace"].error
        assert "no_bool" in dead["no_bool"].error


async def test_a_dead_letter_acts_again(core: Core, world: World) -> None:
    async with client(core) as boss, connect(core, agent("w", "hand", "default")) as hand:
        made = await boss.do(Op.CREATE_RULE, data=rule(tell("x"), trigger_condition="input.a.b > 1"))
        await boss.do(Op.CREATE_RULE, data=rule(tell("sibling"), "second"))
        await boss.emit("made", data={"n": 5})
        assert len(await told(hand, core, world)) == 1
        [dead] = await dead_letters(boss)

        async def retry() -> pb.TaskOperationResponse:
            request = TaskOp(op=TaskOp.RETRY, task_id=dead.task_id, request_id="r")
            boss.link.send(pb.UpstreamMessage(task_op=request))
            return (await boss.link.next("task_op")).task_op

        answer = await retry()
        assert answer.success, answer.error
        assert answer.task.status == pb.TASK_STATUS_FAILED
        assert answer.task.metadata["_dead_letter"] == "true"
        assert await told(hand, core, world) == []
        await boss.do(Op.UPDATE_RULE, str(made["ID"]), data=rule(tell("mended")))
        assert (await retry()).task.status == pb.TASK_STATUS_COMPLETED
        [message] = await told(hand, core, world)
        assert (message["tool_name"], message["arguments"]) == ("mended", {"input": {"n": 5}})
        assert not (await retry()).success
        assert await told(hand, core, world) == []
        assert world.databases["tasks"].query("SELECT task_id FROM task_dead_letters WHERE resolved_ms = 0") == []


async def test_a_trigger_that_cannot_start_is_a_dead_letter(core: Core, world: World) -> None:
    flow = {
        "name": "flow",
        "trigger": {"event": "made"},
        "inputs": {"n": "integer"},
        "steps": [{"id": "say", "output": {"$expr": "trigger.n"}}],
    }
    async with client(core) as boss:
        await boss.create(flow)
        await boss.emit("made", data={"n": "five"})
        await boss.emit("made", data={"n": 5})
        await all_taken(core, world)
        [dead] = await dead_letters(boss)
        assert (dead.task_type, dead.metadata["workflow"]) == ("workflow_trigger", "w flow")
        assert "five" in dead.error
        assert len(await boss.do(Op.LIST_EXECUTIONS, status_filter="all")) == 1
        await boss.create({**flow, "inputs": {"n": "string"}}, version=2)
        boss.link.send(pb.UpstreamMessage(task_op=TaskOp(op=TaskOp.RETRY, task_id=dead.task_id, request_id="r")))
        assert (await boss.link.next("task_op")).task_op.task.status == pb.TASK_STATUS_COMPLETED
        runs = await boss.do(Op.LIST_EXECUTIONS, status_filter="all")
        assert [one["WorkflowVersion"] for one in runs] == [2, 1]
        await boss.do(Op.DELETE_WORKFLOW, "flow")
        await boss.emit("made", data={"n": "six"})
        await all_taken(core, world)
        assert len(await boss.do(Op.LIST_EXECUTIONS, status_filter="all")) == 2


async def test_the_newest_active_version_is_started(core: Core, world: World) -> None:
    def flow(event: str) -> dict[str, Any]:
        return {"name": "flow", "trigger": {"event": event}, "steps": [{"id": "say", "output": {"$expr": "1"}}]}

    async with client(core) as boss:
        await boss.create(flow("made"))
        await boss.create(flow("sold"), version=2)
        await boss.emit("made")
        await boss.emit("sold")
        await all_taken(core, world)
        [run] = await boss.do(Op.LIST_EXECUTIONS, status_filter="all")
        assert run["WorkflowVersion"] == 2
        assert run["Metadata"]["owner"] == "ag::w::boss::1"


async def test_the_owner_needs_the_right_when_the_rule_acts(core: Core, world: World) -> None:
    async with (
        client(core) as boss,
        client(core, "clerk") as clerk,
        connect(core, agent("w", "hand", "default")) as hand,
    ):
        await clerk.do(Op.CREATE_RULE, data=rule(tell("x")))
        await boss.emit("made", data=1)
        assert len(await told(hand, core, world)) == 1
        let_only(core, AccessLevel.READ, clerk="w")
        await boss.emit("made", data=2)
        assert await told(hand, core, world) == []
        let_only(core, boss="w")
        let_only(core, AccessLevel.NONE, clerk="w")
        await boss.emit("made", data=3)
        assert await told(hand, core, world) == []
        found = world.databases["tasks"].query(
            "SELECT creator, error FROM tasks WHERE status = 'dlq' ORDER BY order_us"
        )
        assert [creator for creator, _ in found] == ["ag::w::clerk::1", ""], "one may not read the second event"
        assert all("ag::w::clerk::1 may not act in workspace w" in error for _, error in found)


async def test_a_rule_of_all_workspaces_takes_what_its_owner_may_read(core: Core, world: World) -> None:
    let_agents(core, AccessLevel.MANAGE)
    destination = tell("{{.source.workspace}}")
    async with (
        client(core) as boss,
        connect(core, agent("w", "hand", "default")) as hand,
        connect(core, agent("x", "xenia", "1")) as x,
        connect(core, agent("y", "yves", "1")) as y,
    ):
        await boss.do(Op.CREATE_RULE, data=rule({**destination, "workspace": "w"}, workspace="*"))
        let_only(core, boss="w x", xenia="x", yves="y")
        for link in (x, y):
            await Client(link).emit("made", data=1)
        await boss.emit("made", data=2)
        assert sorted(one["tool_name"] for one in await told(hand, core, world)) == ["w", "x"]
        assert world.databases["tasks"].query("SELECT task_id FROM task_dead_letters") == []


async def test_an_event_does_not_say_where_it_comes_from(core: Core, world: World) -> None:
    let_agents(core, AccessLevel.MANAGE)
    async with client(core) as boss, connect(core, agent("x", "liar", "1")) as x:
        await boss.do(Op.CREATE_RULE, data=rule(tell("x")))
        await boss.do(Op.CREATE_RULE, data=rule(tell("x"), "second", source_agent="workflow-engine"))
        let_only(core, boss="w", liar="x")
        await Client(x).emit("made", data=1, workspace="w", source_agent="workflow-engine")
        await all_taken(core, world)
        assert sent(world) == []
        await boss.emit("made", data=1, source_agent="workflow-engine", event_id="1")
        await boss.emit("made", data=1, source_agent="workflow-engine", event_id="1")
        await all_taken(core, world)
        assert len(sent(world)) == 2, "an id of a client counts for nothing"


HOSTILE = [
    "x: {y: z}", "[1, 2]", "}\nagent: evil", "*anchor", "&a [*a]", "!!python/object:os.system", "- a\n- b", "'", '"',
    "{{.input}}", "true", "5", "null", "", "\u2028", "a\nb", "a: b # c", "| \n x", "\U0001f600", "${x}", "\\",
]  # fmt: skip


@pytest.mark.parametrize("place", ["{{.input.text}}", "'{{.input.text}}'", '"{{.input.text}}"', "x {{.input.text}}"])
async def test_what_an_event_says_is_never_structure(core: Core, world: World, place: str) -> None:
    template = f"agent: hand\ntool_name: use\narguments:\n  text: {place}"
    async with client(core) as boss, connect(core, agent("w", "hand", "default")) as hand:
        await boss.do(Op.CREATE_RULE, data=rule(template))
        for text in HOSTILE:
            await boss.emit("made", data={"text": text})
        found = await told(hand, core, world)
        assert len(found) == len(HOSTILE)
        assert {one["tool_name"] for one in found} == {"use"}
        said = [one["arguments"].pop("text") for one in found]
        assert all(one["arguments"] == {} for one in found)
        before = "x " if place.startswith("x") else ""
        assert {one for one in said if isinstance(one, str)} <= {before + text for text in HOSTILE}
        assert all(one is None or isinstance(one, str | bool | int) for one in said)


async def test_changes_of_rules_count_at_once(core: Core, world: World) -> None:
    async with client(core) as boss:
        for number in range(5):
            made = await boss.do(Op.CREATE_RULE, data=rule(tell("x"), f"r{number}"))
            await boss.emit("made")
            await all_taken(core, world)
            assert len(sent(world)) == 2 * number + 1
            await boss.do(Op.UPDATE_RULE, str(made["ID"]), data=rule(tell("x"), f"r{number}", active=False))
            await boss.emit("made")
            await boss.do(Op.UPDATE_RULE, str(made["ID"]), data=rule(tell("x"), f"r{number}", source_event="sold"))
            await boss.emit("made")
            await boss.emit("sold")
            await all_taken(core, world)
            assert len(sent(world)) == 2 * number + 2
            await boss.do(Op.DELETE_RULE, str(made["ID"]))
            await boss.emit("sold")


async def test_many_new_rules_are_compiled_before_the_transaction(core: Core, world: World) -> None:
    async with client(core) as boss:
        for number in range(30):
            await boss.do(Op.CREATE_RULE, data=rule(tell("x"), f"r{number}", trigger_condition=f"input.n == {number}"))
        await boss.emit("made", data={"n": 29})
        await all_taken(core, world)
        assert len(sent(world)) == 1
        known = core.workflows.intake._handle.__self__._reactions.rules  # type: ignore[attr-defined]
        known._version = known._sure = 1_000  # as of a database that was restored meanwhile
        await boss.emit("made", data={"n": 28})
        await all_taken(core, world)
        assert len(sent(world)) == 2


async def test_rules_are_loaded_before_the_first_event_after_a_start(world: World) -> None:
    async with world.open(workflow={"engine": "embedded"}) as core, client(core) as boss:
        for number in range(3):
            await boss.do(Op.CREATE_RULE, data=rule(tell("x"), f"r{number}"))
    async with world.open(workflow={"engine": "embedded"}) as core:
        known = core.workflows.intake._handle.__self__._reactions.rules  # type: ignore[attr-defined]
        with trio.fail_after(60):
            while len(known.index) < 3:
                await trio.sleep(0.1)


async def test_what_is_undone_is_not_remembered(core: Core, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that is undone may have read rules that were undone with it."""
    async with client(core) as boss:
        await boss.do(Op.CREATE_RULE, data=rule(tell("x")))
        await boss.emit("made")
        await all_taken(core, world)
        handler = core.workflows.intake._handle.__self__  # type: ignore[attr-defined]
        known = handler._reactions.rules
        # as after a transaction whose commit was not answered
        known._version, known._doubtful = 100, set(known.index)
        for key in list(known.index):
            known.index.remove(key)
        await boss.emit("made")
        await all_taken(core, world)
        assert len(sent(world)) == 2
        assert (known._sure, known._version) == (1, 1)


async def test_a_loop_of_rules_is_stopped_at_its_17th_hop(core: Core, world: World) -> None:
    def passes(name: str, event: str) -> dict[str, Any]:
        emit = {"type": "emit_event", "event_name": event, "payload": {"n": {"$expr": "input.n + 1"}}}
        return rule(emit, name, source_event="ping" if event == "pong" else "pong")

    async with client(core) as boss:
        await boss.do(Op.CREATE_RULE, data=passes("to", "pong"))
        await boss.do(Op.CREATE_RULE, data=passes("fro", "ping"))
        await boss.emit("ping", data={"n": 0})
        await all_taken(core, world)
        [dead] = await dead_letters(boss)
        assert "stopped after 16 hops: rule:to → rule:fro → rule:to" in dead.error
        events = [json.loads(one.payload) for one in sent(world, pb.EVENT)]
        assert [one["data"]["n"] for one in events] == list(range(17))
        assert len(events[-1]["_hops"]) == 16


async def test_a_loop_through_tasks_and_workflows_is_stopped(core: Core, world: World) -> None:
    flow = {
        "name": "flow",
        "trigger": {"event": "made"},
        "steps": [{"id": "say", "action": {"type": "emit_event", "event_name": "said"}}],
    }
    task = {
        "type": "create_task", "task_type": "job", "target_implementation": "hand",
        "completion_event": {"enabled": True, "event_name": "made"},
    }  # fmt: skip
    async with client(core) as boss, worker(core, "hand", lambda task: None) as seen:
        await boss.create(flow)
        await boss.do(Op.CREATE_RULE, data=rule(task, source_event="said"))
        await boss.emit("made")
        await all_taken(core, world)
        while not (dead := await dead_letters(boss)):
            await trio.sleep(1)
        assert "stopped after 16 hops: workflow:flow → rule:first → workflow:flow" in dead[0].error
        assert len(seen) == 8


async def test_a_page_that_was_handled_does_nothing_again(core: Core, world: World) -> None:
    pages: list[Sequence[TakenEvent]] = []
    async with client(core) as boss:
        await boss.do(Op.CREATE_RULE, data=rule(tell("x")))
        await boss.do(Op.CREATE_RULE, data=rule("agent: {{.input.a.b}}", "second"))
        intake = core.workflows.intake
        handle = intake._handle

        async def note(events: Sequence[TakenEvent]) -> None:
            pages.append(events)
            await handle(events)

        intake._handle = note
        await boss.emit("made")
        await all_taken(core, world)
        [page] = pages
        with pytest.raises(StalePageError):
            await handle(page)
        assert len(sent(world)) == 1
        assert len(world.databases["tasks"].query("SELECT task_id FROM tasks")) == 1


async def test_an_event_that_starts_much_takes_several_transactions(
    core: Core, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_handler, "TURN_COST", 50)
    monkeypatch.setattr(unfinished_events, "TIMER_COST", 30)
    async with client(core) as boss:
        for number in range(20):
            more = {"trigger_condition": "input.n > 1"} if number % 2 else {"priority": number}
            await boss.do(Op.CREATE_RULE, data=rule(tell("x"), f"r{number}", **more))
        await boss.create({"name": "flow", "trigger": {"event": "made"}, "steps": [{"id": "a", "output": 1}]})
        await boss.do(Op.CREATE_RULE, data=rule("agent: {{.input.a.b}}", "last", priority=-9))
        await boss.emit("made", data={"n": 5})
        await boss.emit("made", data={"n": 0})
        await all_taken(core, world)
        assert len(sent(world)) == 30
        assert len(await boss.do(Op.LIST_EXECUTIONS, status_filter="all")) == 2
        assert len(await dead_letters(boss)) == 2
        assert world.databases["tasks"].query("SELECT key FROM workflow_timers") == []


async def test_conditions_that_take_long_are_for_several_transactions(
    core: Core, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    deferred: list[int] = []
    defer = unfinished_events.defer

    def noting(tx: Transaction, event: TakenEvent, left: Any) -> Program[None]:
        deferred.append(len(left))
        yield from defer(tx, event, left)

    monkeypatch.setattr(unfinished_events, "defer", noting)
    monkeypatch.setattr(event_handler, "TURN_COST", 50)
    slow = "len(filter(1..1500, {# > input.n})) > 1400"  # some 6,000 operations
    async with client(core) as boss:
        for number in range(6):
            await boss.do(Op.CREATE_RULE, data=rule(tell("x"), f"r{number}", trigger_condition=slow))
        await boss.emit("made", data={"n": 1_000})
        await all_taken(core, world)
        assert sent(world) == []
        await boss.emit("made", data={"n": 1})
        await all_taken(core, world)
        assert len(sent(world)) == 6
    assert len(deferred) == 2


LOOP = "len(filter(1..1500, {# > 0}))"  # some 6,000 operations
COSTLY: dict[str, Callable[[int], dict[str, Any]]] = {
    "conditions that fail": lambda n: rule(tell("x"), f"r{n}", trigger_condition="input.a.b > 1"),
    "conditions that fail late": lambda n: rule(tell("x"), f"r{n}", trigger_condition="sum(map(1..9999, {# + input.n})) == 1"),
    "destinations that take long": lambda n: rule({**tell("x"), "metadata": {"n": f"{{{{{n}}}}}"}, "arguments": {"a": {"$expr": LOOP}}}, f"r{n}"),
    "keys of flow control that take long": lambda n: rule(tell("x"), f"r{n}", flow={"rate": {"limit": 9, "period": "1m", "key": f"string({LOOP})"}}),
    "documents to compile": lambda n: rule({**tell("x"), "arguments": {"a": "x" * 2_000}}, f"r{n}", trigger_condition="input.n > 7"),
    "machines with keys that take long": lambda n: {
        "id": f"m{n}", "workspace": "w", "initial_state": "a", "states": {"a": {"terminal": True}},
        "bus": [{"event": "made", "key": f"string({LOOP})", "creates": True}],
    },
}  # fmt: skip


@pytest.mark.parametrize("what", COSTLY)
async def test_what_costs_much_is_for_several_transactions(
    core: Core, world: World, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    turns = note_turns(monkeypatch)
    async with client(core) as boss:
        await boss.do(APPLY, data={"documents": [COSTLY[what](number) for number in range(20)]}, workspace="w")
        await boss.emit("made", data={"n": 5})
        await all_taken(core, world)
    assert len(turns) >= (3 if what == "conditions that fail" else 5)
    assert max(turns) < 2 * event_handler.TURN_COST


async def test_dead_letters_of_those_who_may_not_are_for_several_transactions(
    core: Core, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = note_turns(monkeypatch)
    async with client(core) as boss:
        for number in range(20):
            await boss.do(Op.CREATE_RULE, data=rule(tell("x"), f"r{number}"))
        async with client(core, "other") as other:
            let_only(core, other="w", boss="v")
            await other.emit("made")
            await all_taken(core, world)
    assert len(world.databases["tasks"].query("SELECT task_id FROM task_dead_letters")) == 20
    assert len(turns) >= 3


async def test_messages_that_are_no_events_are_for_several_transactions(
    core: Core, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = note_turns(monkeypatch)
    async with client(core) as boss:
        boss.link.send(*(message_to("event::*", b"no JSON", pb.EVENT) for _ in range(40)))
        await boss.emit("made")
        await all_taken(core, world)
        assert len(world.databases["tasks"].query("SELECT task_id FROM task_dead_letters")) == 40
    assert len(turns) >= 5


def note_turns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let transactions do little for events; return what each one has cost so far."""
    turns: list[int] = []

    class Noting(Turn):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.place = len(turns)
            turns.append(0)

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "cost" and hasattr(self, "place"):
                turns[self.place] = value

    for module in (event_handler, unfinished_events):
        monkeypatch.setattr(module, "Turn", Noting)
    monkeypatch.setattr(event_handler, "TURN_COST", 75)
    monkeypatch.setattr(unfinished_events, "TIMER_COST", 75)
    return turns


async def test_a_message_that_is_no_event_is_a_dead_letter(core: Core, world: World) -> None:
    async with client(core) as boss, connect(core, agent("w", "hand", "default")) as hand:
        await boss.do(Op.CREATE_RULE, data=rule(tell("x")))
        for payload in (b"no json", b'{"event_names": []}', b"[]", b'{"event_names": ["made"], "data": 1e999}'):
            boss.link.send(message_to("event::*", payload, pb.EVENT))
        await boss.emit("made", data={"n": 5})
        assert len(await told(hand, core, world)) == 1
        found = world.databases["tasks"].query("SELECT task_type, error, payload FROM tasks ORDER BY order_us, error")
        assert {kind for kind, _, _ in found} == {"workflow_event"}
        assert len(found) == 4


async def test_an_event_whose_handling_fails_holds_up_no_other(
    core: Core, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [True]

    def fail(self: EventReactions, tx: Transaction, event: TakenEvent, turn: Turn) -> Program[Any]:
        if broken[0] and event.data == 13:
            raise RuntimeError("a defect")
        return (yield from react(self, tx, event, turn))

    react = EventReactions.react
    async with client(core) as boss, connect(core, agent("w", "hand", "default")) as hand:
        await boss.do(Op.CREATE_RULE, data=rule(tell("x")))
        monkeypatch.setattr(EventReactions, "react", fail)
        for number in range(20):
            await boss.emit("made", data=number)
        said = [one["arguments"]["input"] for one in await told(hand, core, world)]
        assert sorted(said) == [number for number in range(20) if number != 13]
        let_agents(core, AccessLevel.MANAGE)
        [dead] = await dead_letters(boss)
        assert (dead.task_type, dead.metadata["source"]) == ("workflow_event", "ag::w::boss::1")
        assert "a defect" in dead.error
        broken[0] = False
        boss.link.send(pb.UpstreamMessage(task_op=TaskOp(op=TaskOp.RETRY, task_id=dead.task_id, request_id="r")))
        assert (await boss.link.next("task_op")).task_op.task.status == pb.TASK_STATUS_COMPLETED
        assert [one["arguments"]["input"] for one in await told(hand, core, world)] == [13]


async def test_texts_that_no_database_stores_harm_their_rule_alone(core: Core, world: World) -> None:
    task = {
        "type": "create_task", "task_type": "job", "target_implementation": "hand",
        "correlation_id": {"$expr": "input.text"}, "idempotency_key": {"$expr": "input.text"},
        "metadata": {"text": {"$expr": "input.text"}}, "payload": {"$expr": "input"},
    }  # fmt: skip
    flow = {
        "name": "flow",
        "trigger": {"event": "made"},
        "steps": [{"id": "w", "wait": {"event": "made", "key": "input.text", "equals": "trigger.text"}}],
    }
    async with client(core) as boss, connect(core, agent("w", "hand", "default")) as hand:
        await boss.do(Op.CREATE_RULE, data=rule(task))
        await boss.do(Op.CREATE_RULE, data=rule(tell("{{.input.text}}"), "second"))
        await boss.do(Op.CREATE_RULE, data=rule(tell("good"), "third"))
        await boss.do(Op.CREATE_RULE, data=rule("agent: hand\ntool_name: {{.input.text.x}}", "fourth"))
        await boss.create(flow)
        for text in ("a\0b", "\ud800", "\x1b[31m", "\u202e"):
            await boss.emit("made", data={"text": text})
        assert [one["tool_name"] for one in await told(hand, core, world)].count("good") == 4
        kinds = {one.task_type for one in await dead_letters(boss, limit=100)}
        assert kinds == {"workflow_rule"}
        assert all("\0" not in one.error and "\x1b" not in one.error for one in await dead_letters(boss, limit=100))


async def test_an_operator_requeues_discards_and_resolves(core: Core, world: World) -> None:
    async with client(core) as boss, connect(core, agent("w", "hand", "default")) as hand:
        made = await boss.do(Op.CREATE_RULE, data=rule("agent: hand\ntool_name: {{.input.a.b}}"))
        for _ in range(3):
            await boss.emit("made", data=5)
        await all_taken(core, world)
        letters = DeadLetters(core.tasks.engine)
        first, second, third = await letters.page("w")
        assert (first.error_type, first.workspace) == ("EXPRESSION", "w")
        assert await letters.requeue(first.task_id, "operator")
        assert len(await letters.page("w")) == 3, "it has failed again"
        await boss.do(Op.UPDATE_RULE, str(made["ID"]), data=rule(tell("x")))
        assert await letters.requeue(first.task_id, "operator")
        assert await letters.resolve(second.task_id, "operator")
        boss.link.send(pb.UpstreamMessage(task_op=TaskOp(op=TaskOp.CANCEL, task_id=third.task_id, request_id="r")))
        assert (await boss.link.next("task_op")).task_op.task.status == pb.TASK_STATUS_CANCELLED
        assert await letters.page("w") == []
        assert len(await told(hand, core, world)) == 1


async def test_a_copy_of_an_emitted_event_does_nothing(core: Core, world: World) -> None:
    """A gateway that is killed may append what it had appended from its outbox."""
    emit = {"type": "emit_event", "event_name": "passed_on"}
    async with client(core) as boss, connect(core, agent("w", "hand", "default")) as hand:
        await boss.do(Op.CREATE_RULE, data=rule(emit))
        await boss.do(Op.CREATE_RULE, data=rule(tell("hear"), "second", source_event="passed_on"))
        await boss.emit("made")
        assert len(await told(hand, core, world)) == 1
        [copy] = world.log.query("SELECT data FROM messages ORDER BY message_key DESC LIMIT 2 OFFSET 1")[:1]
        events = [one for one in sent(world, pb.EVENT) if b"passed_on" in one.payload]
        assert pb.DownstreamMessage.FromString(copy[0]).msg.payload == events[0].payload
        row = ("copy", 0, core.tasks.engine.nodes.node, "event::receiver0", copy[0])
        sql = "INSERT INTO task_outbox (task_id, number, node, topic, frame) VALUES ($1, $2, $3, $4, $5)"
        for number in range(2):
            await world.databases["tasks"].execute(sql, f"copy{number}", *row[1:])
        core.tasks.engine.outbox_publisher.wake()
        assert await told(hand, core, world) == []
        assert len([one for one in sent(world, pb.EVENT) if b"passed_on" in one.payload]) == 3


async def test_large_definitions_are_compiled_in_a_thread(core: Core, world: World) -> None:
    comment = {"description": "x" * 20_000}
    flow = {
        "name": "flow",
        "trigger": {"event": "made", "condition": "input == 1"},
        "steps": [{"id": "a", "output": 1}],
    }
    async with client(core) as boss, connect(core, agent("w", "hand", "default")) as hand:
        await boss.do(Op.CREATE_RULE, data=rule({**tell("x"), "arguments": {"a": "x" * 20_000}}))
        await boss.create({**flow, "steps": [{"id": f"a{n}", "output": comment} for n in range(3)]})
        await boss.emit("made", data=1)
        await boss.emit("made", data=2)
        assert len(await told(hand, core, world)) == 2
        assert len(await boss.do(Op.LIST_EXECUTIONS, status_filter="all")) == 1
