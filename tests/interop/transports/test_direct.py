"""Scenarios 29 to 37: messages from one participant to another."""

from __future__ import annotations

import pytest

from aether_trio.client import MessageType, Unavailable
from aether_trio.wire.pb import aether_pb2 as pb
from tests.interop.transports.world import World, alive, both, drain, expect, framed, only, take, until


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
async def test_30_to_oneself(world: World) -> None:
    a = await world.talker("a")
    await a.send(a.topic, b"note to self")
    await expect(a, b"note to self", a)


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
async def test_32_to_one_window(world: World) -> None:
    a, w1, w2 = await world.agent("a"), await world.user("w1"), await world.user("w2")
    await a.send_to_window(world.uid, "w1", b"for w1")
    await expect(w1, b"for w1", a)
    await only(w2, a)


@both
async def test_33_user_to_agent(world: World) -> None:
    a, w1 = await world.agent("a"), await world.user("w1")
    await w1.send_to_agent(world.impl, "a", b"hi", workspace=world.ws)
    message = await expect(a, b"hi", w1)
    assert message.source == f"us::{world.uid}::w1"
    assert message.workspace == ""
    await w1.send(a.topic, b"hinted", details=pb.SendMessage(app_workspace="the-app"))
    assert (await expect(a, b"hinted")).workspace == "the-app"


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


@framed
async def test_35_work_goes_to_who_remains(world: World, target: str, transport: str) -> None:
    a, two, admin = await world.agent("a"), await world.task(), await world.orchestrator()
    async with World(target, transport) as other:
        other.ws, other.impl = world.ws, world.impl
        await other.task()

    async def workers() -> list[str]:
        page = await admin.sessions.list(workspace=world.ws)
        return [one.identity for one in page.sessions if one.identity.startswith("ta::")]

    await until(workers, [two.topic])
    sent = [b"job %d" % n for n in range(20)]
    for payload in sent:
        await a.send_to_workers(world.impl, payload)
    await only(two, a, *sent)


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
async def test_37_wildcard_without_instance(world: World) -> None:
    a = await world.talker("a")
    with pytest.raises(Unavailable, match="ERR_SV_UNAVAILABLE") as raised:
        await a.send_to_service("none-such", b"hello?")
    assert raised.value.retryable
    await alive(a)
