"""Handles clients' `authority_request_op`: agents ask, people narrow and approve.

    CREATE ──▶ row, audit, event of its task ──▶ all concerned are told on every node (push.py)
    RESOLVE ─▶ decision, grant, audit, event, wake of the tasks that wait: one transaction
    a timer ─▶ EXPIRED after half an hour, on whichever node comes first

model/access/requests.py says who may decide, and what an approval leaves. A request that the caller
may not see or decide is answered like one that does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

from aether_trio.model.access.grants import AuthorityGrant, GrantError, GrantScope, PrincipalKey
from aether_trio.model.access.levels import AccessLevel
from aether_trio.model.access.requests import (
    REQUEST_NOT_FOUND,
    Approval,
    RequestRecord,
    RequestStatus,
    ResolveError,
    approve,
    cancel,
    deny,
    may_decide,
    may_see,
    new_request,
)
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.ids import IdFactory
from aether_trio.services.access.changes import AccessChanges, Draft
from aether_trio.services.authority import store
from aether_trio.services.authority.fields import (
    audience_of,
    bad,
    metadata_of,
    page_of,
    principal_of,
    reason_of,
    request_event,
    request_info,
    route_of,
    scope_of,
    short_text,
    wire_level,
)
from aether_trio.services.authority.grants import hops_of, request_error
from aether_trio.services.authority.push import REQUEST
from aether_trio.services.authority.rights import Rights, bounds_of, check_reach, home_of, own_audience
from aether_trio.services.authority.tasks import end_wait_of
from aether_trio.services.authority.transactions import (
    AuditSink,
    commit_with_tasks,
    grant_event,
    refused_request_row,
    request_event_row,
)
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction import task_rows
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.session.session import Session
from aether_trio.storage.base import Database, Program, StorageUnavailable
from aether_trio.storage.outages import outage
from aether_trio.wire.error_response import error_response
from aether_trio.wire.pages import page_that_fits
from aether_trio.wire.pb import aether_pb2 as pb

Op = pb.AuthorityRequestOperation
T = TypeVar("T")

MAX_LISTED: Final = 2000
"""Requests that one list looks through."""
MAX_CAPABILITIES: Final = 64
_TASK_NOT_FOUND: Final = "task not found"
_CHANGES: Final = {
    Op.CREATE: "created",
    Op.RESOLVE: RequestStatus.APPROVED.value,
    Op.CANCEL: RequestStatus.CANCELLED.value,
}
"""What an operation would have done, for the audit of refused ones."""


@dataclass(frozen=True, slots=True)
class RequestService:
    """Performs the operations on authority requests that clients ask for."""

    database: Database
    engine: Engine
    changes: AccessChanges
    rights: Rights
    audit: AuditSink
    ids: IdFactory
    clock: Clock
    strict: bool = True

    async def handle(self, session: Session, op: pb.AuthorityRequestOperation) -> Sequence[pb.DownstreamMessage]:
        """Perform one operation; a refusal is typed, with an ErrorResponse behind it."""
        response = pb.AuthorityRequestOperationResponse(client_request_id=op.client_request_id)
        try:
            await self._operate(session, op, response)
            response.success = True
        except GrantError as error:
            return self._refused(session, op, request_error(error))
        except ResolveError as error:
            return self._refused(session, op, RequestError(Code.INVALID_ARGUMENT, str(error)))
        except RequestError as error:
            return self._refused(session, op, error)
        except StorageUnavailable as error:
            return self._refused(session, op, outage(error))
        return [pb.DownstreamMessage(authority_request_response=response)]

    def _refused(
        self, session: Session, op: pb.AuthorityRequestOperation, error: RequestError
    ) -> list[pb.DownstreamMessage]:
        word = _CHANGES.get(op.op)
        if word is not None and error.code in (Code.PERMISSION_DENIED, Code.INVALID_ARGUMENT, Code.QUOTA):
            if op.op == Op.RESOLVE and op.resolve.decision == pb.ResolveAuthorityRequestPayload.DENY:
                word = RequestStatus.DENIED.value
            self.audit.put(refused_request_row(word, session, op.request_id, self.clock.now_ms(), error.message))
        text = error.message if error.code is Code.INVALID_ARGUMENT else str(error)
        response = pb.AuthorityRequestOperationResponse(client_request_id=op.client_request_id, error=text)
        return [
            pb.DownstreamMessage(authority_request_response=response),
            error_response(error, op.client_request_id),
        ]

    async def _operate(
        self, session: Session, op: pb.AuthorityRequestOperation, response: pb.AuthorityRequestOperationResponse
    ) -> None:
        match op.op:
            case Op.CREATE:
                record = await self._create(session, op.create)
            case Op.GET:
                record = await self._visible(session, op.request_id)
            case Op.RESOLVE:
                record = await self._resolve(session, op.request_id, op.resolve)
            case Op.CANCEL:
                record = await self._cancel(session, op.request_id, reason_of(op.reason or op.create.reason))
            case Op.LIST_PENDING:
                return await self._list(session, op.list_filter, response)
            case _:
                raise bad(f"unknown authority request operation {op.op}")
        response.request.CopyFrom(request_info(record))
        return None

    # -- asking ------------------------------------------------------------------------------------

    async def _create(self, session: Session, given: pb.CreateAuthorityRequestPayload) -> RequestRecord:
        # `requesting_actor` does not count: the requester is who asks.
        requester = PrincipalKey.of(session.identity)
        level = wire_level(given.requested_access_level, "requested_access_level")
        if level is None:
            raise bad("requested_access_level is required")
        audience = audience_of(given.audience_type, given.audience_id)
        if audience == ("", "") and requester.type_name in ("agent", "service"):
            audience = audience._replace(type_name=requester.type_name)
        task_id = short_text(given.task_id, "task_id")
        record = new_request(
            self.ids.unique(),
            requester=requester,
            subject=principal_of(given.target_subject, "target_subject", strict=self.strict)
            if given.HasField("target_subject")
            else None,
            wish=scope_of(
                level, given.desired_workspace_scope, given.desired_resource_scope, given.desired_operation_scope
            ),
            duration_s=given.requested_duration_seconds,
            audience=own_audience(session, audience, ""),
            route=route_of(given.routing_target, strict=self.strict),
            now_ms=self.clock.now_ms(),
            reason=reason_of(given.reason),
            task_id=task_id,
            metadata=metadata_of(given.metadata),
        )

        def create(tx: TaskTransaction, draft: Draft) -> Program[RequestRecord]:
            if tx.context.again and (yield from store.load_request(record.request_id)) is not None:
                return record
            if (yield from store.count_pending(requester)) >= store.MAX_PENDING_OF:
                text = f"{store.MAX_PENDING_OF} of your requests wait for a decision already"
                raise RequestError(Code.QUOTA, text, retryable=False)
            if task_id:
                task = yield from task_rows.load(task_id)
                parties = () if task is None else (task.assigned_to, task.creator)
                if session.identity.text not in parties and session.task_id != task_id:
                    raise bad(_TASK_NOT_FOUND)
            yield from store.insert_request(record)
            yield from note(tx, draft, record)
            draft.audit(request_event_row(record, session, draft.now_ms))
            return record

        return (await commit_with_tasks(self.engine, self.changes, create)).result

    async def _cancel(self, session: Session, request_id: str, reason: str) -> RequestRecord:
        caller = PrincipalKey.of(session.identity)
        name = (await self._visible(session, request_id)).request_id

        def change(current: RequestRecord, now_ms: int) -> tuple[RequestRecord, AuthorityGrant | None]:
            return cancel(current, caller=caller, reason=reason, now_ms=now_ms), None

        return await self._change(session, name, change, lambda: None)

    # -- deciding ----------------------------------------------------------------------------------

    async def _resolve(
        self, session: Session, request_id: str, given: pb.ResolveAuthorityRequestPayload
    ) -> RequestRecord:
        approver = PrincipalKey.of(session.identity)
        known = await self._load(request_id)
        reason = reason_of(given.reason)

        home = home_of(known.subject) if known.subject is not None and known.subject != approver else ""
        anywhere = GrantScope(AccessLevel.READ)
        limit, bounds = anywhere, bounds_of(session)

        def check() -> None:
            nonlocal limit
            if not self._may_decide(session, known):
                raise ResolveError(REQUEST_NOT_FOUND)
            limit = self.rights.narrowed(session, anywhere, home)

        check()  # before anything is said about the decision
        if given.decision == given.DENY:

            def change(current: RequestRecord, now_ms: int) -> tuple[RequestRecord, AuthorityGrant | None]:
                return deny(current, approver=approver, reason=reason, now_ms=now_ms), None

        elif given.decision == given.APPROVE:
            scope = scope_of(
                AccessLevel.NONE,
                given.granted_workspace_scope,
                given.granted_resource_scope,
                given.granted_operation_scope,
            )
            if scope != GrantScope(AccessLevel.NONE):
                GrantScope(AccessLevel.READ, scope.workspaces, scope.resources, scope.operations).check()
            approval = Approval(
                wire_level(given.granted_access_level, "granted_access_level"),
                scope,
                given.granted_duration_seconds,
                hops_of(given.may_delegate, given.remaining_hops),
                reason,
            )
            grant_id = self.ids.unique()

            def change(current: RequestRecord, now_ms: int) -> tuple[RequestRecord, AuthorityGrant | None]:
                after, grant = approve(current, approval, approver=approver, grant_id=grant_id, now_ms=now_ms)
                scope = grant.terms.scope
                if scope.any_workspace and limit.workspaces:
                    scope = replace(scope, workspaces=limit.workspaces)
                check_reach(session, scope)
                return after, replace(grant, terms=replace(grant.terms, scope=scope, makers=bounds))

        else:
            raise bad("decision is APPROVE or DENY")
        return await self._change(session, known.request_id, change, check)

    async def _change(
        self,
        session: Session,
        request_id: str,
        change: Callable[[RequestRecord, int], tuple[RequestRecord, AuthorityGrant | None]],
        check: Callable[[], None],
    ) -> RequestRecord:
        """Change a request once, with all that follows, in one transaction."""
        made: list[RequestRecord] = []

        def program(tx: TaskTransaction, draft: Draft) -> Program[RequestRecord]:
            current = yield from store.lock_request(request_id)
            if current is None:
                raise ResolveError(REQUEST_NOT_FOUND)
            if current in made:
                return current  # an earlier run of this program was committed
            after, grant = change(current, draft.now_ms)
            made.append(after)
            if grant is not None:
                audience = grant.terms.audience
                if audience.type_name == "task" and not (yield from task_rows.mark_granted(audience.id)):
                    raise ResolveError("the task that asked has ended")
                yield from store.insert_grant(grant)
                draft.audit(grant_event("authority_grant_exchange", session, (grant,), draft.now_ms))
            yield from resolve(tx, draft, after)
            draft.audit(request_event_row(after, session, draft.now_ms))
            return after

        return (await commit_with_tasks(self.engine, self.changes, program, check)).result

    def _may_decide(self, session: Session, record: RequestRecord) -> bool:
        caller = PrincipalKey.of(session.identity)
        return may_decide(
            record,
            caller,
            may_exchange=record.subject is not None
            and self.rights.may_exchange(session, record.subject, _workspaces_of(record, record.subject)),
            holds_route=self.rights.holds(session, record.route.capability),
        )

    # -- looking -----------------------------------------------------------------------------------

    async def _load(self, request_id: str) -> RequestRecord:
        name = short_text(request_id, "request_id")
        record = await self.database.read_small(partial(store.load_request, name))
        if record is None:
            raise ResolveError(REQUEST_NOT_FOUND)
        return record

    async def _visible(self, session: Session, request_id: str) -> RequestRecord:
        record = await self._load(request_id)
        held = self.rights.holds(session, record.route.capability)
        if not may_see(record, PrincipalKey.of(session.identity), holds_route=held):
            raise ResolveError(REQUEST_NOT_FOUND)
        return record

    async def _list(
        self,
        session: Session,
        wanted: pb.AuthorityRequestListFilter,
        response: pb.AuthorityRequestOperationResponse,
    ) -> None:
        """List the requests that the caller may decide, the latest first."""
        if len(wanted.matching_capabilities) > MAX_CAPABILITIES:
            raise bad(f"matching_capabilities has at most {MAX_CAPABILITIES} entries")
        asked = [short_text(one, "matching_capabilities") for one in wanted.matching_capabilities]
        held = [one for one in dict.fromkeys(asked) if self.rights.holds(session, one)]
        status = RequestStatus.PENDING if not wanted.status else RequestStatus.from_wire(wanted.status)
        if status is None:
            raise bad(f"unknown status {wanted.status}")
        limit, offset = page_of(wanted.limit, wanted.offset)
        workspace = short_text(wanted.workspace, "workspace")
        caller = PrincipalKey.of(session.identity)
        found = await self.database.read(partial(store.list_requests, caller, held, status, workspace, MAX_LISTED))
        mine = [record for record in found if self._may_decide(session, record)]
        response.total_count = len(mine)
        response.requests.extend(page_that_fits(request_info(record) for record in mine[offset : offset + limit]))


def note(tx: TaskTransaction, draft: Draft, record: RequestRecord) -> Program[None]:
    """Record a change of a request for all nodes, and in the events of its task."""
    draft.record(REQUEST, record.request_id, {"status": record.status.value, "expires": record.expires_ms})
    if not record.task_id:
        return
    task = yield from task_rows.load(record.task_id)
    if task is not None:
        relayed = pb.TaskAuthorityRequestEventRelay(event=request_event(record, draft.now_ms))
        yield from tx.record_event(
            task, pb.TaskEvent(task_id=task.task_id, workspace=task.workspace, authority_request=relayed)
        )


def resolve(tx: TaskTransaction, draft: Draft, record: RequestRecord) -> Program[None]:
    """Write the end of a request; let go on, or fail, the tasks that wait for it."""
    yield from store.save_request(record)
    yield from note(tx, draft, record)
    for task_id in (yield from store.end_waits(record.request_id)):
        yield from end_wait_of(tx, task_id, record)


def _workspaces_of(record: RequestRecord, subject: PrincipalKey) -> Sequence[str]:
    """Return the workspaces for which the narrow capability has to be held.

    A request for any workspace of a subject that belongs to none takes the broad one: "*" has no
    narrow form.
    """
    return (home_of(subject) or "*",) if record.wish.any_workspace else record.wish.workspaces
