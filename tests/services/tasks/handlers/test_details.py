"""A GET says why a task does not run, and gives its payload when it is asked for."""

from __future__ import annotations

import base64

import trio

from aether_trio.gateway.core import Core
from aether_trio.services.tasks.handlers import details
from aether_trio.session.init_connection import WORKER_TASKS
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, connect, service
from tests.services.tasks.peers import Op, answer, begin, create, get, hibernate, operate, own, wait_for

ONE_TASK = pb.ExtensionDeclaration(uri=WORKER_TASKS, version="1")


async def because(peer: MemoryLink, task_id: str) -> str:
    return (await get(peer, task_id)).metadata.get("_queued_because", "")


async def test_a_task_of_a_pool_says_why_it_waits(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as creator:
        first, second = [(await create(creator)).task_id for _ in range(2)]
        assert await because(creator, first) == "no worker of the pool i is connected to the workspace w"
        async with connect(core, agent("w", "i", "1", extensions=[ONE_TASK])) as worker:
            while not (await get(creator, first)).assigned_to:
                await trio.sleep(1)
            assert await because(creator, first) == "it was given to ag::w::i::1, which has not begun it"
            assert await because(creator, second) == "the only worker of the pool i is busy"
            async with connect(core, agent("w", "i", "2", extensions=[ONE_TASK])):
                while not (await get(creator, second)).assigned_to:
                    await trio.sleep(1)
                third = (await create(creator)).task_id
                assert await because(creator, third) == "all 2 workers of the pool i are busy"
            await begin(worker, first)
            assert await because(creator, first) == ""


async def test_a_target_that_is_away_or_busy_is_named(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as creator:
        queue = pb.TARGET_OFFLINE_POLICY_QUEUE
        fields = {"assignment_mode": pb.TARGETED, "target_agent_id": "ag::w::t::1", "target_offline_policy": queue}
        first, second = [(await create(creator, **fields)).task_id for _ in range(2)]
        assert await because(creator, first) == "ag::w::t::1 is not connected"
        async with connect(core, agent("w", "t", "1", extensions=[ONE_TASK])) as worker:
            await begin(worker, first)
            assert await because(creator, second) == "ag::w::t::1 is busy: it has 1 of 1 tasks"


async def test_a_paused_task_says_what_it_waits_for(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("w", "i", "1")) as worker:
        others = [await own(creator) for _ in range(5)]
        task_id = await own(creator)
        assert (await wait_for(creator, task_id, *others)).success
        names = ", ".join(sorted(others)[:3])
        assert await because(creator, task_id) == f"waits for tasks {names}, and more"
        for other in others[1:]:
            assert (await operate(creator, Op.COMPLETE, other)).success
        assert await because(creator, task_id) == f"waits for task {others[0]}"
        paused = await own(creator)
        wait = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT, expected_principal="ann")
        assert (await operate(creator, Op.PAUSE, paused, wait_spec=wait)).success
        assert await because(creator, paused) == "waits for an input, from ann"
        asleep = (await create(creator)).task_id
        await begin(worker, asleep)
        await hibernate(worker, asleep)
        assert await because(creator, asleep) == "it hibernates until it is resumed"


async def test_a_service_that_may_not_read_the_workspace_is_no_worker_of_its_pool(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, service("i", "1")):
        task_id = (await create(creator)).task_id
        text = await because(creator, task_id)
        assert text in (
            "no worker of the pool i may read the workspace w",
            "it was given to sv::i::1, which has not begun it",
        )


async def test_the_payload_comes_in_parts_when_it_is_asked_for(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("other", "c", "1")) as outsider:
        payload = bytes(range(256)) * 2000
        task_id = (await create(creator, payload=payload)).task_id
        assert "_payload_base64" not in (await get(creator, task_id)).metadata
        details_part = details.PAYLOAD_PART
        for peer, offset, found in (
            (creator, 0, payload),
            (creator, 500_000, payload[500_000:]),
            (creator, 10**6, b""),
        ):
            wanted = pb.TaskFilter(page_token="payload", offset=offset)
            peer.send(
                pb.UpstreamMessage(
                    task_query=pb.TaskQuery(
                        op=pb.TaskQuery.GET, task_id=task_id, filter=wanted, request_id=f"p{offset}"
                    )
                )
            )
            shown = (await answer(peer, "task_query", f"p{offset}")).task.metadata
            assert base64.b64decode(shown["_payload_base64"]) == found[:details_part]
            assert shown["_payload_bytes"] == str(len(payload))
        query = pb.TaskQuery(
            op=pb.TaskQuery.GET, task_id=task_id, filter=pb.TaskFilter(page_token="payload"), request_id="x"
        )
        outsider.send(pb.UpstreamMessage(task_query=query))
        assert (await answer(outsider, "task_query", "x")).error == "task not found"
