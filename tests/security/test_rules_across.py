"""A revocation is in force on nodes that hear nothing, and on nodes that wake."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import trio

from aether_trio.devtools.process_cluster import open_process_cluster
from aether_trio.services.access.changes import STALE_S
from aether_trio.testing.memory import agent, message_to
from aether_trio.wire.pb import aether_pb2 as pb
from tests.cluster.across.fabric import open_fabric
from tests.cluster.nodes import until
from tests.helpers.core import barrier, user
from tests.helpers.engines import PostgresEngine
from tests.helpers.participants import Participant, participant
from tests.security.intruders import BLUE, BOB, DENIED, EVE, code_of, payloads
from tests.services.access.acl import READWRITE, Op, acl, grant, rule

CLOSED: dict[str, Any] = {"default": "closed"}
NOT_CONFIRMED = "not confirmed"

_numbers = count(1)


async def test_deaf_node(postgres_engine: PostgresEngine) -> None:
    """Its clients are refused as soon as the revocation is answered, or it is named."""
    async with open_fabric(postgres_engine, access=CLOSED) as fabric:
        one, deaf, three = await fabric.start_many(3)
        admin = await one.join(user("admin", "w"))
        intruder = await deaf.join(agent("red", "eve", "1"))
        victim = await three.join(agent("blue", "bob", "1"))
        deaf.lose_notifications()
        for number in range(3):
            given = await grant(admin, EVE, BLUE, READWRITE)
            await until(lambda: deaf.core.changes.settled_version == one.core.changes.version)
            assert await code_of(intruder, message_to(BOB[1], b"%d" % number)) == ""
            assert await victim.take(1) == [b"%d" % number]
            revoked = await acl(admin, Op.REVOKE, rule_id=given.rule_id)
            assert revoked.success
            if NOT_CONFIRMED in revoked.message:
                await until(lambda: deaf.core.changes.settled_version == one.core.changes.version)
            assert await code_of(intruder, message_to(BOB[1], b"attack")) == DENIED
        await barrier(victim)
        assert payloads(victim) == []


async def test_a_session_ends_on_a_deaf_node(postgres_engine: PostgresEngine) -> None:
    """A lock, and the loss of the own workspace, end sessions of every node."""
    async with open_fabric(postgres_engine, access=CLOSED) as fabric:
        one, deaf, _ = await fabric.start_many(3)
        admin = await one.join(user("admin", "w"))
        locked = await deaf.join(agent("red", "eve", "1"))
        barred = await deaf.join(agent("blue", "eve", "2"))
        deaf.lose_notifications()
        await grant(admin, EVE, ("lock", "*"), 0, reason="stop")
        assert "locked: stop" in (await locked.wait_end()).message
        await grant(admin, ("agent", "ag::blue::eve::2"), BLUE, 0)
        assert "NONE" in (await barred.wait_end()).message


@pytest.mark.crash
async def test_node_wakes() -> None:
    """What a client sends to a stopped node is decided by the rules of when it wakes."""
    with trio.fail_after(600):
        async with open_process_cluster(3, settings=("access.default=closed",)) as cluster:
            one, stopped, three = cluster.nodes
            async with (
                participant("framed", one.address, user("admin", "w")) as admin,
                participant("framed", stopped.address, agent("red", "eve", "1")) as intruder,
                participant("framed", three.address, agent("blue", "bob", "1")) as victim,
            ):
                given = await ask(admin, op=Op.GRANT, grant_request=rule(EVE, BLUE, READWRITE))
                assert given.success, given.error
                await intruder.send(message_to(BOB[1], b"before"))
                assert (await victim.next("msg")).msg.payload == b"before"
                stopped.stop()
                revoked = await ask(admin, op=Op.REVOKE, rule_id=given.rule.rule_id)
                assert (revoked.success, NOT_CONFIRMED in revoked.message, "node-2" in revoked.message) == (
                    True,
                    True,
                    True,
                )
                await intruder.send(message_to(BOB[1], b"attack"))
                await trio.sleep(STALE_S + 1)
                stopped.cont()
                await intruder.send(message_to(BOB[1], b"attack"))
                for _ in range(2):
                    assert (await intruder.next("error")).error.code == DENIED
                await ask(admin, op=Op.GRANT, grant_request=rule(("user", "admin"), BLUE, READWRITE))
                await admin.send(message_to(BOB[1], b"after"))
                assert (await victim.next("msg")).msg.payload == b"after"


async def ask(peer: Participant, **fields: Any) -> pb.ACLResponse:
    """Perform one operation of access administration."""
    request_id = f"acl-{next(_numbers)}"
    await peer.send(pb.UpstreamMessage(acl_op=pb.ACLOperation(request_id=request_id, **fields)))
    answer = (await peer.next("acl")).acl
    assert answer.request_id == request_id
    return answer
