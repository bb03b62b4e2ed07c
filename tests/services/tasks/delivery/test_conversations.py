"""A task's conversation reaches the windows of the user that takes part in it."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.topics import task_topic
from aether_trio.services.tasks.delivery.conversations import LINGER_S
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, message_to, payloads, switch_to, user
from tests.services.tasks.peers import Op, begin, create, given, operate

PARTICIPANT = {"subject_participant": "true"}
QUIET_S = LINGER_S / 4
LATE_S = 4 * LINGER_S


async def window_in(peer: MemoryLink, workspace: str) -> MemoryLink:
    peer.send(switch_to(workspace))
    await barrier(peer)
    return peer


async def running(creator: MemoryLink, worker: MemoryLink, **fields: Any) -> str:
    """A task that `worker` has claimed."""
    fields = {"metadata": PARTICIPANT, **fields}
    created = await create(creator, **fields)
    assert created.success, created.error_message
    await begin(worker, created.task_id)
    return created.task_id


async def say(peer: MemoryLink, task_id: str, text: bytes) -> None:
    peer.send(message_to(task_topic("w", task_id, "msg"), text))
    await barrier(peer)


async def hears(peer: MemoryLink, *texts: bytes) -> None:
    """These, in this order, and no others for a long time."""
    await trio.sleep(QUIET_S)
    heard = payloads(peer)
    for _ in heard:
        await peer.next("msg")
    assert heard == list(texts)


async def test_from_its_beginning_while_it_runs_and_while_it_waits(core: Core) -> None:
    async with connect(core, user("u", "1")) as window, connect(core, agent("w", "i", "1")) as worker:
        await window_in(window, "w")
        created = await create(window, metadata=PARTICIPANT)
        await say(worker, created.task_id, b"before")
        await hears(window)
        assert (await operate(worker, Op.CLAIM, created.task_id)).success
        await say(worker, created.task_id, b"hello")
        await hears(window, b"before", b"hello")
        wait = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT)
        assert (await operate(worker, Op.PAUSE, created.task_id, wait_spec=wait)).success
        await say(worker, created.task_id, b"well?")
        await hears(window, b"well?")


async def test_what_was_said_last_arrives_and_what_is_said_later_does_not(core: Core) -> None:
    async with connect(core, user("u", "1")) as window, connect(core, agent("w", "i", "1")) as worker:
        task_id = await running(await window_in(window, "w"), worker)
        assert (await operate(worker, Op.COMPLETE, task_id)).success
        await say(worker, task_id, b"that was all")
        await hears(window, b"that was all")
        await trio.sleep(LATE_S)
        await say(worker, task_id, b"too late")
        await hears(window)
        await window_in(window, "v")
        await window_in(window, "w")
        await hears(window)


async def test_a_task_that_is_tried_again_is_heard_on(core: Core) -> None:
    async with connect(core, user("u", "1")) as window, connect(core, agent("w", "i", "1")) as worker:
        task_id = await running(await window_in(window, "w"), worker)
        assert (await operate(worker, Op.CANCEL, task_id)).success
        assert (await operate(window, Op.RETRY, task_id)).success
        while given(worker).count(task_id) < 2:
            await trio.sleep(0.01)
        assert (await operate(worker, Op.CLAIM, task_id)).success
        await trio.sleep(LATE_S)
        await say(worker, task_id, b"again")
        await hears(window, b"again")


async def test_every_window_of_that_user_in_that_workspace_and_no_other(core: Core) -> None:
    async with (
        connect(core, user("u", "1")) as creator,
        connect(core, user("u", "2")) as other_window,
        connect(core, user("u", "3")) as elsewhere,
        connect(core, user("v", "1")) as outsider,
        connect(core, agent("w", "i", "1")) as worker,
    ):
        for one, workspace in ((creator, "w"), (other_window, "w"), (elsewhere, "x"), (outsider, "w")):
            await window_in(one, workspace)
        task_id = await running(creator, worker)
        await say(worker, task_id, b"x")
        for one, texts in ((creator, [b"x"]), (other_window, [b"x"]), (elsewhere, []), (outsider, [])):
            await hears(one, *texts)
        await window_in(elsewhere, "w")
        await hears(elsewhere, b"x")


@pytest.mark.parametrize("metadata", [{}, {"subject_participant": "no"}])
async def test_a_user_who_does_not_take_part_is_not_bothered(core: Core, metadata: dict[str, str]) -> None:
    async with connect(core, user("u", "1")) as window, connect(core, agent("w", "i", "1")) as worker:
        task_id = await running(await window_in(window, "w"), worker, metadata=metadata)
        await say(worker, task_id, b"x")
        await window_in(window, "v")
        await window_in(window, "w")
        await hears(window)


async def test_a_window_that_was_away_goes_on_where_it_was(world: World) -> None:
    async with world.open() as core, connect(core, agent("w", "i", "1")) as worker:
        async with connect(core, user("u", "1")) as window:
            task_id = await running(await window_in(window, "w"), worker)
            await say(worker, task_id, b"1")
            await hears(window, b"1")
        await say(worker, task_id, b"2")
        async with connect(core, user("u", "1")) as window, connect(core, user("u", "2")) as fresh:
            await window_in(window, "w")
            await window_in(fresh, "w")
            await hears(window, b"2")
            await hears(fresh, b"1", b"2")
            await window_in(window, "")
            await say(worker, task_id, b"3")
            await hears(window)
            for workspace in ("w", "v", "w"):
                window.send(switch_to(workspace))
            await hears(window, b"3")
