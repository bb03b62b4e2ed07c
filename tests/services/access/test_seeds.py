"""What a new database allows: nearly all in development, one's own workspace else."""

from __future__ import annotations

from functools import partial

import pytest

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.rules import Rule
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import Identity, Kind
from aether_trio.model.topics import parse_topic
from aether_trio.services.access import DIRECT, Admin, Capability, GatewayActor, records, seeding
from aether_trio.services.access.changes import Draft
from aether_trio.services.access.seeding import seeded_index
from aether_trio.storage.base import Fetch, Program, Statement, single
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.access import authorizer, put
from tests.helpers.direct import Store, caught
from tests.services.test_credentials import AGENT, EVERY_KIND

SYSTEM = {Kind.ORCHESTRATOR, Kind.WORKFLOW_ENGINE}
READ, READWRITE, MANAGE, ADMIN = AccessLevel.READ, AccessLevel.READWRITE, AccessLevel.MANAGE, AccessLevel.ADMIN
IN_WORKSPACES = [identity for identity in EVERY_KIND if identity.workspace]


@pytest.mark.parametrize("identity", [one for one in EVERY_KIND if one.kind is not Kind.METRICS_BRIDGE], ids=str)
async def test_open_workspaces_and_sends(identity: Identity) -> None:
    rules, actor = authorizer("open"), GatewayActor(identity)
    assert (await rules.check_workspace(actor, "elsewhere", READWRITE)).allowed
    for target in ("ag::elsewhere::a::1", "us::u::1", "uu::u", "sv::s::1", "br::b::1", "gu::elsewhere"):
        topic = parse_topic(target)
        assert rules.check_send(actor, topic, workspace=identity.workspace, declared_workspace="").allowed, target


@pytest.mark.parametrize("identity", EVERY_KIND, ids=str)
async def test_open_keys_are_those_of_the_scopes_global_and_workspace(identity: Identity) -> None:
    rules, actor = authorizer("open"), GatewayActor(identity)
    if identity.kind not in {Kind.AGENT, Kind.TASK, Kind.UNIQUE_TASK, Kind.SERVICE}:
        return
    assert (await rules.check_kv(actor, "global", "k", "", "", READWRITE)).allowed
    assert (await rules.check_kv(actor, "workspace", "k", "elsewhere", "", READWRITE)).allowed
    assert not (await rules.check_kv(actor, "user-shared", "k", "", "u", READ)).allowed
    assert not (await rules.check_kv(actor, "user-workspace-shared", "k", "elsewhere", "u", READ)).allowed


@pytest.mark.parametrize("seeds", ["open", "closed"])
@pytest.mark.parametrize("identity", EVERY_KIND, ids=str)
@pytest.mark.parametrize("category", Admin)
async def test_administration_is_for_the_two_system_kinds(identity: Identity, category: Admin, seeds: str) -> None:
    decision = await authorizer(seeds).check_admin(GatewayActor(identity), category.removeprefix("admin/"))
    assert decision.allowed is (identity.kind in SYSTEM)
    assert (category in decision.reason) is not decision.allowed


@pytest.mark.parametrize("identity", EVERY_KIND, ids=str)
async def test_the_state_of_others_is_for_the_two_system_kinds(identity: Identity) -> None:
    decision = await authorizer().check_query_connections(GatewayActor(identity))
    assert decision.allowed is (identity.kind in SYSTEM)


@pytest.mark.parametrize("identity", [one for one in EVERY_KIND if one.kind not in SYSTEM], ids=str)
@pytest.mark.parametrize(
    ("capability", "level"),
    [
        (Capability.KV_PURGE_IDENTITY, MANAGE),
        (Capability.METRIC_CREDIT, ADMIN),
        (Capability.EXCHANGE_AUTHORITY_GRANTS, MANAGE),
        (Capability.MINT_USER_TOKENS, MANAGE),
    ],
)
async def test_strong_capabilities_are_granted(identity: Identity, capability: Capability, level: AccessLevel) -> None:
    actor = GatewayActor(identity)
    for rules, expected in ((authorizer(), False), (authorizer("open", capability), True)):
        assert (await rules.check(actor, "x", "capability", capability, "", level)).allowed is expected
        if capability is Capability.METRIC_CREDIT:
            assert rules.may_credit_metrics(actor) is expected


@pytest.mark.parametrize("capability", [Capability.EVENT_BROADCAST, Capability.METRIC_BROADCAST])
async def test_broadcasting_into_other_workspaces_is_open_in_development(capability: Capability) -> None:
    for seeds, expected in (("open", True), ("closed", False)):
        decision = await authorizer(seeds).check(GatewayActor(AGENT), "send", "capability", capability, "", READWRITE)
        assert decision.allowed is expected


@pytest.mark.parametrize("identity", IN_WORKSPACES, ids=str)
async def test_closed_is_the_own_workspace(identity: Identity) -> None:
    rules, actor = authorizer("closed"), GatewayActor(identity)
    own = identity.workspace
    assert (await rules.check_workspace(actor, own, READWRITE)).allowed
    assert not (await rules.check_workspace(actor, own, MANAGE)).allowed
    assert not (await rules.check_workspace(actor, "elsewhere", READ)).allowed
    assert (await rules.check_kv(actor, "workspace", "k", own, "", READWRITE)).allowed
    for scope, workspace, user in (
        ("workspace", "elsewhere", ""),
        ("global", "", ""),
        ("user-shared", "", "u"),
        ("user-workspace-shared", own, "u"),
    ):
        assert not (await rules.check_kv(actor, scope, "k", workspace, user, READ)).allowed, scope
    for target, allowed in {
        f"ag::{own}::a::1": True,
        f"ga::{own}": True,
        "ag::elsewhere::a::1": False,
        "gu::elsewhere": False,
        "us::u::1": False,
        "uu::u": False,
        "sv::s::1": False,
        "br::b::1": False,
    }.items():
        decision = rules.check_send(actor, parse_topic(target), workspace=own, declared_workspace="")
        assert decision.allowed is allowed, target


@pytest.mark.parametrize(
    "identity", [one for one in EVERY_KIND if not one.workspace and one.kind not in SYSTEM], ids=str
)
async def test_closed_is_nothing_for_those_without_a_workspace(identity: Identity) -> None:
    rules, actor = authorizer("closed"), GatewayActor(identity)
    assert not (await rules.check_workspace(actor, "w1", READ)).allowed
    assert not (await rules.check_kv(actor, "workspace", "k", "w1", "", READ)).allowed
    for target in ("ag::w1::a::1", "us::u::1", "gu::w1"):
        topic = parse_topic(target)
        assert not rules.check_send(actor, topic, workspace="", declared_workspace="").allowed


async def test_a_message_to_a_user_needs_that_the_user_may_enter() -> None:
    rules, actor = authorizer("closed"), GatewayActor(AGENT)
    window = parse_topic("us::u::1")
    own = AGENT.workspace
    assert not rules.check_send(actor, window, workspace=own, declared_workspace="").allowed
    put(rules.index, "user", "u", "workspace", own, READ)
    rules = authorizer("closed")
    put(rules.index, "user", "u", "workspace", own, READ)
    assert rules.check_send(actor, window, workspace=own, declared_workspace="").allowed
    put(rules.index, "agent", AGENT.text, "user", "u", AccessLevel.NONE)
    rules._cache.clear()
    assert not rules.check_send(actor, window, workspace=own, declared_workspace="").allowed


async def test_a_user_may_write_to_its_own_windows() -> None:
    rules, actor = authorizer("closed"), GatewayActor(Identity.user("eve", "1"))
    for target, allowed in {"us::eve::2": True, "us::tim::1": False}.items():
        decision = rules.check_send(actor, parse_topic(target), workspace="", declared_workspace="")
        assert decision.allowed is allowed, target
    put(rules.index, "user", "eve", "user", "eve", AccessLevel.READ)
    rules.forget_verdicts()
    assert not rules.check_send(actor, parse_topic("us::eve::2"), workspace="", declared_workspace="").allowed


async def test_exclusive_keys_need_no_rule_but_the_workspace() -> None:
    rules, actor = authorizer("closed"), GatewayActor(AGENT)
    assert (await rules.check_kv(actor, "global-exclusive", "k", "", "", READWRITE, exclusive=True)).allowed
    own = AGENT.workspace
    assert (await rules.check_kv(actor, "workspace-exclusive", "k", own, "", READWRITE, exclusive=True)).allowed
    assert not (await rules.check_kv(actor, "workspace-exclusive", "k", "other", "", READ, exclusive=True)).allowed


@pytest.mark.parametrize("identity", EVERY_KIND, ids=str)
async def test_acting_for_others_needs_a_grant(identity: Identity) -> None:
    context = pb.AuthorizationContext(authority_mode="on_behalf_of", grant_id="g", subject=pb.PrincipalRef())
    with pytest.raises(RequestError, match="no grant") as caught:
        await authorizer().authority(GatewayActor(identity), context)
    assert caught.value.code is Code.PERMISSION_DENIED


async def test_a_direct_context_is_no_context() -> None:
    for context in (None, pb.AuthorizationContext(), pb.AuthorizationContext(authority_mode="direct")):
        assert await authorizer().authority(GatewayActor(AGENT), context) == DIRECT


def test_an_unknown_category_is_a_defect_of_the_caller() -> None:
    with pytest.raises(ValueError, match="admin/cheese"):
        authorizer().check_admin(GatewayActor(AGENT), "cheese").send(None)


@pytest.mark.parametrize("seeds", ["open", "closed"])
def test_the_first_administrator_has_all(seeds: str) -> None:
    index = seeded_index(seeds)
    for resource_type, resource_id in (
        ("workspace", "any"),
        ("admin", "admin/acl"),
        ("capability", "capability/exchange_authority_grants/w/u"),
        ("user", "u"),
        ("kv_scope", "user-shared/u"),
    ):
        assert index.decide("user", "admin", resource_type, resource_id, 1).level is AccessLevel.SUPERADMIN


@pytest.mark.parametrize("seeds", ["open", "closed"])
def test_a_database_that_has_rules_gets_the_same_as_a_new_one(store: Store, seeds: str) -> None:
    """An operator may make rules before a gateway has served."""
    rules = [*seeded_index(seeds).rules()]
    found = []
    for there in ([], rules[:1]):
        place = store.place()
        try:
            made: list[Statement] = []
            place.direct("tasks").drive(partial(_seed, there, seeds, made))
            assert bool(there) or len(made) < 10, "each is a round trip"
            rows = Fetch("SELECT rule_id, level, granted_ms FROM access_rules ORDER BY rule_id")
            found.append(place.direct("tasks").drive(partial(single, rows)))
        finally:
            place.close()
    assert found[0] == found[1]
    assert len(found[0]) == len(rules)


def _seed(there: list[Rule], seeds: str, made: list[Statement]) -> Program[None]:
    for rule in there:
        yield from records.put_rule(Draft(1), rule)
    yield from caught(seeding._write(Draft(7), seeds), made)
