"""Scenarios 29 to 37: messages from one participant to another."""

from __future__ import annotations

from scitrera_aether_client import CHAT, CONTROL, OPAQUE, SERVICE_WILDCARD, TOOL_CALL

from tests.helpers.sdk import SyncWorld, World, answered, eventually, in_asyncio


@in_asyncio
async def test_29_a_agent_to_agent_exact_and_in_order(world: World) -> None:
    a, b = await world.open(world.agent("a"), world.agent("b"))
    sent = [b"%d " % n + bytes(range(256)) for n in range(1000)]
    for payload in sent:
        await a.client.send_message_to_agent(world.ws, world.impl, "b", payload)
    got = [await b.take() for _ in sent]
    assert [m.payload for m in got] == sent
    assert {m.source_topic for m in got} == {a.topic}
    assert {m.message_type for m in got} == {OPAQUE}
    assert {m.workspace for m in got} == {world.ws}
    await b.only(a)
    assert a.errors.empty()


@in_asyncio
async def test_30_a_agent_to_itself(world: World) -> None:
    (a,) = await world.open(world.agent("a"))
    await a.client.send_message_to_agent(world.ws, world.impl, "a", b"note to self")
    assert (await a.message(b"note to self")).source_topic == a.topic


@in_asyncio
async def test_31_a_typed_messages_reach_the_typed_callback_once(world: World) -> None:
    a, b = await world.open(world.agent("a"), world.agent("b"))
    kinds = {CHAT: "on_chat_message", CONTROL: "on_control_message", TOOL_CALL: "on_tool_call"}
    for kind in kinds:
        await a.client.send_message_to_agent(world.ws, world.impl, "b", b"%d" % kind, message_type=kind)
    got = await b.only(a, *(b"%d" % kind for kind in kinds))
    assert [m.message_type for m in got] == list(kinds)
    assert [(name, m.payload) for name, m in b.typed] == [(name, b"%d" % kind) for kind, name in kinds.items()]


@in_asyncio
async def test_32_a_agent_to_one_window(world: World) -> None:
    a, w1, w2 = await world.open(world.agent("a"), world.user("w1"), world.user("w2"))
    await a.client.send_message_to_user_session(world.uid, "w1", b"for w1")
    assert (await w1.message(b"for w1")).source_topic == a.topic
    await w2.only(a)


@in_asyncio
async def test_33_a_user_to_agent(world: World) -> None:
    a, w1 = await world.open(world.agent("a"), world.user("w1"))
    await w1.client.send_message_to_agent(world.ws, world.impl, "a", b"hi")
    assert (await a.message(b"hi")).source_topic == w1.topic == f"us::{world.uid}::w1"


@in_asyncio
async def test_33_a_app_workspace_is_the_messages_workspace(world: World) -> None:
    """The hint wins over the sender's workspace, and an unswitched user has none."""
    a, w1 = await world.open(world.agent("a"), world.user("w1"))
    await w1.client.send_message_to_agent(world.ws, world.impl, "a", b"plain")
    await w1.client.send_message_to_agent(world.ws, world.impl, "a", b"hinted", app_workspace="the-app")
    assert (await a.message(b"plain")).workspace == ""
    assert (await a.message(b"hinted")).workspace == "the-app"


@in_asyncio
async def test_34_a_agent_to_unique_task_and_back(world: World) -> None:
    a, task = await world.open(world.agent("a"), world.unique_task("t1"))
    await a.client.send_message_to_task(world.ws, world.impl, b"work", unique_specifier="t1")
    assert (await task.message(b"work")).source_topic == a.topic
    await task.client.send_message_to_agent(world.ws, world.impl, "a", b"done")
    assert (await a.message(b"done")).source_topic == task.topic


def test_35_q_task_broadcast_goes_to_exactly_one_worker(target: str) -> None:
    with SyncWorld(target) as world:
        agent, one, two = world.agent("a").open(), world.task().open(), world.task().open()
        topics = {}
        for worker in (one, two):
            worker.send(agent.topic, b"my topic")
            topics[worker] = agent.take().source_topic
        sent = [b"job %d" % n for n in range(40)]
        for payload in sent:
            agent.send(f"tb::{world.ws}::{world.impl}", payload)
        got = {worker: [m.payload for m in worker.drain_inbox(agent, topic)] for worker, topic in topics.items()}
        assert sorted(got[one] + got[two]) == sorted(sent), "a message was lost, or went to both"
        assert got[one] != []
        assert got[two] != []


@in_asyncio
async def test_35_a_task_broadcast_goes_to_who_remains(world: World) -> None:
    agent, one, two, admin = await world.open(world.agent("a"), world.task(), world.task(), world.orchestrator())
    await two.client.send_message_to_agent(world.ws, world.impl, "a", b"my topic")
    two.topic = (await agent.message(b"my topic")).source_topic
    await one.close()

    async def sessions() -> int:
        listed = await admin.client.list_sessions(workspace=world.ws, principal_type="task", timeout=30)
        return len(answered(listed, "list_sessions").connections)

    await eventually(sessions, lambda count: count == 1, "the closed task's session is still listed")
    sent = [b"job %d" % n for n in range(20)]
    for payload in sent:
        await agent.send(f"tb::{world.ws}::{world.impl}", payload)
    await two.only(agent, *sent)


@in_asyncio
async def test_36_a_agent_to_service_by_name_and_by_wildcard(world: World) -> None:
    a, s1, s2 = await world.open(world.agent("a"), world.service("s1"), world.service("s2"))
    await a.client.send_message_to_service(world.impl, "s1", b"by name")
    assert (await s1.message(b"by name")).source_topic == a.topic
    await s2.only(a)
    sent = [b"any %d" % n for n in range(100)]
    for payload in sent:
        await a.client.send_message_to_service(world.impl, SERVICE_WILDCARD, payload)
    await a.barrier()
    counts = []
    got: list[bytes] = []
    for service in (s1, s2):
        marker = b"marker"
        await a.client.send_message_to_service(world.impl, service.topic.split("::")[-1], marker)
        before = len(got)
        while (message := await service.take()).payload != marker:
            got.append(message.payload)
        counts.append(len(got) - before)
    assert sorted(got) == sorted(sent), "a message was lost, or went to both"
    # "Evenly": a fair coin leaves a side below 20 of 100 once in ten million runs.
    assert min(counts) >= 20, counts


@in_asyncio
async def test_37_a_wildcard_without_instance(world: World) -> None:
    (a,) = await world.open(world.agent("a"))
    await a.client.send_message_to_service("none-such", SERVICE_WILDCARD, b"hello?")
    assert (await a.error("ERR_SV_UNAVAILABLE")).retryable
    await a.barrier()
    assert a.client.is_connected
