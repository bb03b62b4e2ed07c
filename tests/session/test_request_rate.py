"""Requests beyond their rate are refused with their id, and end no connection."""

from __future__ import annotations

import trio

from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, errors, kv_get, message_to, payloads

NARROW = {"request_rate_per_s": 10.0, "request_burst": 20}


async def test_what_is_beyond_the_rate_is_refused_with_its_id(world: World) -> None:
    async with world.open(limits=NARROW) as core, connect(core, agent("w", "a", "1")) as peer:
        peer.send(*(kv_get(f"{number}") for number in range(30)))
        peer.send(message_to("ag::w::a::1", b"a message is no request"))
        await trio.sleep(0.05)
        assert [one.kv.request_id for one in peer.waiting("kv")] == [f"{number}" for number in range(20)]
        refused = errors(peer)
        assert {one.code for one in refused} == {"ERR_RATE_LIMITED"}
        assert [one.request_id for one in refused] == [f"{number}" for number in range(20, 30)]
        assert all(one.retryable and 0 < one.retry_after_ms <= 101 for one in refused)
        assert core.dispatcher.counts["kv_op"] == 20
        await trio.sleep(refused[-1].retry_after_ms / 1000)
        peer.send(kv_get("later"))
        await trio.sleep(0.05)
        assert peer.waiting("kv")[-1].kv.request_id == "later"
        assert payloads(peer) == [b"a message is no request"]


async def test_every_kind_of_request_counts_and_progress_does_not(world: World) -> None:
    async with (
        world.open(limits={**NARROW, "send_rate_per_s": 0.0}) as core,
        connect(core, agent("w", "a", "1")) as peer,
    ):
        requests = [
            pb.UpstreamMessage(kv_op=pb.KVOperation(request_id="0")),
            pb.UpstreamMessage(checkpoint_op=pb.CheckpointOperation(request_id="1")),
            pb.UpstreamMessage(session_op=pb.SessionOperation(request_id="2")),
            pb.UpstreamMessage(task_query=pb.TaskQuery(request_id="3")),
            pb.UpstreamMessage(agent_op=pb.AgentOperation(request_id="4")),
            pb.UpstreamMessage(),
        ]
        peer.send(*(kv_get("first") for _ in range(20)))
        peer.send(*[pb.UpstreamMessage(progress=pb.ProgressReport(task_id="t"))] * 50)
        peer.send(*requests)
        await trio.sleep(0.05)
        refused = [one for one in errors(peer) if one.code == "ERR_RATE_LIMITED"]
        assert [one.request_id for one in refused] == ["0", "1", "2", "3", "4", ""]


async def test_connections_do_not_share_their_rate(world: World) -> None:
    async with world.open(limits=NARROW) as core:
        for number in range(5):
            async with connect(core, agent("w", "a", f"{number}")) as peer:
                peer.send(*(kv_get("x") for _ in range(15)))
                await barrier(peer)
                assert errors(peer) == []
