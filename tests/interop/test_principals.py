"""Scenarios 1 to 6, 9: each kind of principal connects, and has its own name."""

from __future__ import annotations

import pytest
from scitrera_aether_client import InvalidArgumentError
from scitrera_aether_client.proto import aether_pb2 as pb

from tests.helpers.sdk import SyncWorld, World, agent_init, in_asyncio, raw_stream


@in_asyncio
async def test_01_a_agent_is_acked_first_and_then_configured(world: World) -> None:
    a, b = world.agent("a"), world.agent("b")
    ids_at_config: list[str] = []
    a.client.on_config = lambda config: (ids_at_config.append(a.session_id), a.configs.put_nowait(config))
    await world.open(a, b)
    await a.take(box=a.configs)
    await b.take(box=b.configs)
    assert ids_at_config == [a.session_id], "the config overtook the ack"
    assert a.session_id != b.session_id
    assert a.client.is_connected


def test_01_s_agent_is_acked_first_and_then_configured(target: str) -> None:
    with SyncWorld(target) as world:
        agent = world.agent("a")
        ids_at_config: list[str] = []
        agent.client.on_config = lambda config: (ids_at_config.append(agent.session_id), agent.configs.put(config))
        agent.open()
        agent.take(agent.configs)
        assert ids_at_config == [agent.session_id], "the config overtook the ack"


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        (
            {"agent": pb.AgentIdentity(workspace="w", implementation="order", specifier="1")},
            ["connection_ack", "config"],
        ),
        ({"task": pb.TaskIdentity(workspace="w", implementation="order")}, ["connection_ack", "config"]),
        ({"user": pb.UserIdentity(user_id="order", window_id="1")}, ["connection_ack"]),
        ({"service": pb.ServiceIdentity(implementation="order", specifier="1")}, ["connection_ack"]),
        ({"bridge": pb.BridgeIdentity(implementation="order", specifier="1")}, ["connection_ack"]),
    ],
    ids=["agent", "task", "user", "service", "bridge"],
)
@in_asyncio
async def test_01_r_nothing_else_is_sent_at_connect(target: str, init: dict[str, object], expected: list[str]) -> None:
    async with raw_stream(target, **init) as stream:
        await stream.send(checkpoint_op=pb.CheckpointOperation(op=pb.CheckpointOperation.LOAD, request_id="end"))
        kinds = []
        while (message := await stream.read()).WhichOneof("payload") != "checkpoint":
            kinds.append(message.WhichOneof("payload"))
        assert kinds == expected


@in_asyncio
async def test_02_a_unique_task_sends_as_tu(world: World) -> None:
    task, agent = await world.open(world.unique_task("t1"), world.agent("a"))
    await task.client.send_message_to_agent(world.ws, world.impl, "a", b"from a task")
    message = await agent.message(b"from a task")
    assert message.source_topic == task.topic == f"tu::{world.ws}::{world.impl}::t1"


def test_02_s_unique_task_sends_as_tu(target: str) -> None:
    with SyncWorld(target) as world:
        task, agent = world.unique_task("t1").open(), world.agent("a").open()
        task.client.send_message_to_agent(world.ws, world.impl, "a", b"from a task")
        message = agent.take()
        assert (message.payload, message.source_topic) == (b"from a task", task.topic)


@in_asyncio
async def test_03_a_tasks_without_specifier_coexist(world: World) -> None:
    one, two, agent = await world.open(world.task(), world.task(), world.agent("a"))
    sources = {}
    for name, task in ((b"one", one), (b"two", two)):
        await task.client.send_message_to_agent(world.ws, world.impl, "a", name)
        sources[name] = (await agent.message(name)).source_topic
    assert len(set(sources.values())) == 2
    for source in sources.values():
        prefix, ws, impl, unique = source.split("::")
        assert (prefix, ws, impl) == ("ta", world.ws, world.impl)
        assert unique
    # The invented topic is a real address.
    await agent.send(sources[b"two"], b"to two only")
    await two.message(b"to two only")
    await agent.send(sources[b"one"], b"to one only")
    await one.message(b"to one only")


@in_asyncio
async def test_04_a_two_windows_of_a_user_coexist(world: World) -> None:
    w1, w2 = await world.open(world.user("w1"), world.user("w2"))
    assert w1.session_id != w2.session_id
    await w1.client.send_message_to_user_session(world.uid, "w2", b"hello other window")
    assert (await w2.message(b"hello other window")).source_topic == w1.topic


def test_04_s_two_windows_of_a_user_coexist(target: str) -> None:
    with SyncWorld(target) as world:
        w1, w2 = world.user("w1").open(), world.user("w2").open()
        assert w1.session_id != w2.session_id
        w1.client.send_message_to_user_session(world.uid, "w2", b"hello other window")
        assert w2.take().source_topic == w1.topic


@in_asyncio
async def test_05_a_orchestrator_connects_with_profiles(world: World) -> None:
    (orchestrator,) = await world.open(world.orchestrator())
    assert orchestrator.client.is_connected
    with pytest.raises(InvalidArgumentError):
        type(orchestrator.client)(world.impl, [])


def test_05_s_orchestrator_connects_with_profiles(target: str) -> None:
    with SyncWorld(target) as world:
        orchestrator = world.orchestrator().open()
        with pytest.raises(InvalidArgumentError):
            type(orchestrator.client)(world.impl, [])


@in_asyncio
async def test_06_a_service_sends_as_sv(world: World) -> None:
    service, agent = await world.open(world.service("s1"), world.agent("a"))
    await service.client.send_message_to_agent(world.ws, world.impl, "a", b"from a service")
    assert (await agent.message(b"from a service")).source_topic == f"sv::{world.impl}::s1"


def test_06_s_service_sends_as_sv(target: str) -> None:
    with SyncWorld(target) as world:
        service, agent = world.service("s1").open(), world.agent("a").open()
        service.client.send_message_to_agent(world.ws, world.impl, "a", b"from a service")
        assert agent.take().source_topic == f"sv::{world.impl}::s1"


@in_asyncio
async def test_09_r_bridge_sends_as_br(world: World, target: str) -> None:
    (agent,) = await world.open(world.agent("a"))
    identity = pb.BridgeIdentity(implementation=world.impl, specifier="b1")
    async with raw_stream(target, bridge=identity) as bridge:
        assert (await bridge.expect("connection_ack")).session_id
        await bridge.send(send=pb.SendMessage(target_topic=agent.topic, payload=b"from a bridge"))
        message = await agent.message(b"from a bridge")
        assert message.source_topic == f"br::{world.impl}::b1"
        await agent.send(message.source_topic, b"to the bridge")
        assert (await bridge.expect("msg")).payload == b"to the bridge"


@in_asyncio
async def test_09_r_task_ack_names_the_invented_id(world: World, target: str) -> None:
    """The reference leaves assigned_id empty."""
    (agent,) = await world.open(world.agent("a"))
    identity = pb.TaskIdentity(workspace=world.ws, implementation=world.impl)
    async with raw_stream(target, task=identity) as task:
        ack = await task.expect("connection_ack")
        await task.send(send=pb.SendMessage(target_topic=agent.topic, payload=b"who am i"))
        source = (await agent.message(b"who am i")).source_topic
        assert ack.assigned_id in (source, source.split("::")[-1])


@in_asyncio
async def test_09_r_agent_needs_no_session_of_the_sdk(world: World, target: str) -> None:
    """The raw stub that other scenarios use is itself an ordinary agent."""
    async with raw_stream(target, **agent_init(world.ws, world.impl, "raw")) as stream:
        ack = await stream.expect("connection_ack")
        assert (ack.session_id != "", ack.resumed, ack.reconnection_count) == (True, False, 0)
        await stream.expect("config")
