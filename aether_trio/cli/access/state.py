"""Reads the whole access data of a gateway, page by page."""

from __future__ import annotations

from aether_trio.cli.access.asking import Ask
from aether_trio.model.access import AccessLevel
from aether_trio.model.access.policy import AccessState
from aether_trio.model.access.rules import Lock, Member, Rule
from aether_trio.wire.pb import aether_pb2 as pb

Op = pb.ACLOperation
_PAGE = 1000


async def list_all(ask: Ask, wanted: pb.ACLRuleFilter) -> list[pb.ACLRuleInfo]:
    """Return all rules that fit a filter."""
    found: list[pb.ACLRuleInfo] = []
    while True:
        wanted.limit, wanted.offset = _PAGE, len(found)
        page = await ask(Op(op=Op.LIST_RULES, rule_filter=wanted))
        found += page.rules
        if not page.rules or len(found) >= page.total_rules:
            return found


async def read_state(ask: Ask) -> AccessState:
    """Return all rules, memberships, fallbacks and locks."""
    rules, members, fallbacks, locks = [
        await list_all(ask, pb.ACLRuleFilter(resource_type=kind)) for kind in ("", "member", "fallback", "lock")
    ]
    groups = {("group", one.group_name): one.description for one in (await ask(Op(op=Op.LIST_GROUPS))).groups}
    roles = {("role", one.role_name): one.description for one in (await ask(Op(op=Op.LIST_ROLES))).roles}
    return AccessState.of(
        map(_rule, rules),
        groups | roles,
        map(_member, members),
        {one.rule_id: AccessLevel(one.access_level) for one in fallbacks},
        map(read_lock, locks),
    )


def _rule(one: pb.ACLRuleInfo) -> Rule:
    return Rule(
        one.rule_id,
        one.principal_type,
        one.principal_id,
        one.resource_type,
        one.resource_id,
        AccessLevel(one.access_level),
        one.granted_by,
        one.granted_at * 1000,
        one.expires_at * 1000,
        one.reason,
    )


def _member(one: pb.ACLRuleInfo) -> Member:
    kind, _, name = one.resource_id.partition(":")
    return Member(
        kind, name, one.principal_type, one.principal_id, one.granted_by, one.granted_at * 1000, one.expires_at * 1000
    )


def read_lock(one: pb.ACLRuleInfo) -> Lock:
    """Return the lock that is listed as this rule."""
    return Lock(one.rule_id, one.principal_id, one.reason, one.granted_by, one.granted_at * 1000, one.expires_at * 1000)
