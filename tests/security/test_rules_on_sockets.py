"""What certificates and clients on real sockets get past rules: nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from aether_trio.client import AetherError, AgentClient, PermissionDenied, ServiceClient
from aether_trio.client.operations import AccessLevel, TaskStatus
from aether_trio.gateway import Gateway
from aether_trio.model.errors import Status
from aether_trio.testing.memory import agent, message_to
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import QUICK, open_test_gateway
from tests.helpers.core import orchestrator, switch_to, user
from tests.helpers.engines import Engine, PostgresEngine
from tests.helpers.participants import TRANSPORTS, Participant, admission, participant
from tests.security.certificates import Authority
from tests.security.clients import gateway_with
from tests.security.intruders import BLUE, BOB, DENIED, EVE, RED
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


@asynccontextmanager
async def closed(engine: Engine) -> AsyncIterator[Gateway]:
    storage = {}
    if isinstance(engine, PostgresEngine):
        storage = {"storage": {"database": engine.server.dsn(), "schema": engine.schema}}
    with trio.fail_after(LIMIT_S):
        async with open_test_gateway(auth=auth(), access={"default": "closed"}, **storage) as gateway:
            yield gateway


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_sends_after_a_revocation(scheme: str, engine: Engine) -> None:
    """Numbered sends by a route that was decided on before, pipelined ones among them."""
    with trio.fail_after(LIMIT_S):
        async with (
            closed(engine) as gateway,
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


async def test_a_service_takes_tasks_of_workspaces_that_it_may_read(engine: Engine) -> None:
    async with closed(engine) as gateway, user_of(gateway, "all", "admin") as admin:
        address = f"aether://{gateway.address}"
        worker = ServiceClient(address, implementation="s", specifier="1", api_key=key_of("all"), retry=QUICK)
        async with worker, agent_of(gateway, "red", "boss") as red, agent_of(gateway, "blue", "boss") as blue:
            await blue.tasks.create("t", b"blue", pool="s")
            await red.tasks.create("t", b"red", pool="s")
            await admin.rules.grant("service", "sv::s::1", *RED, AccessLevel.READWRITE)
            await red.tasks.create("t", b"last", pool="s")
            done = []
            async for task in worker.work():
                async with task:
                    done.append(task.payload)
                if len(done) == 2:
                    break
            assert sorted(done) == [b"last", b"red"]


async def test_our_client_waits_for_a_principal(engine: Engine) -> None:
    async with closed(engine) as gateway, user_of(gateway, "all", "admin") as admin, AsyncExitStack() as stack:
        await admin.rules.grant("user", "ann", *RED, AccessLevel.READWRITE)
        ann = await stack.enter_async_context(user_of(gateway, "red", "ann"))
        worker = await stack.enter_async_context(agent_of(gateway, "red", "worker"))
        intruder = await stack.enter_async_context(agent_of(gateway, "red", "eve"))
        await ann.switch_workspace("red")
        made = await intruder.tasks.create("t", pool="worker")

        async def answer() -> None:
            while (await intruder.tasks.get(made.task_id)).status is not TaskStatus.WAITING_INPUT:
                await trio.sleep(0.02)
            await intruder.send_input(made.task_id, {"by": "eve"})
            with pytest.raises(AetherError, match="waits for"):
                await intruder.tasks.resume(made.task_id)
            assert (await intruder.tasks.get(made.task_id)).status is TaskStatus.WAITING_INPUT
            await ann.send_input(made.task_id, {"by": "ann"})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            async for task in worker.work():
                async with task:
                    await task.wait_for_input(expected_principal="ann")
                break
        assert (await intruder.tasks.get(made.task_id)).status is TaskStatus.COMPLETED
