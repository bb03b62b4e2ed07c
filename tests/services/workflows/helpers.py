"""Scripted workers and clients for tests of executions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import trio

from aether_trio.gateway.core import Core
from aether_trio.model.access import AccessLevel
from aether_trio.model.access.rules import Rule
from aether_trio.services.access.records import rule_value
from aether_trio.testing.memory import MemoryLink, message_to
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect

Op = pb.WorkflowOperation
TaskOp = pb.TaskOperation

_numbers = count(1)


class Client:
    """A connected agent that asks for operations on workflows."""

    def __init__(self, link: MemoryLink) -> None:
        self.link = link

    async def ask(self, op: int, about: str = "", second: str = "", **fields: Any) -> pb.WorkflowResponse:
        """Ask for an operation; `data` may be any JSON value."""
        data = fields.pop("data", None)
        encoded = b"" if data is None else json.dumps(data).encode()
        return await self.raw(op, about, encoded, second, **fields)

    async def raw(self, op: int, about: str, encoded: bytes, second: str = "", **fields: Any) -> pb.WorkflowResponse:
        """Ask for an operation with data that need not be JSON."""
        request_id = f"w{next(_numbers)}"
        request = Op(op=op, id=about, secondary_id=second, data=encoded, request_id=request_id, **fields)  # type: ignore[arg-type]
        self.link.send(pb.UpstreamMessage(workflow_op=request))
        while True:
            answer = (await self.link.next("workflow_response")).workflow_response
            if answer.request_id == request_id:
                return answer

    async def do(self, op: int, about: str = "", second: str = "", **fields: Any) -> Any:
        """Ask for an operation that succeeds; return its data."""
        answer = await self.ask(op, about, second, **fields)
        assert answer.success, answer.error
        return json.loads(answer.data) if answer.data else answer.message

    async def create(self, definition: dict[str, Any], name: str = "flow", version: int = 1) -> None:
        """Create a workflow of workspace w."""
        data = {"ID": name, "Version": version, "Workspace": "w", "Definition": definition}
        await self.do(Op.CREATE_WORKFLOW, data=data)

    async def run(self, given: Any = None, name: str = "flow") -> str:
        """Start an execution; return its id."""
        answer = await self.do(100, name, data=given or {})
        execution_id: str = answer["execution_id"]
        return execution_id

    async def execution(self, execution_id: str) -> dict[str, Any]:
        """Get an execution with its steps."""
        found: dict[str, Any] = await self.do(Op.GET_EXECUTION, execution_id)
        return found

    async def ended(self, execution_id: str) -> dict[str, Any]:
        """Wait for the end of an execution; return it with its steps."""
        while True:
            found = await self.execution(execution_id)
            if found["execution"]["Status"] in ("completed", "failed", "cancelled"):
                return found
            await trio.sleep(0.2)

    async def operate(self, task_id: str, op: int) -> pb.TaskOperationResponse:
        """Ask for an operation on a task."""
        request_id = f"o{next(_numbers)}"
        self.link.send(pb.UpstreamMessage(task_op=TaskOp(op=op, task_id=task_id, request_id=request_id)))  # type: ignore[arg-type]
        return (await self.link.next("task_op")).task_op

    async def emit(self, *names: str, data: Any = None, to: str = "event::*", **more: Any) -> None:
        """Send an event."""
        payload = json.dumps({"event_names": names, "data": data, **more}).encode()
        self.link.send(message_to(to, payload, pb.EVENT))
        await barrier(self.link)

    async def tasks(self, **filters: Any) -> list[pb.TaskInfo]:
        """List tasks."""
        query = pb.TaskQuery(op=pb.TaskQuery.LIST, filter=pb.TaskFilter(**filters))
        self.link.send(pb.UpstreamMessage(task_query=query))
        return list((await self.link.next("task_query")).task_query.tasks)

    async def task(self, task_id: str) -> pb.TaskInfo:
        """Get a task."""
        self.link.send(pb.UpstreamMessage(task_query=pb.TaskQuery(op=pb.TaskQuery.GET, task_id=task_id)))
        return (await self.link.next("task_query")).task_query.task


@asynccontextmanager
async def client(core: Core, name: str = "boss") -> AsyncIterator[Client]:
    """Connect an agent of workspace w."""
    async with connect(core, agent("w", name, "1")) as link:
        yield Client(link)


def let_agents(core: Core, level: AccessLevel) -> None:
    """Give agents this level in all workspaces, where no rule says more."""
    core.authorizer._fallbacks_changed([("agent_workspace", level)], False)


def let_only(core: Core, level: AccessLevel = AccessLevel.READWRITE, **workspaces: str) -> None:
    """Let agents, by implementation, only use these workspaces, theirs among them."""
    let_agents(core, AccessLevel.NONE)
    rules = [
        Rule(f"{name} {where}", "agent", f"ag::{own}::{name}::1", "workspace", where, level)
        for name, wheres in workspaces.items()
        for own in wheres.split()[:1]
        for where in wheres.split()
    ]
    core.authorizer._rules_changed([(one.rule_id, rule_value(one)) for one in rules], False)


async def all_taken(core: Core, world: World) -> None:
    """Wait until the engine has handled all events, and those that they have caused."""
    query = world.databases["tasks"].query
    while True:
        outbox = query("SELECT task_id FROM task_outbox")
        rest = query("SELECT key FROM workflow_unfinished_events")
        if not outbox and not rest and not (await core.workflows.intake.progress()).lag:
            return
        await trio.sleep(0.05)


Handler = Callable[[pb.TaskAssignment], Any]


async def logged(core: Core, task_id: str) -> list[tuple[str, str]]:
    """Return the events of a task in their order: what, of which task."""
    rows = await core.tasks.engine.database.fetch(
        "SELECT event FROM task_events WHERE task_id = $1 ORDER BY number", task_id
    )
    found: list[tuple[str, str]] = []
    for event in (pb.TaskEvent.FromString(row[0]) for row in rows):
        if event.WhichOneof("event") == "child_lifecycle":
            found.append((event.child_lifecycle.lifecycle, event.child_lifecycle.child_task_id))
        else:
            found.append((pb.TaskStatus.Name(event.status_changed.to_status), event.task_id))
    return found


class Failed(Exception):
    """A handler's task fails with this text."""


@asynccontextmanager
async def worker(
    core: Core, name: str, handle: Handler, specifier: str = "1"
) -> AsyncIterator[list[pb.TaskAssignment]]:
    """Connect a worker of workspace w that does each task with `handle`."""
    seen: list[pb.TaskAssignment] = []
    async with connect(core, agent("w", name, specifier)) as link, trio.open_nursery() as nursery:

        async def work() -> None:
            while True:
                task = (await link.next("task_assignment")).task_assignment
                seen.append(task)
                request = TaskOp(op=TaskOp.COMPLETE, task_id=task.task_id, request_id=f"t{next(_numbers)}")
                try:
                    result = handle(task)
                    if result is not None:
                        request.wait_spec.input_match["result"] = json.dumps(result)
                except Failed as error:
                    request.op = TaskOp.FAIL
                    request.reason = str(error)
                claim = TaskOp(op=TaskOp.CLAIM, task_id=task.task_id, request_id=f"t{next(_numbers)}")
                link.send(pb.UpstreamMessage(task_op=claim), pb.UpstreamMessage(task_op=request))

        nursery.start_soon(work)
        yield seen
        nursery.cancel_scope.cancel()


def asked(task: pb.TaskAssignment) -> dict[str, Any]:
    """Return the arguments of a step's task."""
    found: dict[str, Any] = json.loads(task.payload)["arguments"]
    return found
