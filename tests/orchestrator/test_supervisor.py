"""AgentSupervisor with real processes: limits, replacement, reports of each end."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from aether_trio.client.errors import ConnectionLost, Refused
from aether_trio.client.operations.enums import TaskStatus
from aether_trio.orchestrator import AgentSpec, AgentSupervisor, GatewayAddresses, OrchestratorLimits, capacity
from tests.orchestrator.starts import Client, Notes, assignment, becomes, python
from tests.orchestrator.test_process_group import is_there

LONG_S = 300.0
STAYS = "import os, time; print(os.getpid(), os.environ['AETHER_AUTH_TOKEN'], flush=True); time.sleep(600)"
AROUND = GatewayAddresses("gw:1", "aether://gw:1")


class Stage:
    """An orchestrator at work, what it was told and what it tells."""

    def __init__(self, specs: Sequence[AgentSpec], limits: OrchestratorLimits) -> None:
        self.client = Client()
        self.notes = Notes()
        self.orchestrator = AgentSupervisor({one.implementation: one for one in specs}, AROUND, self.notes, limits)

    def ask(self, *args: Any, **fields: Any) -> None:
        self.client.starts.put(assignment(*args, **fields))

    async def until(self, holds: Callable[[], bool]) -> None:
        with trio.fail_after(LONG_S):
            while not holds():
                await trio.sleep(0.01)

    async def lines(self, count: int) -> list[list[str]]:
        """What was printed, as words, once there are so many lines."""
        await self.until(lambda: len(self.notes.lines) >= count)
        return [text.split() for _, text in self.notes.lines]

    async def failures(self, count: int) -> list[tuple[str, str]]:
        await self.until(lambda: len(self.client.failed) >= count)
        return self.client.failed


@asynccontextmanager
async def stage(*specs: AgentSpec, most: int = 16, grace_s: float = LONG_S) -> AsyncIterator[Stage]:
    made = Stage(specs, OrchestratorLimits(most, grace_s))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.orchestrator.run, made.client)
        yield made
        nursery.cancel_scope.cancel()


async def test_it_tells_what_it_can_start() -> None:
    specs = [python("", params={"voice": "loud"}), python("", "other", profile="gpu", description="d")]
    made = Stage(specs, OrchestratorLimits())
    await made.orchestrator.register(made.client)  # type: ignore[arg-type]
    assert made.orchestrator.profiles == ["gpu", "process"]
    echo, other = made.client.registered
    assert (echo.implementation, echo.orchestrator_profile) == ("echo", "process")
    assert dict(echo.launch_params) == {"voice": "loud", "profile": "process"}
    assert (other.orchestrator_profile, other.description) == ("gpu", "d")


async def test_a_process_is_started_and_its_end_is_told() -> None:
    async with stage(python("print('hello'); raise SystemExit(4)")) as s:
        s.ask(task_id="t1")
        [(task_id, reason)] = await s.failures(1)
        assert task_id == "t1"
        assert reason.startswith("its process ended with exit code 4 after ")
        assert s.notes.lines == [("ag::w::echo::1", "hello")]
        assert [agent for agent, _ in s.notes.events] == ["ag::w::echo::1"] * 2
        assert s.orchestrator.statistics().ended == 1
        assert s.orchestrator.statistics().running == 0


async def test_all_are_gone_when_it_ends() -> None:
    async with stage(python(STAYS)) as s:
        for specifier in ("1", "2", "3"):
            s.ask(specifier=specifier, task_id=specifier)
        pids = [int(words[0]) for words in await s.lines(3)]
        assert all(is_there(pid) for pid in pids)
    assert not any(is_there(pid) for pid in pids)
    # The gateway notices that its orchestrator has gone.
    assert s.client.failed == []
    assert [text for _, text in s.notes.events].count("was stopped") == 3


async def test_a_start_that_is_said_twice_is_one() -> None:
    async with stage(python(STAYS)) as s:
        s.ask(task_id="t1", token="a")
        await s.lines(1)
        s.ask(task_id="t1", token="a")
        s.ask(specifier="2", task_id="t2")
        await s.lines(2)
        assert s.orchestrator.statistics().started == 2


async def test_a_new_start_of_the_same_agent_waits_until_the_old_process_is_gone() -> None:
    async with stage(python(STAYS)) as s:
        s.ask(task_id="t1", token="a")
        [[old, _]] = await s.lines(1)
        s.ask(task_id="t2", token="b")
        _, [new, token] = await s.lines(2)
        assert not is_there(int(old))
        assert is_there(int(new))
        assert token == "b"
        assert s.client.failed == []  # the gateway has asked for it


@pytest.mark.parametrize(
    ("story", "stopped"),
    [
        ([TaskStatus.FAILED], True),
        ([TaskStatus.RUNNING, TaskStatus.FAILED], True),
        ([TaskStatus.RUNNING, TaskStatus.CANCELLED], True),
        ([TaskStatus.RUNNING, TaskStatus.COMPLETED], False),
    ],
)
async def test_a_process_whose_start_is_over_is_stopped(story: list[TaskStatus], stopped: bool) -> None:
    async with stage(python(STAYS)) as s:
        s.ask(task_id="t1")
        [[pid, _]] = await s.lines(1)
        for status in story:
            s.client.say.send_nowait(becomes(status))
        if stopped:
            assert await s.failures(1) == [("t1", "its process was stopped")]
            assert not is_there(int(pid))
        else:
            await s.until(lambda: s.client.say.statistics().current_buffer_used == 0)
            await trio.testing.wait_all_tasks_blocked()
            assert is_there(int(pid))


async def test_a_start_that_had_ended_before_it_was_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(python(STAYS)) as s:
        s.client.status = TaskStatus.CANCELLED
        s.ask(task_id="t1")
        assert await s.failures(1) == [("t1", "its process was stopped")]


async def test_a_start_that_another_orchestrator_was_given_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_trio.orchestrator.startup_task.POLL_S", 0.01)
    async with stage(python(STAYS)) as s:
        s.ask(task_id="t1", number="7")
        [[pid, _]] = await s.lines(1)
        await s.until(lambda: len(s.client.claimed) > 2)
        assert {*s.client.claimed} == {"t1@7"}
        assert is_there(int(pid))
        s.client.lost = Refused("TASK_OPERATION_FAILED", "this assignment is over: another worker has it")
        await s.failures(1)
        assert not is_there(int(pid))
        assert "is stopped, as another orchestrator was given its start" in [text for _, text in s.notes.events]


async def test_whose_agent_has_come_is_asked_once() -> None:
    async with stage(python(STAYS)) as s:
        s.client.status = TaskStatus.RUNNING
        s.ask(task_id="t1", number="7")
        s.ask(specifier="2", task_id="t2")  # of a gateway that does not tell assignments apart
        await s.lines(2)
        await s.until(lambda: s.client.claimed == ["t1@7"])
        for status in (TaskStatus.WAITING_INPUT, TaskStatus.RUNNING, TaskStatus.COMPLETED):
            s.client.say.send_nowait(becomes(status))
            s.client.say.send_nowait(becomes(status))
        await s.until(lambda: s.client.say.statistics().current_buffer_used == 0)
        await trio.testing.wait_all_tasks_blocked()
        assert {*s.client.claimed} == {"t1@7"}


async def test_other_agents_are_started_from_now_on() -> None:
    async with stage(python("print('old', flush=True)")) as s:
        s.ask(task_id="t1")
        await s.failures(1)
        s.orchestrator.replace({"echo": python("print('new', flush=True)")})
        with pytest.raises(ValueError, match="profiles have changed"):
            s.orchestrator.replace({"echo": python("", profile="gpu")})
        s.ask(task_id="t2")
        assert await s.lines(2) == [["old"], ["new"]]


async def test_there_are_never_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "WAIT_S", 0)
    async with stage(python(STAYS), python(STAYS, "single", most=1), most=3) as s:
        s.ask("single", "1", task_id="t1")
        await s.lines(1)
        s.ask("single", "2", task_id="t2")
        assert await s.failures(1) == [("t2", "1 agents 'single' run here, which is their limit")]
        s.ask(specifier="1", task_id="t3")
        s.ask(specifier="2", task_id="t4")
        await s.lines(3)
        s.ask(specifier="3", task_id="t5")
        assert (await s.failures(2))[1] == ("t5", "this orchestrator runs 3 agents, which is its limit")
        assert s.orchestrator.statistics().refused == 2


async def test_the_limit_holds_for_who_waits_while_the_file_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "WAIT_S", LONG_S)
    async with stage(python(STAYS, most=1), python(STAYS, "other")) as s:
        s.ask(specifier="0", task_id="t0")
        [[first, _]] = await s.lines(1)
        for number in range(1, 4):
            s.ask(specifier=str(number), task_id=f"t{number}")
            await s.until(lambda number=number: len(s.orchestrator._capacity) == number)  # type: ignore[misc]
        s.orchestrator.replace({"echo": python(STAYS, most=2), "other": python(STAYS, "other")})
        await s.lines(2)
        s.orchestrator.replace({"echo": python(f"print('new', flush=True);{STAYS}", most=2)})
        s.ask("other", task_id="t4")
        assert "has no agent 'other'" in (await s.failures(1))[0][1]
        assert s.orchestrator.statistics().running == 2
        os.kill(int(first), signal.SIGKILL)
        assert (await s.lines(3))[2] == ["new"]
        await s.lines(4)
        assert s.orchestrator.statistics().running == 2
        s.orchestrator.replace({"other": python(STAYS, "other")})
        assert "has no agent 'echo'" in (await s.failures(3))[2][1]


async def test_who_waits_for_room_gets_it_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "WAIT_S", LONG_S)
    async with stage(python(STAYS), most=1) as s:
        s.ask(specifier="0", task_id="t0")
        pids = [int((await s.lines(1))[0][0])]
        for number in range(1, 4):
            s.ask(specifier=str(number), task_id=f"t{number}")
            await s.until(lambda number=number: len(s.orchestrator._capacity) == number)  # type: ignore[misc]
        for number in range(1, 4):
            os.kill(pids[-1], signal.SIGKILL)
            pids.append(int((await s.lines(number + 1))[-1][0]))
        assert [agent for agent, text in s.notes.events if "process " in text and "ended" not in text] == [
            f"ag::w::echo::{number}" for number in range(4)
        ]
        assert [task_id for task_id, _ in s.client.failed] == ["t0", "t1", "t2"]


async def test_of_those_that_wait_for_room_the_most_urgent_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "WAIT_S", LONG_S)
    async with stage(python(STAYS), most=1) as s:
        s.ask(specifier="first", task_id="first")
        pids = [int((await s.lines(1))[0][0])]
        for number, (specifier, priority) in enumerate(
            [("low", "10"), ("normal", ""), ("high", "50"), ("strange", "-1"), ("urgent", "50")]
        ):
            s.ask(specifier=specifier, task_id=specifier, priority=priority)
            await s.until(lambda number=number: len(s.orchestrator._capacity) == number + 1)  # type: ignore[misc]
        for number in range(5):
            os.kill(pids[-1], signal.SIGKILL)
            pids.append(int((await s.lines(number + 2))[-1][0]))
        begun = [agent for agent, text in s.notes.events if text.startswith("process ")]
        assert [agent.rpartition("::")[2] for agent in begun] == ["first", "high", "urgent", "normal", "strange", "low"]


async def test_one_that_is_asked_for_anew_while_it_waits_is_started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "WAIT_S", LONG_S)
    async with stage(python(STAYS), most=1) as s:
        s.ask(specifier="0", task_id="t0")
        [[pid, _]] = await s.lines(1)
        s.ask(task_id="t1", token="a")
        await s.until(lambda: len(s.orchestrator._capacity) == 1)
        s.ask(task_id="t1", token="b")
        await s.until(lambda: sum("waits" in text for _, text in s.notes.events) == 2)
        os.kill(int(pid), signal.SIGKILL)
        _, [_, token] = await s.lines(2)
        assert token == "b"
        assert s.orchestrator.statistics().started == 2


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        ({"implementation": "unknown"}, "has no agent 'unknown'; it has broken, echo"),
        ({"implementation": "broken"}, "cannot run /nowhere/tool: there is no such file, seen from "),
        ({"implementation": "a::b"}, "no agent is called that"),
        ({"trigger": "\x00"}, "embedded null byte"),
    ],
)
async def test_what_cannot_be_started_is_told(ask: dict[str, Any], why: str) -> None:
    async with stage(python(STAYS), python("", "broken", command=("/nowhere/tool",))) as s:
        s.ask(task_id="t", **ask)
        [(task_id, reason)] = await s.failures(1)
        assert task_id == "t"
        assert why in reason
        s.ask(task_id="t2")
        await s.lines(1)  # and it goes on


async def test_a_version_is_started_as_its_agent() -> None:
    async with stage(python(STAYS)) as s:
        s.ask("echo:v2", task_id="t")
        await s.lines(1)
        assert s.notes.lines[0][0] == "ag::w::echo:v2::1"


async def test_a_gateway_that_knows_better() -> None:
    async with stage(python("")) as s:
        s.client.refusal = Refused("ERR_X", "it has ended")
        s.ask(task_id="t")
        await s.until(lambda: s.orchestrator.statistics().running == 0 and s.orchestrator.statistics().ended == 1)
        await s.until(lambda: s.client.asked == 2)  # it has not ended well, says the gateway
    assert not [text for _, text in s.notes.events if "could not be told" in text]


async def test_a_gateway_that_was_away_is_told_when_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_trio.orchestrator.startup_task.RETRY_DELAY_S", 0.01)
    async with stage(python("")) as s:
        s.client.refusal = ConnectionLost("cut", in_doubt=True)
        s.ask(task_id="t")
        await s.until(lambda: s.client.asked > 3)
        s.client.refusal = None
        assert [task_id for task_id, _ in await s.failures(1)] == ["t"]


async def test_a_gateway_that_does_not_come_back_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_trio.orchestrator.startup_task.RETRY_DELAY_S", 0.01)
    monkeypatch.setattr("aether_trio.orchestrator.startup_task.REPORT_S", 0.2)
    async with stage(python("")) as s:
        s.client.refusal = ConnectionLost("cut", in_doubt=True)
        s.ask(task_id="t")
        await s.until(lambda: any("could not be told that it has ended: cut" in text for _, text in s.notes.events))


async def test_the_second_signal_kills() -> None:
    code = "import os, signal, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(600)"
    with trio.fail_after(LONG_S):
        async with stage(python(code)) as s:
            s.ask()
            [[pid]] = await s.lines(1)
            async with trio.open_nursery() as nursery:

                async def kill() -> None:
                    await trio.sleep(0.1)
                    s.orchestrator.kill_all()

                nursery.start_soon(kill)
                s.orchestrator._processes["ag::w::echo::1"].scope.cancel()
                await s.failures(1)
            assert not is_there(int(pid))


DOCKER = """#!/bin/sh
# Runs the words behind the image here, under the container's name; `docker kill` ends it.
case "$1" in
run)
    shift
    while [ "$1" != example/echo:1 ]; do
        [ "$1" = --name ] && name="$2"
        shift
    done
    shift
    "$@" &
    echo $! > "{folder}/$name"
    trap '' TERM
    while ! wait $!; do [ -e "{folder}/$name" ] || exit 137; done ;;
kill)
    kill -9 "$(cat "{folder}/$2")"
    rm "{folder}/$2" ;;
esac
"""


async def test_a_container_that_disobeys_is_killed_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "docker"
    tool.write_text(DOCKER.format(folder=tmp_path), encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    code = "import os, signal, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(600)"
    spec = python(code, manner="docker", profile="docker", image="example/echo:1")
    async with stage(spec, grace_s=0.2) as s:
        s.ask()
        [[pid]] = await s.lines(1)
        assert [text.partition(": ")[2] for _, text in s.notes.events] == ["docker run example/echo:1"]
        assert is_there(int(pid))
    assert not is_there(int(pid))
    assert [name.name for name in tmp_path.iterdir()] == ["docker"], "docker kill was not asked for by name"
