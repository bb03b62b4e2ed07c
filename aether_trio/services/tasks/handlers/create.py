"""CreateTask: the checks in the reference's order (tasks.md 2.2), the row that a request becomes, and its transaction.

An idempotency key is written in the transaction that creates its task. So a creation that fails leaves no key behind, and of two requests
at the same moment, on whichever nodes, one creates the task and the other finds it. Keys are apart for each workspace: the reference's
are not, and would tell one workspace the ids of another's tasks.

A target that is connected is given its task whether or not its implementation is registered, which the reference asks for: what is
registered is what can be started, and this one runs.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from aether_trio.model.errors import AetherError, Code
from aether_trio.model.identity import Identity, IdentityError, Kind, check_token
from aether_trio.model.limits import Limits
from aether_trio.model.tasks import Mode, Status, Task
from aether_trio.model.tasks.status import grace_ms, priority_of
from aether_trio.model.tasks.task import AGENT_STARTUP
from aether_trio.services.tasks.handlers.protobuf import ABANDON, CANCEL, ON_PARENT_CANCELLED, kept_of, policy_of
from aether_trio.services.tasks.handlers.sanitize import number_of
from aether_trio.services.tasks.transaction import children, rows
from aether_trio.services.tasks.transaction.tokens import Minted, keep
from aether_trio.services.tasks.transaction.work import Context, Work
from aether_trio.storage.base import Execute, Fetch, Program, Row
from aether_trio.wire.pb import aether_pb2 as pb

KEY_MS: Final = 24 * 3600 * 1000
MAX_TEXT_BYTES: Final = Limits.name_bytes
"""Of each free text of a request. The reference has no bound."""
MAX_REQUEST_BYTES: Final = Limits.request_bytes
"""Of everything but the payload: it is shown in every list."""

WORKER_KINDS: Final = frozenset({Kind.AGENT, Kind.UNIQUE_TASK, Kind.TASK, Kind.SERVICE})
"""Who can be given work."""

MODES: Final[Mapping[int, Mode]] = MappingProxyType({pb.TARGETED: Mode.TARGETED, pb.POOL: Mode.POOL})

DEADLINES: Final = ("schedule_to_start_ms", "start_to_close_ms", "heartbeat_timeout_ms", "schedule_to_close_ms")
"""The wire has no fields for these; they are read from metadata of the same names, in milliseconds."""
MAX_DEADLINE_MS: Final = 10 * 365 * 24 * 3600 * 1000
SHOWN_TEXT: Final = 40
"""Characters of what a refusal quotes."""

_TEXTS: Final = (
    "task_type",
    "context_id",
    "idempotency_key",
    "correlation_id",
    "root_task_id",
    "parent_task_id",
    "originating_schedule_id",
)


def check_names(request: pb.CreateTaskRequest, own_workspace: str, *, strict: bool) -> str:
    """The task's workspace. Raises AetherError INVALID_IDENTIFIER, which is answered without a typed response."""
    workspace = request.workspace or own_workspace
    try:
        check_token(workspace, "workspace", strict=strict)
        if request.target_implementation:
            check_token(request.target_implementation, "target_implementation", strict=strict)
    except IdentityError as error:
        raise AetherError(Code.INVALID_IDENTIFIER, str(error)) from None
    return workspace


def check_size(request: pb.CreateTaskRequest, payload_bytes: int) -> None:
    """Raises AetherError TASK_PAYLOAD_TOO_LARGE or INVALID_ARGUMENT."""
    if len(request.payload) > payload_bytes:
        raise AetherError(
            Code.TASK_PAYLOAD_TOO_LARGE,
            f"the payload has {len(request.payload)} bytes; at most {payload_bytes} are allowed",
        )
    for name in _TEXTS:
        text = getattr(request, name)
        if len(text.encode()) > MAX_TEXT_BYTES or "\x00" in text:
            raise AetherError(Code.INVALID_ARGUMENT, f"{name} has more than {MAX_TEXT_BYTES} bytes, or a zero byte")
    rest = request.ByteSize() - len(request.payload)
    if rest > MAX_REQUEST_BYTES:
        raise AetherError(
            Code.INVALID_ARGUMENT,
            f"the request has {rest} bytes beside its payload; at most {MAX_REQUEST_BYTES} are allowed",
        )


def failed(text: str) -> AetherError:
    """A task that cannot be."""
    return AetherError(Code.TASK_CREATE_FAILED, text)


def target_of(request: pb.CreateTaskRequest, *, strict: bool) -> Identity | None:
    """Whom a TARGETED task is for. Raises AetherError TASK_CREATE_FAILED."""
    if MODES.get(request.assignment_mode) is not Mode.TARGETED:
        return None
    try:
        target = Identity.parse(request.target_agent_id, strict=strict)
    except IdentityError as error:
        raise failed(f"target_agent_id: {error}") from None
    if target.kind not in WORKER_KINDS:
        raise failed(f"{target.kind.with_article} cannot be given tasks")
    return target


def deadlines_of(request: pb.CreateTaskRequest) -> dict[str, int]:
    """Raises AetherError TASK_CREATE_FAILED."""
    found = {}
    for name in DEADLINES:
        text = request.metadata.get(name, "")
        if text:
            deadline_ms = number_of(text, MAX_DEADLINE_MS)
            if deadline_ms is None:
                raise failed(
                    f"metadata {name} is {_quoted(text)}; it must be a number of milliseconds, at most {MAX_DEADLINE_MS}"
                )
            found[name] = deadline_ms
    return found


def check_policy(request: pb.CreateTaskRequest) -> None:
    """Raises AetherError TASK_CREATE_FAILED."""
    policy = request.metadata.get(ON_PARENT_CANCELLED, ABANDON)
    if policy not in (ABANDON, CANCEL):
        raise failed(f"metadata {ON_PARENT_CANCELLED} is {_quoted(policy)}; it must be {ABANDON} or {CANCEL}")


def _quoted(text: str) -> str:
    return repr(text if len(text) <= SHOWN_TEXT else f"{text[:SHOWN_TEXT]}…")


def new_task(
    request: pb.CreateTaskRequest,
    *,
    task_id: str,
    workspace: str,
    creator: Identity,
    parent_task_id: str,
    target: Identity | None,
    now_ms: int,
    order_us: int,
) -> Task:
    """The row of a request. Raises AetherError TASK_CREATE_FAILED."""
    mode = MODES.get(request.assignment_mode, Mode.SELF_ASSIGN)
    if mode is Mode.POOL and not request.target_implementation:
        raise failed("a POOL task needs target_implementation")
    if request.task_type == AGENT_STARTUP and mode is not Mode.TARGETED:
        raise failed(f"tasks of type {AGENT_STARTUP} are made by starting an agent")
    check_policy(request)
    policy = policy_of(request)
    # Of an agent_startup the window is no use: reconciliation looks after those.
    grace = 0 if request.task_type == AGENT_STARTUP else grace_ms(request.task_class)
    task = Task(
        task_id,
        request.task_type,
        workspace,
        mode=mode,
        task_class=request.task_class,
        priority=priority_of(request.priority),
        creator=creator.text,
        target=target.text if target is not None else "",
        target_implementation=target.implementation if target is not None else request.target_implementation,
        target_specifier=target.specifier if target is not None else "",
        parent_task_id=parent_task_id,
        root_task_id=request.root_task_id or task_id,
        correlation_id=request.correlation_id,
        context_id=request.context_id,
        grace_ms=grace,
        retry_policy="" if policy is None else policy.to_json(),
        max_attempts=3 if policy is None else policy.attempts,
        spec=kept_of(request),
        order_us=order_us,
        created_ms=now_ms,
        updated_ms=now_ms,
        pending_ms=now_ms,
    )
    for name, deadline_ms in deadlines_of(request).items():
        setattr(task, name, deadline_ms)
    if creator.kind is Kind.USER:
        task.subject_type = task.root_subject_type = "user"
        task.subject_id = task.root_subject_id = creator.user_id
    if mode is Mode.SELF_ASSIGN:
        task.status, task.assigned_to, task.assigned_ms, task.epoch = Status.ASSIGNED, creator.text, now_ms, 1
    return task


class Offline(enum.Enum):
    """What becomes of a TARGETED task whose target is not connected."""

    QUEUE = "queue"
    REJECT = "reject"
    START = "start"
    UNKNOWN = "unknown"
    """It is to be started, and nobody knows how."""


_NOBODY: Final = {
    Offline.REJECT: "{0} is not connected",
    Offline.UNKNOWN: "{0} is not connected, and its implementation is not registered, so nobody can start it",
}

Start = Callable[[Work, Identity, Task], Program[str]]
"""Starter.start (starting.py)."""


class Created(NamedTuple):
    """What became of a request. `task` is None for a repeated one, whose task has the id `task_id`.

    `problem`: nothing was created, and this is why. `started`: the target is being started.
    """

    task_id: str
    task: Task | None = None
    work: Work | None = None
    problem: str = ""
    started: bool = False
    absent: bool = False
    """The problem is that the target is not among the workers."""


def key_hash(workspace: str, key: str) -> bytes:
    """How an idempotency key is kept."""
    return hashlib.sha256(f"{workspace}\x00{key}".encode()).digest()


def request_hash(request: pb.CreateTaskRequest, workspace: str) -> bytes:
    """What two requests with one idempotency key have in common, when they ask for the same."""
    same = pb.CreateTaskRequest()
    same.CopyFrom(request)
    same.workspace = workspace
    same.ClearField("request_id")
    same.ClearField("authorization")
    return hashlib.sha256(same.SerializeToString(deterministic=True)).digest()


REUSED_KEY: Final = "idempotency_key was used for another request before: the same key goes with the same request only"


def create(
    context: Context,
    task: Task,
    payload: bytes,
    *,
    key: bytes,
    request: bytes,
    offline: Offline,
    start: Start | None,
    target: Identity | None,
    minted: Minted | None,
) -> Program[Created]:
    """Write a task with the token `minted`, if its maker may make one; or find the task of its key.

    `request` is the hash of what was asked for with the key.
    """
    if key:
        found: list[Row] = yield Fetch("SELECT task_id, expires_ms, request FROM task_keys WHERE key_hash = $1", (key,))
        if found and found[0][1] > context.now_ms and found[0][0] != task.task_id:
            if found[0][2] is not None and found[0][2] != request:
                return Created("", problem=REUSED_KEY)
            return Created(found[0][0])
    work = Work(context)
    if task.parent_task_id:
        parent = yield from children.parent_of(work, task.parent_task_id)
        if (
            parent is None
            or parent.workspace != task.workspace
            or task.creator not in (parent.assigned_to, parent.creator)
        ):
            return Created("", problem=f"parent task {task.parent_task_id} not found")
        if parent.is_final:
            return Created("", problem=f"parent task {task.parent_task_id} has ended: it is {parent.status.value}")
    started = False
    if target is not None and offline is not Offline.QUEUE and (yield from work.find_worker(target.text)) is None:
        if offline is not Offline.START or start is None:
            return Created("", problem=_NOBODY.get(offline, _NOBODY[Offline.UNKNOWN]).format(target.text), absent=True)
        problem = yield from start(work, target, task)
        if problem:
            return Created("", problem=problem)
        started = True
    elif task.task_type == AGENT_STARTUP:
        return Created("", problem=f"{task.target} is connected already")
    task = task.changed({})  # what it becomes is this run's, as a program may run again
    task.tokens = int(minted is not None and (yield from keep(minted, task.task_id, context.now_ms)))
    made = yield from work.create(task, payload)
    if key:
        yield Execute(
            "INSERT INTO task_keys (key_hash, task_id, expires_ms, request) VALUES ($1, $2, $3, $4) "
            "ON CONFLICT (key_hash) DO UPDATE SET task_id = excluded.task_id, expires_ms = excluded.expires_ms, "
            "request = excluded.request",
            (key, task.task_id, context.now_ms + KEY_MS, request),
        )
    if not made:  # the start that it wishes for has its id, or this program has run before
        return Created(task.task_id, (yield from rows.load(task.task_id)), work, started=started)
    given = [push.task for push in work.pushes if push.task.task_id == task.task_id]
    return Created(task.task_id, given[-1] if given else task, work, started=started)
