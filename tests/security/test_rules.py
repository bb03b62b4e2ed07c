"""What an intruder tries on a closed gateway: her key refuses nothing, rules do.

Attacks on the tasks of others are in test_rules_of_tasks.py, those on several nodes in
test_rules_across.py, certificates and real sockets in test_rules_on_sockets.py, and every operation
of the protocol in test_rules_reach.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from aether_trio.gateway.core import Core
from aether_trio.model.access import AccessLevel
from aether_trio.model.access.rules import Rule
from aether_trio.model.errors import Status
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, deadlock_is_an_error, message_to, pump, task
from tests.security.intruders import (
    BLUE,
    BOB,
    CLOSED,
    DENIED,
    EVE,
    KV,
    RED,
    a_bridge,
    a_service,
    administrator,
    bob,
    code_of,
    enter,
    eve,
    key,
    keys_of,
    payloads,
    turned_away,
    window,
)
from tests.services.access.acl import READ, READWRITE, Op, acl, done, grant, may, refused, rule
from tests.services.tasks.peers import create

METRIC = pb.Metric(entries=[pb.MetricEntry(name="n", qty=1)]).SerializeToString()


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    async with deadlock_is_an_error(), world.open(**CLOSED) as opened:
        yield opened


# -- ERR_PERMISSION_DENIED: messages ---------------------------------------------------------------


@pytest.mark.parametrize("target", ["ag::blue::bob::1", "tu::blue::bob::1", "ta::blue::bob::x", "sv::s::1"])
async def test_targeted_abroad(core: Core, target: str) -> None:
    async with eve(core) as intruder, bob(core) as victim, a_service(core):
        for workspace in ("red", "", "blue"):
            asked = {"assignment_mode": pb.TARGETED, "target_agent_id": target, "workspace": workspace}
            made = await create(intruder, **asked)
            assert (made.success, made.error_code) == (False, DENIED), workspace
        made = await create(intruder, workspace="blue")
        assert (made.success, made.error_code) == (False, DENIED)
        await barrier(victim)
        assert victim.waiting("task_assignment") == []


async def test_app_workspace(core: Core) -> None:
    async with eve(core) as intruder:
        for target in ("ag::red::eve::1", "ga::red", "event::receiver0", "event::red"):
            about = pb.SendMessage(target_topic=target, payload=b"x", app_workspace="blue")
            assert await code_of(intruder, pb.UpstreamMessage(send=about)) == DENIED, target
        about = pb.SendMessage(target_topic="ag::red::eve::1", payload=b"x", app_workspace="red")
        assert await code_of(intruder, pb.UpstreamMessage(send=about)) == ""
        assert [one.msg.workspace for one in intruder.waiting("msg")] == ["red"]


async def test_receiver0_alias(core: Core) -> None:
    """An intruder tells the engine of no workspace but her own."""
    async with (
        eve(core) as intruder,
        connect(core, pb.UpstreamMessage(init=pb.InitConnection(workflow_engine={}, credentials=key("all")))) as engine,
    ):
        own = ["event::receiver0", "event::*", "event::", "event::red"]
        for number, target in enumerate(own):
            assert await code_of(intruder, message_to(target, str(number).encode())) == "", target
        for target in ("event::blue", "event::receiver1", "event::receiver7", "event::receiver0::blue"):
            assert await code_of(intruder, message_to(target, b"attack")) != "", target
        for target in ("metric::blue", "metric::receiver1"):
            assert await code_of(intruder, message_to(target, METRIC, pb.METRIC)) != "", target
        await barrier(engine)
        assert [(one.msg.payload, one.msg.workspace) for one in engine.waiting("msg")] == [
            (str(number).encode(), "red") for number in range(len(own))
        ]


async def test_receiver0_alias_with_a_right_to_the_other_workspace(core: Core) -> None:
    """However a workspace is named: events about it need the capability."""
    async with administrator(core) as admin, eve(core) as intruder:
        await grant(admin, EVE, BLUE, READWRITE)
        for target, app_workspace in (("event::blue", ""), ("event::receiver0", "blue"), ("event::red", "blue")):
            about = pb.SendMessage(target_topic=target, payload=b"x", app_workspace=app_workspace)
            assert await code_of(intruder, pb.UpstreamMessage(send=about)) == DENIED, (target, app_workspace)
        about = pb.SendMessage(
            target_topic="metric::receiver0", payload=METRIC, message_type=pb.METRIC, app_workspace="blue"
        )
        assert await code_of(intruder, pb.UpstreamMessage(send=about)) == DENIED
        await grant(admin, EVE, ("capability", "capability/event_broadcast"), READWRITE)
        about = pb.SendMessage(target_topic="event::receiver0", payload=b"x", app_workspace="blue")
        assert await code_of(intruder, pb.UpstreamMessage(send=about)) == ""


async def test_messages_to_users_of_other_workspaces(core: Core) -> None:
    async with (
        administrator(core) as admin,
        eve(core) as intruder,
        window(core, "bob") as theirs,
        window(core, "ann") as ours,
    ):
        await grant(admin, ("user", "bob"), BLUE, READWRITE)
        await grant(admin, ("user", "ann"), RED, READWRITE)
        assert await enter(theirs, "blue") == ""
        assert await enter(ours, "red") == ""
        for target in ("us::bob::w", "uw::bob::blue", "gu::blue"):
            assert await code_of(intruder, message_to(target, b"x")) == DENIED, target
        assert await code_of(intruder, message_to("us::ann::w", b"hello")) == ""
        # A window in no workspace is no neighbour of another user, nor is one of another workspace.
        assert await code_of(theirs, message_to("us::ann::w", b"x")) == DENIED
        assert await enter(ours, "") == ""
        assert await code_of(ours, message_to("us::bob::w", b"x")) == DENIED
        await barrier(theirs, ours)
        assert (payloads(theirs), payloads(ours)) == ([], [b"hello"])


@pytest.mark.parametrize("who", ["agent", "service"])
async def test_progress_to_users_of_other_workspaces(core: Core, who: str) -> None:
    async with (
        administrator(core) as admin,
        eve(core) if who == "agent" else a_service(core) as intruder,
        window(core, "bob") as theirs,
    ):
        await grant(admin, ("user", "bob"), BLUE, READWRITE)
        assert await enter(theirs, "blue") == ""
        for recipient in ("us::bob", "us::bob::w"):
            assert await code_of(intruder, progress(recipient)) == DENIED
        await grant(admin, (who, "sv::s::1" if who == "service" else EVE[1]), ("user", "bob"), READWRITE)
        assert await code_of(intruder, progress("us::bob")) == ""
        await barrier(theirs)
        assert len(theirs.waiting("progress_update")) == 1


async def test_progress_in_a_workspace_that_was_lost(core: Core) -> None:
    """One who may only read its workspace reports nothing there."""
    async with administrator(core) as admin, eve(core) as intruder, eve(core, "other") as other:
        assert await code_of(intruder, progress("")) == ""
        assert len(other.waiting("progress_update")) == 1
        await grant(admin, EVE, RED, READ)
        assert await code_of(intruder, progress("")) == DENIED
        assert len(other.waiting("progress_update")) == 1


def progress(recipient: str) -> pb.UpstreamMessage:
    return pb.UpstreamMessage(progress=pb.ProgressReport(state="running", recipient=recipient))


async def test_stale_route(core: Core) -> None:
    """Targets that the session has decided on before a revocation."""
    async with administrator(core) as admin, eve(core) as intruder, bob(core) as victim:
        given = await grant(admin, EVE, BLUE, READWRITE)
        about = pb.UpstreamMessage(
            send=pb.SendMessage(target_topic="ag::red::eve::1", payload=b"x", app_workspace="blue")
        )
        for number in range(3):
            assert await code_of(intruder, message_to(BOB[1], str(number).encode()), about) == ""
        await done(admin, Op.REVOKE, rule_id=given.rule_id)
        assert await code_of(intruder, message_to(BOB[1], b"late")) == DENIED
        assert await code_of(intruder, about) == DENIED
        await barrier(victim)
        assert payloads(victim) == [b"0", b"1", b"2"]


async def test_work_queues_and_topics_of_all(core: Core) -> None:
    async with (
        eve(core) as intruder,
        connect(core, task("blue", "worker", credentials=key("blue"))) as victim,
        bob(core) as other,
    ):
        for target in ("tb::blue::worker", "ta::blue::worker::", "ga::blue", "gu::blue", "tk::blue::t::msg"):
            assert await code_of(intruder, message_to(target, b"x")) == DENIED, target
        await barrier(victim, other)
        assert (payloads(victim), payloads(other)) == ([], [])
        refusal = await turned_away(core, task("blue", "worker", credentials=key("red")))
        assert refusal.status is Status.PERMISSION_DENIED


@pytest.mark.parametrize(
    "context",
    [
        pb.AuthorizationContext(authority_mode="on_behalf_of"),
        pb.AuthorizationContext(authority_mode="on_behalf_of", grant_id="g"),
        pb.AuthorizationContext(
            authority_mode="on_behalf_of", subject=pb.PrincipalRef(principal_type="user", principal_id="admin")
        ),
        pb.AuthorizationContext(
            authority_mode="on_behalf_of",
            grant_id="x' OR '1'='1\x00" + "g" * 100_000,
            subject=pb.PrincipalRef(principal_type="user", principal_id="admin"),
        ),
        pb.AuthorizationContext(authority_mode="direct", grant_id="g"),
        pb.AuthorizationContext(subject=pb.PrincipalRef(principal_type="user", principal_id="admin")),
        pb.AuthorizationContext(authority_mode="root"),
        pb.AuthorizationContext(authority_mode="ON_BEHALF_OF\x00", grant_id="\x00"),
        pb.AuthorizationContext(resolved={"max_access_level": 50}, authority_mode="system"),
    ],
)
async def test_garbage_in_an_authorization_context(core: Core, context: pb.AuthorizationContext) -> None:
    async with eve(core) as intruder, bob(core) as victim:
        sent = pb.SendMessage(target_topic="ag::red::eve::1", payload=b"x", authorization=context)
        assert await code_of(intruder, pb.UpstreamMessage(send=sent)) == DENIED
        sent.target_topic = BOB[1]
        assert await code_of(intruder, pb.UpstreamMessage(send=sent)) == DENIED
        op = KV(op=KV.GET, scope=KV.WORKSPACE, key="k", request_id="r", authorization=context)
        assert await code_of(intruder, pb.UpstreamMessage(kv_op=op)) in {DENIED, "KV_ERROR"}
        made = await create(intruder, authorization=context)
        assert not made.success
        assert made.error_code in {DENIED, "ERR_INVALID_ARGUMENT"}
        await barrier(victim)
        assert payloads(victim) == payloads(intruder) == []


# -- ERR_PERMISSION_DENIED: keys -------------------------------------------------------------------


@pytest.mark.parametrize("op", [KV.GET, KV.PUT, KV.DELETE, KV.INCREMENT, KV.LIST, KV.SET_CARD])
async def test_keys_of_others(core: Core, op: KV.OpType.ValueType) -> None:
    """Global and shared keys, and those of another workspace."""
    name = "" if op == KV.LIST else "k"
    async with eve(core) as intruder, a_service(core) as unlimited:
        for scope in (KV.GLOBAL, KV.USER_SHARED, KV.USER_WORKSPACE_SHARED):
            assert await code_of(intruder, keys_of(op, scope, name, user_id="bob")) == DENIED, scope
        for scope in (KV.WORKSPACE, KV.WORKSPACE_EXCLUSIVE, KV.USER_WORKSPACE, KV.USER_WORKSPACE_SHARED):
            asked = keys_of(op, scope, name, workspace="blue", user_id="bob")
            assert await code_of(intruder, asked) == DENIED, scope
            assert await code_of(unlimited, asked) == DENIED, scope
        assert await code_of(unlimited, keys_of(op, KV.GLOBAL, name)) == DENIED
        assert await code_of(intruder, keys_of(op, KV.WORKSPACE, name)) == ""


async def test_kv_key_elsewhere(core: Core) -> None:
    async with administrator(core) as admin, eve(core) as intruder, a_service(core) as unlimited:
        for principal in (EVE, ("service", "sv::s::1"), ("wildcard", "_any_agent"), ("wildcard", "_any_service")):
            await grant(admin, principal, ("kv_key", "k"), READWRITE)
            await grant(admin, principal, ("kv_key", "*"), READWRITE)
        for op in (KV.GET, KV.PUT, KV.DELETE):
            for scope in (KV.WORKSPACE, KV.USER_WORKSPACE_SHARED):
                asked = keys_of(op, scope, workspace="blue", user_id="eve")
                assert await code_of(intruder, asked) == DENIED
                assert await code_of(unlimited, asked) == DENIED
            assert await code_of(intruder, keys_of(op, KV.WORKSPACE)) == ""
            assert await code_of(intruder, keys_of(op, KV.GLOBAL)) == ""


async def test_user_shared_of_other(core: Core) -> None:
    """A right to what one user shares is none to what another does."""
    async with administrator(core) as admin, eve(core) as intruder:
        await grant(admin, EVE, ("kv_scope", "user-shared/ann"), READWRITE)
        await grant(admin, EVE, ("kv_scope", "user-workspace-shared/ann"), READWRITE)
        for kv_key in ("k", "*"):
            for scope in (KV.USER_SHARED, KV.USER_WORKSPACE_SHARED):
                for op in (KV.GET, KV.PUT, KV.DELETE, KV.INCREMENT_IF):
                    assert await code_of(intruder, keys_of(op, scope, user_id="bob")) == DENIED, kv_key
                    assert await code_of(intruder, keys_of(KV.GET, scope, user_id="ann")) == ""
                assert await code_of(intruder, keys_of(KV.LIST, scope, "", user_id="bob")) == DENIED
                for name in ("ann/../bob", "bob/ann", "*", "ann%2F", "ann/"):
                    assert await code_of(intruder, keys_of(KV.GET, scope, user_id=name)) != "", name
            await grant(admin, EVE, ("kv_key", kv_key), READWRITE)


async def test_purging_the_keys_of_others(core: Core) -> None:
    async with eve(core) as intruder:
        for target in (BOB[1], "sv::s::1", "ag::red::other::1", "ag::red::eve::1"):
            asked = pb.KVOperation(op=KV.PURGE_IDENTITY, target_identity=target, request_id="r")
            assert await code_of(intruder, pb.UpstreamMessage(kv_op=asked)) == DENIED, target


# -- sessions, agents, checkpoints -----------------------------------------------------------------


async def test_sessions_of_others(core: Core) -> None:
    async with eve(core) as intruder, eve(core, "other"), bob(core), a_service(core) as unlimited, a_bridge(core) as b:
        session_ids = {one.identity.text: one.session_id for one in core.registry}
        sessions = pb.SessionOperation

        async def ask(peer: MemoryLink, **fields: object) -> pb.SessionOperationResponse:
            peer.send(pb.UpstreamMessage(session_op=sessions(request_id="r", **fields)))  # type: ignore[arg-type]
            return (await peer.next("session_response")).session_response

        for peer in (intruder, unlimited, b):
            for who in (BOB[1], "ag::red::other::1"):
                for op in (sessions.GET, sessions.DISCONNECT):
                    answer = await ask(peer, op=op, session_id=session_ids[who])
                    assert (answer.success, answer.HasField("connection")) == (False, False)
            for workspace in ("", "blue"):
                answer = await ask(peer, op=sessions.LIST, filter=pb.ConnectionFilter(workspace=workspace))
                assert (answer.success, list(answer.connections)) == (False, [])
        answer = await ask(intruder, op=sessions.LIST, filter=pb.ConnectionFilter(workspace="red"))
        assert {one.identity for one in answer.connections} == {EVE[1], "ag::red::other::1"}
        assert {(one.session_id, one.remote_addr) for one in answer.connections} == {("", "")}
        assert len(core.registry) == 5


async def test_status_of_others(core: Core) -> None:
    async with eve(core) as intruder, bob(core), window(core, "bob"):
        for kind, name in (
            BOB,
            ("user", "bob"),
            ("user", "us::bob::w"),
            ("service", "sv::s::1"),
            ("agent", "ag::red::x::1"),
        ):
            asked = pb.ConnectionStatusRequest(
                principal=pb.PrincipalRef(principal_type=kind, principal_id=name), request_id="r"
            )
            intruder.send(pb.UpstreamMessage(connection_status_request=asked))
            answer = (await intruder.next("connection_status_response")).connection_status_response
            assert (answer.ok, answer.connected, answer.last_seen_at) == (False, False, 0), name


@pytest.mark.parametrize("op", pb.AgentOperation.OpType.values())
async def test_agent_registrations(core: Core, op: pb.AgentOperation.OpType.ValueType) -> None:
    async with eve(core) as intruder, a_service(core) as unlimited, bob(core):
        for peer in (intruder, unlimited):
            info = pb.AgentRegistrationInfo(implementation="x", orchestrator_profile="p")
            asked = pb.AgentOperation(op=op, implementation="x", agent=info, request_id="r")
            peer.send(pb.UpstreamMessage(agent_op=asked))
            answer = (await peer.next("agent")).agent
            assert not answer.success
            assert answer.error.startswith(DENIED)
            assert (list(answer.agents), list(answer.orchestrators), answer.HasField("agent")) == ([], [], False)


async def test_checkpoints_of_others(core: Core) -> None:
    """They belong to a whole identity: namesakes do not see them."""
    op = pb.CheckpointOperation
    async with eve(core) as victim:
        victim.send(pb.UpstreamMessage(checkpoint_op=op(op=op.SAVE, key="k", data=b"secret", request_id="r")))
        assert (await victim.next("checkpoint")).checkpoint.success
    namesakes = [
        agent("blue", "eve", "1", credentials=key("blue")),
        task("red", "eve", "1", credentials=key("red")),
        agent("red", "eve", "2", credentials=key("red")),
    ]
    for hello in namesakes:
        async with connect(core, hello) as intruder:
            intruder.send(pb.UpstreamMessage(checkpoint_op=op(op=op.LOAD, key="k", request_id="r")))
            assert (await intruder.next("checkpoint")).checkpoint.data == b""
            intruder.send(pb.UpstreamMessage(checkpoint_op=op(op=op.LIST, request_id="r")))
            assert list((await intruder.next("checkpoint")).checkpoint.keys) == []
            intruder.send(pb.UpstreamMessage(checkpoint_op=op(op=op.DELETE, key="k", request_id="r")))
            await intruder.next("checkpoint")
    async with eve(core) as victim:
        victim.send(pb.UpstreamMessage(checkpoint_op=op(op=op.LOAD, key="k", request_id="r")))
        assert (await victim.next("checkpoint")).checkpoint.data == b"secret"


# -- refused ---------------------------------------------------------------------------------------


async def test_group_cycle(core: Core) -> None:
    async with administrator(core) as admin:
        names = ["a", "b", "c"]
        for name in names:
            await done(admin, Op.CREATE_GROUP, name=name)
        for outer, inner in (("a", "b"), ("b", "c")):
            await done(admin, Op.ADD_GROUP_MEMBER, **member(outer, "group", inner))
        for outer, inner in (("c", "a"), ("a", "a"), ("b", "a")):
            assert "cycle" in await refused(admin, Op.ADD_GROUP_MEMBER, **member(outer, "group", inner))


async def test_pattern_bomb(core: Core) -> None:
    """Patterns that would cost much are refused when they are written."""
    async with administrator(core) as admin:
        bombs = ["a*" * 17 + "b", "*" * 1025, "[" * 512, "[a-", "\\", "a\0*", "[^]*"]
        for bomb in bombs:
            for principal, resource in (
                (("agent", bomb), RED),
                (EVE, ("workspace", bomb)),
            ):
                answer = await acl(admin, Op.GRANT, grant_request=rule(principal, resource, READ))
                assert not answer.success, bomb
                assert (await admin.next("error")).error.request_id == answer.request_id
        answer = await done(admin, Op.LIST_RULES)
        assert not {one.principal_id for one in answer.rules} & set(bombs)


# -- no effect -------------------------------------------------------------------------------------


async def test_star_crosses_slash(core: Core) -> None:
    async with eve(core) as intruder:
        for resource in (("admin", "a*"), ("capability", "*y"), ("kv_scope", "user*"), ("kv_scope", "?ser-shared?ann")):
            core.authorizer.index.put_rule(Rule(f"{resource}", *EVE, *resource, AccessLevel.READWRITE))
        for asked in (
            ("admin", "admin/acl"),
            ("capability", "capability/event_broadcast"),
            ("kv_scope", "user-shared/bob"),
            ("kv_scope", "user-shared/ann"),
        ):
            assert not await may(intruder, asked, READ), asked
        assert await may(intruder, ("kv_scope", "user-shared"), READ)


async def test_name_is_pattern(core: Core) -> None:
    """A participant with the signs of patterns in its name is no pattern."""
    async with administrator(core) as admin, bob(core):
        await grant(admin, BOB, ("kv_key", "k"), READWRITE)
        await grant(admin, BOB, ("kv_scope", "global"), READWRITE)
        await grant(admin, BOB, ("user", "ann"), READWRITE)
        for name in ("b?b", "[a-z]ob", "b\\ob", "?", "bo[b]"):
            async with connect(core, agent("blue", name, "1", credentials=key("blue"))) as intruder:
                assert await code_of(intruder, keys_of(KV.GET, KV.GLOBAL)) == DENIED, name
                assert await code_of(intruder, message_to("us::ann::w", b"x")) == DENIED, name
                assert not await may(intruder, ("kv_scope", "global"), READ), name


async def test_a_workspace_whose_name_is_a_pattern(core: Core) -> None:
    """A rule with its name escaped is for that workspace alone."""
    async with administrator(core) as admin, eve(core, tenant="all") as intruder:
        await grant(admin, EVE, ("workspace", "blu\\?"), READWRITE)
        assert not await may(intruder, ("workspace", "blue"), READ)
        assert await may(intruder, ("workspace", "blu?"), READWRITE)
        assert await code_of(intruder, message_to(BOB[1], b"x")) == DENIED


async def test_group_reborn(core: Core) -> None:
    """A group that is made again has no member and no rule of before."""
    async with administrator(core) as admin, eve(core) as intruder:
        await done(admin, Op.CREATE_GROUP, name="g")
        await done(admin, Op.ADD_GROUP_MEMBER, **member("g", *EVE))
        await grant(admin, ("group", "g"), BLUE, READWRITE)
        assert await may(intruder, BLUE, READWRITE)
        await done(admin, Op.DELETE_GROUP, name="g")
        assert not await may(intruder, BLUE, READ)
        await done(admin, Op.CREATE_GROUP, name="g")
        assert not await may(intruder, BLUE, READ)
        await done(admin, Op.ADD_GROUP_MEMBER, **member("g", *EVE))
        assert not await may(intruder, BLUE, READ)
        assert await code_of(intruder, message_to(BOB[1], b"x")) == DENIED


async def test_none_outvoted(core: Core) -> None:
    """NONE of a tier above is not outvoted, and no rule outvotes a lock."""
    async with administrator(core) as admin, AsyncExitStack() as stack:
        intruder = await stack.enter_async_context(eve(core))
        await done(admin, Op.CREATE_GROUP, name="g")
        await done(admin, Op.ADD_GROUP_MEMBER, **member("g", *EVE))
        await grant(admin, EVE, BLUE, 0)
        for principal, resource in (
            (("wildcard", "_any_agent"), BLUE),
            (EVE, ("workspace", "*")),
            (("group", "g"), ("workspace", "bl*")),
            (("wildcard", "_any_agent"), ("workspace", "*")),
            (("agent", "ag::red::eve::*"), BLUE),
        ):
            await grant(admin, principal, resource, READWRITE)
            assert not await may(intruder, BLUE, READ), principal
        # In one tier the highest counts, by design: to ban is to lock.
        await grant(admin, ("group", "g"), BLUE, READWRITE)
        assert await may(intruder, BLUE, READWRITE)
        await grant(admin, EVE, ("lock", "*"), 0, reason="banned")
        ended = await intruder.wait_end()
        assert (ended.status, "banned" in ended.message) == (Status.UNAUTHENTICATED, True)
        refusal = await turned_away(core, agent("red", "eve", "1", credentials=key("both")))
        assert refusal.status is Status.UNAUTHENTICATED


async def test_namesake_keys(core: Core) -> None:
    """Namesakes in another workspace, or of another type, share no rights."""
    async with administrator(core) as admin:
        for principal in (EVE, ("user", "eve"), ("service", "sv::eve::1")):
            await grant(admin, principal, ("kv_scope", "global"), READWRITE)
        namesakes = [
            agent("blue", "eve", "1", credentials=key("blue")),
            agent("red", "eve", "2", credentials=key("red")),
            task("red", "eve", "1", credentials=key("red")),
            task("red", "ag::red::eve::1".replace("::", "-"), "1", credentials=key("red")),
        ]
        for hello in namesakes:
            async with connect(core, hello) as intruder:
                assert await code_of(intruder, keys_of(KV.GET, KV.GLOBAL)) == DENIED
        async with window(core, EVE[1].replace("::", ":")) as intruder:
            assert not await may(intruder, ("kv_scope", "global"), READ)
        async with window(core, "agent:ag:red:eve:1") as intruder:
            assert not await may(intruder, ("kv_scope", "global"), READ)
        async with eve(core) as owner:
            assert await code_of(owner, keys_of(KV.GET, KV.GLOBAL)) == ""


# -- users -----------------------------------------------------------------------------------------


async def test_a_window_in_no_workspace(core: Core) -> None:
    async with window(core, "mallory") as intruder, eve(core), bob(core) as victim, a_service(core) as other:
        for target in (
            EVE[1],
            BOB[1],
            "ga::red",
            "tb::red::i",
            "us::ann::w",
            "uw::ann::red",
            "gu::red",
            "sv::s::1",
            "sv::s",
        ):
            assert await code_of(intruder, message_to(target, b"x")) == DENIED, target
        for workspace in ("red", "blue"):
            assert await enter(intruder, workspace) == DENIED
            made = await create(intruder, workspace=workspace)
            assert (made.success, made.error_code) == (False, DENIED)
        await pump()
        assert (payloads(victim), payloads(other)) == ([], [])


def member(name: str, member_type: str, member_id: str) -> dict[str, Any]:
    asked = pb.ACLGroupMemberRequest(member_type=member_type, member_id=member_id)
    return {"name": name, "member_request": asked}
