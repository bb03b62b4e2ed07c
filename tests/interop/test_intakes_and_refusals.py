"""Scenarios 42 to 52: commands, event and metric intakes, refused sends."""

from __future__ import annotations

import math

import pytest
from scitrera_aether_client import CONTROL, EVENT, METRIC, new_metric
from scitrera_aether_client.proto import aether_pb2 as pb

from tests.helpers.sdk import SyncWorld, World, in_asyncio

MIB = 1024 * 1024


@in_asyncio
async def test_42_a_engine_commands_arrive_as_control(world: World) -> None:
    engine, a, task = await world.open(world.engine(), world.agent("a"), world.unique_task("t"))
    await engine.client.send_command_to_agent(world.ws, world.impl, "a", b"do it")
    message = await a.message(b"do it")
    assert (message.message_type, message.source_topic) == (CONTROL, "event::receiver0")
    await engine.client.send_command_to_task(world.ws, world.impl, b"you too", unique_specifier="t")
    assert (await task.message(b"you too")).message_type == CONTROL


@in_asyncio
async def test_43_a_orchestrator_may_address_agents_but_not_users(world: World) -> None:
    orchestrator, a, user = await world.open(world.orchestrator(), world.agent("a"), world.user("w"))
    await orchestrator.client.send_status_to_agent(world.ws, world.impl, "a", b"starting")
    assert (await a.message(b"starting")).message_type == CONTROL
    for topic in (user.topic, f"ga::{world.ws}", f"uu::{world.uid}", "event::*", "sv::x::y"):
        await orchestrator.send(topic, b"no")
        await orchestrator.error("ERR_PERMISSION_DENIED")
    await user.only(a)


@in_asyncio
async def test_44_a_metrics_bridge_only_receives(world: World) -> None:
    bridge, a = await world.open(world.metrics_bridge(), world.agent("a"))
    await bridge.client.send_acknowledgment(a.topic, b"thanks")
    await bridge.error("ERR_PERMISSION_DENIED")
    await a.only(a)
    await bridge.barrier()


@in_asyncio
async def test_45_a_users_may_not_send_events_or_metrics(world: World) -> None:
    (user,) = await world.open(world.user("w"))
    for topic in ("event::*", f"event::{world.ws}", "metric::*", f"pg::{world.ws}"):
        await user.send(topic, b"{}")
        await user.error("ERR_PERMISSION_DENIED")
    await user.barrier()


@in_asyncio
async def test_46_a_events_reach_the_engine(world: World) -> None:
    engine, a, service = await world.open(world.engine(), world.agent("a"), world.service("s"))
    await a.client.send_event(b'{"n": 1}')
    message = await engine.message(b'{"n": 1}')
    assert (message.message_type, message.source_topic) == (EVENT, a.topic)
    assert message.workspace == world.ws
    assert [name for name, _ in engine.typed] == ["on_event"]
    await service.client.send_event(b'{"n": 2}')
    assert (await engine.message(b'{"n": 2}')).source_topic == service.topic


@in_asyncio
async def test_46_a_events_wait_for_an_absent_engine(world: World) -> None:
    (engine,) = await world.open(world.engine())
    (a,) = await world.open(world.agent("a"))
    await engine.close()
    sent = [b"%s %d" % (world.run.encode(), n) for n in range(20)]
    for payload in sent:
        await a.client.send_event(payload)
    await a.barrier()
    (engine,) = await world.open(world.engine())
    assert [(await engine.take()).payload for _ in sent] == sent


@in_asyncio
async def test_47_a_metrics_reach_the_bridge(world: World) -> None:
    bridge, a = await world.open(world.metrics_bridge(), world.agent("a"))
    metric = new_metric().trace("t1").add("tokens", "counter", 12.5).tag("model", "m").build()
    await a.client.send_metric(metric)
    message = await bridge.take()
    assert (message.message_type, message.source_topic) == (METRIC, a.topic)
    assert pb.Metric.FromString(message.payload) == metric
    assert message.workspace == world.ws
    assert [name for name, _ in bridge.typed] == ["on_metric"]


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\xff\xff garbage", "ERR_METRIC_INVALID"),
        (
            pb.Metric(metadata={str(n): "" for n in range(65)}, entries=[pb.MetricEntry(name="n", qty=1)]),
            "ERR_METRIC_INVALID",
        ),
        (pb.Metric(trace_id="none"), "ERR_METRIC_EMPTY"),
        (pb.Metric(entries=[pb.MetricEntry(name="n", qty=1)] * 1025), "ERR_METRIC_EMPTY"),
        (pb.Metric(entries=[pb.MetricEntry(name="n", qty=math.nan)]), "ERR_METRIC_INVALID_ENTRY"),
        (pb.Metric(entries=[pb.MetricEntry(name="n", qty=math.inf)]), "ERR_METRIC_INVALID_ENTRY"),
        (pb.Metric(entries=[pb.MetricEntry(name="", qty=1)]), "ERR_METRIC_INVALID_ENTRY"),
        (pb.Metric(entries=[pb.MetricEntry(name="n", qty=-1)]), "ERR_METRIC_NEGATIVE_FORBIDDEN"),
    ],
    ids=["garbage", "65-tags", "no-entries", "1025-entries", "nan", "infinite", "nameless", "negative"],
)
def test_48_q_malformed_metrics(target: str, payload: bytes | pb.Metric, code: str) -> None:
    with SyncWorld(target) as world:
        agent = world.agent("a").open()
        wire = payload if isinstance(payload, bytes) else payload.SerializeToString()
        agent.send("metric::*", wire, pb.METRIC)
        assert agent.take(agent.errors).code == code
        agent.barrier()


@pytest.mark.parametrize(
    "topic",
    ["agent.x", "", "a" * 300, "ga::" + "w" * 253, "::ws", "xx::ws", "orc::impl::spec", "wfe::shard0", "ag"],
    ids=lambda topic: topic[:12] or "empty",
)
def test_49_q_malformed_topics(target: str, topic: str) -> None:
    with SyncWorld(target) as world:
        agent = world.agent("a").open()
        agent.send(topic, b"to nowhere")
        error = agent.take(agent.errors)
        assert (error.code, error.retryable) == ("ERR_INVALID_TOPIC", False)
        agent.barrier()
        assert not agent.gone.is_set()


@in_asyncio
async def test_50_a_payload_over_the_limit(world: World) -> None:
    a, b = await world.open(world.agent("a"), world.agent("b"))
    await a.client.send_message_to_agent(world.ws, world.impl, "b", b"x" * MIB)
    await a.client.send_message_to_agent(world.ws, world.impl, "b", b"x" * (MIB + 1))
    await a.error("ERR_PAYLOAD_TOO_LARGE")
    await b.only(a, b"x" * MIB)
    assert a.client.is_connected


@in_asyncio
async def test_51_a_messages_wait_for_an_offline_agent(world: World) -> None:
    (a,) = await world.open(world.agent("a"))
    sent = [b"%d" % n for n in range(200)]
    for payload in sent:
        await a.client.send_message_to_agent(world.ws, world.impl, "late", payload)
    await a.barrier()
    (late,) = await world.open(world.agent("late"))
    got = [await late.take() for _ in sent]
    assert [m.payload for m in got] == sent
    assert {m.source_topic for m in got} == {a.topic}
    await late.close()
    # The next connection gets what is new, and nothing again.
    await a.client.send_message_to_agent(world.ws, world.impl, "late", b"while you were away")
    (late,) = await world.open(world.agent("late"))
    await late.only(a, b"while you were away")


@in_asyncio
async def test_52_a_agents_may_not_switch_workspace(world: World) -> None:
    (a,) = await world.open(world.agent("a"))
    await a.client.switch_workspace(f"{world.ws}-other")
    assert not (await a.error("ERR_INVALID_PRINCIPAL")).retryable
    await a.client.send_message_to_agent(world.ws, world.impl, "a", b"still here")
    assert (await a.message(b"still here")).workspace == world.ws
