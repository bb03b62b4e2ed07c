"""Callers give no more than they have, and gain nothing by changes, now or later."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.access.patterns import escape
from aether_trio.services.access import service as service_module
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect, deadlock_is_an_error, user
from tests.security.intruders import BLUE, BOB, CLOSED, EVE, RED, administrator, eve, key
from tests.security.tenants import auth, key_of, record
from tests.services.access.acl import ADMIN, MANAGE, READ, READWRITE, Op, done, grant, may, refused, rule, wanted
from tests.services.access.test_policy_service import ask, document
from tests.services.authority.people import acting_for, delegated

ACL: Final = ("user", "acl")
TEAMS: Final = record("teams", workspaces=("red", "team-?"))


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    changes: dict[str, Any] = {**CLOSED, "auth": auth(TEAMS)}
    async with deadlock_is_an_error(), world.open(**changes) as opened:
        yield opened


@pytest.fixture
async def admin(core: Core) -> AsyncIterator[MemoryLink]:
    async with administrator(core) as link:
        yield link


@pytest.fixture
async def clerk(core: Core, admin: MemoryLink) -> AsyncIterator[MemoryLink]:
    """A user who administers rules, and has all workspaces by the group g."""
    await grant(admin, ACL, ("admin", "admin/acl"), ADMIN)
    await done(admin, Op.CREATE_GROUP, name="g")
    await grant(admin, ("group", "g"), ("workspace", "*"), ADMIN)
    await join(admin, "g")
    async with connect(core, user("acl", "w", credentials=key("all"))) as link:
        yield link


async def join(peer: MemoryLink, group: str, expires_at: int = 0) -> None:
    await done(peer, Op.ADD_GROUP_MEMBER, name=group, member_request=member(expires_at))


def member(expires_at: int = 0) -> pb.ACLGroupMemberRequest:
    return pb.ACLGroupMemberRequest(member_type="user", member_id="acl", expires_at=expires_at)


def in_seconds(core: Core, seconds: int) -> int:
    return core.clock.now_ms() // 1000 + seconds


# -- what holds its owner down ---------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, READ])
async def test_a_rule_that_holds_down_gets_no_end(core: Core, admin: MemoryLink, clerk: MemoryLink, level: int) -> None:
    await grant(admin, ACL, RED, level)
    ending = rule(ACL, RED, level, expires_at=in_seconds(core, 5))
    assert "another administrator" in await refused(clerk, Op.GRANT, grant_request=ending)
    await trio.sleep(10)
    assert not await may(clerk, RED, READWRITE)


async def test_a_rule_that_holds_down_for_a_day_does_not_end_at_noon(
    core: Core, admin: MemoryLink, clerk: MemoryLink
) -> None:
    await grant(admin, ACL, RED, READ, expires_at=in_seconds(core, 3600))
    earlier = rule(ACL, RED, READ, expires_at=in_seconds(core, 5))
    assert "another administrator" in await refused(clerk, Op.GRANT, grant_request=earlier)
    later = rule(ACL, RED, READ, expires_at=in_seconds(core, 7200))
    await done(clerk, Op.GRANT, grant_request=later)


async def test_a_membership_that_holds_down_gets_no_end(core: Core, admin: MemoryLink, clerk: MemoryLink) -> None:
    await done(admin, Op.CREATE_GROUP, name="few")
    await grant(admin, ("group", "few"), RED, READ)
    await join(admin, "few")
    ending = member(in_seconds(core, 5))
    assert "another administrator" in await refused(clerk, Op.ADD_GROUP_MEMBER, name="few", member_request=ending)
    await trio.sleep(10)
    assert not await may(clerk, RED, READWRITE)


async def test_a_policy_gives_no_end_to_what_holds_down(core: Core, admin: MemoryLink, clerk: MemoryLink) -> None:
    await done(admin, Op.CREATE_GROUP, name="few")
    await grant(admin, ("group", "few"), BLUE, READ)
    await join(admin, "few")
    await grant(admin, ACL, RED, READ)
    day = "2099-01-31"
    for section in (
        f"rules: [{{principal: 'user:acl', level: read, resource: 'workspace:red', expires: {day}}}]",
        f"groups: {{few: [{{member: 'user:acl', expires: {day}}}]}}",
    ):
        text = document(f"version: 1\n{section}")
        assert "instead of READ" in await refused(clerk, Op.GRANT, grant_request=ask("apply", text)), section


async def test_a_ban_that_counts_later_stays(core: Core, admin: MemoryLink, clerk: MemoryLink) -> None:
    """A rule that bars its owner when a better one has ended holds it down already."""
    await done(admin, Op.CREATE_GROUP, name="few")
    barred = await grant(admin, ("group", "few"), RED, 0)
    await join(admin, "few")
    await grant(admin, ACL, RED, ADMIN, expires_at=in_seconds(core, 5))
    assert await may(clerk, RED, ADMIN)
    assert "another administrator" in await refused(clerk, Op.REVOKE, rule_id=barred.rule_id)


# -- for longer than one has it --------------------------------------------------------------------


async def test_a_right_for_a_while_is_given_for_a_while(core: Core, admin: MemoryLink) -> None:
    await grant(admin, EVE, BLUE, MANAGE, expires_at=in_seconds(core, 60))
    async with eve(core) as manager:
        for expires_at in (0, in_seconds(core, 61), in_seconds(core, 10**6)):
            for principal in (BOB, ("agent", "ag::red::*"), ("group", "g")):
                longer = rule(principal, BLUE, READWRITE, expires_at=expires_at)
                assert "for longer" in await refused(manager, Op.GRANT, grant_request=longer)
        await grant(manager, BOB, BLUE, READWRITE, expires_at=in_seconds(core, 60))
        await grant(manager, BOB, BLUE, 0)
        await trio.sleep(60)
        assert not await may(manager, BLUE, READ)


async def test_a_group_for_a_while_is_given_for_a_while(core: Core, admin: MemoryLink) -> None:
    days = in_seconds(core, 10**6)  # virtual time may pass while a thread plans a policy
    await grant(admin, ACL, ("admin", "admin/acl"), ADMIN)
    for name in ("g", "h"):
        await done(admin, Op.CREATE_GROUP, name=name)
        await grant(admin, ("group", name), BLUE, READWRITE)
    await join(admin, "g", days)
    async with connect(core, user("acl", "w", credentials=key("all"))) as clerk:
        for group in ("g", "h"):
            for expires_at in (0, days + 1):
                text = await refused(clerk, Op.ADD_GROUP_MEMBER, name=group, member_request=member(expires_at))
                assert "for longer" in text
            await join(clerk, group, days)
        for section in ("groups: {h: ['user:acl']}", "rules: ['user:acl readwrite workspace:blue']"):
            text = document(f"version: 1\n{section}")
            assert "for longer" in await refused(clerk, Op.GRANT, grant_request=ask("apply", text)), section


async def test_a_fallback_is_not_given_by_a_right_for_a_while(core: Core, admin: MemoryLink) -> None:
    await grant(admin, ACL, ("admin", "admin/acl"), ADMIN)
    await grant(admin, ACL, ("workspace", "*"), ADMIN, expires_at=in_seconds(core, 60))
    async with connect(core, user("acl", "w", credentials=key("all"))) as clerk:
        asked = pb.ACLSetFallbackRequest(rule_category="agent_workspace", fallback_access_level=READ)
        assert "for longer" in await refused(clerk, Op.SET_FALLBACK_POLICY, fallback_request=asked)


# -- rules about more than one may rule ------------------------------------------------------------


async def test_a_manager_takes_no_rule_of_administrators_away_by_another(core: Core, admin: MemoryLink) -> None:
    boss = ("agent", "ag::blue::boss::1")
    await grant(admin, EVE, BLUE, MANAGE)
    await grant(admin, boss, BLUE, ADMIN)
    async with eve(core) as manager:
        held = (await done(manager, Op.GET_RULE, rule_filter=wanted(boss, BLUE))).rule
        assert "ERR_PERMISSION_DENIED" in await refused(manager, Op.REVOKE, rule_id=held.rule_id)
        for level in (0, READ, READWRITE):
            assert "ERR_PERMISSION_DENIED" in await refused(manager, Op.GRANT, grant_request=rule(boss, BLUE, level))
        assert (await done(admin, Op.GET_RULE, rule_id=held.rule_id)).rule == held


async def test_a_key_for_few_workspaces_and_a_pattern_that_looks_like_one(core: Core, admin: MemoryLink) -> None:
    """The text "team-*" is a name that team-? matches; the pattern matches more."""
    await grant(admin, EVE, ("workspace", "*"), ADMIN)
    wide = await grant(admin, BOB, ("workspace", "team-*"), READ)
    within = await grant(admin, BOB, ("workspace", "team-?"), READ)
    async with connect(core, agent("red", "eve", "1", credentials={"api_key": key_of("teams")})) as manager:
        for resource in ("*", "?", "r?d", "team-*", "team-[^a]", "team-??"):
            text = await refused(manager, Op.GRANT, grant_request=rule(BOB, ("workspace", resource), READ))
            assert "does not reach" in text, resource
            listing = pb.ACLRuleFilter(resource_type="workspace", resource_id=resource)
            assert "does not reach" in await refused(manager, Op.LIST_RULES, rule_filter=listing), resource
        assert "does not reach" in await refused(manager, Op.REVOKE, rule_id=wide.rule_id)
        assert "does not reach" in await refused(manager, Op.GET_RULE, rule_id=wide.rule_id)
        await grant(manager, BOB, ("workspace", "team-[a-c]"), READ)
        await done(manager, Op.REVOKE, rule_id=within.rule_id)


async def test_a_manager_of_a_pattern_and_rules_about_a_wider_one(core: Core, admin: MemoryLink) -> None:
    await grant(admin, EVE, ("workspace", "re?"), ADMIN)
    wide = await grant(admin, BOB, ("workspace", "re*"), READ)
    within = await grant(admin, BOB, RED, READ)
    async with eve(core, tenant="all") as manager:
        for op in (Op.REVOKE, Op.GET_RULE):
            assert "all of workspace:re*" in await refused(manager, op, rule_id=wide.rule_id)
        await done(manager, Op.REVOKE, rule_id=within.rule_id)


async def test_a_rule_that_has_no_effect_gives_nothing(core: Core, admin: MemoryLink) -> None:
    """Rules of wildcards about patterns are in no tier."""
    await grant(admin, ACL, ("admin", "admin/acl"), ADMIN)
    await grant(admin, ("wildcard", "_any_authenticated_user"), ("workspace", "team-*"), ADMIN)
    async with connect(core, user("acl", "w", credentials=key("all"))) as clerk:
        assert not await may(clerk, ("workspace", "team-a"), READ)
        given = rule(ACL, ("workspace", "team-*"), READ)
        assert "than you have" in await refused(clerk, Op.GRANT, grant_request=given)


async def test_a_star_of_a_pattern_of_subjects_is_not_all(core: Core, admin: MemoryLink) -> None:
    """`ag::red::*` on `kv_scope:*` matches no name with a slash."""
    await grant(admin, EVE, ("admin", "admin/acl"), ADMIN)
    await grant(admin, ("agent", "ag::red::*"), ("kv_scope", "*"), ADMIN)
    async with eve(core, tenant="all") as clerk:
        assert not await may(clerk, ("kv_scope", "user-shared/ann"), READ)
        assert "than you have" in await refused(clerk, Op.GRANT, grant_request=rule(EVE, ("kv_scope", "*"), READ))
        await grant(clerk, EVE, ("kv_scope", "*a"), READ)


@pytest.mark.parametrize("name", ["g", "g[1]", "what?", "star*", "back\\slash"])
async def test_a_group_with_the_signs_of_patterns_is_reborn(core: Core, admin: MemoryLink, name: str) -> None:
    for number in range(2):
        await done(admin, Op.CREATE_GROUP, name=name)
        joining = pb.ACLGroupMemberRequest(member_type=EVE[0], member_id=EVE[1])
        await done(admin, Op.ADD_GROUP_MEMBER, name=name, member_request=joining)
        async with eve(core) as intruder:
            assert not await may(intruder, BLUE, READ), number
            await grant(admin, ("group", escape(name)), BLUE, READWRITE)
            assert await may(intruder, BLUE, READ)
        await done(admin, Op.DELETE_GROUP, name=name)


async def test_who_acts_for_another_gives_nothing_that_outlasts_the_grant(core: Core, admin: MemoryLink) -> None:
    await grant(admin, ("user", "admin"), BLUE, ADMIN)
    async with connect(core, agent("blue", "bob", "1", credentials=key("all"))) as helper:
        grant_id = await delegated(core, admin, BOB, max_access_level=ADMIN)
        context = acting_for("admin", grant_id)
        for expires_at in (0, in_seconds(core, 10**6)):
            longer = rule(EVE, BLUE, READWRITE, expires_at=expires_at)
            assert "for longer" in await refused(helper, Op.GRANT, grant_request=longer, authorization=context)
        given = rule(EVE, BLUE, READWRITE, expires_at=in_seconds(core, 60))
        await done(helper, Op.GRANT, grant_request=given, authorization=context)


# -- gains that a look at one name, one moment or one type does not show ---------------------------


@pytest.fixture
async def barred(core: Core, admin: MemoryLink) -> AsyncIterator[MemoryLink]:
    """A user who administers rules, and has nothing else."""
    await grant(admin, ACL, ("admin", "admin/acl"), ADMIN)
    async with connect(core, user("acl", "w", credentials=key("all"))) as link:
        yield link


async def test_a_ban_of_ones_own_hides_no_gain(admin: MemoryLink, barred: MemoryLink) -> None:
    """A pattern is worth its lowest level: so a caller bars itself from one name."""
    asked = pb.ACLSetFallbackRequest(rule_category="user_workspace", fallback_access_level=READWRITE)
    await done(admin, Op.SET_FALLBACK_POLICY, fallback_request=asked)
    ban = await grant(admin, ACL, ("workspace", "blue*"), 0)
    await grant(barred, ACL, ("workspace", "blue1"), 0)
    assert "another administrator" in await refused(barred, Op.REVOKE, rule_id=ban.rule_id)
    rest = "rules: ['user:acl admin admin/acl', 'user:acl none workspace:blue1']"
    text = document(f"version: 1\nbase: closed\n{rest}", prune=True)
    assert "instead of NONE" in await refused(barred, Op.GRANT, grant_request=ask("apply", text))
    assert not await may(barred, ("workspace", "blue2"), READ)


async def test_a_banned_key_is_not_opened_by_its_scope(admin: MemoryLink, barred: MemoryLink) -> None:
    for scope, resource in (
        ("global", ("kv_key", "secret")),
        ("user-shared", ("kv_key", "s*")),
        ("user-shared", ("kv_scope", "user-shared/ann")),
        ("user-workspace-shared", ("kv_scope", "user-workspace-shared/*")),
    ):
        opened = await grant(admin, ACL, ("kv_scope", scope), READWRITE)
        ban = await grant(admin, ACL, resource, 0)
        assert "another administrator" in await refused(barred, Op.REVOKE, rule_id=ban.rule_id), resource
        await done(admin, Op.REVOKE, rule_id=opened.rule_id)
        await done(barred, Op.REVOKE, rule_id=ban.rule_id)


async def test_a_user_to_whom_one_may_not_write(admin: MemoryLink, barred: MemoryLink) -> None:
    """Without a rule those who share a workspace may write to each other."""
    ban = await grant(admin, ACL, ("user", "ann"), 0)
    assert "another administrator" in await refused(barred, Op.REVOKE, rule_id=ban.rule_id)


async def test_a_ban_that_counts_between_two_moments_stays(core: Core, admin: MemoryLink, barred: MemoryLink) -> None:
    await grant(admin, ACL, ("workspace", "re*"), ADMIN, expires_at=in_seconds(core, 200))
    await done(admin, Op.CREATE_GROUP, name="g")
    await grant(admin, ("group", "g"), RED, ADMIN, expires_at=in_seconds(core, 100))
    await join(admin, "g")
    ban = await grant(admin, ACL, RED, 0)
    assert await may(barred, RED, ADMIN)
    assert "another administrator" in await refused(barred, Op.REVOKE, rule_id=ban.rule_id)


async def test_a_policy_ends_no_ban_that_counts_for_a_while(admin: MemoryLink, barred: MemoryLink) -> None:
    await grant(admin, ACL, ("workspace", "re*"), ADMIN, expires_at=4_200_000_000)
    await grant(admin, ACL, RED, 0)
    ending = "rules: [{principal: 'user:acl', level: none, resource: 'workspace:red', expires: 2099-01-31}]"
    text = document(f"version: 1\n{ending}")
    assert "instead of NONE" in await refused(barred, Op.GRANT, grant_request=ask("apply", text))


async def test_a_right_with_a_gap_is_given_until_the_gap(core: Core, admin: MemoryLink, barred: MemoryLink) -> None:
    await grant(admin, ACL, ("workspace", "re*"), ADMIN)
    await done(admin, Op.CREATE_GROUP, name="g")
    await grant(admin, ("group", "g"), RED, ADMIN, expires_at=in_seconds(core, 100))
    await join(admin, "g")
    await grant(admin, ACL, RED, 0, expires_at=in_seconds(core, 200))
    for expires_at in (0, in_seconds(core, 101), in_seconds(core, 300)):
        longer = rule(EVE, RED, ADMIN, expires_at=expires_at)
        assert "for longer" in await refused(barred, Op.GRANT, grant_request=longer)
    await grant(barred, EVE, RED, ADMIN, expires_at=in_seconds(core, 100))


async def test_more_ends_than_are_compared(core: Core, admin: MemoryLink, barred: MemoryLink) -> None:
    await grant(admin, ACL, ("workspace", "*"), ADMIN)
    for number in range(65):
        await grant(admin, ACL, ("workspace", f"a{number}"), READ, expires_at=in_seconds(core, 10**6 + number))
    assert "too many to compare" in await refused(barred, Op.GRANT, grant_request=rule(EVE, RED, READ))
    await grant(barred, EVE, RED, READ, expires_at=in_seconds(core, 10**6))


async def test_the_rule_own_gives_every_workspace(admin: MemoryLink, barred: MemoryLink) -> None:
    own = (("wildcard", "_own_workspace"), ("workspace", "_own"))
    await grant(admin, ACL, ("workspace", "_*"), ADMIN)
    assert "than you have" in await refused(barred, Op.GRANT, grant_request=rule(*own, ADMIN))
    await grant(admin, ACL, ("workspace", "*"), ADMIN)
    ban = await grant(admin, ACL, RED, 0)
    assert "than you have" in await refused(barred, Op.GRANT, grant_request=rule(*own, ADMIN))
    text = document("version: 1\nrules: ['wildcard:_own_workspace admin workspace:_own']")
    assert "than you have" in await refused(barred, Op.GRANT, grant_request=ask("apply", text))
    await done(admin, Op.REVOKE, rule_id=ban.rule_id)
    assert "kv_scope" not in await refused(barred, Op.GRANT, grant_request=rule(*own, ADMIN))
    await grant(admin, ACL, ("kv_scope", "workspace"), ADMIN)
    await grant(barred, *own, ADMIN)


# -- floods ----------------------------------------------------------------------------------------


async def test_a_manager_of_a_workspace_makes_rules_up_to_a_limit(
    core: Core, admin: MemoryLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many patterns about one workspace would slow all decisions about it."""
    monkeypatch.setattr(service_module, "MAX_OF_MANAGER", 5)
    for name in ("red", "blue"):
        await grant(admin, EVE, ("workspace", name), MANAGE)
    async with eve(core) as manager:
        for number in range(4):
            await grant(manager, ("agent", f"*{number}?"), BLUE, READ)
        pattern = ("agent", "*more?")
        assert "ERR_QUOTA_001" in await refused(manager, Op.GRANT, grant_request=rule(pattern, BLUE, READ))
        await grant(manager, ("agent", "*3?"), BLUE, READWRITE)  # of a known rule
        await grant(manager, pattern, RED, READ)
        assert "ERR_QUOTA_001" in await refused(manager, Op.GRANT, grant_request=rule(("agent", "*x?"), RED, READ))
        await grant(admin, pattern, BLUE, READ)
        await done(manager, Op.REVOKE, rule_filter=wanted(("agent", "*3?"), BLUE))
        assert "5 about" in await refused(manager, Op.GRANT, grant_request=rule(("agent", "*3?"), BLUE, READ))
