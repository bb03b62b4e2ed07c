"""An accepted input reaches its task once, though its node is killed early."""

from __future__ import annotations

import pytest
import trio

from aether_trio.devtools.process_cluster import open_process_cluster
from aether_trio.wire.pb import aether_pb2 as pb
from tests.cluster.across.fabric import Fabric, join
from tests.cluster.across.test_nodes_without_workers import Op, act, ask, begin
from tests.cluster.across.test_stopped_nodes import comes_true
from tests.helpers.core import agent, barrier, message_to
from tests.helpers.participants import Participant, participant
from tests.services.tasks.peers import create, get, operate

TASKS = 30
INPUT = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT)


@pytest.mark.crash
async def test_what_a_killed_node_has_accepted_is_taken_over_by_another_one() -> None:
    async with open_process_cluster(2) as cluster:
        killed, other = cluster.nodes
        async with (
            participant("framed", killed.address, agent("w", "person", "1")) as person,
            participant("framed", other.address, agent("w", "a", "1")) as worker,
        ):
            waiting = [await begin(worker) for _ in range(TASKS)]
            for task_id in waiting:
                await act(worker, Op.PAUSE, task_id, wait_spec=INPUT)
            for task_id in waiting:
                await person.send(message_to(f"tk::w::{task_id}::input", b"{}"))
            # An answer is a barrier: all of them are in the log.
            load = pb.CheckpointOperation(op=pb.CheckpointOperation.LOAD, request_id="b")
            await ask(person, "checkpoint", checkpoint_op=load)
            await killed.kill()
            await comes_true(
                cluster, f"SELECT count(*) = {TASKS} FROM tasks WHERE input_offset > 0 AND status = 'running'"
            )
            await comes_true(cluster, "SELECT count(*) = 0 FROM task_inputs")


async def test_what_a_node_has_not_taken_over_at_its_end_is_taken_over_by_another_one(fabric: Fabric) -> None:
    one, two = await fabric.start(), await fabric.start()
    worker = await two.join(agent("w", "a", "1"))
    task_id = (await create(worker, assignment_mode=pb.SELF_ASSIGN, target_implementation="")).task_id
    assert (await operate(worker, Op.CLAIM, task_id)).success
    assert (await operate(worker, Op.PAUSE, task_id, wait_spec=INPUT)).success
    # It ends before it gets to that.
    one.core.router._on_task_input = lambda _topic, _number: None
    async with join(one, agent("w", "b", "1")) as person:
        person.send(message_to(f"tk::w::{task_id}::input", b"{}"))
        await barrier(person)
    assert (await get(worker, task_id)).status == pb.TASK_STATUS_WAITING_INPUT
    await fabric.stop(one)
    while (await get(worker, task_id)).status != pb.TASK_STATUS_RUNNING:
        await trio.sleep(0.05)
    again = await operate(worker, Op.PAUSE, task_id, wait_spec=INPUT)
    assert again.task.status == pb.TASK_STATUS_WAITING_INPUT


async def test_inputs_from_two_nodes_are_each_used_once() -> None:
    async with open_process_cluster(2) as cluster:
        one, two = cluster.nodes
        async with (
            participant("framed", one.address, agent("w", "a", "1")) as worker,
            participant("framed", one.address, agent("w", "b", "1")) as here,
            participant("framed", two.address, agent("w", "b", "2")) as there,
        ):
            task_id = await begin(worker)

            async def give(person: Participant) -> None:
                for _ in range(TASKS):
                    await person.send(message_to(f"tk::w::{task_id}::input", b"{}"))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(give, here)
                nursery.start_soon(give, there)
            await comes_true(cluster, f"SELECT count(*) = {2 * TASKS} FROM task_inputs")
            for number in range(2 * TASKS + 1):
                told = await act(worker, Op.PAUSE, task_id, wait_spec=INPUT, request_id=f"o{number}")
                wanted = pb.TASK_STATUS_WAITING_INPUT if number == 2 * TASKS else pb.TASK_STATUS_RUNNING
                assert told.task.status == wanted
