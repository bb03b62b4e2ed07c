"""What a message to an agent that is not running begins: one start, which the message waits for; on both engines."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import pytest
import trio

from aether_trio.core import Core
from aether_trio.model.errors import Status
from aether_trio.storage.base import StorageUnavailable
from tests.helpers.core import barrier, connect, message_to, payloads, task
from tests.services.agents.cast import ECHO, assignment, cast, echo, nothing_more, starts, until
from tests.services.agents.ops import Op, info, operate, register


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
