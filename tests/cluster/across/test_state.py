"""Services on several nodes: the directory, workspaces, keys and checkpoints."""

from __future__ import annotations

import random
from itertools import count
from typing import Any

import pytest
import trio

from aether_trio.model.errors import Status
from aether_trio.wire.pb import aether_pb2 as pb
from tests.cluster.across.fabric import Fabric, Gateway, Participant, join, open_fabric, until
from tests.helpers.core import agent, barrier, errors, message_to, orchestrator, payloads, service, switch_to, user
from tests.helpers.engines import PostgresEngine

Op = pb.SessionOperation
Kv = pb.KVOperation

_requests = count(1)


async def operate(peer: Participant, op: Op.OpType.ValueType, **fields: Any) -> pb.SessionOperationResponse:
    return await peer.ask("session_response", session_op=Op(op=op, request_id="r", **fields))


async def status(peer: Participant, kind: str, name: str) -> pb.ConnectionStatusResponse:
    principal = pb.PrincipalRef(principal_type=kind, principal_id=name)
    request = pb.ConnectionStatusRequest(request_id="r", principal=principal)
    return await peer.ask("connection_status_response", connection_status_request=request)


async def kv(peer: Participant, op: Kv.OpType.ValueType, key: str, **fields: Any) -> pb.KVResponse:
    name = f"kv-{next(_requests)}"
    response = await peer.ask("kv", kv_op=Kv(op=op, key=key, request_id=name, **{"scope": Kv.GLOBAL, **fields}))
    assert (response.request_id, response.success) == (name, True)
    return response


async def test_sessions_of_all_nodes_are_listed_found_and_ended(fabric: Fabric) -> None:
    one, two = await fabric.start_many(2)
    boss, here = await one.join(orchestrator("o", "1")), await one.join(agent("w", "here", "1"))
    there = await two.join(agent("w", "there", "1"))
    await two.join(agent("v", "there", "2"))
    found = await operate(boss, Op.LIST)
    assert sorted(one.identity for one in found.connections) == [
        "ag::v::there::2",
        "ag::w::here::1",
        "ag::w::there::1",
        "orc::o::1",
    ]
    in_w = await operate(boss, Op.LIST, filter=pb.ConnectionFilter(workspace="w"))
    assert [one.session_id for one in in_w.connections] == [here.ack.session_id, there.ack.session_id]
    found = await operate(boss, Op.GET, session_id=there.ack.session_id)
    assert (found.success, found.connection.identity) == (True, "ag::w::there::1")
    assert (await status(boss, "agent", "ag::w::there::1")).connected
    ended = await operate(boss, Op.DISCONNECT, session_id=there.ack.session_id)
    assert ended.success
    assert (await there.next("signal")).signal.type == pb.Signal.FORCE_DISCONNECT
    assert (await there.wait_end()).status is Status.CANCELLED
    gone = await status(boss, "agent", "ag::w::there::1")
    assert (gone.ok, gone.connected) == (True, False)
    assert gone.last_seen_at > 0
    left = await operate(boss, Op.LIST, filter=pb.ConnectionFilter(workspace="w"))
    assert [one.session_id for one in left.connections] == [here.ack.session_id]
    assert not (await operate(boss, Op.GET, session_id=there.ack.session_id)).success
    # No client has to be asked whether the identity is free.
    await one.join(agent("w", "there", "1"))


async def test_who_has_left_is_gone_for_the_node_it_was_on_at_once(fabric: Fabric) -> None:
    """Its row may still be settled."""
    one, two = await fabric.start_many(2)
    boss, other = await one.join(orchestrator("o", "1")), await two.join(orchestrator("o", "2"))
    for number in range(10):
        async with join(one, agent("w", "brief", str(number))) as brief:
            assert (await status(other, "agent", f"ag::w::brief::{number}")).connected
        brief.finish()
        assert not (await status(boss, "agent", f"ag::w::brief::{number}")).connected


async def test_a_switch_on_one_node_is_heard_and_seen_on_the_other(fabric: Fabric) -> None:
    one, two = await fabric.start_many(2)
    laptop, couch = await one.join(user("ann", "laptop")), await two.join(user("ann", "couch"))
    in_w, in_v = await two.join(agent("w", "a", "1")), await one.join(agent("v", "a", "1"))
    boss = await two.join(orchestrator("o", "1"))

    async def tell(name: bytes) -> None:
        for sender, place in ((in_w, "w"), (in_v, "v")):
            for topic in (f"gu::{place}", f"uw::ann::{place}"):
                sender.send(message_to(topic, b"%s %s" % (topic.encode(), name)))
            report = pb.ProgressReport(task_id=f"{place} {name.decode()}", state="running")
            sender.send(pb.UpstreamMessage(progress=report))
        await barrier(in_w, in_v)

    laptop.send(switch_to("w"))
    couch.send(switch_to("v"))
    await barrier(laptop, couch)
    await tell(b"1")
    for window, place in ((laptop, "w"), (couch, "v")):
        await until(lambda: len(payloads(window)) == 2 and len(window.waiting("progress_update")) == 1)  # noqa: B023
        await barrier(window)
        expected = [f"gu::{place} 1".encode(), f"uw::ann::{place} 1".encode()]
        assert sorted(payloads(window)) == expected
        assert [m.progress_update.task_id for m in window.waiting("progress_update")] == [f"{place} 1"]
    listed = await operate(boss, Op.LIST, filter=pb.ConnectionFilter(workspace="v", type=pb.PRINCIPAL_USER))
    assert [c.identity for c in listed.connections] == ["us::ann::couch"]
    laptop.send(switch_to("v"))
    couch.send(switch_to(""))
    await barrier(laptop, couch)
    laptop._downstream.clear()
    couch._downstream.clear()
    await tell(b"2")
    await until(lambda: len(payloads(laptop)) >= 2 and len(laptop.waiting("progress_update")) >= 1)
    await barrier(laptop, couch)
    # The first message to uw::ann::v is older than this window's first switch to it.
    assert sorted(payloads(laptop)) == [b"gu::v 2", b"uw::ann::v 2"]
    assert payloads(couch) == []
    # What the window missed of "its user in w" it gets on whichever node it comes back to.
    laptop.finish()
    again = await two.join(user("ann", "laptop"))
    again.send(switch_to("w"))
    assert await again.take(1) == [b"uw::ann::w 2"]


@pytest.mark.parametrize("seed", [1, 2])
async def test_counters_and_compares_of_two_nodes_are_linearizable(fabric: Fabric, seed: int) -> None:
    """Each answer fits one order of all nodes' operations, each within its own time."""
    rounds, clients = 25, 3
    counted: list[tuple[float, float, int]] = []
    swapped: list[tuple[float, float, int]] = []
    guarded = 0
    gateways = await fabric.start_many(2)

    async def work(gateway: Gateway, name: str) -> None:
        nonlocal guarded
        chance = random.Random(f"{seed} {name}")
        async with join(gateway, service("kv", name)) as peer:
            for _ in range(rounds):
                began = trio.current_time()
                value = (await kv(peer, Kv.INCREMENT, "counter")).counter_value
                counted.append((began, trio.current_time(), value))
                applied = (await kv(peer, Kv.INCREMENT_IF, "guarded", guard_value=40)).applied
                guarded += applied
                while True:
                    began = trio.current_time()
                    old = (await kv(peer, Kv.GET, "register")).value
                    new = b"%d" % (int(old) + 1)
                    if (await kv(peer, Kv.COMPARE_AND_SET, "register", expected_value=old, value=new)).applied:
                        swapped.append((began, trio.current_time(), int(new)))
                        break
                await trio.sleep(chance.random() * 0.002)

    async with join(gateways[0], service("kv", "first")) as peer:
        await kv(peer, Kv.PUT, "register", value=b"0")
    async with trio.open_nursery() as nursery:
        for number, gateway in enumerate(gateways):
            for client in range(clients):
                nursery.start_soon(work, gateway, f"{number}-{client}")
    total = rounds * clients * 2
    for history in (counted, swapped):
        history.sort(key=lambda one: one[2])
        assert [value for _, _, value in history] == list(range(1, total + 1))
        latest_begin = 0.0
        for began, ended, _ in history:
            # Nothing that ended before an earlier one in this order had begun.
            assert ended >= latest_begin
            latest_begin = max(latest_begin, began)
    assert guarded == 40


async def test_what_one_node_has_answered_the_other_one_knows(fabric: Fabric) -> None:
    one, two = await fabric.start_many(2)
    a, b = await one.join(service("kv", "1")), await two.join(service("kv", "2"))
    for number in range(20):
        writer, reader = (a, b) if number % 2 else (b, a)
        value = b"%d" % number
        await kv(writer, Kv.PUT, "key", value=value)
        assert (await kv(reader, Kv.GET, "key")).value == value
        assert (await kv(reader, Kv.SET_NX, "lock", value=value)).applied == (number == 0)
        await kv(writer, Kv.SET_ADD, "members", value=value)
        assert (await kv(reader, Kv.SET_CARD, "members")).counter_value == number + 1
    await kv(a, Kv.DELETE, "key")
    assert (await kv(b, Kv.LIST, "")).keys == ["lock", "members"]


async def test_a_checkpoint_goes_where_its_identity_goes(fabric: Fabric) -> None:
    gateways = await fabric.start_many(2)
    resume = ""
    for number in range(6):
        hello = agent("w", "worker", "1", resume_session_id=resume)
        async with join(gateways[number % 2], hello) as worker:
            assert worker.ack.resumed == bool(number)
            resume = worker.ack.session_id
            loaded = await checkpoint(worker, pb.CheckpointOperation.LOAD)
            assert loaded.data == (b"%d" % (number - 1) if number else b"")
            assert (await checkpoint(worker, pb.CheckpointOperation.SAVE, data=b"%d" % number)).success


async def checkpoint(
    peer: Participant, op: pb.CheckpointOperation.OpType.ValueType, **fields: Any
) -> pb.CheckpointResponse:
    return await peer.ask("checkpoint", checkpoint_op=pb.CheckpointOperation(op=op, key="k", request_id="r", **fields))


async def test_a_workspaces_rate_leaves_each_node_a_burst(postgres_engine: PostgresEngine) -> None:
    """As docs/guarantees.md says; tests/cluster/test_rate_leases.py has the rate."""
    limits = {"send_rate_per_s": 0, "workspace_rate_per_s": 5, "identity_rate_per_s": 0}
    async with open_fabric(postgres_engine, limits=limits) as fabric:
        one, two = await fabric.start_many(2)
        accepted = 0
        async with join(one, agent("w", "a", "1")) as a, join(two, agent("w", "b", "1")) as b:
            for sender in (a, b):
                sender.send(*[message_to("ag::w::sink::1", b"x") for _ in range(10)])
                await barrier(sender)
                refused = [error.code for error in errors(sender)]
                assert set(refused) == {"ERR_WORKSPACE_RATE_LIMITED"}
                assert 1 <= len(refused) <= 9
                accepted += 10 - len(refused)
        async with join(two, agent("w", "sink", "1")) as sink:
            assert await sink.take(accepted) == [b"x"] * accepted
