"""Gives a new database the rules with which it begins (model/access/seeds.py)."""

from __future__ import annotations

import structlog

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.ladder import AccessIndex
from aether_trio.model.access.rules import Member, Rule
from aether_trio.model.access.seeds import ADMINISTRATORS, SYSTEM, SeedRule, seeds
from aether_trio.model.audit import AuditEvent, EventType
from aether_trio.services.access import records
from aether_trio.services.access.changes import AccessChanges, Draft
from aether_trio.services.access.records import GroupRecord
from aether_trio.storage.base import Program

logger = structlog.get_logger("aether.access")


async def seed(changes: AccessChanges, name: str) -> None:
    """Write the seeds `name`, unless the database has begun already.

    Logs when it began with others: the rules in it stay. Raises StorageUnavailable.
    """

    def program(draft: Draft) -> Program[str]:
        known = yield from records.seeded()
        if known:
            return known
        yield from _write(draft, name)
        return name

    done = await changes.commit(program)
    if done.result != name:
        logger.warning(
            "the access rules of this database began otherwise than access.default says; they stay as they are",
            database=done.result,
            setting=name,
        )


def _write(draft: Draft, name: str) -> Program[None]:
    chosen = seeds(name)
    rules = [_rule(one, draft.now_ms) for one in chosen.rules]
    if (yield from records.has_rules()):
        for rule in rules:
            yield from records.put_rule(draft, rule)
    else:
        yield from records.insert_rules(draft, rules)
    yield from records.put_fallbacks(draft, chosen.fallbacks, SYSTEM)
    group = GroupRecord("role", ADMINISTRATORS, ADMINISTRATORS, "administer the gateway", SYSTEM, draft.now_ms, {})
    yield from records.create_group(draft, group)
    for member_type, member_id in chosen.administrators:
        member = Member("role", ADMINISTRATORS, member_type, member_id, SYSTEM, draft.now_ms)
        yield from records.put_member(draft, member)
    yield from records.mark_seeded(name)
    draft.audit(
        AuditEvent(
            at_ms=draft.now_ms,
            event_type=EventType.ACL,
            operation="acl_seeded",
            actor_type="wildcard",
            actor_id=SYSTEM,
            metadata={"seeds": name, "rules": len(chosen.rules)},
        )
    )


def seeded_index(name: str) -> AccessIndex:
    """Return an index with the seeds `name` alone, for tests and rehearsals."""
    index = AccessIndex()
    chosen = seeds(name)
    for one in chosen.rules:
        index.put_rule(_rule(one, 0))
    for category, level in chosen.fallbacks.items():
        index.set_fallback(category, AccessLevel(level))
    for member_type, member_id in chosen.administrators:
        index.put_membership(Member("role", ADMINISTRATORS, member_type, member_id))
    return index


def _rule(one: SeedRule, now_ms: int) -> Rule:
    return Rule(
        one.rule_id,
        one.principal_type,
        one.principal_id,
        one.resource_type,
        one.resource_id,
        one.level,
        SYSTEM,
        now_ms,
        0,
        one.reason,
    )
