"""From a message, a task or a wish to a running agent, with scripted orchestrators and agents, on both engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
import trio

from aether_trio.core import Core
from aether_trio.model.errors import Status
from aether_trio.storage.base import StorageUnavailable
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, deadlock_is_an_error, message_to, payloads, task
from tests.services.agents.ops import Op, info, operate, register, starter

ECHO = "ag::w::echo::1"


def echo(specifier: str = "1", **init: Any) -> pb.UpstreamMessage:
    """The InitConnection of the agent."""
    return agent("w", "echo", specifier, **init)


async def assignment(peer: MemoryLink) -> pb.TaskAssignment:
    return (await peer.next("task_assignment")).task_assignment


async def nothing_more(*peers: MemoryLink) -> None:
    """Nobody is asked to start anything, however long one waits."""
    await trio.sleep(20)
    for peer in peers:
        assert peer.waiting("task_assignment") == []


async def starts(core: Core) -> list[tuple[str, str]]:
    """(status, error) of every start, in the order in which they were made."""
    found = await core.tasks.engine.database.fetch(
        "SELECT status, error FROM tasks WHERE task_type = 'agent_startup' ORDER BY created_ms, order_us"
    )
    return [(status, error) for status, error in found]


async def until(core: Core, *statuses: str) -> list[str]:
    """Once the starts have these statuses: their errors."""
    while (found := await starts(core)) and [status for status, _ in found] != list(statuses):
        await trio.sleep(0.05)
    return [error for _, error in found]


async def fail(peer: MemoryLink, task_id: str, reason: str) -> pb.TaskOperationResponse:
    op = pb.TaskOperation(op=pb.TaskOperation.FAIL, task_id=task_id, reason=reason, request_id="f")
    peer.send(pb.UpstreamMessage(task_op=op))
    return (await peer.next("task_op")).task_op


async def create(peer: MemoryLink, **fields: Any) -> pb.CreateTaskResponse:
    fields = {"task_type": "t", "workspace": "w", "assignment_mode": pb.TARGETED, "target_agent_id": ECHO, **fields}
    peer.send(pb.UpstreamMessage(create_task=pb.CreateTaskRequest(request_id="c", **fields)))
    return (await peer.next("create_task")).create_task


@asynccontextmanager
async def cast(core: Core, **params: str) -> AsyncIterator[tuple[MemoryLink, MemoryLink]]:
    """(an orchestrator of the profile "process", somebody who writes to agents); "echo" is registered."""
    async with connect(core, starter("1", "process")) as orchestrator, connect(core, agent("w", "asker", "1")) as asker:
        await register(orchestrator, "echo", **params)
        yield orchestrator, asker


# -- messages -----------------------------------------------------------------------------------------------------------


async def test_a_message_starts_an_agent_once_and_waits_for_it(core: Core) -> None:
    async with cast(core, voice="loud") as (orchestrator, asker):
        at_ms = core.clock.now_ms()
        asker.send(message_to(ECHO, b"one"), message_to(ECHO, b"two"))
        asked = await assignment(orchestrator)
        assert (asked.task_type, asked.profile, asked.assigned_to) == ("agent_startup", "process", "orc::o::1")
        assert (asked.workspace, asked.target_implementation, asked.specifier) == ("w", "echo", "1")
        token = asked.launch_params["auth_token"]
        assert dict(asked.launch_params) == {"profile": "process", "voice": "loud", "auth_token": token}
        assert at_ms <= int(asked.metadata["trigger_timestamp_ms"]) <= core.clock.now_ms()
        asker.send(message_to(ECHO, b"three"))
        await nothing_more(orchestrator)
        assert await starts(core) == [("starting", "")]

        async with connect(core, echo(credentials={"token": token})) as started:
            context = (await started.next("config")).config.task_context
            assert (context["task_id"], context["lp.voice"], context["profile"]) == (asked.task_id, "loud", "process")
            assert context["trigger_timestamp_ms"] == asked.metadata["trigger_timestamp_ms"]
            await barrier(started)
            assert payloads(started) == [b"one", b"two", b"three"]
            await until(core, "running")
            asker.send(message_to(ECHO, b"four"))
            await nothing_more(orchestrator)
            assert payloads(started) == [b"one", b"two", b"three", b"four"]
        await until(core, "completed")
        asker.send(message_to(ECHO, b"five"))
        assert (await assignment(orchestrator)).task_id != asked.task_id


async def test_whoever_looks_on_does_not_receive(core: Core) -> None:
    async with cast(core) as (orchestrator, asker), trio.open_nursery() as nursery:
        seen: list[int] = []

        async def look_on() -> None:
            async with aclosing(core.tail.open(ECHO, None)) as tail:
                async for offset, _, _ in tail:
                    seen.append(offset)

        nursery.start_soon(look_on)
        await trio.sleep(1)
        asker.send(message_to(ECHO, b"one"))
        asked = await assignment(orchestrator)
        assert asked.specifier == "1"
        while seen != [1]:
            await trio.sleep(0.1)
        nursery.cancel_scope.cancel()


async def test_it_need_not_show_its_token(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        asker.send(message_to(ECHO, b"one"))
        asked = await assignment(orchestrator)
        async with connect(core, echo()) as started:
            assert (await started.next("config")).config.task_context["task_id"] == asked.task_id
            await until(core, "running")
        await until(core, "completed")


async def test_a_token_is_for_one_identity_and_for_the_life_of_its_agent(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        asker.send(message_to(ECHO, b"one"))
        credentials = {"token": (await assignment(orchestrator)).launch_params["auth_token"]}
        async with connect(core, echo("2", credentials=credentials), wait_ack=False) as other:
            assert (await other.wait_end()).status is Status.PERMISSION_DENIED
        async with connect(core, echo(credentials=credentials)):
            await until(core, "running")
        await until(core, "completed")
        async with connect(core, echo(credentials=credentials), wait_ack=False) as late:
            assert (await late.wait_end()).status is Status.UNAUTHENTICATED


async def test_a_unique_task_is_started_too(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        asker.send(message_to("tu::w::echo::7", b"one"))
        asked = await assignment(orchestrator)
        assert asked.specifier == "7"
        credentials = {"token": asked.launch_params["auth_token"]}
        async with connect(core, task("w", "echo", "7", credentials=credentials)) as started:
            await until(core, "running")
            assert payloads(started) == [b"one"]


async def test_nobody_is_started_who_is_not_registered_until_it_is(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        asker.send(message_to("ag::w::later::1", b"one"))
        await barrier(asker)
        await trio.sleep(0.5)
        await register(orchestrator, "later")
        assert (await assignment(orchestrator)).target_implementation == "later"


async def test_nobody_is_started_who_cannot_be(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        await operate(orchestrator, Op.REGISTER, agent=info("without-a-profile"))
        asker.send(message_to("ag::w::nobody::1", b"one"), message_to("ag::w::without-a-profile::1", b"one"))
        await nothing_more(orchestrator)
        assert await starts(core) == []


# -- orchestrators ------------------------------------------------------------------------------------------------------


async def launch(peer: MemoryLink, specifier: str) -> str:
    answer = await operate(
        peer,
        Op.LAUNCH,
        implementation="echo",
        launch_params=pb.AgentLaunchParams(workspace="w", specifier=specifier),
    )
    assert answer.success, answer.error
    return answer.launch_result.task_id


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


async def test_a_start_waits_for_somebody_who_can_do_it(core: Core) -> None:
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
    async with cast(core) as (first, asker):
        asker.send(message_to(ECHO, b"one"))
        asked = await assignment(first)
        async with connect(core, starter("2", "process")) as second:
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
        assert not (await fail(first, asked.task_id, "still no room")).success  # it is not its business any more
        await fail(second, asked.task_id, "no room either")
        assert (await assignment(first)).task_id == asked.task_id
        await fail(first, asked.task_id, "and that was the third")
        assert await until(core, "dlq") == ["and that was the third"]
        await nothing_more(first, second)
        asker.send(message_to(ECHO, b"two"))
        assert (await assignment(second)).task_id != asked.task_id


async def test_an_agent_that_never_connects_is_given_up_with_a_reason_and_the_next_message_tries_again(
    core: Core,
) -> None:
    async with cast(core) as (orchestrator, asker):
        asker.send(message_to(ECHO, b"one"))
        since = trio.current_time()
        for _ in range(3):
            asked = await assignment(orchestrator)
        (error,) = await until(core, "dlq")
        assert error == f"{ECHO} did not connect within 60000 ms after orc::o::1 was asked for it"
        assert 180 < trio.current_time() - since < 190  # virtual time: three times a minute, and the pauses
        asker.send(message_to(ECHO, b"two"))
        assert (await assignment(orchestrator)).task_id != asked.task_id


async def test_nobody_who_could_start_it_for_half_an_hour(core: Core) -> None:
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


@pytest.mark.parametrize(
    ("profiles", "why"), [(["p"] * 65, "65 supported profiles"), ([""], "empty"), (["x" * 257], "256")]
)
async def test_what_cannot_be_served_is_refused_at_the_door(core: Core, profiles: list[str], why: str) -> None:
    async with connect(core, starter("1", *profiles), wait_ack=False) as peer:
        ended = await peer.wait_end()
    assert ended.status is Status.INVALID_ARGUMENT
    assert why in str(ended)


async def test_what_a_killed_gateway_has_left_is_taken_up_by_the_next(world: World) -> None:
    """Its orchestrators are gone with it, and what they were to start goes to others."""
    async with deadlock_is_an_error():
        async with world.open() as core, cast(core) as (orchestrator, asker):
            asker.send(message_to(ECHO, b"one"))
            asked = await assignment(orchestrator)
            await trio.sleep(1)
            rows = await world.databases["tasks"].fetch("SELECT identity FROM task_workers ORDER BY identity")
            assert ("orc::o::1",) in rows
            await world.databases["tasks"].execute("UPDATE task_workers SET node = 'killed', session_id = 'gone'")
        async with world.open() as core, connect(core, starter("2", "process")) as other:
            assert (await assignment(other)).task_id == asked.task_id


# -- agents that go -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def running(core: Core) -> AsyncIterator[tuple[MemoryLink, MemoryLink, MemoryLink, pb.TaskAssignment]]:
    """(orchestrator, asker, the started agent, its start)."""
    async with cast(core) as (orchestrator, asker):
        asker.send(message_to(ECHO, b"one"))
        asked = await assignment(orchestrator)
        async with connect(core, echo(credentials={"token": asked.launch_params["auth_token"]})) as started:
            await until(core, "running")
            yield orchestrator, asker, started, asked


async def test_one_that_was_cut_off_may_come_back(core: Core) -> None:
    async with running(core) as (orchestrator, asker, started, asked):
        started.cut()
        await trio.sleep(0.1)
        asker.send(message_to(ECHO, b"two"))
        await trio.sleep(3)
        async with connect(core, echo(credentials={"token": asked.launch_params["auth_token"]})) as back:
            await nothing_more(orchestrator)
            assert payloads(back)[-1:] == [b"two"]
            assert await starts(core) == [("running", "")]


async def test_one_whose_gateway_went_has_longer_to_come_back(world: World) -> None:
    async with deadlock_is_an_error():
        async with world.open() as core, running(core) as (_, _, _, asked):
            await core.end_sessions("the gateway is shutting down")
            await trio.sleep(0.1)
        async with world.open() as core, connect(core, starter("1", "process")) as orchestrator:
            await trio.sleep(30)
            assert await starts(core) == [("running", "")]
            async with connect(core, echo(credentials={"token": asked.launch_params["auth_token"]})) as back:
                await trio.sleep(1)
                back.cut()
                await trio.sleep(8)  # the grace is what it was
                assert [status for status, _ in await starts(core)] == ["failed"]
            await nothing_more(orchestrator)


async def test_one_that_is_known_to_have_ended_has_no_grace_when_its_gateway_goes_too(world: World) -> None:
    async with deadlock_is_an_error():
        async with world.open() as core, running(core) as (orchestrator, _, _, asked):
            await fail(orchestrator, asked.task_id, "its process ended by SIGKILL")
            await core.end_sessions("the gateway is shutting down")
            await trio.sleep(0.1)
        async with world.open() as core:
            await trio.sleep(1)
            assert [status for status, _ in await starts(core)] == ["failed"]


async def test_what_one_has_not_read_when_its_gateway_is_killed_starts_it_again_elsewhere(world: World) -> None:
    """As if a node were gone: it cannot say that its agents have ended, and its table still has them when the message comes."""
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


async def test_one_that_comes_by_itself_is_the_one_that_was_to_be_started(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        asker.send(message_to(ECHO, b"one"))
        asked = await assignment(orchestrator)
        await fail(orchestrator, asked.task_id, "no room")
        async with connect(core, echo()):
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


async def test_a_message_that_was_sent_while_it_was_dying_starts_it_again(core: Core) -> None:
    async with running(core) as (orchestrator, asker, started, asked):
        started.pause()  # what is sent now stays unread
        asker.send(message_to(ECHO, b"two"))
        await barrier(asker)
        started.cut()
        assert (await assignment(orchestrator)).task_id != asked.task_id
        async with connect(core, echo()) as again:
            assert (await again.next("msg")).msg.payload == b"two"


async def test_one_that_says_goodbye_and_leaves_a_message_unread_is_started_again(core: Core) -> None:
    async with running(core) as (orchestrator, asker, started, asked):
        started.pause()
        asker.send(message_to(ECHO, b"two"))
        await barrier(asker)
        started.finish()
        assert (await assignment(orchestrator)).task_id != asked.task_id


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


async def test_nobody_starts_one_that_has_died_before_it_is_wanted(core: Core) -> None:
    async with running(core) as (orchestrator, _, started, _asked):
        started.cut()
        await nothing_more(orchestrator)
        await until(core, "failed")


async def test_its_orchestrator_knows_earlier_that_it_has_died(core: Core) -> None:
    async with running(core) as (orchestrator, asker, started, asked):
        started.cut()
        await trio.sleep(0.1)
        await trio.sleep(0.1)
        assert (await fail(orchestrator, asked.task_id, "its process ended by SIGKILL")).success
        assert await until(core, "failed") == ["its process ended by SIGKILL"]
        since = trio.current_time()
        asker.send(message_to(ECHO, b"two"))
        await assignment(orchestrator)
        assert trio.current_time() - since < 1.5  # virtual time


async def test_its_orchestrator_may_know_it_before_the_gateway_does(core: Core) -> None:
    async with running(core) as (orchestrator, asker, started, asked):
        answer = await fail(orchestrator, asked.task_id, "its process ended by SIGKILL")
        assert "is connected" in answer.error
        assert await starts(core) == [("running", "")]
        started.cut()
        await trio.sleep(0.1)
        asker.send(message_to(ECHO, b"two"))
        since = trio.current_time()
        await assignment(orchestrator)
        assert trio.current_time() - since < 2.5  # virtual time


# -- tasks and wishes ---------------------------------------------------------------------------------------------------


async def test_one_that_came_and_died_at_once_was_started_all_the_same(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = core.tasks.engine.desk
    perform = desk._perform

    async def slowly(errand: Any) -> None:
        await trio.sleep(0.5)  # virtual time
        await perform(errand)

    async with cast(core) as (orchestrator, asker):
        asker.send(message_to(ECHO, b"one"))
        asked = await assignment(orchestrator)
        monkeypatch.setattr(desk, "_perform", slowly)
        async with connect(core, echo()):
            answer = await fail(orchestrator, asked.task_id, "its process ended by SIGKILL after 0.1 s")
            assert "is connected; the start ends when its connection does" in answer.error
            assert [status for status, _ in await starts(core)] == ["running"]


async def test_a_task_for_an_agent_that_is_not_running_starts_it_and_waits_for_it(core: Core) -> None:
    async with cast(core, voice="low", mood="good") as (orchestrator, asker):
        answer = await create(asker, payload=b"work", launch_param_overrides={"voice": "loud"})
        assert (answer.success, answer.status, answer.assigned_to) == (True, "orchestration_triggered", "")
        again = await create(asker, payload=b"more")
        assert (again.success, again.status) == (True, "orchestration_triggered")
        asked = await assignment(orchestrator)
        assert (asked.launch_params["voice"], asked.launch_params["mood"]) == ("loud", "good")
        await nothing_more(orchestrator)
        async with connect(core, echo(credentials={"token": asked.launch_params["auth_token"]})) as started:
            given = [await assignment(started) for _ in range(2)]
            assert [(one.task_id, one.payload) for one in given] == [
                (answer.task_id, b"work"),
                (again.task_id, b"more"),
            ]


async def operation(peer: MemoryLink, op: pb.TaskOperation.OpType.ValueType, task_id: str, **fields: Any) -> None:
    peer.send(pb.UpstreamMessage(task_op=pb.TaskOperation(op=op, task_id=task_id, request_id="o", **fields)))
    answer = (await peer.next("task_op")).task_op
    assert answer.success, answer.error


async def test_a_task_whose_agent_has_died_starts_it_again_when_it_is_tried_again(core: Core) -> None:
    policy = pb.RetryPolicy(max_attempts=3, backoff=pb.BACKOFF_STRATEGY_FIXED, initial_delay_ms=1000)
    async with cast(core) as (orchestrator, asker):
        created = await create(asker, payload=b"work", retry_policy=policy)
        asked = await assignment(orchestrator)
        async with connect(core, echo()) as started:
            await assignment(started)
            await operation(started, pb.TaskOperation.CLAIM, created.task_id)
            started.cut()
            await trio.sleep(0.1)
        again = await assignment(orchestrator)
        assert again.task_id != asked.task_id
        async with connect(core, echo(credentials={"token": again.launch_params["auth_token"]})) as started:
            given = await assignment(started)
            assert (given.task_id, given.payload) == (created.task_id, b"work")


async def test_a_task_that_wakes_starts_its_agent(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        created = await create(asker, payload=b"work")
        await assignment(orchestrator)
        async with connect(core, echo()) as started:
            await assignment(started)
            await operation(started, pb.TaskOperation.CLAIM, created.task_id)
            save = pb.CheckpointOperation(op=pb.CheckpointOperation.SAVE, key="half", data=b"done", request_id="s")
            started.send(pb.UpstreamMessage(checkpoint_op=save))
            await started.next("checkpoint")
            wait = pb.WaitSpec(
                reason=pb.WAIT_REASON_HIBERNATION,
                scheduled_wake_unix_ms=core.clock.now_ms() + 60_000,
                hibernation=pb.HibernationDescriptor(checkpoint_key="half"),
            )
            await operation(started, pb.TaskOperation.PAUSE, created.task_id, wait_spec=wait)
        await trio.sleep(30)
        assert orchestrator.waiting("task_assignment") == []
        await assignment(orchestrator)
        async with connect(core, echo()) as started:
            given = await assignment(started)
            assert (given.task_id, given.checkpoint_key) == (created.task_id, "half")


async def test_a_task_that_is_only_to_be_kept_starts_nobody_later_either(core: Core) -> None:
    policy = pb.RetryPolicy(max_attempts=3, backoff=pb.BACKOFF_STRATEGY_FIXED, initial_delay_ms=1000)
    async with cast(core) as (orchestrator, asker):
        kept = pb.TARGET_OFFLINE_POLICY_QUEUE
        created = await create(asker, payload=b"work", retry_policy=policy, target_offline_policy=kept)
        async with connect(core, echo()) as by_hand:
            await assignment(by_hand)
            await operation(by_hand, pb.TaskOperation.FAIL, created.task_id)
        await nothing_more(orchestrator)
        async with connect(core, echo()) as by_hand:
            assert (await assignment(by_hand)).task_id == created.task_id


async def test_a_start_keeps_its_agent_from_no_work(world: World) -> None:
    async with (
        deadlock_is_an_error(),
        world.open(tasks={"worker_tasks": 1}) as core,
        cast(core) as (orchestrator, asker),
    ):
        await create(asker, payload=b"work")
        await assignment(orchestrator)
        async with connect(core, echo()) as started:
            assert (await assignment(started)).payload == b"work"
            await until(core, "running")


async def test_who_does_not_want_a_start_gets_none(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        queued = await create(asker, target_offline_policy=pb.TARGET_OFFLINE_POLICY_QUEUE)
        assert (queued.success, queued.status) == (True, "queued")
        rejected = await create(asker, target_offline_policy=pb.TARGET_OFFLINE_POLICY_REJECT)
        assert (rejected.success, rejected.error_code) == (False, "ERR_TASK_CREATE_FAILED")
        unknown = await create(asker, target_agent_id="ag::w::nobody::1")
        assert (unknown.success, unknown.error_code) == (False, "ERR_TASK_CREATE_FAILED")
        await operate(orchestrator, Op.REGISTER, agent=info("bare"))
        bare = await create(asker, target_agent_id="ag::w::bare::1")
        assert "no launch profile" in bare.error_message
        await nothing_more(orchestrator)
        assert await starts(core) == []


async def test_a_start_can_be_asked_for_by_its_task_type(core: Core) -> None:
    async with cast(core, voice="low") as (orchestrator, asker):
        answer = await create(asker, task_type="agent_startup", launch_param_overrides={"voice": "loud"})
        assert (answer.success, answer.status) == (True, "orchestration_triggered"), answer
        asked = await assignment(orchestrator)
        assert (asked.task_id, asked.launch_params["voice"]) == (answer.task_id, "loud")
        again = await create(asker, task_type="agent_startup")
        assert "is being started already" in again.error_message
        async with connect(core, echo()):
            await until(core, "running")
            there = await create(asker, task_type="agent_startup")
            assert "is connected already" in there.error_message
        await nothing_more(orchestrator)


async def test_launch(core: Core) -> None:
    async with cast(core, voice="low", mood="good") as (orchestrator, _):

        async def launched(implementation: str = "echo", **params: Any) -> pb.AgentResponse:
            wanted = pb.AgentLaunchParams(**params)
            return await operate(orchestrator, Op.LAUNCH, implementation=implementation, launch_params=wanted)

        answer = await launched(workspace="w", specifier="1", param_overrides={"voice": "loud", "auth_token": "mine"})
        assert answer.success
        asked = await assignment(orchestrator)
        assert (asked.task_id, asked.specifier) == (answer.launch_result.task_id, "1")
        assert (asked.launch_params["voice"], asked.launch_params["mood"]) == ("loud", "good")
        assert asked.launch_params["auth_token"] != "mine"
        assert "is being started already" in (await launched(workspace="w", specifier="1")).error
        async with connect(core, echo()):
            await until(core, "running")
            assert "is connected already" in (await launched(workspace="w", specifier="1")).error
        assert (await launched()).success
        asked = await assignment(orchestrator)
        assert (asked.workspace, asked.specifier) == ("default", "default")
        assert "is registered" in (await launched("nobody")).error
        assert "specifier" in (await launched(specifier="*")).error
        await operate(orchestrator, Op.REGISTER, agent=info("bare"))
        assert "no launch profile" in (await launched("bare")).error


async def test_a_message_wakes_its_receiver_though_storage_was_away(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cast(core) as (orchestrator, asker):
        wake, failures = core.starts.wake, 3

        async def away(*args: Any) -> Any:
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise StorageUnavailable("no answer")
            return await wake(*args)

        monkeypatch.setattr(core.starts, "wake", away)
        asker.send(message_to(ECHO, b"one"))
        await assignment(orchestrator)
        assert failures == -1
        assert core.waker.statistics().woken == 1


async def test_an_orchestrator_is_told_though_storage_was_away(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = core.tasks.engine
    async with cast(core) as (orchestrator, _), connect(core, starter("2", "other")) as other:
        run, failures = engine.run_program, 2

        async def away(program: Any) -> Any:
            nonlocal failures
            if "mint" in program.__name__:
                failures -= 1
                if failures >= 0:
                    raise StorageUnavailable("no answer")
            return await run(program)

        monkeypatch.setattr(engine, "run_program", away)
        task_id = await launch(other, "1")
        assert (await assignment(orchestrator)).task_id == task_id
        assert failures == -1
