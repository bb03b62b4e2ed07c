"""Scenarios 42 to 52: commands, event and metric intakes, and refused sends.

The connection stays up.
"""

from __future__ import annotations

import math

import pytest

from aether_trio.client import AetherError, InvalidArgument, MessageType, PayloadTooLarge, PermissionDenied
from aether_trio.wire.pb import aether_pb2 as pb
from tests.interop.transports.world import World, alive, both, expect, framed, only, take

MIB = 1024 * 1024


@framed
async def test_42_engine_commands_arrive_as_control(world: World) -> None:
    engine, a, task = await world.engine(), await world.agent("a"), await world.task("t")
    await engine.send_to_agent(world.impl, "a", b"do it", workspace=world.ws, type=MessageType.CONTROL)
    message = await expect(a, b"do it")
    assert (message.type, message.source) == (MessageType.CONTROL, "event::receiver0")
    await engine.send_to_task(world.impl, "t", b"you too", workspace=world.ws, type=MessageType.CONTROL)
    assert (await expect(task, b"you too")).type == MessageType.CONTROL


@both
async def test_43_orchestrator_may_address_agents_but_not_users(world: World) -> None:
    orchestrator, a, user = await world.orchestrator(), await world.agent("a"), await world.user("w")
    await orchestrator.send_to_agent(world.impl, "a", b"starting", workspace=world.ws, type=MessageType.CONTROL)
    assert (await expect(a, b"starting")).type == MessageType.CONTROL
    for topic in (user.topic, f"ga::{world.ws}", f"uu::{world.uid}", "event::*", "sv::x::y"):
        with pytest.raises(PermissionDenied):
            await orchestrator.send(topic, b"no")
    await only(user, a)


@framed
async def test_44_metrics_bridge_only_receives(world: World) -> None:
    bridge, a = await world.metrics_bridge(), await world.agent("a")
    with pytest.raises(PermissionDenied):
        await bridge.send(a.topic, b"thanks", type=MessageType.CONTROL)
    await only(a, a)
    await alive(bridge)


@both
async def test_45_users_may_not_send_events_or_metrics(world: World) -> None:
    user = await world.user("w")
    for topic in ("event::*", f"event::{world.ws}", "metric::*", f"pg::{world.ws}"):
        with pytest.raises(PermissionDenied):
            await user.send(topic, b"{}")
    await alive(user)


@framed
async def test_46_events_reach_the_engine(world: World) -> None:
    engine, a, service = await world.engine(), await world.agent("a"), await world.service("s")
    await a.send_event(b"%s 1" % world.run.encode())
    message = await expect(engine, b"%s 1" % world.run.encode(), a)
    assert (message.type, message.workspace) == (MessageType.EVENT, world.ws)
    await service.send_event(b"%s 2" % world.run.encode())
    await expect(engine, b"%s 2" % world.run.encode(), service)


@framed
async def test_46_events_wait_for_an_absent_engine(world: World, target: str, transport: str) -> None:
    async with World(target, transport) as earlier:
        await earlier.engine()
    a = await world.agent("a")
    sent = [b"%s %d" % (world.run.encode(), n) for n in range(20)]
    for payload in sent:
        await a.send_event(payload)
    engine = await world.engine()
    assert [(await take(engine)).payload for _ in sent] == sent


@framed
async def test_47_metrics_reach_the_bridge(world: World) -> None:
    bridge, a = await world.metrics_bridge(), await world.agent("a")
    entry = pb.MetricEntry(name="tokens", kind="counter", qty=12.5)
    metric = pb.Metric(trace_id=world.run, entries=[entry], metadata={"model": "m"})
    await a.send_metric(metric)
    message = await take(bridge)
    assert (message.type, message.source, message.workspace) == (MessageType.METRIC, a.topic, world.ws)
    assert pb.Metric.FromString(message.payload) == metric


NAMED = pb.MetricEntry(name="n", qty=1)


@framed
@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\xff\xff garbage", "ERR_METRIC_INVALID"),
        (pb.Metric(metadata={str(n): "" for n in range(65)}, entries=[NAMED]), "ERR_METRIC_INVALID"),
        (pb.Metric(trace_id="none"), "ERR_METRIC_EMPTY"),
        (pb.Metric(entries=[NAMED] * 1025), "ERR_METRIC_EMPTY"),
        (pb.Metric(entries=[pb.MetricEntry(name="n", qty=math.nan)]), "ERR_METRIC_INVALID_ENTRY"),
        (pb.Metric(entries=[pb.MetricEntry(name="n", qty=math.inf)]), "ERR_METRIC_INVALID_ENTRY"),
        (pb.Metric(entries=[pb.MetricEntry(name="", qty=1)]), "ERR_METRIC_INVALID_ENTRY"),
        (pb.Metric(entries=[pb.MetricEntry(name="n", qty=-1)]), "ERR_METRIC_NEGATIVE_FORBIDDEN"),
    ],
    ids=["garbage", "65-tags", "no-entries", "1025-entries", "nan", "infinite", "nameless", "negative"],
)
async def test_48_malformed_metrics(world: World, payload: bytes | pb.Metric, code: str) -> None:
    a = await world.agent("a")
    wire = payload if isinstance(payload, bytes) else payload.SerializeToString()
    with pytest.raises(AetherError) as raised:
        await a.send("metric::*", wire, type=MessageType.METRIC)
    assert raised.value.code == code
    await alive(a)


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


@framed
async def test_52_agents_may_not_switch_workspace(world: World) -> None:
    a = await world.agent("a")
    with pytest.raises(PermissionDenied, match="ERR_INVALID_PRINCIPAL") as raised:
        await a.workspaces.switch(f"{world.ws}-other")
    assert not raised.value.retryable
    await a.send(a.topic, b"still here")
    assert (await expect(a, b"still here")).workspace == world.ws
