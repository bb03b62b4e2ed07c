"""Makes the audit log of a gateway, and says what happens in it.

    sessions, handlers, router ──▶ AuditTrail ──▶ EventCounts ──▶ AuditWriter ──▶ rows
                                                                  HeadSigner  ──▶ signed heads

`open_audit` opens the parts for as long as the gateway runs. At its end what was counted is
written, and a last head is signed.
"""

from __future__ import annotations

import random
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.concurrency.supervision import keep_running
from aether_trio.config import AuditSettings, Settings
from aether_trio.delivery.router import RouteCount, Router
from aether_trio.gateway.databases import OpenDatabase
from aether_trio.model.audit import AuditEvent, EventType, content_text
from aether_trio.model.clock import Clock
from aether_trio.model.errors import RequestError, Status, StatusError
from aether_trio.model.identity import Identity
from aether_trio.services.audit.checkpoints import SigningKey
from aether_trio.services.audit.counts import OTHERS, EventCounts, EventSource
from aether_trio.services.audit.heads import HeadSigner
from aether_trio.services.audit.keys import KEY_FILE, open_signing_key
from aether_trio.services.audit.trees import AuditTree, begin_tree
from aether_trio.services.audit.upkeep import DAY_MS, AuditUpkeep
from aether_trio.services.audit.writer import AuditPolicy, AuditWriter
from aether_trio.services.authority.fields import principal_of
from aether_trio.services.credentials.throttle import network_of
from aether_trio.session.dispatch import BatchHandler, Handler
from aether_trio.session.init_connection import Authenticated, Claim
from aether_trio.session.session import Session
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.partitions import partition_length_ms
from aether_trio.transport.link import Peer
from aether_trio.version import __version__
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.audit")

MINUTE_S: Final = 60.0
FRESH_S: Final = 1.0
"""How soon the first message to a topic is a row."""
CLOSE_S: Final = 5.0
_ORIGIN: Final = re.compile(r"[^A-Za-z0-9._:-]+")
_KV: Final = pb.KVOperation
_KV_NAMES: Final = {number: f"kv_{name.lower()}" for name, number in _KV.OpType.items()}
_KV_SCOPES: Final = {number: name.lower() for name, number in _KV.Scope.items()}
_KV_READS: Final = frozenset({_KV.GET, _KV.LIST, _KV.SET_CARD, _KV.PURGE_IDENTITY})
_KV_PLAIN_WRITES: Final = frozenset({_KV.PUT, _KV.DELETE, _KV.INCREMENT, _KV.DECREMENT})
_DIRECT: Final[Mapping[str, str]] = {}
CLAIMED_CHARACTERS: Final = 512
"""Of the subject and the grant that a request names."""
KEYS_PER_MINUTE: Final = 200
"""Keys of one session that get rows; writes of further ones are counted by scope, like reads."""
TOPICS_PER_MINUTE: Final = 1000
"""Topics of one session that get rows for messages; those to further ones share rows."""


class AuditTrail:
    """Records what participants do, in words of the audit log. Never waits."""

    def __init__(self, writer: AuditWriter, signer: HeadSigner, upkeep: AuditUpkeep, clock: Clock) -> None:
        self.writer = writer
        self.signer = signer
        self.upkeep = upkeep
        self._clock = clock
        self._counts = EventCounts(writer.put, clock)
        self._keys: dict[str, int] = {}
        """How many keys each session has written within this minute."""
        self._topics: Counter[str] = Counter()
        """How many rows for topics each session has within this minute."""
        self.counted = AutoResetEvent()
        """Set when the router has counts that are to be rows soon."""

    @property
    def problem(self) -> str | None:
        """Why the audit log is not as it should be, for the gateway's health; None: it is."""
        if self.writer.failing:
            return "audit rows could not be written"
        return self.signer.problem

    # -- connections -------------------------------------------------------------------------------

    def authenticated(
        self, claim: Claim, peer: Peer, admitted: Authenticated | None, error: StatusError | None
    ) -> None:
        """Record that a client's credentials were accepted, or refused with `error`."""
        if not self.writer.writes(EventType.AUTH):
            return
        proof = admitted.credential if admitted is not None else ""
        if proof.startswith("certificate:") or (error is not None and peer.certificate is not None):
            operation = "auth_mtls_success" if error is None else "auth_mtls_failure"
        elif proof or (error is not None and claim.credentials):
            operation = "auth_token_validation"
        else:
            operation = "identity_resolved" if error is None else "identity_resolve_failed"
        identity = claim.identity
        # Clients choose these names: an address that tries many of them gets one row a minute for
        # each status.
        name = identity.text if error is None else ""
        kind = operation, name, "" if error is None else error.status.name, network_of(peer.address)
        metadata: dict[str, object] = {"peer": peer.address, "transport": peer.transport}
        if proof:
            metadata["admitted_by"] = proof
        if error is not None:
            metadata["status"] = error.status.name

        def make() -> AuditEvent:
            return AuditEvent(
                at_ms=self._clock.now_ms(),
                event_type=EventType.AUTH,
                operation=operation,
                actor_type=identity.type_name,
                actor_id=identity.canonical_id,
                resource_type="gateway",
                workspace=identity.workspace,
                success=error is None,
                error_message="" if error is None else error.message,
                metadata=metadata,
            )

        self._counts.count(kind, make)

    def renewed(
        self, session: Session, before: Authenticated, admitted: Authenticated, error: StatusError | None
    ) -> None:
        """Record that a session rests on another credential now, or that it was refused."""
        metadata: dict[str, object] = {
            "admitted_by": admitted.credential,
            "admitted_before_by": before.credential,
            "ends_ms": admitted.expires_ms,
            "ended_before_ms": before.expires_ms,
        }
        self.writer.put(
            self._of(
                session,
                EventType.AUTH,
                "credential_renewed",
                success=error is None,
                error_message="" if error is None else error.message,
                metadata=metadata,
            )
        )

    def lock_rejected(self, claim: Claim) -> None:
        """Record that a client was refused, as its identity is connected already."""
        identity = claim.identity

        def make() -> AuditEvent:
            return AuditEvent(
                at_ms=self._clock.now_ms(),
                event_type=EventType.CONNECTION,
                operation="lock_rejected",
                actor_type=identity.type_name,
                actor_id=identity.canonical_id,
                resource_type="gateway",
                workspace=identity.workspace,
                success=False,
                error_message="the identity is connected already",
            )

        if self.writer.writes(EventType.CONNECTION):
            self._counts.count(("lock_rejected", identity.text), make)

    def connected(self, session: Session, *, resumed: bool) -> None:
        """Record that a session is acknowledged."""
        peer = session.link.peer
        metadata = {"peer": peer.address, "transport": peer.transport, "resumed": resumed}
        self.writer.put(self._of(session, EventType.CONNECTION, "connection_established", metadata=metadata))

    def disconnected(self, session: Session) -> None:
        """Record the end of an acknowledged session, with its reason."""
        if not session.acknowledged:
            return
        reason, error = _reason(session)
        duration_ms = self._clock.now_ms() - session.connected_ms
        metadata = {"reason": reason, "duration_ms": duration_ms}
        self.writer.put(
            self._of(
                session,
                EventType.CONNECTION,
                "connection_closed",
                success=reason != "error",
                error_message=error,
                metadata=metadata,
            )
        )

    # -- messages ----------------------------------------------------------------------------------

    def fold_routes(self, router: Router, *, all_routes: bool) -> int:
        """Record what was sent: routes that are new, or with `all_routes` all of them.

        Returns how many these were.
        """
        counts = router.take_counts(all_routes=all_routes)
        for count in counts:
            session_id = count.session_id
            if not (count.refusal or count.grant_id) and self._topics[session_id] < TOPICS_PER_MINUTE:
                self._topics[session_id] += 1
                self.writer.put(self._routed(count))
                continue
            kind = (session_id, count.target, count.refusal, count.grant_id, *count.subject)
            make = partial(self._route_failed if count.refusal else self._routed, count)
            self._counts.count(kind, make, count.messages, EventSource(session_id, count.workspace))
        return len(counts)

    def fold(self) -> None:
        """Record what was counted since the last call."""
        self._counts.fold()
        self._keys = {}
        self._topics.clear()

    def _routed(self, count: RouteCount) -> AuditEvent:
        metadata: dict[str, object] = {"count": count.messages}
        if self.writer.policy.sizes:
            metadata["message_size"] = count.payload_bytes
        return self._message(count, "message_routed", metadata)

    def _route_failed(self, count: RouteCount) -> AuditEvent:
        return self._message(count, "message_route_failed", {"code": count.refusal}, error=count.refusal)

    def _message(self, count: RouteCount, operation: str, metadata: dict[str, object], error: str = "") -> AuditEvent:
        identity = count.identity
        return AuditEvent(
            at_ms=self._clock.now_ms(),
            event_type=EventType.MESSAGE,
            operation=operation,
            actor_type=identity.type_name,
            actor_id=identity.canonical_id,
            resource_type="topic",
            resource_id=count.target,
            workspace=count.workspace,
            session_id=count.session_id,
            success=not error,
            error_message=error,
            metadata=metadata,
            subject_type=count.subject[0],
            subject_id=count.subject[1],
            authority_mode="on_behalf_of" if count.grant_id else "direct",
            authority_grant_id=count.grant_id,
        )

    # -- operations --------------------------------------------------------------------------------

    def kv(self, handle: BatchHandler) -> BatchHandler:
        """Return a handler of `kv_op` that records each operation."""

        async def handle_and_record(session: Session, ops: Sequence[Any]) -> Sequence[Sequence[pb.DownstreamMessage]]:
            answers = await handle(session, ops)
            if self.writer.writes(EventType.KV):
                for op, answer in zip(ops, answers, strict=False):
                    self._kv(session, op, answer)
            return answers

        return handle_and_record

    def _kv(self, session: Session, op: pb.KVOperation, answer: Sequence[pb.DownstreamMessage]) -> None:
        response = answer[0].kv if answer[0].HasField("kv") else None
        error = next((one.error for one in answer if one.HasField("error")), None)
        success = response is not None and response.success
        key = op.key if op.op not in _KV_READS else ""
        authority = _claimed(op)
        place = (session.session_id, op.op, op.scope, op.workspace, op.user_id, success, *authority.values())
        kind = (*place, key)
        if key and kind not in self._counts:
            keys = self._keys.get(session.session_id, 0)
            if keys >= KEYS_PER_MINUTE:
                key = ""
                kind = (*place, key)
            else:
                self._keys[session.session_id] = keys + 1

        def make() -> AuditEvent:
            metadata: dict[str, object] = {"scope": _KV_SCOPES.get(op.scope, "")}
            if op.user_id:
                metadata["user_id"] = op.user_id
            if key:
                metadata["key"] = key
                metadata["new_value_size"] = len(op.value)
                if op.ttl:
                    metadata["ttl_seconds"] = op.ttl
                if response is not None:
                    metadata["value_changed"] = response.applied or op.op in _KV_PLAIN_WRITES
            return self._of(
                session,
                EventType.KV,
                _KV_NAMES.get(op.op, "kv_unknown"),
                resource_type="kv_key" if key else "kv_scope",
                resource_id=key or _KV_SCOPES.get(op.scope, ""),
                workspace=op.workspace or session.workspace,
                success=success,
                error_message=error.message if error is not None else "",
                metadata=metadata,
                authority=authority,
            )

        self._counts.count(kind, make, source=_source(session))

    def created_tasks(self, handle: Handler) -> Handler:
        """Return a handler of `create_task` that records each request."""

        async def handle_and_record(session: Session, request: Any) -> Sequence[pb.DownstreamMessage]:
            answers = await handle(session, request)
            error = next((one.error for one in answers if one.HasField("error")), None)
            created = next((one.create_task for one in answers if one.HasField("create_task")), None)
            self._task_created(session, request, created, error)
            return answers

        return handle_and_record

    def _task_created(
        self,
        session: Session,
        request: pb.CreateTaskRequest,
        created: pb.CreateTaskResponse | None,
        error: pb.ErrorResponse | None,
    ) -> None:
        if not self.writer.writes(EventType.TASK):
            return
        metadata: dict[str, object] = {
            "task_type": request.task_type,
            "assignment_mode": pb.TaskAssignmentMode.Name(request.assignment_mode).lower()
            if request.assignment_mode in pb.TaskAssignmentMode.values()
            else str(request.assignment_mode),
            "target_implementation": request.target_implementation,
        }
        if self.writer.policy.sizes:
            metadata["payload_size"] = len(request.payload)
        if self.writer.policy.content:
            metadata["content"] = content_text(request.payload)
        event = self._of(
            session,
            EventType.TASK,
            "task_create",
            resource_type="task",
            resource_id=created.task_id if created is not None else "",
            workspace=request.workspace or session.workspace,
            success=error is None,
            error_message=error.message if error is not None else "",
            metadata=metadata,
            authority=_claimed(request),
        )
        if error is None:
            self.writer.put(event)
        else:
            kind = ("task_create", session.session_id, request.task_type, error.code, event.authority_grant_id)
            self._counts.count(kind, lambda: event, source=_source(session))

    def disconnects(self, handle: Handler) -> Handler:
        """Return a handler of `session_op` that records who disconnects whom."""

        async def handle_and_record(session: Session, op: Any) -> Sequence[pb.DownstreamMessage]:
            answers = await handle(session, op)
            if op.op == pb.SessionOperation.DISCONNECT:
                reply = answers[0].session_response
                event = self._of(
                    session,
                    EventType.ADMIN,
                    "admin_session_disconnect",
                    resource_type="session",
                    resource_id=op.session_id,
                    success=reply.success,
                    error_message=reply.error,
                    metadata={"reason": op.reason},
                    authority=_claimed(op),
                )
                kind = ("disconnect", session.session_id, op.session_id, reply.success, event.authority_grant_id)
                self._counts.count(kind, lambda: event, source=_source(session))
            return answers

        return handle_and_record

    def put(self, event: AuditEvent) -> None:
        """Record an event of a session, of which there may be many like it."""
        if self.writer.writes(event.event_type):
            kind = (event.session_id, event.event_type, event.operation, event.resource_id, event.error_message)
            self._counts.count(kind, lambda: event, source=EventSource(event.session_id, event.workspace))

    def _of(
        self,
        session: Session,
        event_type: EventType,
        operation: str,
        *,
        resource_type: str = "session",
        resource_id: str = "",
        workspace: str | None = None,
        success: bool = True,
        error_message: str = "",
        metadata: dict[str, object],
        authority: Mapping[str, str] = _DIRECT,
    ) -> AuditEvent:
        identity: Identity = session.identity
        return AuditEvent(
            at_ms=self._clock.now_ms(),
            event_type=event_type,
            operation=operation,
            actor_type=identity.type_name,
            actor_id=identity.canonical_id,
            resource_type=resource_type,
            resource_id=resource_id or (session.session_id if resource_type == "session" else ""),
            workspace=session.workspace if workspace is None else workspace,
            session_id=session.session_id,
            success=success,
            error_message=error_message,
            metadata=metadata,
            **authority,
        )


def _claimed(request: pb.KVOperation | pb.CreateTaskRequest | pb.SessionOperation) -> dict[str, str]:
    """Return on whose authority a request says that it is; if it was done, that is so."""
    context = request.authorization
    if context.authority_mode in ("", "direct"):
        return {}
    named = context.subject
    subject_type, subject_id = named.principal_type[:CLAIMED_CHARACTERS], named.principal_id[:CLAIMED_CHARACTERS]
    with suppress(RequestError):
        subject_type, subject_id = principal_of(named, "subject", strict=False)
    return {
        "authority_mode": "on_behalf_of",
        "subject_type": subject_type,
        "subject_id": subject_id or OTHERS,
        "authority_grant_id": context.grant_id[:CLAIMED_CHARACTERS],
    }


def _source(session: Session) -> EventSource:
    return EventSource(session.session_id, session.workspace)


def _reason(session: Session) -> tuple[str, str]:
    """Return why a session has ended: a word of the protocol, and a text for an error."""
    ending = session.ending
    if session.finished:
        return "graceful_close", ""
    if ending is None:
        return "error", "the connection broke"
    if ending.status is Status.CANCELLED:
        return "admin_disconnect" if "has taken over" not in ending.message else "taken_over", ending.message
    if session.ended_by_gateway:
        return "shutdown", ending.message
    return "error", f"{ending.status.name}: {ending.message}"


@asynccontextmanager
async def open_audit(
    settings: Settings, clock: Clock, database: OpenDatabase, randomness: random.Random
) -> AsyncIterator[AuditTrail]:
    """Open the audit log of a gateway until the block ends. Raises StorageSetupError."""
    audit = settings.audit
    async with AsyncExitStack() as stack:
        if settings.gateway.ephemeral:
            key = SigningKey.from_seed(randomness.randbytes(32))
        else:
            file = Path(audit.signing_key) if audit.signing_key else Path(settings.gateway.data_dir) / KEY_FILE
            key = stack.enter_context(open_signing_key(file))
        tree = await _begin_tree(settings, clock, database, key)
        writer = AuditWriter(
            database,
            clock,
            tree,
            policy_of(audit),
            first_batch=randomness.getrandbits(62),
            partition_ms=partition_length_ms(audit.retention_days * DAY_MS / 1000),
            queue_bytes=audit.queue_bytes,
        )
        await writer.prepare()
        heads_file = Path(audit.heads_file) if audit.heads_file else None
        signer = HeadSigner(database, clock, tree, key, file=heads_file, every_s=audit.head_s)
        upkeep = AuditUpkeep(database, clock, writer, signer, audit.retention_days)
        trail = AuditTrail(writer, signer, upkeep, clock)
        nursery = await stack.enter_async_context(trio.open_nursery())
        tasks = {"audit-writer": writer.run, "audit-heads": signer.run, "audit-upkeep": upkeep.run}
        for name, run in tasks.items():
            nursery.start_soon(keep_running, name, run, name=name)
        writer.put(_own_event(clock, tree, "audit_started"))
        try:
            yield trail
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S):
                await _close(trail, _own_event(clock, tree, "audit_stopped"))
            nursery.cancel_scope.cancel()


def policy_of(audit: AuditSettings) -> AuditPolicy:
    """Return which events are written, by the settings."""
    types = frozenset(EventType(name) for name in audit.event_types) or frozenset(EventType)
    return AuditPolicy(
        types if audit.enabled else frozenset(),
        sizes=audit.verbosity != "low",
        content=audit.verbosity == "high",
    )


async def _begin_tree(settings: Settings, clock: Clock, database: OpenDatabase, key: SigningKey) -> AuditTree:
    node = settings.gateway.node_name or socket.gethostname()
    origin = f"aether-audit/{_ORIGIN.sub('-', node) or 'node'}/{key.public_raw[:4].hex()}"
    queue, now_ms = database.separate_queue(locking=True), clock.now_ms()
    return await queue.run(lambda: begin_tree(node, origin, key.public_raw, now_ms))


def _own_event(clock: Clock, tree: AuditTree, operation: str) -> AuditEvent:
    return AuditEvent(
        at_ms=clock.now_ms(),
        event_type=EventType.ADMIN,
        operation=operation,
        actor_type="gateway",
        actor_id=tree.node,
        resource_type="audit_tree",
        resource_id=tree.origin,
        metadata={"version": __version__, "public_key": tree.public_key.hex()},
    )


async def _close(trail: AuditTrail, last: AuditEvent) -> None:
    """Write what waits, and sign a last head; log what could not be done."""
    trail.fold()
    trail.writer.put(last)
    try:
        await trail.writer.flush()
        await trail.signer.sign()
    except StorageUnavailable as error:
        logger.warning("the last head of the audit log was not signed: storage fails", reason=str(error))
    if trail.writer.waiting:
        logger.error("audit rows that waited at the end are lost: storage is unavailable", rows=trail.writer.waiting)


def fold_forever(trail: AuditTrail, router: Router) -> Callable[[], Awaitable[None]]:
    """Return the task that records what the router counts: soon, and each minute."""

    async def fold_soon() -> None:
        while True:
            await trail.counted.wait()
            await trio.sleep(FRESH_S)
            trail.fold_routes(router, all_routes=False)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fold_soon)
            while True:
                await trio.sleep(MINUTE_S)
                trail.fold_routes(router, all_routes=True)
                trail.fold()

    return run
