"""Handles `create_task`: checks a request, makes the task's row and writes it.

    handle ──▶ checks in the reference's order ──▶ new_task ──▶ create_in_transaction ──▶ response

An idempotency key is written in the transaction that creates its task (tasks.md 2.2): a failed
creation leaves no key, and of two requests at once one finds the other's task. Keys are separate
for each workspace: those of the reference would tell one workspace the ids of another's tasks.

A connected target is assigned its task even if its implementation is not registered, which the
reference demands. A refusal is an ErrorResponse without an id and, if the request has an id, a
failed CreateTaskResponse: the reference's callers wait for the latter until they time out.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

import trio

from aether_trio.delivery.router import send_refusal
from aether_trio.model.access import AccessLevel
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import Identity, IdentityError, Kind, check_token
from aether_trio.model.ids import IdFactory
from aether_trio.model.limits import Limits
from aether_trio.model.permissions import may_send
from aether_trio.model.tasks import Mode, StoredStatus, TaskRow
from aether_trio.model.tasks.status import grace_ms, priority_of
from aether_trio.model.tasks.task import AGENT_STARTUP
from aether_trio.model.topics import TopicKind, resolve_target
from aether_trio.services.access import DIRECT, Authorizer
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.grants import NO_GRANT_MAKER, GrantMaker, MintedGrant
from aether_trio.services.tasks.handlers.sanitize import number_of
from aether_trio.services.tasks.handlers.sessions import TaskSessions
from aether_trio.services.tasks.protobuf import ABANDON, CANCEL, ON_PARENT_CANCELLED, kept_of, policy_of
from aether_trio.services.tasks.starter import Starter
from aether_trio.services.tasks.transaction import child_events, task_rows
from aether_trio.services.tasks.transaction.interface import Context, Transaction
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.tasks.transaction.tokens import IssuedToken, hash_token, insert, new_token
from aether_trio.services.tasks.transaction.workers import WORKER_KINDS
from aether_trio.session.session import Session
from aether_trio.storage.base import Execute, Fetch, Program, Row, StorageUnavailable
from aether_trio.storage.outages import outage
from aether_trio.wire.error_response import error_response
from aether_trio.wire.pb import aether_pb2 as pb

KEY_MS: Final = 24 * 3600 * 1000
"""How long an idempotency key is kept."""
MAX_TEXT_BYTES: Final = Limits.name_bytes
"""Maximum size of each free text of a request. The reference has no bound."""
MAX_REQUEST_BYTES: Final = Limits.request_bytes
"""Maximum size of a request without its payload: every task list shows it."""
JOIN_RETRIES_S: Final = (0.01, 0.05, 0.2, 0.5)
"""Pauses until the row of a target that has just connected to another node is written."""
SYSTEM_WORKSPACE: Final = "_system"

MODES: Final[Mapping[int, Mode]] = MappingProxyType({pb.TARGETED: Mode.TARGETED, pb.POOL: Mode.POOL})

DEADLINES: Final = ("schedule_to_start_ms", "start_to_close_ms", "heartbeat_timeout_ms", "schedule_to_close_ms")
"""The protocol has no fields for deadlines: they are metadata of these names, in milliseconds."""
MAX_DEADLINE_MS: Final = 10 * 365 * 24 * 3600 * 1000
QUOTED_CHARACTERS: Final = 40
"""Characters of a client's text that a refusal quotes."""

_BOUNDED_TEXTS: Final = (
    "task_type", "context_id", "idempotency_key", "correlation_id", "root_task_id", "parent_task_id",
    "originating_schedule_id",
)  # fmt: skip


class OfflinePolicy(enum.Enum):
    """What happens to a TARGETED task whose target is not connected."""

    QUEUE = "queue"
    REJECT = "reject"
    START = "start"
    UNKNOWN = "unknown"
    """The creator wants the target started, but its implementation is not registered."""


_ABSENT: Final = {
    OfflinePolicy.REJECT: "{0} is not connected",
    OfflinePolicy.UNKNOWN: "{0} is not connected, and its implementation is not registered, so it cannot be started",
}

Start = Callable[[Transaction, Identity, TaskRow], Program[str]]
"""Starter.start (starter.py)."""


class CreateResult(NamedTuple):
    """A request's task: id, row (None: its idempotency key was used), or the problem."""

    task_id: str
    task: TaskRow | None = None
    tx: TaskTransaction | None = None
    problem: str = ""
    started: bool = False
    absent: bool = False
    """Whether the problem is that the target is not among the connected workers."""
    denied: bool = False
    """Whether the problem is that the creator may not act on behalf of the subject any more."""


@dataclass(slots=True)
class TaskCreator:
    """Handles `create_task` requests."""

    engine: Engine
    sessions: TaskSessions
    ids: IdFactory
    authorizer: Authorizer
    payload_bytes: Callable[[str], int]
    """Returns how many bytes the payload of a task of a workspace may have."""
    strict: bool
    random_bytes: Callable[[int], bytes]
    connected: Callable[[str], Awaitable[bool]]
    """Returns whether a participant is connected to any node. Raises StorageUnavailable."""
    starter: Starter
    grants: GrantMaker = NO_GRANT_MAKER
    _latest_us: int = 0

    async def handle(self, session: Session, request: pb.CreateTaskRequest) -> list[pb.DownstreamMessage]:
        """Answer a `create_task` request, also when it is refused or storage fails."""
        try:
            response = await self._create(session, request)
        except StorageUnavailable as error:
            told = outage(error)
            return _refused(
                request, told if told.code is Code.OUTCOME_UNKNOWN else RequestError(Code.INTERNAL, told.message)
            )
        except RequestError as error:
            return _refused(request, error)
        response.request_id = request.request_id
        return [pb.DownstreamMessage(create_task=response)] if request.request_id else []

    async def _create(self, session: Session, request: pb.CreateTaskRequest) -> pb.CreateTaskResponse:
        identity = session.identity
        workspace = check_names(request, session.workspace, strict=self.strict)
        check_size(request, self.payload_bytes(workspace))
        await self._check_access(session, request, workspace)
        target = target_of(request, strict=self.strict)
        self._check_reach(session, request, target)
        offline = await self._offline_policy(request, target)
        now_ms = self.engine.clock.now_ms()
        task = new_task(
            request,
            task_id=self.ids.dated(now_ms),
            workspace=workspace,
            creator=identity,
            parent_task_id=request.parent_task_id or session.task_id,
            target=target,
            now_ms=now_ms,
            order_us=self._next_order_us(),
        )
        granted = await self.grants.prepare(session, request, task, target)
        if granted is not None:
            granted.give(task)
        await self.sessions.wait_joined(session)
        if task.mode is Mode.SELF_ASSIGN:
            await self.sessions.register_owner(session)
        owner, refusal = await self._token_owner(session, request)
        token = new_token(self.random_bytes) if owner else ""
        key = key_hash(workspace, request.idempotency_key) if request.idempotency_key else b""
        asked = request_hash(request, workspace) if key else b""
        minted = _issued(session, token, owner) if token else None

        tied = task.mode is not Mode.POOL or task.parent_task_id or key or minted or granted
        separate = "" if tied else task.task_id

        async def run(offline: OfflinePolicy) -> CreateResult:
            return await self.engine.run_program(
                lambda context: create_in_transaction(
                    context,
                    task,
                    request.payload,
                    key=key,
                    request=asked,
                    offline=offline,
                    start=self.starter.start,
                    target=target,
                    minted=minted,
                    granted=granted,
                    grants=self.grants,
                ),
                lambda created: created.tx,
                key=separate,
            )

        created = await run(OfflinePolicy.REJECT if offline is OfflinePolicy.START else offline)
        if created.absent and target is not None:
            created = await self._retry_absent(run, created, target, offline)
        if created.denied:
            raise RequestError(Code.PERMISSION_DENIED, created.problem)
        if created.problem:
            raise _failed(created.problem)
        if granted is not None:
            await self.grants.created(granted)
        if request.target_identity and created.task is not None:
            if token and not created.task.tokens:
                refusal = "the task of the token that let in the creator has ended, or has too many ancestors"
            self.engine.audit.token_made(
                session, created.task_id, task.workspace, owner or request.target_identity, refusal
            )
        return self._answer(created, token)

    async def _retry_absent(
        self,
        run: Callable[[OfflinePolicy], Awaitable[CreateResult]],
        created: CreateResult,
        target: Identity,
        offline: OfflinePolicy,
    ) -> CreateResult:
        """Create a task once its just connected target has a row, or start the target."""
        for pause_s in JOIN_RETRIES_S:
            if not await self.connected(target.text):
                return await run(offline) if offline is OfflinePolicy.START else created
            await self.engine.writes.flush()
            created = await run(OfflinePolicy.REJECT)
            if not created.absent:
                return created
            await trio.sleep(pause_s)
        # The target is connected, so it will be assigned the task when its row is written.
        return await run(OfflinePolicy.QUEUE)

    async def _check_access(self, session: Session, request: pb.CreateTaskRequest, workspace: str) -> None:
        if not session.allows_workspace(workspace):
            raise RequestError(Code.PERMISSION_DENIED, f"this credential does not reach workspace {workspace}")
        authority = DIRECT
        if request.HasField("authorization"):
            authority = await self.authorizer.authority(session, request.authorization)
        decision = await self.authorizer.check(
            session, "task_create", "workspace", workspace, workspace, AccessLevel.READWRITE, authority
        )
        if not decision.allowed:
            raise RequestError(Code.PERMISSION_DENIED, decision.reason)

    def _check_reach(self, session: Session, request: pb.CreateTaskRequest, target: Identity | None) -> None:
        """Check that a task's creator may message its target; done before any look-up."""
        kind = session.identity.kind
        if target is None:
            pooled = MODES.get(request.assignment_mode) is Mode.POOL
            if pooled and not may_send(kind, TopicKind.TASK_CLASS):
                raise RequestError(Code.PERMISSION_DENIED, f"{kind.with_article} may not create POOL tasks")
            return
        why = send_refusal(
            self.authorizer,
            session,
            resolve_target(target.topic, session.workspace, self.strict),
            target.text,
            workspace=session.workspace,
        )
        if why is not None:
            raise RequestError(Code.PERMISSION_DENIED, why)

    async def _offline_policy(self, request: pb.CreateTaskRequest, target: Identity | None) -> OfflinePolicy:
        """Decide if a task for an absent target is queued, refused, or starts the target."""
        kept = request.target_offline_policy == pb.TARGET_OFFLINE_POLICY_QUEUE and request.task_type != AGENT_STARTUP
        if target is None or kept:
            return OfflinePolicy.QUEUE
        if request.target_offline_policy == pb.TARGET_OFFLINE_POLICY_REJECT:
            return OfflinePolicy.REJECT
        if await self.starter.knows(target.implementation):
            return OfflinePolicy.START
        return OfflinePolicy.UNKNOWN

    async def _token_owner(self, session: Session, request: pb.CreateTaskRequest) -> tuple[str, str]:
        """Return the identity that is given a task token, and why none is given.

        The identity is "" if it gets none. The token gives no more rights than the creator's
        credential.
        """
        if not request.target_identity:
            return "", ""
        try:
            owner = Identity.parse(request.target_identity, strict=self.strict)
        except IdentityError as error:
            return "", str(error)
        if owner.kind not in WORKER_KINDS:
            return "", f"{owner.kind.with_article} is given no tasks"
        if not session.covers(owner):
            return "", f"this credential does not cover {owner.text}"
        if owner.kind is Kind.SERVICE:
            name = owner.implementation
            decision = await self.authorizer.check(
                session, "task_token_issue", "service_impl", name, "", AccessLevel.MANAGE
            )
        elif owner.workspace and owner.workspace != SYSTEM_WORKSPACE:
            decision = await self.authorizer.check_workspace(
                session, owner.workspace, AccessLevel.MANAGE, "task_token_issue"
            )
        else:
            return "", f"there are no tokens for {owner.text}"
        return (owner.text, "") if decision.allowed else ("", decision.reason)

    def _next_order_us(self) -> int:
        """Return an increasing time in microseconds, which orders the node's tasks."""
        self._latest_us = max(self.engine.clock.now_ms() * 1000, self._latest_us + 1)
        return self._latest_us

    @staticmethod
    def _answer(created: CreateResult, token: str) -> pb.CreateTaskResponse:
        response = pb.CreateTaskResponse(success=True, task_id=created.task_id)
        task = created.task
        if task is not None:
            response.status = _word(task, started=created.started)
            response.task_token = token if task.tokens else ""
            response.authority_grant_id = task.authority_grant_id
            if task.mode is not Mode.POOL and task.status is not StoredStatus.PENDING:
                response.assigned_to = task.assigned_to
        return response


def check_names(request: pb.CreateTaskRequest, own_workspace: str, *, strict: bool) -> str:
    """Check a task's identifiers; return its workspace. Raises INVALID_IDENTIFIER."""
    workspace = request.workspace or own_workspace
    try:
        check_token(workspace, "workspace", strict=strict)
        if request.target_implementation:
            check_token(request.target_implementation, "target_implementation", strict=strict)
    except IdentityError as error:
        raise RequestError(Code.INVALID_IDENTIFIER, str(error)) from None
    return workspace


def check_size(request: pb.CreateTaskRequest, payload_bytes: int) -> None:
    """Check the sizes of a task's payload and texts. Raises RequestError."""
    if len(request.payload) > payload_bytes:
        raise RequestError(
            Code.TASK_PAYLOAD_TOO_LARGE,
            f"the payload has {len(request.payload)} bytes; at most {payload_bytes} are allowed",
        )
    for name in _BOUNDED_TEXTS:
        text = getattr(request, name)
        if len(text.encode()) > MAX_TEXT_BYTES or "\x00" in text:
            raise RequestError(Code.INVALID_ARGUMENT, f"{name} has more than {MAX_TEXT_BYTES} bytes, or a zero byte")
    rest = request.ByteSize() - len(request.payload)
    if rest > MAX_REQUEST_BYTES:
        raise RequestError(
            Code.INVALID_ARGUMENT,
            f"the request has {rest} bytes beside its payload; at most {MAX_REQUEST_BYTES} are allowed",
        )


def _failed(text: str) -> RequestError:
    return RequestError(Code.TASK_CREATE_FAILED, text)


def target_of(request: pb.CreateTaskRequest, *, strict: bool) -> Identity | None:
    """Parse the target of a TARGETED task. Raises RequestError TASK_CREATE_FAILED."""
    if MODES.get(request.assignment_mode) is not Mode.TARGETED:
        return None
    try:
        target = Identity.parse(request.target_agent_id, strict=strict)
    except IdentityError as error:
        raise _failed(f"target_agent_id: {error}") from None
    if target.kind not in WORKER_KINDS:
        raise _failed(f"{target.kind.with_article} cannot be given tasks")
    return target


def deadlines_of(request: pb.CreateTaskRequest) -> dict[str, int]:
    """Read a task's deadlines from its metadata, in ms. Raises TASK_CREATE_FAILED."""
    found = {}
    for name in DEADLINES:
        text = request.metadata.get(name, "")
        if text:
            deadline_ms = number_of(text, MAX_DEADLINE_MS)
            if deadline_ms is None:
                raise _failed(
                    f"metadata {name} is {_quoted(text)}; it must be a number of milliseconds, at most {MAX_DEADLINE_MS}"
                )
            found[name] = deadline_ms
    return found


def check_policy(request: pb.CreateTaskRequest) -> None:
    """Check a task's metadata `on_parent_cancelled`. Raises TASK_CREATE_FAILED."""
    policy = request.metadata.get(ON_PARENT_CANCELLED, ABANDON)
    if policy not in (ABANDON, CANCEL):
        raise _failed(f"metadata {ON_PARENT_CANCELLED} is {_quoted(policy)}; it must be {ABANDON} or {CANCEL}")


def _quoted(text: str) -> str:
    return repr(text if len(text) <= QUOTED_CHARACTERS else f"{text[:QUOTED_CHARACTERS]}…")


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
) -> TaskRow:
    """Make the row of the task that a request asks for. Raises TASK_CREATE_FAILED."""
    mode = MODES.get(request.assignment_mode, Mode.SELF_ASSIGN)
    if mode is Mode.POOL and not request.target_implementation:
        raise _failed("a POOL task needs target_implementation")
    if request.task_type == AGENT_STARTUP and mode is not Mode.TARGETED:
        raise _failed(f"a task of type {AGENT_STARTUP} must be TARGETED at the agent to start")
    check_policy(request)
    policy = policy_of(request)
    # A start of an agent has no grace window: its orchestrator and its connection decide.
    grace = 0 if request.task_type == AGENT_STARTUP else grace_ms(request.task_class)
    task = TaskRow(
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
        task.status, task.assigned_to, task.assigned_ms, task.epoch = StoredStatus.ASSIGNED, creator.text, now_ms, 1
    return task


def key_hash(workspace: str, key: str) -> bytes:
    """Return the hash under which a task's idempotency key is stored."""
    return hashlib.sha256(f"{workspace}\x00{key}".encode()).digest()


def request_hash(request: pb.CreateTaskRequest, workspace: str) -> bytes:
    """Return a hash that is equal for requests that ask for the same task."""
    same = pb.CreateTaskRequest()
    same.CopyFrom(request)
    same.workspace = workspace
    same.ClearField("request_id")
    same.ClearField("authorization")
    return hashlib.sha256(same.SerializeToString(deterministic=True)).digest()


REUSED_KEY: Final = "idempotency_key was used for another request before: the same key goes with the same request only"


def _issued(session: Session, token: str, owner: str) -> IssuedToken:
    """Return the token that a session makes, which may no more than the session."""
    identity = session.identity
    me = f"{identity.type_name}:{identity.canonical_id}"
    creators = session.creators if owner == identity.text else tuple(dict.fromkeys((*session.creators, me)))
    return IssuedToken(
        hash_token(token),
        owner,
        session.lineage,
        cap=session.cap,
        makers=session.makers,
        creators=creators,
        origin=session.origin,
    )


def create_in_transaction(
    context: Context,
    task: TaskRow,
    payload: bytes,
    *,
    key: bytes,
    request: bytes,
    offline: OfflinePolicy,
    start: Start,
    target: Identity | None,
    minted: IssuedToken | None,
    granted: MintedGrant | None = None,
    grants: GrantMaker = NO_GRANT_MAKER,
) -> Program[CreateResult]:
    """Create a task with the token `minted`, or find the task of its idempotency key."""
    if key:
        found: list[Row] = yield Fetch("SELECT task_id, expires_ms, request FROM task_keys WHERE key_hash = $1", (key,))
        if found and found[0][1] > context.now_ms and found[0][0] != task.task_id:
            if found[0][2] is not None and found[0][2] != request:
                return CreateResult("", problem=REUSED_KEY)
            return CreateResult(found[0][0])
    tx = TaskTransaction(context)
    if granted is not None and (problem := (yield from grants.check(granted, context.now_ms))):
        return CreateResult("", problem=problem, denied=True)
    if task.parent_task_id:
        parent = yield from child_events.load_parent(tx, task.parent_task_id)
        if (
            parent is None
            or parent.workspace != task.workspace
            or task.creator not in (parent.assigned_to, parent.creator)
        ):
            return CreateResult("", problem=f"parent task {task.parent_task_id} not found")
        if parent.is_final:
            return CreateResult("", problem=f"parent task {task.parent_task_id} has ended: it is {parent.status.value}")
    started = False
    if target is not None and offline is not OfflinePolicy.QUEUE and (yield from tx.find_worker(target.text)) is None:
        if offline is not OfflinePolicy.START:
            return CreateResult("", problem=_ABSENT[offline].format(target.text), absent=True)
        if problem := (yield from start(tx, target, task)):
            return CreateResult("", problem=problem)
        started = True
    elif task.task_type == AGENT_STARTUP:
        return CreateResult("", problem=f"{task.target} is connected already")
    task = task.changed({})  # a program may run again, so each run changes a copy
    task.tokens = int(minted is not None and (yield from insert(minted, task.task_id, context.now_ms)))
    if granted is not None:
        yield from grants.insert(granted, task.task_id)
    made = yield from tx.create(task, payload)
    if key:
        yield Execute(
            "INSERT INTO task_keys (key_hash, task_id, expires_ms, request) VALUES ($1, $2, $3, $4) "
            "ON CONFLICT (key_hash) DO UPDATE SET task_id = excluded.task_id, expires_ms = excluded.expires_ms, "
            "request = excluded.request",
            (key, task.task_id, context.now_ms + KEY_MS, request),
        )
    if not made:  # the start that was requested has this id, or this program has run before
        return CreateResult(task.task_id, (yield from task_rows.load(task.task_id)), tx, started=started)
    if granted is not None:
        tx.effects.audit_rows.append(granted.event)
    given = [push.task for push in tx.effects.assignments if push.task.task_id == task.task_id]
    return CreateResult(task.task_id, given[-1] if given else task, tx, started=started)


def _word(task: TaskRow, *, started: bool) -> str:
    """Return a new task's status word for its creator; only this gateway has "queued"."""
    if task.task_type == AGENT_STARTUP:
        return "orchestration_triggered"
    if task.mode is Mode.POOL:
        return "pending_pool"
    if task.status is not StoredStatus.PENDING:
        return "assigned"
    return "orchestration_triggered" if started else "queued"


def _refused(request: pb.CreateTaskRequest, error: RequestError) -> list[pb.DownstreamMessage]:
    answers = [error_response(error)]
    if request.request_id:
        failed = pb.CreateTaskResponse(
            error_code=error.code, error_message=error.message, request_id=request.request_id
        )
        answers.append(pb.DownstreamMessage(create_task=failed))
    return answers
