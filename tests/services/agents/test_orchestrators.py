"""Which orchestrator is assigned a start, and what follows if it goes or refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.tasks.handlers.dead_letters import DeadLetters
from aether_trio.services.tasks.transaction import startup
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.session.init_connection import ASSIGNMENTS
from aether_trio.storage.base import Program, StorageUnavailable
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect, deadlock_is_an_error, let_manage, message_to
from tests.services.agents.cast import (
    ECHO,
    assignment,
    cast,
    create,
    echo,
    fail,
    launch,
    nothing_more,
    started_by,
    starting,
    starts,
    statuses,
    until,
)
from tests.services.agents.ops import Op, operate, register, starter
from tests.services.tasks.peers import Op as TaskOp
from tests.services.tasks.peers import operate as operate_on


async def test_they_take_turns(core: Core) -> None:
    async with (
        cast(core) as (first, _),
        connect(core, starter("2", "other", "process")) as second,
        connect(core, starter("3", "other")) as third,
    ):
        for specifier in "abcd":
            await launch(third, specifier)
        assert [(await assignment(first)).specifier for _ in range(2)] == ["a", "c"]
        assert [(await assignment(second)).specifier for _ in range(2)] == ["b", "d"]
        await nothing_more(first, second, third)


async def test_a_start_waits_for_an_orchestrator_of_its_profile(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        await register(orchestrator, "big", "docker")
        asker.send(message_to("ag::w::big::1", b"one"))
        await until(core, "pending")
        await trio.sleep(120)
        async with connect(core, starter("2", "docker")) as other:
            assert (await assignment(other)).target_implementation == "big"
            await nothing_more(orchestrator)


async def test_more_starts_wait_than_a_page(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        await register(orchestrator, "big", "docker")
        for number in range(120):
            asker.send(message_to(f"ag::w::big::{number}", b"one"))
        await until(core, *["pending"] * 120)
        async with connect(core, starter("2", "docker")) as other:
            asked = {(await assignment(other)).specifier for _ in range(120)}
        assert asked == {str(number) for number in range(120)}


async def test_one_that_goes_is_replaced_at_once(core: Core) -> None:
    async with starting(core) as (first, _, asked), connect(core, starter("2", "process")) as second:
        first.cut()
        again = await assignment(second)
        assert again.task_id == asked.task_id
        assert again.launch_params["auth_token"] != asked.launch_params["auth_token"]
        assert await starts(core) == [("starting", "")]


async def test_one_that_comes_anew_is_told_again_what_it_was_to_start(core: Core) -> None:
    async with connect(core, agent("w", "asker", "1")) as asker:
        async with connect(core, starter("1", "process")) as first:
            await register(first, "echo")
            asker.send(message_to(ECHO, b"one"))
            asked = await assignment(first)
            first.cut()
            await trio.sleep(0.1)
        async with connect(core, starter("1", "process")) as second:
            assert (await assignment(second)).task_id == asked.task_id
            await nothing_more(second)


async def test_one_that_says_no_is_replaced_after_a_pause_and_the_third_no_is_the_last(core: Core) -> None:
    async with cast(core) as (first, asker), connect(core, starter("2", "process")) as second:
        asker.send(message_to(ECHO, b"one"))
        asked = await assignment(first)
        assert (await fail(first, asked.task_id, "no room")).success
        assert await starts(core) == [("failed", "no room")]
        since = trio.current_time()
        assert (await assignment(second)).task_id == asked.task_id
        assert 0.9 < trio.current_time() - since < 1.5  # virtual time
        # It is not its business any more.
        assert not (await fail(first, asked.task_id, "still no room")).success
        await fail(second, asked.task_id, "no room either")
        assert (await assignment(first)).task_id == asked.task_id
        await fail(first, asked.task_id, "and that was the third")
        assert await until(core, "dlq") == ["and that was the third"]
        await nothing_more(first, second)
        asker.send(message_to(ECHO, b"two"))
        assert (await assignment(second)).task_id != asked.task_id


async def test_an_agent_that_never_connects_is_given_up_with_a_reason_until_the_next_message(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        asker.send(message_to(ECHO, b"one"))
        since = trio.current_time()
        for _ in range(3):
            asked = await assignment(orchestrator)
        (error,) = await until(core, "dlq")
        assert error == f"{ECHO} did not connect within 60000 ms after orc::o::1 was asked for it"
        # Virtual time: three times a minute, and the pauses.
        assert 180 < trio.current_time() - since < 190
        asker.send(message_to(ECHO, b"two"))
        assert (await assignment(orchestrator)).task_id != asked.task_id


async def test_half_an_hour_without_an_orchestrator_of_the_profile(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        await register(orchestrator, "big", "docker")
        asker.send(message_to("ag::w::big::1", b"one"))
        await until(core, "pending")
        await trio.sleep(1801)
        await until(core, "cancelled")
        asker.send(message_to("ag::w::big::1", b"two"))
        await until(core, "cancelled", "pending")


async def test_they_are_listed(core: Core) -> None:
    async with cast(core) as (first, _), connect(core, starter("2", "q", "p", "p")), connect(core, starter("none")):
        answer = await operate(first, Op.LIST_ORCHESTRATORS)
        assert answer.total_count == 2
        assert [(one.orchestrator_id, list(one.profiles)) for one in answer.orchestrators] == [
            ("orc::o::1", ["process"]),
            ("orc::o::2", ["p", "q"]),
        ]
        assert {one.connected_at for one in answer.orchestrators} == {core.clock.now_ms() // 1000}


async def test_what_a_killed_gateway_has_left_is_taken_up_by_the_next(world: World) -> None:
    """Its orchestrators are gone with it, and what they were to start goes to others."""
    async with deadlock_is_an_error():
        async with world.open() as core, starting(core) as (_, _, asked):
            await trio.sleep(1)
            rows = await world.databases["tasks"].fetch("SELECT identity FROM task_workers ORDER BY identity")
            assert ("orc::o::1",) in rows
            await world.databases["tasks"].execute("UPDATE task_workers SET node = 'killed', session_id = 'gone'")
        async with world.open() as core, connect(core, starter("2", "process")) as other:
            assert (await assignment(other)).task_id == asked.task_id


async def test_an_orchestrator_is_told_though_storage_was_away(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    deliveries = core.tasks.engine.assignments
    async with cast(core) as (orchestrator, _), connect(core, starter("2", "other")) as other:
        run, failures = deliveries._run_program, 2

        async def away(*given: Any) -> Any:
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise StorageUnavailable("no answer")
            return await run(*given)

        monkeypatch.setattr(deliveries, "_run_program", away)
        task_id = await launch(other, "1")
        assert (await assignment(orchestrator)).task_id == task_id
        assert failures == -1


async def test_one_whose_coming_is_written_late_takes_nobodys_place(core: Core) -> None:
    """It has ended meanwhile; another node may have one of its name."""
    engine = core.tasks.engine
    async with connect(core, starter("1", "process")) as orchestrator:
        session = core.registry.holder("orc::o::1")
        assert session is not None
        await engine.writes.flush()
        orchestrator.cut()
        await session.wait_detached()
    core.starter.joined(session, resumed=False)
    assert await core.starter.orchestrators() == []
    assert await engine.database.fetch("SELECT identity FROM task_workers") == []


async def test_what_one_says_late_of_an_earlier_attempt_is_no_second_failure(core: Core) -> None:
    asks = pb.ExtensionDeclaration(uri=ASSIGNMENTS)
    async with connect(core, starter("1", "process", extensions=[asks])) as orchestrator:
        await register(orchestrator, "echo")
        task_id = await launch(orchestrator, "1")
        assert (await assignment(orchestrator)).metadata["_assignment"] == "1"
        again = await assignment(orchestrator)  # no agent has connected
        assert (again.task_id, again.metadata["_assignment"]) == (task_id, "2")
        assert "assigned anew" in (await fail(orchestrator, f"{task_id}@1", "ended")).error
        assert await starts(core) == [("starting", "")]
        assert (await fail(orchestrator, f"{task_id}@2", "ended")).success


async def dead_start(core: Core, orchestrator: MemoryLink, asker: MemoryLink) -> str:
    """A start that has failed three times."""
    asker.send(message_to(ECHO, b"one"))
    for _ in range(3):
        task_id = (await assignment(orchestrator)).task_id
        await fail(orchestrator, task_id, "no room")
    await until(core, "dlq")
    return task_id


async def test_an_old_start_is_not_tried_again_beside_a_later_one(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        old = await dead_start(core, orchestrator, asker)
        later = await launch(orchestrator, "1")
        assert (await assignment(orchestrator)).task_id == later
        refused = await operate_on(asker, TaskOp.RETRY, old)
        assert not refused.success
        assert refused.error == f"{ECHO} is being started already (task {later})"
        assert not await DeadLetters(core.tasks.engine).requeue(old, "operator")
        assert await statuses(core) == ["dlq", "starting"]
        await nothing_more(orchestrator)


@pytest.mark.parametrize("by", ["operation", "letter"])
async def test_an_old_start_that_is_tried_again_is_the_start_of_its_agent(core: Core, by: str) -> None:
    async with connect(core, starter("2", "other")) as other:
        async with cast(core) as (orchestrator, asker):
            old = await dead_start(core, orchestrator, asker)
            later = await launch(orchestrator, "1")
            assert (await assignment(orchestrator)).task_id == later
            assert (await operate_on(orchestrator, TaskOp.CANCEL, later)).success
        if by == "operation":
            assert (await operate_on(other, TaskOp.RETRY, old)).success
        else:
            assert await DeadLetters(core.tasks.engine).requeue(old, "operator")
        await until(core, "pending", "cancelled")
        answer = await operate(
            other, Op.LAUNCH, implementation="echo", launch_params=pb.AgentLaunchParams(workspace="w", specifier="1")
        )
        assert old in answer.error  # there is no second one beside it
        async with connect(core, starter("1", "process")) as orchestrator:
            again = await assignment(orchestrator)
            assert again.task_id == old
            async with connect(core, started_by(again)):
                await until(core, "running", "cancelled")


async def test_a_claim_by_its_orchestrator_starts_no_agent(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        asker.send(message_to(ECHO, b"one"))
        for _ in range(3):
            told = await assignment(orchestrator)
            assert (await operate_on(orchestrator, TaskOp.CLAIM, told.task_id)).success
            assert await statuses(core) == ["starting"]
        (error,) = await until(core, "dlq")
        assert "did not connect within 60000 ms" in error


@pytest.mark.parametrize("comes", ["first", "second", "without a token", ""])
async def test_an_orchestrator_that_was_away_hears_whose_process_a_start_is(core: Core, comes: str) -> None:
    """It is the process with the agent's token; without a token it may be any process."""
    asks = [pb.ExtensionDeclaration(uri=ASSIGNMENTS)]
    async with connect(core, agent("w", "asker", "1")) as asker:
        async with connect(core, starter("1", "process", extensions=asks)) as first:
            await register(first, "echo")
            asker.send(message_to(ECHO, b"one"))
            mine = await assignment(first)
            first.cut()
        async with (
            connect(core, starter("2", "process", extensions=asks)) as second,
            connect(core, starter("1", "process", extensions=asks)) as back,
        ):
            its = await assignment(second)
            token = {"first": mine, "second": its}.get(comes, its).launch_params["auth_token"]
            hello = echo(credentials={} if comes == "without a token" else {"token": token})
            if not comes:
                hello = agent("w", "asker", "2")
            async with connect(core, hello) as came:
                if comes:
                    await until(core, "running")

                async def whose() -> set[str]:
                    found = set()
                    for name, peer, told in (("first", back, mine), ("second", second, its)):
                        number = told.metadata["_assignment"]
                        answer = await operate_on(peer, TaskOp.CLAIM, f"{told.task_id}@{number}")
                        assert answer.success or "this assignment is over" in answer.error
                        found |= {name} if answer.success else set()
                    return found

                wanted = {"without a token": {"first", "second"}, "": {"second"}}.get(comes, {comes})
                assert await whose() == wanted
                if comes:
                    came.finish()
                    await until(core, "completed")
                    assert await whose() == wanted


async def test_resuming_a_start_does_not_make_it_run(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        task_id = await launch(orchestrator, "1")
        await assignment(orchestrator)
        for peer in (asker, orchestrator):
            assert not (await operate_on(peer, TaskOp.RESUME, task_id)).success
        assert await starts(core) == [("starting", "")]


async def test_a_start_whose_agent_has_not_connected_cannot_be_completed(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        task = await create(asker)
        asked = await assignment(orchestrator)
        done = await operate_on(orchestrator, TaskOp.COMPLETE, asked.task_id)
        assert (done.success, await starts(core)) == (False, [("starting", "")])
        async with connect(core, started_by(asked)) as started:
            await until(core, "running")
            assert (await assignment(started)).task_id == task.task_id
            assert (await operate_on(started, TaskOp.COMPLETE, asked.task_id)).success
            await until(core, "completed")

        await register(orchestrator, "big", "docker")
        waiting = (await create(asker, task_type="agent_startup", target_agent_id="ag::w::big::1")).task_id
        assert not (await operate_on(asker, TaskOp.COMPLETE, waiting)).success
        await until(core, "completed", "pending")


@asynccontextmanager
async def nothing_starts(core: Core) -> AsyncIterator[tuple[MemoryLink, MemoryLink]]:
    """(an orchestrator of a profile that no agent has, a sender); "echo" is there."""
    async with connect(core, starter("2", "other")) as other, connect(core, agent("w", "asker", "1")) as asker:
        await register(other, "echo")
        yield other, asker


async def test_the_starts_that_urgent_tasks_wait_for_are_handed_out_first(core: Core) -> None:
    async with nothing_starts(core) as (_, asker):
        wanted = {"low": 10, "normal": 30, "high": 40, "raised": 20}
        for specifier, priority in wanted.items():
            made = await create(asker, target_agent_id=f"ag::w::echo::{specifier}", priority=priority)
            assert made.success, made.error_message
        # It has a start already, and a more urgent task waits for it.
        await create(asker, target_agent_id="ag::w::echo::raised", priority=50)
        await until(core, *["pending"] * 4)
        async with connect(core, starter("1", "process")) as orchestrator:
            told = [await assignment(orchestrator) for _ in range(4)]
            [[asked_ms]] = await core.tasks.engine.database.fetch("SELECT MAX(assigned_ms) FROM tasks")
        assert [one.specifier for one in told] == ["raised", "high", "normal", "low"]
        assert {one.assigned_at for one in told} == {asked_ms // 1000}
        assert [one.metadata["priority"] for one in told] == ["50", "40", "30", "10"]


async def test_the_most_urgent_starts_are_in_the_first_page(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "WAITING_PAGE", 1)
    async with nothing_starts(core) as (_, asker):
        for specifier, priority in {"normal": 30, "raised": 20}.items():
            assert (await create(asker, target_agent_id=f"ag::w::echo::{specifier}", priority=priority)).success
        await create(asker, target_agent_id="ag::w::echo::raised", priority=50)
        await until(core, "pending", "pending")
        # The first page, and no other.
        monkeypatch.setattr(core.tasks.engine.follow_ups, "put", lambda *_: 0)
        async with connect(core, starter("1", "process")) as orchestrator:
            assert (await assignment(orchestrator)).specifier == "raised"
            await nothing_more(orchestrator)


async def test_starts_that_ended_while_they_waited_hide_no_other(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "WAITING_PAGE", 2)
    give_waiting, pages = startup.dispatch_waiting, 0

    def bounded(tx: TaskTransaction, profile: bytes) -> Program[None]:
        nonlocal pages
        pages += 1
        assert pages < 20, "page after page has nothing that waits"
        yield from give_waiting(tx, profile)

    monkeypatch.setattr(startup, "dispatch_waiting", bounded)
    let_manage(core)
    async with nothing_starts(core) as (_, asker):
        for number, priority in enumerate((50, 50, 50, 10)):
            assert (await create(asker, target_agent_id=f"ag::w::echo::{number}", priority=priority)).success
        await until(core, *["pending"] * 4)
        urgent = await core.tasks.engine.database.fetch(
            "SELECT task_id FROM tasks WHERE task_type = 'agent_startup' AND priority = 50"
        )
        for (task_id,) in urgent:
            assert (await operate_on(asker, TaskOp.CANCEL, task_id)).success
        async with connect(core, starter("1", "process")) as orchestrator:
            assert (await assignment(orchestrator)).specifier == "3"
            await nothing_more(orchestrator)


async def test_of_orchestrators_whose_gateway_was_killed_nothing_is_kept(world: World) -> None:
    profiles = "SELECT COUNT(*) FROM orchestrator_profiles"
    async with deadlock_is_an_error():
        async with world.open() as core, connect(core, starter("1", "process", "other")):
            while world.databases["tasks"].query(profiles) != [(2,)]:
                await trio.sleep(1)
            for database in world.databases.values():
                database.failing = True
        async with world.open():
            while world.databases["tasks"].query(profiles) != [(0,)]:
                await trio.sleep(1)
