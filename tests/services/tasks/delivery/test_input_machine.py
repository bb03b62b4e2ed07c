"""Each input is used once, by the oldest wait that it matches, whatever happens.

Steps are inputs, waits, repeated waits, outages of the tasks database and restarts.

TESTS_FULL=1 for many more examples.
"""

from __future__ import annotations

import json
import os
from contextlib import AsyncExitStack
from functools import partial

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.clocks import VirtualClock
from tests.helpers.core import (
    World,
    agent,
    barrier,
    connect,
    deadlock_is_an_error,
    message_to,
    open_world,
    run_in_virtual_time,
)
from tests.helpers.direct import Store
from tests.services.tasks.peers import Op, answer, get, operate, own

FULL = os.environ.get("TESTS_FULL") == "1"
EXAMPLES = 1_000 if FULL else 60
FORMS = st.sampled_from(["a", "b"])
MATCHES = st.sampled_from(["a", "b", ""])
"""What a wait matches; "" is anything."""

STEPS = st.one_of(
    st.tuples(st.just("give"), FORMS),
    st.tuples(st.just("give"), FORMS),
    st.tuples(st.just("pause"), MATCHES),
    st.tuples(st.just("pause"), MATCHES),
    st.tuples(st.just("again"), st.just("")),
    st.tuples(st.just("resume"), st.just("")),
    st.tuples(st.just("end"), st.just("")),
    st.tuples(st.just("outage"), st.just("")),
    st.tuples(st.just("back"), st.just("")),
    st.tuples(st.just("restart"), st.sampled_from(["crash", "clean"])),
)

RUNNING, WAITING, FAILED = pb.TASK_STATUS_RUNNING, pb.TASK_STATUS_WAITING_INPUT, pb.TASK_STATUS_FAILED


class Model:
    """One task.

    `coming` are inputs in the log that the tasks database, which is away, has not seen.
    """

    def __init__(self) -> None:
        self.status = RUNNING
        self.match = ""
        self.kept: list[str] = []
        self.coming: list[str] = []

    def arrive(self) -> None:
        for form in self.coming:
            if self.status == WAITING and self.match in ("", form):
                self.status = RUNNING
            else:
                self.kept.append(form)
        self.coming.clear()

    def pause(self, match: str) -> None:
        self.status, self.match = WAITING, match
        for place, form in enumerate(self.kept):
            if match in ("", form):
                del self.kept[place]
                self.status = RUNNING
                return


class Machine:
    """A gateway, the participant whose task it is, and the model beside it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.clock = VirtualClock(trio.current_time)
        self.model = Model()
        self.stack = AsyncExitStack()
        self.peer: MemoryLink
        self.task_id = ""
        self.said: tuple[str, str] | None = None
        """The latest PAUSE of this assignment: its request id, and what it matches."""
        self.number = 0

    @property
    def away(self) -> bool:
        return self.world.databases["tasks"].failing

    async def start(self, *, back: bool = False) -> None:
        """`back`: the participant goes on with its task, whose grace window would end it."""
        core = await self.stack.enter_async_context(self.world.open(clock=self.clock))
        hello = agent("w", "c", "1", resume_session_id="before" if back else "")
        self.peer = await self.stack.enter_async_context(connect(core, hello))

    async def begin(self) -> None:
        self.task_id = await own(self.peer)

    async def step(self, what: str, value: str) -> None:
        if what == "give":
            payload = json.dumps({"metadata": {"form": value}}).encode()
            self.peer.send(message_to(f"tk::w::{self.task_id}::input", payload))
            self.model.coming.append(value)
            await barrier(self.peer)
        elif what == "outage":
            self.world.databases["tasks"].failing = True
        elif what == "back":
            self.world.databases["tasks"].failing = False
        elif what == "restart":
            if value == "crash":
                self.world.fail()
            await self.stack.aclose()
            await self.start(back=True)
        elif not self.away:
            await getattr(self, f"_{what}")(value)
        if not self.away:
            await trio.sleep(5)
            self.model.arrive()
            await self.compare()

    async def _pause(self, match: str) -> None:
        self.number += 1
        self.said = (f"pause-{self.number}", match)
        await self._say(*self.said)
        self.model.pause(match)

    async def _again(self, _: str) -> None:
        if self.said is not None:
            await self._say(*self.said)

    async def _say(self, request_id: str, match: str) -> None:
        while self.peer.waiting("task_op"):
            await self.peer.next("task_op")
        wait = pb.WaitSpec(reason=1, input_match={"form": match} if match else {})
        op = Op(op=Op.PAUSE, task_id=self.task_id, request_id=request_id, wait_spec=wait)
        self.peer.send(pb.UpstreamMessage(task_op=op))
        told = await answer(self.peer, "task_op", request_id)
        assert told.success, told.error

    async def _resume(self, _: str) -> None:
        assert (await operate(self.peer, Op.RESUME, self.task_id)).success
        self.model.status = RUNNING

    async def _end(self, _: str) -> None:
        """It fails, is given an input that nothing wants, and is tried again."""
        assert (await operate(self.peer, Op.FAIL, self.task_id, reason="no")).success
        self.peer.send(message_to(f"tk::w::{self.task_id}::input", b'{"metadata": {"form": "a"}}'))
        await barrier(self.peer)
        await trio.sleep(5)
        assert (await operate(self.peer, Op.RETRY, self.task_id)).success
        assert (await operate(self.peer, Op.CLAIM, self.task_id)).success
        self.model.status = RUNNING
        self.model.kept.clear()
        self.said = None

    async def compare(self) -> None:
        assert (await get(self.peer, self.task_id)).status == self.model.status
        found = self.world.databases["tasks"].query("SELECT metadata FROM task_inputs ORDER BY log_offset")
        assert [json.loads(metadata)["form"] for (metadata,) in found] == self.model.kept


async def run(store: Store, steps: list[tuple[str, str]]) -> None:
    with open_world(store) as world:
        async with deadlock_is_an_error():
            machine = Machine(world)
            await machine.start()
            try:
                await machine.begin()
                for step in [*steps, ("back", ""), ("restart", "crash")]:
                    await machine.step(*step)
            finally:
                await machine.stack.aclose()


@pytest.mark.timeout(3_600 if FULL else 300)
def test_each_input_is_used_once(store: Store) -> None:
    @settings(max_examples=store.examples(EXAMPLES), print_blob=True, deadline=None)
    @given(st.lists(STEPS, min_size=3, max_size=25))
    def play(steps: list[tuple[str, str]]) -> None:
        run_in_virtual_time(partial(run, store, steps))

    play()
