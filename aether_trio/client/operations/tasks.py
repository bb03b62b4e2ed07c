"""`agent.tasks`: creates tasks, finds them, and changes their states."""

from __future__ import annotations

import base64
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import anyio

from aether_trio.client.errors import (
    MAYBE_DONE,
    AetherError,
    ConnectionLost,
    FeedOverflow,
    RequestTimeout,
    TaskFailed,
    TaskNotEnded,
)
from aether_trio.client.operations.enums import (
    TargetOfflinePolicy,
    TaskAssignmentMode,
    TaskClass,
    TaskPriority,
    TaskStatus,
    WaitReason,
)
from aether_trio.client.operations.principals import Authorization, Principal, authorization_context, principal_ref
from aether_trio.client.operations.records import from_time, read, to_ms, write
from aether_trio.client.operations.task_events import StatusChanged, TaskEvent, TaskFeeds
from aether_trio.client.operations.task_results import encoded_result
from aether_trio.client.operations.task_values import (
    END_WORDS,
    ENDED,
    CompletionEvent,
    CreatedTask,
    Hibernation,
    RetryPolicy,
    Task,
    TaskPage,
    WaitSpec,
)
from aether_trio.wire.pb import aether_pb2 as pb

_Op = pb.TaskOperation
_status = pb.TaskStatus.ValueType
_class = pb.TaskClass.ValueType
_priority = pb.TaskPriority.ValueType

_AGAIN_S: Final = 0.1
"""Before a request is sent again after a cut."""
_LOOK_S: Final = 1.0
"""Between two looks at a task that cannot be followed."""


async def _end_or_retry(events: AsyncIterator[TaskEvent]) -> None:
    """Return at the next event of a state in which the task may have ended."""
    async for event in events:
        if isinstance(event.event, StatusChanged) and event.event.to_status in ENDED:
            return


class Tasks(TaskFeeds):
    """Creates tasks, finds them, and changes their states."""

    async def create(
        self,
        task_type: str,
        payload: bytes = b"",
        *,
        target: str = "",
        pool: str = "",
        workspace: str = "",
        metadata: Mapping[str, str] | None = None,
        launch_param_overrides: Mapping[str, str] | None = None,
        target_identity: str = "",
        task_class: TaskClass = TaskClass.UNSPECIFIED,
        priority: TaskPriority = TaskPriority.UNSPECIFIED,
        retry_policy: RetryPolicy | None = None,
        schedule_to_start_s: float | None = None,
        start_to_close_s: float | None = None,
        heartbeat_timeout_s: float | None = None,
        schedule_to_close_s: float | None = None,
        offline_policy: TargetOfflinePolicy = TargetOfflinePolicy.UNSPECIFIED,
        idempotency_key: str = "",
        context_id: str = "",
        correlation_id: str = "",
        root_task_id: str = "",
        parent_task_id: str = "",
        completion_event: CompletionEvent | None = None,
        required_downstream_authority_hops: int = 0,
        originating_schedule_id: str = "",
        authorization: Authorization | None = None,
    ) -> CreatedTask:
        """Create a task for the identity `target`, the workers of `pool`, or the caller.

        The payload has at most 512 KiB by default. A second request with the same `idempotency_key`
        within a day gets the first one's task. The deadlines are those of docs/tasks.md, in
        seconds. `target_identity` asks for a token with which that identity may connect to
        do the task. Raises ValueError for both `target` and `pool`.
        """
        if target and pool:
            raise ValueError("the new task was given both a target and a pool; leave one of them out")
        mode = TaskAssignmentMode.SELF_ASSIGN
        if target or pool:
            mode = TaskAssignmentMode.TARGETED if target else TaskAssignmentMode.POOL
        deadlines = {
            "schedule_to_start_ms": schedule_to_start_s,
            "start_to_close_ms": start_to_close_s,
            "heartbeat_timeout_ms": heartbeat_timeout_s,
            "schedule_to_close_ms": schedule_to_close_s,
        }
        limits = {name: str(to_ms(seconds)) for name, seconds in deadlines.items() if seconds is not None}
        request = pb.CreateTaskRequest(
            task_type=task_type,
            workspace=workspace,
            assignment_mode=pb.TaskAssignmentMode.ValueType(mode),
            target_agent_id=target,
            target_implementation=pool,
            launch_param_overrides=dict(launch_param_overrides or {}),
            metadata={**(metadata or {}), **limits},
            payload=payload,
            authorization=authorization_context(authorization),
            target_identity=target_identity,
            task_class=_class(task_class),
            context_id=context_id,
            retry_policy=None if retry_policy is None else write(retry_policy, pb.RetryPolicy()),
            priority=_priority(priority),
            idempotency_key=idempotency_key,
            correlation_id=correlation_id,
            root_task_id=root_task_id,
            completion_event=None if completion_event is None else write(completion_event, pb.TaskCompletionEvent()),
            parent_task_id=parent_task_id,
            target_offline_policy=pb.TargetOfflinePolicy.ValueType(offline_policy),
            required_downstream_authority_hops=required_downstream_authority_hops,
            originating_schedule_id=originating_schedule_id,
        )
        return read(CreatedTask, await self._ask("create_task", request))

    async def get(self, task_id: str) -> Task:
        """Return one task, with its result if it has one.

        Raises Refused if there is no task that the caller may see.
        """
        answer: pb.TaskQueryResponse = await self._ask("task_query", pb.TaskQuery(op=pb.TaskQuery.GET, task_id=task_id))
        return read(Task, answer.task)

    async def payload(self, task_id: str) -> bytes:
        """Return the payload that the creator of a task has given it."""
        payload = b""
        while True:
            part = pb.TaskFilter(page_token="payload", offset=len(payload))  # noqa: S106  # no secret
            query = pb.TaskQuery(op=pb.TaskQuery.GET, task_id=task_id, filter=part)
            answer: pb.TaskQueryResponse = await self._ask("task_query", query)
            found = answer.task.metadata
            more = base64.b64decode(found.get("_payload_base64", ""))
            payload += more
            if not more or len(payload) >= int(found.get("_payload_bytes", "0")):
                return payload

    async def saved_result(self, task_id: str) -> bytes:
        """Return the data of the checkpoint that is a task's result (`result_checkpoint`)."""
        op = pb.CheckpointOperation(op=pb.CheckpointOperation.LOAD, key=f"_result:{task_id}")
        answer: pb.CheckpointResponse = await self._ask("checkpoint_op", op)
        return answer.data

    async def wait(self, task_id: str, *, timeout: float | None = None) -> Task:
        """Wait until a task has ended, and return it with its result.

        A failure that will be tried again is no end. `status` says how it ended; nothing is raised
        for a task that has failed (`run` does). Goes on after reconnects and restarts of the
        gateway. Raises TaskNotEnded, a TimeoutError, after `timeout` seconds; Refused if there is
        no such task.
        """
        with anyio.move_on_after(timeout):
            return await self._until_ended(task_id)
        assert timeout is not None
        raise TaskNotEnded(task_id, f"task {task_id}", timeout)

    async def _until_ended(self, task_id: str) -> Task:
        while True:
            try:
                if (task := await self._followed(task_id)) is not None:
                    return task
                await anyio.sleep(_LOOK_S)
            except (ConnectionLost, RequestTimeout, FeedOverflow):
                await anyio.sleep(_AGAIN_S)
            except AetherError as error:
                if not error.retryable:
                    raise
                await anyio.sleep(max(error.retry_after_s, _LOOK_S))

    async def _followed(self, task_id: str) -> Task | None:
        """Follow a task to its end; None if it cannot be followed, and has not ended."""
        try:
            async with self.follow(task_id) as events:
                while not (task := await self.get(task_id)).has_ended:
                    await _end_or_retry(events)
                return task
        except FeedOverflow:
            raise
        except AetherError as error:
            if error.retryable:
                raise
            # A session follows so many tasks; those beyond are looked at now and then.
            task = await self.get(task_id)
            return task if task.has_ended else None

    async def run(self, /, task_type: str, payload: bytes = b"", *, timeout: float | None = None, **create: Any) -> Any:
        """Create a task, wait for its end, and return its result.

        The keywords are those of `create`; an `idempotency_key` is made up, so that a cut
        connection creates no second task. Raises TaskFailed if it does not end well, and
        TaskNotEnded, a TimeoutError with the task's id, after `timeout` seconds. In both cases,
        and when it is cancelled, the task stays.
        """
        create["idempotency_key"] = create.get("idempotency_key") or str(uuid.uuid4())
        task_id = ""
        with anyio.move_on_after(timeout):
            task_id = await self._create_in_the_end(task_type, payload, create)
            task = await self._until_ended(task_id)
            if task.status is not TaskStatus.COMPLETED:
                raise TaskFailed(task_id, END_WORDS[task.status], task.error, task)
            return await self._saved_in_the_end(task_id) if task.result_checkpoint else task.result
        assert timeout is not None
        what = f"task {task_id}" if task_id else f"the task of type {task_type!r}"
        raise TaskNotEnded(task_id, what, timeout)

    async def _create_in_the_end(self, task_type: str, payload: bytes, create: dict[str, Any]) -> str:
        """Create a task with an idempotency key, again after cuts; return its id."""
        while True:
            try:
                return (await self.create(task_type, payload, **create)).task_id
            except MAYBE_DONE:
                await anyio.sleep(_AGAIN_S)

    async def _saved_in_the_end(self, task_id: str) -> bytes:
        """Return the data of a result that is a checkpoint, after cuts too."""
        while True:
            try:
                return await self.saved_result(task_id)
            except (ConnectionLost, RequestTimeout):
                await anyio.sleep(_AGAIN_S)

    async def query(
        self,
        *,
        statuses: Sequence[TaskStatus] = (),
        exclude_statuses: Sequence[TaskStatus] = (),
        workspace: str = "",
        task_type: str = "",
        task_class: TaskClass = TaskClass.UNSPECIFIED,
        exclude_task_classes: Sequence[TaskClass] = (),
        priority: TaskPriority = TaskPriority.UNSPECIFIED,
        min_priority: TaskPriority = TaskPriority.UNSPECIFIED,
        creator: Principal | str | None = None,
        subject: Principal | str | None = None,
        authority_mode: str = "",
        authority_grant_id: str = "",
        root_authority_grant_id: str = "",
        parent_task_id: str = "",
        include_descendants: bool = False,
        root_task_id: str = "",
        context_id: str = "",
        correlation_id: str = "",
        id_prefix: str = "",
        status_changed_after: datetime | None = None,
        limit: int = 0,
        offset: int = 0,
        page_token: str = "",
    ) -> TaskPage:
        """List tasks that fit every filter, on pages of 100 by default, of 1,000 at most.

        `id_prefix` is what their ids begin with.
        """
        about = None if subject is None else Principal.of(subject)
        wanted = pb.TaskFilter(
            statuses=[_status(one) for one in statuses],
            exclude_statuses=[_status(one) for one in exclude_statuses],
            workspace=workspace,
            task_type=task_type,
            task_class=_class(task_class),
            exclude_task_classes=[_class(one) for one in exclude_task_classes],
            priority=_priority(priority),
            min_priority=_priority(min_priority),
            creator_actor=principal_ref(creator),
            subject_type=about.kind if about else "",
            subject_id=about.id if about else "",
            authority_mode=authority_mode,
            authority_grant_id=authority_grant_id,
            root_authority_grant_id=root_authority_grant_id,
            parent_task_id=parent_task_id,
            include_descendants=include_descendants,
            root_task_id=root_task_id,
            context_id=context_id,
            correlation_id=correlation_id,
            status_timestamp_after_unix_ms=from_time(status_changed_after, "ms"),
            limit=limit,
            offset=offset,
            page_token=page_token,
        )
        query = pb.TaskQuery(op=pb.TaskQuery.LIST, task_id=id_prefix, filter=wanted)
        answer: pb.TaskQueryResponse = await self._ask("task_query", query)
        return TaskPage(tuple(read(Task, one) for one in answer.tasks), answer.next_page_token)

    async def claim(self, task_id: str) -> Task:
        """Claim a task that was assigned to the caller. A second claim changes nothing."""
        return await self._move(_Op(op=_Op.CLAIM, task_id=task_id))

    async def complete(
        self, task_id: str, *, result: Any = None, result_checkpoint: str = "", reason: str = ""
    ) -> Task:
        """Report that a task is done, with its result.

        That is bytes or what JSON can hold, of at most 512 KiB; or the key of a checkpoint of the
        worker. None is none.
        """
        op = _Op(op=_Op.COMPLETE, task_id=task_id, reason=reason)
        if given := encoded_result(result, result_checkpoint).fields:
            op.wait_spec.input_match.update(given)
        return await self._move(op)

    async def fail(self, task_id: str, *, reason: str) -> Task:
        """Report that a task has failed; its retry policy says if it is tried again."""
        return await self._move(_Op(op=_Op.FAIL, task_id=task_id, reason=reason))

    async def cancel(self, task_id: str, *, reason: str = "") -> Task:
        """Cancel a task that is no longer wanted."""
        return await self._move(_Op(op=_Op.CANCEL, task_id=task_id, reason=reason))

    async def retry(self, task_id: str, *, reason: str = "") -> Task:
        """Try a task again that has failed or was cancelled."""
        return await self._move(_Op(op=_Op.RETRY, task_id=task_id, reason=reason))

    async def reject(self, task_id: str, *, reason: str = "") -> Task:
        """Refuse, as its worker, to do a task."""
        return await self._move(_Op(op=_Op.REJECT, task_id=task_id, reason=reason))

    async def pause(self, task_id: str, wait: WaitSpec, *, reason: str = "", request_id: str = "") -> Task:
        """Pause a running task until `wait` ends: for input, for authority, until a time.

        The answer is a task that runs if its input is there already. After a lost answer, ask again
        with the same `request_id` ("" is a new one): the wait may have ended meanwhile.
        """
        spec = write(wait, pb.WaitSpec())
        op = _Op(op=_Op.PAUSE, task_id=task_id, reason=reason, request_id=request_id, wait_spec=spec)
        return await self._move(op)

    async def wait_for(
        self,
        task_id: str,
        depends_on: Sequence[str],
        *,
        any_of_them: bool = False,
        timeout_s: float = 0,
        request_id: str = "",
    ) -> Task:
        """Pause a task until all `depends_on` ended, or any; `timeout_s` 0 is no limit."""
        wait = WaitSpec(
            reason=WaitReason.DEPENDENCY, depends_on=tuple(depends_on), wake_on_any=any_of_them, timeout_s=timeout_s
        )
        spec = write(wait, pb.WaitSpec())
        return await self._move(_Op(op=_Op.WAIT_FOR, task_id=task_id, request_id=request_id, wait_spec=spec))

    async def hibernate(
        self,
        task_id: str,
        hibernation: Hibernation,
        *,
        until: datetime | None = None,
        timeout_s: float = 0,
        reason: str = "",
        request_id: str = "",
    ) -> Task:
        """Put a task to sleep until a time or an event; save its checkpoint before."""
        wait = WaitSpec(
            reason=WaitReason.HIBERNATION, scheduled_wake=until, timeout_s=timeout_s, hibernation=hibernation
        )
        return await self.pause(task_id, wait, reason=reason, request_id=request_id)

    async def resume(self, task_id: str, *, reason: str = "") -> Task:
        """Resume a paused task."""
        return await self._move(_Op(op=_Op.RESUME, task_id=task_id, reason=reason))

    async def _move(self, op: pb.TaskOperation) -> Task:
        answer: pb.TaskOperationResponse = await self._ask("task_op", op)
        return read(Task, answer.task)
