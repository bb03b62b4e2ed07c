"""Development mode allows all but what lets one participant act on all others."""

from __future__ import annotations

import pytest

from aether_trio.model.access import AccessLevel
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import Identity, Kind
from aether_trio.model.topics import parse_topic
from aether_trio.services.access import DIRECT, Admin, Authority, Capability, DevAuthorizer
from aether_trio.wire.pb import aether_pb2 as pb
from tests.services.test_credentials import AGENT, EVERY_KIND

SYSTEM = {Kind.ORCHESTRATOR, Kind.WORKFLOW_ENGINE}


@pytest.mark.parametrize("identity", EVERY_KIND, ids=str)
async def test_workspaces_keys_and_sends_are_open(identity: Identity) -> None:
    rules = DevAuthorizer()
    assert (await rules.check_workspace(identity, "elsewhere", AccessLevel.ADMIN)).allowed
    assert (await rules.check_kv(identity, "user-shared", "k", "elsewhere", AccessLevel.READWRITE)).allowed
    assert (await rules.check(identity, "approve", "capability", "capability/other", "", AccessLevel.ADMIN)).allowed
    topic = parse_topic("ag::elsewhere::a::1")
    assert rules.check_send(identity, topic, workspace="w1", declared_workspace="w2") is None


@pytest.mark.parametrize("identity", EVERY_KIND, ids=str)
@pytest.mark.parametrize("category", Admin)
async def test_administration_is_for_the_two_system_kinds(identity: Identity, category: Admin) -> None:
    decision = await DevAuthorizer().check_admin(identity, category.removeprefix("admin/"))
    assert decision.allowed is (identity.kind in SYSTEM)
    assert (category in decision.reason) is not decision.allowed


@pytest.mark.parametrize("identity", EVERY_KIND, ids=str)
async def test_the_state_of_others_is_for_the_two_system_kinds(identity: Identity) -> None:
    assert (await DevAuthorizer().check_query_connections(identity)).allowed is (identity.kind in SYSTEM)


@pytest.mark.parametrize("identity", EVERY_KIND, ids=str)
@pytest.mark.parametrize(
    ("capability", "level"),
    [
        (Capability.KV_PURGE_IDENTITY, AccessLevel.MANAGE),
        (Capability.METRIC_CREDIT, AccessLevel.ADMIN),
        (Capability.EXCHANGE_AUTHORITY_GRANTS, AccessLevel.MANAGE),
        (Capability.MINT_USER_TOKENS, AccessLevel.MANAGE),
    ],
)
async def test_strong_capabilities_are_granted(identity: Identity, capability: Capability, level: AccessLevel) -> None:
    for rules, expected in ((DevAuthorizer(), False), (DevAuthorizer(frozenset({capability})), True)):
        assert (await rules.check(identity, "x", "capability", capability, "", level)).allowed is expected
        if capability is Capability.METRIC_CREDIT:
            assert rules.may_credit_metrics(identity) is expected


@pytest.mark.parametrize("capability", [Capability.EVENT_BROADCAST, Capability.METRIC_BROADCAST])
async def test_broadcasting_into_other_workspaces_is_open(capability: Capability) -> None:
    assert (await DevAuthorizer().check(AGENT, "send", "capability", capability, "w2", AccessLevel.READWRITE)).allowed


@pytest.mark.parametrize("identity", EVERY_KIND, ids=str)
async def test_acting_for_others_fails_closed(identity: Identity) -> None:
    rules = DevAuthorizer(frozenset(Capability))
    decision = await rules.check(
        identity, "x", "workspace", "w1", "w1", AccessLevel.READ, Authority(grant_id="g", subject="u")
    )
    assert not decision.allowed
    with pytest.raises(RequestError, match="access rules") as caught:
        await rules.authority(identity, pb.AuthorizationContext(authority_mode="on_behalf_of", grant_id="g"))
    assert caught.value.code is Code.PERMISSION_DENIED


async def test_a_direct_context_is_no_context() -> None:
    rules = DevAuthorizer()
    for context in (None, pb.AuthorizationContext(), pb.AuthorizationContext(authority_mode="direct")):
        assert await rules.authority(AGENT, context) == DIRECT


def test_an_unknown_category_is_a_defect_of_the_caller() -> None:
    with pytest.raises(ValueError, match="admin/cheese"):
        DevAuthorizer().check_admin(AGENT, "cheese").send(None)
