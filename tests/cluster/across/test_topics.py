"""Every form of topic across nodes."""

from __future__ import annotations

from collections import Counter
from contextlib import aclosing

from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.cluster.across.fabric import Fabric, Gateway, join, until
from tests.helpers.core import (
    agent,
    barrier,
    bridge,
    errors,
    message_to,
    metrics_bridge,
    payloads,
    service,
    switch_to,
    task,
    user,
    workflow_engine,
)

METRIC = pb.Metric(entries=[pb.MetricEntry(name="cpu", qty=1.5)]).SerializeToString()


async def test_every_form_of_topic_from_a_sender_on_another_node(fabric: Fabric) -> None:
    one, two = await fabric.start_many(2)
    theirs = [agent("w", "mapper", "1"), task("w", "sum", "u"), task("w", "sum"), user("ann", "laptop")]
    theirs += [user("ann", "couch"), service("mail", "1"), bridge("wires", "1"), workflow_engine(), metrics_bridge()]
    participants = [await two.join(hello) for hello in theirs]
    mapper, unique, worker, laptop, couch, mail, wires, engine, meter = participants
    laptop.send(switch_to("w"))
    await barrier(laptop, couch)
    sender, sending_service = await one.join(agent("w", "sender", "1")), await one.join(service("sender", "1"))
    sent: dict[bytes, list[MemoryLink]] = {
        b"ag::w::mapper::1": [mapper],
        b"tu::w::sum::u": [unique],
        f"ta::w::sum::{worker.ack.assigned_id}".encode(): [worker],
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
    participants += [sender, sending_service]
    await barrier(sender, sending_service)
    wanted = {one: Counter(topic for topic, whom in sent.items() if one in whom) for one in participants}
    await until(lambda: all(len(payloads(one)) >= wanted[one].total() for one in participants))
    await barrier(*participants)
    assert {one: Counter(payloads(one)) for one in participants} == wanted
    assert [errors(one) for one in participants] == [[]] * len(participants)


async def test_a_ephemeral_topic_of_a_task_is_in_the_log_of_all(fabric: Fabric) -> None:
    one, two = await fabric.start_many(2)
    ephemeral_topic = "tk::w::t1::msg"
    a = await one.join(agent("w", "a", "1"))
    async with aclosing(two.core.tail.open(ephemeral_topic, 1)) as tail:
        a.send(message_to(ephemeral_topic, b"x"), message_to(ephemeral_topic, b"y"))
        for payload in (b"x", b"y"):
            _, _, frame = await anext(tail)
            assert pb.DownstreamMessage.FromString(frame).msg.payload == payload


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


def known(gateway: Gateway) -> set[str]:
    """The instances of `mail` that a gateway would choose from."""
    pick = gateway.core.directory.pick_service
    return {name for name in (pick("mail") for _ in range(12)) if name is not None}
