"""Executions of graphs on a whole core, with workers, on both storage engines."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.tasks.transaction import task_transaction
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.workflows.executions.advancing import Executions
from aether_trio.services.workflows.schedules.firing import Firing
from aether_trio.services.workflows.schedules.schedule_starts import ScheduleStarter
from aether_trio.services.workflows.stored.schedule_rows import StoredSchedule
from aether_trio.storage.base import Execute, Program
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, deadlock_is_an_error
from tests.services.workflows.helpers import Failed, Op, TaskOp, asked, client, logged, worker


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


def step(name: str, tool: str, after: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """Return a step for the agent "hand"."""
    action = {"agent": "hand", "tool_name": tool, "arguments": more.pop("arguments", {})}
    return {"id": name, "action": action, "depends_on": list(after), **more}


async def test_a_chain_of_steps_passes_results_on(core: Core) -> None:
    steps = [
        step("one", "double", arguments={"n": {"$expr": "trigger.n"}}),
        step("two", "double", ("one",), arguments={"n": {"$expr": "steps.one.result.n"}}),
        step("three", "double", ("two",), arguments={"n": {"$expr": "steps.two.result.n"}}),
    ]
    outputs = {"n": {"$expr": "steps.three.result.n"}}
    async with client(core) as boss, worker(core, "hand", lambda task: {"n": asked(task)["n"] * 2}) as seen:
        await boss.create({"name": "flow", "steps": steps, "outputs": outputs})
        execution_id = await boss.run({"n": 5})
        found = await boss.ended(execution_id)
        assert found["execution"]["Status"] == "completed"
        assert [one["StepID"] for one in found["steps"]] == ["one", "two", "three"]
        assert len(seen) == 3
        assert seen[0].task_type == "workflow"
        assert seen[0].metadata["execution_id"] == execution_id
        task = await boss.task(execution_id)
        assert task.status == pb.TASK_STATUS_COMPLETED
        assert task.task_type == "workflow_run"
        assert task.metadata["_result"] == '{"n":40}'
        # The end of its last step comes before its own.
        words = [word for word, _ in await logged(core, execution_id)]
        assert words == ["spawned", "completed"] * 3 + ["TASK_STATUS_COMPLETED"]


async def test_a_failed_step_fails_its_execution(core: Core) -> None:
    def fail(task: pb.TaskAssignment) -> None:
        raise Failed("no luck")

    async with client(core) as boss, worker(core, "hand", fail):
        await boss.create({"name": "flow", "steps": [step("one", "x"), step("two", "x", ("one",))]})
        found = await boss.ended(await boss.run())
        assert found["execution"]["Status"] == "failed"
        assert "no luck" in found["execution"]["ErrorMessage"]
        assert "one" in found["execution"]["ErrorMessage"]


async def test_the_items_of_a_map_are_taken_in(core: Core) -> None:
    each = step(
        "each", "x", for_each={"items": {"$expr": "1..250"}, "max_parallel": 0}, arguments={"n": {"$expr": "item"}}
    )
    outputs = {"sum": {"$expr": "sum(steps.each.result)"}, "count": {"$expr": "len(steps.each.result)"}}
    async with client(core) as boss, worker(core, "hand", lambda task: asked(task)["n"]):
        await boss.create({"name": "flow", "steps": [each], "outputs": outputs})
        execution_id = await boss.run()
        found = await boss.ended(execution_id)
        assert found["execution"]["Status"] == "completed", found["execution"]
        task = await boss.task(execution_id)
        assert task.metadata["_result"] == '{"sum":31375,"count":250}'


async def test_a_person_answers_a_question(core: Core) -> None:
    form = {"type": "object", "properties": {"sum": {"type": "number"}}, "required": ["sum"]}
    steps = [
        {"id": "pay", "ask": {"question": "Pay {{.trigger.who}}?", "choices": ["now", "later"], "form": form}},
        step(
            "book",
            "x",
            ("pay",),
            when="steps.pay.result.approved",
            arguments={"n": {"$expr": "steps.pay.result.data.sum"}},
        ),
    ]
    async with client(core) as boss, worker(core, "hand", lambda task: asked(task)["n"]):
        await boss.create({"name": "flow", "steps": steps})
        execution_id = await boss.run({"who": "ann"})
        wrong = await boss.ask(106, execution_id, "pay", data={"choice": "never"})
        assert "now, later" in wrong.error
        wrong = await boss.ask(106, execution_id, "pay", data={"choice": "now", "data": {"sum": "much"}})
        assert "not as the form says" in wrong.error
        wrong = await boss.ask(106, execution_id, "book", data={})
        assert "asks nothing" in wrong.error
        await boss.do(106, execution_id, "pay", data={"choice": "now", "data": {"sum": 7}})
        found = await boss.ended(execution_id)
        assert found["execution"]["Status"] == "completed"
        results = {one["StepID"]: one["OutputData"] for one in found["steps"]}
        assert results["pay"] == {
            "approved": True, "choice": "now", "text": "", "data": {"sum": 7}, "by": "ag::w::boss::1",
        }  # fmt: skip
        assert results["book"] == 7
        again = await boss.ask(106, execution_id, "pay", data={"choice": "now", "data": {"sum": 7}})
        assert "asks nothing" in again.error


async def test_cancelling_reaches_workers_and_compensates(core: Core) -> None:
    steps = [
        step(
            "book",
            "book",
            compensate={"agent": "hand", "tool_name": "unbook", "arguments": {"id": {"$expr": "steps.book.result"}}},
        ),
        {"id": "wait", "action": {"agent": "absent", "tool_name": "x"}, "depends_on": ["book"]},
        {"id": "child", "workflow": "below", "depends_on": ["book"]},
    ]
    async with client(core) as boss, worker(core, "hand", lambda task: 7) as seen:
        await boss.create({"name": "below", "steps": [{"id": "in", "ask": {"question": "?"}}]}, "below")
        await boss.create({"name": "flow", "steps": steps})
        execution_id = await boss.run()
        found = await boss.execution(execution_id)
        while {one["StepID"]: one["Status"] for one in found["steps"]}.get("child") != "running":
            found = await boss.execution(execution_id)
        tasks = {one["StepID"]: one["TaskID"] for one in found["steps"]}
        await boss.do(14, execution_id)
        found = await boss.ended(execution_id)
        assert found["execution"]["Status"] == "cancelled"
        assert (await boss.task(tasks["wait"])).status == pb.TASK_STATUS_CANCELLED
        assert (await boss.task(tasks["child"])).status == pb.TASK_STATUS_CANCELLED
        below = await boss.ended(tasks["child"])
        assert below["execution"]["Status"] == "cancelled"
        assert (await boss.task(below["steps"][0]["TaskID"])).status == pb.TASK_STATUS_CANCELLED
        calls = [json.loads(task.payload) for task in seen]
        assert [one["tool_name"] for one in calls] == ["book", "unbook"]
        assert calls[1]["arguments"] == {"id": 7}
        assert (await boss.task(execution_id)).status == pb.TASK_STATUS_CANCELLED


async def test_a_failed_execution_is_retried_from_its_failed_step(core: Core) -> None:
    luck = [False]

    def handle(task: pb.TaskAssignment) -> int:
        if task.metadata["step_id"] == "two" and not luck[0]:
            raise Failed("not yet")
        return 1

    async with client(core) as boss, worker(core, "hand", handle) as seen:
        await boss.create({"name": "flow", "steps": [step("one", "x"), step("two", "x", ("one",))]})
        execution_id = await boss.run()
        found = await boss.ended(execution_id)
        assert found["execution"]["Status"] == "failed"
        luck[0] = True
        await boss.do(104, execution_id)
        while (found := await boss.ended(execution_id))["execution"]["Status"] != "completed":
            pass
        assert [task.metadata["step_id"] for task in seen] == ["one", "two", "two"]
        assert (await boss.task(execution_id)).status == pb.TASK_STATUS_COMPLETED


async def test_a_sub_workflow_gives_its_result(core: Core) -> None:
    below = {
        "name": "below",
        "steps": [step("x", "x", arguments={"n": {"$expr": "trigger.n"}})],
        "outputs": {"$expr": "steps.x.result"},
    }
    above = {
        "name": "flow",
        "steps": [
            {
                "id": "each",
                "workflow": "below",
                "for_each": {"items": {"$expr": "[1, 2, 3]"}},
                "input": {"n": {"$expr": "item"}},
            }
        ],
        "outputs": {"all": {"$expr": "steps.each.result"}},
    }
    async with client(core) as boss, worker(core, "hand", lambda task: asked(task)["n"] * 10):
        await boss.create(below, "below")
        await boss.create(above)
        execution_id = await boss.run()
        found = await boss.ended(execution_id)
        assert found["execution"]["Status"] == "completed", found
        assert (await boss.task(execution_id)).metadata["_result"] == '{"all":[10,20,30]}'


async def test_an_execution_sleeps_and_is_signalled(core: Core) -> None:
    steps = [
        {"id": "sleep", "wait": {"duration": "1h"}},
        {"id": "hear", "wait": {"signal": "go"}, "depends_on": ["sleep"]},
        {"id": "say", "output": {"$expr": "steps.hear.result.n"}, "depends_on": ["hear"]},
    ]
    async with client(core) as boss:
        await boss.create({"name": "flow", "steps": steps, "outputs": {"n": {"$expr": "steps.say.result"}}})
        execution_id = await boss.run()
        early = await boss.run()
        await boss.do(101, early, "go", data={"n": 5})
        assert (await boss.execution(execution_id))["execution"]["Status"] == "running"
        await trio.sleep(3601)
        assert (await boss.ended(early))["execution"]["Status"] == "completed"
        assert (await boss.execution(execution_id))["execution"]["Status"] == "running"
        await boss.do(101, execution_id, "go", data={"n": 6})
        assert (await boss.ended(execution_id))["execution"]["Status"] == "completed"
        assert (await boss.task(execution_id)).metadata["_result"] == '{"n":6}'
        history = await boss.do(105, execution_id)
        assert [one["type"] for one in history] == ["Started", "TimePassed", "SignalReceived"]


async def test_a_signal_that_no_step_waits_for_is_refused(core: Core) -> None:
    steps = [step("one", "x"), {"id": "hear", "wait": {"signal": "go"}, "depends_on": ["one"]}]
    async with client(core) as boss:
        await boss.create({"name": "flow", "steps": steps})
        execution_id = await boss.run()
        answer = await boss.ask(101, execution_id, "stop")
        assert answer.error == "no step of the workflow waits for this signal; the signals of the workflow are: go"
        for _ in range(256):
            await boss.do(101, execution_id, "go", data=1)
        answer = await boss.ask(101, execution_id, "go", data=1)
        assert answer.error == "256 signals wait for a step of the execution already"


async def test_a_run_with_a_key_begins_once(core: Core) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]}
    async with client(core) as boss:
        await boss.create({"name": "flow", "inputs": schema, "steps": [{"id": "a", "wait": {"signal": "go"}}]})
        refused = await boss.ask(100, "flow", "k1", data={"n": "x"})
        assert "not as declared" in refused.error
        first = await boss.do(100, "flow", "k1", data={"n": 1})
        again = await boss.do(100, "flow", "k1", data={"n": 1})
        other = await boss.do(100, "flow", "k2", data={"n": 1})
        assert first == again != other
        assert len(await boss.do(12)) == 2
        for wrong in (b"{", b"NaN", b"[" * 100_000):
            answer = await boss.raw(100, "flow", wrong)
            assert "not JSON" in answer.error


async def test_a_key_goes_with_the_same_input_only(core: Core) -> None:
    async with client(core) as boss:
        await boss.create({"steps": [{"id": "a", "output": 1}]})
        await boss.create({"steps": [{"id": "a", "output": 1}]}, "other")
        first = await boss.do(100, "flow", "k", data={"n": 1, "m": [2.0]})
        for other in ({"n": 2, "m": [2]}, {"n": 1}, {"n": "1", "m": [2]}):
            answer = await boss.ask(100, "flow", "k", data=other)
            assert answer.error.startswith("idempotency_key was used for another request before")
        assert (await boss.raw(100, "flow", b'{"m": [2], "n": 1.0}', "k")).data == json.dumps(
            first, separators=(",", ":")
        ).encode(), "equal input is the same request, also after the end of the execution"
        assert (await boss.do(100, "other", "k", data={"n": 2})) != first, "each workflow has its keys"
        await boss.do(Op.DELETE_WORKFLOW, "flow", workspace="w")
        assert await boss.do(100, "flow", "k", data={"n": 1, "m": [2]}) == first
        assert len(await boss.do(Op.LIST_EXECUTIONS, status_filter="all")) == 2


async def test_steps_and_executions_move_only_as_workflows_do(core: Core) -> None:
    async with client(core) as boss:
        steps = [step("one", "x"), {"id": "two", "ask": {"question": "?"}}]
        await boss.create({"name": "flow", "steps": steps})
        execution_id = await boss.run()
        found = await boss.execution(execution_id)
        tasks = {one["StepID"]: one["TaskID"] for one in found["steps"]}
        for task_id, op in (
            (execution_id, TaskOp.COMPLETE),
            (execution_id, TaskOp.FAIL),
            (tasks["two"], TaskOp.COMPLETE),
            (tasks["two"], TaskOp.RESUME),
        ):
            answer = await boss.operate(task_id, op)
            assert not answer.success
            assert "workflow moves with its steps" in answer.error or "question to a person" in answer.error
        one = await boss.task(tasks["one"])
        assert one.parent_task_id == one.root_task_id == execution_id
        assert (await boss.operate(tasks["one"], TaskOp.CANCEL)).success
        await boss.ended(execution_id)
        assert "retry the execution" in (await boss.operate(tasks["one"], TaskOp.RETRY)).error
        assert (await boss.operate(execution_id, TaskOp.RETRY)).success
        assert (await boss.execution(execution_id))["execution"]["Status"] == "running"


async def test_a_history_that_is_too_long_ends_its_execution(world: World) -> None:
    steps = [
        {"id": "first", "output": 1, "compensate": {"agent": "hand", "tool_name": "undo"}},
        {"id": "loop", "depends_on": ["first"], "while": {"condition": "true"}, "wait": {"signal": "go"}},
    ]
    engine = {"engine": "embedded", "history_entries": 100}
    async with (
        deadlock_is_an_error(),
        world.open(workflow=engine) as core,
        client(core) as boss,
        worker(core, "hand", lambda task: None) as seen,
    ):
        await boss.create({"name": "flow", "steps": steps})
        execution_id = await boss.run()
        answer = await boss.ask(101, execution_id, "go")
        while answer.success:
            answer = await boss.ask(101, execution_id, "go")
        found = await boss.ended(execution_id)
        assert found["execution"]["Status"] == "failed"
        assert "continue_as" in found["execution"]["ErrorMessage"]
        assert [task.metadata["step_id"] for task in seen] == ["first"]


async def test_executions_that_begin_at_once_share_nothing(core: Core) -> None:
    steps = [step("one", "same", arguments={"n": {"$expr": "trigger.n"}})]
    inputs = {"n": "integer"}
    async with client(core) as boss, worker(core, "hand", lambda task: {"n": asked(task)["n"]}):
        await boss.create({"name": "flow", "steps": steps, "inputs": inputs})
        given: list[Any] = [*range(6), "none", *range(6, 12)]
        requests = [
            pb.WorkflowOperation(
                op=100, id="flow" if n != 3 else "other", data=json.dumps({"n": n}).encode(), request_id=f"at-once-{n}"
            )
            for n in given
        ]  # fmt: skip
        boss.link.send(*(pb.UpstreamMessage(workflow_op=request) for request in requests))
        answers = {}
        while len(answers) < len(requests):
            answer = (await boss.link.next("workflow_response")).workflow_response
            answers[answer.request_id.removeprefix("at-once-")] = answer
        refused = {n: answer.error for n, answer in answers.items() if not answer.success}
        assert set(refused) == {"3", "none"}
        assert "not found" in refused["3"]
        assert "not as declared" in refused["none"]
        for n, answer in answers.items():
            if answer.success:
                execution_id = json.loads(answer.data)["execution_id"]
                assert (await boss.ended(execution_id))["execution"]["Status"] == "completed"
                assert json.loads((await boss.task(execution_id)).metadata["_result"]) == {"one": {"n": int(n)}}


async def test_a_signal_that_no_step_has_taken_is_for_the_next_one_of_a_chain(core: Core) -> None:
    add, work = {"id": "add", "wait": {"signal": "add"}}, {"id": "work", "wait": {"signal": "worked"}}
    going_on = {"id": "next", "continue_as": {"input": {"$expr": "steps.add.result"}}}
    async with client(core) as boss:
        await boss.create({"steps": [add, {**work, "depends_on": ["add"]}, {**going_on, "depends_on": ["work"]}]})
        one = await boss.run()
        for number in range(3):
            await boss.do(101, one, "add", data={"n": number})
        for number in range(3):
            await boss.do(101, one, "worked")
            one = (await boss.ended(one))["execution"]["Result"]["continued_as"]
            found = await boss.execution(one)
            assert found["execution"]["TriggerData"] == {"n": number}
        assert {each["StepID"]: each["Status"] for each in found["steps"]}["add"] == "waiting"


async def test_a_signal_that_a_function_has_not_taken_is_for_its_next_run(core: Core) -> None:
    async with client(core) as boss, client(core, "hand") as hand:
        await hand.do(120, "act", data={})
        one = await boss.run({}, "act")
        await hand.operate(one, pb.TaskOperation.CLAIM)
        for number in range(2):
            await boss.do(101, one, "add", data=number)
        ended = {"do": "end", "outcome": "continued", "input": {}}
        await hand.do(121, one, data={"assignment": 1, "after": 0, "do": [ended]})
        two = (await boss.ended(one))["execution"]["Result"]["continued_as"]
        history = await boss.do(105, two)
        assert [(entry["type"], entry.get("data")) for entry in history] == [
            ("Started", None), ("SignalReceived", 0), ("SignalReceived", 1),
        ]  # fmt: skip
        await hand.operate(two, pb.TaskOperation.CLAIM)
        waits = {"do": "open", "step": "s", "kind": "wait", "signal": "add"}
        found = await hand.do(121, two, data={"assignment": 1, "after": 3, "do": [waits]})
        assert found["entries"][-1]["entry"]["result"] == 0


async def test_an_error_with_a_zero_byte_stops_no_timer(core: Core) -> None:
    """PostgreSQL stores no such text, and what falls due together is one transaction."""
    fails = {"id": "f", "depends_on": ["nap"], "fail": {"message": "{{.trigger.x}}", "error_type": "{{.trigger.x}}"}}
    async with client(core) as boss:
        await boss.create({"steps": [{"id": "nap", "wait": "1s"}, fails]}, "inner")
        await boss.create({"steps": [{"id": "one", "workflow": "inner", "input": {"$expr": "trigger"}}]}, "outer")
        await boss.create({"steps": [{"id": "nap", "wait": "1s"}]}, "other")
        outer, other = await boss.run({"x": "a\0b"}, "outer"), await boss.run({}, "other")
        assert (await boss.ended(other))["execution"]["Status"] == "completed"
        found = await boss.ended(outer)
        assert found["execution"]["ErrorMessage"] == "step one: step f: a\ufffdb"


REFUSED = Execute("INSERT INTO workflow_executions (execution_id) VALUES (NULL)")


async def test_what_the_database_refuses_of_an_execution_delays_no_other(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, bad = Executions.time_passed, ""

    def refuses_one(self: Executions, tx: Transaction, execution_id: str) -> Program[None]:
        if execution_id == bad:
            yield REFUSED
        yield from go_on(self, tx, execution_id)

    hook: Any = core.tasks.engine._workflows
    monkeypatch.setitem(hook._timers, "execution", partial(refuses_one, hook._executions))
    async with client(core) as boss:
        await boss.create({"steps": [{"id": "nap", "wait": "1s"}]})
        bad, other = await boss.run(), await boss.run()
        assert (await boss.ended(other))["execution"]["Status"] == "completed"
        one, bad = bad, ""
        assert (await boss.execution(one))["execution"]["Status"] == "running"
        assert (await boss.ended(one))["execution"]["Status"] == "completed"


async def test_what_the_database_refuses_of_a_schedule_delays_no_other(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ScheduleStarter._start

    def refuses_one(self: ScheduleStarter, tx: Transaction, stored: StoredSchedule, firing: Firing) -> Program[str]:
        if stored.id == "bad":
            yield REFUSED
        return (yield from start(self, tx, stored, firing))

    monkeypatch.setattr(ScheduleStarter, "_start", refuses_one)
    about = {"schedule_type": "interval", "schedule_expr": "1m", "workspace": "w"}
    async with client(core) as boss:
        for name in ("bad", "good"):
            data = {"id": name, "action": {"type": "emit_event", "event_name": "tick"}, **about}
            await boss.do(Op.CREATE_SCHEDULE, data=data)
        await trio.sleep(150)
        assert {one["id"]: one["fired"] for one in await boss.do(Op.LIST_SCHEDULES)} == {"bad": 0, "good": 2}


WIDE = [{"id": f"s{number}", "depends_on": ["begin"], "action": {"agent": "nobody"}} for number in range(8)]


@pytest.mark.parametrize("by", ["wait", "timeout", "schedule", "event", "trigger"])
async def test_what_falls_due_together_is_in_transactions_of_a_bounded_size(
    core: Core, world: World, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Six executions begin eight steps each; a full transaction has ten tasks."""
    monkeypatch.setattr(task_transaction, "MOST_WRITTEN", 10)
    begins: dict[str, dict[str, Any]] = {
        "wait": {"wait": "1m"},
        "timeout": {"action": {"agent": "nobody"}, "timeout": "1m", "on_error": [{"error": "*", "result": 1}]},
        "event": {"wait": {"event": "go"}},
    }
    engine, written = core.tasks.engine, list[int]()
    after_commit = engine.after_commit

    def note(tx: TaskTransaction) -> None:
        written.append(len(tx.written))
        after_commit(tx)

    async with client(core) as boss:
        steps = [{"id": "begin", **begins.get(by, {"output": 1})}, *WIDE]
        about = {"trigger": {"event": "go"}} if by == "trigger" else {}
        names = [f"w{number}" for number in range(6)]
        await boss.do(107, data={"documents": [{"id": name, "steps": steps, **about} for name in names]}, workspace="w")
        monkeypatch.setattr(engine, "after_commit", note)
        if by in begins:
            for name in names:
                await boss.run({}, name)
        elif by == "schedule":
            plan = {"schedule_type": "once", "schedule_expr": "2023-11-14T22:15:00Z"}
            documents = [{"id": f"s{name}", "workflow_id": name, **plan} for name in names]
            await boss.do(107, data={"documents": documents}, workspace="w")
        if by in ("event", "trigger"):
            await boss.emit("go", data={})
        else:
            await trio.sleep(150)
        while len(world.databases["tasks"].query("SELECT 1 FROM workflow_steps WHERE step LIKE 's%'")) < 48:
            await trio.sleep(1)
        assert 8 <= max(written) < 30
