"""A session and its tasks end with the task whose token admitted it."""

from __future__ import annotations

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Status, StatusError
from aether_trio.model.identity import Identity
from aether_trio.services.tasks.transaction import tokens
from aether_trio.services.tasks.transaction.sessions import WorkerJoined
from aether_trio.services.tasks.transaction.workers import Worker
from aether_trio.testing.memory import MemoryLink, StreamEnded
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, let_manage, pump
from tests.services.agents.cast import ECHO, SetClock, assignment, echo, running, started_by, statuses, until
from tests.services.tasks.peers import Op, create, get, operate

SELF = pb.SELF_ASSIGN


@pytest.fixture
async def core(core: Core) -> Core:
    """The core of this folder, on which agents may make tokens for their workspace."""
    let_manage(core)
    return core


def worker(token: str, specifier: str = "1") -> pb.UpstreamMessage:
    """The InitConnection of a participant that shows a token."""
    return agent("w", "i", specifier, credentials={"token": token})


async def token_for(peer: MemoryLink, owner: str, **fields: object) -> tuple[str, str]:
    """(task id, token) of a task of its creator for that identity."""
    made = await create(peer, assignment_mode=SELF, target_identity=owner, **fields)
    assert made.success, made.error_message
    return made.task_id, made.task_token


async def refused(core: Core, hello: pb.UpstreamMessage) -> bool:
    """Whether this participant is not let in."""
    async with connect(core, hello, wait_ack=False) as peer:
        try:
            await peer.next("connection_ack")
        except StreamEnded as end:
            return end.status is Status.UNAUTHENTICATED
    return False


async def ended(peer: MemoryLink) -> bool:
    """Whether its session ends because of what let it in."""
    end = await peer.wait_end()
    return end.status is Status.UNAUTHENTICATED and "has ended" in end.message


async def test_a_session_ends_with_the_task_of_its_token(core: Core, creator: MemoryLink) -> None:
    task_id, token = await token_for(creator, "ag::w::i::1")
    async with connect(core, worker(token)) as peer:
        await barrier(peer)
        assert (await operate(creator, Op.CANCEL, task_id)).success
        assert await ended(peer)
    assert await refused(core, worker(token))


@pytest.mark.parametrize("end", [Op.CANCEL, Op.FAIL, Op.REJECT])
async def test_the_end_that_a_worker_brings_about_is_answered_first(
    core: Core, end: Op.OpType.ValueType, creator: MemoryLink
) -> None:
    task_id, token = await token_for(creator, "ag::w::i::1")
    async with connect(core, worker(token)) as peer:
        if end == Op.REJECT:  # of what waits
            wait = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT)
            assert (await operate(peer, Op.PAUSE, task_id, wait_spec=wait)).success
        assert (await operate(peer, end, task_id)).success
        assert await ended(peer)
    assert await refused(core, worker(token))


@pytest.mark.parametrize("what", ["create", "complete"])
async def test_what_a_worker_asks_for_at_once_comes_behind_its_own_coming(
    core: Core, world: World, what: str, creator: MemoryLink
) -> None:
    """Its session is written behind its acknowledgement, here late."""
    task_id, token = await token_for(creator, "ag::w::i::1")
    await pump(100)
    world.databases["tasks"].fail_writes = 1
    async with connect(core, worker(token)) as peer:
        if what == "create":
            made = await create(peer, assignment_mode=SELF)
            assert made.success, made.error_message
            assert (await get(peer, made.task_id)).parent_task_id == task_id
        else:
            assert (await operate(peer, Op.COMPLETE, task_id)).success
        assert world.databases["tasks"].fail_writes <= 0


async def test_a_failure_that_is_tried_again_ends_nothing(core: Core) -> None:
    policy = pb.RetryPolicy(max_attempts=2, initial_delay_ms=1000)
    async with connect(core, agent("w", "c", "1")) as creator:
        task_id, token = await token_for(creator, "ag::w::i::1", retry_policy=policy)
        async with connect(core, worker(token)) as peer:
            assert (await operate(peer, Op.FAIL, task_id)).success
            await barrier(peer)
            assert (await operate(creator, Op.CANCEL, task_id)).success
            assert await ended(peer)


async def test_who_completed_its_task_says_goodbye_itself_and_makes_no_tokens(core: Core, creator: MemoryLink) -> None:
    task_id, token = await token_for(creator, "ag::w::i::1")
    async with connect(core, worker(token)) as peer:
        own, mine = await token_for(peer, "ag::w::i::1")
        _, others = await token_for(peer, "ag::w::i::2")
        async with connect(core, worker(others, "2")) as other:
            assert (await operate(peer, Op.COMPLETE, task_id)).success
            await barrier(peer, other)
            assert (await token_for(peer, "ag::w::i::3", parent_task_id=own))[1] == ""
            assert (await get(creator, own)).status == pb.TASK_STATUS_QUEUED
    assert await refused(core, worker(token))
    assert await refused(core, worker(mine))


async def test_what_a_started_agent_makes_for_itself_ends_with_its_start(core: Core) -> None:
    async with running(core) as (_, asker, started, asked):
        # For itself, for another, and the other for a third one.
        _, mine = await token_for(started, ECHO)
        _, second = await token_for(started, "ag::w::i::2")
        async with connect(core, worker(second, "2")) as other:
            _, third = await token_for(other, "ag::w::i::3")
            async with connect(core, worker(third, "3")) as last:
                await barrier(started, other, last)
                assert (await operate(asker, Op.CANCEL, asked.task_id)).success
                for peer in (started, other, last):
                    assert await ended(peer)
        for hello in (started_by(asked), echo(credentials={"token": mine}), worker(second, "2"), worker(third, "3")):
            assert await refused(core, hello)


async def test_a_start_that_was_cancelled_and_is_tried_again_has_other_tokens(core: Core) -> None:
    async with running(core) as (orchestrator, asker, started, asked):
        _, mine = await token_for(started, ECHO)
        assert (await operate(asker, Op.CANCEL, asked.task_id)).success
        assert await ended(started)
        assert (await operate(asker, Op.RETRY, asked.task_id)).success
        again = await assignment(orchestrator)
        assert await refused(core, started_by(asked))
        assert await refused(core, echo(credentials={"token": mine}))
        async with connect(core, started_by(again)) as anew:
            await until(core, "running")
            await barrier(anew)


async def test_who_completes_its_own_start_goes(core: Core) -> None:
    async with running(core) as (_, _, started, asked):
        _, mine = await token_for(started, ECHO)
        assert (await operate(started, Op.COMPLETE, asked.task_id)).success
        assert await ended(started)
        assert await statuses(core) == ["completed"]
        assert await refused(core, echo(credentials={"token": mine}))


async def test_a_line_of_tokens_is_short(core: Core, creator: MemoryLink) -> None:
    _, token = await token_for(creator, "ag::w::i::0")
    for number in range(1, tokens.MAX_LINEAGE + 1):
        async with connect(core, worker(token, str(number - 1))) as peer:
            _, following = await token_for(peer, f"ag::w::i::{number}")
            peer.cut()
        assert bool(following) is (number < tokens.MAX_LINEAGE)
        token = following


async def test_an_unknown_token_admits_no_client(core: Core) -> None:
    async with connect(core, worker("att_nonsense"), wait_ack=False) as peer:
        end = await peer.wait_end()
    assert (end.status, "this task token is unknown to this gateway" in end.message) == (Status.UNAUTHENTICATED, True)


async def test_a_token_that_admits_no_client_is_good_for_a_day(core: Core) -> None:
    identity, day_ms = Identity.parse("ag::w::i::1"), 24 * 3600 * 1000
    database = core.tasks.engine.database
    async with connect(core, agent("w", "c", "1")) as creator:
        task_id, token = await token_for(creator, identity.text)
        [[made_ms]] = await database.fetch("SELECT created_ms FROM task_tokens")
        admitted = await tokens.admit(database, identity, {"token": token}, made_ms + day_ms - 1)
        assert admitted is not None
        assert admitted.task_id == task_id
        with pytest.raises(StatusError, match="this task token has expired"):
            await tokens.admit(database, identity, {"token": token}, made_ms + day_ms)


async def test_a_session_that_is_let_in_while_its_task_ends_goes(core: Core, creator: MemoryLink) -> None:
    task_id, token = await token_for(creator, "ag::w::i::1")
    assert (await operate(creator, Op.CANCEL, task_id)).success
    joined = WorkerJoined(
        Worker("ag::w::i::1", "session", core.tasks.engine.nodes.node, "w", "i", True, 0, 1),
        resumed=False,
        task_id=task_id,
        token=tokens.hash_token(token),
        lineage=(task_id,),
    )
    work = await core.tasks.engine.perform(joined)
    assert work.effects.sessions_to_end == [(core.tasks.engine.nodes.node, "session")]
    assert await core.tasks.engine.database.fetch("SELECT * FROM task_workers WHERE identity = 'ag::w::i::1'") == []


async def test_nothing_is_kept_of_sessions_and_tokens_that_are_over(world: World) -> None:
    clock = SetClock(trio.current_time)
    async with world.open(clock=clock) as core, connect(core, agent("w", "c", "1")) as creator:
        let_manage(core)
        database = core.tasks.engine.database
        _, token = await token_for(creator, "ag::w::i::1")
        async with connect(core, worker(token)) as peer:
            await token_for(peer, "ag::w::i::2")
            await barrier(peer)
            assert await database.fetch("SELECT count(*) FROM task_sessions") == [(1,)]
            assert await database.fetch("SELECT count(*) FROM task_descents") == [(1,)]
        await core.tasks.engine.writes.flush()
        await pump()
        assert await database.fetch("SELECT count(*) FROM task_sessions") == [(0,)]
        clock.ahead_ms = 2 * 24 * 3600 * 1000
        await trio.sleep(60)
        assert await database.fetch("SELECT count(*) FROM task_tokens") == [(0,)]
        assert await database.fetch("SELECT count(*) FROM task_descents") == [(0,)]
