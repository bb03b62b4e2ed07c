"""Scenarios 38 to 41: one message to many, and to no other client."""

from __future__ import annotations

from tests.helpers.sdk import World, in_asyncio


@in_asyncio
async def test_38_a_ga_reaches_the_agents_of_its_workspace(world: World) -> None:
    a, b = world.agent("a"), world.agent("b")
    other_impl = world.agent("c", impl=f"{world.impl}-other")
    foreign = world.agent("d", ws=f"{world.ws}-other")
    task, user = world.unique_task("t"), world.user("w")
    await world.open(a, b, other_impl, foreign, task, user)
    await user.client.switch_workspace(world.ws)
    await user.barrier()
    await a.client.send_broadcast_to_agents(world.ws, b"to all agents")
    for agent in (a, b, other_impl):
        assert (await agent.message(b"to all agents")).source_topic == a.topic
    # The sender's own workspace rules what it may send, so each marker comes from a peer
    # that may send there.
    await foreign.only(foreign)
    await task.only(a)
    await user.only(a)


@in_asyncio
async def test_38_a_ga_keeps_its_order(world: World) -> None:
    a, b, c = await world.open(world.agent("a"), world.agent("b"), world.agent("c"))
    sent = [b"%d" % n for n in range(300)]
    for payload in sent:
        await a.client.send_broadcast_to_agents(world.ws, payload)
    for agent in (b, c):
        assert [(await agent.take()).payload for _ in sent] == sent


@in_asyncio
async def test_38_a_ga_is_not_replayed_to_a_newcomer(world: World) -> None:
    (a,) = await world.open(world.agent("a"))
    await a.client.send_broadcast_to_agents(world.ws, b"before you came")
    await a.message(b"before you came")
    (late,) = await world.open(world.agent("late"))
    await late.only(a)


@in_asyncio
async def test_39_a_gu_reaches_users_while_they_are_switched_in(world: World) -> None:
    a, inside, other, outside = await world.open(
        world.agent("a"), world.user("w1"), world.user("w1", uid=f"{world.uid}-b"), world.user("w2")
    )
    await inside.client.switch_workspace(world.ws)
    await other.client.switch_workspace(world.ws)
    await outside.client.switch_workspace(f"{world.ws}-other")
    for user in (inside, other, outside):
        await user.barrier()  # a switch has no answer
    await a.client.send_broadcast_to_users(world.ws, b"all users")
    for user in (inside, other):
        assert (await user.message(b"all users")).source_topic == a.topic
    await outside.only(a)
    await a.only(a)
    await inside.client.switch_workspace(f"{world.ws}-other")
    await inside.barrier()
    await a.client.send_broadcast_to_users(world.ws, b"who is left")
    await other.message(b"who is left")
    await inside.only(a)
    # An empty id leaves the workspace and joins none.
    await other.client.switch_workspace("")
    await other.barrier()
    await a.client.send_broadcast_to_users(world.ws, b"unheard")
    await other.only(a)
    assert a.errors.empty()
    assert inside.errors.empty()


@in_asyncio
async def test_40_a_uw_reaches_one_user_in_one_workspace(world: World) -> None:
    a, w1, w2, elsewhere, other = await world.open(
        world.agent("a"), world.user("w1"), world.user("w2"), world.user("w3"), world.user("w1", uid="someone")
    )
    for user in (w1, w2, other):
        await user.client.switch_workspace(world.ws)
    await elsewhere.client.switch_workspace(f"{world.ws}-other")
    for user in (w1, w2, elsewhere, other):
        await user.barrier()
    await a.client.send_message_to_user_workspace(world.uid, world.ws, b"only you, only here")
    for user in (w1, w2):
        assert (await user.message(b"only you, only here")).source_topic == a.topic
    await elsewhere.only(a)
    await other.only(a)


@in_asyncio
async def test_41_a_uu_reaches_every_window_and_only_services_may(world: World) -> None:
    service, agent, w1, w2, other = await world.open(
        world.service("s"), world.agent("a"), world.user("w1"), world.user("w2"), world.user("w1", uid="someone")
    )
    await w2.client.switch_workspace(world.ws)
    await w2.barrier()
    await service.client.send_message_to_user_broadcast(world.uid, b"everywhere")
    for window in (w1, w2):
        assert (await window.message(b"everywhere")).source_topic == service.topic
    await other.only(agent)
    await agent.send(f"uu::{world.uid}", b"may I?")
    assert not (await agent.error("ERR_PERMISSION_DENIED")).retryable
    await w1.only(agent)
