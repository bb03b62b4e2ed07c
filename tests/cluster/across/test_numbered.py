"""Numbered sends over several nodes are one message each, and none is refused.

What it has no receipt for it sends again on the next connection, and now and then what it has one
for, as if that had been lost.
"""

from __future__ import annotations

import random

import pytest

from tests.cluster.across.fabric import Fabric, Numbered
from tests.helpers.core import agent, barrier, payloads

TOPIC = "ag::w::reader::1"


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_repetition_is_no_second_message_wherever_it_comes(fabric: Fabric, seed: int) -> None:
    chance = random.Random(seed)
    gateways = await fabric.start_many(2)
    reader = await gateways[1].join(agent("w", "reader", "1"))
    token, resume, last, acked = bytes(16), "", 0, 0
    for turn in range(20):
        link = Numbered(token)
        gateway = gateways[turn % 2] if turn < 8 else chance.choice(gateways)
        # The connection before is open still, or has broken: both are taken over.
        await gateway.join(agent("w", "sender", "1", resume_session_id=resume), link)
        assert link.ack.resumed == bool(turn)
        resume = link.ack.session_id
        again = max(1, acked + 1 - chance.choice((0, 0, 15)))
        fresh = last + chance.randint(1, 10)
        link.publish(TOPIC, *range(again, fresh + 1))
        last = fresh
        how = chance.choice(("acked", "at once", "cut"))
        if how == "acked" or turn == 19:
            await link.wait_acked(last)
        elif how == "cut":
            await barrier(link)
            link.cut()
        acked = max(acked, link.acked)
        assert link.refused == []
    heard: list[bytes] = []
    while b"%d" % last not in heard:
        heard += await reader.take(1)
    assert heard == [b"%d" % seq for seq in range(1, last + 1)]
    await barrier(reader)
    assert payloads(reader) == []
