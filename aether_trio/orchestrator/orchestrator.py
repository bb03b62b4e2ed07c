"""The orchestrator: takes what the gateway asks for, runs it, and says what has become of it.

    client.starts ──▶ one task for each start ──▶ run_child ──▶ its end is told: FAIL with a reason

The gateway takes a FAIL for what it is: the failure of a start whose agent has not come (it tries again, elsewhere perhaps), and nothing
at all when the agent had come, because then the agent's own connection has told how it ended.

Invariants: there is one process for each identity, and a new start of an identity waits until the old one is gone; there are never more
than `most` of them, nor more than an agent's own limit, and of those that wait for room the most urgent gets it, in turn; when `run` ends, in whatever way, all are gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from aether_trio.client import AetherError, OrchestratorClient
from aether_trio.client.jobs.manager import LOST
from aether_trio.client.operations.agents import Registration
from aether_trio.client.operations.enums import TaskStatus
from aether_trio.client.operations.task_events import StatusChanged
from aether_trio.client.operations.task_values import Assignment
from aether_trio.model.identity import IdentityError
from aether_trio.orchestrator.agents_file import AgentSpec
from aether_trio.orchestrator.child import kill_group, run_child
from aether_trio.orchestrator.launches import Start, Surroundings, cannot_run, launch_of
from aether_trio.orchestrator.reporter import Reporter

DEFAULT_MOST: Final = 16
DEFAULT_GRACE_S: Final = 10.0
ROOM_S: Final = 30.0
"""For so long a start waits for room before it is refused, and another orchestrator is asked: agents that have nothing to do may leave."""
AGAIN_S: Final = 0.5
OVER: Final = frozenset({TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED})
LOOK_S: Final = 30.0
"""Between two looks whether a start whose agent has not come is still ours: its gateway may have lost it to another one."""
TELL_S: Final = 60.0
"""For the gateway to hear of a failure. A start that it does not hear of fails by itself, later."""


@dataclass(frozen=True, slots=True)
class OrchestratorLimits:
    """How many processes at once, and how long one has to obey SIGTERM."""

    most: int = DEFAULT_MOST
    grace_s: float = DEFAULT_GRACE_S


@dataclass(frozen=True, slots=True)
class OrchestratorStatistics:
    """Since it was made. `refused` were not started, `failed` could not be, `ended` have been running."""

    running: int
    started: int
    refused: int
    failed: int
    ended: int


@dataclass(slots=True, eq=False)
class _Running:
    """A start that is under way, or runs."""

    start: Start
    pid: int = 0
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    watch: trio.CancelScope = field(default_factory=trio.CancelScope)
    gone: trio.Event = field(default_factory=trio.Event)
    replaced: bool = False


@dataclass(slots=True, eq=False)
class _Waiting:
    """A start for which there is no room. `replaced`: the gateway has asked for the same agent anew."""

    start: Start
    room: trio.Event = field(default_factory=trio.Event)
    replaced: bool = False


class Orchestrator:
    """See the module docstring."""

    def __init__(
        self,
        agents: Mapping[str, AgentSpec],
        surroundings: Surroundings,
        reporter: Reporter,
        limits: OrchestratorLimits | None = None,
    ) -> None:
        self._agents = agents
        self._surroundings = surroundings
        self._reporter = reporter
        self._limits = limits or OrchestratorLimits()
        self._running: dict[str, _Running] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._started = self._refused = self._failed = self._ended = 0

    @property
    def profiles(self) -> list[str]:
        """What it can start: to be said when it connects."""
        return sorted({spec.profile for spec in self._agents.values()})

    @property
    def described(self) -> str:
        """What it can start, for a person."""
        names = ", ".join(sorted(self._agents))
        return f"{names} (profile{'s' if len(self.profiles) > 1 else ''} {', '.join(self.profiles)})"

    def replace(self, agents: Mapping[str, AgentSpec]) -> None:
        """From now on start these, of the same profiles. What runs goes on. Raises ValueError for other profiles."""
        before, self._agents = self._agents, agents
        if {spec.profile for spec in agents.values()} != {spec.profile for spec in before.values()}:
            self._agents = before
            raise ValueError("its profiles are others; they are told to the gateway once, when the orchestrator starts")
        self._give_room()  # a limit may be higher

    def kill_all(self) -> None:
        """Whoever is being stopped has been given enough time."""
        for running in self._running.values():
            if running.pid:
                kill_group(running.pid)

    def statistics(self) -> OrchestratorStatistics:
        """What has happened so far."""
        return OrchestratorStatistics(len(self._running), self._started, self._refused, self._failed, self._ended)

    async def register(self, client: OrchestratorClient) -> None:
        """Tell the gateway of all its agents. What they were registered with before is replaced. Raises AetherError."""
        for spec in self._agents.values():
            await client.registry.register(
                Registration(
                    implementation=spec.implementation,
                    orchestrator_profile=spec.profile,
                    description=spec.description,
                    launch_params={**spec.params, "profile": spec.profile},
                )
            )

    async def run(self, client: OrchestratorClient, *, on_serving: Callable[[], None] = lambda: None) -> None:
        """Start what the open `client` is asked for, until cancelled. Raises AetherError when the connection has ended for good."""
        async with trio.open_nursery() as nursery:
            on_serving()
            async for assignment in client.starts:
                nursery.start_soon(self._serve, client, assignment, nursery)

    # -- one start ------------------------------------------------------------------------------------------------

    async def _serve(self, client: OrchestratorClient, assignment: Assignment, nursery: trio.Nursery) -> None:
        try:
            start = Start.of(assignment)
        except IdentityError as error:
            self._reporter.event("", f"task {assignment.task_id} names no agent: {error}")
            await self._tell(client, assignment.reference, "", f"no agent is called that: {error}")
            return
        name = start.identity.text
        if self._spec_of(start) is None:
            await self._refuse(client, start, self._unknown(start))
            return
        before = self._running.get(name)
        if before is not None and (before.start.task_id, before.start.token) == (start.task_id, start.token):
            return  # it was said twice
        while before is not None:
            # The gateway knows of no such agent any more: it hangs, or has lost its connection for good.
            self._reporter.event(name, "is wanted again; the old process is stopped first")
            before.replaced = True
            before.scope.cancel()
            await before.gone.wait()
            before = self._running.get(name)
        full = await self._wait_for_room(start)
        if full is None:
            return
        spec = self._spec_of(start)  # as the file is by now
        if full or spec is None:
            await self._refuse(client, start, full or self._unknown(start))
            return
        running = self._running[name] = _Running(start)
        nursery.start_soon(self._watch, client, running)
        try:
            reason = await self._run(spec, running)
        finally:
            running.watch.cancel()  # which nobody waits for: it may have to say goodbye to a gateway that is away
            running.pid = 0
            del self._running[name]
            running.gone.set()
            self._give_room()
        if not running.replaced:
            await self._tell(client, start.reference, name, reason)

    def _spec_of(self, start: Start) -> AgentSpec | None:
        """How it is started; of "name:version" also as "name"."""
        implementation = start.identity.implementation
        return self._agents.get(implementation) or self._agents.get(implementation.rpartition(":")[0])

    def _unknown(self, start: Start) -> str:
        known = ", ".join(sorted(self._agents))
        return f"this orchestrator has no agent {start.identity.implementation!r}; it has {known}"

    async def _refuse(self, client: OrchestratorClient, start: Start, why: str) -> None:
        self._refused += 1
        self._reporter.event(start.identity.text, f"is not started: {why}")
        await self._tell(client, start.reference, start.identity.text, why)

    # -- room -----------------------------------------------------------------------------------------------------

    def _full(self, start: Start) -> str:
        """Why no further one of these can run now; "" when it can, or when the file has none of these any more."""
        if len(self._running) >= self._limits.most:
            return f"this orchestrator runs {len(self._running)} agents, which is its limit"
        spec = self._spec_of(start)
        if spec is None or not spec.most:
            return ""
        specs = (self._spec_of(one.start) for one in self._running.values())
        of_its_kind = sum(1 for one in specs if one is spec)
        if of_its_kind >= spec.most:
            return f"{of_its_kind} agents {spec.implementation!r} run here, which is their limit"
        return ""

    async def _wait_for_room(self, start: Start) -> str | None:
        """Until this one may run, "" then; or why it may not after ROOM_S; None when it is asked for anew meanwhile."""
        name = start.identity.text
        older = self._waiting.get(name)
        if older is not None:
            older.replaced = True
            older.room.set()
        full = self._full(start)
        if not full:
            return ""
        self._reporter.event(name, f"waits, as {full}")
        waiting = self._waiting[name] = _Waiting(start)
        try:
            with trio.move_on_after(ROOM_S):
                while self._full(start) and not waiting.replaced:
                    waiting.room = trio.Event()
                    await waiting.room.wait()
        finally:
            if self._waiting.get(name) is waiting:
                del self._waiting[name]
            self._give_room()  # which it may have been given, and not take
        return None if waiting.replaced else self._full(start)

    def _give_room(self) -> None:
        """Wake the most urgent of those that wait and may run now, the first of several; it wakes the next one."""
        for waiting in sorted(self._waiting.values(), key=lambda one: -one.start.priority):
            if not self._full(waiting.start) and not waiting.room.is_set():
                waiting.room.set()
                return

    async def _run(self, spec: AgentSpec, running: _Running) -> str:
        """Run it to its end; what the gateway is told."""
        name = running.start.identity.text
        launch = launch_of(spec, running.start, self._surroundings)
        report = self._reporter

        def started(pid: int) -> None:
            self._started += 1
            running.pid = pid
            report.event(
                name, f"process {pid}: {' '.join(spec.command) if not spec.image else f'docker run {spec.image}'}"
            )

        reason = ""
        with running.scope:
            try:
                ended = await run_child(
                    launch, on_line=partial(report.line, name), on_started=started, grace_s=self._limits.grace_s
                )
                self._ended += 1
                reason = f"its process {ended}"
                report.event(name, str(ended))
            except (OSError, ValueError) as error:
                # ValueError: there is a zero byte in what somebody wants the agent to be told.
                self._failed += 1
                reason = cannot_run(launch, error)
                report.event(name, reason)
            finally:
                if not reason:
                    report.event(name, "was stopped")
        return reason or "its process was stopped"

    async def _watch(self, client: OrchestratorClient, running: _Running) -> None:
        """Stop the process when its start is over for this orchestrator.

        The start is cancelled, has failed, or was given to another orchestrator.
        """
        with running.watch:
            while True:
                try:
                    try:
                        await self._follow(client, running)
                    except AetherError as error:
                        if error.retryable:
                            raise
                        # This orchestrator may not see what was given to another one.
                        await self._look(client, running)
                    return  # the client is closed, or the start is out of sight: then its process is let run
                except AetherError as error:
                    if not error.retryable:
                        return
                    await trio.sleep(AGAIN_S)

    async def _follow(self, client: OrchestratorClient, running: _Running) -> None:
        """Look at a start, and again at all that happens to it, over one connection. Raises AetherError."""
        task_id = running.start.task_id
        async with client.tasks.follow(task_id) as events:
            status = (await client.tasks.get(task_id)).status
            while True:
                self._judge(running, status)
                if status not in OVER:
                    await self._look(client, running)
                with trio.move_on_after(math.inf if status is TaskStatus.RUNNING or status in OVER else LOOK_S):
                    async for event in events:
                        if isinstance(event.event, StatusChanged):
                            status = event.event.to_status
                            break
                    else:
                        return

    async def _look(self, client: OrchestratorClient, running: _Running) -> None:
        """Ask whether the start is still the one that this process was made for. Raises AetherError.

        While this orchestrator was away it may have been given to another one, whose process is the agent now, or is to be.
        """
        start = running.start
        if start.reference == start.task_id:
            return  # the gateway does not tell assignments apart
        try:
            await client.tasks.claim(start.reference)
        except AetherError as error:
            if LOST not in error.message:
                raise
            self._reporter.event(start.identity.text, "is stopped, as another orchestrator was given its start")
            running.scope.cancel()

    def _judge(self, running: _Running, status: TaskStatus) -> None:
        if status in (TaskStatus.CANCELLED, TaskStatus.FAILED):
            # Its token is no good any more, so an agent that had come cannot come back, and another one may run elsewhere.
            word = "was cancelled" if status is TaskStatus.CANCELLED else "has failed"
            self._reporter.event(running.start.identity.text, f"is stopped, as its start {word}")
            running.scope.cancel()

    async def _tell(self, client: OrchestratorClient, reference: str, name: str, reason: str) -> None:
        """The start has failed. The gateway may know better: then it says so, and that is all right.

        It is told again when the connection was lost: nobody else knows, and until it is heard a message may wait for the old process.
        """
        error: AetherError | None = None
        with trio.move_on_after(TELL_S):
            while True:
                try:
                    await client.tasks.within(TELL_S).fail(reference, reason=reason)
                except AetherError as raised:
                    error = raised
                    if not raised.retryable:
                        return
                    await trio.sleep(AGAIN_S)
                else:
                    return
        why = "" if error is None else f": {error.message}"
        self._reporter.event(name, f"the gateway could not be told that it has ended{why}")
