"""What the metrics say of access data, decisions, and sessions that were ended."""

from __future__ import annotations

from aether_trio.gateway.core import Core
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, barrier, connect, orchestrator, user
from tests.services.access.acl import READ, Op, done, grant, may


def figures(core: Core) -> dict[str, float]:
    text = core.metrics.render()[1].decode()
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def ended(core: Core) -> dict[str, float]:
    """The sessions that were ended, by cause, without zeros."""
    name = "aether_access_sessions_ended_total"
    found = {text: value for text, value in figures(core).items() if text.startswith(name)}
    assert len(found) == 4
    return {text.split('"')[1]: value for text, value in found.items() if value}


async def token_of(maker: MemoryLink) -> pb.TokenResponse:
    request = pb.TokenCreateRequest(name="t", principal_type="agent", expires_in_hours=1)
    op = pb.TokenOperation(op=pb.TokenOperation.CREATE, create_request=request, request_id="t")
    maker.send(pb.UpstreamMessage(token_op=op))
    return (await maker.next("token")).token


async def test_sessions_that_were_ended_are_counted_by_cause(closed: Core) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin, connect(closed, user("admin", "1")) as maker:
        assert ended(closed) == {}
        async with connect(closed, agent("red", "ann", "1")) as ann:
            await grant(admin, ("agent", "ag::red::ann::1"), ("workspace", "red"), 0)
            await ann.wait_end()
        assert ended(closed) == {"right": 1}
        async with connect(closed, agent("red", "bob", "1")) as bob, connect(closed, agent("blue", "x", "1")) as other:
            await grant(admin, ("agent", "ag::red::*"), ("lock", "*"), 0)
            await bob.wait_end()
            await barrier(other)
        assert ended(closed) == {"right": 1, "lock": 1}
        made = await token_of(maker)
        async with connect(closed, agent("blue", "ann", "1", credentials={"api_key": made.plaintext_token})) as ann:
            revoke = pb.TokenOperation(op=pb.TokenOperation.REVOKE, token_id=made.created_token.id, request_id="r")
            maker.send(pb.UpstreamMessage(token_op=revoke))
            await ann.wait_end()
        assert ended(closed) == {"right": 1, "lock": 1, "credential": 1}


async def test_decisions_and_versions(closed: Core) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin, connect(closed, agent("red", "ann", "1")) as ann:
        await may(ann, ("workspace", "blue"), READ)
        before = figures(closed)
        for _ in range(5):
            await may(ann, ("workspace", "blue"), READ)
        after = figures(closed)
        assert after["aether_access_decisions_hits_total"] >= before["aether_access_decisions_hits_total"] + 5
        assert after["aether_access_decisions_misses_total"] == before["aether_access_decisions_misses_total"]
        assert after["aether_access_decisions_remembered"] > 0
        await done(admin, Op.CREATE_GROUP, name="g", group_request=pb.ACLGroupRequest(description="d"))
        changed = figures(closed)
        assert changed["aether_access_version"] == after["aether_access_version"] + 1
        assert changed["aether_access_settled_version"] == changed["aether_access_version"]
        assert (changed["aether_access_look_age_seconds"] > 0) is closed.tasks.engine.database.shared
