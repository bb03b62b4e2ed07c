"""Relays workflow operations to the connected engine, and its answers back.

    client ── workflow_op ──▶ relay ── Downstream workflow_op ──▶ engine (`wfe::shard0`)
    client ◀── workflow_response ── relay ◀── workflow_response ── engine

The engine may be connected to another node (remote_engine.py). If no engine but the embedded one
holds the identity, the operation is done here, by any node (EmbeddedOperations).

An operation goes on under an id that the gateway makes, so no client can collide with another one,
and what the client has put into `request_context` is replaced by what the gateway knows. The
handler does not wait for the answer: the client's other requests go on, and the engine may ask
itself. What the client has sent before is committed before the engine sees the operation.

Invariants: each operation gets one answer, within ANSWER_S; only the session that was given an
operation answers it, once; at most MAX_PER_SESSION operations of a session wait, and MAX_PENDING in
all. An operation whose engine has ended may have been done: its answer says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.log.topic_log import TopicLog
from aether_trio.model.containment import alone
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import Kind
from aether_trio.model.ids import IdFactory
from aether_trio.model.limits import MIB
from aether_trio.model.ownership import SessionRecord
from aether_trio.model.text import shown
from aether_trio.services.access import Authority, Authorizer
from aether_trio.services.workflows.events.taken_events import ENGINE
from aether_trio.session.directory import SessionDirectory
from aether_trio.session.dispatch import NO_ANSWER, Handler
from aether_trio.session.registry import SessionRegistry
from aether_trio.session.session import Session
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.outages import outage
from aether_trio.transport.link import IN_PROCESS
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.workflows")

MAX_PER_SESSION: Final = 64
"""Operations of one session that may wait for an answer."""
MAX_PENDING: Final = 4096
"""Operations of all sessions of a node that may wait."""
MAX_DATA_BYTES: Final = 1 * MIB
"""The document of one operation."""
ANSWER_S: Final = 30.0
"""How long the engine may take for an answer."""
FIRST_OWN_OPERATION: Final = 100
"""Operations from this number on are this project's, and no external engine knows them."""

NOT_CONNECTED: Final = "workflow engine not connected"
TIMED_OUT: Final = "workflow operation timed out"
ENGINE_ENDED: Final = "the workflow engine has disconnected before it answered; look whether the operation was done"

_SCHEDULING: Final = frozenset({pb.WorkflowOperation.CREATE_SCHEDULE, pb.WorkflowOperation.UPSERT_SCHEDULE})


class EmbeddedOperations(Protocol):
    """What answers operations while no external engine is connected."""

    async def operate(self, session: Session, op: pb.WorkflowOperation) -> pb.WorkflowResponse:
        """Do an operation, of which `request_context` is filled, and return its answer.

        `request_id` of the answer is filled by the caller. Raises RequestError for a refusal, and
        StorageUnavailable.
        """


class RemoteEngine(Protocol):
    """Asks an engine that is connected to another node."""

    async def ask(self, engine: SessionRecord, op: pb.WorkflowOperation) -> pb.WorkflowResponse:
        """Return the engine's answer, or why there is none. Waits until it is cancelled.

        `op.request_id` is unique. Raises StorageUnavailable if the operation was not handed over.
        """


@dataclass(slots=True, eq=False)
class _Pending:
    """An operation that waits for an answer; `engine`: a session; "": elsewhere."""

    engine: str
    caller: str
    deadline: float
    answer: Callable[[pb.WorkflowResponse], None]
    asking: trio.CancelScope | None = None


@dataclass(frozen=True, slots=True)
class RelayStatistics:
    """Operations that wait, and counters since start."""

    pending: int
    relayed: int
    timed_out: int
    ignored: int
    """Responses that no operation waited for: late, repeated, unknown, or forged."""


class WorkflowRelay:
    """Handles `workflow_op` and `workflow_response`; `run` must run."""

    def __init__(
        self,
        registry: SessionRegistry,
        directory: SessionDirectory,
        authorizer: Authorizer,
        log: TopicLog,
        ids: IdFactory,
        nursery: trio.Nursery,
        *,
        remote: RemoteEngine | None = None,
        embedded: EmbeddedOperations | None = None,
        refusal: str = "",
    ) -> None:
        """`embedded` None: there is none. `refusal`: why no operation is done."""
        self._registry = registry
        self._directory = directory
        self._authorizer = authorizer
        self._log = log
        self._ids = ids
        self._nursery = nursery
        self._remote = remote
        self._embedded = embedded
        self._refusal = refusal
        self._pending: dict[str, _Pending] = {}
        self._counts: Counter[str] = Counter()
        self._work = AutoResetEvent()
        self._relayed = self._timed_out = self._ignored = 0

    def statistics(self) -> RelayStatistics:
        """Return how many operations wait, and counters since start."""
        return RelayStatistics(len(self._pending), self._relayed, self._timed_out, self._ignored)

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The handlers of requests, by payload of UpstreamMessage."""
        return {"workflow_op": self.operate, "workflow_response": self.respond}

    # -- operations of clients ---------------------------------------------------------------------

    async def operate(self, session: Session, op: pb.WorkflowOperation) -> Sequence[pb.DownstreamMessage]:
        """Relay an operation, or do it here; a refusal is in the typed answer."""
        request_id = op.request_id or self._ids.unique()
        try:
            response = await self._operate(session, op, request_id)
        except RequestError as error:
            response = pb.WorkflowResponse(error=str(error) if error.retryable else error.message)
        except StorageUnavailable as error:
            response = pb.WorkflowResponse(error=str(outage(error)))
        return NO_ANSWER if response is None else [_answer(response, request_id)]

    async def _operate(self, session: Session, op: pb.WorkflowOperation, request_id: str) -> pb.WorkflowResponse | None:
        """Return an answer if there is one already, and None if it follows."""
        if self._refusal:
            return pb.WorkflowResponse(error=self._refusal)
        _check(session, op)
        context = op.authorization if op.HasField("authorization") else None
        authority = await self._authorizer.authority(session, context)
        known = _request_context(session, op, authority)
        forwarded = pb.WorkflowOperation()
        forwarded.CopyFrom(op)
        forwarded.request_context.CopyFrom(known)
        if self._embedded is not None and op.op >= FIRST_OWN_OPERATION:
            return await self._embedded.operate(session, forwarded)
        await self._log.wait_settled(session.sender.last_append)
        here = self._registry.holder(ENGINE)
        if here is not None and here.link.peer.address != IN_PROCESS:
            return await self._relay(session, here, forwarded, request_id)
        elsewhere = await self._directory.holder(ENGINE) if here is None else None
        if elsewhere is not None and elsewhere.peer != IN_PROCESS:
            return self._relay_elsewhere(session, elsewhere, forwarded, request_id)
        if self._embedded is not None:
            return await self._embedded.operate(session, forwarded)
        return pb.WorkflowResponse(error=NOT_CONNECTED)

    async def _relay(
        self, session: Session, engine: Session, op: pb.WorkflowOperation, request_id: str
    ) -> pb.WorkflowResponse | None:
        refusal = await self.hand_over(engine, op, session.session_id, _answers(session, request_id))
        return None if refusal is None else pb.WorkflowResponse(error=refusal)

    async def hand_over(
        self, engine: Session, op: pb.WorkflowOperation, caller: str, answer: Callable[[pb.WorkflowResponse], None]
    ) -> str | None:
        """Send an operation to an engine of this node; return None, or a refusal.

        `answer` is called once, without a checkpoint, after None was returned. `caller` is the id
        of the session here that asks; "": another node asks, and `op.request_id` is its id.
        """
        with trio.move_on_after(ANSWER_S) as waiting:
            while not (engine.outbox.control_has_room or engine.detached):
                # An engine that reads slowly slows down the clients that ask it.
                with trio.move_on_after(1.0):
                    await engine.outbox.wait_control_room()
        if waiting.cancelled_caught:
            return TIMED_OUT
        if engine.detached or not engine.acknowledged:
            return NOT_CONNECTED
        relay_id = op.request_id if not caller else self._ids.unique()
        if (refusal := self._add(relay_id, engine.session_id, caller, answer)) is not None:
            return refusal
        op.request_id = relay_id
        engine.put(pb.DownstreamMessage(workflow_op=op))
        return None

    def _relay_elsewhere(
        self, session: Session, engine: SessionRecord, op: pb.WorkflowOperation, request_id: str
    ) -> pb.WorkflowResponse | None:
        if self._remote is None:
            return pb.WorkflowResponse(error=NOT_CONNECTED)
        op.request_id = self._ids.unique()
        refusal = self._add(op.request_id, "", session.session_id, _answers(session, request_id))
        if refusal is not None:
            return pb.WorkflowResponse(error=refusal)
        scope = self._pending[op.request_id].asking = trio.CancelScope()
        self._nursery.start_soon(alone, "an operation of workflows", self._ask, self._remote, engine, op, scope)
        return None

    async def _ask(
        self, remote: RemoteEngine, engine: SessionRecord, op: pb.WorkflowOperation, scope: trio.CancelScope
    ) -> None:
        response = pb.WorkflowResponse(error=ENGINE_ENDED)
        try:
            with scope:
                response = await remote.ask(engine, op)
        except StorageUnavailable as error:
            response = pb.WorkflowResponse(error=str(outage(error)))
        finally:
            if (pending := self._remove(op.request_id)) is not None:
                pending.answer(response)

    def _add(
        self, relay_id: str, engine: str, caller: str, answer: Callable[[pb.WorkflowResponse], None]
    ) -> str | None:
        """Note an operation that waits for its answer; return why it may not."""
        if relay_id in self._pending:
            return "this operation waits for its answer already"
        if caller and self._counts[caller] >= MAX_PER_SESSION:
            return f"{MAX_PER_SESSION} workflow operations of this connection wait for an answer; wait for one of them"
        if len(self._pending) >= MAX_PENDING:
            return f"{MAX_PENDING} workflow operations of this gateway wait for an answer; try again later"
        self._pending[relay_id] = _Pending(engine, caller, trio.current_time() + ANSWER_S, answer)
        if caller:
            self._counts[caller] += 1
        self._relayed += 1
        self._work.set()
        return None

    def _remove(self, relay_id: str) -> _Pending | None:
        pending = self._pending.pop(relay_id, None)
        if pending is not None and pending.caller:
            self._counts[pending.caller] -= 1
            if not self._counts[pending.caller]:
                del self._counts[pending.caller]
        return pending

    def waits_for(self, relay_id: str) -> bool:
        """Return whether an operation with this id waits for the engine's answer."""
        return relay_id in self._pending

    # -- answers of the engine ---------------------------------------------------------------------

    async def respond(self, session: Session, response: pb.WorkflowResponse) -> Sequence[pb.DownstreamMessage]:
        """Hand an engine's answer to the caller; ignore what no operation waits for."""
        pending = self._pending.get(response.request_id)
        if pending is None or pending.engine != session.session_id or session.identity.kind is not Kind.WORKFLOW_ENGINE:
            self._ignored += 1
            logger.debug("a workflow response that no operation waits for was ignored", session=session.who)
            return NO_ANSWER
        self._remove(response.request_id)
        pending.answer(response)
        return NO_ANSWER

    def ended(self, session: Session) -> None:
        """End what a session has asked, or what was asked of the engine that it was."""
        if session.session_id in self._counts:
            for relay_id in [one for one, found in self._pending.items() if found.caller == session.session_id]:
                pending = self._remove(relay_id)
                if pending is not None and pending.asking is not None:
                    pending.asking.cancel()
        if session.identity.kind is Kind.WORKFLOW_ENGINE:
            for relay_id in [one for one, found in self._pending.items() if found.engine == session.session_id]:
                self._finish(relay_id, ENGINE_ENDED)

    def _finish(self, relay_id: str, error: str) -> None:
        """Answer an operation with an error of the gateway."""
        pending = self._remove(relay_id)
        if pending is not None:
            if pending.asking is not None:
                pending.asking.cancel()
            pending.answer(pb.WorkflowResponse(error=error))

    async def run(self) -> None:
        """End operations that are not answered in time, until cancelled."""
        while True:
            if not self._pending:
                await self._work.wait()
                continue
            # All have the same time, so the oldest is the first.
            relay_id, first = next(iter(self._pending.items()))
            await trio.sleep_until(first.deadline)
            if self._pending.get(relay_id) is first:
                self._timed_out += 1
                self._finish(relay_id, TIMED_OUT)


def _check(session: Session, op: pb.WorkflowOperation) -> None:
    """Check what no engine can know. Raises RequestError."""
    if len(op.data) > MAX_DATA_BYTES:
        raise RequestError(
            Code.INVALID_ARGUMENT, f"data has {len(op.data)} bytes; at most {MAX_DATA_BYTES} are allowed"
        )
    if op.workspace not in {"", "*"} and not session.allows_workspace(op.workspace):
        raise RequestError(Code.PERMISSION_DENIED, f"this credential does not reach workspace {shown(op.workspace)}")


def _request_context(session: Session, op: pb.WorkflowOperation, authority: Authority) -> pb.WorkflowRequestContext:
    """Say who is behind an operation, as the gateway knows it. Raises RequestError."""
    identity, grant = session.identity, authority.grant
    actor = pb.PrincipalRef(principal_type=identity.type_name, principal_id=identity.canonical_id)
    context = pb.WorkflowRequestContext(actor=actor, subject=actor, actor_session_id=session.session_id)
    if grant is not None:
        refusal = grant.refusal("workflow_op", op.workspace, "workspace", op.workspace)
        if refusal is not None:
            raise RequestError(Code.PERMISSION_DENIED, refusal)
        subject_type, subject_id = grant.subject
        context.subject.CopyFrom(pb.PrincipalRef(principal_type=subject_type, principal_id=subject_id))
        context.source_grant_id, context.root_grant_id = grant.grant_id, grant.root_grant_id
        context.expires_at_ms = grant.expires_ms
        if op.op in _SCHEDULING:
            context.schedule_authorization.CopyFrom(op.authorization)
    if op.HasField("schedule_authority_scope"):
        context.lifetime_mode = op.schedule_authority_scope.lifetime_mode
        context.policy_version = op.schedule_authority_scope.policy_version
    return context


def _answer(response: pb.WorkflowResponse, request_id: str) -> pb.DownstreamMessage:
    response.request_id = request_id
    return pb.DownstreamMessage(workflow_response=response)


def _answers(session: Session, request_id: str) -> Callable[[pb.WorkflowResponse], None]:
    """Return what sends an answer to the session that has asked, if it is still there."""

    def answer(response: pb.WorkflowResponse) -> None:
        if not session.detached:
            session.put(_answer(response, request_id))

    return answer
