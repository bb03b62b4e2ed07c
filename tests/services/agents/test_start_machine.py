"""Random steps of starts of one agent and their tokens, over days.

Orchestrators come, go, refuse and lie; agents come back; gateways restart; storage has outages.

What must hold after every step:

* An identity has one start that has not ended, at most, and one process is let in, at most.
* The latest token of a start that has not ended lets its agent in, however old it is. No token of
  one that has ended does.
* A start waits with an end in time, or its agent is connected, or it is paused. It is tried three
  times, and again three times for each participant that has it tried again.

TESTS_FULL=1 for many more examples.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from contextlib import nullcontext
from functools import partial
from itertools import count
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Status
from aether_trio.model.tasks.timed_transitions import TimeLimits
from aether_trio.services.tasks.handlers.dead_letters import DeadLetters
from aether_trio.services.tasks.transaction.startup import ATTEMPTS, GATEWAY_GRACE_MS
from aether_trio.testing.memory import MemoryLink, StreamEnded
from aether_trio.transport.link import Peer
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, message_to, open_world, pump, run_in_virtual_time
from tests.helpers.direct import Store
from tests.services.agents.cast import ECHO, echo
from tests.services.agents.ops import Op as AgentOp
from tests.services.agents.ops import operate as ask_agents
from tests.services.agents.ops import register, starter
from tests.services.tasks.peers import Op, create, operate
from tests.tasks.play import WholeClock, nothing_but_tasks, rare_looks

FULL = os.environ.get("TESTS_FULL") == "1"
EXAMPLES = 1_000 if FULL else 50
DAY_S = 86_400
LONG_S = 300.0
"""A wait of this length is long."""
BEGUN = ("running", "waiting_input")
ENDED = ("failed", "cancelled", "dlq", "completed", "rejected")
GRACE_MS = TimeLimits().start_grace_ms

ORCHESTRATORS = st.sampled_from(["1", "2"])
STEPS = st.one_of(
    st.tuples(st.just("wish"), st.sampled_from(["message", "launch", "task", "start"])),
    st.tuples(st.just("wish"), st.sampled_from(["message", "launch"])),
    *[st.tuples(st.just("arrive"), st.just(""))] * 2,
    st.tuples(st.just("go"), st.sampled_from(["cut", "clean"])),
    st.tuples(st.just("pause"), st.just("")),
    st.tuples(st.just("say"), st.sampled_from(["claim", "fail", "fail"])),
    st.tuples(st.just("orchestrator"), ORCHESTRATORS),
    *[st.tuples(st.just("manage"), st.sampled_from(["retry", "resume", "cancel", "requeue"]), st.integers(0, 2))] * 3,
    st.tuples(st.just("pass"), st.sampled_from([1.5, 7.0, 61.0, 1_900.0, 1.3 * DAY_S])),
    st.tuples(st.just("outage"), st.sampled_from([3.0, 70.0])),
    st.tuples(st.just("restart"), st.sampled_from([0.1, 30.0, 2.2 * DAY_S]), st.booleans()),
)


class Starts:
    """Drives a gateway, two orchestrators, an agent's processes, and a sender."""

    def __init__(self, world: World, nursery: trio.Nursery) -> None:
        self.world = world
        self.nursery = nursery
        self.clock = WholeClock()
        self.core: Core
        self.people: dict[str, MemoryLink] = {}
        self.agent: MemoryLink | None = None
        self.token = ""
        """That the agent has come with."""
        self.told: dict[str, list[str]] = defaultdict(list)
        """The tokens of each start, in their order."""
        self.asked: list[tuple[str, str]] = []
        """(orchestrator, start) as each was told."""
        self.retries = Counter[str]()
        self.story: list[str] = []
        self.hosts = count(1)

    # -- the gateway -------------------------------------------------------------------------------

    async def start(self) -> None:
        opened, self._over, self._closed = trio.Event(), trio.Event(), trio.Event()

        async def live() -> None:
            settings = {"log": {"retention_sweep_s": 1e9}, "grpc": {"write_timeout_s": 0}}
            async with self.world.open(clock=self.clock, **settings) as self.core:
                opened.set()
                await self._over.wait()
            self._closed.set()

        self.nursery.start_soon(live)
        await opened.wait()

    async def connect(self, hello: pb.UpstreamMessage) -> MemoryLink:
        """Raises StreamEnded."""
        link = MemoryLink()
        # Of one host some failures would be the last.
        link.peer = Peer(f"host-{next(self.hosts)}:1", "memory")
        self.nursery.start_soon(self.core.sessions.serve, link)
        link.send(hello)
        await link.next("connection_ack")
        return link

    async def begin(self) -> None:
        await self.start()
        for specifier in "12":
            self.people[specifier] = await self.connect(starter(specifier, "process"))
        self.people["asker"] = await self.connect(agent("w", "asker", "1"))
        await register(self.people["1"], "echo")

    async def settle(self) -> None:
        for _ in range(3):
            await pump(30)
            await self.core.tasks.engine.writes.flush()
        await pump(30)
        for specifier in "12":
            if specifier in self.people:
                link = self.people[specifier]
                for message in link.waiting("task_assignment"):
                    link._downstream.remove(message)
                    told = message.task_assignment
                    token = told.launch_params["auth_token"]
                    assert all(token not in tokens for tokens in self.told.values())
                    self.told[told.task_id].append(token)
                    self.asked.append((specifier, told.task_id))
        if self.agent is not None and self.agent.ended is not None:
            self.agent = None

    def rows(self) -> list[Any]:
        return self.world.databases["tasks"].query(
            "SELECT task_id, status, assigned_to, due_ms, disconnected_ms, retry_count, next_retry_ms, epoch FROM tasks "
            "WHERE task_type = 'agent_startup' ORDER BY created_ms, order_us"
        )

    def live(self) -> Any:
        """The row of the start that has not ended, if there is one."""
        ended = {"completed", "cancelled", "rejected", "dlq"}
        found = [row for row in self.rows() if row[1] not in ended and (row[1] != "failed" or row[6])]
        assert len(found) <= 1, f"two live starts: {found}"
        return found[0] if found else None

    # -- steps -------------------------------------------------------------------------------------

    async def step(self, step: tuple[Any, ...]) -> None:
        self.story.append(f"{self.clock.now_ms() % 10_000_000_000}: {step}")
        with trio.fail_after(10 * DAY_S if step[0] in ("pass", "outage", "restart") else 120):
            await getattr(self, f"_step_{step[0]}")(*step[1:])
        await trio.sleep(0.2)
        await self.settle()
        self.check()

    async def _step_wish(self, how: str) -> None:
        asker = self.people["asker"]
        if how == "message":
            asker.send(message_to(ECHO, b"come"))
            await trio.sleep(1.5)
        elif how == "launch":
            wanted = pb.AgentLaunchParams(workspace="w", specifier="1")
            for specifier in sorted({"1", "2"} & {*self.people}):
                there = self.agent is not None or self.live() is not None
                op = AgentOp.LAUNCH
                told = await ask_agents(self.people[specifier], op, implementation="echo", launch_params=wanted)
                assert told.success or there, told.error
        else:
            kind = "agent_startup" if how == "start" else "t"
            await create(asker, task_type=kind, assignment_mode=pb.TARGETED, target_agent_id=ECHO)

    async def _step_arrive(self, _: str) -> None:
        """Have every process connect, the oldest first: only the current one is admitted."""
        await self.settle()
        if self.agent is not None:
            return
        live = self.live()
        for task_id, tokens in self.told.items():
            for token in tokens:
                wanted = live is not None and task_id == live[0] and token == tokens[-1]
                refused: StreamEnded | None = None
                try:
                    link = await self.connect(echo(credentials={"token": token}))
                except StreamEnded as ended:
                    refused = ended
                if refused is not None:
                    assert refused.status is Status.UNAUTHENTICATED
                    assert not wanted, f"the agent of {live} is refused: {refused}"
                    continue
                assert live is not None, f"a process is let in though no start lives: {self.rows()}"
                assert task_id == live[0], f"a process of {task_id} is let in, and {live[0]} lives"
                self.agent, self.token = link, token
                await trio.sleep(0.05)
                await self.settle()
                assert self.agent is not None, f"the agent of {live} is sent away at once"
                live = self.live()
                assert live[1] in BEGUN, f"its agent has come, and the start is {live}"
                assert live[2] == ECHO
                return
        assert live is None or not self.told[live[0]], f"no process of {live} is let in"

    async def _step_go(self, how: str) -> None:
        if self.agent is not None:
            if how == "cut":
                self.agent.cut()
            else:
                self.agent.finish()
            self.agent = None
            while self.core.registry.holder(ECHO) is not None:
                await trio.sleep(0.001)

    async def _step_pause(self, _: str) -> None:
        live = self.live()
        if self.agent is not None and live is not None:
            wait = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT)
            assert (await operate(self.agent, Op.PAUSE, live[0], wait_spec=wait)).success

    async def _step_say(self, what: str) -> None:
        """Have the orchestrator that was assigned last report on its start, valid or not."""
        if self.asked and self.asked[-1][0] in self.people:
            specifier, task_id = self.asked[-1]
            op = Op.CLAIM if what == "claim" else Op.FAIL
            await operate(self.people[specifier], op, task_id, reason="because")
            if what == "fail" and self.agent is not None and self.token in self.told[task_id]:
                await self._step_go("cut")  # it has ended, as was said

    async def _step_orchestrator(self, specifier: str) -> None:
        """It goes, or comes anew."""
        link = self.people.pop(specifier, None)
        if link is None:
            self.people[specifier] = await self.connect(starter(specifier, "process"))
        else:
            link.cut()
            while self.core.registry.holder(f"orc::o::{specifier}") is not None:
                await trio.sleep(0.001)

    async def _step_manage(self, verb: str, number: int) -> None:
        rows = self.rows()[-3:]
        if rows:
            task_id, status, *_, retry_ms, _ = rows[number % len(rows)]
            ended = status in ENDED and not retry_ms
            if verb == "requeue":
                self.retries[task_id] += await DeadLetters(self.core.tasks.engine).requeue(task_id, "operator")
            else:
                op = {"retry": Op.RETRY, "resume": Op.RESUME, "cancel": Op.CANCEL}[verb]
                told = await operate(self.people["asker"], op, task_id)
                self.retries[task_id] += told.success and verb == "retry"
            if ended and self.live() is not None and self.live()[0] == task_id:
                self.told[task_id].clear()  # its tokens have ended with it

    async def _step_pass(self, seconds: float) -> None:
        with rare_looks(self.core) if seconds >= LONG_S else nullcontext():
            await trio.sleep(seconds)

    async def _step_outage(self, seconds: float) -> None:
        """The time limit for the agent to connect begins again."""
        await self.settle()
        before = self.live()
        tasks = self.world.databases["tasks"]
        tasks.failing = True
        await trio.sleep(seconds)
        tasks.failing = False
        await trio.sleep(2)
        await self.settle()
        if before is not None and before[1] in ("starting", *BEGUN) and not before[4]:
            after = self.live()
            assert after is not None
            assert (after[0], after[1], after[7]) == (before[0], before[1], before[7])

    async def _step_restart(self, away_s: float, crash: bool) -> None:
        """The agent and the orchestrators come back, with what they have."""
        await self.settle()
        before, there = self.live(), self.agent is not None
        specifiers = [name for name in self.people if name != "asker"]
        if crash:
            for database in self.world.databases.values():
                database.failing = True
        self._over.set()
        await self._closed.wait()
        self.people.clear()
        self.agent = None
        await trio.sleep(away_s)
        await self.start()
        self.people["asker"] = await self.connect(agent("w", "asker", "1", resume_session_id="before"))
        for specifier in specifiers:
            self.people[specifier] = await self.connect(starter(specifier, "process", resume_session_id="before"))
        if there and before is not None:
            await trio.sleep(2)
            self.agent = await self.connect(echo(credentials={"token": self.token}, resume_session_id="before"))
            await trio.sleep(0.1)
            await self.settle()
            after = self.live()
            assert after is not None
            assert (after[0], after[1]) == (before[0], before[1])
            assert self.agent is not None

    # -- laws --------------------------------------------------------------------------------------

    def check(self) -> None:
        live = self.live()
        if live is not None:
            task_id, status, name, due_ms, missing_ms, *_ = live
            here = self.core.registry.holder(ECHO) is not None
            if status == "running":
                assert name == ECHO
                assert here != bool(missing_ms), f"the agent is {'there' if here else 'away'}: {live}"
            if status == "pending":
                assert not {"1", "2"} & {*self.people}, f"a start waits, and an orchestrator is there: {live}"
            if status == "starting":
                assert name.removeprefix("orc::o::") in self.people
                assert not here
            assert due_ms > 0 or here or status not in ("pending", "starting", "running", "failed"), f"for ever: {live}"
            grace_ms = GRACE_MS + GATEWAY_GRACE_MS
            if missing_ms and status == "running":
                assert due_ms <= missing_ms + grace_ms
        for task_id, *_, retry_count, _retry_ms, _epoch in self.rows():
            assert retry_count <= ATTEMPTS * (1 + self.retries[task_id]), f"{task_id}: {retry_count} attempts"
        for task_id, times in Counter(task_id for _, task_id in self.asked).items():
            # Also told again: when an orchestrator comes anew, and when it goes and the next one is
            # asked.
            steps = sum("orchestrator" in one or "restart" in one for one in self.story)
            assert times <= ATTEMPTS * (1 + self.retries[task_id]) + 2 * steps, f"{task_id} was told of {times} times"


async def run(store: Store, steps: list[tuple[Any, ...]]) -> None:
    with nothing_but_tasks(), open_world(store) as world:
        async with trio.open_nursery() as nursery:
            starts = Starts(world, nursery)
            try:
                await starts.begin()
                for step in [("wish", "message"), *steps]:
                    await starts.step(step)
            except (AssertionError, StreamEnded, trio.TooSlowError) as error:
                error.add_note("\n".join(starts.story))
                raise
            nursery.cancel_scope.cancel()


@pytest.mark.timeout(3_600 if FULL else 900)  # it shrinks for up to five minutes
def test_an_identity_has_one_start_and_its_token_lasts_as_long(store: Store) -> None:
    @settings(max_examples=store.examples(EXAMPLES), print_blob=True, deadline=None)
    @given(st.lists(STEPS, min_size=8, max_size=25))
    def play(steps: list[tuple[Any, ...]]) -> None:
        run_in_virtual_time(partial(run, store, steps))

    play()


CASES: dict[str, list[tuple[Any, ...]]] = {
    "an agent that has come anew is there when its paused start is resumed": [
        ("arrive", ""),
        ("pause", ""),
        ("go", "cut"),
        ("arrive", ""),
        ("manage", "resume", 0),
        ("pass", 7.0),
        ("restart", 0.1, False),
    ],
    "a start that has ended and is tried again lets no process in that it had before": [
        ("arrive", ""),
        ("go", "cut"),
        ("orchestrator", "1"),
        ("orchestrator", "2"),
        ("pass", 7.0),
        ("manage", "retry", 0),
        ("arrive", ""),
    ],
    "the process of another attempt has its grace, though the one before was known to have ended": [
        ("arrive", ""),
        ("say", "fail"),
        ("manage", "retry", 0),
        ("arrive", ""),
        ("restart", 0.1, False),
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_it_stays_found(store: Store, name: str) -> None:
    run_in_virtual_time(partial(run, store, CASES[name]))
