"""Each accepted input of a task is used once, after any restart or outage."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.limits import KIB
from aether_trio.services.tasks.delivery import input_consumer
from aether_trio.services.tasks.transaction import unused_inputs
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, deadlock_is_an_error, message_to, pump
from tests.services.tasks.peers import Op, get, operate, own

RUNNING, WAITING = pb.TASK_STATUS_RUNNING, pb.TASK_STATUS_WAITING_INPUT
KEPT = "SELECT COUNT(*) FROM task_inputs"


def give(peer: MemoryLink, task_id: str, **metadata: str) -> None:
    """Send an input."""
    peer.send(message_to(f"tk::w::{task_id}::input", json.dumps({"metadata": metadata}).encode()))


async def pause(peer: MemoryLink, task_id: str, **match: str) -> int:
    """Wait for an input; what the task is then."""
    paused = await operate(peer, Op.PAUSE, task_id, wait_spec=pb.WaitSpec(reason=1, input_match=match))
    assert paused.success, paused.error
    return paused.task.status


async def that_wait(peer: MemoryLink, number: int) -> list[str]:
    """So many tasks that wait for an input."""
    tasks = [await own(peer) for _ in range(number)]
    for task_id in tasks:
        assert await pause(peer, task_id) == WAITING
    return tasks


async def status(peer: MemoryLink, task_id: str) -> int:
    return (await get(peer, task_id)).status


async def until(peer: MemoryLink, task_id: str, wanted: int) -> None:
    while await status(peer, task_id) != wanted:
        await trio.sleep(5)


async def moved_on(world: World, offset: int = 1) -> None:
    """Return when the inputs up to this number in the log are in the tasks database."""
    while world.databases["tasks"].query("SELECT MAX(input_offset) FROM tasks") != [(offset,)]:
        await trio.sleep(5)


async def test_one_that_is_accepted_while_the_tasks_are_away_survives_a_restart(world: World) -> None:
    tasks = world.databases["tasks"]
    async with deadlock_is_an_error():
        async with world.open() as core, connect(core, agent("w", "c", "1")) as peer:
            task_id = await own(peer)
            assert await pause(peer, task_id) == WAITING
            tasks.failing = True
            give(peer, task_id)
            await barrier(peer)
            await trio.sleep(10)
        async with world.open() as core, connect(core, agent("w", "c", "1")) as peer:
            await until(peer, task_id, RUNNING)
            assert await pause(peer, task_id) == WAITING
            await trio.sleep(1300)
            # Nothing looks at the log in a way that uses it again.
            assert await status(peer, task_id) == WAITING
        async with world.open() as core, connect(core, agent("w", "c", "1")) as peer:
            await trio.sleep(60)
            assert await status(peer, task_id) == WAITING


@pytest.mark.parametrize(("fault", "writes"), [("unanswered_writes", 2), ("denied_writes", 1)])
async def test_one_whose_way_is_in_doubt_is_used_once(core: Core, world: World, fault: str, writes: int) -> None:
    tasks = world.databases["tasks"]
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        assert await pause(peer, task_id) == WAITING
        setattr(tasks, fault, writes)
        give(peer, task_id)
        await until(peer, task_id, RUNNING)
        assert await pause(peer, task_id) == WAITING
        await trio.sleep(60)
        assert await status(peer, task_id) == WAITING


async def test_one_that_the_log_refuses_wakes_nothing(core: Core, world: World) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        assert await pause(peer, task_id) == WAITING
        give(peer, task_id)  # the topic is there
        await until(peer, task_id, RUNNING)
        assert await pause(peer, task_id) == WAITING
        world.log.fail_writes = 1
        give(peer, task_id)
        while not peer.waiting("error"):
            await trio.sleep(5)
        await trio.sleep(60)
        assert await status(peer, task_id) == WAITING
        give(peer, task_id)
        await until(peer, task_id, RUNNING)


async def test_a_pause_whose_commit_was_not_answered_does_not_wait_again(core: Core, world: World) -> None:
    tasks = world.databases["tasks"]
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        give(peer, task_id)
        await barrier(peer)
        await moved_on(world)
        tasks.unanswered_writes = 1
        assert await pause(peer, task_id) == RUNNING


async def test_those_of_an_ended_task_are_dropped(core: Core, world: World) -> None:
    tasks = world.databases["tasks"]
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        give(peer, task_id, before="the end")
        await barrier(peer)
        await moved_on(world)
        assert tasks.query(KEPT) == [(1,)]
        assert (await operate(peer, Op.FAIL, task_id, reason="no")).success
        assert tasks.query(KEPT) == [(0,)]
        give(peer, task_id, after="the end")
        give(peer, "unknown")
        await barrier(peer)
        await moved_on(world, 2)
        assert (await operate(peer, Op.RETRY, task_id)).success
        assert (await operate(peer, Op.CLAIM, task_id)).success
        assert await pause(peer, task_id) == WAITING
        await trio.sleep(700)
        assert await status(peer, task_id) == WAITING


async def test_those_from_another_workspace_are_not_the_tasks(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("v", "c", "1")) as other:
        task_id = await own(peer)
        other.send(message_to(f"tk::v::{task_id}::input", b"{}"))
        await barrier(other)
        await trio.sleep(60)
        assert await pause(peer, task_id) == WAITING


async def test_what_is_kept_of_a_task_is_bounded_and_what_it_waits_for_comes_all_the_same(
    core: Core, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unused_inputs, "KEPT_INPUTS", 3)
    tasks = world.databases["tasks"]
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        for number in range(5):
            give(peer, task_id, n=str(number))
        give(peer, task_id, n="1" * unused_inputs.KEPT_BYTES)
        await barrier(peer)
        await moved_on(world, 6)
        assert tasks.query(KEPT) == [(3,)]
        assert core.tasks.engine.statistics().inputs_dropped == 3
        assert await pause(peer, task_id, n="4") == WAITING
        give(peer, task_id, n="4")
        await until(peer, task_id, RUNNING)
        assert [await pause(peer, task_id) for _ in range(4)] == [RUNNING] * 3 + [WAITING]


@pytest.mark.parametrize(
    ("sizes", "kept"),
    [([9] * 258, [9] * 256), ([200 * KIB, 56 * KIB + 1, 56 * KIB, len('{"n":""}')], [200 * KIB, 56 * KIB])],
    ids=["many", "large"],
)
async def test_as_many_and_as_large_ones_are_kept_as_is_promised(
    core: Core, world: World, sizes: list[int], kept: list[int]
) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        for size in sizes:
            give(peer, task_id, n="1" * (size - len('{"n":""}')))
        await barrier(peer)
        await moved_on(world, len(sizes))
        found = world.databases["tasks"].query("SELECT LENGTH(metadata) FROM task_inputs ORDER BY log_offset")
        assert [size for (size,) in found] == kept
        assert core.tasks.engine.statistics().inputs_dropped == 2


async def test_a_long_backlog_that_is_found_after_a_restart_needs_no_new_message(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_consumer, "PAGE_ROWS", 2)
    async with deadlock_is_an_error():
        async with world.open() as core, connect(core, agent("w", "c", "1")) as peer:
            task_id = await own(peer)
            world.databases["tasks"].failing = True
            for number in range(5):
                give(peer, task_id, n=str(number))
            await barrier(peer)
        async with world.open():
            await moved_on(world, 5)
            assert world.databases["tasks"].query(KEPT) == [(5,)]


@pytest.mark.parametrize("remembered", [3, 1])
async def test_what_finds_no_room_in_memory_is_looked_for_at_once(
    core: Core, world: World, monkeypatch: pytest.MonkeyPatch, remembered: int
) -> None:
    """And not when all topics are looked through the next time."""
    monkeypatch.setattr(input_consumer, "MAX_WAITING", remembered)
    tasks = world.databases["tasks"]
    async with connect(core, agent("w", "c", "1")) as peer:
        waiting = await that_wait(peer, 3 * remembered + 1)
        await trio.sleep(30)
        monkeypatch.setattr(core.tasks.engine.input_consumer, "look", lambda: None)
        tasks.failing = True
        for task_id in waiting:
            give(peer, task_id)
        await barrier(peer)
        tasks.failing = False
        for task_id in waiting:
            await until(peer, task_id, RUNNING)


def test_a_workspace_takes_its_share_of_what_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_consumer, "MAX_WAITING", 20)
    waiting = input_consumer._Waiting()
    assert [waiting.put(f"tk::loud::{number}::input", number) for number in (1, 2, 3)] == [True, True, False]
    assert waiting.put("tk::other::1::input", 4)
    assert waiting.put("tk::loud::1::input", 5)  # more of the same
    waiting.had_turn("tk::loud::1::input", 1, unfinished=False)  # but there is some since
    assert not waiting.put("tk::loud::3::input", 6)
    waiting.had_turn("tk::loud::1::input", 5, unfinished=False)
    assert [waiting.put(f"tk::loud::{number}::input", number) for number in (7, 8)] == [True, False]


async def test_large_inputs_let_others_have_their_turn() -> None:
    frame = pb.DownstreamMessage(msg=pb.IncomingMessage(payload=bytes(40 * 1024))).SerializeToString()
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        await trio.lowlevel.checkpoint()
        before = turns
        read = await input_consumer._read([(number, frame) for number in range(5)])
        assert read == [unused_inputs.TaskInput(number, {}) for number in range(5)]
        assert turns - before >= 3  # of four, as the order within a turn of the loop is by chance
        nursery.cancel_scope.cancel()


async def test_many_inputs_of_one_task_are_read_a_page_at_a_time(
    core: Core, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_consumer, "PAGE_ROWS", 2)
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        for number in range(9):
            give(peer, task_id, n=str(number))
        await barrier(peer)
        await moved_on(world, 9)
        await pump()
        assert world.databases["tasks"].query(KEPT) == [(9,)]


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks whose inputs were taken over, a page each, in their order."""
    found: list[str] = []
    write = input_consumer._write

    def noted(tx: TaskTransaction, page: Any) -> Any:
        found.append(page.place.task_id)
        return write(tx, page)

    monkeypatch.setattr(input_consumer, "_write", noted)
    return found


@pytest.mark.parametrize("remembered", [input_consumer.MAX_WAITING, 10])
async def test_what_others_send_without_end_keeps_no_input_waiting(
    core: Core, world: World, monkeypatch: pytest.MonkeyPatch, turns: list[str], remembered: int
) -> None:
    for name, value in (("GROUP", 2), ("PAGE_ROWS", 2), ("MAX_WAITING", remembered)):
        monkeypatch.setattr(input_consumer, name, value)
    tasks = world.databases["tasks"]
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("v", "c", "1")) as loud:
        flooded = [await own(loud) for _ in range(3)]
        task_id = await own(peer)
        assert await pause(peer, task_id) == WAITING
        tasks.failing = True
        for number in range(40):
            for one in flooded:
                loud.send(message_to(f"tk::v::{one}::input", json.dumps({"metadata": {"n": str(number)}}).encode()))
        await barrier(loud)
        give(peer, task_id)
        await barrier(peer)
        tasks.failing = False
        await until(peer, task_id, RUNNING)
        while len(turns) < 61:
            await trio.sleep(5)
        assert turns.index(task_id) < 6
        assert sorted(set(turns)) == sorted([*flooded, task_id])


async def test_a_look_through_all_topics_lets_new_inputs_pass(
    core: Core, world: World, monkeypatch: pytest.MonkeyPatch, turns: list[str]
) -> None:
    for name, value in (("GROUP", 2), ("PAGE_ROWS", 2)):
        monkeypatch.setattr(input_consumer, name, value)
    tasks = world.databases["tasks"]
    async with connect(core, agent("w", "c", "1")) as peer:
        others = [await own(peer) for _ in range(40)]
        task_id = await own(peer)
        assert await pause(peer, task_id) == WAITING
        tasks.failing = True
        for one in others:
            give(peer, one)
        await barrier(peer)
        core.tasks.engine.input_consumer._waiting = input_consumer._Waiting()  # as after a restart
        core.tasks.engine.input_consumer.look()
        give(peer, task_id)
        await barrier(peer)
        tasks.failing = False
        await until(peer, task_id, RUNNING)
        while len(turns) < 41:
            await trio.sleep(5)
        assert turns.index(task_id) < 6
        assert len(turns) == 41
