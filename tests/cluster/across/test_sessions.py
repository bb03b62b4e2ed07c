"""One identity on many nodes: who has it, how it moves, and that nothing is lost."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any
from unittest import mock

import pytest
import trio

from aether_trio.model.errors import Status
from aether_trio.storage.base import StorageUnavailable
from aether_trio.testing.memory import StreamEnded
from aether_trio.wire.pb import aether_pb2 as pb
from tests.cluster.across.fabric import Fabric, Gateway, Participant, join, open_fabric, until
from tests.cluster.across.leases import without_lease
from tests.helpers.core import agent, barrier, errors, message_to, payloads, pump, service, task
from tests.helpers.engines import PostgresEngine

ME = "ag::w::me::1"


def me(resume: str = "") -> pb.UpstreamMessage:
    return agent("w", "me", "1", resume_session_id=resume)


async def refusal(gateway: Gateway, hello: pb.UpstreamMessage) -> StreamEnded:
    link = Participant()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.core.sessions.serve, link)
        link.send(hello)
        return await link.wait_end()
    raise AssertionError("it was neither refused nor let in")


async def test_an_identity_that_is_held_is_refused_on_every_node(fabric: Fabric) -> None:
    one, two = await fabric.start_many(2)
    holder = await one.join(me())
    for gateway in (one, two):
        for resume in ("", "another"):
            ended = await refusal(gateway, me(resume))
            assert (ended.status, ended.message[:22]) == (Status.ALREADY_EXISTS, "DuplicateIdentityError")
    holder.send(message_to(ME, b"still here"))
    assert await holder.take(1) == [b"still here"]


async def test_of_many_who_want_an_identity_one_gets_it(fabric: Fabric) -> None:
    gateways = await fabric.start_many(3)
    links = [Participant() for _ in range(12)]
    async with trio.open_nursery() as nursery:
        for number, link in enumerate(links):
            nursery.start_soon(gateways[number % 3].core.sessions.serve, link)
            link.send(me())
        await until(lambda: sum(link.ended is not None for link in links) == 11)
        [winner] = [link for link in links if link.ended is None]
        assert {link.ended.status for link in links if link.ended is not None} == {Status.ALREADY_EXISTS}
        await winner.next("connection_ack")
        winner.send(message_to(ME, b"mine"))
        assert await winner.take(1) == [b"mine"]
        winner.finish()


async def test_a_session_is_taken_over_by_another_node(fabric: Fabric) -> None:
    one, two = await fabric.start_many(2)
    first, sender = await one.join(me()), await two.join(agent("w", "sender", "1"))
    assert (first.ack.resumed, first.ack.reconnection_count) == (False, 0)
    sender.send(message_to(ME, b"1"), message_to(ME, b"2"))
    assert await first.take(2) == [b"1", b"2"]
    second = await two.join(me(first.ack.session_id))
    ended = await first.wait_end()
    assert ended.status is Status.CANCELLED
    assert "taken over" in ended.message
    assert (second.ack.resumed, second.ack.reconnection_count) == (True, 1)
    assert second.ack.initial_connection_unix_ms == first.ack.initial_connection_unix_ms
    assert second.ack.session_id != first.ack.session_id
    sender.send(message_to(ME, b"3"))
    assert await second.take(1) == [b"3"]
    # And back, where the first one is still remembered.
    third = await one.join(me(second.ack.session_id))
    assert (third.ack.resumed, third.ack.reconnection_count) == (True, 2)
    assert third.ack.initial_connection_unix_ms == first.ack.initial_connection_unix_ms
    sender.send(message_to(ME, b"4"))
    assert await third.take(1) == [b"4"]
    assert payloads(second) == payloads(third) == []


async def test_a_session_of_the_past_is_not_resumed_where_it_was(fabric: Fabric) -> None:
    """The node that remembers it is not the last one that the identity was on."""
    one, two = await fabric.start_many(2)
    async with join(one, me()) as first:
        pass
    async with join(two, me()):
        pass
    third = await one.join(me(first.ack.session_id))
    assert (third.ack.resumed, third.ack.reconnection_count) == (False, 0)


async def test_what_a_reader_has_not_read_goes_to_a_successor_on_another_node(postgres_engine: PostgresEngine) -> None:
    async with open_fabric(postgres_engine, log={"outbox_bytes": 4096, "offset_flush_s": 30.0}) as fabric:
        one, two = await fabric.start_many(2)
        async with join(one, me()) as first, join(two, agent("w", "sender", "1")) as sender:
            sender.send(*[message_to(ME, b"%d" % number) for number in range(50)])
            assert await first.take(50) == [b"%d" % number for number in range(50)]
            first.pause()
            sender.send(*[message_to(ME, bytes(200) + b"%d" % number) for number in range(50)])
            await barrier(sender)
            async with join(two, me(first.ack.session_id)) as second:
                await first.wait_end()
                assert await second.take(50) == [bytes(200) + b"%d" % number for number in range(50)]
                assert payloads(second) == []


async def test_offline_messages_wait_for_a_node(fabric: Fabric) -> None:
    one, two = await fabric.start_many(2)
    topics = {ME: me(), "tu::w::sum::u": task("w", "sum", "u"), "sv::mail::1": service("mail", "1")}
    async with join(one, agent("w", "sender", "1")) as sender:
        sender.send(*[message_to(topic, b"%d" % number) for topic in topics for number in range(20)])
        await barrier(sender)
        assert errors(sender) == []
    for hello in topics.values():
        async with join(two, hello) as receiver:
            assert await receiver.take(20) == [b"%d" % number for number in range(20)]
        async with join(one, hello) as again:
            again.send(message_to(ME, b""))
            await barrier(again)
            assert [one for one in payloads(again) if one] == []


async def test_a_holder_whose_connection_has_broken_makes_room(fabric: Fabric) -> None:
    one, two = await fabric.start_many(2)
    first = await one.join(me())
    first.cut()
    second = await two.join(me())
    assert not second.ack.resumed


async def test_a_workspace_has_its_connections_on_all_nodes_together(postgres_engine: PostgresEngine) -> None:
    async with open_fabric(postgres_engine, limits={"connections_per_workspace": 3}) as fabric:
        one, two = await fabric.start_many(2)
        for number in range(2):
            await one.join(agent("w", "a", str(number)))
        await two.join(agent("other", "a", "1"))
        async with join(two, agent("w", "a", "2")) as third:
            for gateway in (one, two):
                ended = await refusal(gateway, agent("w", "a", "3"))
                assert ended.status is Status.RESOURCE_EXHAUSTED
                assert "connections_per_workspace" in ended.message
            # A client that is counted already may connect again.
            async with join(one, agent("w", "a", "2", resume_session_id=third.ack.session_id)) as again:
                assert again.ack.resumed
        await until(lambda: not one.cluster.leaving())
        for number in range(3, 9):  # on one node a client that has left makes room at once
            async with join(two, agent("w", "a", str(number))):
                pass


async def test_a_node_that_lost_its_lease_ends_what_another_one_has_taken(postgres_engine: PostgresEngine) -> None:
    """Other nodes take it for dead. It finds out, and serves again."""
    async with open_fabric(postgres_engine, lease_grace_s=1.0) as fabric:
        one, two = await fabric.start_many(2)
        first, other = await one.join(me()), await one.join(agent("w", "other", "1"))
        first.send(message_to(ME, b"1"))
        assert await first.take(1) == [b"1"]
        async with without_lease(one, postgres_engine):
            second = await two.join(me(first.ack.session_id))
            assert second.ack.resumed
            # Not read any more, so it cannot be committed as the holder's.
            first.send(message_to(ME, b"stale"))
            assert (await first.wait_end()).status is Status.UNAVAILABLE
            assert (await other.wait_end()).status is Status.UNAVAILABLE
            second.send(message_to(ME, b"2"))
            taken = await second.take(1)
            if taken == [b"1"]:  # that it was read was not written in time
                taken = await second.take(1)
            assert taken == [b"2"]
        again = await one.join(agent("w", "other", "1", resume_session_id=other.ack.session_id))
        again.send(message_to(ME, b"3"))
        assert await second.take(1) == [b"3"]
        assert one.core.sessions._parts.gate.paused is False


async def test_input_waits_until_a_lost_lease_is_back(fabric: Fabric, postgres_engine: PostgresEngine) -> None:
    one, two = await fabric.start_many(2)
    mine, other = await one.join(me()), await two.join(agent("w", "other", "1"))
    mine.send(message_to("ag::w::other::1", b"1"))
    assert await other.take(1) == [b"1"]
    async with without_lease(one, postgres_engine):
        appended = one.core.log.statistics().appended
        mine.send(message_to("ag::w::other::1", b"2"))
        await until(lambda: not mine._upstream)  # it was handed to the session
        await pump()
        assert one.core.log.statistics().appended == appended
    assert await other.take(1) == [b"2"]
    other.send(message_to(ME, b"and still here"))
    assert await mine.take(1) == [b"and still here"]
    assert errors(mine) == []


WAYS = ("finish", "cut", "takeover")


async def hop(fabric: Fabric, name: str, count: int, chance: random.Random) -> tuple[list[bytes], Counter[str]]:
    """Move an agent from node to node until it has everything; give what it got."""
    got: list[bytes] = []
    moves: Counter[str] = Counter()
    resume = ""
    while len(got) < count:
        gateway = chance.choice(fabric.gateways)
        how = WAYS[(int(name) + moves.total()) % len(WAYS)]
        moves[how] += 1
        async with AsyncExitStack() as stack:
            link = await stack.enter_async_context(join(gateway, agent("w", "hopper", name, resume_session_id=resume)))
            assert link.ack.resumed == bool(resume)
            resume = link.ack.session_id
            for _ in range(chance.randrange(2, 6)):
                await trio.sleep(chance.random() * 0.02)
            if how == "cut":
                link.cut()
            elif how == "takeover":
                other = chance.choice(fabric.gateways)
                successor = await stack.enter_async_context(
                    join(other, agent("w", "hopper", name, resume_session_id=resume))
                )
                assert (await wait_end_keeping(link, got)).status is Status.CANCELLED
                resume = successor.ack.session_id
                link = successor
            link.finish()
            await wait_end_keeping(link, got)
    return got, moves


async def wait_end_keeping(link: Participant, got: list[bytes]) -> StreamEnded:
    await until(lambda: link.ended is not None or link._broken)
    got += [message.msg.payload for message in link.waiting("msg")]
    link._downstream.clear()
    return link.ended or StreamEnded(Status.CANCELLED, "cut")


@pytest.mark.parametrize("seed", [1, 2])
async def test_agents_that_hop_get_everything_once(fabric: Fabric, seed: int) -> None:
    hoppers, count = 6, 200
    results: dict[str, tuple[list[bytes], Counter[str]]] = {}
    await fabric.start_many(3)
    chance = random.Random(seed)

    async def send(gateway: Gateway, number: int) -> None:
        own = random.Random(f"{seed} sender {number}")
        async with join(gateway, service("sender", str(number))) as sender:
            for at in range(count // 2):
                for name in range(hoppers):
                    sender.send(message_to(f"ag::w::hopper::{name}", b"%d:%d" % (number, at)))
                await trio.sleep(own.random() * 0.01)
            await barrier(sender)
            assert errors(sender) == []

    async def run(name: str) -> None:
        results[name] = await hop(fabric, name, count, random.Random(chance.random()))

    async with trio.open_nursery() as nursery:
        for number, gateway in enumerate(fabric.gateways[:2]):
            nursery.start_soon(send, gateway, number)
        for name in range(hoppers):
            nursery.start_soon(run, str(name))
    for got, _ in results.values():
        for number in range(2):
            mine = [int(one.split(b":")[1]) for one in got if one.startswith(b"%d:" % number)]
            assert mine == list(range(count // 2))
    # In each way by two of them at least, however few moves it took on a machine where each took
    # long.
    moves = sum((moves for _, moves in results.values()), Counter())
    assert min(moves[how] for how in WAYS) >= 2


async def take_over_without_answer(gateway: Gateway, first: Participant, how: str) -> None:
    """Take the lock of a session of this node; the claim gets no answer."""
    batcher = gateway.cluster.locks.batcher
    claim = batcher._claim
    link = Participant()
    with trio.CancelScope() as handshake:

        async def lose_answer(*args: Any) -> list[Any]:
            rows = await claim(*args)
            if how == "failed":
                raise StorageUnavailable("no answer")
            handshake.cancel()
            return rows

        with mock.patch.object(batcher, "_claim", lose_answer):
            link.send(me(first.ack.session_id))
            await gateway.core.sessions.serve(link)
    assert handshake.cancelled_caught == (how == "cancelled")


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_a_takeover_whose_answer_is_lost_leaves_no_second_session(fabric: Fabric, how: str) -> None:
    """The claim has taken the lock from a live session of the same node."""
    one, two = await fabric.start_many(2)
    first = await one.join(me())
    await take_over_without_answer(one, first, how)
    second = await two.join(me())
    assert (await first.wait_end()).status is Status.CANCELLED
    second.send(message_to(ME, b"mine"))
    assert await second.take(1) == [b"mine"]
    assert payloads(first) == []


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_what_a_session_sent_before_a_takeover_without_an_answer_comes_first(
    fabric: Fabric, postgres_engine: PostgresEngine, how: str
) -> None:
    one, two = await fabric.start_many(2)
    first, reader = await one.join(me()), await two.join(agent("w", "reader", "1"))
    first.send(message_to("ag::w::reader::1", b"0"))
    assert await reader.take(1) == [b"0"]
    postgres_engine.outside("BEGIN; LOCK TABLE messages IN EXCLUSIVE MODE")
    first.send(message_to("ag::w::reader::1", b"1"))
    await until(lambda: one.core.log.statistics().settled < one.core.log.statistics().appended)
    await take_over_without_answer(one, first, how)
    joined: list[Participant] = []

    async def join_and_send() -> None:
        joined.append(await two.join(me()))
        joined[0].send(message_to("ag::w::reader::1", b"2"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(join_and_send)
        await trio.sleep(1)
        early = len(joined)
        postgres_engine.outside("COMMIT")
    assert await reader.take(2) == [b"1", b"2"]
    assert early == 0
