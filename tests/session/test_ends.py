"""However a session ends, its identity is free, and its client knows the reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import trio

from aether_trio.concurrency.kicks import Kickable
from aether_trio.gateway.core import Core
from aether_trio.model.errors import Code, Status
from aether_trio.testing.memory import MemoryLink
from aether_trio.transport.link import HandleNow, Upstream
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import (
    World,
    agent,
    barrier,
    connect,
    deadlock_is_an_error,
    kv_get,
    kv_put,
    message_to,
    orchestrator,
    payloads,
    pump,
    rest_of,
    user,
)
from tests.session.peers import ack_of, disconnect, refusal, silent_end, visit

ONE = "ag::w::a::1"


def session_id_of(core: Core, identity: str) -> str:
    holder = core.registry.holder(identity)
    assert holder is not None
    return holder.session_id


async def test_a_cut_is_noticed_while_answers_pile_up(core: Core, peer: MemoryLink) -> None:
    """A client that asks, reads nothing and vanishes must not keep its identity."""
    limit = core.sessions._parts.outbox_limits.control_bytes
    size = 16 * 1024
    peer.send(kv_put("nothing", bytes(size)))
    await peer.next("kv")
    peer.pause()
    for number in range(limit // size + 2):
        peer.send(kv_get(f"{number}"))
    with trio.fail_after(300):
        while core.registry.holder(ONE).outbox.control_has_room:  # type: ignore[union-attr]
            await trio.sleep(0.01)
    await pump()
    peer.cut()
    await pump()
    assert core.registry.holder(ONE) is None


@pytest.mark.usefixtures("every_name_may_exist")
@pytest.mark.parametrize("what", ["a request", "a commit", "room in the log", "its opening"])
async def test_a_cut_frees_the_identity_though_storage_hangs(world: World, what: str) -> None:
    log = {"pending_bytes": 2000}
    async with deadlock_is_an_error(), world.open(log=log) as core:
        link = MemoryLink()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.sessions.serve, link)
            if what == "its opening":
                world.state.after_read.close()
            link.send(agent("w", "a", "1"))
            if what != "its opening":
                await link.next("config")
            world.state.before_write.close()
            world.log.before_write.close()
            if what == "a request":
                link.send(kv_put("k", b"v"))
            elif what == "a commit":
                link.send(message_to(ONE, b"x"), kv_get("asked"))
            elif what == "room in the log":
                link.send(message_to(ONE, b"x" * 3000))
            await pump(50)
            assert core.registry.holder(ONE) is not None
            link.cut()
            await trio.sleep(0.9)
            assert core.registry.holder(ONE) is None
            world.state.after_read.open()
            world.state.before_write.open()
            world.log.before_write.open()
        assert core.registry.holder(ONE) is None


async def test_a_session_that_hangs_behind_a_cut_is_no_duplicate(core: Core, peer: MemoryLink, world: World) -> None:
    world.state.before_write.close()
    peer.send(kv_put("k", b"v"))
    await world.state.before_write.arrival()
    peer.cut()
    before = trio.current_time()
    async with connect(core, agent("w", "a", "1")):
        assert trio.current_time() - before <= 0.1
    world.state.before_write.open()


async def test_what_arrived_before_a_cut_is_still_handled(core: Core) -> None:
    async with connect(core, agent("w", "a", "1")) as peer, connect(core, agent("w", "a", "2")) as other:
        peer.send(message_to("ag::w::a::2", b"last words"))
        peer.cut()
        await barrier(other)
        assert payloads(other) == [b"last words"]


async def test_a_stream_that_broke_while_it_was_admitted_takes_nothing_over(core: Core) -> None:
    async with connect(core, agent("w", "a", "1"), wait_ack=False) as holder:
        ack = await ack_of(holder)
        dead = MemoryLink()
        dead.send(agent("w", "a", "1", resume_session_id=ack.session_id))
        dead.cut()
        await core.sessions.serve(dead)
        assert session_id_of(core, ONE) == ack.session_id


async def test_a_kick_signals_force_and_ends_with_a_status_that_is_not_ok(core: Core) -> None:
    async with connect(core, orchestrator("ops", "1")) as operator, connect(core, agent("w", "a", "1")) as peer:
        operator.send(disconnect(session_id_of(core, ONE), "too loud"))
        signal = (await peer.next("signal")).signal
        assert (signal.type, signal.reason) == (pb.Signal.FORCE_DISCONNECT, "too loud")
        ended = await peer.wait_end()
        assert (ended.status, ended.message) == (Status.CANCELLED, "too loud")
        assert (await operator.next("session_response")).session_response.success
        assert core.registry.holder(ONE) is None
    await visit(core, agent("w", "a", "1"))


async def test_a_kick_waits_a_moment_for_a_reader_that_is_behind(core: Core) -> None:
    """The signal, which tells whether to come back, must not be lost in a full socket."""
    async with connect(core, orchestrator("ops", "1")) as operator, connect(core, agent("w", "a", "1")) as peer:
        peer.pause()
        operator.send(disconnect(session_id_of(core, ONE)))
        await operator.next("session_response")
        await pump()
        assert core.registry.holder(ONE) is None  # the identity is free at once
        assert peer.ended is None
        peer.resume()
        assert (await peer.next("signal")).signal.type == pb.Signal.FORCE_DISCONNECT
        assert (await peer.wait_end()).status is Status.CANCELLED


async def test_a_kick_of_a_stuck_reader_ends_in_bounded_time(core: Core) -> None:
    async with connect(core, orchestrator("ops", "1")) as operator, connect(core, agent("w", "a", "1")) as peer:
        peer.pause()
        operator.send(disconnect(session_id_of(core, ONE)))
        await trio.sleep(60)
        assert peer.ended is not None
        assert peer.ended.status is Status.CANCELLED


async def test_who_disconnects_itself_is_served_no_further(core: Core) -> None:
    async with connect(core, agent("w", "a", "2")) as other, connect(core, orchestrator("ops", "1")) as peer:
        peer.send(disconnect(session_id_of(core, "orc::ops::1")), message_to("ag::w::a::2", b"from beyond"))
        assert (await peer.wait_end()).status is Status.CANCELLED
        await barrier(other)
        assert payloads(other) == []


async def test_a_batch_that_meets_the_end_of_its_session_is_not_handled(core: Core) -> None:
    link = MemoryLink()
    async with trio.open_nursery() as nursery, connect(core, agent("w", "a", "2")) as other:
        nursery.start_soon(core.sessions.serve, link)
        link.send(agent("w", "a", "1"))
        await link.next("config")
        await pump()
        link.send(message_to("ag::w::a::2", b"late"))  # wakes its task...
        core.registry.holder(ONE).end(Status.CANCELLED, "taken over")  # type: ignore[union-attr]  # ...too late
        assert (await link.wait_end()).status is Status.CANCELLED
        await barrier(other)
        assert payloads(other) == []


# -- takeover --------------------------------------------------------------------------------------


async def test_a_takeover_loses_and_repeats_nothing(core: Core) -> None:
    async with trio.open_nursery() as nursery, connect(core, agent("w", "a", "2")) as sender:
        link, got = MemoryLink(), []
        nursery.start_soon(core.sessions.serve, link)
        link.send(agent("w", "a", "1"))
        for generation in range(20):
            ack = await ack_of(link)
            sender.send(*(message_to(ONE, b"%d-%d" % (generation, number)) for number in range(20)))
            await pump(generation)  # at a different moment each time
            heir = MemoryLink()
            nursery.start_soon(core.sessions.serve, heir)
            heir.send(agent("w", "a", "1", resume_session_id=ack.session_id))
            got += [one.msg.payload for one in await rest_of(link) if one.HasField("msg")]
            assert link.ended is not None
            assert link.ended.status is Status.CANCELLED
            link = heir
        await barrier(sender, link)
        got += payloads(link)
        link.finish()
    assert got == [b"%d-%d" % (generation, number) for generation in range(20) for number in range(20)]


@pytest.mark.usefixtures("every_name_may_exist")
async def test_a_session_evicted_while_it_opens_opens_nothing(core: Core, world: World) -> None:
    world.state.after_read.close()
    async with trio.open_nursery() as nursery:
        first, second = MemoryLink(), MemoryLink()
        nursery.start_soon(core.sessions.serve, first)
        first.send(agent("w", "a", "1"), message_to("ag::w::a::9", b"early"))
        await world.state.after_read.arrival()
        session = core.registry.holder(ONE)
        assert session is not None
        world.state.after_read.open()
        world.log.after_read.close()
        await world.log.after_read.arrival()
        world.log.after_read.open()  # its answer is under way...
        nursery.start_soon(core.sessions.serve, second)
        session.end(Status.CANCELLED, "taken over")  # ...when it is ended
        assert (await silent_end(first)).status is Status.CANCELLED
        second.send(agent("w", "a", "1"))
        await second.next("connection_ack")
        await barrier(second)
        assert core.router.statistics().accepted == {}
        assert [state.waiting for state in core.log.topics._topics.values() if not state.subscribers] == []
        second.finish()


# -- what must not break when a session ends -------------------------------------------------------


class EndingLink(MemoryLink):
    """Says when the end of the client's side has just been reported."""

    reported = False

    async def receive(self, handle_now: HandleNow | None = None) -> Sequence[Upstream]:
        batch = await super().receive(handle_now)
        self.reported = not batch
        return batch


async def test_an_offer_in_the_moment_of_an_end_does_no_harm(core: Core) -> None:
    """A lagging subscriber starts a task in its session's nursery at any moment."""
    touched: set[Kickable] = set()
    # Tasks run in random order, and the moment is one turn of the scheduler long.
    for _ in range(20):
        link = EndingLink()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.sessions.serve, link)
            link.send(agent("w", "a", "1"))
            await link.next("config")
            state = core.log.topics.ensure(ONE)
            assert len(state.subscribers) == 1
            link.finish()
            while link.ended is None:
                if link.reported:
                    for subscriber in list(state.subscribers):
                        subscriber.offer(10**9, b"too far ahead to be taken", touched)
                await trio.lowlevel.checkpoint()
        assert link.reported
        assert not state.subscribers


async def test_ok_comes_after_the_commit_of_what_was_sent(core: Core, peer: MemoryLink, world: World) -> None:
    world.log.before_write.close()
    peer.send(message_to(ONE, b"last words"))
    peer.finish()
    await world.log.before_write.arrival()
    await pump()
    assert core.registry.holder(ONE) is None
    assert peer.ended is None
    world.log.before_write.open()
    assert (await peer.wait_end()).status is Status.OK


async def test_who_ends_its_side_still_learns_what_was_not_stored(peer: MemoryLink, world: World) -> None:
    world.log.failing = True
    peer.send(message_to(ONE, b"last words"))
    peer.finish()
    assert (await peer.next("error")).error.code == Code.PUBLISH_FAILED
    assert (await peer.wait_end()).status is Status.OK
    world.log.failing = False


async def test_answers_come_before_the_end(peer: MemoryLink) -> None:
    peer.pause()
    peer.send(kv_get("asked"))
    peer.finish()
    await pump()
    peer.resume()
    assert (await peer.next("kv")).kv.request_id == "asked"
    assert (await peer.wait_end()).status is Status.OK


# -- drain -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sdk", "signalled"), [("python", False), ("go", True), ("", True)])
async def test_a_drain_ends_with_unavailable(core: Core, sdk: str, signalled: bool) -> None:
    async with connect(core, agent("w", "a", "1", client_sdk=sdk)) as peer:
        await core.sessions.ask_to_reconnect("going down")
        assert [one.signal.type for one in peer.waiting("signal")] == [pb.Signal.GRACEFUL_DISCONNECT] * signalled
        ended = await peer.wait_end()
        assert (ended.status, ended.message) == (Status.UNAVAILABLE, "going down")


async def test_while_draining_no_client_is_admitted(core: Core) -> None:
    core.sessions.handshake.stop_admitting()
    assert (await refusal(core, agent("w", "a", "1"))).status is Status.UNAVAILABLE
    assert len(core.registry) == 0


@pytest.mark.usefixtures("every_name_may_exist")
async def test_a_drain_ends_a_session_that_is_opening_before_it_says_anything(core: Core, world: World) -> None:
    world.state.after_read.close()
    async with connect(core, agent("w", "a", "1", client_sdk="go"), wait_ack=False) as peer:
        await world.state.after_read.arrival()
        await core.sessions.ask_to_reconnect("going down")
        # A first message of any kind would read as "connected".
        assert (await silent_end(peer)).status is Status.UNAVAILABLE
        world.state.after_read.open()


async def test_many_sessions_come_and_go_and_leave_nothing(core: Core) -> None:
    async def visit(number: int) -> None:
        async with connect(core, [agent("w", "a", f"{number}"), user("u", f"{number}")][number % 2]) as peer:
            peer.send(message_to(f"ag::w::a::{number // 2}", b"hello"))
            if number % 3:
                await barrier(peer)
            if number % 5 == 0:
                peer.cut()

    async with trio.open_nursery() as nursery:
        for number in range(300):
            nursery.start_soon(visit, number)
    await pump()
    assert len(core.registry) == 0
    await core.log.drain()
    await trio.sleep(1)  # cursors are written
    assert [state for state in core.log.topics._topics.values() if not state.forgettable] == []


@pytest.mark.usefixtures("every_name_may_exist")
async def test_a_session_whose_publisher_cannot_be_read_leaves_nothing_pinned(core: Core, world: World) -> None:
    """What it was to listen to has been looked up by then."""
    async with trio.open_nursery() as nursery:
        link = MemoryLink()
        link.peer = dataclasses.replace(link.peer, publisher=bytes(16))
        world.log.after_read.close()
        nursery.start_soon(core.sessions.serve, link)
        link.send(agent("w", "a", "1"))
        await world.log.after_read.arrival()
        world.log.failing = True
        world.log.after_read.open()
        assert (await silent_end(link)).status is Status.UNAVAILABLE
    assert [state.waiting for state in core.log.topics._topics.values()] == [0] * len(core.log.topics._topics)
    world.log.failing = False


@pytest.mark.parametrize("request_type", ["kv", "checkpoint"])
async def test_nothing_is_handled_for_a_session_that_ends_as_it_gets_room_for_answers(
    core: Core, peer: MemoryLink, request_type: str
) -> None:
    """A wait that is over is not cancelled any more."""
    size = core.sessions._parts.outbox_limits.control_bytes // 4
    if request_type == "kv":
        save, load = kv_put("nothing", bytes(size)), kv_get("load")
    else:
        kind = pb.CheckpointOperation
        save = pb.UpstreamMessage(checkpoint_op=kind(op=kind.SAVE, data=bytes(size)))
        load = pb.UpstreamMessage(checkpoint_op=kind(op=kind.LOAD))
    peer.send(save)
    await peer.next(request_type)
    session = core.registry.holder(ONE)
    assert session is not None
    peer.pause()
    peer.send(*[load] * 4, message_to(ONE, b"too late"))
    with trio.fail_after(300):
        while session.outbox.control_has_room:
            await trio.sleep(0.01)
    await pump()
    peer.resume()
    session.end(Status.CANCELLED, "taken over")
    await pump()
    assert session.sender.last_append == 0
