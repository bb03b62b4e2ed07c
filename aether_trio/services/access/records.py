"""Reads and writes rules, groups, roles, fallbacks and locks: database programs.

Programs that change something take the Draft of their change and record in it what other nodes are
to apply. Texts are checked before (model/access/rules.py): none has a zero byte.

A deleted group or role takes its memberships, the memberships that it has in others, and its rules
along, so a later one of the same name begins without rights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.patterns import escape
from aether_trio.model.access.rules import Lock, Member, Rule
from aether_trio.services.access.changes import Draft
from aether_trio.storage.base import Execute, ExecuteMany, Fetch, Program, Row, Value

RULE: Final = "rule"
FALLBACK: Final = "fallback"
GROUP: Final = "group"
"""The kind of items about groups and roles; the key is "group:NAME" or "role:NAME"."""
MEMBER: Final = "member"
LOCK: Final = "lock"

DECISIVE: Final = (RULE, FALLBACK, MEMBER, LOCK)
"""Kinds of items by which decisions on access may change."""

MAX_RULES: Final = 200_000
MAX_PAGE: Final = 1000

_RULE: Final = (
    "rule_id, principal_type, principal_id, resource_type, resource_id, level, granted_by, granted_ms, expires_ms, "
    "reason"
)
_MEMBER: Final = "kind, name, member_type, member_id, granted_by, granted_ms, expires_ms"
_LOCK: Final = "lock_id, pattern, reason, locked_by, locked_ms, expires_ms"
_GROUP: Final = "kind, name, group_id, description, created_by, created_ms, metadata"
_SAME: Final = "principal_type = $1 AND principal_id = $2 AND resource_type = $3 AND resource_id = $4"


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """A group or role, as stored; `kind` is "group" or "role"."""

    kind: str
    name: str
    group_id: str
    description: str
    created_by: str
    created_ms: int
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class FallbackRecord:
    """The level of a category, such as "user_workspace", where no rule decides."""

    category: str
    level: AccessLevel
    updated_by: str
    updated_ms: int


@dataclass(frozen=True, slots=True)
class RuleWanted:
    """A filter of rules; an empty field fits everything."""

    principal_type: str = ""
    principal_id: str = ""
    resource_type: str = ""
    resource_id: str = ""


# -- what items hold -------------------------------------------------------------------------------


def rule_value(rule: Rule) -> list[Any]:
    """Return the value of a rule's item: its fields after the id."""
    return [
        rule.principal_type, rule.principal_id, rule.resource_type, rule.resource_id, int(rule.level),
        rule.granted_by, rule.granted_ms, rule.expires_ms, rule.reason,
    ]  # fmt: skip


def rule_of(rule_id: str, value: Sequence[Any]) -> Rule:
    """Return the rule of an item, the inverse of `rule_value`."""
    principal_type, principal_id, resource_type, resource_id, level, granted_by, granted_ms, expires_ms, reason = value
    return Rule(
        rule_id,
        principal_type,
        principal_id,
        resource_type,
        resource_id,
        AccessLevel(level),
        granted_by,
        granted_ms,
        expires_ms,
        reason,
    )


def member_key(member: Member) -> str:
    """Return the key of a membership's item. Its parts have no control characters."""
    return f"{member.kind}\x1f{member.name}\x1f{member.member_type}\x1f{member.member_id}"


def member_of(key: str, value: Sequence[Any] | None) -> Member:
    """Return the membership of an item; of a deleted one its names alone."""
    kind, name, member_type, member_id = key.split("\x1f")
    granted_by, granted_ms, expires_ms = value or ("", 0, 0)
    return Member(kind, name, member_type, member_id, granted_by, granted_ms, expires_ms)


def lock_of(lock_id: str, value: Sequence[Any]) -> Lock:
    """Return the lock of an item."""
    return Lock(lock_id, *value)


# -- loading ---------------------------------------------------------------------------------------


def load_rules() -> Program[list[tuple[str, Any]]]:
    """Read all rules, as items."""
    rows = yield Fetch(f"SELECT {_RULE} FROM access_rules")
    return [(row[0], list(row[1:])) for row in rows]


def load_fallbacks() -> Program[list[tuple[str, Any]]]:
    """Read all fallbacks, as items."""
    rows = yield Fetch("SELECT category, level FROM access_fallbacks")
    return [(category, level) for category, level in rows]


def load_members() -> Program[list[tuple[str, Any]]]:
    """Read all memberships of groups and roles, as items."""
    rows = yield Fetch(f"SELECT {_MEMBER} FROM access_members")
    return [("\x1f".join(row[:4]), list(row[4:])) for row in rows]


def load_locks() -> Program[list[tuple[str, Any]]]:
    """Read all locks, as items."""
    rows = yield Fetch(f"SELECT {_LOCK} FROM access_locks")
    return [(row[0], list(row[1:])) for row in rows]


# -- rules -----------------------------------------------------------------------------------------


def _rule(row: Row) -> Rule:
    return rule_of(row[0], row[1:])


def find_rule(rule_id: str) -> Program[Rule | None]:
    """Read the rule with an id."""
    rows = yield Fetch(f"SELECT {_RULE} FROM access_rules WHERE rule_id = $1", (rule_id,))
    return _rule(rows[0]) if rows else None


def find_same(principal_type: str, principal_id: str, resource_type: str, resource_id: str) -> Program[Rule | None]:
    """Read the rule for this principal and resource."""
    names = (principal_type, principal_id, resource_type, resource_id)
    rows = yield Fetch(f"SELECT {_RULE} FROM access_rules WHERE {_SAME}", names)
    return _rule(rows[0]) if rows else None


def list_rules(wanted: RuleWanted, limit: int, offset: int) -> Program[tuple[list[Rule], int]]:
    """Read a page of the rules that fit a filter, by age; and how many fit."""
    named = [
        (column, value)
        for column, value in (
            ("principal_type", wanted.principal_type),
            ("principal_id", wanted.principal_id),
            ("resource_type", wanted.resource_type),
            ("resource_id", wanted.resource_id),
        )
        if value
    ]
    where = " AND ".join(f"{column} = ${number}" for number, (column, _) in enumerate(named, 1)) or "1 = 1"
    args: list[Value] = [value for _, value in named]
    counted = yield Fetch(f"SELECT count(*) FROM access_rules WHERE {where}", args)
    rows = yield Fetch(
        f"SELECT {_RULE} FROM access_rules WHERE {where} ORDER BY granted_ms, rule_id "
        f"LIMIT ${len(args) + 1} OFFSET ${len(args) + 2}",
        (*args, min(limit, MAX_PAGE), offset),
    )
    return [_rule(row) for row in rows], counted[0][0]


def has_rules() -> Program[bool]:
    """Return whether there is a rule."""
    return bool((yield Fetch("SELECT 1 FROM access_rules LIMIT 1")))


def put_rule(draft: Draft, rule: Rule) -> Program[Rule | None]:
    """Write a rule; one for the same principal and resource keeps its id.

    Returns the rule as stored; None if there are MAX_RULES already.
    """
    names = (rule.principal_type, rule.principal_id, rule.resource_type, rule.resource_id)
    known = yield from find_same(*names)
    if known is None:
        [[count]] = yield Fetch("SELECT count(*) FROM access_rules")
        if count >= MAX_RULES:
            return None
        stored = rule
        yield Execute(
            f"INSERT INTO access_rules ({_RULE}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            (rule.rule_id, *rule_value(rule)),
        )
    else:
        stored = rule_of(known.rule_id, rule_value(rule))
        yield Execute(
            "UPDATE access_rules SET level = $2, granted_by = $3, granted_ms = $4, expires_ms = $5, reason = $6 "
            "WHERE rule_id = $1",
            (known.rule_id, *rule_value(rule)[4:]),
        )
    draft.record(RULE, stored.rule_id, rule_value(stored))
    return stored


def insert_rules(draft: Draft, rules: Sequence[Rule]) -> Program[None]:
    """Write rules for principals and resources that have none."""
    if rules:
        yield ExecuteMany(
            f"INSERT INTO access_rules ({_RULE}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            [(one.rule_id, *rule_value(one)) for one in rules],
        )
    for one in rules:
        draft.record(RULE, one.rule_id, rule_value(one))


def update_rules(draft: Draft, rules: Sequence[Rule]) -> Program[None]:
    """Write new terms of rules that exist, by their ids."""
    if rules:
        yield ExecuteMany(
            "UPDATE access_rules SET level = $2, granted_by = $3, granted_ms = $4, expires_ms = $5, reason = $6 "
            "WHERE rule_id = $1",
            [(one.rule_id, *rule_value(one)[4:]) for one in rules],
        )
    for one in rules:
        draft.record(RULE, one.rule_id, rule_value(one))


def delete_rules(draft: Draft, rule_ids: Sequence[str]) -> Program[None]:
    """Delete rules, which exist."""
    for rule_id in rule_ids:
        yield Execute("DELETE FROM access_rules WHERE rule_id = $1", (rule_id,))
        draft.record(RULE, rule_id, None)


def delete_rules_of(draft: Draft, principal_type: str, principal_id: str) -> Program[int]:
    """Delete all rules of a principal, whose id is given as in rules; return how many."""
    rows = yield Fetch(
        "SELECT rule_id FROM access_rules WHERE principal_type = $1 AND principal_id = $2",
        (principal_type, principal_id),
    )
    yield from delete_rules(draft, [rule_id for (rule_id,) in rows])
    return len(rows)


def delete_rules_on(draft: Draft, resource_type: str, resource_id: str) -> Program[int]:
    """Delete all rules about a resource; return how many there were."""
    rows = yield Fetch(
        "SELECT rule_id FROM access_rules WHERE resource_type = $1 AND resource_id = $2", (resource_type, resource_id)
    )
    yield from delete_rules(draft, [rule_id for (rule_id,) in rows])
    return len(rows)


def delete_expired(draft: Draft) -> Program[int]:
    """Delete rules, memberships and locks that have expired; return how many."""
    rules = yield Fetch("SELECT rule_id FROM access_rules WHERE expires_ms > 0 AND expires_ms <= $1", (draft.now_ms,))
    yield from delete_rules(draft, [rule_id for (rule_id,) in rules])
    rows = yield Fetch(
        f"SELECT {_MEMBER} FROM access_members WHERE expires_ms > 0 AND expires_ms <= $1",
        (draft.now_ms,),
    )
    for row in rows:
        yield from _delete_member(draft, Member(*row))
    locks = yield Fetch("SELECT lock_id FROM access_locks WHERE expires_ms > 0 AND expires_ms <= $1", (draft.now_ms,))
    for (lock_id,) in locks:
        yield from delete_lock(draft, lock_id)
    return len(rules) + len(rows) + len(locks)


# -- fallbacks -------------------------------------------------------------------------------------


def find_fallback(category: str) -> Program[FallbackRecord | None]:
    """Read the fallback of a category."""
    rows = yield Fetch(
        "SELECT category, level, updated_by, updated_ms FROM access_fallbacks WHERE category = $1", (category,)
    )
    return FallbackRecord(rows[0][0], AccessLevel(rows[0][1]), *rows[0][2:]) if rows else None


def list_fallbacks() -> Program[list[FallbackRecord]]:
    """Read all fallbacks, by category."""
    rows = yield Fetch("SELECT category, level, updated_by, updated_ms FROM access_fallbacks ORDER BY category")
    return [FallbackRecord(row[0], AccessLevel(row[1]), *row[2:]) for row in rows]


def put_fallback(draft: Draft, category: str, level: AccessLevel, by: str) -> Program[FallbackRecord]:
    """Write the fallback of a category."""
    yield from put_fallbacks(draft, {category: level}, by)
    return FallbackRecord(category, level, by, draft.now_ms)


def put_fallbacks(draft: Draft, levels: Mapping[str, AccessLevel], by: str) -> Program[None]:
    """Write the fallbacks of categories."""
    yield ExecuteMany(
        "INSERT INTO access_fallbacks (category, level, updated_by, updated_ms) VALUES ($1, $2, $3, $4) "
        "ON CONFLICT (category) DO UPDATE SET level = excluded.level, updated_by = excluded.updated_by, "
        "updated_ms = excluded.updated_ms",
        [(category, int(level), by, draft.now_ms) for category, level in levels.items()],
    )
    for category, level in levels.items():
        draft.record(FALLBACK, category, int(level))


def delete_fallback(draft: Draft, category: str) -> Program[bool]:
    """Delete the fallback of a category; return whether there was one."""
    count: int = yield Execute("DELETE FROM access_fallbacks WHERE category = $1", (category,))
    if count:
        draft.record(FALLBACK, category, None)
    return bool(count)


# -- groups and roles ------------------------------------------------------------------------------


def _group(row: Row) -> GroupRecord:
    kind, name, group_id, description, created_by, created_ms, metadata = row
    return GroupRecord(kind, name, group_id, description, created_by, created_ms, msgspec.json.decode(metadata))


def find_group(kind: str, name: str) -> Program[GroupRecord | None]:
    """Read a group or role."""
    rows = yield Fetch(f"SELECT {_GROUP} FROM access_groups WHERE kind = $1 AND name = $2", (kind, name))
    return _group(rows[0]) if rows else None


def all_groups() -> Program[list[GroupRecord]]:
    """Read all groups and roles."""
    rows = yield Fetch(f"SELECT {_GROUP} FROM access_groups ORDER BY kind, name")
    return [_group(row) for row in rows]


def list_groups(kind: str) -> Program[list[GroupRecord]]:
    """Read all groups, or all roles, by name."""
    rows = yield Fetch(f"SELECT {_GROUP} FROM access_groups WHERE kind = $1 ORDER BY name", (kind,))
    return [_group(row) for row in rows]


def create_group(draft: Draft, group: GroupRecord) -> Program[bool]:
    """Write a new group or role; return False if there is one of the name."""
    count: int = yield Execute(
        f"INSERT INTO access_groups ({_GROUP}) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
        (
            group.kind, group.name, group.group_id, group.description, group.created_by, group.created_ms,
            msgspec.json.encode(group.metadata),
        ),
    )  # fmt: skip
    if count:
        draft.record(GROUP, f"{group.kind}:{group.name}", True)
    return bool(count)


def delete_group(draft: Draft, kind: str, name: str) -> Program[bool]:
    """Delete a group or role with its memberships and rules; False if there is none."""
    count: int = yield Execute("DELETE FROM access_groups WHERE kind = $1 AND name = $2", (kind, name))
    if not count:
        return False
    rows = yield Fetch(
        f"SELECT {_MEMBER} FROM access_members WHERE (kind = $1 AND name = $2) OR (member_type = $1 AND member_id = $2)",
        (kind, name),
    )
    for row in rows:
        yield from _delete_member(draft, Member(*row))
    yield from delete_rules_of(draft, kind, escape(name))
    draft.record(GROUP, f"{kind}:{name}", None)
    return True


def describe_group(draft: Draft, kind: str, name: str, description: str) -> Program[None]:
    """Write the description of a group or role."""
    yield Execute(
        "UPDATE access_groups SET description = $3 WHERE kind = $1 AND name = $2",
        (kind, name, description),
    )
    draft.record(GROUP, f"{kind}:{name}", True)


def list_members(kind: str, name: str) -> Program[list[Member]]:
    """Read the members of a group, or the assignments of a role."""
    rows = yield Fetch(
        f"SELECT {_MEMBER} FROM access_members WHERE kind = $1 AND name = $2 ORDER BY member_type, member_id",
        (kind, name),
    )
    return [Member(*row) for row in rows]


def list_memberships(kind: str, member_type: str, member_id: str) -> Program[list[Member]]:
    """Read the groups, or the roles, that a principal is in directly."""
    rows = yield Fetch(
        f"SELECT {_MEMBER} FROM access_members WHERE member_type = $1 AND member_id = $2 AND kind = $3 ORDER BY name",
        (member_type, member_id, kind),
    )
    return [Member(*row) for row in rows]


def all_members() -> Program[list[Member]]:
    """Read all memberships, by their groups."""
    rows = yield Fetch(
        f"SELECT {_MEMBER} FROM access_members ORDER BY kind, name, member_type, member_id",
    )
    return [Member(*row) for row in rows]


def page_of_members(limit: int, offset: int) -> Program[tuple[list[Member], int]]:
    """Read a page of all memberships in the order of `all_members`, and their number."""
    [[total]] = yield Fetch("SELECT count(*) FROM access_members")
    rows = yield Fetch(
        f"SELECT {_MEMBER} FROM access_members ORDER BY kind, name, member_type, member_id LIMIT $1 OFFSET $2",
        (limit, offset),
    )
    return [Member(*row) for row in rows], total


def put_member(draft: Draft, member: Member) -> Program[None]:
    """Write a membership; the group and the absence of a cycle are checked before."""
    yield from put_members(draft, [member])


def put_members(draft: Draft, members: Sequence[Member]) -> Program[None]:
    """Write memberships; groups and the absence of cycles are checked before."""
    if not members:
        return
    yield ExecuteMany(
        f"INSERT INTO access_members ({_MEMBER}) VALUES ($1, $2, $3, $4, $5, $6, $7) "
        "ON CONFLICT (kind, name, member_type, member_id) DO UPDATE SET granted_by = excluded.granted_by, "
        "granted_ms = excluded.granted_ms, expires_ms = excluded.expires_ms",
        [
            (one.kind, one.name, one.member_type, one.member_id, one.granted_by, one.granted_ms, one.expires_ms)
            for one in members
        ],
    )
    for one in members:
        draft.record(MEMBER, member_key(one), [one.granted_by, one.granted_ms, one.expires_ms])


def delete_member(draft: Draft, kind: str, name: str, member_type: str, member_id: str) -> Program[bool]:
    """Delete a membership; return whether there was one."""
    member = Member(kind, name, member_type, member_id, "", 0, 0)
    return (yield from _delete_member(draft, member))


def _delete_member(draft: Draft, member: Member) -> Program[bool]:
    count: int = yield Execute(
        "DELETE FROM access_members WHERE kind = $1 AND name = $2 AND member_type = $3 AND member_id = $4",
        (member.kind, member.name, member.member_type, member.member_id),
    )
    if count:
        draft.record(MEMBER, member_key(member), None)
    return bool(count)


# -- locks -----------------------------------------------------------------------------------------


def put_lock(draft: Draft, lock: Lock) -> Program[None]:
    """Write a lock, or new terms of the one with its id."""
    fields: list[Value] = [lock.pattern, lock.reason, lock.locked_by, lock.locked_ms, lock.expires_ms]
    yield Execute(
        f"INSERT INTO access_locks ({_LOCK}) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (lock_id) DO UPDATE SET "
        "reason = excluded.reason, locked_by = excluded.locked_by, locked_ms = excluded.locked_ms, "
        "expires_ms = excluded.expires_ms",
        (lock.lock_id, *fields),
    )
    draft.record(LOCK, lock.lock_id, fields)


def list_locks() -> Program[list[Lock]]:
    """Read all locks, by age."""
    rows = yield Fetch(f"SELECT {_LOCK} FROM access_locks ORDER BY locked_ms, lock_id")
    return [Lock(*row) for row in rows]


def delete_lock(draft: Draft, lock_id: str) -> Program[bool]:
    """Delete a lock; return whether there was one."""
    count: int = yield Execute("DELETE FROM access_locks WHERE lock_id = $1", (lock_id,))
    if count:
        draft.record(LOCK, lock_id, None)
    return bool(count)


# -- seeds -----------------------------------------------------------------------------------------


def seeded() -> Program[str]:
    """Read with which rules the database began; "" if with none yet."""
    rows: list[Row] = yield Fetch("SELECT seeded FROM access_version WHERE id = 1")
    return str(rows[0][0])


def mark_seeded(name: str) -> Program[None]:
    """Note with which rules the database begins."""
    yield Execute("UPDATE access_version SET seeded = $1 WHERE id = 1", (name,))
