"""Topics that other nodes write are followed without a gap, whatever fails.

The history check: a listener that is there all the time, on one node, is the order. Every other
listener heard a piece of it without a gap.
"""

from __future__ import annotations

import math
import random
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from aether_trio.log.remote_commits import BYTES_PER_TOPIC, ROWS_PER_TOPIC
from aether_trio.log.retention import Retention, RetentionLimits
from aether_trio.model.errors import Status
from aether_trio.testing.memory import StreamEnded
from tests.cluster.across.fabric import Fabric, Gateway, Participant, join, numbers, open_fabric, until
from tests.helpers.core import agent, barrier, errors, message_to, payloads, service
from tests.helpers.engines import PostgresEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SOON_S = 0.25
"""Between two looks, for tests that lose hints."""
VISITS = 15


async def nothing_is_pinned(fabric: Fabric) -> None:
    """When all listeners have left, no topic is held in memory."""
    for gateway in fabric.gateways:
        topics = gateway.core.log.topics._topics
        await until(lambda: all(state.forgettable for state in topics.values()))  # noqa: B023


async def send_numbers(
    gateway: Gateway,
    name: int,
    topics: list[str],
    count: int,
    chance: random.Random,
    sent: list[int] | None = None,
    pace_s: float = 0.004,
) -> None:
    """Send `name:number` to all topics in order; `sent` has the next number."""
    async with join(gateway, service("sender", str(name))) as sender:
        at = 0
        while at < count:
            upto = min(count, at + chance.randint(1, 6))
            sender.send(*[message_to(topic, b"%d:%d" % (name, n)) for n in range(at, upto) for topic in topics])
            at = upto
            if sent is not None:
                sent[name] = at
            if chance.random() < 0.1:
                await barrier(sender)
            await trio.sleep(chance.random() * pace_s)
        await barrier(sender)
        assert errors(sender) == []


@pytest.mark.parametrize("pushed", [False, True])
async def test_two_nodes_commit_in_opposite_orders(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch, pushed: bool
) -> None:
    if not pushed:
        monkeypatch.setattr("aether_trio.log.remote_commits.PUSHED_BYTES", 0)
    count = 400
    topics = [f"ga::w{number}" for number in range(4)]
    gateways = await fabric.start_many(3)
    listeners: dict[str, list[Participant]] = {}
    for topic in topics:
        listeners[topic] = [
            await gateway.join(agent(topic[4:], "l", str(number))) for number, gateway in enumerate(gateways)
        ]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_numbers, gateways[0], 0, topics, count, random.Random(1))
        nursery.start_soon(send_numbers, gateways[1], 1, topics[::-1], count, random.Random(2))
    for heard_by in listeners.values():
        heard = [await one.take(2 * count) for one in heard_by]
        assert heard[0] == heard[1] == heard[2]
        assert [numbers(heard[0], b"%d" % name) for name in range(2)] == [list(range(count))] * 2
    # Both nodes had to leave some of their own messages to RemoteCommitReader, which is what
    # this is about. Of pushed ones it depends on their order whether any has to be read.
    readers = [gateway.core.log._remote for gateway in gateways]
    assert all(reader.messages + reader.pushes * pushed for reader in readers)


async def test_hints_that_are_lost_are_made_up_for(postgres_engine: PostgresEngine) -> None:
    async with open_fabric(postgres_engine, poll_s=SOON_S) as fabric:
        one, two = await fabric.start_many(2)
        async with join(one, agent("w", "a", "1")) as a, join(two, agent("w", "b", "1")) as b:
            a.send(message_to("ag::w::b::1", b"heard"))
            assert await b.take(1) == [b"heard"]
            two.lose_notifications()
            a.send(message_to("ag::w::b::1", b"looked for"), message_to("ga::w", b"broadcast"))
            assert sorted(await b.take(2)) == [b"broadcast", b"looked for"]
        await nothing_is_pinned(fabric)


async def test_a_message_of_its_own_tells_a_node_of_what_is_in_front_of_it(fabric: Fabric) -> None:
    one, two = await fabric.start_many(2)
    a, b = await one.join(agent("w", "a", "1")), await two.join(agent("w", "b", "1"))
    a.send(message_to("ga::w", b"0"))
    assert await b.take(1) == await a.take(1) == [b"0"]
    two.lose_notifications()
    a.send(message_to("ga::w", b"1"), message_to("ga::w", b"2"))
    await barrier(a)
    assert payloads(b) == []
    b.send(message_to("ga::w", b"3"))
    assert await b.take(3) == await a.take(3) == [b"1", b"2", b"3"]


async def test_hints_are_what_makes_it_quick(fabric: Fabric) -> None:
    """Without notifications all other tests of this file would hang: none polls."""
    one, two = await fabric.start_many(2)
    a, b = await one.join(agent("w", "a", "1")), await two.join(agent("w", "b", "1"))
    looks = two.tails.statistics().looks
    for number in range(50):
        a.send(message_to("ag::w::b::1", b"%d" % number))
        assert await b.take(1) == [b"%d" % number]
    assert two.tails.statistics().looks == looks
    assert two.tails.statistics().woken >= 50


async def test_a_lone_message_comes_with_its_notification(fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_trio.log.group_writers.QUICK_S", math.inf)
    monkeypatch.setattr("aether_trio.cluster.node.lease.SURE_S", math.inf)
    one, two = await fabric.start_many(2)
    a, b = await one.join(agent("w", "a", "1")), await two.join(agent("w", "b", "1"))
    for number in range(20):
        a.send(message_to("ag::w::b::1", b"%d" % number))
        assert await b.take(1) == [b"%d" % number]
    done = two.core.log.statistics()
    assert (done.pushed_messages, done.remote_reads) == (20, 0)
    lookups = one.tails.statistics().lookups
    a.send(message_to("ag::w::b::1", bytes(20_000)))
    assert await b.take(1) == [bytes(20_000)]
    await until(lambda: one.tails.statistics().lookups == lookups + 1)


async def test_a_push_that_the_server_refuses_is_told_later(fabric: Fabric, postgres_engine: PostgresEngine) -> None:
    one, two = await fabric.start_many(2)
    a, b = await one.join(agent("w", "a", "1")), await two.join(agent("w", "b", "1"))
    for function in (
        "aether_push(me INT, topics TEXT[], keys BIGINT[], parts INT[], frames BYTEA[]) RETURNS BIGINT[]",
        "aether_push_one(me INT, topic TEXT, key BIGINT, frame BYTEA) RETURNS BIGINT",
    ):
        postgres_engine.outside(
            f"CREATE OR REPLACE FUNCTION {function} LANGUAGE plpgsql AS $$ BEGIN RAISE program_limit_exceeded; END $$"
        )
    for number in range(3):
        a.send(message_to("ag::w::b::1", b"%d" % number))
        assert await b.take(1) == [b"%d" % number]
    assert errors(a) == []
    assert two.core.log.statistics().pushed_messages == 0


@asynccontextmanager
async def loses_hints(fabric: Fabric, chance: random.Random) -> AsyncIterator[None]:
    """A third of all hints about the log never arrive."""

    def receive(real: Any, payload: str) -> None:
        if chance.random() > 0.33:
            real(payload)

    for gateway in fabric.gateways:
        bus = gateway.cluster.bus
        bus.receive = partial(receive, bus.receive)  # type: ignore[method-assign]
        bus.receive_push = partial(receive, bus.receive_push)  # type: ignore[method-assign]
    yield


async def visit(
    fabric: Fabric, name: str, chance: random.Random, sent: list[int], counts: list[int]
) -> tuple[list[bytes], list[int]]:
    """Listen for a while, slow now and then; give what was heard, and from where."""
    async with join(chance.choice(fabric.gateways), agent("w", "visitor", name)) as link:
        since = list(sent)
        for _ in range(chance.randint(1, 5)):
            if chance.random() < 0.4:
                link.pause()
            await trio.sleep(chance.random() * 0.08)
            link.resume()
        if chance.random() < 0.2:
            # To the end: whatever was sent after the acknowledgement must have come.
            coming = [(b"%d" % who, count - 1) for who, count in enumerate(counts) if since[who] < count]
            await until(lambda: all(numbers(payloads(link), who)[-1:] == [last] for who, last in coming))
        return payloads(link), since


def leaves(group: BaseExceptionGroup[StreamEnded]) -> list[StreamEnded]:
    found: list[StreamEnded] = []
    for one in group.exceptions:
        found += leaves(one) if isinstance(one, BaseExceptionGroup) else [one]
    return found


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_listener_hears_all_from_its_beginning_to_its_end(postgres_engine: PostgresEngine, seed: int) -> None:
    """Listeners come, go, lag and lose notifications; reads fail now and then."""
    counts = [150, 150, 150]
    heard: list[tuple[list[bytes], list[int]]] = []
    refusals: set[Status] = set()
    log = {"outbox_bytes": 1500}
    async with open_fabric(postgres_engine, poll_s=SOON_S, log=log) as fabric:
        gateways = await fabric.start_many(3)
        chance = random.Random(seed)
        sent = [0, 0, 0]
        trouble = random.Random(f"{seed} trouble")
        gateways[1].fail_reads(lambda: trouble.random() < 0.05 and sum(sent) < sum(counts))

        async def come_and_go(name: str, own: random.Random) -> None:
            # Those that come late hear what is still on its way.
            while sum(sent) < sum(counts) or len(heard) < VISITS:
                try:
                    heard.append(await visit(fabric, name, own, sent, counts))
                except* StreamEnded as refused:
                    # It could not be told where its topics end.
                    refusals.update(error.status for error in leaves(refused))

        async with join(gateways[0], agent("w", "witness", "1")) as witness, loses_hints(fabric, trouble):
            async with trio.open_nursery() as nursery:
                for name, gateway in enumerate(gateways):
                    own = random.Random(f"{seed} sender {name}")
                    nursery.start_soon(send_numbers, gateway, name, ["ga::w"], counts[name], own, sent, 0.03)
                for name in range(6):
                    nursery.start_soon(come_and_go, str(name), random.Random(chance.random()))
            order = await witness.take(sum(counts))
        await nothing_is_pinned(fabric)
    assert [numbers(order, b"%d" % name) for name in range(3)] == [list(range(count)) for count in counts]
    places = {payload: place for place, payload in enumerate(order)}
    assert len(heard) >= VISITS
    assert refusals <= {Status.UNAVAILABLE}
    for piece, since in heard:
        if not piece:
            continue
        first = places[piece[0]]
        assert piece == order[first : first + len(piece)]
        # What had not been sent when it was acknowledged cannot have been missed at the beginning.
        assert all(places[b"%d:%d" % (name, at)] >= first for name, at in enumerate(since) if at < counts[name])


async def test_a_subscriber_that_lags_is_beside_quick_ones(postgres_engine: PostgresEngine) -> None:
    count = 300
    log = {"outbox_bytes": 1500}
    async with open_fabric(postgres_engine, log=log) as fabric:
        one, two = await fabric.start_many(2)
        async with join(two, agent("w", "quick", "1")) as quick, join(two, agent("w", "slow", "1")) as slow:
            slow.pause()
            await send_numbers(one, 0, ["ga::w"], count, random.Random(1))
            assert numbers(await quick.take(count), b"0") == list(range(count))
            assert payloads(slow) == []
            slow.resume()
            assert numbers(await slow.take(count), b"0") == list(range(count))
        await nothing_is_pinned(fabric)


async def test_storage_that_cannot_be_read_for_a_while_delays_and_loses_nothing(fabric: Fabric) -> None:
    failing, failures = False, 0

    def fails() -> bool:
        nonlocal failures
        failures += failing
        return failing

    one, two = await fabric.start_many(2)
    one.push_nothing()
    async with join(one, agent("w", "a", "1")) as a, join(two, agent("w", "b", "1")) as b:
        two.fail_reads(fails)
        a.send(message_to("ag::w::b::1", b"0"))
        assert await b.take(1) == [b"0"]
        failing = True
        a.send(message_to("ag::w::b::1", b"1"), message_to("ga::w", b"1"))
        await barrier(a)
        await until(lambda: failures > 1)
        # Its own messages are committed, and wait for what is in front of them.
        b.send(message_to("ag::w::b::1", b"2"))
        await until(lambda: two.core.log.statistics().settled == 1)
        assert payloads(b) == []
        failing = False
        assert sorted(await b.take(3)) == [b"1", b"1", b"2"]
    await nothing_is_pinned(fabric)


async def test_a_backlog_is_more_than_one_read_brings(fabric: Fabric) -> None:
    """And no hint comes after the first one."""
    failing = False
    sent = [b"%d" % number for number in range(3 * ROWS_PER_TOPIC)]
    sent += [b"%d" % number + bytes(BYTES_PER_TOPIC // 3) for number in range(8)] + [bytes(2 * BYTES_PER_TOPIC), b"end"]
    one, two = await fabric.start_many(2)
    one.push_nothing()
    async with join(one, agent("w", "a", "1")) as a, join(two, agent("w", "b", "1")) as b:
        two.fail_reads(lambda: failing)
        failing = True
        a.send(*[message_to("ga::w", payload) for payload in sent])
        await barrier(a)
        assert payloads(b) == []
        failing = False
        assert await b.take(len(sent)) == sent
        assert await a.take(len(sent)) == sent
        assert two.core.log._remote.reads > 3
    await nothing_is_pinned(fabric)


async def gone(link: Participant) -> int:
    """How many messages the gateway says are gone."""
    error = (await link.next("error")).error
    assert error.code == "BACKPRESSURE"
    return int(error.message.split()[0])


async def test_what_retention_took_behind_the_tail_is_said_to_be_gone(postgres_engine: PostgresEngine) -> None:
    failing = False
    async with open_fabric(postgres_engine, poll_s=SOON_S) as fabric:
        one, two = await fabric.start_many(2)
        one.push_nothing()
        async with join(one, agent("w", "a", "1")) as a, join(two, agent("w", "b", "1")) as b:
            a.send(message_to("ag::w::b::1", b"0"))
            assert await b.take(1) == [b"0"]
            two.fail_reads(lambda: failing)
            failing = True
            a.send(*[message_to("ag::w::b::1", b"lost") for _ in range(10)], message_to("ag::w::b::1", bytes(2000)))
            await barrier(a)
            limits = RetentionLimits(age_s=0, topic_bytes=2000, cursor_age_s=0)
            await Retention(one.core.log, limits).sweep()
            failing = False
            assert await gone(b) == 10
            assert await b.take(1) == [bytes(2000)]
            failing = True
            a.send(*[message_to("ag::w::b::1", b"lost") for _ in range(20)])
            await barrier(a)
            # As when the partition goes that all of it is in.
            postgres_engine.outside("DELETE FROM messages")
            failing = False
            # Nothing of it is left to be read: a look at the end of the topic tells.
            assert await gone(b) == 20
            a.send(message_to("ag::w::b::1", b"next"))
            assert await b.take(1) == [b"next"]
        await nothing_is_pinned(fabric)


async def test_a_node_that_only_publishes_reads_nothing(fabric: Fabric) -> None:
    one, two = await fabric.start_many(2)
    b, other = await two.join(agent("w", "b", "1")), await two.join(agent("w", "a", "2"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_numbers, one, 0, ["ag::w::b::1"], 100, random.Random(1))
        nursery.start_soon(send_numbers, two, 1, ["ag::w::b::1"], 100, random.Random(2))
    heard = await b.take(200)
    assert [numbers(heard, b"%d" % name) for name in range(2)] == [list(range(100))] * 2
    follower = one.core.log._remote
    assert (follower.reads, follower.messages) == (0, 0)
    # Where no client listened, a newcomer begins at the end that the topic has by then.
    other.send(message_to("ga::w", b"before"))
    await barrier(other)
    late = await one.join(agent("w", "late", "1"))
    other.send(message_to("ga::w", b"after"))
    assert await late.take(1) == [b"after"]


async def test_a_session_that_ends_while_its_topic_is_being_read(fabric: Fabric) -> None:
    gate, reading = trio.Event(), trio.Event()
    one, two = await fabric.start_many(2)
    one.push_nothing()
    async with join(one, agent("w", "a", "1")) as a:
        database = two.core.log.database
        read = database.read

        async def slow_read(program: Any) -> Any:
            if not reading.is_set():
                reading.set()
                await gate.wait()
            return await read(program)

        async with join(two, agent("w", "b", "1")):
            database.read = slow_read  # type: ignore[method-assign]
            a.send(message_to("ag::w::b::1", b"1"))
            await reading.wait()
        # It has left, its position with it, and the read is still going on.
        async with join(one, agent("w", "b", "1")) as elsewhere:
            assert await elsewhere.take(1) == [b"1"]
        async with join(two, agent("w", "b", "1")) as again:
            a.send(message_to("ag::w::b::1", b"2"))
            await barrier(a)
            gate.set()
            assert await again.take(1) == [b"2"]
            assert payloads(again) == []
    await nothing_is_pinned(fabric)
