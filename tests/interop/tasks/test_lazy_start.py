"""Scenarios 87, 88 and 91: agents started by tasks, messages and orchestrators."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scitrera_aether_client.proto import aether_pb2 as pb

from tests.helpers.sdk import LIMIT_S, Peer, World, answered, in_asyncio, run_async
from tests.interop.tasks import steps
from tests.interop.tasks.steps import TARGETED


async def registered(world: World, orchestrator: Peer, name: str, **params: str) -> None:
    """An implementation that this world's orchestrators can start."""
    profile = f"profile-{world.run}"
    answered(await orchestrator.client.register_agent(name, profile=profile, launch_params=params), "register")


@in_asyncio
async def test_87_a_task_for_an_agent_that_is_not_running(world: World) -> None:
    name = f"lazy-{world.run}"
    orchestrator, creator = await world.open(world.orchestrator(), world.agent("c"))
    await registered(world, orchestrator, name, voice="low", mood="good")
    target = f"ag::{world.ws}::{name}::one"
    response = await steps.ask(
        creator, world, mode=TARGETED, target_agent_id=target, launch_param_overrides={"voice": "loud"}, payload=b"do"
    )
    assert (response.success, response.status) == (True, "orchestration_triggered")
    asked = await steps.assignment(orchestrator)
    assert (asked.task_type, asked.target_implementation) == ("agent_startup", name)
    assert (asked.workspace, asked.specifier, asked.profile) == (world.ws, "one", f"profile-{world.run}")
    params = dict(asked.launch_params)
    assert params.pop("auth_token")
    assert params == {"profile": asked.profile, "voice": "loud", "mood": "good"}
    credentials = {"token": asked.launch_params["auth_token"]}
    (worker,) = await world.open(world.agent("one", impl=name, credentials=credentials))
    given = await steps.assignment(worker)
    assert (given.task_id, given.payload) == (response.task_id, b"do")
    assert (await steps.op(worker, "claim", given.task_id)).status == pb.TASK_STATUS_RUNNING
    await steps.op(worker, "complete", given.task_id)
    assert orchestrator.assignments.empty()


@in_asyncio
async def test_88_a_message_to_an_agent_that_is_not_running(world: World) -> None:
    name = f"lazy-{world.run}"
    orchestrator, sender = await world.open(world.orchestrator(), world.agent("s"))
    await registered(world, orchestrator, name)
    target = f"ag::{world.ws}::{name}::two"
    await sender.send(target, b"wake")
    asked = await steps.assignment(orchestrator)
    for number in range(3):
        await sender.send(target, b"%d" % number)
    await sender.barrier()
    await asyncio.sleep(2.5)  # in which a second look at the messages comes
    assert orchestrator.assignments.empty(), "a second start of the same agent"
    (worker,) = await world.open(
        world.agent("two", impl=name, credentials={"token": asked.launch_params["auth_token"]})
    )
    for payload in (b"wake", b"0", b"1", b"2"):
        assert (await worker.take()).payload == payload


class EchoOrchestrator:
    """`scitrera_aether_client.echo_test`: the SDK's orchestrator in a process."""

    def __init__(self, gateway: str, log: Path) -> None:
        self._log = log
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AETHER_")}
        program = (
            "import logging, sys; logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n"
            "from scitrera_aether_client.echo_test.echo_orchestrator import main; main()"
        )
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-c", program],
                env={**environment, "AETHER_GATEWAY": gateway.split(",", maxsplit=1)[0]},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def pids(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"started with PID (\d+)", self.said)]

    def until(self, holds: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + 2 * LIMIT_S
        while not holds():
            assert self.process.poll() is None, f"it has ended:\n{self.said}"
            assert time.monotonic() < deadline, f"{what}: not in time:\n{self.said}"
            time.sleep(0.05)


@contextmanager
def echo_orchestrator(gateway: str, folder: Path) -> Iterator[EchoOrchestrator]:
    orchestrator = EchoOrchestrator(gateway.split(",", maxsplit=1)[0], folder / "orchestrator.log")
    try:
        orchestrator.until(lambda: "Connected to gateway" in orchestrator.said, "it connects")
        yield orchestrator
    finally:
        orchestrator.process.send_signal(signal.SIGINT)
        try:
            orchestrator.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            orchestrator.process.kill()
            orchestrator.process.wait()
        for pid in orchestrator.pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def test_91_s_the_orchestrator_of_the_sdk(gateway: str, tmp_path: Path) -> None:
    """A message starts a real process, and again after kill -9."""

    async def write(payload: bytes, *, register: bool = False) -> None:
        async with World(gateway) as world:
            admin, sender = await world.open(world.orchestrator(), world.agent("s"))
            if register:
                answered(await admin.client.register_agent("echo-agent", profile="echo"), "register")
            await sender.send(f"ag::echo-{tmp_path.name}::echo-agent::x", payload)
            await sender.barrier()

    with echo_orchestrator(gateway, tmp_path) as orchestrator:
        run_async(lambda: write(b"good morning", register=True))
        orchestrator.until(lambda: "Payload: good morning" in orchestrator.said, "the agent has the message")
        (first,) = orchestrator.pids
        os.kill(first, signal.SIGKILL)
        orchestrator.until(lambda: "exited with code -9" in orchestrator.said, "the orchestrator sees its end")
        run_async(lambda: write(b"good evening"))
        orchestrator.until(lambda: "Payload: good evening" in orchestrator.said, "the next one has the message")
        assert len(orchestrator.pids) == 2
        assert orchestrator.pids[1] != first
