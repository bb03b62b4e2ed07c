"""What a delegate may send by a known route after the end of its grant."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from aether_trio.client import PermissionDenied, ServiceClient
from aether_trio.gateway import Gateway
from aether_trio.model.access import AccessLevel
from aether_trio.services.authority.known_grants import KnownGrants
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import QUICK, SCHEMES
from tests.helpers.core import agent, connect, user
from tests.helpers.engines import Engine
from tests.security.tenants import LIMIT_S, key_of
from tests.security.test_rules_on_sockets import closed
from tests.services.authority.people import GrantOp, acting_for, allow, delegated, forbid, grant_op

BOB = "ag::blue::bob::1"
DELEGATE = ("service", "sv::eve::1")
BURST = 150  # more than a gateway handles of one connection at a time

End = Callable[[Gateway, MemoryLink, str, str], Awaitable[None]]


async def revoke(gateway: Gateway, ann: MemoryLink, grant_id: str, rule_id: str) -> None:
    assert (await grant_op(ann, GrantOp.REVOKE, grant_id=grant_id)).success


async def forbid_subject(gateway: Gateway, ann: MemoryLink, grant_id: str, rule_id: str) -> None:
    await forbid(gateway.core, rule_id)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("end", [revoke, forbid_subject])
async def test_sends_in_a_name_after_its_end(
    scheme: str, end: End, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pipelined sends among them, which are refused after the answer."""
    looked_up = count_finds(monkeypatch)
    with trio.fail_after(LIMIT_S):
        async with (
            closed(engine) as gateway,
            connect(gateway.core, user("ann", "w", credentials={"api_key": key_of("all")})) as ann,
            connect(gateway.core, agent("blue", "bob", "1", credentials={"api_key": key_of("blue")})) as victim,
            ServiceClient(
                f"{scheme}://{gateway.address}",
                implementation="eve",
                specifier="1",
                api_key=key_of("all"),
                retry=QUICK,
            ) as intruder,
        ):
            core = gateway.core
            rule_id = await allow(core, "user:ann", "workspace:blue", AccessLevel.READWRITE)
            grant_id = await delegated(core, ann, DELEGATE)
            details = pb.SendMessage(authorization=acting_for("ann", grant_id))
            with pytest.raises(PermissionDenied):
                await intruder.send(BOB, b"in its own name")
            for payload in (b"first", b"second"):
                await intruder.send(BOB, payload, details=details)
            looked_up.clear()
            for _ in range(BURST):
                await intruder.publish(BOB, b"allowed", details=details)
            await intruder.flush()
            assert looked_up == []
            async with trio.open_nursery() as nursery:
                for _ in range(BURST):
                    nursery.start_soon(send_on, intruder, details)
                await end(gateway, ann, grant_id, rule_id)
                for _ in range(BURST):
                    nursery.start_soon(refused_send, intruder, details)
            await allow(core, "service:" + DELEGATE[1], "workspace:blue", AccessLevel.READWRITE)
            await intruder.send(BOB, b"last")
            seen: list[pb.IncomingMessage] = []
            while not seen or seen[-1].payload != b"last":
                seen.append((await victim.next("msg")).msg)
            assert [one.payload for one in seen[: BURST + 2]] == [b"first", b"second", *[b"allowed"] * BURST]
            assert {one.payload for one in seen[BURST + 2 :]} <= {b"meanwhile", b"last"}
            assert {one.on_behalf_subject.principal_id for one in seen[:-1]} == {"ann"}
            assert not seen[-1].HasField("on_behalf_subject")


def count_finds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The grants that are looked up from now on."""
    looked_up: list[str] = []
    original = KnownGrants.find

    def find(self: KnownGrants, actor: object, context: pb.AuthorizationContext) -> object:
        looked_up.append(context.grant_id)
        return original(self, actor, context)  # type: ignore[arg-type]

    monkeypatch.setattr(KnownGrants, "find", find)
    return looked_up


async def send_on(intruder: ServiceClient, details: pb.SendMessage) -> None:
    """Send while the grant comes to its end; either answer is right."""
    try:
        await intruder.send(BOB, b"meanwhile", details=details)
    except PermissionDenied:
        pass


async def refused_send(intruder: ServiceClient, details: pb.SendMessage) -> None:
    with pytest.raises(PermissionDenied):
        await intruder.send(BOB, b"late", details=details)
