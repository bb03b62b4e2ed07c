"""Ending a session that another node holds: confirmed, or said not to be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from aether_trio.cluster.locks.directory import DirectoryLimits
from aether_trio.cluster.locks.remote_disconnects import MAX_REASON
from aether_trio.model.errors import Status
from aether_trio.model.ownership import DisconnectOutcome, DisconnectResult
from aether_trio.wire.pb import aether_pb2 as pb
from tests.cluster.nodes import LONG_S, Nodes, until
from tests.cluster.seats import LATE, SOON, Seat, lose_notifications, seat, seats
from tests.helpers.engines import PostgresEngine

X = "ag::lab::x::1"
DONE = DisconnectResult(DisconnectOutcome.DONE, X)
UNKNOWN = DisconnectResult(DisconnectOutcome.UNKNOWN)


async def test_a_session_is_ended_by_whichever_node_is_asked(nodes: Nodes) -> None:
    async with seats(await nodes.start(), await nodes.start(), limits=LATE) as (a, b):
        for asked in (a, b):
            guest = await a.connect(X)
            with trio.fail_after(LONG_S):
                assert await asked.directory.disconnect(guest.session_id, "enough") == DONE
            assert guest.ends == [(Status.CANCELLED, "enough", pb.Signal.FORCE_DISCONNECT)]
            assert len(a.registry) == 0
            await a.node.cluster.locks.batcher.settled()
            assert await asked.directory.disconnect(guest.session_id, "again") == UNKNOWN
        for given, heard in (("", "disconnected by an operator"), ("ü" * 5000, "ü" * MAX_REASON)):
            guest = await a.connect(X)
            assert await b.directory.disconnect(guest.session_id, given) == DONE
            assert guest.ends[0][1] == heard
            await a.node.cluster.locks.batcher.settled()
        statistics = b.directory.statistics().disconnects
        assert (statistics.asked, statistics.unconfirmed) == (3, 0)
        assert a.directory.statistics().disconnects.carried_out == 3


@pytest.mark.parametrize("deaf", ["holder", "asker", "both"])
async def test_lost_notifications_cost_time_and_nothing_else(nodes: Nodes, deaf: str) -> None:
    async with seats(await nodes.start(), await nodes.start()) as (a, b):
        if deaf != "asker":
            lose_notifications(a.node)
        if deaf != "holder":
            lose_notifications(b.node)
        for _ in range(3):
            guest = await a.connect(X)
            assert await b.directory.disconnect(guest.session_id, "enough") == DONE
            assert len(guest.ends) == 1


async def test_a_node_that_does_not_answer_is_said_not_to_have_and_obeys_when_it_hears_of_it(nodes: Nodes) -> None:
    limits = DirectoryLimits(poll_s=0.3, ask_again_s=0.1, wait_s=1.0)
    holder = await nodes.start()
    async with seats(await nodes.start(), limits=limits) as (b,):
        async with seat(holder, SOON) as a:
            guest = await a.connect(X)
        # Its lease is in force, and no task there reads requests.
        assert await b.directory.disconnect(guest.session_id, "enough") == DisconnectResult(
            DisconnectOutcome.UNCONFIRMED, X
        )
        assert b.directory.statistics().disconnects.unconfirmed == 1
        assert guest.ends == []
        async with seat(holder, SOON) as a:
            a.registry.claim(guest, "")  # type: ignore[arg-type]
            await until(lambda: len(guest.ends) == 1)
            assert guest.ends[0][1] == "enough"


async def _while_unanswered(b: Seat, session_id: str, meanwhile: Callable[[], Awaitable[None]]) -> DisconnectResult:
    """Have a session ended whose node does not answer, and act meanwhile."""
    result: list[DisconnectResult] = []

    async def disconnect() -> None:
        result.append(await b.directory.disconnect(session_id, "enough"))

    with trio.fail_after(LONG_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disconnect)
            while b.directory.statistics().disconnects.asked == 0:
                await trio.sleep(0.01)
            await trio.sleep(0.3)
            assert result == []
            await meanwhile()
    return result[0]


@pytest.mark.parametrize("what", ["the session", "its node"])
async def test_a_session_that_ends_meanwhile_is_disconnected(nodes: Nodes, what: str) -> None:
    holder = await nodes.start()
    async with seats(await nodes.start()) as (b,):
        claimed = await holder.claim(X)

        async def end() -> None:
            if what == "its node":
                await nodes.stop(holder)
            else:
                holder.cluster.locks.release(claimed.lock)

        assert await _while_unanswered(b, claimed.lock.session_id, end) == DONE


async def test_many_may_ask_at_once_and_it_ends_once(nodes: Nodes, place: PostgresEngine) -> None:
    async with seats(await nodes.start(), await nodes.start(), await nodes.start()) as (a, b, c):
        guests = [await a.connect(f"ag::lab::x::{number}") for number in range(20)]
        outcomes: list[DisconnectResult] = []

        async def disconnect(one: Seat, session_id: str) -> None:
            outcomes.append(await one.directory.disconnect(session_id, "enough"))

        with trio.fail_after(LONG_S):
            async with trio.open_nursery() as nursery:
                for guest in guests:
                    for one in (a, b, b, c):
                        nursery.start_soon(disconnect, one, guest.session_id)
        assert {one.outcome for one in outcomes} <= {DisconnectOutcome.DONE, DisconnectOutcome.UNKNOWN}
        assert [len(guest.ends) for guest in guests] == [1] * 20
        place.outside("UPDATE disconnects SET asked_ms = asked_ms - 200000")
        await until(lambda: place.rows("SELECT count(*) FROM disconnects") == [(0,)])
