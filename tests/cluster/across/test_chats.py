"""The conversation of a task whose user and worker are on different nodes."""

from __future__ import annotations

from aether_trio.model.topics import task_topic
from tests.cluster.across.fabric import Fabric, until
from tests.helpers.core import agent, barrier, message_to, payloads, switch_to, user
from tests.services.tasks.peers import Op, create, given, operate


async def test_a_window_on_another_node_hears_all_of_it(fabric: Fabric) -> None:
    one, two, three = await fabric.start_many(3)
    creator, window = await one.join(user("u", "1")), await two.join(user("u", "2"))
    worker = await three.join(agent("w", "i", "1"))
    for peer in (creator, window):
        peer.send(switch_to("w"))
        await barrier(peer)
    task_id = (await create(creator, metadata={"subject_participant": "1"})).task_id
    await until(lambda: task_id in given(worker))
    assert (await operate(worker, Op.CLAIM, task_id)).success
    ephemeral_topic = task_topic("w", task_id, "msg")
    worker.send(message_to(ephemeral_topic, b"1"), message_to(ephemeral_topic, b"2"))
    await barrier(worker)
    await until(lambda: payloads(window) == payloads(creator) == [b"1", b"2"])
    assert (await operate(worker, Op.COMPLETE, task_id)).success
    worker.send(message_to(ephemeral_topic, b"3"))
    await until(lambda: payloads(window) == payloads(creator) == [b"1", b"2", b"3"])
