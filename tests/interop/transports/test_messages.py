"""Scenarios 29 to 39 and 49 to 51: messages through our own client.

tests/client/test_messaging.py has the other ones, on every transport of the client.
"""

from __future__ import annotations

import pytest

from aether_trio.client import InvalidArgument, MessageType, PayloadTooLarge
from tests.interop.transports.world import World, alive, both, drain, expect, only, take

MIB = 1024 * 1024


@both
async def test_29_exact_and_in_order_both_ways(world: World) -> None:
    a, b = await world.talker("a"), await world.agent("b")
    sent = [b"%d " % n + bytes(range(256)) for n in range(1000)]
    for sender, receiver in ((a, b), (b, a)):
        for payload in sent:
            await sender.publish(receiver.topic, payload)
        await sender.flush()
        got = [await take(receiver) for _ in sent]
        assert [m.payload for m in got] == sent
        assert {m.source for m in got} == {sender.topic}
        assert {m.type for m in got} == {MessageType.OPAQUE}
        assert {m.workspace for m in got} == {world.ws}
    await only(b, a)
    assert a.errors.get_nowait() is None


@both
async def test_31_types_are_carried(world: World) -> None:
    a, b = await world.talker("a"), await world.agent("b")
    kinds = [MessageType.CHAT, MessageType.CONTROL, MessageType.TOOL_CALL]
    for kind in kinds:
        await a.send(b.topic, kind.name.encode(), type=kind)
    got = await only(b, a, *(kind.name.encode() for kind in kinds))
    assert [m.type for m in got] == kinds
    for kind in kinds:
        await b.send(a.topic, kind.name.encode(), type=kind)
    assert [(await take(a)).type for _ in kinds] == kinds


@both
async def test_34_to_a_unique_task_and_back(world: World) -> None:
    a, task = await world.talker("a"), await world.task("t1")
    await a.send_to_task(world.impl, "t1", b"work", workspace=world.ws)
    message = await expect(task, b"work", a)
    await task.reply(message, b"done")
    await expect(a, b"done", task)


@both
async def test_35_work_goes_to_exactly_one(world: World) -> None:
    a, one, two = await world.talker("a"), await world.task(), await world.task()
    assert one.topic != two.topic
    sent = [b"job %d" % n for n in range(40)]
    for payload in sent:
        await a.send_to_workers(world.impl, payload, workspace=world.ws)
    got = {worker: [m.payload for m in await drain(worker, a)] for worker in (one, two)}
    assert sorted(got[one] + got[two]) == sorted(sent), "a message was lost, or went to both"
    assert got[one] != []
    assert got[two] != []


@both
async def test_36_service_by_name_and_by_wildcard(world: World) -> None:
    a, s1, s2 = await world.talker("a"), await world.service("s1"), await world.service("s2")
    await a.send_to_service(world.impl, b"by name", specifier="s1")
    await expect(s1, b"by name", a)
    await only(s2, a)
    sent = [b"any %d" % n for n in range(100)]
    for payload in sent:
        await a.send_to_service(world.impl, payload)
    got = [[m.payload for m in await drain(service, a)] for service in (s1, s2)]
    assert sorted(got[0] + got[1]) == sorted(sent), "a message was lost, or went to both"
    # "Evenly": a fair coin leaves a side below 20 of 100 once in ten million runs.
    assert min(len(part) for part in got) >= 20


@both
async def test_38_ga_reaches_the_agents_of_its_workspace(world: World) -> None:
    a, b = await world.agent("a"), await world.agent("b")
    other_impl = await world.agent("c", impl=f"{world.impl}-other")
    foreign = await world.agent("d", ws=f"{world.ws}-other")
    task, user = await world.task("t"), await world.user("w", ws=world.ws)
    await a.send_to_agents(b"to all agents")
    for agent in (a, b, other_impl):
        await expect(agent, b"to all agents", a)
    await only(foreign, foreign)
    await only(task, a)
    await only(user, a)


@both
async def test_39_gu_reaches_users_while_they_are_switched_in(world: World) -> None:
    a = await world.agent("a")
    inside = await world.user("w1", ws=world.ws)
    other = await world.user("w1", uid=f"{world.uid}-b", ws=world.ws)
    outside = await world.user("w2", ws=f"{world.ws}-other")
    await a.send_to_users(b"all users")
    for user in (inside, other):
        await expect(user, b"all users", a)
    await only(outside, a)
    await only(a, a)
    await inside.switch_workspace(f"{world.ws}-other")
    await a.send_to_users(b"who is left")
    await expect(other, b"who is left")
    await only(inside, a)
    await other.switch_workspace("")
    await a.send_to_users(b"unheard")
    await only(other, a)


@both
@pytest.mark.parametrize(
    "topic",
    ["agent.x", "", "a" * 300, "ga::" + "w" * 253, "::ws", "xx::ws", "orc::impl::spec", "wfe::shard0", "ag"],
    ids=lambda topic: topic[:12] or "empty",
)
async def test_49_malformed_topics(world: World, topic: str) -> None:
    a = await world.talker("a")
    with pytest.raises(InvalidArgument, match="ERR_INVALID_TOPIC") as raised:
        await a.send(topic, b"to nowhere")
    assert not raised.value.retryable
    await alive(a)


@both
async def test_50_a_payload_over_the_limit(world: World) -> None:
    a, b = await world.talker("a"), await world.agent("b")
    await a.send(b.topic, b"x" * MIB)
    with pytest.raises(PayloadTooLarge):
        await a.send(b.topic, b"x" * (MIB + 1))
    await only(b, a, b"x" * MIB)
    await alive(a)


@both
async def test_51_messages_wait_for_an_offline_agent(world: World, target: str, transport: str) -> None:
    a = await world.talker("a")
    topic = f"ag::{world.ws}::{world.impl}::late"
    sent = [b"%d" % n for n in range(200)]
    for payload in sent:
        await a.publish(topic, payload)
    await a.flush()
    async with World(target, transport) as first:
        late = await first.agent("late", ws=world.ws, impl=world.impl)
        got = [await take(late) for _ in sent]
        assert [m.payload for m in got] == sent
        assert {m.source for m in got} == {a.topic}
    # The next connection gets what is new, and nothing again.
    await a.send(topic, b"while you were away")
    late = await world.agent("late")
    await only(late, a, b"while you were away")
