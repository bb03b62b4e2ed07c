"""Handles clients' `acl_op`: rules, groups, roles, fallbacks and explanations.

Who may: administrators of `admin/acl` (READ to look, ADMIN to change), and those who may manage a
workspace, for the rules about it: to give READWRITE there at most takes MANAGE, to give more takes
ADMIN. A caller cannot give more than it has: a rule, a membership or a fallback is refused when it
gives rights that the caller lacks (granting.py). `granted_by` is always the caller.

A credential for some workspaces only administers the rules about these, whatever rights its holder
has.

A lock is a rule with the resource type "lock" on the wire: GRANT makes one, LIST_RULES with that
resource type lists them, REVOKE ends one. LIST_RULES lists fallbacks with the resource type
"fallback", and memberships of all groups and roles with "member". GRANT with the resource type
"policy" plans or applies a whole policy (policy_service.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol, TypeVar

import msgspec

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.patterns import PatternError, escape, literal_of
from aether_trio.model.access.rules import (
    GROUP,
    OWN_RULE_ID,
    ROLE,
    Lock,
    Member,
    Rule,
    RuleError,
    checked_level,
    checked_name,
    current_resource,
    membership_problem,
    normalised,
    normalised_lock,
    normalised_member,
)
from aether_trio.model.audit import AuditEvent
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.ids import IdFactory
from aether_trio.model.text import TextError, check_text, shown
from aether_trio.services.access import records
from aether_trio.services.access.audit_events import change_event
from aether_trio.services.access.authorizer import AccessQuestion, Actor, Admin, Authority
from aether_trio.services.access.changes import AccessChanges, Committed, Draft, with_caveat
from aether_trio.services.access.granting import Granting, check_reach, reaches_all_of
from aether_trio.services.access.policy_service import PolicyService
from aether_trio.services.access.records import FallbackRecord, GroupRecord
from aether_trio.services.access.rule_authorizer import FALLBACK_TIER, RuleAuthorizer
from aether_trio.storage.base import Database, Program, StorageUnavailable
from aether_trio.storage.outages import outage
from aether_trio.wire.error_response import error_response
from aether_trio.wire.pb import aether_pb2 as pb

T = TypeVar("T")
Op = pb.ACLOperation

DEFAULT_PAGE: Final = 100
MAX_TEXT_BYTES: Final = 1024
MAX_METADATA: Final = 64
MAX_CATEGORY_BYTES: Final = 128
MAX_UNIX_S: Final = 2**40
MAX_OF_MANAGER: Final = 1000
"""Rules that one who does not administer access makes, and rules about a resource beside which it
makes another: each decision about a resource looks at all rules about it that have patterns."""
LOCK: Final = "lock"
"""The resource type under which locks are rules on the wire."""
FALLBACK: Final = "fallback"
"""The resource type under which LIST_RULES lists the fallbacks, with the category as their id."""
MEMBER: Final = "member"
"""The resource type under which LIST_RULES lists memberships, with "group:NAME" as their id."""
POLICY: Final = "policy"
"""The resource type with which GRANT plans or applies a policy; the id says which."""

_LOOKS: Final = frozenset(
    {
        Op.LIST_RULES, Op.GET_RULE, Op.QUERY_AUDIT, Op.GET_FALLBACK_POLICY, Op.GET_GROUP, Op.LIST_GROUPS,
        Op.LIST_GROUP_MEMBERS, Op.GET_ROLE, Op.LIST_ROLES, Op.LIST_ROLE_ASSIGNMENTS, Op.LIST_PRINCIPAL_GROUPS,
        Op.LIST_PRINCIPAL_ROLES, Op.EXPLAIN_ACCESS,
    }
)  # fmt: skip
_ROLES: Final = frozenset(
    {
        Op.CREATE_ROLE, Op.DELETE_ROLE, Op.GET_ROLE, Op.LIST_ROLES, Op.ASSIGN_ROLE, Op.UNASSIGN_ROLE,
        Op.LIST_ROLE_ASSIGNMENTS, Op.LIST_PRINCIPAL_ROLES,
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Caller:
    """A participant that asks for something, and in whose name."""

    session: Actor
    authority: Authority

    @property
    def name(self) -> str:
        """The principal that is named as the granter of what it grants."""
        return self.session.identity.canonical_id


class DecisionHistory(Protocol):
    """The recorded decisions (services/audit/)."""

    async def decisions(self, wanted: pb.ACLAuditFilter) -> tuple[Sequence[pb.ACLAuditEntryInfo], int]:
        """Return a page of recorded decisions, and how many fit the filter."""

    async def forget(self, older_than_days: int) -> int:
        """Delete audit rows that are older; return how many."""


class NoHistory:
    """The DecisionHistory of a gateway without an audit."""

    async def decisions(self, wanted: pb.ACLAuditFilter) -> tuple[Sequence[pb.ACLAuditEntryInfo], int]:
        return (), 0

    async def forget(self, older_than_days: int) -> int:
        return 0


class AccessService:
    """Performs the access administration that clients ask for."""

    def __init__(
        self,
        database: Database,
        authorizer: RuleAuthorizer,
        changes: AccessChanges,
        history: DecisionHistory,
        ids: IdFactory,
        clock: Clock,
        granting: Granting | None = None,
    ) -> None:
        self._database = database
        self._authorizer = authorizer
        self._changes = changes
        self._history = history
        self._ids = ids
        self._clock = clock
        self._granting = granting or Granting(authorizer)
        self._policies = PolicyService(database, authorizer, changes, self._granting, ids, clock)

    async def handle(self, session: Actor, op: pb.ACLOperation) -> Sequence[pb.DownstreamMessage]:
        """Perform one operation; a refusal is a typed answer and an ErrorResponse."""
        reply = pb.ACLResponse(request_id=op.request_id)
        try:
            await self._perform(session, op, reply)
            reply.success = True
        except RequestError as error:
            return _refused(op, error)
        except (RuleError, TextError) as error:
            return _refused(op, RequestError(Code.INVALID_ARGUMENT, str(error)))
        except StorageUnavailable as error:
            return _refused(op, outage(error))
        return [pb.DownstreamMessage(acl=reply)]

    async def _perform(self, session: Actor, op: pb.ACLOperation, reply: pb.ACLResponse) -> None:
        authority = await self._authorizer.authority(
            session, op.authorization if op.HasField("authorization") else None
        )
        caller = _Caller(session, authority)
        handler = self._handlers.get(op.op)
        if handler is None:
            raise RequestError(Code.INVALID_ARGUMENT, f"unknown ACL operation {op.op}")
        await handler(self, caller, op, reply)

    # -- who may -----------------------------------------------------------------------------------

    def _administers(self, caller: _Caller, op: pb.ACLOperation) -> bool:
        if not caller.session.reaches_everything:
            return False
        level = AccessLevel.READ if op.op in _LOOKS else AccessLevel.ADMIN
        access = AccessQuestion(_word(op), "admin", Admin.ACL, "", level)
        return self._authorizer.decide(caller.session, access, caller.authority).allowed

    def _check_administers(self, caller: _Caller, op: pb.ACLOperation) -> None:
        """Raise RequestError unless the caller administers access."""
        level = AccessLevel.READ if op.op in _LOOKS else AccessLevel.ADMIN
        access = AccessQuestion(_word(op), "admin", Admin.ACL, "", level)
        self._authorizer.require(caller.session, access, caller.authority)
        check_reach(caller.session)

    def _check_may_rule(
        self, caller: _Caller, op: pb.ACLOperation, resource_type: str, resource_id: str, level: AccessLevel
    ) -> None:
        """Raise RequestError unless the caller may change or see rules about a resource."""
        if resource_type != "workspace" or not resource_id or self._administers(caller, op):
            self._check_administers(caller, op)
            return
        name = _literal(resource_id)
        access = AccessQuestion(_word(op), "workspace", name or resource_id, name or resource_id, level)
        if name is not None:
            self._authorizer.require(caller.session, access, caller.authority)
            return
        # All that the pattern matches counts, and not the workspace with its text as a name.
        if not reaches_all_of(caller.session, resource_id):
            why = f"this credential does not reach all of workspace {shown(resource_id)}"
            raise self._authorizer.refusal(caller.session, access, caller.authority, why)
        held = self._granting.level_over(caller.session, "workspace", resource_id, caller.authority)
        if held < level:
            why = f"{_word(op)} needs {level.name} on all of workspace:{resource_id}, and you have {held.name}"
            raise self._authorizer.refusal(caller.session, access, caller.authority, why)

    # -- rules -------------------------------------------------------------------------------------

    async def _list_rules(self, caller: _Caller, op: pb.ACLOperation, reply: pb.ACLResponse) -> None:
        wanted = op.rule_filter
        self._check_may_rule(caller, op, wanted.resource_type, wanted.resource_id, AccessLevel.READ)
        limit = min(wanted.limit, records.MAX_PAGE) if wanted.limit > 0 else DEFAULT_PAGE
        offset = max(wanted.offset, 0)
        if wanted.resource_type in {LOCK, FALLBACK, MEMBER}:
            others, reply.total_rules = await self._database.read(partial(_others, wanted.resource_type, limit, offset))
            reply.rules.extend(others)
            return
        names = (wanted.principal_type, wanted.principal_id, wanted.resource_type, wanted.resource_id)
        if any("\0" in name for name in names):
            return
        found, reply.total_rules = await self._database.read(
            partial(records.list_rules, records.RuleWanted(*_legacy(names)), limit, offset)
        )
        reply.rules.extend(map(_rule_info, found))
        if all(names) and (own := self._own_rule(names)) is not None and reply.total_rules <= offset + limit:
            reply.rules.append(own)
            reply.total_rules += 1

    def _own_rule(self, names: tuple[str, str, str, str]) -> pb.ACLRuleInfo | None:
        """Return the rule "own" as it applies to a principal and a resource, or None.

        It is listed for them, so that clients that decide by lists of rules come to the verdict of
        the gateway.
        """
        verdict = self._authorizer.explain(*names).verdict
        if verdict.rule_id != OWN_RULE_ID:
            return None
        rule = self._authorizer.index.rule(OWN_RULE_ID)
        assert rule is not None
        principal_type, principal_id, resource_type, resource_id = names
        return _rule_info(
            replace(
                rule,
                principal_type=principal_type,
                principal_id=principal_id,
                resource_type=resource_type,
                resource_id=resource_id,
            )
        )

    async def _get_rule(self, caller: _Caller, op: pb.ACLOperation, reply: pb.ACLResponse) -> None:
        rule = await self._find(op)
        if rule is None:
            self._check_administers(caller, op)
            raise _no_rule(op)
        self._check_may_rule(caller, op, rule.resource_type, rule.resource_id, AccessLevel.READ)
        reply.rule.CopyFrom(_rule_info(rule))

    async def _find(self, op: pb.ACLOperation) -> Rule | None:
        if op.rule_id:
            if "\0" in op.rule_id:
                return None
            return await self._database.read(partial(records.find_rule, op.rule_id))
        wanted = op.rule_filter
        names = _legacy((wanted.principal_type, wanted.principal_id, wanted.resource_type, wanted.resource_id))
        if not all(names) or any("\0" in name for name in names):
            return None
        return await self._database.read(partial(records.find_same, *names))

    async def _grant(self, caller: _Caller, op: pb.ACLOperation, reply: pb.ACLResponse) -> None:
        asked = op.grant_request
        if asked.resource_type == LOCK:
            await self._lock(caller, op, reply)
            return
        if asked.resource_type == POLICY:
            await self._policy(caller, op, reply)
            return
        level = checked_level(asked.access_level)
        rule = normalised(
            Rule(
                self._ids.unique(),
                asked.principal_type,
                asked.principal_id,
                asked.resource_type,
                asked.resource_id,
                level,
                caller.name,
                self._clock.now_ms(),
                _moment(asked.expires_at, self._clock.now_ms()),
                asked.reason,
            )
        )

        def check() -> None:
            known = self._authorizer.index.same_rule(rule)
            needed = _needed(level if known is None else max(level, known.level))
            self._check_may_rule(caller, op, rule.resource_type, rule.resource_id, needed)
            self._granting.check_rule(caller.session, rule, caller.authority)
            if known is None and not self._administers(caller, op):
                self._check_room(caller, rule)

        def program(draft: Draft) -> Program[Rule | None]:
            stored = yield from records.put_rule(draft, rule)
            if stored is not None:
                draft.audit(_event(caller, op, draft, stored.resource_type, stored.resource_id, rule_id=stored.rule_id))
            return stored

        done = await self._changes.commit(program, check)
        if done.result is None:
            raise RequestError(
                Code.QUOTA,
                f"there are {records.MAX_RULES} rules, which is the limit; use groups and patterns",
                retryable=False,
            )
        reply.rule.CopyFrom(_rule_info(done.result))
        reply.message = _told(
            f"{rule.principal_type}:{rule.principal_id} has {level.name} on {rule.resource_type}:{rule.resource_id}",
            done,
        )

    def _check_room(self, caller: _Caller, rule: Rule) -> None:
        """Raise RequestError if a manager makes too many rules."""
        about = made = 0
        for one in self._authorizer.index.rules():
            about += one.resource_id == rule.resource_id and one.resource_type == rule.resource_type
            made += one.granted_by == caller.name
        if max(about, made) >= MAX_OF_MANAGER:
            raise RequestError(
                Code.QUOTA,
                f"you have made {made} rules, and there are {about} about {rule.resource}: without ADMIN on "
                f"{Admin.ACL} the limit is {MAX_OF_MANAGER}; use groups and patterns",
                retryable=False,
            )

    async def _revoke(self, caller: _Caller, op: pb.ACLOperation, reply: pb.ACLResponse) -> None:
        if op.rule_id and await self._unlock(caller, op, reply):
            return
        rule = await self._find(op)
        if rule is None:
            self._check_administers(caller, op)
            raise _no_rule(op, await self._changes.in_force_now())

        def check() -> None:
            self._check_may_rule(caller, op, rule.resource_type, rule.resource_id, _needed(rule.level))
            self._granting.check_removal(caller.session, rule, caller.authority)

        def program(draft: Draft) -> Program[bool]:
            known = yield from records.find_rule(rule.rule_id)
            if known is None or known.level != rule.level:
                return False
            yield from records.delete_rules(draft, [rule.rule_id])
            draft.audit(_event(caller, op, draft, rule.resource_type, rule.resource_id, rule_id=rule.rule_id))
            return True

        done = await self._changes.commit(program, check)
        if not done.result:
            raise _no_rule(op, done.caveat)
        reply.rule.CopyFrom(_rule_info(rule))
        reply.message = _told("the rule is revoked", done)

    async def _policy(self, caller: _Caller, op: pb.ACLOperation, reply: pb.ACLResponse) -> None:
        """Plan or apply a policy; the documents are the reasons of request and answer."""
        asked = op.grant_request
        found = await self._policies.operate(caller.session, caller.authority, asked.resource_id, asked.reason)
        text = f"{found.added} added, {found.changed} changed, {found.removed} removed"
        reply.rule.resource_type = POLICY
        reply.rule.resource_id = asked.resource_id
        reply.rule.rule_id = found.digest
        reply.rule.reason = msgspec.json.encode(found).decode()
        reply.message = with_caveat(text, found.caveat)

    # -- locks -------------------------------------------------------------------------------------

    async def _lock(self, caller: _Caller, op: pb.ACLOperation, reply: pb.ACLResponse) -> None:
        asked = op.grant_request
        now_ms = self._clock.now_ms()
        pattern = asked.principal_id if asked.principal_type in {"", "*"} else _lock_pattern(asked)
        expires_ms = _moment(asked.expires_at, now_ms)
        lock = normalised_lock(Lock(self._ids.unique(), pattern, asked.reason, caller.name, now_ms, expires_ms))

        def check() -> None:
            self._check_administers(caller, op)
            self._granting.check_lock(caller.session, lock)

        def program(draft: Draft) -> Program[None]:
            yield from records.put_lock(draft, lock)
            draft.audit(_event(caller, op, draft, LOCK, lock.pattern, operation="lock", rule_id=lock.lock_id))

        done = await self._changes.commit(program, check)
        reply.rule.CopyFrom(_lock_info(lock))
        reply.message = _told(f"{lock.pattern} is locked", done)

    async def _unlock(self, caller: _Caller, op: pb.ACLOperation, reply: pb.ACLResponse) -> bool:
        """End the lock with the rule id of a request; return whether there is one."""
        if all(lock.lock_id != op.rule_id for lock in self._authorizer.index.locks()):
            return False

        def program(draft: Draft) -> Program[bool]:
            deleted = yield from records.delete_lock(draft, op.rule_id)
            if deleted:
                draft.audit(_event(caller, op, draft, LOCK, op.rule_id, operation="unlock", rule_id=op.rule_id))
            return deleted

        done = await self._changes.commit(program, partial(self._check_administers, caller, op))
        if not done.result:
            raise _no_rule(op, done.caveat)
        reply.message = _told("the lock is ended", done)
        return True

    # -- fallbacks ---------------------------------------------------------------------------------

    async def _get_fallback(self, caller: _Caller, op: pb.ACLOperation, reply: pb.ACLResponse) -> None:
        self._check_administers(caller, op)
        category = _category(op.rule_category)
        found = await self._database.read(partial(records.find_fallback, category))
        if found is None:
            raise RequestError(Code.INVALID_ARGUMENT, f"there is no fallback policy for {shown(category)}: it is NONE")
        reply.fallback_policy.CopyFrom(_fallback_info(found))

    async def _set_fallback(self, caller: _Caller, op: pb.ACLOperation, reply: pb.ACLResponse) -> None:
        category = _category(op.fallback_request.rule_category or op.rule_category)
        level = checked_level(op.fallback_request.fallback_access_level)

        def check() -> None:
            self._check_administers(caller, op)
            self._granting.check_fallback(caller.session, category, level, caller.authority)

        def program(draft: Draft) -> Program[FallbackRecord]:
            stored = yield from records.put_fallback(draft, category, level, caller.name)
            draft.audit(_event(caller, op, draft, "fallback", category, level=level.name))
            return stored

        done = await self._changes.commit(program, check)
        reply.fallback_policy.CopyFrom(_fallback_info(done.result))
        reply.message = _told(f"the fallback of {category} is {level.name}", done)

    # -- groups and roles --------------------------------------------------------------------------

    async def _create_group(self, caller: _Caller, op: pb.ACLOperation, reply: pb.ACLResponse) -> None:
        kind = _kind(op)
        asked = op.role_request if kind == "role" else op.group_request
        name = checked_name(kind, op.name or asked.name)
        group = GroupRecord(
            kind,
            name,
            self._ids.unique(),
            check_text(asked.description, "description", MAX_TEXT_BYTES, lines=True),
            caller.name,
            self._clock.now_ms(),
            _metadata(asked.metadata),
        )

        def program(draft: Draft) -> Program[bool]:
            created = yield from records.create_group(draft, group)
            if created:
                draft.audit(_event(caller, op, draft, kind, name))
            return created

        done = await self._changes.commit(program, partial(self._check_administers, caller, op))
        if not done.result:
            raise RequestError(Code.INVALID_ARGUMENT, f"{kind} {name} exists already")
        _put_group(reply, group)
        reply.message = _told(f"{kind} {name} is created", done)

    async def _delete_group(self, caller: _Caller, op: pb.ACLOperation, reply: pb.ACLResponse) -> None:
        kind, name = _named(op)

        def check() -> None:
            self._check_administers(caller, op)
            self._granting.check_group_removal(caller.session, kind, name, caller.authority)

        def program(draft: Draft) -> Program[bool]:
            deleted = yield from records.delete_group(draft, kind, name)
            if deleted:
                draft.audit(_event(caller, op, draft, kind, name))
            return deleted

        done = await self._changes.commit(program, check)
        if not done.result:
            raise _no_group(kind, name, done.caveat)
        reply.message = _told(f"{kind} {name} is deleted, with its members and rules", done)

    async def _get_group(self, caller: _Caller, op: pb.ACLOperation, reply: pb.ACLResponse) -> None:
        self._check_administers(caller, op)
        kind, name = _named(op)
        found = await self._database.read(partial(records.find_group, kind, name))
        if found is None:
            raise _no_group(kind, name)
        _put_group(reply, found)

    async def _list_groups(self, caller: _Caller, op: pb.ACLOperation, reply: pb.ACLResponse) -> None:
        self._check_administers(caller, op)
        for found in await self._database.read(partial(records.list_groups, _kind(op))):
            if found.kind == "role":
                reply.roles.append(_role_info(found))
            else:
                reply.groups.append(_group_info(found))

    async def _add_member(self, caller: _Caller, op: pb.ACLOperation, reply: pb.ACLResponse) -> None:
        kind = _kind(op)
        asked_type, asked_id, expires_at = _member_asked(op)
        now_ms = self._clock.now_ms()
        member = normalised_member(
            Member(kind, op.name, asked_type, asked_id, caller.name, now_ms, _moment(expires_at, now_ms))
        )

        def check() -> None:
            self._check_administers(caller, op)
            self._granting.check_membership(caller.session, member, caller.authority)

        def program(draft: Draft) -> Program[RequestError | None]:
            if (yield from records.find_group(kind, member.name)) is None:
                return _no_group(kind, member.name)
            nested = member.member_type in {"group", "role"}
            if nested and (yield from records.find_group(member.member_type, member.member_id)) is None:
                return _no_group(member.member_type, member.member_id)
            if nested:
                problem = membership_problem((yield from records.all_members()), member)
                if problem is not None:
                    return RequestError(Code.INVALID_ARGUMENT, problem)
            yield from records.put_member(draft, member)
            draft.audit(_event(caller, op, draft, kind, member.name, member=f"{member.member_type}:{member.member_id}"))
            return None

        done = await self._changes.commit(program, check)
        if done.result is not None:
            raise done.result
        reply.message = _told(f"{member.member_type}:{member.member_id} is in {kind} {member.name}", done)

    async def _remove_member(self, caller: _Caller, op: pb.ACLOperation, reply: pb.ACLResponse) -> None:
        kind, name = _named(op)
        asked_type, asked_id, _ = _member_asked(op)
        member = normalised_member(Member(kind, name, asked_type, asked_id, "", 0, 0))

        def program(draft: Draft) -> Program[bool]:
            deleted = yield from records.delete_member(draft, kind, name, member.member_type, member.member_id)
            if deleted:
                draft.audit(_event(caller, op, draft, kind, name, member=f"{member.member_type}:{member.member_id}"))
            return deleted

        def check() -> None:
            self._check_administers(caller, op)
            self._granting.check_member_removal(caller.session, member, caller.authority)

        done = await self._changes.commit(program, check)
        if not done.result:
            what = "membership" if kind == "group" else "role assignment"
            text = f"{what} not found: {asked_type}:{shown(asked_id)} is not in {kind} {name}"
            raise RequestError(Code.INVALID_ARGUMENT, with_caveat(text, done.caveat))
        reply.message = _told(f"{member.member_type}:{member.member_id} is not in {kind} {name} any more", done)

    async def _list_members(self, caller: _Caller, op: pb.ACLOperation, reply: pb.ACLResponse) -> None:
        self._check_administers(caller, op)
        kind, name = _named(op)
        if await self._database.read(partial(records.find_group, kind, name)) is None:
            raise _no_group(kind, name)
        _put_members(reply, await self._database.read(partial(records.list_members, kind, name)))

    async def _list_memberships(self, caller: _Caller, op: pb.ACLOperation, reply: pb.ACLResponse) -> None:
        principal_type, principal_id = self._principal(caller, op)
        found = await self._database.read(partial(records.list_memberships, _kind(op), principal_type, principal_id))
        _put_members(reply, found)

    def _principal(self, caller: _Caller, op: pb.ACLOperation) -> tuple[str, str]:
        """Return the principal that a request is about; callers may ask about themselves."""
        given = op.principal
        identity = caller.session.identity
        if not given.principal_type and not given.principal_id:
            return identity.type_name, identity.canonical_id
        principal = checked_principal(given.principal_type, given.principal_id)
        if principal != (identity.type_name, identity.canonical_id):
            self._check_administers(caller, op)
        return principal

    # -- looks -------------------------------------------------------------------------------------

    async def _explain(self, caller: _Caller, op: pb.ACLOperation, reply: pb.ACLResponse) -> None:
        principal_type, principal_id = self._principal(caller, op)
        resource_type, resource_id = checked_resource(op.resource_type, op.resource_id)
        level = checked_level(op.required_level or int(AccessLevel.READ))
        explained = self._authorizer.explain(principal_type, principal_id, resource_type, resource_id)
        verdict = explained.verdict
        allowed = verdict.level >= level > AccessLevel.NONE
        reply.explanation.CopyFrom(
            pb.ACLAccessExplanationInfo(
                principal=f"{principal_type}:{principal_id}",
                subjects=explained.subjects,
                contributions=[
                    pb.ACLAccessContributionInfo(
                        subject=one.subject, rule_id=one.rule_id, access_level=int(one.level), resource=one.resource,
                        expired=one.expired,
                    )
                    for one in explained.contributions
                ],
                allowed=allowed,
                decision="ALLOW" if allowed else "DENY",
                effective_access_level=int(verdict.level),
                fallback_applied=verdict.tier >= FALLBACK_TIER,
                reason=verdict.reason,
            )
        )  # fmt: skip

    async def _query_audit(self, caller: _Caller, op: pb.ACLOperation, reply: pb.ACLResponse) -> None:
        self._check_administers(caller, op)
        entries, reply.total_audit_entries = await self._history.decisions(op.audit_filter)
        reply.audit_entries.extend(entries)

    async def _cleanup_expired(self, caller: _Caller, op: pb.ACLOperation, reply: pb.ACLResponse) -> None:
        def program(draft: Draft) -> Program[int]:
            count = yield from records.delete_expired(draft)
            if count:
                draft.audit(_event(caller, op, draft, "rule", "*", deleted=count))
            return count

        done = await self._changes.commit(program, partial(self._check_administers, caller, op))
        reply.cleanup_result.deleted_count = done.result
        reply.cleanup_result.message = reply.message = _told(
            f"{done.result} expired rules, memberships and locks are deleted", done
        )

    async def _cleanup_audit(self, caller: _Caller, op: pb.ACLOperation, reply: pb.ACLResponse) -> None:
        self._check_administers(caller, op)
        if op.retention_days < 1:
            raise RequestError(Code.INVALID_ARGUMENT, "retention_days is 1 or more")
        count = await self._history.forget(op.retention_days)
        reply.cleanup_result.deleted_count = count
        reply.cleanup_result.message = reply.message = f"{count} audit rows are deleted"

    _handlers: Final = {
        Op.LIST_RULES: _list_rules,
        Op.GET_RULE: _get_rule,
        Op.GRANT: _grant,
        Op.REVOKE: _revoke,
        Op.QUERY_AUDIT: _query_audit,
        Op.GET_FALLBACK_POLICY: _get_fallback,
        Op.SET_FALLBACK_POLICY: _set_fallback,
        Op.CLEANUP_EXPIRED: _cleanup_expired,
        Op.CLEANUP_AUDIT_LOGS: _cleanup_audit,
        Op.CREATE_GROUP: _create_group,
        Op.DELETE_GROUP: _delete_group,
        Op.GET_GROUP: _get_group,
        Op.LIST_GROUPS: _list_groups,
        Op.ADD_GROUP_MEMBER: _add_member,
        Op.REMOVE_GROUP_MEMBER: _remove_member,
        Op.LIST_GROUP_MEMBERS: _list_members,
        Op.CREATE_ROLE: _create_group,
        Op.DELETE_ROLE: _delete_group,
        Op.GET_ROLE: _get_group,
        Op.LIST_ROLES: _list_groups,
        Op.ASSIGN_ROLE: _add_member,
        Op.UNASSIGN_ROLE: _remove_member,
        Op.LIST_ROLE_ASSIGNMENTS: _list_members,
        Op.LIST_PRINCIPAL_GROUPS: _list_memberships,
        Op.LIST_PRINCIPAL_ROLES: _list_memberships,
        Op.EXPLAIN_ACCESS: _explain,
    }


# -- what requests name ----------------------------------------------------------------------------


def _kind(op: pb.ACLOperation) -> str:
    return ROLE if op.op in _ROLES else GROUP


def _named(op: pb.ACLOperation) -> tuple[str, str]:
    kind = _kind(op)
    return kind, checked_name(kind, op.name)


def _word(op: pb.ACLOperation) -> str:
    """Return the operation's name in decisions and audit rows, such as "acl_grant"."""
    return f"acl_{Op.OpType.Name(op.op).lower()}"


def _member_asked(op: pb.ACLOperation) -> tuple[str, str, int]:
    if _kind(op) == ROLE:
        role = op.assignment_request
        return role.assignee_type, role.assignee_id, role.expires_at
    group = op.member_request
    return group.member_type, group.member_id, group.expires_at


def _lock_pattern(asked: pb.ACLGrantRequest) -> str:
    """Return the pattern of a lock of this principal: its identity text, or "user:ID"."""
    if asked.principal_type == "user" and not asked.principal_id.startswith("us::"):
        return f"user:{asked.principal_id}"
    return asked.principal_id


def _needed(level: AccessLevel) -> AccessLevel:
    """Return the level that it takes to give or take away a level in a workspace."""
    return AccessLevel.MANAGE if level <= AccessLevel.READWRITE else AccessLevel.ADMIN


def _literal(text: str) -> str | None:
    """Return the name that a pattern stands for; None for a pattern. Raises RuleError."""
    try:
        return literal_of(text)
    except PatternError as error:
        raise RuleError("resource_id", f"resource_id: {error}") from None


def _legacy(names: tuple[str, str, str, str]) -> tuple[str, str, str, str]:
    return (*names[:2], *current_resource(*names[2:]))


def _category(text: str) -> str:
    return check_text(text, "rule_category", MAX_CATEGORY_BYTES)


def _moment(unix_s: int, now_ms: int) -> int:
    """Return the moment of an expiry in ms. Raises RequestError if it has passed."""
    if unix_s == 0:
        return 0
    if not 0 < unix_s <= MAX_UNIX_S:
        raise RequestError(Code.INVALID_ARGUMENT, f"expires_at is a Unix time in seconds, not {unix_s}")
    if unix_s * 1000 <= now_ms:
        raise RequestError(Code.INVALID_ARGUMENT, "expires_at has passed already")
    return unix_s * 1000


def _metadata(given: Mapping[str, str]) -> dict[str, str]:
    if len(given) > MAX_METADATA:
        raise TextError(f"metadata has {len(given)} entries; at most {MAX_METADATA} are allowed")
    return {
        check_text(key, "a key of metadata", MAX_TEXT_BYTES): check_text(
            value, "a value of metadata", MAX_TEXT_BYTES, lines=True
        )
        for key, value in given.items()
    }


def checked_principal(principal_type: str, principal_id: str) -> tuple[str, str]:
    """Return a principal by which decisions ask; the id is a name. Raises RuleError."""
    rule = normalised(Rule("", principal_type, escape(principal_id), "workspace", "any", AccessLevel.NONE))
    return rule.principal_type, literal_of(rule.principal_id) or ""


def checked_resource(resource_type: str, resource_id: str) -> tuple[str, str]:
    """Return a resource by which decisions ask; the id is a name. Raises RuleError."""
    resource_type, resource_id = current_resource(resource_type, resource_id)
    rule = normalised(Rule("", GROUP, "any", resource_type, escape(resource_id), AccessLevel.NONE))
    return rule.resource_type, literal_of(rule.resource_id) or ""


def _no_rule(op: pb.ACLOperation, caveat: str = "") -> RequestError:
    what = f"rule {shown(op.rule_id)}" if op.rule_id else "rule for this principal and resource"
    return RequestError(Code.INVALID_ARGUMENT, with_caveat(f"there is no {what}", caveat))


def _no_group(kind: str, name: str, caveat: str = "") -> RequestError:
    return RequestError(Code.INVALID_ARGUMENT, with_caveat(f"{kind} not found: {shown(name)}", caveat))


# -- answers ---------------------------------------------------------------------------------------


def _refused(op: pb.ACLOperation, error: RequestError) -> list[pb.DownstreamMessage]:
    """Make the typed answer of a refusal, and the ErrorResponse behind it."""
    reply = pb.ACLResponse(request_id=op.request_id, error=str(error))
    return [pb.DownstreamMessage(acl=reply), error_response(error, op.request_id)]


def _told(text: str, done: Committed[T]) -> str:
    return with_caveat(text, done.caveat)


def _event(
    caller: _Caller,
    op: pb.ACLOperation,
    draft: Draft,
    resource_type: str,
    resource_id: str,
    operation: str = "",
    **metadata: object,
) -> AuditEvent:
    word = operation or _word(op)
    return change_event(
        caller.session, caller.authority, word, resource_type, resource_id, now_ms=draft.now_ms, **metadata
    )


def _rule_info(rule: Rule) -> pb.ACLRuleInfo:
    return pb.ACLRuleInfo(
        rule_id=rule.rule_id,
        principal_type=rule.principal_type,
        principal_id=rule.principal_id,
        resource_type=rule.resource_type,
        resource_id=rule.resource_id,
        access_level=int(rule.level),
        access_level_name=rule.level.name,
        granted_by=rule.granted_by,
        granted_at=rule.granted_ms // 1000,
        expires_at=rule.expires_ms // 1000,
        reason=rule.reason,
    )


def _lock_info(lock: Lock) -> pb.ACLRuleInfo:
    return pb.ACLRuleInfo(
        rule_id=lock.lock_id,
        principal_type="*",
        principal_id=lock.pattern,
        resource_type=LOCK,
        resource_id="*",
        access_level=int(AccessLevel.NONE),
        access_level_name=AccessLevel.NONE.name,
        granted_by=lock.locked_by,
        granted_at=lock.locked_ms // 1000,
        expires_at=lock.expires_ms // 1000,
        reason=lock.reason,
    )


def _others(resource_type: str, limit: int, offset: int) -> Program[tuple[list[pb.ACLRuleInfo], int]]:
    """Read a page of what is listed as rules without being one, and the total."""
    if resource_type == MEMBER:
        members, total = yield from records.page_of_members(limit, offset)
        return [_member_info(one) for one in members], total
    if resource_type == LOCK:
        locks = yield from records.list_locks()
        return [_lock_info(one) for one in locks[offset : offset + limit]], len(locks)
    fallbacks = yield from records.list_fallbacks()
    return [_fallback_rule(one) for one in fallbacks[offset : offset + limit]], len(fallbacks)


def _member_info(member: Member) -> pb.ACLRuleInfo:
    return pb.ACLRuleInfo(
        principal_type=member.member_type,
        principal_id=member.member_id,
        resource_type=MEMBER,
        resource_id=member.container,
        granted_by=member.granted_by,
        granted_at=member.granted_ms // 1000,
        expires_at=member.expires_ms // 1000,
    )


def _fallback_rule(found: FallbackRecord) -> pb.ACLRuleInfo:
    return pb.ACLRuleInfo(
        rule_id=found.category,
        principal_type="*",
        principal_id="*",
        resource_type=FALLBACK,
        resource_id=found.category,
        access_level=int(found.level),
        access_level_name=found.level.name,
        granted_by=found.updated_by,
        granted_at=found.updated_ms // 1000,
    )


def _fallback_info(found: FallbackRecord) -> pb.ACLFallbackPolicyInfo:
    return pb.ACLFallbackPolicyInfo(
        policy_id=found.category,
        rule_category=found.category,
        fallback_access_level=int(found.level),
        fallback_access_level_name=found.level.name,
        updated_by=found.updated_by,
        updated_at=found.updated_ms // 1000,
    )


def _group_info(found: GroupRecord) -> pb.ACLGroupInfo:
    return pb.ACLGroupInfo(
        group_id=found.group_id,
        group_name=found.name,
        description=found.description,
        created_by=found.created_by,
        created_at=found.created_ms // 1000,
        metadata=found.metadata,
    )


def _role_info(found: GroupRecord) -> pb.ACLRoleInfo:
    return pb.ACLRoleInfo(
        role_id=found.group_id,
        role_name=found.name,
        description=found.description,
        created_by=found.created_by,
        created_at=found.created_ms // 1000,
        metadata=found.metadata,
    )


def _put_group(reply: pb.ACLResponse, found: GroupRecord) -> None:
    if found.kind == ROLE:
        reply.role.CopyFrom(_role_info(found))
    else:
        reply.group.CopyFrom(_group_info(found))


def _put_members(reply: pb.ACLResponse, members: Sequence[Member]) -> None:
    for one in members:
        times = {"granted_at": one.granted_ms // 1000, "expires_at": one.expires_ms // 1000}
        if one.kind == ROLE:
            reply.role_assignments.add(
                role_name=one.name,
                assignee_type=one.member_type,
                assignee_id=one.member_id,
                granted_by=one.granted_by,
                **times,
            )
        else:
            reply.group_members.add(
                group_name=one.name,
                member_type=one.member_type,
                member_id=one.member_id,
                granted_by=one.granted_by,
                **times,
            )
