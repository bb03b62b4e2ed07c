"""`agent.workflow`: runs workflows, and talks to the workflow engine or as it.

    execution_id = await agent.workflow.run("report", {"topic": "rust"})
    execution = await agent.workflow.wait(execution_id)

The methods named after the wire's operations (`list_rules`, `create_workflow`) take and return
JSON documents as bytes, for any engine. The others are those of the gateway's own engine.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

import anyio

from aether_trio.client.errors import AetherError, ConnectionLost, RequestTimeout, TaskNotEnded, UnexpectedAnswer
from aether_trio.client.operations.enums import ScheduleLifetime
from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.principals import Authorization, ResourceScope, authorization_context
from aether_trio.client.operations.records import Seconds, write
from aether_trio.client.operations.task_results import json_text
from aether_trio.client.operations.tasks import Tasks
from aether_trio.client.operations.workflow_values import (
    Applied,
    Execution,
    ExecutionFork,
    Foretold,
    HistoryEntry,
    HistoryReplay,
    Redriven,
    Timeline,
    WorkflowDefinition,
    applied_of,
    definition_of,
    entry_of,
    execution_of,
    fork_of,
    redriven_of,
    replayed_of,
)
from aether_trio.wire.pb import aether_pb2 as pb

_Op = pb.WorkflowOperation
_Kind: TypeAlias = pb.WorkflowOperation.OpType.ValueType

RUN: Final = _Kind(100)
SIGNAL: Final = _Kind(101)
PAUSE: Final = _Kind(102)
RESUME: Final = _Kind(103)
RETRY: Final = _Kind(104)
HISTORY: Final = _Kind(105)
ANSWER: Final = _Kind(106)
APPLY: Final = _Kind(107)
PAUSE_SCHEDULE: Final = _Kind(110)
RESUME_SCHEDULE: Final = _Kind(111)
BACKFILL_SCHEDULE: Final = _Kind(112)
REPLAY: Final = _Kind(113)
FORK: Final = _Kind(114)
DIAGRAM: Final = _Kind(115)
TIMELINE: Final = _Kind(118)
FORETELL: Final = _Kind(119)
REDRIVE: Final = _Kind(116)
LIST_WEBHOOKS: Final = _Kind(108)
CHANGE_WEBHOOK: Final = _Kind(109)
"""Operations of the gateway's own engine, beyond those of the descriptor (docs/wire.md)."""

_MORE: Final = "more after "
"""How the message of a list's answer begins if more entries follow."""
_PAGE: Final = 1_000
"""Most entries of a page of a list."""
SAME_INPUT: Final[Any] = object()
"""The input of a fork that is that of the forked execution."""
_AGAIN_S: Final = 0.1
"""Before an execution is looked at again after a cut."""
_LOOK_S: Final = 1.0
"""Between two looks at an execution whose task has ended, and which still compensates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleScope:
    """The authority that a schedule needs when it fires; times in whole seconds."""

    max_access_level: int
    workspace_scope: tuple[str, ...] = ()
    resource_scope: tuple[ResourceScope, ...] = ()
    operation_scope: tuple[str, ...] = ()
    expires_at: Seconds = None
    renewable_until: Seconds = None
    required_task_authority_hops: int = 0
    lifetime_mode: ScheduleLifetime = ScheduleLifetime.SOURCE_BOUND
    policy_version: int = 1


@dataclass(frozen=True, slots=True)
class WorkflowAnswer:
    """The answer of the workflow engine: a JSON document, and the total of a list."""

    data: bytes
    message: str
    total: int

    def json(self) -> Any:
        """Return the document; None if the answer has none, or one that is no JSON."""
        try:
            return json.loads(self.data) if self.data else None
        except (ValueError, RecursionError):
            return None

    @property
    def more_after(self) -> str:
        """Where a list goes on: `after` of its next page; "" if this was the last one."""
        return self.message.removeprefix(_MORE) if self.message.startswith(_MORE) else ""


class Workflow(Namespace):
    """Runs workflows, and sends requests to the workflow engine through the gateway."""

    # -- definitions

    async def apply(
        self, documents: Iterable[Mapping[str, Any]], *, workspace: str = "", dry_run: bool = False
    ) -> Applied:
        """Apply documents of workflows, and of what belongs to them: all of them or none.

        `workspace` is that of documents that name none. Equal content is no new version. With
        `dry_run` nothing is changed. Raises Refused with all that is wrong, a line for each error.
        """
        data = json_text({"documents": list(documents), "dry_run": dry_run}, "a document of a workflow").encode()
        return applied_of(_object(await self._do(APPLY, data=data, workspace=workspace)))

    async def definitions(self, workspace: str = "") -> tuple[WorkflowDefinition, ...]:
        """Return the newest version of each workflow of a workspace, and of all ("*")."""
        found: list[WorkflowDefinition] = []
        after = ""
        while True:
            answer = await self.list_workflows(workspace, after=after)
            found += map(definition_of, _list(answer))
            after = answer.more_after
            if not after:
                return tuple(found)

    async def definition(self, workflow: str, *, workspace: str = "") -> WorkflowDefinition:
        """Return the newest version of a workflow. Raises Refused if there is none."""
        return definition_of(_object(await self.get_workflow(workflow, workspace=workspace)))

    # -- executions

    async def run(
        self,
        workflow: str,
        input: Any = None,  # noqa: A002
        *,
        workspace: str = "",
        idempotency_key: str = "",
    ) -> str:
        """Start an execution of a workflow's newest version; return its id.

        The input is what JSON can hold, by default an empty object. The id is that of a task:
        `agent.tasks` follows it. A second request with the same key finds the first one's execution
        for a day; without a key one is made up, so that a cut request is sent again. Raises Refused
        if the input is not as the workflow declares.
        """
        data = b"" if input is None else json_text(input, "the input of a workflow").encode()
        key = idempotency_key or str(uuid.uuid4())
        answer = await self._do(RUN, workflow, key, data=data, workspace=workspace)
        return str(_object(answer).get("execution_id", ""))

    async def execution(self, execution_id: str, *, step: str = "") -> Execution:
        """Return an execution with its steps, up to 1,000 of them and their items.

        With `step` only that one, or one item as in "fetch[3]", with its input and result.
        """
        found = _object(await self._do(_Op.GET_EXECUTION, execution_id, step))
        return execution_of(found.get("execution") or {}, found.get("steps") or ())

    async def executions(
        self, workspace: str = "", *, workflow: str = "", status: str = "all", limit: int = 100, after: str = ""
    ) -> tuple[Execution, ...]:
        """Return the newest executions, at most `limit`, without their steps.

        `status` is one of those of an execution; "running" is all that have not ended. `after`:
        only those that began before the execution with this id, the last one of an earlier call.
        """
        found: list[Execution] = []
        while len(found) < limit:
            answer = await self.list_executions(
                workspace, workflow=workflow, status=status, limit=min(limit - len(found), _PAGE), after=after
            )
            found += map(execution_of, _list(answer))
            after = answer.more_after
            if not after:
                break
        return tuple(found)

    async def wait(self, execution_id: str, *, timeout: float | None = None) -> Execution:
        """Wait until an execution has ended, with its compensations, and return it.

        `status` says how it ended; nothing is raised for one that has failed. Goes on after
        reconnects and restarts of the gateway. Raises TaskNotEnded, a TimeoutError, after `timeout`
        seconds; Refused if there is no such execution.
        """
        with anyio.move_on_after(timeout):
            return await self._until_ended(execution_id)
        assert timeout is not None
        raise TaskNotEnded(execution_id, f"execution {execution_id}", timeout)

    async def _until_ended(self, execution_id: str) -> Execution:
        tasks = Tasks(self._requester, timeout_s=self._timeout_s)
        while True:
            try:
                found = await self.execution(execution_id)
                if found.has_ended:
                    return found
                if (await tasks.wait(execution_id)).has_ended and not (
                    found := await self.execution(execution_id)
                ).has_ended:
                    await anyio.sleep(_LOOK_S)
            except (ConnectionLost, RequestTimeout):
                await anyio.sleep(_AGAIN_S)
            except AetherError as error:
                if not error.retryable:
                    raise
                await anyio.sleep(max(error.retry_after_s, _LOOK_S))

    async def signal(self, execution_id: str, name: str, data: Any = None, *, idempotency_key: str = "") -> None:
        """Send a signal to an execution; a step that waits for it later gets it, too.

        A second request with the same key does nothing for a day; without a key one is made up, so
        that a cut request is sent again, and its signal comes once.
        """
        encoded = b"" if data is None else json_text(data, "the data of a signal").encode()
        key = idempotency_key or str(uuid.uuid4())
        await self._do(SIGNAL, execution_id, name, data=encoded, status=key)

    async def answer(
        self,
        execution_id: str,
        step: str,
        *,
        approved: bool = True,
        choice: str = "",
        text: str = "",
        data: Any = None,
    ) -> None:
        """Answer the question that a step asks, or an item of it such as "review[3]".

        `data` is what the form of the question wants. Raises Refused if that step asks nothing now,
        asks another participant, or the answer is not as the question says.
        """
        answer: dict[str, Any] = {"approved": approved, "choice": choice, "text": text}
        if data is not None:
            answer["data"] = data
        await self._do(ANSWER, execution_id, step, data=json_text(answer, "the data of an answer").encode())

    async def retry(self, execution_id: str) -> None:
        """Let an execution go on that has failed, or was cancelled."""
        await self._do(RETRY, execution_id)

    async def pause(self, execution_id: str, reason: str = "") -> None:
        """Let an execution begin no further step until it is resumed."""
        await self._do(PAUSE, execution_id, reason)

    async def resume(self, execution_id: str) -> None:
        """Let a paused execution go on."""
        await self._do(RESUME, execution_id)

    async def cancel(self, execution_id: str) -> None:
        """Cancel an execution: its open steps end, and completed ones are compensated."""
        await self.cancel_execution(execution_id)

    async def history(self, execution_id: str, *, after: int = 0) -> tuple[HistoryEntry, ...]:
        """Return up to 500 entries of an execution's history, behind the number `after`."""
        return tuple(map(entry_of, _list(await self._do(HISTORY, execution_id, str(after) if after else ""))))

    async def replay(self, execution_id: str, document: Mapping[str, Any]) -> HistoryReplay:
        """Replay an execution on a workflow's document; nothing is changed.

        Raises Refused for a document that is wrong, and for a history whose results are not kept.
        """
        data = json_text({"document": document}, "a workflow").encode()
        return replayed_of(_object(await self._do(REPLAY, execution_id, data=data)))

    async def migrate(self, execution_id: str, *, dry_run: bool = False) -> HistoryReplay:
        """Move an execution to the newest version, if its history replays on it.

        Nothing is changed if the answer has a divergence. Raises Refused if it has ended.
        """
        data = b'{"dry_run": true}' if dry_run else b""
        return replayed_of(_object(await self._do(REPLAY, execution_id, data=data)))

    async def timeline(self, execution_id: str, *, after: str = "", limit: int = 200) -> Timeline:
        """Return up to 200 entries of all that is known of an execution, in one order.

        These are its history, and of its tasks the attempts, events, progress reports and
        conversations, behind the position `after`.
        """
        data = json.dumps({"limit": max(1, min(limit, 200))}).encode()
        found = _object(await self._do(TIMELINE, execution_id, after, data=data))
        return Timeline(entries=tuple(found.get("entries") or ()), next=str(found.get("next") or ""))

    async def foretell(
        self, documents: Iterable[Mapping[str, Any]], *, since: datetime, workspace: str = "", after: int = 0
    ) -> Foretold:
        """Say what documents would have done with the events since a moment.

        Nothing is applied, written or sent. `after` is `next` of the page before. A naive time is
        local time.
        """
        asked = {"documents": list(documents), "since_ms": int(since.timestamp() * 1000), "after": after}
        data = json_text(asked, "a document of a workflow").encode()
        found = _object(await self._do(FORETELL, data=data, workspace=workspace))
        return Foretold(
            events=int(found.get("events") or 0),
            foretold=tuple(found.get("foretold") or ()),
            next=int(found.get("next") or 0),
        )

    async def diagram(self, name: str, *, kind: str = "workflow", workspace: str = "") -> Mapping[str, Any]:
        """Return the nodes and edges of what `kind` says, as JSON.

        That is a workflow, an execution, a machine or an instance of one; docs/wire.md says what
        they have. Raises Refused for what there is not, and for functions.
        """
        return _object(await self._do(DIAGRAM, name, kind, workspace=workspace))

    async def fork(
        self,
        execution_id: str,
        step: str,
        *,
        input: Any = SAME_INPUT,  # noqa: A002
        newest: bool = False,
        idempotency_key: str = "",
    ) -> ExecutionFork:
        """Start an execution with what another one has done, but for `step` and the rest.

        What else has ended is kept with its results, and is compensated if the new execution fails.
        It has the same input unless `input` gives another one, and the same version of the workflow
        unless it is to be the newest. Nothing of the other one changes. Keys are as in `run`.
        Raises Refused for an unknown step, and if results do not fit into the newest version.
        """
        data = {
            "from": step,
            **({} if input is SAME_INPUT else {"input": input}),
            **({"version": "newest"} if newest else {}),
        }
        key = idempotency_key or str(uuid.uuid4())
        encoded = json_text(data, "the input of a workflow").encode()
        return fork_of(_object(await self._do(FORK, execution_id, key, data=encoded)))

    async def redrive(
        self,
        *,
        rule: str = "",
        workflow: str = "",
        machine: str = "",
        join: str = "",
        since: datetime | None = None,
        after: Redriven | None = None,
        workspace: str = "",
    ) -> Redriven:
        """Act again on dead letters of a rule, workflow, machine or join, or on all.

        A call looks at 50 of them. Each acts once. While the answer says `more`, call it again with
        that as `after`. Raises Refused if more than one of them is named.
        """
        names = {"rule": rule, "workflow": workflow, "machine": machine, "join": join}
        data: dict[str, Any] = {kind: name for kind, name in names.items() if name} or {"all": True}
        if since is not None:
            data["since"] = since.isoformat()
        if after is not None:
            data |= {"after": after.after, "until": after.until}
        answer = await self._do(REDRIVE, data=json.dumps(data).encode(), workspace=workspace)
        return redriven_of(_object(answer))

    # -- the operations of the protocol, with JSON as bytes

    async def list_rules(
        self, workspace: str = "", *, name: str = "", limit: int = 0, after: str = ""
    ) -> WorkflowAnswer:
        """List the engine's rules: which action follows which event.

        Lists come in pages: `more_after` of the answer is `after` of the next one. `name`: only the
        rules of this name.
        """
        return await self._do(_Op.LIST_RULES, name, data=_page(limit, after), workspace=workspace)

    async def get_rule(self, rule_id: str, *, workspace: str = "") -> WorkflowAnswer:
        """Return one rule of the workflow engine."""
        return await self._do(_Op.GET_RULE, rule_id, workspace=workspace)

    async def create_rule(self, data: bytes, *, workspace: str = "") -> WorkflowAnswer:
        """Create a rule of the workflow engine."""
        return await self._do(_Op.CREATE_RULE, data=data, workspace=workspace)

    async def update_rule(self, rule_id: str, data: bytes, *, workspace: str = "") -> WorkflowAnswer:
        """Replace a rule of the workflow engine."""
        return await self._do(_Op.UPDATE_RULE, rule_id, data=data, workspace=workspace)

    async def delete_rule(self, rule_id: str, *, workspace: str = "") -> WorkflowAnswer:
        """Delete a rule of the workflow engine."""
        return await self._do(_Op.DELETE_RULE, rule_id, workspace=workspace)

    async def list_workflows(self, workspace: str = "", *, limit: int = 0, after: str = "") -> WorkflowAnswer:
        """List the workflows."""
        return await self._do(_Op.LIST_WORKFLOWS, data=_page(limit, after), workspace=workspace)

    async def get_workflow(self, workflow_id: str, *, workspace: str = "") -> WorkflowAnswer:
        """Return one workflow."""
        return await self._do(_Op.GET_WORKFLOW, workflow_id, workspace=workspace)

    async def create_workflow(self, data: bytes, *, workspace: str = "") -> WorkflowAnswer:
        """Create a workflow."""
        return await self._do(_Op.CREATE_WORKFLOW, data=data, workspace=workspace)

    async def delete_workflow(self, workflow_id: str, *, workspace: str = "") -> WorkflowAnswer:
        """Delete a workflow."""
        return await self._do(_Op.DELETE_WORKFLOW, workflow_id, workspace=workspace)

    async def list_schedules(self, workspace: str, *, limit: int = 0, after: str = "") -> WorkflowAnswer:
        """List the schedules of one workspace."""
        return await self._do(_Op.LIST_SCHEDULES, data=_page(limit, after), workspace=_exact(workspace))

    async def create_schedule(
        self,
        schedule_id: str,
        data: bytes,
        *,
        workspace: str,
        authority: ScheduleScope | None = None,
        authorization: Authorization | None = None,
    ) -> WorkflowAnswer:
        """Create a schedule in one workspace; "" and "*" raise ValueError."""
        op = _Op(op=_Op.CREATE_SCHEDULE, id=schedule_id, data=data, workspace=_exact(workspace))
        return await self._send(op, authority, authorization)

    async def upsert_schedule(
        self,
        schedule_id: str,
        data: bytes,
        *,
        workspace: str,
        authority: ScheduleScope | None = None,
        authorization: Authorization | None = None,
    ) -> WorkflowAnswer:
        """Create a schedule, or replace the one with this id."""
        op = _Op(op=_Op.UPSERT_SCHEDULE, id=schedule_id, data=data, workspace=_exact(workspace))
        return await self._send(op, authority, authorization)

    async def delete_schedule(self, schedule_id: str, *, workspace: str) -> WorkflowAnswer:
        """Delete a schedule."""
        return await self._do(_Op.DELETE_SCHEDULE, schedule_id, workspace=_exact(workspace))

    async def pause_schedule(self, schedule_id: str, *, workspace: str = "") -> WorkflowAnswer:
        """Let a schedule fire nothing until it is resumed."""
        return await self._do(PAUSE_SCHEDULE, schedule_id, workspace=workspace)

    async def resume_schedule(self, schedule_id: str, *, workspace: str = "") -> WorkflowAnswer:
        """Let a paused schedule go on with its next slot."""
        return await self._do(RESUME_SCHEDULE, schedule_id, workspace=workspace)

    async def backfill_schedule(
        self, schedule_id: str, begin: datetime, end: datetime, *, workspace: str = ""
    ) -> WorkflowAnswer:
        """Let a schedule fire for its slots from `begin` to before `end`.

        The message of the answer says how many there are. A naive time is local time.
        """
        data = {"from": begin.astimezone().isoformat(), "until": end.astimezone().isoformat()}
        return await self._do(BACKFILL_SCHEDULE, schedule_id, data=json.dumps(data).encode(), workspace=workspace)

    async def list_webhooks(self, workspace: str = "", *, limit: int = 0, after: str = "") -> WorkflowAnswer:
        """List the webhooks, without their secrets."""
        return await self._do(LIST_WEBHOOKS, data=_page(limit, after), workspace=workspace)

    async def delete_webhook(self, name: str, *, workspace: str = "") -> WorkflowAnswer:
        """Delete a webhook: its address is gone when this returns."""
        return await self._do(CHANGE_WEBHOOK, name, "delete", workspace=workspace)

    async def rotate_webhook(self, name: str, *, workspace: str = "", idempotency_key: str = "") -> str:
        """Give a webhook a new secret; the one before is valid until the next rotation.

        A second request of the same agent or user with the same key returns the same secret for a
        day, while that is valid; without a key one is made up, so that a cut request is sent again.
        """
        key = idempotency_key or str(uuid.uuid4())
        answer = await self._do(CHANGE_WEBHOOK, name, "rotate", workspace=workspace, status=key)
        return str(_object(answer).get("secret", ""))

    async def list_executions(
        self, workspace: str = "", *, workflow: str = "", status: str = "", limit: int = 0, after: str = ""
    ) -> WorkflowAnswer:
        """List the executions of workflows, running and ended, by status if given."""
        data = _page(limit, after)
        return await self._do(_Op.LIST_EXECUTIONS, workflow, data=data, workspace=workspace, status=status)

    async def get_execution(self, execution_id: str, *, workspace: str = "") -> WorkflowAnswer:
        """Return one execution of a workflow."""
        return await self._do(_Op.GET_EXECUTION, execution_id, workspace=workspace)

    async def cancel_execution(self, execution_id: str, *, workspace: str = "") -> WorkflowAnswer:
        """Cancel an execution of a workflow."""
        return await self._do(_Op.CANCEL_EXECUTION, execution_id, workspace=workspace)

    async def list_state_machines(self, workspace: str = "", *, limit: int = 0, after: str = "") -> WorkflowAnswer:
        """List the state machines."""
        return await self._do(_Op.LIST_STATE_MACHINES, data=_page(limit, after), workspace=workspace)

    async def get_state_machine(self, machine_id: str, *, workspace: str = "") -> WorkflowAnswer:
        """Return one state machine."""
        return await self._do(_Op.GET_STATE_MACHINE, machine_id, workspace=workspace)

    async def create_state_machine(self, data: bytes, *, workspace: str = "") -> WorkflowAnswer:
        """Create a state machine."""
        return await self._do(_Op.CREATE_STATE_MACHINE, data=data, workspace=workspace)

    async def delete_state_machine(self, machine_id: str, *, workspace: str = "") -> WorkflowAnswer:
        """Delete a state machine."""
        return await self._do(_Op.DELETE_STATE_MACHINE, machine_id, workspace=workspace)

    async def list_instances(
        self, machine_id: str = "", *, workspace: str = "", status: str = "", limit: int = 0, after: str = ""
    ) -> WorkflowAnswer:
        """List the instances of a state machine, or of all."""
        data = _page(limit, after)
        return await self._do(_Op.LIST_SM_INSTANCES, machine_id, data=data, workspace=workspace, status=status)

    async def get_instance(self, instance_id: str, *, workspace: str = "") -> WorkflowAnswer:
        """Return one instance of a state machine."""
        return await self._do(_Op.GET_SM_INSTANCE, instance_id, workspace=workspace)

    async def create_instance(self, machine_id: str, data: bytes = b"", *, workspace: str = "") -> WorkflowAnswer:
        """Start an instance of a state machine."""
        return await self._do(_Op.CREATE_SM_INSTANCE, machine_id, data=data, workspace=workspace)

    async def send_event(
        self, instance_id: str, event: str, data: bytes = b"", *, workspace: str = ""
    ) -> WorkflowAnswer:
        """Send an event to an instance of a state machine."""
        return await self._do(_Op.SEND_SM_EVENT, instance_id, event, data=data, workspace=workspace)

    async def list_joins(
        self, workspace: str = "", *, status: str = "", limit: int = 0, after: str = ""
    ) -> WorkflowAnswer:
        """List the joins, which wait until several events have come together."""
        data = _page(limit, after)
        return await self._do(_Op.LIST_JOINS, data=data, workspace=workspace, status=status)

    async def get_join(self, join_id: str, key: str = "", *, workspace: str = "") -> WorkflowAnswer:
        """Return one join, which waits until several events have come together."""
        return await self._do(_Op.GET_JOIN, join_id, key, workspace=workspace)

    async def cancel_join(self, join_id: str, key: str = "", *, workspace: str = "") -> WorkflowAnswer:
        """Cancel a join, which waits for several events."""
        return await self._do(_Op.CANCEL_JOIN, join_id, key, workspace=workspace)

    @asynccontextmanager
    async def requests(self, *, capacity: int = 1024) -> AsyncIterator[AsyncIterator[pb.WorkflowOperation]]:
        """Yield requests to this workflow engine in the block; `respond` answers them."""
        with self._feed("workflow_op", capacity=capacity) as feed:
            yield feed

    async def respond(
        self, request_id: str, data: bytes = b"", *, error: str = "", message: str = "", total: int = 0
    ) -> None:
        """Answer a request to the workflow engine, which the caller is."""
        answer = pb.WorkflowResponse(
            success=not error, error=error, message=message, data=data, total_count=total, request_id=request_id
        )
        await self._tell_confirmed("workflow_response", answer)

    async def _do(
        self,
        kind: _Kind,
        about: str = "",
        second: str = "",
        *,
        data: bytes = b"",
        workspace: str = "",
        status: str = "",
    ) -> WorkflowAnswer:
        op = _Op(op=kind, id=about, secondary_id=second, workspace=workspace, data=data, status_filter=status)
        return await self._send(op)

    async def _send(
        self,
        op: pb.WorkflowOperation,
        authority: ScheduleScope | None = None,
        authorization: Authorization | None = None,
    ) -> WorkflowAnswer:
        if authority is not None:
            write(authority, op.schedule_authority_scope)
        context = authorization_context(authorization)
        if context is not None:
            op.authorization.CopyFrom(context)
        answer: pb.WorkflowResponse = await self._ask("workflow_op", op)
        return WorkflowAnswer(answer.data, answer.message, answer.total_count)


def _page(limit: int, after: str) -> bytes:
    """Return the data that asks for a page of a list; 0: of the usual length."""
    wanted: dict[str, Any] = {"limit": limit} if limit else {}
    if after:
        wanted["after"] = after
    return json.dumps(wanted).encode() if wanted else b""


def _exact(workspace: str) -> str:
    if workspace in {"", "*"}:
        raise ValueError(f"a schedule belongs to one workspace, and {workspace!r} names none; give its id")
    return workspace


def _read(answer: WorkflowAnswer) -> Any:
    try:
        return json.loads(answer.data) if answer.data else None
    except ValueError as error:
        raise UnexpectedAnswer(f"the workflow engine's answer is not JSON: {error}") from None


def _object(answer: WorkflowAnswer) -> Mapping[str, Any]:
    found = _read(answer)
    return found if isinstance(found, dict) else {}


def _list(answer: WorkflowAnswer) -> Sequence[Mapping[str, Any]]:
    found = _read(answer)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
