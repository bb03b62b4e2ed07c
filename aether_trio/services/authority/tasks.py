"""Makes and ends the grants of tasks, and their waits for authority requests.

A task that is created on behalf of a subject has its own grant, below that of its creator. Its
delegate is the task's worker. The workers of a pool are not known beforehand, so there the task
itself is the delegate, and each worker that is assigned the task gets a grant below it, which ends
when the worker loses the task. The end of the task revokes its own grant.

`TaskAuthority` is the TaskGrants of transactions on tasks, and the GrantMaker of new tasks.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import replace
from functools import partial
from typing import Final

from aether_trio.model.access.grants import (
    AUDIENCE_TYPES,
    Audience,
    AuthorityGrant,
    GrantError,
    GrantProblem,
    GrantTerms,
    GrantUse,
    Lineage,
    PrincipalKey,
    derive,
    reroot,
    state_problem,
)
from aether_trio.model.access.patterns import escape
from aether_trio.model.access.requests import RequestRecord, RequestStatus
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import Identity, IdentityError
from aether_trio.model.ids import IdFactory
from aether_trio.model.tasks import Mode, Move, StoredStatus, TaskRow
from aether_trio.services.access import Authorizer, Capability
from aether_trio.services.authority import store
from aether_trio.services.authority.endings import GrantEndings
from aether_trio.services.authority.known_grants import GRANT, KnownGrants
from aether_trio.services.authority.rights import Rights
from aether_trio.services.authority.transactions import DERIVE, REVOKE, grant_event, grant_row
from aether_trio.services.tasks.grants import MintedGrant
from aether_trio.services.tasks.transaction import task_rows
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.session.session import Session
from aether_trio.storage.base import Database, Program
from aether_trio.wire.pb import aether_pb2 as pb

TASK: Final = "task"
"""The type of the delegate of a pool's task: the task itself, by its id."""


class TaskTransactions:
    """What transactions on tasks do with grants and requests: a TaskGrants."""

    def assigned(self, tx: Transaction, before: TaskRow, after: TaskRow) -> Program[None]:
        """Give a pool's worker a grant, in the row `after`; end the last one."""
        if after.mode is not Mode.POOL or not after.authority_grant_id:
            return
        anchor = yield from store.own_grant(after.task_id)
        if anchor is None:
            return
        own = anchor[-1].grant_id
        if before.authority_grant_id != own:
            yield from _revoke(tx, before, before.authority_grant_id)
            after.authority_grant_id, after.parent_authority_grant_id = own, anchor[-1].parent_id
        if not after.assigned_to or after.is_final:
            return
        try:
            grant = _delivered(anchor, after, tx.context.now_ms)
        except GrantError:
            return  # it has ended: the worker's operations are refused with the reason
        yield from store.insert_grant(grant, anchor)
        row = grant_row(DERIVE, grant.issued_by, after.workspace, (*anchor, grant), tx.context.now_ms)
        tx.effects.audit_rows.append(row)
        after.authority_grant_id, after.parent_authority_grant_id = grant.grant_id, own

    def ended(self, tx: Transaction, task: TaskRow) -> Program[None]:
        """Revoke the grants that end with a task."""
        for grant_id in (yield from store.grants_ending_with(task.task_id)):
            yield from _revoke(tx, task, grant_id)

    def retry_problem(self, task: TaskRow) -> Program[str]:
        """Return why an ended task may not be tried again: what it rests on is revoked."""
        own = (yield from store.own_grant(task.task_id)) if task.authority_grant_id else None
        revoked = own is not None and any(above.revoked_ms for above in own[:-1])
        return GrantProblem.REVOKED.value if revoked else ""

    def begin_wait(self, tx: Transaction, task: TaskRow, request_id: str) -> Program[None]:
        """Let a task wait for a request, unless it is decided already.

        A request of others is like one that does not exist: the task waits until its timeout.
        """
        if not request_id:
            return
        record = yield from store.begin_wait(request_id, task.task_id)
        if record is None:
            return
        if record.task_id != task.task_id and record.requester.id not in (task.assigned_to, task.creator):
            yield from store.end_wait(task.task_id)
        elif record.status is not RequestStatus.PENDING:
            yield from store.end_wait(task.task_id)
            yield from end_wait_of(tx, task.task_id, record)

    def end_wait(self, task_id: str) -> Program[None]:
        """Forget that a task waits for an authority request."""
        return store.end_wait(task_id)


def end_wait_of(tx: Transaction, task_id: str, record: RequestRecord) -> Program[None]:
    """Let a task go on whose request is approved; let it fail when it is not."""
    task = yield from task_rows.load(task_id)
    wait = None if task is None else task.waits_for
    if task is None or wait is None or task.status is not StoredStatus.WAITING_AUTHORITY:
        return
    if wait.authority_request_id != record.request_id:
        return
    if record.status is RequestStatus.APPROVED:
        yield from tx.wake(task)
    else:
        facts = tx.facts(reason=record.failure, error_type="AUTHORITY")
        yield from tx.apply(task, Move.FAIL, facts)


def _revoke(tx: Transaction, task: TaskRow, grant_id: str) -> Program[None]:
    """Revoke a grant in the transaction of its task."""
    draft = yield from tx.access_change()
    if (yield from store.revoke(grant_id, draft.now_ms)):
        draft.record(GRANT, grant_id, {"revoked": draft.now_ms})
        lineage = yield from store.load_lineage(grant_id)
        draft.audit(
            grant_row(
                REVOKE, PrincipalKey(TASK, task.task_id), task.workspace, lineage, draft.now_ms, grant_id=grant_id
            )
        )


def _delivered(anchor: Lineage, task: TaskRow, now_ms: int) -> AuthorityGrant:
    """Make the grant of a worker that is assigned a pool's task. Raises GrantError."""
    delegate = PrincipalKey.of(Identity.parse(task.assigned_to, strict=False))
    terms = replace(
        anchor[-1].terms,
        audience=Audience(*delegate),
        hops=anchor[-1].terms.hops - 1,
        metadata={"task_id": task.task_id},
    )
    # A program may run again, so the same assignment has the same grant.
    digest = hashlib.sha256(f"{task.task_id}\x00{task.epoch}".encode()).digest()
    name = str(uuid.UUID(bytes=digest[:16], version=4))
    return derive(anchor, name, delegate=delegate, issued_by=anchor[-1].delegate, terms=terms, now_ms=now_ms)


class TaskGrantMaker:
    """Makes the grants of new tasks: the GrantMaker of the task service."""

    def __init__(
        self,
        database: Database,
        cache: KnownGrants,
        endings: GrantEndings,
        authorizer: Authorizer,
        rights: Rights,
        ids: IdFactory,
        clock: Clock,
    ) -> None:
        self._database = database
        self._cache = cache
        self._endings = endings
        self._authorizer = authorizer
        self._rights = rights
        self._ids = ids
        self._clock = clock

    async def prepare(
        self, session: Session, request: pb.CreateTaskRequest, task: TaskRow, target: Identity | None
    ) -> MintedGrant | None:
        """Make the grant of a new task's worker; None for a task of the creator itself.

        Raises StorageUnavailable, and RequestError if the creator may not pass on its grant.
        """
        parent = await self._parent(session, request)
        if parent is None:
            return None
        delegate, audience = _worker_of(session, request, task, target)
        above = parent[-1]
        scope = replace(above.terms.scope, level=min(above.terms.scope.level, session.cap))
        if not session.reaches_everything:
            scope = replace(scope, workspaces=(escape(task.workspace),))
        needed = request.required_downstream_authority_hops + (task.mode is Mode.POOL)
        terms = GrantTerms(
            scope,
            audience,
            0,
            0,
            above.terms.hops - 1,
            reason=f"task {task.task_id}",
            metadata={"task_id": task.task_id},
            makers=session.makers,
        )
        issuer, now_ms = PrincipalKey.of(session.identity), self._clock.now_ms()
        try:
            if above.terms.hops - 1 >= needed:
                make = derive
            elif self._rights.holds(session, Capability.AUTHORITY_INTERMEDIARY):
                make = reroot
                terms = replace(
                    terms, hops=max(needed, 1), metadata={**terms.metadata, "authority_intermediary_reroot": "true"}
                )
            else:
                raise GrantError(GrantProblem.CANNOT_DELEGATE, f"the task needs {needed + 1} remaining hops")
            grant = make(parent, self._ids.unique(), delegate=delegate, issued_by=issuer, terms=terms, now_ms=now_ms)
        except GrantError as error:
            raise RequestError(Code.PERMISSION_DENIED, str(error)) from None
        operation = DERIVE if make is derive else "authority_intermediary_reroot"
        return MintedGrant(grant, parent, grant_event(operation, session, (*parent, grant), now_ms))

    async def _parent(self, session: Session, request: pb.CreateTaskRequest) -> Lineage | None:
        """Return the grant given, or that of the caller's task; None without one."""
        context = request.authorization
        if context.authority_mode == "on_behalf_of":
            await self._authorizer.authority(session, context)  # raises if it may not be used
            return await self._cache.loaded(context.grant_id)
        if request.HasField("authorization") or not session.task_id:
            return None
        task = await self._database.read_small(partial(task_rows.load, session.task_id))
        if task is None or not task.authority_grant_id or task.assigned_to != session.identity.text:
            return None
        lineage = await self._cache.loaded(task.authority_grant_id)
        if lineage is None or not lineage[-1].may_delegate:
            return None
        actor = PrincipalKey.of(session.identity)
        use = GrantUse(actor, session.session_id, session.task_id, lineage[-1].subject)
        return None if self._cache.problem(lineage, use) else lineage

    def check(self, minted: MintedGrant, now_ms: int) -> Program[str]:
        """Return why a grant cannot be made any more, "" if it can; write nothing."""
        above = yield from store.load_lineage(minted.above[-1].grant_id)
        problem = GrantProblem.NOT_FOUND if above is None else state_problem(above, now_ms)
        return "" if problem is None else problem.value

    def insert(self, minted: MintedGrant, task_id: str) -> Program[None]:
        """Write the grant of a task, before the task."""
        return store.insert_grant(minted.grant, minted.above, task_id)

    async def created(self, minted: MintedGrant) -> None:
        """End a task whose grant was revoked while it was created.

        A revocation ends the tasks that it finds, after this node has applied it. So it found this
        task, or this node knows of it now.
        """
        lineage = await self._cache.loaded(minted.above[-1].grant_id)
        for above in lineage or ():
            if above.revoked_ms:
                await self._endings.end_now(above.grant_id)


def _worker_of(
    session: Session, request: pb.CreateTaskRequest, task: TaskRow, target: Identity | None
) -> tuple[PrincipalKey, Audience]:
    """Return the delegate and the audience of a new task's own grant."""
    if task.mode is Mode.POOL:
        anchor = PrincipalKey(TASK, task.task_id)
        return anchor, Audience(*anchor)
    worker = target or session.identity
    if target is None and request.target_agent_id:
        try:
            worker = Identity.parse(request.target_agent_id, strict=False)
        except IdentityError as error:
            raise RequestError(Code.TASK_CREATE_FAILED, f"target_agent_id: {error}") from None
    delegate = PrincipalKey.of(worker)
    known = delegate.type_name in AUDIENCE_TYPES
    return delegate, Audience(*delegate) if known else Audience("session", session.session_id)
