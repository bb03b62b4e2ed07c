"""`agent.tasks`: creates tasks, finds them, and changes their states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from aether_trio.client.operations.enums import (
    TargetOfflinePolicy,
    TaskAssignmentMode,
    TaskClass,
    TaskPriority,
    TaskStatus,
    WaitReason,
)
from aether_trio.client.operations.principals import Authorization, Principal, authorization_context, principal_ref
from aether_trio.client.operations.records import from_time, read, write
from aether_trio.client.operations.task_events import TaskFeeds
from aether_trio.client.operations.task_values import (
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
        within a day gets the first one's task. Deadlines are `metadata`, in milliseconds:
        "schedule_to_start_ms", "start_to_close_ms", "heartbeat_timeout_ms", "schedule_to_close_ms"
        (docs/tasks.md). `target_identity` asks for a token with which that identity may connect to
        do the task. Raises ValueError for both `target` and `pool`.
        """
        if target and pool:
            raise ValueError("the new task was given both a target and a pool; leave one of them out")
        mode = TaskAssignmentMode.SELF_ASSIGN
        if target or pool:
            mode = TaskAssignmentMode.TARGETED if target else TaskAssignmentMode.POOL
        request = pb.CreateTaskRequest(
            task_type=task_type,
            workspace=workspace,
            assignment_mode=pb.TaskAssignmentMode.ValueType(mode),
            target_agent_id=target,
            target_implementation=pool,
            launch_param_overrides=dict(launch_param_overrides or {}),
            metadata=dict(metadata or {}),
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
        """Return one task. Raises Refused if there is none that the caller may see."""
        answer: pb.TaskQueryResponse = await self._ask("task_query", pb.TaskQuery(op=pb.TaskQuery.GET, task_id=task_id))
        return read(Task, answer.task)

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

    async def complete(self, task_id: str, *, reason: str = "") -> Task:
        """Report that a task is done."""
        return await self._move(_Op(op=_Op.COMPLETE, task_id=task_id, reason=reason))

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
        timeout_ms: int = 0,
        request_id: str = "",
    ) -> Task:
        """Pause a task until all `depends_on` ended, or any; `timeout_ms` 0 is no limit."""
        wait = WaitSpec(
            reason=WaitReason.DEPENDENCY, depends_on=tuple(depends_on), wake_on_any=any_of_them, timeout_ms=timeout_ms
        )
        spec = write(wait, pb.WaitSpec())
        return await self._move(_Op(op=_Op.WAIT_FOR, task_id=task_id, request_id=request_id, wait_spec=spec))

    async def hibernate(
        self,
        task_id: str,
        hibernation: Hibernation,
        *,
        until: datetime | None = None,
        timeout_ms: int = 0,
        reason: str = "",
        request_id: str = "",
    ) -> Task:
        """Put a task to sleep until a time or an event; save its checkpoint before."""
        wait = WaitSpec(
            reason=WaitReason.HIBERNATION, scheduled_wake=until, timeout_ms=timeout_ms, hibernation=hibernation
        )
        return await self.pause(task_id, wait, reason=reason, request_id=request_id)

    async def resume(self, task_id: str, *, reason: str = "") -> Task:
        """Resume a paused task."""
        return await self._move(_Op(op=_Op.RESUME, task_id=task_id, reason=reason))

    async def _move(self, op: pb.TaskOperation) -> Task:
        answer: pb.TaskOperationResponse = await self._ask("task_op", op)
        return read(Task, answer.task)
