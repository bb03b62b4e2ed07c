"""What certificates and clients on real sockets get past rules: nothing."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio

from aether_trio.client import AgentClient, PermissionDenied
from aether_trio.client.operations import AccessLevel
from aether_trio.gateway import Gateway
from aether_trio.model.errors import Status
from aether_trio.testing.memory import agent, message_to
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import open_test_gateway
from tests.helpers.core import orchestrator, switch_to, user
from tests.helpers.engines import Engine, PostgresEngine
from tests.helpers.participants import TRANSPORTS, Participant, admission, participant
from tests.security.certificates import Authority
from tests.security.clients import gateway_with
from tests.security.intruders import BLUE, BOB, DENIED, EVE
from tests.security.tenants import LIMIT_S, SCHEMES, agent_of, auth, key_of, user_of
from tests.services.access.acl import READWRITE, Op, rule

EVERY_TRANSPORT = pytest.mark.parametrize("transport", TRANSPORTS)
EVERY_MODE = pytest.mark.parametrize("mode", ["strict", "semi-strict", "relaxed"])
ALPN: Mapping[str, list[str]] = {"grpc": ["h2"], "framed": [], "websocket": ["http/1.1"]}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def serving(authority: Authority, mode: str) -> AbstractAsyncContextManager[Gateway]:
    credentials = {**auth(), "client_cert_mode": mode}
    return gateway_with(gateway={"dev": False}, tls=authority.tls, access={"default": "closed"}, auth=credentials)


# -- certificates ----------------------------------------------------------------------------------


@EVERY_TRANSPORT
@EVERY_MODE
async def test_a_dev_certificate_reaches_no_prod(authority: Authority, transport: str, mode: str) -> None:
    certificate = authority.issue("ag::dev::worker::1")
    tls = authority.context(certificate, alpn=ALPN[transport])
    async with serving(authority, mode) as gateway:
        for hello in (
            agent("prod", "worker", "1"),
            agent("dev", "boss", "1"),
            orchestrator("o", "1"),
            user("admin", "w"),
        ):
            status, text = await admission(transport, gateway.address, hello, tls=tls)
            assert status in {Status.UNAUTHENTICATED, Status.PERMISSION_DENIED}, text
        async with participant(transport, gateway.address, agent("dev", "worker", "1"), tls=tls) as intruder:
            assert await refused(intruder, message_to("ag::prod::worker::1", b"x")) == DENIED
            task = pb.CreateTaskRequest(task_type="t", workspace="prod", request_id="r")
            await intruder.send(pb.UpstreamMessage(create_task=task))
            assert (await intruder.next("create_task")).create_task.error_code == DENIED
        # A key beside it is for what the key is for, of the kind that the certificate names.
        hello = agent("red", "worker", "1", credentials={"api_key": key_of("red")})
        wanted = Status.OK if mode == "relaxed" else Status.PERMISSION_DENIED
        assert (await admission(transport, gateway.address, hello, tls=tls))[0] is wanted


@EVERY_TRANSPORT
@EVERY_MODE
async def test_the_certificate_of_a_user_is_no_administrators(authority: Authority, transport: str, mode: str) -> None:
    certificate = authority.issue("us::eve::w")
    tls = authority.context(certificate, alpn=ALPN[transport])
    async with serving(authority, mode) as gateway:
        status, text = await admission(transport, gateway.address, user("admin", "w"), tls=tls)
        assert status in {Status.UNAUTHENTICATED, Status.PERMISSION_DENIED}, text
        assert (await admission(transport, gateway.address, user("eve", "w"), tls=tls))[0] is Status.OK


@pytest.mark.parametrize("mode", ["semi-strict", "relaxed"])
async def test_a_certificate_for_one_workspace_enters_no_other(authority: Authority, mode: str) -> None:
    """Whatever rules give the user that its client claims to be."""
    tls = authority.context(authority.issue("gu::dev"))
    async with serving(authority, mode) as gateway:
        admin_tls = authority.context()
        hello = user("admin", "w", credentials={"api_key": key_of("all")})
        async with participant("framed", gateway.address, hello, tls=admin_tls) as admin:
            for workspace in ("dev", "prod"):
                asked = rule(("user", "eve"), ("workspace", workspace), READWRITE)
                await admin.send(pb.UpstreamMessage(acl_op=pb.ACLOperation(op=Op.GRANT, grant_request=asked)))
                assert (await admin.next("acl")).acl.success
        async with participant("framed", gateway.address, user("eve", "1"), tls=tls) as intruder:
            assert await refused(intruder, switch_to("prod")) == DENIED
            await intruder.send(switch_to("dev"))
            assert await refused(intruder, message_to("ag::prod::x::1", b"x")) == DENIED
        async with participant("framed", gateway.address, user("admin", "1"), tls=tls) as intruder:
            asked = rule(("user", "eve"), BLUE, READWRITE)
            await intruder.send(pb.UpstreamMessage(acl_op=pb.ACLOperation(op=Op.GRANT, grant_request=asked)))
            assert not (await intruder.next("acl")).acl.success


async def refused(peer: Participant, message: pb.UpstreamMessage) -> str:
    """The code of the refusal of a message."""
    await peer.send(message)
    return (await peer.next("error")).error.code


# -- our client, on both engines -------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_sends_after_a_revocation(scheme: str, engine: Engine) -> None:
    """Numbered sends by a route that was decided on before, pipelined ones among them."""
    storage = {}
    if isinstance(engine, PostgresEngine):
        storage = {"storage": {"database": engine.server.dsn(), "schema": engine.schema}}
    with trio.fail_after(LIMIT_S):
        async with (
            open_test_gateway(auth=auth(), access={"default": "closed"}, **storage) as gateway,
            user_of(gateway, "all", "admin") as admin,
            agent_of(gateway, "red", "eve", key="both", scheme=scheme) as intruder,
            agent_of(gateway, "blue", "bob", scheme=scheme) as victim,
        ):
            with pytest.raises(PermissionDenied):
                await intruder.send(BOB[1], b"too early")
            given = await admin.rules.grant(*EVE, *BLUE, AccessLevel.READWRITE)
            await intruder.send(BOB[1], b"allowed")
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(send_on, intruder)
                await admin.rules.revoke(given.rule_id)
                for _ in range(50):
                    nursery.start_soon(refused_send, intruder)
            seen = []
            await admin.rules.grant("user", "admin", *BLUE, AccessLevel.READWRITE)
            await admin.send(BOB[1], b"last")
            async for message in victim:
                seen.append(message.payload)
                if message.payload == b"last":
                    break
            assert seen[0] == b"allowed"
            assert b"late" not in seen
            assert b"too early" not in seen


async def send_on(intruder: AgentClient) -> None:
    """Send while the right is being revoked; either answer is right."""
    try:
        await intruder.send(BOB[1], b"meanwhile")
    except PermissionDenied:
        pass


async def refused_send(intruder: AgentClient) -> None:
    with pytest.raises(PermissionDenied):
        await intruder.send(BOB[1], b"late")
