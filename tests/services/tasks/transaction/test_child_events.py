"""A parent's log has the events of its children, each once and in order."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction import child_events
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect
from tests.services.tasks.delivery.test_event_subscriptions import (
    child_of,
    of,
    parent_and_children,
    seen,
    subscribe,
    written,
)
from tests.services.tasks.peers import Op, operate

Lived = tuple[str, str]


def lives(peer: MemoryLink, parent: str) -> list[Lived]:
    """What a subscriber was told of children, as (child, lifecycle)."""
    told = [one.child_lifecycle for one in of(seen(peer), parent) if one.HasField("child_lifecycle")]
    return [(one.child_task_id, one.lifecycle) for one in told]


def numbers(world: World, task_id: str) -> list[int]:
    query = world.databases["tasks"].query
    found = [row[0] for row in query("SELECT number FROM task_events WHERE task_id = $1 ORDER BY number", task_id)]
    assert query("SELECT events FROM tasks WHERE task_id = $1", task_id) == [(len(found),)]
    return found


def left(world: World) -> int:
    count: int = world.databases["tasks"].query("SELECT COUNT(*) FROM task_child_events")[0][0]
    return count


async def end(peer: MemoryLink, task_id: str) -> None:
    for op in (Op.CLAIM, Op.COMPLETE):
        assert (await operate(peer, op, task_id)).success


@pytest.fixture
def nothing_taken_up(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if each gateway was killed before it could; until `undo`."""

    async def never(_: Any) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(Engine, "_collect_child_events_forever", never)
    return monkeypatch


async def test_children_leave_their_parents_row_alone(
    world: World, core: Core, nothing_taken_up: pytest.MonkeyPatch
) -> None:
    row = "SELECT events, updated_ms FROM tasks WHERE task_id = $1"
    async with connect(core, agent("w", "c", "1")) as peer:
        parent, (first,) = await parent_and_children(peer, 1)
        before = world.databases["tasks"].query(row, parent)
        second = await child_of(peer, parent)
        for task_id in (first, second):
            await end(peer, task_id)
        assert world.databases["tasks"].query(row, parent) == before
        assert left(world) == 4


async def test_a_subscriber_is_told_soon_and_once(core: Core, world: World) -> None:
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("w", "c", "2")) as other:
        parent, (first,) = await parent_and_children(peer, 1)
        assert (await subscribe(other, parent)).success
        assert (await operate(peer, Op.CLAIM, parent)).success
        made = [await child_of(peer, parent) for _ in range(child_events.PAGE + 5)]
        for task_id in (first, *made):
            await end(peer, task_id)
        await trio.sleep(1)
        told = lives(other, parent)
        assert len(told) == len(set(told)) == 2 * len(made) + 1
        for task_id in made:
            assert told.index((task_id, "spawned")) < told.index((task_id, "completed"))
        assert (first, "completed") in told
        assert left(world) == 0
        # And its first child, and its own beginning.
        assert numbers(world, parent) == list(range(1, len(told) + 3))


async def test_what_no_client_follows_is_left_to_the_end_of_the_parent(core: Core, world: World) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        parent, (first,) = await parent_and_children(peer, 1)
        for task_id in (first, await child_of(peer, parent)):
            await end(peer, task_id)
        await trio.sleep(child_events.UNWATCHED_S / 2)
        assert (left(world), numbers(world, parent)) == (4, [])
        for op in (Op.CLAIM, Op.COMPLETE):
            assert (await operate(peer, op, parent)).success
        assert (left(world), numbers(world, parent)) == (0, [1, 2, 3, 4, 5, 6])


async def test_what_no_client_follows_is_moved_after_a_while(core: Core, world: World) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        parent, made = await parent_and_children(peer, child_events.PAGE + 1)
        await trio.sleep(4 * child_events.UNWATCHED_S)
        assert (left(world), len(numbers(world, parent))) == (0, len(made))


async def test_what_a_killed_gateway_left_is_taken_up_by_the_next(
    world: World, nothing_taken_up: pytest.MonkeyPatch
) -> None:
    async with world.open() as core, connect(core, agent("w", "c", "1")) as peer:
        parent, (first, second) = await parent_and_children(peer, 2)
        await end(peer, second)
    assert left(world) == 3
    nothing_taken_up.undo()
    async with world.open() as core, connect(core, agent("w", "c", "2")) as other:
        await trio.sleep(1)
        assert left(world) == 0
        assert (await subscribe(other, parent, start_timestamp_unix_ms=1)).success
        await trio.sleep(1)
        assert lives(other, parent) == [(first, "spawned"), (second, "spawned"), (second, "completed")]
        assert numbers(world, parent) == [1, 2, 3]


@pytest.mark.parametrize("how_many", [1, 60, child_events.PAGE // 2 + 1])
async def test_a_parents_end_comes_behind_what_its_children_did_before(
    core: Core, world: World, nothing_taken_up: pytest.MonkeyPatch, how_many: int
) -> None:
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("w", "c", "2")) as other:
        parent, made = await parent_and_children(peer, how_many)
        assert (await subscribe(other, parent, start_timestamp_unix_ms=1)).success
        assert (await operate(peer, Op.CLAIM, parent)).success
        for task_id in made:
            await end(peer, task_id)
        report = pb.ProgressReport(task_id=parent, state="running", summary="nearly")
        peer.send(pb.UpstreamMessage(progress=report))
        assert (await operate(peer, Op.COMPLETE, parent)).success
        await trio.sleep(1)
        events = of(seen(other), parent)
        kinds = [one.WhichOneof("event") for one in events]
        assert kinds[-2:] == ["progress", "status_changed"]
        assert kinds.count("child_lifecycle") == 2 * how_many
        assert [one.child_lifecycle.lifecycle for one in events].count("completed") == how_many
        assert numbers(world, parent) == list(range(1, len(events) + 1))
        assert len(written(world, parent)) == len(events)
        assert left(world) == 0


async def test_what_a_task_is_told_of_its_children_names_its_own_parent(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("w", "c", "2")) as other:
        parent, (middle,) = await parent_and_children(peer, 1)
        child = await child_of(peer, middle)
        await end(peer, child)
        await trio.sleep(1)
        assert (await subscribe(other, parent, recursive=True, start_timestamp_unix_ms=1)).success
        await trio.sleep(1)
        assert [one.parent_task_id for one in of(seen(other), parent)] == [""]
        told = of(seen(other), middle)
        assert lives(other, middle) == [(child, "spawned"), (child, "completed")]
        assert {one.parent_task_id for one in told} == {parent}


async def test_what_was_before_a_subscription_is_not_told(core: Core, nothing_taken_up: pytest.MonkeyPatch) -> None:
    for recursive in (False, True):
        async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("w", "c", "2")) as other:
            parent, (first,) = await parent_and_children(peer, 1)
            await child_of(peer, first)
            assert (await subscribe(other, parent, recursive=recursive)).success
            nothing_taken_up.undo()
            later = await child_of(peer, parent)
            await core.tasks.engine.collect_child_events()
            await trio.sleep(1)
            assert [one for task_id in (parent, first) for one in lives(other, task_id)] == [(later, "spawned")]


async def test_events_of_the_children_of_a_deleted_task_go(core: Core, world: World) -> None:
    database = core.tasks.engine.database
    async with connect(core, agent("w", "c", "1")) as peer:
        parent, (child,) = await parent_and_children(peer, 1)
        await trio.sleep(4 * child_events.UNWATCHED_S)
        await database.execute("DELETE FROM tasks WHERE task_id = $1", parent)
        await end(peer, child)
        await trio.sleep(4 * child_events.UNWATCHED_S)
        assert left(world) == 0
