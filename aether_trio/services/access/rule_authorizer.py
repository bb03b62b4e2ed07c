"""The Authorizer that decides by rules in memory (model/access/ladder.py).

An access is asked in this order, and the first no is final:

1. a lock of the actor, or of the subject in whose name it acts;
2. the credential: the workspaces that it reaches, and the level that it gives at most;
3. on behalf of a subject: the limits of the grant and of all its lineage;
4. the ladder, for the actor or else for the subject.

Every decision is reported to a DecisionSink, with what was asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.ladder import AccessIndex, Explanation, Verdict
from aether_trio.model.access.rules import OWN_RULE_ID, Lock, RuleError, current_resource
from aether_trio.model.api_tokens import OPERATOR
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import Identity
from aether_trio.model.text import TextError, shown
from aether_trio.model.topics import Topic, TopicKind
from aether_trio.services.access import records
from aether_trio.services.access.authorizer import (
    DIRECT,
    AccessDecision,
    AccessQuestion,
    Actor,
    Admin,
    Authority,
    Capability,
    DecisionCount,
    DecisionSink,
    GrantMissing,
    GrantSource,
    NoDecisions,
)
from aether_trio.services.access.changes import AccessChanges
from aether_trio.services.access.questions import question
from aether_trio.storage.base import StorageUnavailable
from aether_trio.wire.pb import aether_pb2 as pb

FALLBACK_TIER: Final = 6
MAX_CACHED: Final = 65_536
"""Verdicts that are remembered until something changes, about 300 bytes each."""
MAX_CACHED_NAME: Final = 256
"""Characters of a resource about which a verdict is remembered: clients choose what they ask."""

SUPERADMIN: Final = AccessLevel.SUPERADMIN
_ADMINISTERED: Final = frozenset({"admin", "capability", "workspace"})
"""Types of resources whose rights the makers of a token need themselves."""
_OF_ALL: Final = frozenset({2, 4, 6})
"""Tiers by which all principals of a type have a level."""
_USERS: Final = frozenset({TopicKind.USER_WINDOW, TopicKind.USER_EVERYWHERE})
_BROADCASTS: Final = {
    TopicKind.EVENT: Capability.EVENT_BROADCAST,
    TopicKind.METRIC: Capability.METRIC_BROADCAST,
}
_OF_WORKSPACES: Final = frozenset({"workspace", "workspace-exclusive", "user-workspace", "user-workspace-shared"})
"""The KV scopes that belong to a workspace."""
_OF_USERS: Final = frozenset({"user-shared", "user-workspace-shared"})
"""The shared KV scopes that belong to a user."""


@dataclass(slots=True)
class _KvDecision:
    """An allowed access to all keys of a place."""

    decision: AccessDecision
    until_ms: int
    """When it may change by the expiry of something; 0: never."""
    count: DecisionCount

    def is_current(self, clock: Clock) -> bool:
        return self.count.is_open and (not self.until_ms or self.until_ms > clock.now_ms())


@dataclass(frozen=True, slots=True)
class DecisionStatistics:
    """The memory of verdicts of a node."""

    remembered: int
    hits: int
    misses: int
    """Verdicts for which the rules were asked."""


@dataclass(frozen=True, slots=True)
class _Moment:
    """A Clock that stands still."""

    moment_ms: int

    def now_ms(self) -> int:
        return self.moment_ms

    def monotonic(self) -> float:
        return self.moment_ms / 1000


class RuleAuthorizer:
    """Decides by an AccessIndex, which the changes of all nodes keep up to date."""

    def __init__(self, index: AccessIndex, clock: Clock, grants: GrantSource, decisions: DecisionSink) -> None:
        self._index = index
        self._clock = clock
        self._grants = grants
        self._decisions = decisions
        self._cache: dict[tuple[str, str, str, str, str, tuple[str, ...]], Verdict] = {}
        self._hits = self._misses = 0
        self._kv_decisions: dict[tuple[str, str, str, str, AccessLevel, bool], _KvDecision] = {}
        """What sessions may do with all keys of a place, in their own name."""

    def follow(self, changes: AccessChanges) -> None:
        """Keep the index up to date with the changes of all nodes."""
        changes.when_applied(records.RULE, self._rules_changed, records.load_rules)
        changes.when_applied(records.FALLBACK, self._fallbacks_changed, records.load_fallbacks)
        changes.when_applied(records.MEMBER, self._members_changed, records.load_members)
        changes.when_applied(records.LOCK, self._locks_changed, records.load_locks)
        changes.when_expired(self._index.next_expiry_ms, self.forget_verdicts)

    def statistics(self) -> DecisionStatistics:
        """Return the counters of remembered verdicts, for metrics."""
        return DecisionStatistics(len(self._cache) + len(self._kv_decisions), self._hits, self._misses)

    @property
    def index(self) -> AccessIndex:
        """The rules, memberships, fallbacks and locks in memory."""
        return self._index

    def by(self, index: AccessIndex) -> RuleAuthorizer:
        """Return an authorizer that decides by another index, and reports nothing."""
        return type(self)(index, self._clock, self._grants, NoDecisions())

    def at(self, moment_ms: int) -> RuleAuthorizer:
        """Return one that decides by the same rules at a moment, and reports nothing."""
        return type(self)(self._index, _Moment(moment_ms), self._grants, NoDecisions())

    # -- the Authorizer ----------------------------------------------------------------------------

    async def check(
        self,
        actor: Actor,
        operation: str,
        resource_type: str,
        resource_id: str,
        workspace: str,
        level: AccessLevel,
        authority: Authority = DIRECT,
    ) -> AccessDecision:
        access = AccessQuestion(operation, resource_type, resource_id, workspace, level)
        return self._report(actor, access, authority, self.decide(actor, access, authority))

    async def check_workspace(
        self,
        actor: Actor,
        workspace: str,
        level: AccessLevel = AccessLevel.READ,
        operation: str = "connect",
        authority: Authority = DIRECT,
    ) -> AccessDecision:
        return await self.check(actor, operation, "workspace", workspace, workspace, level, authority)

    async def check_admin(
        self,
        actor: Actor,
        category: str,
        level: AccessLevel = AccessLevel.ADMIN,
        operation: str = "admin",
        authority: Authority = DIRECT,
    ) -> AccessDecision:
        return await self.check(actor, operation, "admin", Admin(f"admin/{category}"), "", level, authority)

    async def check_query_connections(self, actor: Actor) -> AccessDecision:
        query = Capability.QUERY_CONNECTIONS
        return await self.check(actor, "connection_status", "capability", query, "", AccessLevel.READ)

    async def check_kv(
        self,
        actor: Actor,
        scope: str,
        key: str,
        workspace: str,
        user_id: str,
        level: AccessLevel,
        authority: Authority = DIRECT,
        *,
        exclusive: bool = False,
    ) -> AccessDecision:
        question = (actor.session_id, scope, workspace, user_id, level, exclusive)
        is_direct = authority.grant is None
        if is_direct:
            known = self._kv_decisions.get(question)
            if known is not None and known.is_current(self._clock):
                known.count.times += 1
                self._hits += 1
                return known.decision
        access, decision, until_ms = self._decide_kv(
            actor, scope, key, workspace, user_id, level, authority, exclusive=exclusive
        )
        count = self._decisions.decided(actor, access, decision, authority)
        if is_direct and decision.allowed and actor.session_id and (exclusive or not self._may_have_key_rules(actor)):
            # It is the same for all keys.
            if len(self._kv_decisions) >= MAX_CACHED:
                self._kv_decisions.clear()
            self._kv_decisions[question] = _KvDecision(decision, until_ms, count)
        return decision

    def decide_key(self, actor: Actor, workspace: str, key: str) -> AccessDecision:
        """Decide whether a participant may read a key of a workspace; any thread."""
        return self._decide_kv(actor, "workspace", key, workspace, "", AccessLevel.READ, DIRECT, exclusive=False)[1]

    def _may_have_key_rules(self, actor: Actor) -> bool:
        identity = actor.identity
        return self._index.may_have_key_rules(
            identity.type_name, identity.canonical_id, self._clock.now_ms(), actor.groups
        )

    def _decide_kv(
        self,
        actor: Actor,
        scope: str,
        key: str,
        workspace: str,
        user_id: str,
        level: AccessLevel,
        authority: Authority,
        *,
        exclusive: bool,
    ) -> tuple[AccessQuestion, AccessDecision, int]:
        """Return what decides on a key, the decision, and until when it holds."""
        operation = "kv_read" if level is AccessLevel.READ else "kv_write"
        until_ms = 0
        if scope in _OF_WORKSPACES:
            # A rule about a key opens no workspace, so this is asked first.
            access = AccessQuestion(operation, "workspace", workspace, workspace, level)
            decision = self.decide(actor, access, authority)
            until_ms = decision.until_ms
            if not decision.allowed or (exclusive and authority.is_direct):
                return access, decision, until_ms
        elif exclusive and authority.is_direct:
            access = AccessQuestion(operation, "kv_scope", scope, workspace, level)
            return access, self._own_space(actor, level), until_ms
        else:
            workspace = ""
        scopes = [("kv_scope", scope)]
        if scope in _OF_USERS and user_id:
            scopes.insert(0, ("kv_scope", f"{scope}/{user_id}"))
            # A rule about a key does not open the keys of a user either.
            access, decision, entered_until_ms = self._first_rule(
                actor, operation, scopes, workspace, AccessLevel.READ, authority
            )
            until_ms = _earlier(until_ms, entered_until_ms)
            if not decision.allowed:
                return access, decision, until_ms
        asked = [("kv_key", key), *scopes] if key else scopes
        access, decision, decided_until_ms = self._first_rule(actor, operation, asked, workspace, level, authority)
        return access, decision, _earlier(until_ms, decided_until_ms)

    def _first_rule(
        self,
        actor: Actor,
        operation: str,
        resources: Sequence[tuple[str, str]],
        workspace: str,
        level: AccessLevel,
        authority: Authority,
    ) -> tuple[AccessQuestion, AccessDecision, int]:
        """Decide by the first of these resources that has a rule, else by the last."""
        until_ms = 0
        *others, last = [AccessQuestion(operation, *one, workspace, level) for one in resources]
        for access in others:
            decision = self.decide(actor, access, authority)
            until_ms = _earlier(until_ms, decision.until_ms)
            if not decision.is_fallback:
                return access, decision, until_ms
        decision = self.decide(actor, last, authority)
        return last, decision, _earlier(until_ms, decision.until_ms)

    async def authority(self, actor: Actor, context: pb.AuthorizationContext | None) -> Authority:
        if context is None:
            return DIRECT
        while True:
            try:
                return self._resolved(actor, context)
            except GrantMissing as missing:
                await self._grants.load(missing.grant_id)

    def send_authority(self, actor: Actor, context: pb.AuthorizationContext) -> Authority:
        try:
            return self._resolved(actor, context)
        except GrantMissing:
            # `prepare_authority` could not read it.
            raise RequestError(
                Code.CIRCUIT_OPEN, "the gateway's storage does not answer: the grant cannot be read"
            ) from None

    def holds(self, authority: Authority) -> bool:
        grant = authority.grant
        return grant is not None and self._grants.holds(grant)

    def _resolved(self, actor: Actor, context: pb.AuthorizationContext) -> Authority:
        mode = context.authority_mode
        if mode in {"", "direct"}:
            if context.grant_id or context.HasField("subject"):
                raise RequestError(
                    Code.PERMISSION_DENIED,
                    "a direct operation carries no subject and no grant; did you mean on_behalf_of?",
                )
            return DIRECT
        if mode != "on_behalf_of":
            raise RequestError(
                Code.PERMISSION_DENIED, f"unknown authority_mode {shown(mode)}: expected direct or on_behalf_of"
            )
        if not context.grant_id or not context.HasField("subject"):
            raise RequestError(Code.PERMISSION_DENIED, "on_behalf_of needs a subject and a grant_id")
        return Authority(self._grants.find(actor, context))

    async def prepare_authority(self, actor: Actor, context: pb.AuthorizationContext) -> None:
        """Read the grant of a message into memory; the router tells what fails."""
        try:
            await self.authority(actor, context)
        except (RequestError, StorageUnavailable):
            return

    def check_send(
        self,
        actor: Actor,
        topic: Topic,
        *,
        workspace: str,
        declared_workspace: str,
        authority: Authority = DIRECT,
    ) -> AccessDecision:
        decision = AccessDecision(False, "no access rule covers this target")
        for access in self._asked_of_send(actor, topic, workspace, declared_workspace):
            decision = self.decide(actor, access, authority)
            if not decision.allowed and access.resource_type == "user":
                decision = (
                    self._to_itself(actor, access, authority)
                    or self._neighbour(actor, access, workspace, authority)
                    or decision
                )
            self._report(actor, access, authority, decision)
            if not decision.allowed:
                return decision
        return decision

    def check_app_workspace(self, actor: Actor, workspace: str, authority: Authority = DIRECT) -> AccessDecision:
        access = AccessQuestion("send_message", "workspace", workspace, workspace, AccessLevel.READWRITE)
        return self._report(actor, access, authority, self.decide(actor, access, authority))

    def receipt(
        self, actor: Actor, asked: pb.ResourceAccessRequest, authority: Authority = DIRECT, target: str = ""
    ) -> pb.AccessDecisionReceipt:
        """Decide on what a client asks about, and make the receipt. Never waits.

        `target` is the only receiver of a message with the receipt. Raises RuleError, TextError;
        RequestError while the audit log takes no row of it.
        """
        access = question(asked)
        decision = self.decide(actor, access, authority)
        grant = authority.grant
        identity = actor.identity
        me = pb.PrincipalRef(principal_type=identity.type_name, principal_id=identity.canonical_id)
        return pb.AccessDecisionReceipt(
            decision_id=self._decisions.receipt(actor, access, decision, authority, asked.correlation_id),
            request=asked,
            allowed=decision.allowed,
            decision="ALLOW" if decision.allowed else "DENY",
            effective_access_level=int(decision.level),
            actor=me,
            subject=me if grant is None else _ref(grant.subject),
            root_subject=me if grant is None else _ref(grant.root_subject),
            authority_mode="direct" if grant is None else "on_behalf_of",
            grant_id=authority.grant_id,
            root_grant_id="" if grant is None else grant.root_grant_id,
            evaluated_at_ms=self._clock.now_ms(),
            expires_at_ms=decision.until_ms,
            denial_code="" if decision.allowed else Code.PERMISSION_DENIED,
            delivery_target=target,
        )

    def checked_receipt(
        self, actor: Actor, asked: pb.ResourceAccessRequest, authority: Authority | None, target: str
    ) -> pb.AccessDecisionReceipt:
        """Make the receipt of a message that is sent on condition of an access.

        Raises RequestError if the access is not allowed. Never waits.
        """
        try:
            receipt = self.receipt(actor, asked, authority or DIRECT, target)
        except (RuleError, TextError) as error:
            raise RequestError(Code.INVALID_ARGUMENT, f"checked_access: {error}") from None
        if not receipt.allowed:
            what = f"{asked.operation or 'the access'} to {shown(asked.resource_type)}:{shown(asked.resource_id)}"
            raise RequestError(Code.PERMISSION_DENIED, f"not delivered: {what} is not allowed ({receipt.decision_id})")
        return receipt

    def check_condition(self, actor: Actor, asked: pb.ResourceAccessRequest, authority: Authority, target: str) -> None:
        """Check the condition of a message before its receiver is given a grant.

        A yes is not recorded: the receipt of the message is. Raises RequestError.
        """
        with contextlib.suppress(RuleError, TextError):
            if self.decide(actor, question(asked), authority).allowed:
                return
        self.checked_receipt(actor, asked, authority, target)

    def may_credit_metrics(self, actor: Actor) -> bool:
        access = AccessQuestion("send_message", "capability", Capability.METRIC_CREDIT, "", AccessLevel.ADMIN)
        return self._report(actor, access, DIRECT, self.decide(actor, access)).allowed

    def require(self, actor: Actor, access: AccessQuestion, authority: Authority = DIRECT) -> AccessDecision:
        """Decide on an access, and report it. Raises RequestError for a no."""
        decision = self._report(actor, access, authority, self.decide(actor, access, authority))
        if not decision.allowed:
            raise RequestError(Code.PERMISSION_DENIED, decision.reason)
        return decision

    def refusal(self, actor: Actor, access: AccessQuestion, authority: Authority, why: str) -> RequestError:
        """Report a refusal whose reason the caller has found, and return it."""
        self._report(actor, access, authority, AccessDecision(False, why))
        return RequestError(Code.PERMISSION_DENIED, why)

    def explain(self, principal_type: str, principal_id: str, resource_type: str, resource_id: str) -> Explanation:
        """Return the ladder's verdict about a principal, with all that it rests on."""
        own = workspace_of(principal_type, principal_id)
        return self._index.explain(
            principal_type, principal_id, resource_type, resource_id, self._clock.now_ms(), own_workspace=own
        )

    def lock_of(self, actor: Actor) -> Lock | None:
        """Return the lock that bars an actor, or a maker of its token; None for none."""
        identity, now_ms = actor.identity, self._clock.now_ms()
        lock = self._index.locked(identity.type_name, identity.canonical_id, identity.text, now_ms)
        if lock is None and (actor.makers or actor.creators):
            for maker in (*actor.makers, *actor.creators):
                principal_type, _, principal_id = maker.partition(":")
                identity_text = _identity_text(principal_type, principal_id)
                lock = lock or self._index.locked(principal_type, principal_id, identity_text, now_ms)
        return lock

    def may_read(self, identity: Identity, workspace: str) -> bool:
        """Return whether rules let a participant read a workspace, connected or not.

        Its credential counts for nothing here, nor do groups that the credential names. Reports no
        decision.
        """
        now_ms = self._clock.now_ms()
        if self._index.locked(identity.type_name, identity.canonical_id, identity.text, now_ms) is not None:
            return False
        access = AccessQuestion("connect", "workspace", workspace, workspace, AccessLevel.READ)
        principal = identity.type_name, identity.canonical_id
        return self._verdict(principal, access, identity.workspace, (), now_ms).level >= AccessLevel.READ

    def session_may_read(self, actor: Actor, workspace: str) -> bool:
        """Return whether an actor may read a workspace now. Reports no decision."""
        access = AccessQuestion("connect", "workspace", workspace, workspace, AccessLevel.READ)
        return self.decide(actor, access).allowed

    def forget_verdicts(self) -> None:
        """Ask the index anew for every verdict."""
        self._cache.clear()
        self._kv_decisions.clear()

    def forget_kv_decisions(self) -> None:
        """Decide anew what sessions may do with keys: one rests on another credential."""
        self._kv_decisions.clear()

    def now_ms(self) -> int:
        """Return the time by which this authorizer decides, in Unix ms."""
        return self._clock.now_ms()

    # -- deciding ----------------------------------------------------------------------------------

    def decide(self, actor: Actor, access: AccessQuestion, authority: Authority = DIRECT) -> AccessDecision:
        """Decide on an access, and record nothing. Never waits."""
        now_ms = self._clock.now_ms()
        if access.resource_type == "permission":
            resource_type, resource_id = current_resource(access.resource_type, access.resource_id)
            access = replace(access, resource_type=resource_type, resource_id=resource_id)
        refusal = self._refusal_before_rules(actor, access, authority, now_ms)
        if refusal is not None:
            return AccessDecision(False, refusal, resource=(access.resource_type, access.resource_id))
        identity = actor.identity
        grant = authority.grant
        cap = actor.cap
        if grant is None:
            principal, own, groups = (identity.type_name, identity.canonical_id), identity.workspace, actor.groups
        else:
            principal, own, groups = grant.subject, workspace_of(*grant.subject), ()
            cap = min(cap, grant.max_level)
        verdict = self._verdict(principal, access, own, groups, now_ms)
        most, makers_until_ms = SUPERADMIN, 0
        has_makers = actor.makers or actor.creators or (grant is not None and grant.makers)
        if has_makers and bounded_by_makers(access.resource_type, verdict.tier):
            most, makers_until_ms = self._level_of_makers(makers_of(actor, authority), access, now_ms)
        cap = min(cap, most)
        level = min(verdict.level, cap)
        allowed = level >= access.level and access.level > AccessLevel.NONE
        reason = "" if allowed else self._denial(actor, access, authority, verdict, cap)
        until_ms = _earlier(verdict.until_ms, makers_until_ms)
        if grant is not None and grant.expires_ms and not 0 < until_ms <= grant.expires_ms:
            until_ms = grant.expires_ms
        return AccessDecision(
            allowed,
            reason,
            level,
            verdict.rule_id,
            verdict.tier >= FALLBACK_TIER,
            until_ms,
            (access.resource_type, access.resource_id),
        )

    def _level_of_makers(
        self, makers: Iterable[tuple[str, str]], access: AccessQuestion, now_ms: int
    ) -> tuple[AccessLevel, int]:
        """Return the highest level that the makers of a token leave it, and until when.

        A token that lets in other principals must not make an administrator of its maker.
        """
        most, until_ms = SUPERADMIN, 0
        for maker in makers:
            verdict = self._verdict(maker, access, workspace_of(*maker), (), now_ms)
            most = min(most, most_of_maker(access.resource_type, verdict.level))
            until_ms = _earlier(until_ms, verdict.until_ms)
        return most, until_ms

    def lock_among(self, principals: Iterable[tuple[str, str]]) -> str | None:
        """Return which of these principals is locked and why, as a phrase; None: none is."""
        now_ms = self._clock.now_ms()
        for principal_type, principal_id in principals:
            identity_text = _identity_text(principal_type, principal_id)
            lock = self._index.locked(principal_type, principal_id, identity_text, now_ms)
            if lock is not None:
                return f"{principal_id} is locked ({lock.reason or lock.pattern})"
        return None

    def _refusal_before_rules(
        self, actor: Actor, access: AccessQuestion, authority: Authority, now_ms: int
    ) -> str | None:
        identity = actor.identity
        lock = self.lock_of(actor)
        if lock is not None:
            return f"{identity.canonical_id} is locked: {lock.reason or lock.pattern}"
        workspace = access.resource_id if access.resource_type == "workspace" else access.workspace
        if workspace and not actor.allows_workspace(workspace):
            return f"this credential does not reach workspace {shown(workspace)}"
        grant = authority.grant
        if grant is None:
            return None
        locked = self.lock_among((grant.subject, *grant.passed_by))
        if locked is not None:
            return f"{locked}, by whose grant this would be done"
        return grant.refusal(access.operation, access.workspace, access.resource_type, access.resource_id)

    def _verdict(
        self, principal: tuple[str, str], access: AccessQuestion, own: str, groups: tuple[str, ...], now_ms: int
    ) -> Verdict:
        # Own workspaces count for the workspace itself and for what lies in it.
        own = own if own and own == access.workspace else ""
        key = (*principal, access.resource_type, access.resource_id, own, groups)
        found = self._cache.get(key)
        if found is not None and (not found.until_ms or found.until_ms > now_ms):
            self._hits += 1
            return found
        self._misses += 1
        verdict = self._index.decide(
            *principal, access.resource_type, access.resource_id, now_ms, own_workspace=own, groups=groups
        )
        if len(access.resource_type) + len(access.resource_id) <= MAX_CACHED_NAME:
            if len(self._cache) >= MAX_CACHED:
                self._cache.clear()
            self._cache[key] = verdict
        return verdict

    def _denial(
        self, actor: Actor, access: AccessQuestion, authority: Authority, verdict: Verdict, cap: AccessLevel
    ) -> str:
        who = actor.identity.canonical_id if authority.grant is None else authority.grant.subject[1]
        what = f"{access.resource_type}:{access.resource_id}"
        if min(verdict.level, AccessLevel.SUPERADMIN) >= access.level > cap:
            limit = "this credential" if authority.grant is None else "the grant or this credential"
            return f"{access.operation} needs {access.level.name} on {what}, and {limit} gives {cap.name} at most"
        return f"{access.operation} needs {access.level.name} on {what}, and {who} has {verdict.level.name} ({verdict.reason})"

    def _own_space(self, actor: Actor, level: AccessLevel) -> AccessDecision:
        """Decide on an actor's exclusive keys: rules do not apply, locks and caps do."""
        access = AccessQuestion("kv", "kv_scope", "exclusive", "", level)
        refusal = self._refusal_before_rules(actor, access, DIRECT, self._clock.now_ms())
        if refusal is not None:
            return AccessDecision(False, refusal)
        if actor.cap < level:
            return AccessDecision(False, f"this credential gives {actor.cap.name} at most", actor.cap)
        return AccessDecision(True, level=level)

    def _to_itself(self, actor: Actor, access: AccessQuestion, authority: Authority) -> AccessDecision | None:
        """Allow a message to a user in the name of that user, if no rule decides."""
        grant = authority.grant
        identity = actor.identity
        principal = (identity.type_name, identity.canonical_id) if grant is None else grant.subject
        cap = actor.cap if grant is None else min(actor.cap, grant.max_level)
        if principal != ("user", access.resource_id) or cap < access.level:
            return None
        decision = self.decide(actor, access, authority)
        return replace(decision, allowed=True, reason="", level=access.level) if decision.is_fallback else None

    def _neighbour(
        self, actor: Actor, access: AccessQuestion, workspace: str, authority: Authority
    ) -> AccessDecision | None:
        """Allow a message to a user who may enter the sender's workspace.

        That is part of rule "own": a workspace is shared by those who may enter it.
        """
        if not workspace or self._index.rule(OWN_RULE_ID) is None or not authority.is_direct:
            return None
        if not self.decide(actor, access).is_fallback:
            return None
        here = self.decide(actor, AccessQuestion(access.operation, "workspace", workspace, workspace, access.level))
        enter = AccessQuestion(access.operation, "workspace", workspace, workspace, AccessLevel.READ)
        theirs = self._verdict(("user", access.resource_id), enter, "", (), self._clock.now_ms())
        if not here.allowed or theirs.level < AccessLevel.READ:
            return None
        return here

    def _asked_of_send(
        self, actor: Actor, topic: Topic, workspace: str, declared_workspace: str
    ) -> Sequence[AccessQuestion]:
        """Return the accesses that a send to a topic needs, at least one."""
        send, level = "send_message", AccessLevel.READWRITE
        kind = topic.kind
        if kind in _USERS:
            return [AccessQuestion(send, "user", topic.parts[0], "", level)]
        if kind is TopicKind.SERVICE:
            return [AccessQuestion(send, "service_impl", topic.parts[0], "", level)]
        if kind is TopicKind.BRIDGE:
            return [AccessQuestion(send, "topic", topic.text, "", level)]
        broadcast = _BROADCASTS.get(kind)
        if broadcast is not None:
            # The sender speaks about its own workspace, or needs to be allowed to about others.
            if declared_workspace == workspace:
                if not workspace:
                    return [AccessQuestion(send, "topic", topic.text, "", level)]
                return [AccessQuestion(send, "workspace", workspace, workspace, level)]
            needed = [AccessQuestion(send, "capability", broadcast, declared_workspace, level)]
            if declared_workspace:
                needed.append(AccessQuestion(send, "workspace", declared_workspace, declared_workspace, level))
            return needed
        target = topic.workspace or workspace
        return [AccessQuestion(send, "workspace", target, target, level)]

    def _report(
        self, actor: Actor, access: AccessQuestion, authority: Authority, decision: AccessDecision
    ) -> AccessDecision:
        self._decisions.decided(actor, access, decision, authority)
        return decision

    # -- what changes ------------------------------------------------------------------------------

    def _rules_changed(self, items: Sequence[tuple[str, Any]], everything: bool) -> None:
        index = self._index
        self.forget_verdicts()
        if everything:
            kept = {rule_id for rule_id, _ in items}
            for rule in [one for one in index.rules() if one.rule_id not in kept]:
                index.remove_rule(rule.rule_id)
        for rule_id, value in items:
            if value is None:
                index.remove_rule(rule_id)
            else:
                index.put_rule(records.rule_of(rule_id, value))

    def _fallbacks_changed(self, items: Sequence[tuple[str, Any]], everything: bool) -> None:
        self.forget_verdicts()
        if everything:
            for category in list(self._index.fallbacks()):
                self._index.set_fallback(category, None)
        for category, level in items:
            self._index.set_fallback(category, None if level is None else AccessLevel(level))

    def _members_changed(self, items: Sequence[tuple[str, Any]], everything: bool) -> None:
        index = self._index
        self.forget_verdicts()
        if everything:
            for one in list(index.memberships()):
                index.remove_membership(one.kind, one.name, one.member_type, one.member_id)
        # In their order: a node that was away reads of a membership and of its end at once.
        for key, value in items:
            member = records.member_of(key, value)
            if value is None:
                index.remove_membership(member.kind, member.name, member.member_type, member.member_id)
            else:
                index.put_membership(member)

    def _locks_changed(self, items: Sequence[tuple[str, Any]], everything: bool) -> None:
        index = self._index
        self.forget_verdicts()
        if everything:
            for lock in list(index.locks()):
                index.remove_lock(lock.lock_id)
        for lock_id, value in items:
            if value is None:
                index.remove_lock(lock_id)
            else:
                index.put_lock(records.lock_of(lock_id, value))


def _identity_text(principal_type: str, principal_id: str) -> str:
    """Return what locks match: a lock of all windows of a user is a lock of the user."""
    return f"us::{principal_id}::" if principal_type == "user" else principal_id


def _ref(principal: tuple[str, str]) -> pb.PrincipalRef:
    return pb.PrincipalRef(principal_type=principal[0], principal_id=principal[1])


def _earlier(until_ms: int, other_ms: int) -> int:
    """Return the earlier of two moments, of which 0 is never."""
    return min(until_ms, other_ms) if until_ms and other_ms else until_ms or other_ms


def makers_of(actor: Actor, authority: Authority) -> Iterator[tuple[str, str]]:
    """Yield the principals, bounded by rules, that have made an actor's token.

    On behalf also those that have made the tokens by which the grant was made.
    """
    grant = authority.grant
    for maker in (*actor.makers, *(actor.creators if grant is None else grant.makers)):
        principal_type, _, principal_id = maker.partition(":")
        if principal_type != OPERATOR:
            yield principal_type, principal_id


def bounded_by_makers(resource_type: str, tier: int = 0) -> bool:
    """Return whether a token gives a right only as far as its makers have it.

    `tier`: of its holder's verdict. A capability of all of a type is no administration.
    """
    return resource_type in _ADMINISTERED and not (resource_type == "capability" and tier in _OF_ALL)


def most_of_maker(resource_type: str, level: AccessLevel) -> AccessLevel:
    """Return the highest level that a maker who has a level leaves its token."""
    if resource_type == "workspace":
        return max(level, AccessLevel.READWRITE)  # beyond it a level administers the workspace
    return level


def workspace_of(principal_type: str, principal_id: str) -> str:
    """Return the workspace that a principal belongs to, "" for none."""
    if principal_type not in {"agent", "task"}:
        return ""
    try:
        return Identity.parse(principal_id, strict=False).workspace
    except ValueError:
        return ""
