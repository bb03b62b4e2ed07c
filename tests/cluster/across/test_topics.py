"""Every form of topic across nodes, and the order of one with senders on two."""

from __future__ import annotations

from collections import Counter

import trio

from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.cluster.across.fabric import Fabric, Participant, join, numbers, until
from tests.helpers.core import (
    agent,
    barrier,
    bridge,
    errors,
    message_to,
    metrics_bridge,
    orchestrator,
    payloads,
    service,
    switch_to,
    task,
    user,
    workflow_engine,
)
from tests.helpers.engines import PostgresEngine

METRIC = pb.Metric(entries=[pb.MetricEntry(name="cpu", qty=1.5)]).SerializeToString()


async def test_every_form_of_topic_from_a_sender_on_another_node(
    fabric: Fabric, postgres_engine: PostgresEngine
) -> None:
    one, two = await fabric.start_many(2)

    async def here(hello: pb.UpstreamMessage) -> MemoryLink:
        return await one.join(hello)

    async def there(hello: pb.UpstreamMessage) -> MemoryLink:
        return await two.join(hello)

    mapper, unique, worker = (
        await there(agent("w", "mapper", "1")),
        await there(task("w", "sum", "u")),
        await there(task("w", "sum")),
    )
    laptop, couch = await there(user("ann", "laptop")), await there(user("ann", "couch"))
    mail, wires, engine, meter = (
        await there(service("mail", "1")),
        await there(bridge("wires", "1")),
        await there(workflow_engine()),
        await there(metrics_bridge()),
    )
    laptop.send(switch_to("w"))
    await barrier(laptop, couch)
    sender, sending_service = await here(agent("w", "sender", "1")), await here(service("sender", "1"))
    name = worker_topic(postgres_engine)
    sent: dict[bytes, list[MemoryLink]] = {
        b"ag::w::mapper::1": [mapper],
        b"tu::w::sum::u": [unique],
        name.encode(): [worker],
        b"tb::w::sum": [worker],
        b"us::ann::laptop": [laptop],
        b"uw::ann::w": [laptop],
        b"ga::w": [mapper, sender],
        b"gu::w": [laptop],
        b"sv::mail::1": [mail],
        b"sv::mail": [mail],
        b"br::wires::1": [wires],
        b"event::": [engine],
        b"event::receiver0": [engine],
    }
    for topic in sent:
        sender.send(message_to(topic.decode(), topic))
    sender.send(message_to("metric::", METRIC, pb.METRIC))
    sending_service.send(message_to("uu::ann", b"uu::ann"))
    sent[b"uu::ann"] = [laptop, couch]
    sent[METRIC] = [meter]
    participants = [mapper, unique, worker, laptop, couch, mail, wires, engine, meter, sender, sending_service]
    await barrier(sender, sending_service)
    wanted = {one: Counter(topic for topic, whom in sent.items() if one in whom) for one in participants}
    await until(lambda: all(len(payloads(one)) >= wanted[one].total() for one in participants))
    await barrier(*participants)
    assert {one: Counter(payloads(one)) for one in participants} == wanted
    assert [errors(one) for one in participants] == [[]] * len(participants)


def worker_topic(engine: PostgresEngine) -> str:
    [(name,)] = engine.rows(f"SELECT identity FROM {engine.schema}.identity_locks WHERE identity LIKE 'ta::%'")
    return str(name)


async def test_a_ephemeral_topic_of_a_task_is_in_the_log_of_all(fabric: Fabric) -> None:
    one, two = await fabric.start_many(2)
    ephemeral_topic = "tk::w::t1::msg"
    tail = two.core.tail.open(ephemeral_topic, 1)
    async with join(one, agent("w", "a", "1")) as a:
        a.send(message_to(ephemeral_topic, b"x"), message_to(ephemeral_topic, b"y"))
        await barrier(a)
        found = []
        async for _, _, frame in tail:
            found.append(pb.DownstreamMessage.FromString(frame).msg.payload)
            if len(found) == 2:
                break
        assert found == [b"x", b"y"]
    await tail.aclose()


async def test_an_orchestrator_is_told_that_it_may_not_wherever_the_target_is(fabric: Fabric) -> None:
    one, two = await fabric.start_many(2)
    o, laptop = await one.join(orchestrator("o", "1")), await two.join(user("ann", "laptop"))
    o.send(message_to("us::ann::laptop", b"x"))
    await barrier(o, laptop)
    assert [error.code for error in errors(o)] == ["ERR_PERMISSION_DENIED"]
    assert payloads(laptop) == []


async def test_any_instance_of_a_service_is_one_of_all_nodes(fabric: Fabric) -> None:
    gateways = await fabric.start_many(3)
    instances = [await gateways[number % 3].join(service("mail", str(number))) for number in range(6)]
    aside = pb.ServiceIdentity(implementation="mail", specifier="aside", no_pool_consumer=True)
    bystander = await gateways[0].join(pb.UpstreamMessage(init=pb.InitConnection(service=aside)))
    everyone = {f"sv::mail::{number}" for number in range(6)}
    # A new instance is known to the others milliseconds after its commit.
    await until(lambda: all(known(one) == everyone for one in gateways))
    for number, gateway in enumerate(gateways):
        async with join(gateway, agent("w", "a", str(number))) as a:
            for count in range(12):
                a.send(message_to("sv::mail", b"%d.%d" % (number, count)))
            await barrier(a)
            assert errors(a) == []
    await until(lambda: sum(len(payloads(one)) for one in instances) == 36)
    assert [len(payloads(one)) for one in instances] == [6] * 6
    assert payloads(bystander) == []
    for one in instances:
        one.finish()
    await until(lambda: not any(known(one) for one in gateways))
    a = await gateways[1].join(agent("w", "a", "9"))
    a.send(message_to("sv::mail", b"dropped"))
    await barrier(a)
    assert [error.code for error in errors(a)] == ["ERR_SV_UNAVAILABLE"]


def known(gateway) -> set[str]:  # type: ignore[no-untyped-def]
    """The instances of `mail` that a gateway would choose from."""
    pick = gateway.core.directory.pick_service
    return {name for name in (pick("mail") for _ in range(12)) if name is not None}


async def test_messages_of_one_topic_are_in_one_order_for_all_readers(fabric: Fabric) -> None:
    count = 300
    gateways = await fabric.start_many(3)
    listeners: list[Participant] = [
        await gateway.join(agent("w", f"listener{number}", "1"))  # type: ignore[misc]
        for number, gateway in enumerate(gateways)
    ]

    async def send(number: int) -> None:
        async with join(gateways[number], service("sender", str(number))) as sender:
            for at in range(0, count, 10):
                sender.send(*[message_to("ga::w", b"%d:%d" % (number, n)) for n in range(at, at + 10)])
                if at % 50 == 0:
                    await barrier(sender)
            await barrier(sender)
            assert errors(sender) == []

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(send, number)
    heard = [await listener.take(3 * count) for listener in listeners]
    assert heard[0] == heard[1] == heard[2]
    assert all(numbers(heard[0], b"%d" % number) == list(range(count)) for number in range(3))


async def test_an_answer_is_a_barrier_for_readers_on_other_nodes(fabric: Fabric) -> None:
    """What was sent before an answer is read by clients that connect after it.

    They may connect to any node.
    """
    one, two = await fabric.start_many(2)
    a = await one.join(agent("w", "a", "1"))
    for number in range(10):
        a.send(message_to(f"ag::w::late::{number}", b"early"))
        await barrier(a)
        async with join(two, agent("w", "late", str(number))) as late:
            assert await late.take(1) == [b"early"]  # type: ignore[attr-defined]
