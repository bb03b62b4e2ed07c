"""What an intruder tries on the tasks of others, where rules alone refuse her."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, deadlock_is_an_error, message_to, pump
from tests.security.intruders import (
    BLUE,
    CLOSED,
    DENIED,
    EVE,
    RED,
    a_bridge,
    a_service,
    administrator,
    bob,
    code_of,
    enter,
    eve,
    key,
    payloads,
    window,
)
from tests.services.access.acl import MANAGE, READ, READWRITE, Op, done, grant
from tests.services.tasks import peers
from tests.services.tasks.peers import answer, begin, create, get, hibernate, operate, own

NOT_FOUND = "task not found"
NOWHERE = "00000000-0000-4000-8000-000000000000"
RUNNING, WAITING = pb.TASK_STATUS_RUNNING, pb.TASK_STATUS_WAITING_INPUT
MOVES = peers.Op.OpType.values()
_numbers = count(1)
WAIT = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT, depends_on=[NOWHERE])


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    async with deadlock_is_an_error(), world.open(**CLOSED) as opened:
        yield opened


async def query(peer: MemoryLink, **fields: Any) -> pb.TaskQueryResponse:
    asked = pb.TaskQuery(request_id=f"query-{next(_numbers)}", **fields)
    peer.send(pb.UpstreamMessage(task_query=asked))
    found: pb.TaskQueryResponse = await answer(peer, "task_query", asked.request_id)
    return found


async def listed(peer: MemoryLink, workspace: str = "") -> list[str]:
    found = await query(peer, op=pb.TaskQuery.LIST, filter=pb.TaskFilter(workspace=workspace))
    return [one.task_id for one in found.tasks]


async def follow(peer: MemoryLink, task_id: str, **fields: Any) -> pb.TaskSubscriptionOperationResponse:
    op = pb.TaskSubscriptionOperation
    asked = op(op=op.SUBSCRIBE, task_id=task_id, client_request_id="f", **fields)
    peer.send(pb.UpstreamMessage(task_subscription_op=asked))
    return (await peer.next("task_subscription_response")).task_subscription_response


def give(peer: MemoryLink, task_id: str, workspace: str = "red", **metadata: str) -> None:
    """Send an input."""
    peer.send(message_to(f"tk::{workspace}::{task_id}::input", json.dumps({"metadata": metadata}).encode()))


async def until(peer: MemoryLink, task_id: str, wanted: int) -> None:
    while (await get(peer, task_id)).status != wanted:
        await trio.sleep(1)


# -- not found -------------------------------------------------------------------------------------


async def test_task_abroad(core: Core) -> None:
    """Each answer about a task elsewhere is that about a task that does not exist."""
    async with (
        bob(core) as victim,
        eve(core) as agent_of_red,
        a_service(core) as service,
        a_bridge(core) as bridge,
        window(core, "mallory") as user,
    ):
        task_id = await own(victim)
        for intruder in (agent_of_red, service, bridge, user):
            for number in MOVES:
                op = peers.Op.OpType.ValueType(number)
                there, nowhere = [
                    await operate(intruder, op, one, wait_spec=WAIT, reason="x") for one in (task_id, NOWHERE)
                ]
                assert (there.success, there.error, there.HasField("task")) == (False, NOT_FOUND, False), number
                assert nowhere.error == there.error
            found = await query(intruder, op=pb.TaskQuery.GET, task_id=task_id)
            assert (found.success, found.error) == (False, NOT_FOUND)
            assert await listed(intruder, "blue") == []
            assert await listed(intruder) == []
            assert (await follow(intruder, task_id)).error == NOT_FOUND
            assert await code_of(intruder, message_to(f"tk::blue::{task_id}::input", b"{}")) == DENIED
            assert await code_of(intruder, message_to(f"tk::blue::{task_id}::msg", b"x")) == DENIED
            assert await code_of(intruder, message_to(f"tk::blue::{task_id}::events", b"x")) == DENIED
            made = await create(intruder, workspace="red", parent_task_id=task_id)
            assert not made.success
            intruder.send(peers.report(task_id))
            await barrier(intruder)
            assert intruder.waiting("task_event") == []
        assert (await get(victim, task_id)).status == RUNNING
        assert await listed(victim) == [task_id]


async def test_tasks_of_neighbours(core: Core) -> None:
    """In a workspace all may read each other's tasks, and move their own."""
    async with eve(core) as intruder, eve(core, "other") as victim, bob(core):
        task_id = await own(victim)
        for op in (peers.Op.CANCEL, peers.Op.COMPLETE, peers.Op.FAIL, peers.Op.RESUME, peers.Op.RETRY, peers.Op.PAUSE):
            assert (await operate(intruder, op, task_id, wait_spec=WAIT)).error == NOT_FOUND
        assert (await get(intruder, task_id)).status == RUNNING
        assert await listed(intruder) == [task_id]


@pytest.mark.parametrize("who", ["service", "bridge"])
async def test_tasks_by_those_without_a_workspace(core: Core, who: str) -> None:
    """They see and move tasks of a workspace as far as rules let them, and their own."""
    async with (
        administrator(core) as admin,
        bob(core) as victim,
        a_service(core) if who == "service" else a_bridge(core) as intruder,
    ):
        task_id = await own(victim)
        principal = (who, {"service": "sv::s::1", "bridge": "br::b::1"}[who])
        given = await grant(admin, principal, BLUE, READ)
        assert await listed(intruder, "blue") == [task_id]
        assert (await operate(intruder, peers.Op.CANCEL, task_id)).error == NOT_FOUND
        await done(admin, Op.REVOKE, rule_id=given.rule_id)
        assert await listed(intruder, "blue") == []
        await grant(admin, principal, BLUE, MANAGE)
        assert (await operate(intruder, peers.Op.CANCEL, task_id)).success


async def test_the_pool_of_another_workspace(core: Core) -> None:
    """A service takes tasks from the pools of workspaces that it may read."""
    async with administrator(core) as admin, bob(core) as victim, a_service(core, "i") as intruder:
        task_id = (await create(victim, payload=b"secret")).task_id
        await barrier(intruder)
        await trio.sleep(10)
        assert peers.given(intruder) == []
        assert (await operate(intruder, peers.Op.CLAIM, task_id)).error == NOT_FOUND
        await grant(admin, ("service", "sv::i::1"), BLUE, READWRITE)
        while not peers.given(intruder):
            await trio.sleep(1)


async def test_checkpoint_by_hibernation(core: Core) -> None:
    """A hibernation that names the checkpoint of another tells nothing about it."""
    async with eve(core, "victim") as victim, eve(core) as intruder, bob(core) as abroad:
        task_id = await own(victim)
        theirs = await own(victim)
        await hibernate(victim, theirs)  # saves the checkpoint "k"
        said = set()
        for peer in (intruder, abroad):
            for kept in ("k", "none"):
                wait = pb.WaitSpec(
                    reason=pb.WAIT_REASON_HIBERNATION, hibernation=pb.HibernationDescriptor(checkpoint_key=kept)
                )
                for one in (task_id, theirs, NOWHERE):
                    said.add((await operate(peer, peers.Op.PAUSE, one, wait_spec=wait)).error)
            op = pb.CheckpointOperation
            peer.send(pb.UpstreamMessage(checkpoint_op=op(op=op.LOAD, key="k", request_id="c")))
            assert (await answer(peer, "checkpoint", "c")).data == b""
        assert said == {NOT_FOUND}
        # In a task of her own she names the checkpoints that she has, and no others.
        mine = await own(intruder)
        wait = pb.WaitSpec(reason=pb.WAIT_REASON_HIBERNATION, hibernation=pb.HibernationDescriptor(checkpoint_key="k"))
        assert "not found" in (await operate(intruder, peers.Op.PAUSE, mine, wait_spec=wait)).error


# -- refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    ["ag::blue::bob::1", "ag::red::other::1", "tu::blue::t::1", "sv::s::1", "us::ann::w", "orc::o::1", "wfe::shard0",
     "ag::_system::x::1", "br::b::1", "metrics::shard0", "ag::red", "", "sv::s::1\x00"],
)  # fmt: skip
async def test_mint_abroad(core: Core, target: str) -> None:
    """No token for another participant without MANAGE of its workspace or service."""
    async with administrator(core) as admin, eve(core) as intruder:
        for level in (READWRITE, MANAGE):
            made = await create(intruder, target_identity=target)
            assert made.task_token == "", target
            if level is READWRITE:
                await grant(admin, EVE, ("workspace", "other"), MANAGE)
                await grant(admin, EVE, ("service_impl", "other"), MANAGE)


async def test_mint_abroad_with_a_right_to_the_own_workspace(core: Core) -> None:
    async with administrator(core) as admin, eve(core) as intruder:
        await grant(admin, EVE, RED, MANAGE)
        made = await create(intruder, target_identity="ag::red::other::1")
        assert made.task_token
        async with connect(core, agent("red", "other", "1", credentials={"token": made.task_token})) as minted:
            assert await code_of(minted, message_to("ag::blue::bob::1", b"x")) == DENIED
            assert (await create(minted, target_identity="ag::red::third::1")).task_token == ""


# -- waits for a principal -------------------------------------------------------------------------


async def wait_for_answer(worker: MemoryLink, expected: str, **fields: Any) -> str:
    """A task of this worker that waits for a principal."""
    task_id = await own(worker, **fields)
    wait = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT, expected_principal=expected, input_match={"approved": "yes"})
    assert (await operate(worker, peers.Op.PAUSE, task_id, wait_spec=wait)).task.status == WAITING
    return task_id


@pytest.mark.parametrize("spelling", ["ann", "user:ann", "us::ann", "us::ann::w"])
async def test_no_neighbour_approves(core: Core, spelling: str) -> None:
    async with (
        administrator(core) as admin,
        eve(core, "worker") as worker,
        eve(core) as intruder,
        window(core, "ann") as approver,
        window(core, "mallory") as outsider,
        a_service(core) as service,
    ):
        for principal in (("user", "ann"), ("user", "mallory"), ("service", "sv::s::1")):
            await grant(admin, principal, RED, READWRITE)
        assert await enter(approver, "red") == await enter(outsider, "red") == ""
        task_id = await wait_for_answer(worker, spelling)
        for peer in (intruder, outsider, service, worker):
            give(peer, task_id, approved="yes")
            resumed = await operate(peer, peers.Op.RESUME, task_id)
            assert not resumed.success
            assert resumed.error == (f"the task waits for '{spelling}'" if peer is worker else NOT_FOUND)
            assert not (await operate(peer, peers.Op.COMPLETE, task_id)).success or peer is worker
            await barrier(peer)
        await trio.sleep(10)
        if (await get(worker, task_id)).status == pb.TASK_STATUS_COMPLETED:
            task_id = await wait_for_answer(worker, spelling)
        assert (await get(worker, task_id)).status == WAITING
        give(approver, task_id, approved="no")
        give(approver, task_id, approved="yes")
        await until(worker, task_id, RUNNING)


async def test_an_input_of_another_is_kept_for_another_wait(core: Core) -> None:
    async with eve(core, "worker") as worker, eve(core) as neighbour:
        task_id = await wait_for_answer(worker, "ann")
        give(neighbour, task_id, approved="yes")
        await barrier(neighbour)
        await trio.sleep(5)
        assert (await get(worker, task_id)).status == WAITING
        # Its worker waits for what it chooses, and then the kept input is the answer.
        wait = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT, expected_principal=EVE[1])
        assert (await operate(worker, peers.Op.PAUSE, task_id, wait_spec=wait)).task.status == RUNNING
        # One that came before the wait does not end it either, unless it is of that principal.
        give(neighbour, task_id, approved="yes")
        await barrier(neighbour)
        await trio.sleep(5)
        wait.expected_principal = "agent:ag::red::worker::1"
        assert (await operate(worker, peers.Op.PAUSE, task_id, wait_spec=wait)).task.status == WAITING
        give(worker, task_id, approved="yes")
        await until(worker, task_id, RUNNING)


async def test_who_resumes_a_wait_for_a_principal(core: Core) -> None:
    async with (
        administrator(core) as admin,
        eve(core, "worker") as worker,
        eve(core, "creator") as creator,
        window(core, "ann") as approver,
        window(core, "boss") as manager,
    ):
        created = await create(creator, assignment_mode=pb.TARGETED, target_agent_id="ag::red::worker::1")
        task_id = created.task_id
        await begin(worker, task_id)
        wait = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT, expected_principal="ann")

        async def pause() -> None:
            assert (await operate(worker, peers.Op.PAUSE, task_id, wait_spec=wait)).task.status == WAITING

        await pause()
        # Neither its creator nor its worker, nor the principal itself without access.
        for peer in (creator, worker):
            assert "waits for 'ann'" in (await operate(peer, peers.Op.RESUME, task_id)).error
        other = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT)
        assert "waits for 'ann'" in (await operate(creator, peers.Op.PAUSE, task_id, wait_spec=other)).error
        assert (await operate(approver, peers.Op.RESUME, task_id)).error == NOT_FOUND
        await grant(admin, ("user", "ann"), RED, READ)
        assert (await operate(approver, peers.Op.RESUME, task_id)).error == NOT_FOUND
        await grant(admin, ("user", "ann"), RED, READWRITE)
        assert (await operate(approver, peers.Op.PAUSE, task_id, wait_spec=other)).error == NOT_FOUND
        assert (await operate(approver, peers.Op.RESUME, task_id)).task.status == RUNNING
        await pause()
        await grant(admin, ("user", "boss"), RED, READWRITE)
        assert (await operate(manager, peers.Op.RESUME, task_id)).error == NOT_FOUND
        await grant(admin, ("user", "boss"), RED, MANAGE)
        assert (await operate(manager, peers.Op.RESUME, task_id)).task.status == RUNNING


async def test_namesakes_of_an_expected_principal(core: Core) -> None:
    """A name that is also the spelling of another principal means the other one alone."""
    async with administrator(core) as admin, eve(core, "worker") as worker:
        for user_id, expected in (
            ("user:ann", "user:ann"),
            ("agent:ag", "agent:ag"),
            ("Ann", "ann"),
            ("ann:w", "us::ann"),
            ("sv:s:1", "sv::s::1"),
        ):
            await grant(admin, ("user", user_id), RED, READWRITE)
            async with window(core, user_id) as intruder:
                task_id = await wait_for_answer(worker, expected)
                give(intruder, task_id, approved="yes")
                assert (await operate(intruder, peers.Op.RESUME, task_id)).error == NOT_FOUND
                await barrier(intruder)
                await trio.sleep(5)
                assert (await get(worker, task_id)).status == WAITING


# -- what ends with a right ------------------------------------------------------------------------


async def test_a_subscription_ends_with_the_right_to_read(core: Core) -> None:
    async with administrator(core) as admin, bob(core) as victim, window(core, "ann") as reader:
        given = await grant(admin, ("user", "ann"), BLUE, READ)
        task_id = await own(victim)
        assert (await follow(reader, task_id)).success
        victim.send(peers.report(task_id))
        await reader.next("task_event")
        await done(admin, Op.REVOKE, rule_id=given.rule_id)
        said = (await reader.next("error")).error
        assert (said.code, task_id in said.message) == (DENIED, True)
        victim.send(peers.report(task_id))
        assert (await operate(victim, peers.Op.COMPLETE, task_id)).success
        await barrier(victim, reader)
        await pump()
        assert reader.waiting("task_event") == []
        assert (await follow(reader, task_id)).error == NOT_FOUND


async def test_a_part_in_a_task_shows_that_task_alone(core: Core) -> None:
    """A service that works on a task in a workspace which it may not read."""
    async with administrator(core) as admin, eve(core, "creator") as creator, a_service(core) as worker:
        given = await grant(admin, ("service", "sv::s::1"), RED, READWRITE)
        await grant(admin, ("agent", "ag::red::creator::1"), ("service_impl", "s"), READWRITE)
        created = await create(creator, assignment_mode=pb.POOL, target_implementation="s")
        await begin(worker, created.task_id)
        await done(admin, Op.REVOKE, rule_id=given.rule_id)
        assert (await follow(worker, created.task_id, recursive=True)).success
        child = await create(creator, parent_task_id=created.task_id, target_implementation="none")
        assert child.success
        assert (await operate(creator, peers.Op.CANCEL, child.task_id)).success
        await barrier(creator, worker)
        await trio.sleep(10)
        assert {one.task_event.task_id for one in worker.waiting("task_event")} <= {created.task_id}
        assert await listed(worker, "red") == [created.task_id]


async def test_a_subscription_ends_with_the_assignment(core: Core) -> None:
    """A service sees the tasks that it works on, and not what others make of them."""
    async with administrator(core) as admin, eve(core, "creator") as creator, a_service(core) as worker:
        given = await grant(admin, ("service", "sv::s::1"), RED, READWRITE)
        created = await create(creator, target_implementation="s")
        await begin(worker, created.task_id)
        await done(admin, Op.REVOKE, rule_id=given.rule_id)
        assert (await follow(worker, created.task_id)).success
        assert (await operate(worker, peers.Op.FAIL, created.task_id)).success
        await worker.next("task_event")
        async with connect(core, agent("red", "s", "1", credentials=key("red"))) as successor:
            assert (await operate(creator, peers.Op.RETRY, created.task_id)).success
            assert (await worker.next("error")).error.code == DENIED
            await begin(successor, created.task_id)
            successor.send(peers.report(created.task_id))
            await barrier(successor, worker)
            await trio.sleep(5)
            assert worker.waiting("task_event") == []


async def test_a_conversation_ends_with_the_workspace(core: Core) -> None:
    async with administrator(core) as admin, eve(core) as worker, window(core, "ann") as person:
        given = await grant(admin, ("user", "ann"), RED, READWRITE)
        assert await enter(person, "red") == ""
        created = await create(
            person,
            assignment_mode=pb.TARGETED,
            target_agent_id=EVE[1],
            metadata={"subject_participant": "true"},
        )
        await begin(worker, created.task_id)
        topic = f"tk::red::{created.task_id}::msg"
        await trio.sleep(5)
        assert await code_of(worker, message_to(topic, b"hello")) == ""
        while not payloads(person):
            await trio.sleep(1)
        await done(admin, Op.REVOKE, rule_id=given.rule_id)
        assert (await person.next("error")).error.code == DENIED
        assert await code_of(worker, message_to(topic, b"secret")) == ""
        assert await code_of(person, message_to(topic, b"x")) == DENIED
        await barrier(worker, person)
        await trio.sleep(100)
        assert payloads(person) == []
        assert await enter(person, "red") == DENIED
        await trio.sleep(100)
        assert payloads(person) == []
