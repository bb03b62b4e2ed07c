"""Applies access policies: all changes of a document in one transaction, or none.

A policy is planned on this node: its difference from the rules in memory, the state after it, and
its tests against that state, in a thread, as 100,000 rules take seconds. It is then checked as if
its changes came one by one: a caller gives no more than it has (granting.py). That is done in
slices, between which other sessions are served. The transaction makes the changes if no other
change came between; otherwise the policy is planned anew.

On the wire: `acl_op` GRANT with the resource type "policy" (docs/wire.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec
import trio

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.holdings import Holdings, given_by
from aether_trio.model.access.ladder import AccessIndex
from aether_trio.model.access.policy import (
    AccessState,
    Action,
    ChangeLine,
    Difference,
    FallbackLevel,
    Policy,
    PolicyChange,
    PolicyGroup,
    PolicyOutcome,
    apply_changes,
    difference,
    run_tests,
    state_problems,
)
from aether_trio.model.access.policy_reading import checked_policy
from aether_trio.model.access.rules import GROUP, ROLE, Lock, Member, Rule, RuleError
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.ids import IdFactory
from aether_trio.model.text import TextError
from aether_trio.services.access import records
from aether_trio.services.access.audit_events import change_event
from aether_trio.services.access.authorizer import AccessQuestion, Actor, Admin, Authority
from aether_trio.services.access.changes import AccessChanges, Draft
from aether_trio.services.access.granting import Granting, LastingRights, cap_of, check_reach, moments_of, who_gains
from aether_trio.services.access.records import GroupRecord
from aether_trio.services.access.rule_authorizer import RuleAuthorizer
from aether_trio.storage.base import Database, Program

T = TypeVar("T")
E = TypeVar("E", Rule, Member, Lock, PolicyGroup, FallbackLevel)

PLAN: Final = "plan"
APPLY: Final = "apply"
APPLY_POLICY: Final = "acl_apply_policy"

ATTEMPTS: Final = 5
"""Plans that are made, while others change rules, before the caller is asked to try again."""
MAX_DOCUMENT_BYTES: Final = 8 * 1024 * 1024
"""Of a policy as a document, some 80,000 rules; a message has 10 MiB at most."""
SHOWN_BYTES: Final = 512 * 1024
"""Of changes, and of failed tests, in an answer: it has to fit into a message to any client."""
AUDITED_LINES: Final = 100
SHOWN_FAILURES: Final = 5
STEPS: Final = 200
"""Comparisons of rights between two checkpoints."""


class PolicyOrder(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a client sends: a policy, and how it is to be applied.

    `expected`: the version of the state that the plan was made of; -1: any.
    """

    version: int
    policy: Policy
    prune: bool = False
    expected: int = -1


class PolicyAnswer(msgspec.Struct, frozen=True):
    """What a plan found: its changes and failed tests, of each SHOWN_BYTES at most."""

    state: int
    """The version of the access data that it was compared with."""
    digest: str
    added: int
    changed: int
    removed: int
    unnamed: int
    lines: tuple[ChangeLine, ...]
    tests: int
    failed: int
    failures: tuple[PolicyOutcome, ...]
    caveat: str = ""


@dataclass(frozen=True, slots=True)
class _Plan:
    """A policy compared with the state of one version."""

    version: int
    found: Difference
    index: AccessIndex
    problems: list[str]
    outcomes: list[PolicyOutcome]
    answer: PolicyAnswer


class _OutdatedPlan(Exception):
    """Access data have changed since a policy was planned."""


def decoded(document: str) -> PolicyOrder:
    """Return the order in a client's document. Raises RequestError."""
    try:
        order = msgspec.json.decode(document, type=PolicyOrder)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise RequestError(Code.INVALID_ARGUMENT, f"the policy document is malformed: {error}") from None
    if order.version != 1:
        raise RequestError(Code.INVALID_ARGUMENT, f"unknown version {order.version} of policy documents; 1 is known")
    try:
        return msgspec.structs.replace(order, policy=checked_policy(order.policy))
    except (RuleError, TextError) as error:
        raise RequestError(Code.INVALID_ARGUMENT, str(error)) from None


class PolicyService:
    """Plans and applies policies for clients."""

    def __init__(
        self,
        database: Database,
        authorizer: RuleAuthorizer,
        changes: AccessChanges,
        granting: Granting,
        ids: IdFactory,
        clock: Clock,
    ) -> None:
        self._database = database
        self._authorizer = authorizer
        self._changes = changes
        self._ids = ids
        self._clock = clock
        self._granting = granting
        self._planning = trio.Lock()
        """A plan of 80,000 rules beside as many takes 300 MiB, so one is made at a time."""

    async def operate(self, actor: Actor, authority: Authority, action: str, document: str) -> PolicyAnswer:
        """Plan a policy ("plan") or apply it ("apply"). Raises RequestError."""
        if action not in {PLAN, APPLY}:
            raise RequestError(Code.INVALID_ARGUMENT, f"a policy is for {PLAN} or {APPLY}, not {action[:80]!r}")
        self._check_may(actor, authority, AccessLevel.READ if action == PLAN else AccessLevel.ADMIN)
        if len(document) > MAX_DOCUMENT_BYTES:
            raise RequestError(
                Code.INVALID_ARGUMENT,
                f"the policy has {len(document)} characters as a document; at most {MAX_DOCUMENT_BYTES} are allowed: "
                "divide it, or use groups and patterns",
            )
        async with self._planning:
            return await self._operate(actor, authority, action, document)

    async def _operate(self, actor: Actor, authority: Authority, action: str, document: str) -> PolicyAnswer:
        order = await trio.to_thread.run_sync(decoded, document)
        digest = hashlib.sha256(document.encode()).hexdigest()
        for _ in range(ATTEMPTS):
            plan = await self._plan(actor, order, digest)
            if plan is None:
                continue
            if action == PLAN:
                return plan.answer
            _check_plan(plan, order)
            await self._check_rights(actor, authority, plan)
            if not plan.found.changes:  # or they were made by an order whose answer was lost
                return msgspec.structs.replace(plan.answer, caveat=await self._changes.in_force_now())
            try:
                caveat = await self._commit(actor, authority, plan)
            except _OutdatedPlan:
                continue
            return msgspec.structs.replace(plan.answer, caveat=caveat)
        raise RequestError(
            Code.CIRCUIT_OPEN, "access data change faster than the policy can be compared with them; try again"
        )

    def _check_may(self, actor: Actor, authority: Authority, level: AccessLevel) -> None:
        self._authorizer.require(actor, AccessQuestion(APPLY_POLICY, "admin", Admin.ACL, "", level), authority)
        check_reach(actor)

    # -- planning ----------------------------------------------------------------------------------

    async def _plan(self, actor: Actor, order: PolicyOrder, digest: str) -> _Plan | None:
        """Compare a policy with what this node knows; None if that changes meanwhile."""
        version = self._changes.version
        groups = await self._database.read(records.all_groups)
        if version != self._changes.version:
            return None
        index = self._authorizer.index
        rules, members, locks = list(index.rules()), list(index.memberships()), list(index.locks())
        fallbacks = dict(index.fallbacks())
        now_ms = self._clock.now_ms()
        descriptions = {(one.kind, one.name): one.description for one in groups}

        def plan() -> _Plan:
            state = AccessState.of(rules, descriptions, members, fallbacks, locks)
            found = difference(
                order.policy,
                state,
                now_ms=now_ms,
                by=actor.identity.canonical_id,
                new_id=self._ids.unique,
                prune=order.prune,
            )
            after = apply_changes(state, found.changes)
            problems = state_problems(after)
            if len(after.rules) > records.MAX_RULES:
                problems.append(f"there would be {len(after.rules)} rules; at most {records.MAX_RULES} are allowed")
            trial = after.index()
            outcomes = run_tests(order.policy.tests, trial, now_ms)
            return _Plan(version, found, trial, problems, outcomes, _answer(version, found, outcomes, digest))

        return await trio.to_thread.run_sync(plan)

    # -- what the caller may -----------------------------------------------------------------------

    async def _check_rights(self, actor: Actor, authority: Authority, plan: _Plan) -> None:
        """Raise RequestError if the caller gives more than it has, or gains by it."""
        trial = self._authorizer.by(plan.index)
        now_ms = self._clock.now_ms()
        given: dict[tuple[str, str, int], Rule] = {}
        joined: dict[tuple[str, str], int] = {}
        for steps, (_, new) in enumerate(plan.found.changes, 1):
            if steps % STEPS == 0:
                await trio.lowlevel.checkpoint()
            if isinstance(new, Rule):
                _raise_to(given, new, new.expires_ms)
            if isinstance(new, Member):
                container = new.kind, new.name
                joined[container] = _later(joined.get(container, new.expires_ms), new.expires_ms)
            if isinstance(new, FallbackLevel):
                self._granting.check_fallback(actor, new.category, new.level, authority)
            if isinstance(new, Lock):
                self._granting.check_lock(actor, new)
        for container, ends_ms in joined.items():
            for rule in _rules_through(plan.index, [container], now_ms):
                _raise_to(given, rule, ends_ms)
        await self._check_given(self._granting.lasting(actor, authority), given)
        await self._check_gains(actor, authority, plan.index, now_ms)
        access = AccessQuestion(APPLY_POLICY, "admin", Admin.ACL, "", AccessLevel.ADMIN)
        if not trial.decide(actor, access, authority).allowed:
            raise RequestError(
                Code.INVALID_ARGUMENT,
                f"after it you would not have ADMIN on {Admin.ACL} any more: another administrator may apply it",
            )

    async def _check_given(self, held: LastingRights, given: Mapping[tuple[str, str, int], Rule]) -> None:
        for steps, ((resource_type, resource_id, ends_ms), rule) in enumerate(given.items(), 1):
            what = f"the policy gives {rule.subject} {{}} on {rule.resource}"
            held.check(resource_type, resource_id, rule.level, ends_ms, what)
            if steps % STEPS == 0:
                await trio.lowlevel.checkpoint()

    async def _check_gains(self, actor: Actor, authority: Authority, after: AccessIndex, now_ms: int) -> None:
        """Raise RequestError if the caller would have more than before, now or later."""
        cap = cap_of(actor, authority)
        for holder in self._granting.holders(actor, authority):
            before = Holdings(self._authorizer.index, holder, now_ms)
            trial = Holdings(after, holder, now_ms)
            if before.terms == trial.terms:
                continue
            for moment_ms in moments_of(now_ms, before.ends() | trial.ends()):
                old, new = before.at(moment_ms), trial.at(moment_ms)
                gone = [rule for rule in old.rules() if not new.has(rule)]
                gain = new.gain(old.held_down(gone, cap), cap)
                if gain is not None:
                    raise RequestError(
                        Code.PERMISSION_DENIED,
                        f"by the policy {who_gains(actor, holder)} would have {gain.new.name} instead of "
                        f"{gain.old.name} on {gain.rule.resource}: another administrator may apply it",
                    )
                await trio.lowlevel.checkpoint()

    # -- the change --------------------------------------------------------------------------------

    async def _commit(self, actor: Actor, authority: Authority, plan: _Plan) -> str:
        """Make the changes of a plan; return the caveat. Raises _OutdatedPlan."""

        def check() -> None:
            self._check_may(actor, authority, AccessLevel.ADMIN)
            if self._changes.version != plan.version:
                raise _OutdatedPlan

        def program(draft: Draft) -> Program[None]:
            by = actor.identity.canonical_id
            yield from _write(draft, plan.found.changes, by, self._ids.unique)
            draft.audit(
                change_event(
                    actor,
                    authority,
                    APPLY_POLICY,
                    "policy",
                    plan.answer.digest,
                    now_ms=draft.now_ms,
                    added=plan.answer.added,
                    changed=plan.answer.changed,
                    removed=plan.answer.removed,
                    changes=[str(one.line()) for one in plan.found.changes[:AUDITED_LINES]],
                )
            )

        done = await self._changes.commit(program, check)
        return done.caveat


def _check_plan(plan: _Plan, order: PolicyOrder) -> None:
    """Raise RequestError if a plan may not be applied."""
    if order.expected not in {-1, plan.version}:
        raise RequestError(
            Code.INVALID_ARGUMENT,
            "access data have changed since the policy was compared with them; look at the differences again",
        )
    if plan.problems:
        raise RequestError(Code.INVALID_ARGUMENT, "; ".join(plan.problems[:SHOWN_FAILURES]))
    failed = [one for one in plan.outcomes if not one.passed]
    if failed:
        shown = "; ".join(f"line {one.test.line}: {one.test.text} ({one.why})" for one in failed[:SHOWN_FAILURES])
        raise RequestError(Code.INVALID_ARGUMENT, f"{len(failed)} of {len(plan.outcomes)} tests fail: {shown}")


def _answer(version: int, found: Difference, outcomes: Sequence[PolicyOutcome], digest: str) -> PolicyAnswer:
    failed = [one for one in outcomes if not one.passed]
    return PolicyAnswer(
        version,
        digest,
        found.count("add"),
        found.count("change"),
        found.count("remove"),
        found.unnamed,
        _first(one.line() for one in found.changes),
        len(outcomes),
        len(failed),
        _first(failed),
    )


def _first(entries: Iterable[T]) -> tuple[T, ...]:
    """Return as many entries as have SHOWN_BYTES together, as JSON."""
    shown, left = [], SHOWN_BYTES
    for one in entries:
        left -= len(msgspec.json.encode(one))
        if left < 0:
            break
        shown.append(one)
    return tuple(shown)


def _raise_to(given: dict[tuple[str, str, int], Rule], rule: Rule, ends_ms: int) -> None:
    """Keep the highest of the rules for a resource that end together."""
    for resource in given_by(rule):
        key = *resource, min(filter(None, (rule.expires_ms, ends_ms)), default=0)
        known = given.get(key)
        if known is None or known.level < rule.level:
            given[key] = rule


def _later(one_ms: int, other_ms: int) -> int:
    """Return the later of two ends, of which 0 is never."""
    return max(one_ms, other_ms) if one_ms and other_ms else 0


def _rules_through(index: AccessIndex, containers: Iterable[tuple[str, str]], now_ms: int) -> Iterator[Rule]:
    """Yield the live rules that members of these groups and roles have by them."""
    subjects = {text for kind, name in containers for text in index.subjects(kind, name, now_ms)}
    if not subjects:
        return
    for rule in index.rules_of(subjects):
        if rule.principal_type in {GROUP, ROLE} and rule.is_live(now_ms):
            yield rule


def _entries(changes: Iterable[PolicyChange], of: type[E], *actions: Action) -> list[E]:
    """Return what changes add, change or remove, of one type of things."""
    return [one.entry for one in changes if one.action in actions and isinstance(one.entry, of)]


def _write(draft: Draft, changes: Sequence[PolicyChange], by: str, new_id: Callable[[], str]) -> Program[None]:
    """Write the changes of a policy: removals first, then groups, then what they hold."""
    for member in _entries(changes, Member, "remove"):
        yield from records.delete_member(draft, member.kind, member.name, member.member_type, member.member_id)
    yield from records.delete_rules(draft, [one.rule_id for one in _entries(changes, Rule, "remove")])
    for group in _entries(changes, PolicyGroup, "remove"):
        yield from records.delete_group(draft, group.kind, group.name)
    for group in _entries(changes, PolicyGroup, "add"):
        new = GroupRecord(group.kind, group.name, new_id(), group.description, by, draft.now_ms, {})
        yield from records.create_group(draft, new)
    for group in _entries(changes, PolicyGroup, "change"):
        yield from records.describe_group(draft, group.kind, group.name, group.description)
    yield from records.put_members(draft, _entries(changes, Member, "add", "change"))
    yield from records.insert_rules(draft, _entries(changes, Rule, "add"))
    yield from records.update_rules(draft, _entries(changes, Rule, "change"))
    for category, _ in _entries(changes, FallbackLevel, "remove"):
        yield from records.delete_fallback(draft, category)
    for category, level in _entries(changes, FallbackLevel, "add", "change"):
        yield from records.put_fallback(draft, category, level, by)
    for lock in _entries(changes, Lock, "remove"):
        yield from records.delete_lock(draft, lock.lock_id)
    for lock in _entries(changes, Lock, "add", "change"):
        yield from records.put_lock(draft, lock)
