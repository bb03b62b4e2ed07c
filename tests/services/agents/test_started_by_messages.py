"""A message to an agent that does not run causes one start, and waits for it."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Status
from aether_trio.services.agents import autostart
from aether_trio.services.agents.autostart import REFRESH_S, UNREGISTERED_S
from aether_trio.storage.base import StorageUnavailable
from tests.helpers.core import World, agent, barrier, connect, message_to, payloads, task
from tests.services.agents.cast import ECHO, assignment, cast, echo, nothing_more, started_by, starting, starts, until
from tests.services.agents.ops import Op, info, operate, register

LATER = "ag::w::later::1"


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


async def test_a_reader_of_the_tail_is_no_receiver(core: Core) -> None:
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


async def test_a_token_is_for_one_identity_and_for_the_life_of_its_agent(core: Core) -> None:
    async with starting(core) as (_, _, asked):
        credentials = {"token": asked.launch_params["auth_token"]}
        async with connect(core, echo("2", credentials=credentials), wait_ack=False) as other:
            assert (await other.wait_end()).status is Status.PERMISSION_DENIED
        async with connect(core, started_by(asked)):
            await until(core, "running")
        await until(core, "completed")
        async with connect(core, started_by(asked), wait_ack=False) as late:
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


@pytest.mark.parametrize(
    ("wait_s", "starts_it"),
    [(0.5, True), (UNREGISTERED_S - 3 * REFRESH_S, True), (UNREGISTERED_S + 2 * REFRESH_S, False)],
    ids=["at once", "by an orchestrator that takes its time", "long after"],
)
async def test_a_message_starts_an_agent_that_is_registered_later(core: Core, wait_s: float, starts_it: bool) -> None:
    async with cast(core) as (orchestrator, asker):
        asker.send(message_to(LATER, b"one"))
        await barrier(asker)
        await trio.sleep(wait_s)
        await register(orchestrator, "later")
        if starts_it:
            assert (await assignment(orchestrator)).target_implementation == "later"
        else:
            await nothing_more(orchestrator)
            assert await starts(core) == []


async def test_an_agent_that_connected_without_a_start_is_not_started_for_older_messages(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        asker.send(message_to(LATER, b"one"))
        await barrier(asker)
        await trio.sleep(1)
        async with connect(core, agent("w", "later", "1")) as by_hand:
            await by_hand.next("msg")
        await register(orchestrator, "later")
        await nothing_more(orchestrator)
        assert await starts(core) == []


async def test_a_registration_during_a_look_at_the_registry_counts(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cast(core) as (orchestrator, asker):
        names, looks = core.agents.names, 0

        async def old_names() -> frozenset[str]:
            nonlocal looks
            looks += 1
            found = await names()
            if looks == 1:
                await core.agents.put(info("later", launch_params={"profile": "process"}), "later")
            return found

        monkeypatch.setattr(core.agents, "names", old_names)
        await trio.sleep(2 * REFRESH_S)
        asked_at = trio.current_time()
        asker.send(message_to(LATER, b"one"))
        assert (await assignment(orchestrator)).target_implementation == "later"
        assert looks == 2
        assert trio.current_time() - asked_at < REFRESH_S  # of virtual time


async def test_an_agent_without_a_registration_or_a_profile_is_not_started(core: Core) -> None:
    async with cast(core) as (orchestrator, asker):
        await operate(orchestrator, Op.REGISTER, agent=info("without-a-profile"))
        asker.send(message_to("ag::w::unknown::1", b"one"), message_to("ag::w::without-a-profile::1", b"one"))
        await nothing_more(orchestrator)
        assert await starts(core) == []


async def test_a_message_wakes_its_agent_though_storage_was_away(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cast(core) as (orchestrator, asker):
        wake, failures = core.starter.start_all, 3

        async def away(*args: Any, **named: Any) -> Any:
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise StorageUnavailable("no answer")
            return await wake(*args, **named)

        monkeypatch.setattr(core.starter, "start_all", away)
        asker.send(message_to(ECHO, b"one"))
        await assignment(orchestrator)
        assert failures == -1
        assert core.autostarter.statistics().started == 1


@pytest.mark.parametrize("registered", [True, False], ids=["known", "unknown"])
async def test_a_workspace_that_writes_to_very_many_keeps_no_other_from_its_agents(
    core: Core, world: World, monkeypatch: pytest.MonkeyPatch, registered: bool
) -> None:
    monkeypatch.setattr(autostart, "MAX_WAITING", 100)
    database = world.databases["tasks"]
    implementation = "echo" if registered else "unknown"
    async with cast(core) as (orchestrator, asker), connect(core, agent("loud", "a", "1")) as loud:
        database.before_write.close()
        loud.send(*(message_to(f"ag::loud::{implementation}::{number}", b"") for number in range(400)))
        await barrier(loud)
        await trio.sleep(1)
        asker.send(message_to(ECHO, b"one"), message_to(LATER, b"two"))
        await barrier(asker)
        database.before_write.open()
        await register(orchestrator, "later")
        wanted = {ECHO, LATER}
        while wanted:
            asked = await assignment(orchestrator)
            wanted.discard(f"ag::{asked.workspace}::{asked.target_implementation}::{asked.specifier}")
