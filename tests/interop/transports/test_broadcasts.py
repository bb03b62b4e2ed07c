"""Scenarios 38 to 41: one message to many, and to no other client."""

from __future__ import annotations

import pytest

from aether_trio.client import PermissionDenied
from tests.interop.transports.world import World, both, expect, framed, only, take


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


@framed
async def test_38_ga_keeps_its_order_and_is_not_replayed(world: World) -> None:
    a, b, c = await world.agent("a"), await world.agent("b"), await world.agent("c")
    sent = [b"%d" % n for n in range(300)]
    for payload in sent:
        await a.publish(f"ga::{world.ws}", payload)
    await a.flush()
    for agent in (b, c):
        assert [(await take(agent)).payload for _ in sent] == sent
    late = await world.agent("late")
    await only(late, a)


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
    await a.send_to_users(b"nobody")
    await only(other, a)


@both
async def test_40_uw_reaches_one_user_in_one_workspace(world: World) -> None:
    a = await world.agent("a")
    w1, w2 = await world.user("w1", ws=world.ws), await world.user("w2", ws=world.ws)
    elsewhere = await world.user("w3", ws=f"{world.ws}-other")
    other = await world.user("w1", uid=f"{world.uid}-b", ws=world.ws)
    await a.send_to_user(world.uid, b"only you, only here")
    for user in (w1, w2):
        await expect(user, b"only you, only here", a)
    await only(elsewhere, a)
    await only(other, a)


@both
async def test_41_uu_reaches_every_window_and_only_services_may(world: World) -> None:
    service, agent = await world.service("s"), await world.agent("a")
    w1, w2 = await world.user("w1"), await world.user("w2", ws=world.ws)
    other = await world.user("w1", uid=f"{world.uid}-b")
    await service.send_to_user_everywhere(world.uid, b"everywhere")
    for window in (w1, w2):
        await expect(window, b"everywhere", service)
    await only(other, agent)
    for sender in (agent, w1):
        with pytest.raises(PermissionDenied) as raised:
            await sender.send(f"uu::{world.uid}", b"may I?")
        assert not raised.value.retryable
    await only(w1, agent)
