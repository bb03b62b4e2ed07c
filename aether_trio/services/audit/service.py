"""Answers `audit_query` and `submit_audit_event` (reference: security.md 5).

Who may read what:

| the caller has | he sees |
|---|---|
| READ of admin/audit | all rows; a credential for some workspaces has to name one of them |
| MANAGE of the workspace that he names | all rows of that workspace |
| READ of the workspace that he names | of these rows those of which he is the actor |

Not as the reference: more than 500 rows are cut to 500, and not to 100; `total_count` counts all
matches; an entry `custom` is stored, or refused while its type is disabled; fields are checked; the
capability for another workspace is asked for that workspace. An entry is answered when it is in the
log. A query sees what this node has done before it.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from aether_trio.model.access import AccessLevel
from aether_trio.model.audit import (
    METADATA_BYTES,
    SUBMITTED_TYPES,
    TEXT_BYTES,
    AuditEvent,
    EventType,
    metadata_fits,
)
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.text import TextError, check_text, shown
from aether_trio.model.token_bucket import TokenBucket
from aether_trio.services.access import Admin, Authorizer, Capability
from aether_trio.services.audit.log import AuditFilter, AuditRow, RowPage, find
from aether_trio.services.audit.writer import AuditWriter
from aether_trio.session.dispatch import Handler
from aether_trio.session.session import Session
from aether_trio.storage.base import Database, StorageUnavailable
from aether_trio.storage.outages import outage_text
from aether_trio.wire.pages import page_that_fits
from aether_trio.wire.pb import aether_pb2 as pb

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 500
MAX_EXCLUDED: Final = 100
"""Types or workspaces that a query may exclude."""
FLUSH_S: Final = 2.0
"""How long a query waits for what this node has not written yet."""
STORE_S: Final = 10.0
"""How long a submitted entry may take to be stored, before its outcome is said to be unknown."""
SETTLE_ROW_S: Final = 0.001
"""How long the next query waits for each row of counts that a query has had written."""
MAX_PRINCIPALS: Final = 10_000
_MAX_INT32: Final = 2**31 - 1
_MAX_METADATA: Final = 100
_MAX_SECONDS: Final = 2**50  # of a time: in ms it is still an integer of the database

_FILTERS: Final = (
    "event_type", "actor_type", "actor_id", "resource_type", "resource_id", "operation", "workspace",
    "subject_type", "subject_id", "authority_mode", "authority_grant_id",
)  # fmt: skip
_LOWERCASE: Final = frozenset({"actor_type", "subject_type"})
_DECISION_FILTERS: Final = (
    ("principal_type", "actor_type"),
    ("principal_id", "actor_id"),
    ("resource_type", "resource_type"),
    ("resource_id", "resource_id"),
    ("workspace", "workspace"),
)
_DECISIONS: Final = {"": None, "ALLOW": True, "DENY": False}


class AuditService:
    """Handles the requests about the audit log.

    `settle()` has what this node has counted written to the queue, and returns how many rows that
    are; `forget(days)` deletes rows that are older. `writer` is None while the audit log is
    disabled.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        authorizer: Authorizer,
        writer: AuditWriter | None,
        settle: Callable[[], int],
        forget: Callable[[int], Awaitable[int]],
        *,
        submits_per_s: float = 100.0,
    ) -> None:
        self._database = database
        self._clock = clock
        self._authorizer = authorizer
        self._writer = writer
        self._settle = settle
        self._forget = forget
        self._submits_per_s = submits_per_s
        self._settles_from_s = -math.inf
        """When a query may have counts written again (trio's clock)."""
        self._settles = 0
        self._buckets: OrderedDict[tuple[str, str], TokenBucket] = OrderedDict()

    @property
    def handlers(self) -> dict[str, Handler]:
        """The handlers of client requests, by the field of UpstreamMessage."""
        return {"audit_query": self.query, "submit_audit_event": self.submit}

    # -- reading -----------------------------------------------------------------------------------

    async def query(self, session: Session, query: pb.AuditQuery) -> Sequence[pb.DownstreamMessage]:
        """Answer an `audit_query`; a refusal is in the typed reply."""
        reply = pb.AuditQueryResponse(request_id=query.request_id)
        try:
            wanted = await self._allowed(session, query)
            page = await self.find(wanted)
        except RequestError as error:
            reply.error = str(error)
        except StorageUnavailable as error:
            reply.error = outage_text(error)
        else:
            reply.success = True
            reply.total_count = min(page.total, _MAX_INT32)
            reply.entries.extend(page_that_fits(map(_entry, page.rows)))
        return [pb.DownstreamMessage(audit_response=reply)]

    async def find(self, wanted: AuditFilter) -> RowPage:
        """Read a page, with all that this node did before. Raises StorageUnavailable."""
        if self._writer is not None:
            with trio.move_on_after(FLUSH_S):
                await self._settle_once()
                await self._writer.flush()
        return await self._database.read(lambda: find(wanted))

    async def _settle_once(self) -> None:
        """Have what was counted until now written, at a bounded rate of rows.

        What everyone on this node does would be a row for each query otherwise, and no count.
        """
        settles = self._settles
        while (wait_s := self._settles_from_s - trio.current_time()) > 0:
            await trio.sleep(wait_s)
            if self._settles > settles:
                return  # that was for another query, and after this one had begun
        self._settles += 1
        self._settles_from_s = trio.current_time() + SETTLE_ROW_S * self._settle()

    async def decisions(self, wanted: pb.ACLAuditFilter) -> tuple[Sequence[pb.ACLAuditEntryInfo], int]:
        """Read a page of access decisions, and how many there are in all.

        The caller has checked who asks.

        Raises RequestError for a filter that is no filter, StorageUnavailable.
        """
        if wanted.decision.upper() not in _DECISIONS:
            raise RequestError(
                Code.INVALID_ARGUMENT, f"a decision is ALLOW or DENY, and {shown(wanted.decision)} is neither"
            )
        equal = [("event_type", EventType.AUTHORIZATION.value)]
        for name, column in _DECISION_FILTERS:
            if value := _text(getattr(wanted, name), name):
                equal.append((column, value.lower() if column in _LOWERCASE else value))
        page = await self.find(
            AuditFilter(
                equal,
                start_ms=_start_ms(wanted.start_time),
                end_ms=_end_ms(wanted.end_time),
                success=_DECISIONS[wanted.decision.upper()],
                limit=_limit(wanted.limit),
                offset=max(wanted.offset, 0),
            )
        )
        return page_that_fits(map(_decision, page.rows)), page.total

    async def forget(self, older_than_days: int) -> int:
        """Delete rows that are older than so many days, one at least; return how many."""
        return await self._forget(older_than_days)

    async def _allowed(self, session: Session, query: pb.AuditQuery) -> AuditFilter:
        """Return a query's filter, narrowed to what he may read. Raises RequestError."""
        equal = [
            (name, value.lower() if name in _LOWERCASE else value)
            for name in _FILTERS
            if (value := _text(getattr(query, name), name))
        ]
        for name in ("exclude_actor_types", "exclude_workspaces"):
            values = getattr(query, name)
            if len(values) > MAX_EXCLUDED:
                raise RequestError(
                    Code.INVALID_ARGUMENT, f"{name} has {len(values)} values, at most {MAX_EXCLUDED} are allowed"
                )
            for value in values:
                _text(value, name)
        if not await self._may_read_all(session, query):
            identity = session.identity
            equal += [("actor_type", identity.type_name), ("actor_id", identity.canonical_id)]
        return AuditFilter(
            equal,
            start_ms=_start_ms(query.start_time),
            end_ms=_end_ms(query.end_time),
            success=False if query.only_failures else None,
            exclude_actor_types=[one.lower() for one in query.exclude_actor_types],
            exclude_workspaces=list(query.exclude_workspaces),
            exclude_service_direct=query.exclude_service_direct,
            limit=_limit(query.limit),
            offset=max(query.offset, 0),
        )

    async def _may_read_all(self, session: Session, query: pb.AuditQuery) -> bool:
        """Whether the caller may read all rows of his query; False: only his own.

        Raises RequestError when he may read none.
        """
        workspace = query.workspace
        context = query.authorization if query.HasField("authorization") else None
        authority = await self._authorizer.authority(session, context)

        async def check(resource_type: str, resource_id: str, level: AccessLevel) -> bool:
            decision = await self._authorizer.check(
                session, "audit_query", resource_type, resource_id, workspace, level, authority
            )
            reasons.append(decision.reason)
            return decision.allowed

        reasons: list[str] = []
        if workspace and not session.allows_workspace(workspace):
            raise RequestError(Code.PERMISSION_DENIED, f"this credential does not reach workspace {shown(workspace)}")
        if await check("admin", Admin.AUDIT, AccessLevel.READ):
            if not workspace and not session.reaches_everything:
                raise RequestError(
                    Code.PERMISSION_DENIED, "this credential does not reach all workspaces; name one in workspace"
                )
            return True
        if not workspace:
            raise RequestError(Code.PERMISSION_DENIED, f"{reasons[0]}; or name a workspace that you may read")
        if await check("workspace", workspace, AccessLevel.MANAGE):
            return True
        if await check("workspace", workspace, AccessLevel.READ):
            return False
        raise RequestError(Code.PERMISSION_DENIED, reasons[-1])

    # -- adding ------------------------------------------------------------------------------------

    async def submit(self, session: Session, request: pb.SubmitAuditEventRequest) -> Sequence[pb.DownstreamMessage]:
        """Store a participant's entry; a refusal is in the typed reply."""
        reply = pb.SubmitAuditEventResponse(client_request_id=request.client_request_id)
        try:
            await self._submit(session, request)
        except RequestError as error:
            reply.error_code, reply.error_message = error.code, error.message
        except StorageUnavailable as error:
            reply.error_code, reply.error_message = Code.CIRCUIT_OPEN, outage_text(error)
        else:
            reply.success = True
        return [pb.DownstreamMessage(submit_audit_event_response=reply)]

    async def _submit(self, session: Session, request: pb.SubmitAuditEventRequest) -> None:
        writer = self._writer
        if writer is None:
            raise RequestError(Code.AUDIT_DISABLED, "this gateway keeps no audit log")
        event_type = _submitted_type(request.event_type)
        self._take(session)
        metadata = _check_fields(request)
        workspace = request.workspace or session.workspace
        if workspace != session.workspace:
            await self._check_abroad(session, workspace)
        if not writer.writes(event_type):
            raise RequestError(Code.AUDIT_DISABLED, f"this gateway does not record events of type {event_type}")
        if writer.failing:
            raise RequestError(Code.CIRCUIT_OPEN, "the audit log cannot be written now; try again")
        identity = session.identity
        writer.put(
            AuditEvent(
                at_ms=self._clock.now_ms(),
                event_type=event_type,
                operation=request.operation,
                actor_type=identity.type_name,
                actor_id=identity.canonical_id,
                resource_type=request.resource_type,
                resource_id=request.resource_id,
                workspace=workspace,
                session_id=session.session_id,
                success=request.success,
                error_message=request.error_message,
                metadata=metadata,
                source="principal",
            )
        )
        if not await writer.flush_within(STORE_S):
            raise RequestError(
                Code.OUTCOME_UNKNOWN, "the audit log cannot be written now; the entry is in it as soon as it can"
            )

    def _take(self, session: Session) -> None:
        identity = session.identity
        principal = identity.type_name, identity.canonical_id
        bucket = self._buckets.get(principal)
        if bucket is None:
            bucket = self._buckets[principal] = TokenBucket(self._submits_per_s, max(self._submits_per_s, 1.0))
            if len(self._buckets) > MAX_PRINCIPALS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(principal)
        wait_s = bucket.take(self._clock.monotonic())
        if wait_s:
            raise RequestError(
                Code.AUDIT_RATE_LIMITED,
                f"at most {self._submits_per_s:g} audit entries a second; try again in {wait_s * 1000:.0f} ms",
                retryable=True,
                retry_after_ms=int(wait_s * 1000) + 1,
            )

    async def _check_abroad(self, session: Session, workspace: str) -> None:
        if not session.allows_workspace(workspace):
            raise RequestError(Code.PERMISSION_DENIED, f"this credential does not reach workspace {shown(workspace)}")
        decision = await self._authorizer.check(
            session,
            "submit_audit_event",
            "capability",
            Capability.AUDIT_SUBMIT,
            workspace,
            AccessLevel.READ,
        )
        if not decision.allowed:
            raise RequestError(Code.PERMISSION_DENIED, decision.reason)


def _text(value: str, name: str) -> str:
    try:
        return check_text(value, name, TEXT_BYTES)
    except TextError as error:
        raise RequestError(Code.INVALID_ARGUMENT, str(error)) from None


def _start_ms(seconds: int) -> int:
    return min(seconds, _MAX_SECONDS) * 1000 if seconds > 0 else 0


def _end_ms(seconds: int) -> int:
    """Return the first moment that does not count: the last second does."""
    return (min(seconds, _MAX_SECONDS) + 1) * 1000 if seconds > 0 else 0


def _limit(asked: int) -> int:
    return min(asked, MAX_LIMIT) if asked > 0 else DEFAULT_LIMIT


def _submitted_type(name: str) -> EventType:
    allowed = ", ".join(sorted(SUBMITTED_TYPES))
    if name not in SUBMITTED_TYPES:
        raise RequestError(
            Code.AUDIT_TYPE_FORBIDDEN, f"an entry is of type {allowed}; {shown(name)} is the gateway's to record"
        )
    return EventType(name)


def _check_fields(request: pb.SubmitAuditEventRequest) -> dict[str, str]:
    """Check the texts of an entry; return its metadata. Raises RequestError."""
    for name in ("operation", "resource_type", "resource_id", "workspace"):
        _text(getattr(request, name), name)
    try:
        check_text(request.error_message, "error_message", TEXT_BYTES, lines=True)
    except TextError as error:
        raise RequestError(Code.INVALID_ARGUMENT, str(error)) from None
    if not request.operation:
        raise RequestError(Code.INVALID_ARGUMENT, "an entry needs an operation: what was done")
    if request.resource_id and not request.resource_type:
        raise RequestError(Code.INVALID_ARGUMENT, "a resource_id needs a resource_type")
    if request.success and request.error_message:
        raise RequestError(Code.INVALID_ARGUMENT, "an entry of a success has no error_message")
    metadata = dict(request.metadata)
    if len(metadata) > _MAX_METADATA or sum(len(key) + len(value) for key, value in metadata.items()) > METADATA_BYTES:
        raise RequestError(
            Code.INVALID_ARGUMENT, f"metadata has more than {_MAX_METADATA} entries or {METADATA_BYTES} characters"
        )
    if any("\0" in key or "\0" in value for key, value in metadata.items()):
        raise RequestError(Code.INVALID_ARGUMENT, "metadata contains a zero byte")
    if not metadata_fits(metadata):
        raise RequestError(Code.INVALID_ARGUMENT, f"metadata has more than {METADATA_BYTES} bytes as JSON")
    return metadata


def _entry(row: AuditRow) -> pb.AuditEntry:
    return pb.AuditEntry(
        audit_id=row.audit_id,
        timestamp=row.at_ms // 1000,
        event_type=row.event_type,
        actor_type=row.actor_type,
        actor_id=row.actor_id,
        resource_type=row.resource_type,
        resource_id=row.resource_id,
        operation=row.operation,
        workspace=row.workspace,
        session_id=row.session_id,
        gateway_id=row.gateway_id,
        success=bool(row.success),
        error_message=row.error_message,
        metadata_json=row.metadata,
        subject_type=row.subject_type,
        subject_id=row.subject_id,
        root_subject_type=row.root_subject_type,
        root_subject_id=row.root_subject_id,
        authority_mode=row.authority_mode,
        root_authority_grant_id=row.root_authority_grant_id,
        authority_grant_id=row.authority_grant_id,
        parent_authority_grant_id=row.parent_authority_grant_id,
        source=row.source,
    )


def _decision(row: AuditRow) -> pb.ACLAuditEntryInfo:
    metadata = json.loads(row.metadata)
    level = metadata.pop("access_level", 0)
    name = next((one.name for one in AccessLevel if one == level), "")
    return pb.ACLAuditEntryInfo(
        audit_id=row.audit_id,
        timestamp=row.at_ms // 1000,
        decision=str(metadata.pop("decision", "ALLOW" if row.success else "DENY")),
        access_level=level if isinstance(level, int) else 0,
        access_level_name=name,
        principal_type=row.actor_type,
        principal_id=row.actor_id,
        resource_type=row.resource_type,
        resource_id=row.resource_id,
        operation=row.operation,
        workspace=row.workspace,
        rule_id=str(metadata.pop("rule_id", "")),
        fallback_applied=bool(metadata.pop("fallback_applied", False)),
        gateway_id=row.gateway_id,
        session_id=row.session_id,
        metadata={key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()},
    )
