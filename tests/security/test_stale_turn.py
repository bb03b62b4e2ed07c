"""A node that cannot look for changes stops amid what it has read, too."""

from __future__ import annotations

import math

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.session.lease_gate import LeaseGate
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, kv_put, message_to, user
from tests.services.authority.people import acting_for, delegated

PLANNER = ("agent", "ag::prod::planner::1")
HELPER = ("agent", "ag::prod::helper::1")


async def test_what_was_read_with_a_request_that_took_too_long(core: Core, world: World) -> None:
    """The database stalls, or the node is stopped, amid the requests of a batch."""
    async with (
        connect(core, user("ann", "w1")) as ann,
        connect(core, agent("prod", "planner", "1")) as peer,
        connect(core, agent("prod", "helper", "1")) as helper,
    ):
        grant_id = await delegated(core, ann, PLANNER)
        await barrier(peer, helper)
        gate = core.changes._gate
        assert isinstance(gate, LeaseGate)
        world.state.before_write.close()
        message = pb.SendMessage(target_topic=HELPER[1], payload=b"1", authorization=acting_for("ann", grant_id))
        peer.send(kv_put("k", b"x"), pb.UpstreamMessage(send=message), message_to(HELPER[1], b"2"))
        await world.state.before_write.arrival()
        with pytest.MonkeyPatch.context() as patch:  # no look succeeds
            patch.setattr(LeaseGate, "fresh_until", lambda self, moment_s: None)
            gate.closes_at_s = trio.current_time()
            world.state.before_write.open()
            await peer.next("kv")
            for _ in range(50):
                await trio.sleep(0.01)
            assert not helper.waiting("msg")
        gate.fresh_until(math.inf)
        assert [(await helper.next("msg")).msg.payload for _ in range(2)] == [b"1", b"2"]
