"""Performs clients' key-value operations (reference: core.md section 6).

Order of checks: the client's kind; the operation; the authorization context; scope and its
parameters; key; value size; access. Every refusal has the request id. Its shape is the reference's,
because clients act on the first reply with their id:

| refusal | sent |
|---|---|
| all but the following | KVResponse{success=false} (with a request id), ErrorResponse KV_ERROR |
| scope parameters | ErrorResponse KV_ERROR alone: the SDK raises it from the call |
| value too large, scope full | ErrorResponse ERR_QUOTA_001 alone, not retryable |
| authorization context, reach | ErrorResponse ERR_PERMISSION_DENIED, KVResponse{success=false} |
| access rules | KVResponse{success=false} (with a request id), ErrorResponse ERR_PERMISSION_DENIED |
| commit in doubt | KVResponse (with a request id), ErrorResponse ERR_OUTCOME_UNKNOWN |

"Reach": a workspace or an identity that the client's credential does not reach. The one difference:
the reference sends KV_ERROR alone also for a principal type that may not use KV. A user's SDK call
is to see success=false (sdk.md, scenario 65), so those get both, in the usual order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeAlias

import structlog
import trio

from aether_trio.model.access import AccessLevel
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import Identity, IdentityError, Kind
from aether_trio.model.limits import KIB, MIB, Limits
from aether_trio.model.quotas import WorkspaceQuotas
from aether_trio.model.text import shown
from aether_trio.services.access import DIRECT, Actor, Authority, Authorizer, Capability, GatewayActor
from aether_trio.services.kv import entries, ranges
from aether_trio.services.kv.cache import Name
from aether_trio.services.kv.changes import KeyEvents, KeyWatch, expired
from aether_trio.services.kv.entries import UNKNOWN, KvRefusal, Result
from aether_trio.services.kv.programs import KeyRequest, Operation
from aether_trio.services.kv.ranges import CursorError, Deleted
from aether_trio.services.kv.spaces import (
    OWN,
    KvScope,
    Place,
    ScopeError,
    after,
    exclusive_root,
    own_spaces,
    parse_scope,
    place_of,
    space_of,
)
from aether_trio.services.kv.store import SMALL_VALUE_BYTES, KeyStore
from aether_trio.services.kv.usage import Quota
from aether_trio.session.session import Session
from aether_trio.storage.base import CommitUnknown, Database, Program, StorageUnavailable
from aether_trio.storage.existing_names import ExistingNames
from aether_trio.storage.outages import outage
from aether_trio.telemetry.metrics import Metrics
from aether_trio.wire.error_response import error_response
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.kv")

Op = pb.KVOperation
MAX_RESPONSE_BYTES: Final = 3 * MIB + 512 * KIB  # clients refuse messages over 4 MiB
ANSWERS_BYTES: Final = 64 * KIB  # of values that are answered at once, beyond the last one
SNAPSHOT_KEYS: Final = 100  # of each kind, as in the reference
PURGE_PAGE: Final = 1000
SWEEP_PAGE: Final = 500
SWEEP_INTERVAL_S: Final = 30.0  # only to give room back: expired keys are invisible at once

_MAY_USE: Final = frozenset(
    {Kind.AGENT, Kind.UNIQUE_TASK, Kind.TASK, Kind.SERVICE, Kind.WORKFLOW_ENGINE, Kind.METRICS_BRIDGE}
)

_READS: Final[dict[int, Operation]] = {
    Op.GET: lambda slot, old, op: entries.get(slot, old),
    Op.SET_CARD: lambda slot, old, op: entries.set_size(slot, old),
}
_WRITES: Final[dict[int, Operation]] = {
    Op.PUT: lambda slot, old, op: entries.put(slot, op.value, op.ttl),
    Op.DELETE: lambda slot, old, op: entries.delete(),
    Op.INCREMENT: lambda slot, old, op: entries.add(slot, old, 1, op.ttl),
    Op.DECREMENT: lambda slot, old, op: entries.add(slot, old, -1, op.ttl),
    Op.INCREMENT_IF: lambda slot, old, op: entries.add_within(slot, old, op.delta_value or 1, op.guard_value, op.ttl),
    Op.DECREMENT_IF: lambda slot, old, op: entries.add_within(
        slot, old, -(op.delta_value or 1), op.guard_value, op.ttl
    ),
    Op.SET_NX: lambda slot, old, op: entries.set_if_absent(slot, old, op.value, op.ttl),
    Op.COMPARE_AND_SET: lambda slot, old, op: entries.compare_and_set(slot, old, op.expected_value, op.value, op.ttl),
    Op.COMPARE_AND_DELETE: lambda slot, old, op: entries.compare_and_delete(slot, old, op.expected_value),
    Op.SET_ADD: lambda slot, old, op: entries.set_add(slot, old, op.value, op.ttl),
}
_SINGLE: Final = _READS | _WRITES
_KNOWN: Final = frozenset({*_SINGLE, Op.LIST, Op.PURGE_IDENTITY})
_READ_LEVEL: Final = frozenset({Op.GET, Op.LIST, Op.SET_CARD})
_WITHIN: Final = frozenset({Op.INCREMENT_IF, Op.DECREMENT_IF})
_OPERATIONS: Final[dict[int, str]] = {number: name for name, number in Op.OpType.items()}
_SCOPES: Final[dict[int, str]] = {number: name for name, number in Op.Scope.items()}


_WATCHED: Final = KvScope.WORKSPACE.label
"""The scope whose keys have events."""

Answer: TypeAlias = list[pb.DownstreamMessage]
"""All messages that answer one operation."""


class _KvRefused(Exception):
    """A key-value operation is refused with these messages to the client."""

    def __init__(self, *messages: pb.DownstreamMessage) -> None:
        super().__init__()
        self.messages = list(messages)


class KvService:
    """Performs clients' key-value operations on the "state" database."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        limits: Limits,
        authorizer: Authorizer,
        quotas: WorkspaceQuotas | None = None,
        events: KeyEvents | None = None,
        on_event: Callable[[], None] = lambda: None,
    ) -> None:
        """`events` says which changes of keys are events; `on_event`: one was written."""
        self._events = events
        self._on_event = on_event
        self._db = db
        self._keys = KeyStore(db)
        self._clock = clock
        self._limits = limits
        self._authorizer = authorizer
        self._quotas = quotas or WorkspaceQuotas(limits)
        self._quota = Quota.of(limits.kv_keys_per_scope, limits.kv_bytes_per_scope)
        self._own_spaces: ExistingNames[bytes] = ExistingNames()
        """The exclusive spaces that may have keys: most participants have none."""

    async def handle(self, identity: Identity, op: pb.KVOperation) -> Answer:
        """Perform one key-value operation for a participant; return the client's messages."""
        return (await self.handle_some(GatewayActor(identity), (op,)))[0]

    async def handle_some(self, actor: Actor, ops: Sequence[pb.KVOperation]) -> list[Answer]:
        """Perform the first of these operations, or more of them; return their answers.

        The operations take effect in their order. Small writes at the beginning, and reads between
        them, share one transaction. So do answers that need no commit share a turn; they do not
        wait for a write behind them.
        """
        first = ops[0]
        if first.op in _WRITES and len(first.value) <= SMALL_VALUE_BYTES:
            return await self._write_some(actor, ops)
        answers: list[Answer] = []
        size = 0
        for op in ops:
            if answers and (op.op not in _READS or size >= ANSWERS_BYTES):
                break
            try:
                answer = await self._perform(actor, op)
            except _KvRefused as refused:
                answer = refused.messages
            except StorageUnavailable as exc:
                answer = _unavailable(op, exc)
            except Exception:
                if not answers:
                    raise
                break  # the next call begins with it
            answers.append(answer)
            size += answer[0].ByteSize()
        return answers

    async def _write_some(self, actor: Actor, ops: Sequence[pb.KVOperation]) -> list[Answer]:
        keys = self._keys
        answers: list[Answer] = []  # empty ones are filled later
        requests: list[KeyRequest] = []
        put: set[Name] = set()
        for op in ops:
            if answers and not (op.op in _SINGLE and len(op.value) <= SMALL_VALUE_BYTES and keys.takes_many):
                break
            try:
                request = await self._request(actor, op)
            except _KvRefused as refused:
                answers.append(refused.messages)
                continue
            except Exception:
                if not answers:
                    raise
                break  # the next call begins with it
            if not requests and op.op != Op.PUT and (result := keys.remembered(request)) is not None:
                return [*answers, _answer_of(op, result)]
            if op.op == Op.PUT:
                put.add(request.name)
            elif not request.writes and request.name not in put and keys.entry(request) is UNKNOWN:
                break  # its value may be long
            requests.append(request)
            answers.append([])
        if requests:
            try:
                results = await keys.write(requests, small=True)
                if any(request.watch is not None for request in requests):
                    self._on_event()
            except StorageUnavailable as exc:
                return self._without_reads(ops, answers, exc)
            except Exception:
                if len(requests) == 1:
                    raise
                return await self._write_some(actor, ops[:1])
            rest = iter(results)
            for place, op in enumerate(ops[: len(answers)]):
                if not answers[place]:
                    answers[place] = _answer_of(op, next(rest))
        return answers

    def _without_reads(
        self, ops: Sequence[pb.KVOperation], answers: list[Answer], exc: StorageUnavailable
    ) -> list[Answer]:
        """Answer failed writes up to a read that can be performed without them."""
        for place, op in enumerate(ops[: len(answers)]):
            if not answers[place]:
                if place and op.op in _READS:
                    return answers[:place]
                answers[place] = _unavailable(op, exc)
        return answers

    async def exclusive_snapshot(self, identity: Identity) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Return a client's (workspace-exclusive, global-exclusive) keys.

        The first 100 of each in key order, fewer if they do not fit one message together. Empty for
        identities that cannot have exclusive keys. Raises StorageUnavailable.
        """
        spaces = [
            space if space is not None and self._own_spaces.may_exist(space) else None for space in own_spaces(identity)
        ]
        if not any(spaces):
            return {}, {}
        now_ms = self._clock.now_ms()

        def both() -> Program[list[dict[str, bytes]]]:
            found: list[dict[str, bytes]] = []
            for space in spaces:
                if space is None:
                    found.append({})
                else:
                    page = yield from ranges.list_page(space, b"", None, SNAPSHOT_KEYS, MAX_RESPONSE_BYTES // 2, now_ms)
                    found.append(_text_keys(page))
            return found

        in_workspace, everywhere = await self._db.read_small(both)
        return in_workspace, everywhere

    async def load_own_spaces(self) -> None:
        """Read which exclusive spaces have keys; `exclusive_snapshot` reads no others."""
        await self._own_spaces.load(self._db, ranges.own_spaces, OWN, "exclusive key-value spaces", logger)

    async def sweep_forever(self) -> None:
        """Delete expired keys from time to time. Runs until cancelled."""
        while True:
            await trio.sleep(SWEEP_INTERVAL_S)
            await self.sweep()

    async def sweep(self) -> int:
        """Delete expired keys; return how many. Stops when storage is unavailable."""
        total = 0
        try:
            while True:
                page = await self._keys.delete_many(partial(self._sweep_page, self._clock.now_ms()))
                total += len(page.names)
                if page.names:
                    self._on_event()
                if len(page.names) < SWEEP_PAGE:
                    return total
        except StorageUnavailable:
            return total

    def _sweep_page(self, now_ms: int) -> Program[Deleted]:
        deleted = yield from ranges.sweep_page(now_ms, SWEEP_PAGE)
        if self._events is not None:
            yield from expired(deleted.names, self._events)
        return deleted

    async def _perform(self, actor: Actor, op: pb.KVOperation) -> Answer:
        number = op.op
        if number == Op.PURGE_IDENTITY:
            return [pb.DownstreamMessage(kv=await self._purge(actor, op))]
        if number == Op.LIST:
            return [pb.DownstreamMessage(kv=await self._list(op, (await self._place(actor, op)).space))]
        request = await self._request(actor, op)
        result = self._keys.remembered(request)
        if result is None:
            if request.writes:
                small = len(op.value) <= SMALL_VALUE_BYTES
                (result,) = await self._keys.write((request,), small=small)
                if request.watch is not None:
                    self._on_event()
            else:
                result = await self._keys.read(request)
        return _answer_of(op, result)

    async def _request(self, actor: Actor, op: pb.KVOperation) -> KeyRequest:
        """Check an operation on one key. Raises _KvRefused."""
        place = await self._place(actor, op)
        space, number = place.space, op.op
        if number in _WRITES and space.startswith(OWN):
            self._own_spaces.add(space)
        now_ms = self._clock.now_ms()
        quotas = self._quotas.of(place.workspace)
        quota = self._quota
        if quotas is not self._quotas.defaults:
            quota = Quota.of(quotas.kv_keys_per_scope, quotas.kv_bytes_per_scope)
        watch: KeyWatch | None = None
        if self._events is not None and number in _WRITES and place.label == _WATCHED:
            wanted = self._events(place.workspace, op.key)
            if wanted is not None:
                watch = KeyWatch(place.workspace, op.key, actor.identity.text, _OPERATIONS[number], wanted)
        return KeyRequest(
            space, op.key.encode(), now_ms, quota, _SINGLE[number], op, writes=number in _WRITES, watch=watch
        )

    async def _place(self, actor: Actor, op: pb.KVOperation) -> Place:
        """Check an operation on one space; return where it is. Raises _KvRefused."""
        self._check_operation(actor, op)
        authority = await self._authority(actor, op) if op.HasField("authorization") else DIRECT
        identity = actor.identity
        workspace = op.workspace or identity.workspace
        try:
            place = place_of(op.scope, identity, op.user_id, workspace)
        except ScopeError as exc:
            raise _KvRefused(_error(op, Code.KV_ERROR, str(exc))) from None
        self._check_sizes(op, place.workspace)
        level = AccessLevel.READ if op.op in _READ_LEVEL else AccessLevel.READWRITE
        decision = await self._authorizer.check_kv(
            actor,
            place.label,
            "" if op.op == Op.LIST else op.key,
            workspace,
            op.user_id,
            level,
            authority,
            exclusive=place.exclusive,
        )
        if not decision.allowed:
            raise _denied(op, decision.reason)
        return place

    async def _list(self, op: pb.KVOperation, space: bytes) -> pb.KVResponse:
        limit = min(op.limit, self._limits.kv_list_page_max) if op.limit > 0 else self._limits.kv_list_page
        try:
            last_key = ranges.decode_cursor(op.cursor) if op.cursor else None
        except CursorError as exc:
            raise _refused(op, str(exc)) from None
        page = await self._db.read(
            partial(ranges.list_page, space, op.key.encode(), last_key, limit, MAX_RESPONSE_BYTES, self._clock.now_ms())
        )
        entries = _text_keys(page)
        return pb.KVResponse(
            success=True,
            keys=list(entries),
            kv_map=entries,
            next_cursor=page.cursor,
            has_more=bool(page.cursor),
            request_id=op.request_id,
        )

    async def _purge(self, actor: Actor, op: pb.KVOperation) -> pb.KVResponse:
        self._check_operation(actor, op)
        authority = await self._authority(actor, op) if op.HasField("authorization") else DIRECT
        decision = await self._authorizer.check(
            actor, "kv_purge_identity", "capability", Capability.KV_PURGE_IDENTITY, "", AccessLevel.MANAGE, authority
        )
        if not decision.allowed:
            raise _denied(op, decision.reason)
        try:
            target = Identity.parse(op.target_identity)
            if not actor.reaches(target):
                raise _out_of_reach(op, target.text)
            floor, end = _purge_range(op, target)
        except (ScopeError, IdentityError) as exc:
            raise _refused(op, str(exc)) from None
        total = 0
        purge = partial(ranges.purge_page, floor, end, op.key.encode(), PURGE_PAGE, self._clock.now_ms())
        while True:
            page = await self._keys.delete_many(purge)
            total += page.live
            if len(page.names) < PURGE_PAGE:
                return pb.KVResponse(success=True, counter_value=total, request_id=op.request_id)

    def _check_operation(self, actor: Actor, op: pb.KVOperation) -> None:
        identity = actor.identity
        if identity.kind not in _MAY_USE:
            raise _refused(op, f"{identity.kind.with_article} may not use the key-value store")
        if op.op not in _KNOWN:
            raise _refused(op, f"unknown KV operation {op.op}")
        if op.workspace and not actor.allows_workspace(op.workspace):
            raise _out_of_reach(op, f"workspace {shown(op.workspace)}")

    async def _authority(self, actor: Actor, op: pb.KVOperation) -> Authority:
        try:
            return await self._authorizer.authority(actor, op.authorization)
        except RequestError as exc:
            raise _KvRefused(_error(op, exc.code, exc.message), *_unsuccessful(op)) from None

    def _check_sizes(self, op: pb.KVOperation, workspace: str) -> None:
        key, value_bytes, number = op.key, len(op.value), op.op
        size = len(key) if key.isascii() else len(key.encode())
        if size > self._limits.kv_key_bytes or (size == 0 and number != Op.LIST):
            raise _refused(op, f"the key has {size} bytes; it must have 1 to {self._limits.kv_key_bytes}")
        # At most as much as fits into the answer of a GET.
        most = min(self._quotas.of(workspace).kv_value_bytes, MAX_RESPONSE_BYTES)
        if value_bytes > most:
            text = f"the value has {value_bytes} bytes; at most {most} are allowed"
            raise _KvRefused(_error(op, Code.QUOTA, text))
        if op.delta_value < 0 and number in _WITHIN:
            raise _refused(op, "delta_value is negative; use the opposite operation")


class KvHandler:
    """Answers `kv_op` requests of sessions, and counts them by operation and scope."""

    def __init__(self, service: KvService, metrics: Metrics, clock: Clock) -> None:
        self._service = service
        self._metrics = metrics
        self._clock = clock

    async def handle_some(self, session: Session, ops: Sequence[pb.KVOperation]) -> Sequence[Answer]:
        """Perform the first operations, within the reach of the session's credential."""
        started = self._clock.monotonic()
        answers = await self._service.handle_some(session, ops)
        elapsed_s = self._clock.monotonic() - started
        counted: dict[tuple[int, int, bool], int] = {}
        for op, answer in zip(ops, answers, strict=False):
            first = answer[0]
            kind = (op.op, op.scope, first.HasField("kv") and first.kv.success)
            counted[kind] = counted.get(kind, 0) + 1
        for (number, scope_number, succeeded), times in counted.items():
            operation, scope = _OPERATIONS.get(number, "UNKNOWN"), _SCOPES.get(scope_number, "UNKNOWN")
            status = "ok" if succeeded else "error"
            self._metrics.kv_operations.add((session.workspace, operation, scope, status), times)
            self._metrics.kv_operation_latency.observe(elapsed_s, (operation, scope), times)
        return answers


def _purge_range(op: pb.KVOperation, target: Identity) -> tuple[bytes, bytes]:
    if op.scope == Op.SCOPE_UNSPECIFIED:
        root = exclusive_root(target, "a purge")
        return root, after(root)
    scope = parse_scope(op.scope)
    if not scope.is_exclusive:
        raise ScopeError(f"{scope.label} is a shared scope; only exclusive scopes can be purged")
    space = space_of(scope, target, op.user_id, op.workspace)
    return space, space + b"\0"


def _text_keys(page: ranges.KvPage) -> dict[str, bytes]:
    return {key.decode(): value for key, value in page.entries}


def _error(op: pb.KVOperation, code: Code, text: str, *, retryable: bool = False) -> pb.DownstreamMessage:
    return error_response(RequestError(code, text, retryable=retryable), op.request_id)


def _unsuccessful(op: pb.KVOperation) -> list[pb.DownstreamMessage]:
    if not op.request_id:
        return []
    return [pb.DownstreamMessage(kv=pb.KVResponse(success=False, request_id=op.request_id))]


def _out_of_reach(op: pb.KVOperation, what: str) -> _KvRefused:
    error = _error(op, Code.PERMISSION_DENIED, f"this credential does not reach {what}")
    return _KvRefused(error, *_unsuccessful(op))


def _denied(op: pb.KVOperation, text: str) -> _KvRefused:
    return _KvRefused(*_unsuccessful(op), _error(op, Code.PERMISSION_DENIED, text))


def _failure(op: pb.KVOperation, text: str, *, retryable: bool = False) -> list[pb.DownstreamMessage]:
    return [*_unsuccessful(op), _error(op, Code.KV_ERROR, text, retryable=retryable)]


def _unavailable(op: pb.KVOperation, exc: StorageUnavailable) -> Answer:
    if isinstance(exc, CommitUnknown):
        told = outage(exc)
        return [*_unsuccessful(op), _error(op, told.code, told.message)]
    return _failure(op, f"storage is unavailable, try again: {exc}", retryable=True)


def _answer_of(op: pb.KVOperation, result: Result) -> Answer:
    """Make the answer of an operation on one key."""
    if isinstance(result, KvRefusal):
        return [_error(op, Code.QUOTA, result.reason)] if result.quota else _failure(op, result.reason)
    message = pb.DownstreamMessage()
    response = message.kv
    response.success = True
    if result.value:
        response.value = result.value
    if result.counter:
        response.counter_value = result.counter
    if result.applied:
        response.applied = True
    response.request_id = op.request_id
    return [message]


def _refused(op: pb.KVOperation, text: str) -> _KvRefused:
    return _KvRefused(*_failure(op, text))
