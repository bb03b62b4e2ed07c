"""Started agents that end: which startup tasks end, what starts them again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Status
from aether_trio.services.tasks.transaction.task_transaction import Mutation
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, deadlock_is_an_error, message_to, payloads
from tests.services.agents.cast import (
    ECHO,
    SetClock,
    assignment,
    cast,
    echo,
    fail,
    launch,
    nothing_more,
    operation,
    running,
    sleep_on,
    started_by,
    starting,
    starts,
    statuses,
    until,
)
from tests.services.agents.ops import Op, operate, starter


async def test_one_that_was_cut_off_may_come_back(core: Core) -> None:
    async with running(core) as (orchestrator, asker, started, asked):
        started.cut()
        await trio.sleep(0.1)
        asker.send(message_to(ECHO, b"two"))
        await trio.sleep(3)
        async with connect(core, started_by(asked)) as back:
            await nothing_more(orchestrator)
            assert payloads(back)[-1:] == [b"two"]
            assert await starts(core) == [("running", "")]


async def test_one_whose_gateway_went_has_longer_to_come_back(world: World) -> None:
    async with deadlock_is_an_error():
        async with world.open() as core, running(core) as (_, _, _, asked):
            await core.sessions.ask_to_reconnect("the gateway is shutting down")
            await trio.sleep(0.1)
        async with world.open() as core, connect(core, starter("1", "process")) as orchestrator:
            await trio.sleep(30)
            assert await starts(core) == [("running", "")]
            async with connect(core, started_by(asked)) as back:
                await trio.sleep(1)
                back.cut()
                await trio.sleep(8)  # the grace is what it was
                assert await statuses(core) == ["failed"]
            await nothing_more(orchestrator)


@pytest.mark.parametrize("handed_out", ["once", "twice"])
async def test_one_that_runs_for_days_comes_back_when_its_gateway_starts_again(world: World, handed_out: str) -> None:
    clock = SetClock(trio.current_time)
    async with deadlock_is_an_error():
        async with world.open(clock=clock) as core, starting(core) as (orchestrator, _, asked):
            hello = started_by(asked)
            if handed_out == "twice":  # its first process is the one that comes
                async with connect(core, starter("2", "process")) as second:
                    orchestrator.cut()
                    await assignment(second)
            async with connect(core, hello):
                await until(core, "running")
                for _ in range(3):
                    clock.ahead_ms += 20 * 3600 * 1000
                    await trio.sleep(60)
                await core.sessions.ask_to_reconnect("the gateway is shutting down")
                await trio.sleep(0.1)
        async with world.open(clock=clock) as core, connect(core, hello) as back:
            assert back.waiting("connection_ack") == []  # it has been let in
            await barrier(back)
            assert await starts(core) == [("running", "")]
            back.finish()
            await until(core, "completed")
            clock.ahead_ms += 48 * 3600 * 1000
            while await core.tasks.engine.database.fetch("SELECT 1 FROM task_tokens"):
                await trio.sleep(1)


async def test_one_that_is_known_to_have_ended_has_no_grace_when_its_gateway_goes_too(world: World) -> None:
    async with deadlock_is_an_error():
        async with world.open() as core, running(core) as (orchestrator, _, _, asked):
            await fail(orchestrator, asked.task_id, "its process ended by SIGKILL")
            await core.sessions.ask_to_reconnect("the gateway is shutting down")
            await trio.sleep(0.1)
        async with world.open() as core:
            await trio.sleep(1)
            assert await statuses(core) == ["failed"]


async def test_what_one_has_not_read_when_its_gateway_is_killed_starts_it_again_elsewhere(world: World) -> None:
    """Play a node that died: its agents are still in the table when the message comes."""
    async with deadlock_is_an_error():
        async with world.open() as core, running(core) as (orchestrator, _, _, asked):
            await fail(orchestrator, asked.task_id, "its process ended by SIGKILL")
            await world.databases["tasks"].execute(
                "UPDATE task_workers SET node = 'killed', session_id = 'gone' WHERE identity = $1", ECHO
            )
        async with (
            world.open() as core,
            connect(core, starter("1", "process")) as orchestrator,
            connect(core, agent("w", "asker", "1")) as asker,
        ):
            await world.databases["tasks"].execute(
                "INSERT INTO task_workers (identity, session_id, node, workspace, implementation, pooled, live, capacity, "
                "free, turn) VALUES ($1, 'gone', 'killed', 'w', 'echo', 1, 0, 1, 1, 0)",
                ECHO,
            )
            asker.send(message_to(ECHO, b"two"))
            await trio.sleep(2)
            assert orchestrator.waiting("task_assignment") == []
            await core.tasks.engine.recover()  # which nodes do every few seconds
            await assignment(orchestrator)


@pytest.mark.parametrize("said", ["", "no room"])
async def test_one_that_comes_without_a_token_is_the_one_that_was_to_be_started(core: Core, said: str) -> None:
    async with starting(core) as (orchestrator, _, asked):
        if said:
            await fail(orchestrator, asked.task_id, said)
        async with connect(core, echo()) as started:
            assert (await started.next("config")).config.task_context["task_id"] == asked.task_id
            await until(core, "running")
            await nothing_more(orchestrator)
        await until(core, "completed")


async def test_a_message_to_one_that_has_died_starts_it_again_when_it_does_not_come_back(core: Core) -> None:
    async with running(core) as (orchestrator, asker, started, asked):
        started.cut()
        await trio.sleep(0.1)
        asker.send(message_to(ECHO, b"two"))
        since = trio.current_time()
        assert (await assignment(orchestrator)).task_id != asked.task_id
        assert 4 < trio.current_time() - since < 8  # virtual time: the grace of 5 s
        (error, _) = await until(core, "failed", "starting")
        assert "did not reconnect" in error


@pytest.mark.parametrize("end", [MemoryLink.cut, MemoryLink.finish], ids=["it dies", "it says goodbye"])
async def test_a_message_that_one_leaves_unread_starts_it_again(core: Core, end: Callable[[MemoryLink], None]) -> None:
    async with running(core) as (orchestrator, asker, started, asked):
        started.pause()  # what is sent now stays unread
        asker.send(message_to(ECHO, b"two"))
        await barrier(asker)
        end(started)
        assert (await assignment(orchestrator)).task_id != asked.task_id
        async with connect(core, echo()) as again:
            assert (await again.next("msg")).msg.payload == b"two"


async def test_one_that_ends_at_the_same_message_again_and_again_is_given_up_until_the_next_message(core: Core) -> None:
    async with running(core) as (orchestrator, asker, started, _asked):
        asker.send(message_to(ECHO, b"two"))
        started.pause()
        asker.send(message_to(ECHO, b"three"))
        await barrier(asker)
        started.cut()
        for _ in range(3):
            asked = await assignment(orchestrator)
            async with connect(core, echo(), wait_ack=False) as again:
                again.pause()
                await trio.sleep(0.5)
                again.cut()
                await fail(orchestrator, asked.task_id, "its process ended")
        await nothing_more(orchestrator)
        asker.send(message_to(ECHO, b"four"))
        await assignment(orchestrator)


async def test_an_agent_that_has_died_is_not_started_before_it_is_wanted(core: Core) -> None:
    async with running(core) as (orchestrator, _, started, _asked):
        started.cut()
        await nothing_more(orchestrator)
        await until(core, "failed")


async def test_its_orchestrator_knows_earlier_that_it_has_died(core: Core) -> None:
    async with running(core) as (orchestrator, asker, started, asked):
        started.cut()
        await trio.sleep(0.1)
        assert (await fail(orchestrator, asked.task_id, "its process ended by SIGKILL")).success
        assert await until(core, "failed") == ["its process ended by SIGKILL"]
        since = trio.current_time()
        asker.send(message_to(ECHO, b"two"))
        await assignment(orchestrator)
        assert trio.current_time() - since < 1.5  # virtual time


async def test_its_orchestrator_may_know_it_before_the_gateway_does(core: Core) -> None:
    """Its connection is half open: the session is ended, and the identity is free."""
    async with running(core) as (orchestrator, asker, started, asked):
        assert (await fail(orchestrator, asked.task_id, "its process ended by SIGKILL")).success
        assert await statuses(core) == ["running"]
        assert (await started.wait_end()).status is Status.CANCELLED
        assert await until(core, "failed") == ["its process ended by SIGKILL"]
        asker.send(message_to(ECHO, b"two"))
        since = trio.current_time()
        await assignment(orchestrator)
        assert trio.current_time() - since < 2.5  # virtual time


@pytest.mark.parametrize("whose", ["first", "second"])
async def test_only_the_orchestrator_of_the_process_that_came_knows_that_it_has_died(core: Core, whose: str) -> None:
    """Two orchestrators have each started a process; that of the first has connected."""
    async with cast(core) as (orchestrator, _):
        await launch(orchestrator, "1")
        first = await assignment(orchestrator)
        async with connect(core, starter("2", "process")) as second:
            orchestrator.cut()
            assert (await assignment(second)).task_id == first.task_id
            async with (
                connect(core, starter("1", "process", resume_session_id="before")) as back,
                connect(core, started_by(first)) as started,
            ):
                await until(core, "running")
                says = back if whose == "first" else second
                heard = await fail(says, first.task_id, "its process was stopped")
                assert heard.success is (whose == "first")
                started.cut()
                await trio.sleep(1)
                assert await statuses(core) == ["failed" if whose == "first" else "running"]


async def test_a_start_ends_with_the_process_that_had_come(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """One transaction writes the end of one process and the connection of the other.

    The other one's token is void then: its orchestrator stops it.
    """
    async with cast(core) as (orchestrator, _):
        await launch(orchestrator, "1")
        first = await assignment(orchestrator)
        async with connect(core, starter("2", "process")) as second:
            orchestrator.cut()
            other = await assignment(second)
            writes, gate = core.tasks.engine.writes, trio.Event()
            perform = writes._perform

            async def late(mutation: Mutation) -> None:
                await gate.wait()
                await perform(mutation)

            async with connect(core, starter("1", "process", resume_session_id="before")) as back:
                async with connect(core, started_by(first)) as started:
                    await until(core, "running")
                    assert (await fail(back, first.task_id, "its process has ended")).success
                    monkeypatch.setattr(writes, "_perform", late)
                    started.cut()
                    await trio.sleep(0.1)
                async with connect(core, started_by(other), wait_ack=False) as another:
                    await trio.sleep(0.5)
                    gate.set()
                    assert (await another.wait_end()).status is Status.UNAUTHENTICATED
                    assert await starts(core) == [("failed", "its process has ended")]


async def test_a_long_grace_is_the_same_each_time(world: World) -> None:
    async with deadlock_is_an_error(), world.open(tasks={"start_grace_s": 200.0}) as core, cast(core) as (asker, _):
        await launch(asker, "1")
        hello = started_by(await assignment(asker))
        for _ in range(4):
            async with connect(core, hello) as started:
                await until(core, "running")
                started.cut()
                await trio.sleep(190)
                assert await starts(core) == [("running", "")]
        await trio.sleep(20)
        assert await statuses(core) == ["failed"]


async def test_one_that_came_and_died_at_once_has_started(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = core.tasks.engine.writes
    perform = writes._perform

    async def slowly(mutation: Any) -> None:
        await trio.sleep(0.5)  # virtual time
        await perform(mutation)

    async with starting(core) as (orchestrator, _, asked):
        monkeypatch.setattr(writes, "_perform", slowly)
        async with connect(core, echo()):
            answer = await fail(orchestrator, asked.task_id, "its process ended by SIGKILL after 0.1 s")
            assert "is connected; the start ends when its connection does" in answer.error
            assert await statuses(core) == ["running"]


@pytest.mark.parametrize("by", ["time", "message", "launch"])
async def test_a_hibernated_agent_is_started_by_time_or_by_a_message_or_task(core: Core, by: str) -> None:
    async with cast(core, voice="low") as (orchestrator, asker):
        wanted = pb.AgentLaunchParams(workspace="w", specifier="1", param_overrides={"voice": "loud"})
        assert (await operate(orchestrator, Op.LAUNCH, implementation="echo", launch_params=wanted)).success
        asked = await assignment(orchestrator)
        async with connect(core, started_by(asked)) as started:
            await until(core, "running")
            at_ms = core.clock.now_ms() + 60_000 if by == "time" else 0
            await sleep_on(started, asked.task_id, scheduled_wake_unix_ms=at_ms)
        await nothing_more(orchestrator)
        assert await starts(core) == [("hibernated", "")]
        if by == "message":
            asker.send(message_to(ECHO, b"good morning"))
        elif by == "launch":
            answer = await operate(orchestrator, Op.LAUNCH, implementation="echo", launch_params=wanted)
            assert (answer.error, answer.launch_result.task_id) == ("", asked.task_id)
        again = await assignment(orchestrator)
        assert (again.task_id, again.launch_params["voice"]) == (asked.task_id, "loud")
        assert (again.checkpoint_key, again.resume_session_id) == ("half", "before")
        async with connect(core, started_by(again)) as started:
            context = (await started.next("config")).config.task_context
            assert context["_hibernation_checkpoint_key"] == "half"
            assert context["_hibernation_resume_session_id"] == "before"
            await until(core, "running")


async def test_one_that_died_while_its_start_waited_is_started_again_by_a_message(core: Core) -> None:
    async with running(core) as (orchestrator, asker, started, asked):
        spec = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT)
        await operation(started, pb.TaskOperation.PAUSE, asked.task_id, wait_spec=spec)
        started.cut()
        await nothing_more(orchestrator)
        assert await starts(core) == [("waiting_input", "")]
        asker.send(message_to(ECHO, b"are you there?"))
        assert (await assignment(orchestrator)).task_id != asked.task_id
        assert await statuses(core) == ["failed", "starting"]


async def test_its_orchestrator_knows_that_it_died_while_its_start_waited(core: Core) -> None:
    async with running(core) as (orchestrator, _, started, asked):
        spec = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT)
        await operation(started, pb.TaskOperation.PAUSE, asked.task_id, wait_spec=spec)
        assert (await fail(orchestrator, asked.task_id, "killed")).success
        assert (await started.wait_end()).status is Status.CANCELLED
        assert await until(core, "failed") == ["killed"]
