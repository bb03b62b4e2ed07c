"""Handles clients' `authority_grant_op` and `resolve_authority_request`.

    EXCHANGE        a user gives some of his rights away, or one who may exchange for him does
    DERIVE          a delegate passes on less than he has
    GET, LIST       seen by subject, issuer and delegate
    RENEW, REVOKE   by those who see it; a revocation is in force on every node when it is answered

Each change is one transaction with its audit row (services/access/changes.py). What rests on a
revoked grant ends: grants below it at once, tasks right after (endings.py).

Differences from the reference: metadata, scopes and texts are bounded; a derived grant without
times has those of its parent; DERIVE_FOR_TARGET has the parent's scopes; a list does not show as
live what was revoked above; a refused operation has an ErrorResponse behind its typed answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.grants import (
    Audience,
    GrantError,
    GrantProblem,
    GrantScope,
    GrantTerms,
    GrantUse,
    Lineage,
    PrincipalKey,
    derive,
    new_root,
    renewed,
    state_problem,
)
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import Kind
from aether_trio.model.ids import IdFactory
from aether_trio.services.access import Capability
from aether_trio.services.access.changes import AccessChanges, Committed, Draft
from aether_trio.services.authority import store
from aether_trio.services.authority.endings import GrantEndings
from aether_trio.services.authority.fields import (
    audience_of,
    bad,
    grant_info,
    level_of,
    metadata_of,
    moment_ms,
    operations_of,
    page_of,
    principal_of,
    reason_of,
    ref,
    scope_of,
    short_info,
    short_text,
)
from aether_trio.services.authority.known_grants import GRANT, KnownGrants
from aether_trio.services.authority.rights import Rights, bounds_of, check_reach, own_audience, reaches
from aether_trio.services.authority.transactions import AuditSink, commit_with_tasks, grant_event
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction import task_rows
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.session.directory import SessionDirectory
from aether_trio.session.session import Session
from aether_trio.storage.base import Database, Program, StorageUnavailable
from aether_trio.storage.outages import outage
from aether_trio.wire.error_response import error_response
from aether_trio.wire.pages import page_that_fits
from aether_trio.wire.pb import aether_pb2 as pb

Op = pb.AuthorityGrantOperation

MAX_BATCH: Final = 64
REUSED: Final = "existing authority grant reused"

_AUDITED: Final = {
    Op.EXCHANGE: "authority_grant_exchange",
    Op.BATCH_EXCHANGE: "authority_grant_exchange",
    Op.DERIVE: "authority_grant_derive",
    Op.DERIVE_FOR_TARGET: "authority_grant_derive",
    Op.GET: "authority_grant_get",
    Op.RENEW: "authority_grant_renew",
    Op.REVOKE: "authority_grant_revoke",
}


@dataclass(frozen=True, slots=True)
class GrantService:
    """Performs the operations on grants that clients ask for."""

    database: Database
    engine: Engine
    changes: AccessChanges
    cache: KnownGrants
    endings: GrantEndings
    rights: Rights
    directory: SessionDirectory
    audit: AuditSink
    ids: IdFactory
    clock: Clock
    strict: bool = True

    async def handle(self, session: Session, op: pb.AuthorityGrantOperation) -> Sequence[pb.DownstreamMessage]:
        """Perform one operation; a refusal is typed, with an ErrorResponse behind it."""
        response = pb.AuthorityGrantResponse(request_id=op.request_id)
        try:
            await self._operate(session, op, response)
            response.success = True
        except GrantError as error:
            return self._refused(session, op, request_error(error))
        except RequestError as error:
            return self._refused(session, op, error)
        except StorageUnavailable as error:
            return self._refused(session, op, outage(error))
        return [pb.DownstreamMessage(authority_grant=response)]

    def _refused(
        self, session: Session, op: pb.AuthorityGrantOperation, error: RequestError
    ) -> list[pb.DownstreamMessage]:
        if op.op in _AUDITED and error.code in (Code.PERMISSION_DENIED, Code.INVALID_ARGUMENT):
            named = op.grant_id or op.derive_request.parent_grant_id or op.derive_for_target_request.parent_grant_id
            event = grant_event(
                _AUDITED[op.op], session, None, self.clock.now_ms(), grant_id=named[:256], error=error.message
            )
            self.audit.put(event)
        text = error.message if error.code is Code.INVALID_ARGUMENT else str(error)
        response = pb.AuthorityGrantResponse(request_id=op.request_id, error=text)
        return [pb.DownstreamMessage(authority_grant=response), error_response(error, op.request_id)]

    async def _operate(
        self, session: Session, op: pb.AuthorityGrantOperation, response: pb.AuthorityGrantResponse
    ) -> None:
        match op.op:
            case Op.EXCHANGE:
                lineage = await self._exchange(session, op.exchange_request)
                response.message = "authority grant created"
            case Op.DERIVE:
                lineage = await self._derive(session, op.derive_request)
                response.message = "authority grant derived"
            case Op.DERIVE_FOR_TARGET:
                lineage, response.message = await self._derive_for_target(session, op.derive_for_target_request)
            case Op.GET:
                lineage = await self._visible(session, op.grant_id)
                self.audit.put(grant_event("authority_grant_get", session, lineage, self.clock.now_ms()))
            case Op.RENEW:
                lineage = await self._renew(session, op.grant_id or op.renew_request.grant_id, op.renew_request)
                response.message = "authority grant renewed"
            case Op.REVOKE:
                lineage, response.message = await self._revoke(session, op.grant_id)
            case Op.LIST_MY_GRANTS | Op.LIST_GRANTS_ON_ME:
                return await self._list(session, op, response)
            case Op.BATCH_EXCHANGE:
                return await self._batch(session, op.batch_exchange_request, response)
            case _:
                raise bad(f"unknown authority grant operation {op.op}")
        response.grant.CopyFrom(grant_info(lineage))
        return None

    # -- root grants -------------------------------------------------------------------------------

    async def _exchange(self, session: Session, request: pb.AuthorityGrantExchangeRequest) -> Lineage:
        actor = PrincipalKey.of(session.identity)
        metadata = metadata_of(request.metadata)
        source = short_text(request.source_session_id, "source_session_id", 128)
        workspaces: list[str] = []
        if source:
            subject, workspaces = await self._source(session, source)
            metadata |= {"exchange_mode": "trusted_exchange", "source_session_id": source}
        elif session.identity.kind is Kind.USER:
            subject = actor
            metadata |= {"exchange_mode": "self"}
        else:
            raise RequestError(Code.PERMISSION_DENIED, "only a user exchanges a grant without source_session_id")
        scope = scope_of(
            level_of(request.max_access_level), request.workspace_scope, request.resource_scope, request.operation_scope
        )
        if source and workspaces[0]:
            scope = self.rights.narrowed(session, scope, workspaces[0])
            workspaces += () if scope.any_workspace else scope.workspaces
        terms = GrantTerms(
            scope,
            own_audience(session, audience_of(request.audience_type, request.audience_id), source),
            moment_ms(request.expires_at, "expires_at"),
            moment_ms(request.renewable_until, "renewable_until"),
            hops_of(request.may_delegate, request.remaining_hops),
            request.valid_while_audience_active or bool(source),
            reason_of(request.reason),
            metadata,
            bounds_of(session),
        )
        grant = new_root(
            self.ids.unique(),
            subject=subject,
            delegate=actor,
            issued_by=actor,
            terms=terms,
            now_ms=self.clock.now_ms(),
        )

        def check() -> None:
            if source and (
                not self.rights.may_exchange(session, subject, workspaces)
                or self.rights.narrowed(session, scope, workspaces[0]) != scope
            ):
                raise _not_exchanged()

        return await self._insert("authority_grant_exchange", session, (grant,), check)

    async def _source(self, session: Session, session_id: str) -> tuple[PrincipalKey, list[str]]:
        """Return the user of a live session, and the workspace that the user is in."""
        record = await self.directory.find(session_id)
        if record is None or record.identity.kind is not Kind.USER:
            raise _not_exchanged()
        subject, workspaces = PrincipalKey.of(record.identity), [record.workspace]
        reached = session.reaches(record.identity, record.workspace)
        if not reached or not self.rights.may_exchange(session, subject, workspaces):
            raise _not_exchanged()
        return subject, workspaces

    async def _batch(
        self, session: Session, request: pb.AuthorityGrantBatchExchangeRequest, response: pb.AuthorityGrantResponse
    ) -> None:
        if len(request.requests) > MAX_BATCH:
            raise bad(f"a batch has at most {MAX_BATCH} requests")
        problems: list[str] = []
        for index, one in enumerate(request.requests):
            try:
                response.grants.append(grant_info(await self._exchange(session, one)))
            except (GrantError, RequestError) as error:
                text = error.message if isinstance(error, RequestError) else str(error)
                problems.append(f"request {index}: {text}")
                if request.stop_on_first_error:
                    response.message = f"stopped at request {index}"
                    break
        response.total = len(response.grants)
        if problems and not response.grants:
            raise bad("; ".join(problems))
        response.error = "; ".join(problems)

    # -- derived grants ----------------------------------------------------------------------------

    async def _derive(self, session: Session, request: pb.AuthorityGrantDeriveRequest) -> Lineage:
        parent = await self._usable(session, request.parent_grant_id)
        delegate = principal_of(request.delegate, "delegate", strict=self.strict)
        scope = scope_of(
            level_of(request.max_access_level), request.workspace_scope, request.resource_scope, request.operation_scope
        )
        terms = GrantTerms(
            scope,
            audience_of(request.audience_type, request.audience_id),
            moment_ms(request.expires_at, "expires_at"),
            moment_ms(request.renewable_until, "renewable_until"),
            hops_of(request.may_delegate, request.remaining_hops),
            request.valid_while_audience_active,
            reason_of(request.reason),
            metadata_of(request.metadata),
        )
        return await self._derive_from(session, parent, delegate, terms)

    async def derive_for_receiver(
        self, session: Session, parent: Lineage, receiver: PrincipalKey, terms: GrantTerms
    ) -> Lineage:
        """Derive the grant by which the receiver of a message goes on. Raises GrantError."""
        return await self._derive_from(session, parent, receiver, terms)

    async def _derive_for_target(
        self, session: Session, request: pb.AuthorityGrantDeriveForTargetRequest
    ) -> tuple[Lineage, str]:
        parent = await self._usable(session, request.parent_grant_id)
        target = principal_of(request.target, "target", strict=self.strict)
        above = parent[-1].terms
        audience = audience_of(request.audience_type, request.audience_id)
        if not audience.type_name and not audience.id:
            audience = Audience(*target)
        scope = GrantScope(
            level_of(request.max_access_level) or above.scope.level,
            above.scope.workspaces,
            above.scope.resources,
            operations_of(request.operation_scope) or above.scope.operations,
        )
        terms = GrantTerms(
            scope,
            audience,
            moment_ms(request.expires_at, "expires_at"),
            moment_ms(request.renewable_until, "renewable_until"),
            hops_of(request.may_delegate, request.remaining_hops),
            reason=reason_of(request.reason),
        )
        found = await self.database.read_small(
            partial(store.find_derived, parent[-1].grant_id, target, audience, self.clock.now_ms())
        )
        for lineage in found:
            known = lineage[-1].terms
            same = known.scope == scope and known.hops == terms.hops and known.makers == session.makers
            same = same and _lasts_no_longer(known, terms)
            if same and state_problem(lineage, self.clock.now_ms()) is None and self._sees(session, lineage):
                self.audit.put(grant_event("authority_grant_get", session, lineage, self.clock.now_ms()))
                return lineage, REUSED
        return await self._derive_from(session, parent, target, terms), "authority grant derived"

    async def _derive_from(
        self, session: Session, parent: Lineage, delegate: PrincipalKey, terms: GrantTerms
    ) -> Lineage:
        audience, actor = terms.audience, PrincipalKey.of(session.identity)
        if audience.type_name in ("agent", "service") and audience != Audience(*delegate):
            raise GrantError(GrantProblem.AUDIENCE, "an audience of type agent or service is the delegate itself")
        grant = derive(
            parent,
            self.ids.unique(),
            delegate=delegate,
            issued_by=actor,
            terms=replace(terms, makers=session.makers),
            now_ms=self.clock.now_ms(),
        )
        return await self._insert("authority_grant_derive", session, (*parent, grant), lambda: None)

    async def _insert(self, operation: str, session: Session, lineage: Lineage, check: Callable[[], None]) -> Lineage:
        """Write a grant, unless its lineage has ended meanwhile; return it."""
        grant, above = lineage[-1], lineage[:-1]
        check_reach(session, grant.terms.scope)
        task_id = grant.terms.audience.id if grant.terms.audience.type_name == "task" else ""

        def insert(draft: Draft) -> Program[Lineage]:
            if (yield from store.count_issued(grant.issued_by, draft.now_ms)) >= store.MAX_GRANTS_OF:
                raise RequestError(Code.QUOTA, f"a participant has at most {store.MAX_GRANTS_OF} live grants")
            now: Lineage = ()
            if above:
                now = (yield from store.load_lineage(above[-1].grant_id)) or ()
                problem = state_problem(now, draft.now_ms) if now else GrantProblem.NOT_FOUND
                if problem is not None:
                    raise GrantError(problem)
            yield from store.insert_grant(grant, above)
            draft.audit(grant_event(operation, session, lineage, draft.now_ms))
            return (*now, grant)

        if not (task_id and grant.terms.while_active):
            return (await self.changes.commit(insert, check)).result

        def insert_with_task(tx: TaskTransaction, draft: Draft) -> Program[Lineage]:
            if not (yield from task_rows.mark_granted(task_id)):
                raise GrantError(GrantProblem.INVALID, "the task of its audience is not found, or has ended")
            return (yield from insert(draft))

        return (await commit_with_tasks(self.engine, self.changes, insert_with_task, check)).result

    # -- existing grants ---------------------------------------------------------------------------

    def _use(self, session: Session, lineage: Lineage) -> GrantUse:
        actor = PrincipalKey.of(session.identity)
        return GrantUse(actor, session.session_id, session.task_id, lineage[-1].subject)

    async def _usable(self, session: Session, grant_id: str) -> Lineage:
        """Return a grant that the caller may use now. Raises GrantError."""
        lineage = await self.cache.loaded(short_text(grant_id, "parent_grant_id"))
        if lineage is None:
            raise GrantError(GrantProblem.NOT_FOUND)
        problem = self.cache.problem(lineage, self._use(session, lineage))
        if problem is not None:
            # Only those who see a grant learn why it cannot be used.
            raise GrantError(problem if self._sees(session, lineage) else GrantProblem.NOT_FOUND)
        return lineage

    def _sees(self, session: Session, lineage: Lineage) -> bool:
        grant, caller = lineage[-1], PrincipalKey.of(session.identity)
        return caller in (grant.subject, grant.issued_by, grant.delegate)

    async def _visible(self, session: Session, grant_id: str) -> Lineage:
        """Return a grant that the caller may see. Raises GrantError NOT_FOUND."""
        name = short_text(grant_id, "grant_id")
        lineage = await self.database.read_small(partial(store.load_lineage, name))
        if lineage is None or not self._sees(session, lineage):
            raise GrantError(GrantProblem.NOT_FOUND)
        return lineage

    async def _renew(self, session: Session, grant_id: str, request: pb.ACLRenewAuthorityGrantRequest) -> Lineage:
        name = (await self._visible(session, grant_id))[-1].grant_id
        expires_ms, extend_ms = moment_ms(request.expires_at, "expires_at"), request.extend_seconds * 1000

        def renew(draft: Draft) -> Program[Lineage]:
            lineage = yield from store.load_lineage(name)
            if lineage is None:
                raise GrantError(GrantProblem.NOT_FOUND)
            grant = renewed(lineage, draft.now_ms, expires_ms=expires_ms, extend_ms=extend_ms)
            yield from store.save_renewed(grant)
            after = (*lineage[:-1], grant)
            draft.record(GRANT, name, {"expires": grant.terms.expires_ms})
            draft.audit(grant_event("authority_grant_renew", session, after, draft.now_ms))
            return after

        return (await self.changes.commit(renew)).result

    async def _revoke(self, session: Session, grant_id: str) -> tuple[Lineage, str]:
        name = (await self._visible(session, grant_id))[-1].grant_id

        def revoke(draft: Draft) -> Program[Lineage]:
            if (yield from store.revoke(name, draft.now_ms)):
                yield from store.note_ending(name, draft.now_ms)
                draft.record(GRANT, name, {"revoked": draft.now_ms})
            lineage = yield from store.load_lineage(name)
            if lineage is None:
                raise GrantError(GrantProblem.NOT_FOUND)
            if draft.items:
                draft.audit(grant_event("authority_grant_revoke", session, lineage, draft.now_ms))
            return lineage

        committed: Committed[Lineage] = await self.changes.commit(revoke)
        await self.endings.end_now(name)
        return committed.result, committed.caveat or "authority grant revoked"

    async def _list(
        self, session: Session, op: pb.AuthorityGrantOperation, response: pb.AuthorityGrantResponse
    ) -> None:
        wanted = op.list_request
        limit, offset = page_of(wanted.limit, wanted.offset)
        column = "delegate" if op.op == Op.LIST_MY_GRANTS else "subject"
        audience = audience_of(wanted.audience_type, wanted.audience_id)
        found, response.total = await self.database.read(
            partial(
                store.list_grants,
                column,
                PrincipalKey.of(session.identity),
                audience,
                limit,
                offset,
                revoked=wanted.include_revoked,
            )
        )
        response.grants.extend(page_that_fits(map(grant_info, found)))

    # -- resolving ---------------------------------------------------------------------------------

    async def resolve(self, session: Session, request: pb.ResolveAuthorityRequest) -> Sequence[pb.DownstreamMessage]:
        """Answer a `resolve_authority_request`: what a grant lets its delegate do."""
        response = pb.ResolveAuthorityResponse(request_id=request.request_id)
        try:
            await self._resolve(session, request, response)
            response.ok = True
        except GrantError as error:
            response.error = str(error)
        except RequestError as error:
            response.error = error.message
        except StorageUnavailable as error:
            response.error = str(outage(error))
        return [pb.DownstreamMessage(resolve_authority_response=response)]

    async def _resolve(
        self, session: Session, request: pb.ResolveAuthorityRequest, response: pb.ResolveAuthorityResponse
    ) -> None:
        caller = PrincipalKey.of(session.identity)
        actor = principal_of(request.actor, "actor", strict=self.strict) if request.HasField("actor") else caller
        lineage = await self.cache.loaded(short_text(request.grant_id, "grant_id"))
        allowed = session.identity.kind in (Kind.WORKFLOW_ENGINE, Kind.ORCHESTRATOR) or self.rights.holds(
            session, Capability.RESOLVE_AUTHORITY, AccessLevel.READ
        )
        if lineage is not None and not reaches(session, lineage[-1].terms.scope):
            allowed = False
        if not allowed:
            grant = None if lineage is None else lineage[-1]
            if grant is None or caller not in (grant.delegate, tuple(grant.terms.audience)):
                raise RequestError(Code.PERMISSION_DENIED, "not authorized")
        if lineage is None:
            raise GrantError(GrantProblem.NOT_FOUND)
        grant = lineage[-1]
        subject = principal_of(request.subject, "subject", strict=self.strict)
        audience = audience_of(request.audience_type, request.audience_id)
        problem = state_problem(lineage, self.clock.now_ms())
        if problem is None and actor != grant.delegate:
            problem = GrantProblem.DELEGATE
        if problem is None and subject != grant.subject:
            problem = GrantProblem.SUBJECT
        if problem is None and (audience.type_name or audience.id) and audience != grant.terms.audience:
            problem = GrantProblem.AUDIENCE
        if problem is None and not self.cache.audience_alive(lineage):
            problem = GrantProblem.AUDIENCE
        if problem is not None:
            raise GrantError(problem)
        if (locked := self.rights.lock_on(lineage)) is not None:
            raise RequestError(Code.PERMISSION_DENIED, locked)
        response.authority.actor.CopyFrom(ref(actor))
        response.authority.subject.CopyFrom(ref(subject))
        response.authority.grant.CopyFrom(short_info(grant))


def _lasts_no_longer(known: GrantTerms, wanted: GrantTerms) -> bool:
    """Whether a grant lasts no longer than is wanted; 0: as long as the parent."""
    return all(
        not most_ms or made_ms <= most_ms
        for made_ms, most_ms in ((known.expires_ms, wanted.expires_ms), (known.renewable_ms, wanted.renewable_ms))
    )


def _not_exchanged() -> RequestError:
    capability = Capability.EXCHANGE_AUTHORITY_GRANTS
    return RequestError(
        Code.PERMISSION_DENIED, f"source_session_id is no live session of a user for whom you hold {capability}"
    )


def request_error(error: GrantError) -> RequestError:
    """Make the refusal of a client's request from a problem with a grant."""
    malformed = error.problem in (GrantProblem.INVALID, GrantProblem.NOT_FOUND, GrantProblem.CANNOT_RENEW)
    return RequestError(Code.INVALID_ARGUMENT if malformed else Code.PERMISSION_DENIED, str(error))


def hops_of(may_delegate: bool, hops: int) -> int:
    """Return how often a grant may be passed on. Raises GrantError."""
    if may_delegate != (hops >= 1):
        raise GrantError(GrantProblem.INVALID, "may_delegate goes with remaining_hops of 1 or more")
    return hops
