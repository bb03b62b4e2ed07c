"""Does the actions of workflows, rules, schedules, machines and joins.

| action | what is written |
|---|---|
| message | a CONTROL message to `ag::{workspace}::{agent}::default`; a step of a graph: a POOL task |
| create_task | a POOL task |
| emit_event | an EVENT message to the topic of events |

Messages and events are rows of `task_outbox`, which the gateway appends to the topic log after the
commit. Every action is done for an owner, who must be allowed it at that moment. Ids follow from
the cause, so a program that runs again makes the same ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from aether_trio.model.access import AccessLevel
from aether_trio.model.errors import RequestError
from aether_trio.model.identity import Identity, IdentityError, Kind, check_token
from aether_trio.model.tasks import RetrySchedule, TaskRow
from aether_trio.model.tasks.task import WorkflowPart
from aether_trio.model.text import shown
from aether_trio.model.topics import EVENT_INTAKE
from aether_trio.model.workflows.definition import Action, ActionType, Environment, Json, RetryRule
from aether_trio.services.tasks.handlers.create import KEY_MS, REUSED_KEY, check_size, key_hash, new_task
from aether_trio.services.tasks.transaction import results, startup
from aether_trio.services.tasks.transaction.interface import ChangeRefused, LargeError, Transaction
from aether_trio.services.workflows.documents.json_values import JsonError, write_json
from aether_trio.services.workflows.events.taken_events import HOPS
from aether_trio.services.workflows.stored.definitions import EVERYWHERE
from aether_trio.storage.base import Deferred, Execute, Fetch, Program, Row
from aether_trio.wire.delivery import delivery_prefix, delivery_suffix, encode_delivery
from aether_trio.wire.pb import aether_pb2 as pb

STEP_TYPE: Final = "workflow"
"""The type of the task of a step that names an agent, as in the reference."""
ENGINE: Final = Identity(Kind.WORKFLOW_ENGINE).text
SOURCE_AGENT: Final = "workflow-engine"
"""The `source_agent` of events that are emitted."""
PLACE: Final = frozenset({"workflow", "execution_id", "step_id", "item", "round", "attempt", "compensates"})
"""Metadata of a step's task that say which step it is: no document gives them."""
COMPUTED: Final = ("arguments", "metadata", "payload", "idempotency_key", "correlation_id")
"""The fields of an action that are computed."""

Allowed = Callable[[str, str, AccessLevel, int], str]
"""Returns why an owner may not act in a workspace at a level and moment; "" if it may."""


class ActionRefused(Exception):
    """An action cannot be done; `error_type` is a word for programs."""

    def __init__(self, message: str, error_type: str) -> None:
        super().__init__(message)
        self.error_type = error_type


class KeyReused(ChangeRefused):
    """An idempotency key was used for another request before."""

    def __init__(self) -> None:
        super().__init__(REUSED_KEY)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why an action is done, and for whom.

    `key` is different for all actions: ids are made of it. `hops` are the causes before.
    """

    key: str
    owner: str
    workspace: str
    hops: tuple[str, ...] = ()
    task_id: str = ""  # that of the task, if it is given


@dataclass(frozen=True, slots=True)
class Child:
    """What makes an action's task the child of an execution."""

    execution_id: str
    root_id: str
    correlation_id: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    timeout_ms: int = 0
    part: WorkflowPart = WorkflowPart.STEP


def values_of(action: Action, env: Environment, now_ms: int) -> dict[str, Json]:
    """Compute the fields of an action. Raises EvaluationError."""
    moment = datetime.fromtimestamp(now_ms / 1000, UTC)
    return {
        name: value.evaluate(env, now=lambda: moment)
        for name in COMPUTED
        if (value := getattr(action, name)) is not None
    }


class Actions:
    """Does actions; `payload_bytes(workspace)` is the largest payload of a task."""

    def __init__(self, allowed: Allowed, payload_bytes: Callable[[str], int], *, strict: bool) -> None:
        self._strict = strict
        self.allowed = allowed
        self._payload_bytes = payload_bytes

    def perform(
        self,
        tx: Transaction,
        action: Action,
        values: Mapping[str, Json],
        cause: Cause,
        child: Child | None = None,
        *,
        part: WorkflowPart = WorkflowPart.NONE,
    ) -> Program[TaskRow | None]:
        """Do an action; return the task that it has made, if it makes one.

        `part`: what a task that is no child of an execution is to workflows. Raises ActionRefused,
        and writes nothing then.
        """
        workspace = action.workspace or cause.workspace
        if refused := self.refusal(workspace, cause.owner, tx.context.now_ms):
            raise refused
        if action.type is ActionType.EMIT_EVENT:
            yield from self._emit(tx, workspace, action.event_name, values.get("payload"), cause)
            return None
        metadata = {str(key): text_of(value) for key, value in (values.get("metadata") or {}).items()}
        if action.type is ActionType.MESSAGE and child is None:
            yield from self._send(tx, workspace, action, values, metadata, cause)
            return None
        return (yield from self._create(tx, workspace, action, values, metadata, cause, child, part))

    def refusal(self, workspace: str, owner: str, now_ms: int) -> ActionRefused | None:
        """Return why an owner may not act in a workspace, or None."""
        if workspace == EVERYWHERE:
            return ActionRefused("an action needs a workspace: name it in the action", "BAD_ACTION")
        try:
            check_token(workspace, "workspace", strict=self._strict)
        except IdentityError as error:
            return ActionRefused(str(error), "BAD_ACTION")
        problem = self.allowed(owner, workspace, AccessLevel.READWRITE, now_ms)
        return ActionRefused(problem, "PERMISSION_DENIED") if problem else None

    def check_size(self, request: pb.CreateTaskRequest, workspace: str) -> None:
        """Check the size of a task of a workspace. Raises RequestError."""
        check_size(request, self._payload_bytes(workspace))

    def _create(
        self,
        tx: Transaction,
        workspace: str,
        action: Action,
        values: Mapping[str, Json],
        metadata: dict[str, str],
        cause: Cause,
        child: Child | None,
        part: WorkflowPart,
    ) -> Program[TaskRow]:
        task_type, pool, payload = action.task_type, action.target_implementation, values.get("payload")
        if action.type is ActionType.MESSAGE:
            task_type, pool = STEP_TYPE, action.agent
            payload = {
                "agent": action.agent,
                "tool_name": action.tool_name,
                "arguments": values.get("arguments") or {},
                "workspace": workspace,
                "metadata": metadata,
            }
        if child is not None:
            given = {key: text for key, text in metadata.items() if key not in PLACE and key != HOPS}
            metadata = {**given, **child.metadata}
        try:
            request = pb.CreateTaskRequest(
                task_type=task_type,
                assignment_mode=pb.POOL,
                target_implementation=pool,
                workspace=workspace,
                payload=b"" if payload is None else write_json(payload),
                metadata=metadata,
                correlation_id=text_of(values.get("correlation_id") or ("" if child is None else child.correlation_id)),
                root_task_id="" if child is None else child.root_id,
                priority=pb.TaskPriority.ValueType(action.priority),
            )
            if action.completion_event.enabled:
                request.completion_event.enabled = True
                request.completion_event.event_name = action.completion_event.event_name
            self.check_size(request, workspace)
            task_id = cause.task_id or dated_id(tx.context.now_ms, cause.key)
            parent_id = "" if child is None else child.execution_id
            task = new_row(tx, request, task_id, workspace, cause.owner, parent_id)
        except (JsonError, RequestError, ValueError) as error:
            raise ActionRefused(str(error), "BAD_ACTION") from None
        key = text_of(values.get("idempotency_key") or "")
        if "\0" in key:
            raise ActionRefused(f"idempotency_key {shown(key)} has a zero byte", "BAD_ACTION")
        if key and (other := (yield from take_key(tx, key_hash(workspace, key), task_id))):
            raise ActionRefused(f"idempotency_key {shown(key)} is that of task {other}", "IDEMPOTENCY_KEY")
        if cause.hops:
            _note_hops(task, cause.hops)
        set_retry(task, action.retry)
        task.workflow = part
        if child is not None:
            task.workflow, task.schedule_to_close_ms = child.part, child.timeout_ms
        yield from create_task(tx, task, request.payload)
        return task

    def _emit(self, tx: Transaction, workspace: str, name: str, data: Json, cause: Cause) -> Program[None]:
        event: dict[str, Json] = {
            "source_agent": SOURCE_AGENT,
            "workspace": workspace,
            "event_names": [name],
            "data": data,
            "event_id": dated_id(tx.context.now_ms, cause.key),  # the log may have it twice
        }
        if cause.hops:
            event[HOPS] = list(cause.hops)
        yield from self._publish(tx, EVENT_INTAKE, workspace, pb.EVENT, event, cause)

    def _send(
        self,
        tx: Transaction,
        workspace: str,
        action: Action,
        values: Mapping[str, Json],
        metadata: dict[str, str],
        cause: Cause,
    ) -> Program[None]:
        try:
            target = Identity.agent(workspace, action.agent, "default", strict=False)
        except IdentityError as error:
            raise ActionRefused(str(error), "BAD_ACTION") from None
        body = {"tool_name": action.tool_name, "arguments": values.get("arguments") or {}, "metadata": metadata}
        yield from self._publish(tx, target.topic, workspace, pb.CONTROL, body, cause)
        tx.effects.absent_targets.append(target.text)

    def _publish(
        self,
        tx: Transaction,
        topic: str,
        workspace: str,
        kind: pb.MessageType.ValueType,
        body: Mapping[str, Json],
        cause: Cause,
    ) -> Program[None]:
        """Write a message to the outbox of the topic log."""
        try:
            payload = write_json(body)
        except JsonError as error:
            raise ActionRefused(str(error), "BAD_ACTION") from None
        frame = encode_delivery(delivery_prefix(EVENT_INTAKE), payload, delivery_suffix(kind, workspace))
        yield Deferred(
            "task_outbox",
            "INSERT INTO task_outbox (task_id, number, node, topic, frame) VALUES ($1, $2, $3, $4, $5)",
            (dated_id(tx.context.now_ms, cause.key), 0, tx.context.node, topic, frame),
        )
        tx.effects.outbox = True


def create_task(tx: Transaction, task: TaskRow, payload: bytes) -> Program[bool]:
    """Write a new task, with its pool's agent started; return False if it exists."""
    tx.charge(moved=1)
    if tx.context.small and len(payload) > results.SMALL_BYTES:
        raise LargeError
    assigned = len(tx.effects.assignments)
    made = yield from tx.create(task, payload)
    if len(tx.effects.assignments) == assigned:
        tx.effects.absent_targets += yield from startup.absent_agent_of(task)
    return made


def new_row(
    tx: Transaction, request: pb.CreateTaskRequest, task_id: str, workspace: str, creator: str, parent_id: str
) -> TaskRow:
    """Make the row of a task. Raises ValueError and RequestError."""
    try:
        identity = Identity.parse(creator, strict=False)
    except IdentityError as error:
        raise ValueError(f"creator: {error}") from None
    now_ms = tx.context.now_ms
    return new_task(
        request,
        task_id=task_id,
        workspace=workspace,
        creator=identity,
        parent_task_id=parent_id,
        target=None,
        now_ms=now_ms,
        order_us=now_ms * 1000 + len(tx.effects.assignments),
    )


def _note_hops(task: TaskRow, hops: tuple[str, ...]) -> None:
    kept = pb.CreateTaskRequest.FromString(task.spec)
    kept.metadata[HOPS] = write_json(list(hops)).decode()
    task.spec = kept.SerializeToString()


def set_retry(task: TaskRow, rule: RetryRule) -> None:
    """Give a task the retry policy of an action; without one it has one attempt."""
    if rule.max_attempts <= 1:
        task.max_attempts = 1
        return
    fixed = rule.backoff in ("constant", "fixed")
    policy = RetrySchedule(
        rule.max_attempts,
        1 if fixed else 2,
        rule.initial_ms,
        rule.max_ms,
        rule.jitter,
        final_errors=rule.final,
    )
    task.retry_policy, task.max_attempts = policy.to_json(), policy.attempts


def operation_key(*parts: str) -> bytes:
    """Return the hash of the idempotency key of an operation, and of what it is.

    Other parts have another hash, and so has the key of any task (`key_hash`): what is hashed there
    has a zero byte, and JSON has none.
    """
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def request_hash(given: Json) -> bytes:
    """Return a hash that is equal for requests with equal data. Raises JsonError."""
    plain = json.loads(write_json(given))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).digest()


def find_key(tx: Transaction, hashed: bytes, request: bytes | None) -> Program[str]:
    """Return for what an idempotency key is taken, "" if it is free. Raises KeyReused."""
    found: list[Row] = yield Fetch("SELECT task_id, expires_ms, request FROM task_keys WHERE key_hash = $1", (hashed,))
    if not found or found[0][1] <= tx.context.now_ms:
        return ""
    if request is not None and found[0][2] is not None and bytes(found[0][2]) != request:
        raise KeyReused
    taken_for: str = found[0][0]
    return taken_for


def take_key(tx: Transaction, hashed: bytes, task_id: str, request: bytes | None = None) -> Program[str]:
    """Take an idempotency key for a task; return the id of another task that has it.

    Raises KeyReused if that was made by a `request` with another hash.
    """
    other = yield from find_key(tx, hashed, request)
    if other and other != task_id:
        return other
    now_ms = tx.context.now_ms
    yield Execute(
        "INSERT INTO task_keys (key_hash, task_id, expires_ms, request) VALUES ($1, $2, $3, $4) "
        "ON CONFLICT (key_hash) DO UPDATE SET task_id = excluded.task_id, expires_ms = excluded.expires_ms, "
        "request = excluded.request",
        (hashed, task_id, now_ms + KEY_MS, request),
    )
    return ""


def move_key(hashed: bytes, task_id: str) -> Program[None]:
    """Let an idempotency key that is taken name another task."""
    yield Execute("UPDATE task_keys SET task_id = $2 WHERE key_hash = $1", (hashed, task_id))


def text_of(value: Json) -> str:
    """Return a computed value as the text of a field: a string as it is, or JSON."""
    return value if isinstance(value, str) else write_json(value).decode()


def dated_id(now_ms: int, key: str) -> str:
    """Return a version 7 UUID that a repeated program makes again for the same key."""
    bits = int.from_bytes(hashlib.sha256(key.encode()).digest()[:10]) & (1 << 74) - 1
    moment = f"{now_ms & 0xFFFFFFFFFFFF:012x}"
    rest = f"{0x7000 | bits >> 62:04x}{1 << 63 | bits & 0x3FFFFFFFFFFFFFFF:016x}"
    return f"{moment[:8]}-{moment[8:]}-{rest[:4]}-{rest[4:8]}-{rest[8:]}"
