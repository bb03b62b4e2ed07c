"""Runs the agents that a gateway asks for, one process for each identity.

    client.starts ──▶ one task for each start ──▶ run_process ──▶ report_end: FAIL, COMPLETE

The gateway takes a FAIL as the failure of a start whose agent has not connected: it tries again,
perhaps with another orchestrator. For an agent that has connected, FAIL and COMPLETE say how its
process has ended. REJECT gives a start back for which there is no room here.

Invariants: one process runs for each identity, and a new start of an identity waits until the old
process has ended. All processes have ended when `run` returns or raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from aether_trio.client import OrchestratorClient
from aether_trio.client.operations.agents import Registration
from aether_trio.client.operations.task_values import Assignment
from aether_trio.model.identity import IdentityError
from aether_trio.orchestrator.agents_file import AgentSpec
from aether_trio.orchestrator.capacity import Capacity
from aether_trio.orchestrator.launch_plan import AgentStart, GatewayAddresses, cannot_run, plan_launch
from aether_trio.orchestrator.process_group import kill_group, run_process
from aether_trio.orchestrator.reporter import Reporter
from aether_trio.orchestrator.startup_task import EndReport, report_end, watch_startup_task

DEFAULT_MOST: Final = 16
DEFAULT_GRACE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class OrchestratorLimits:
    """The most agent processes at once, and the seconds each has to obey SIGTERM."""

    most: int = DEFAULT_MOST
    grace_s: float = DEFAULT_GRACE_S


@dataclass(frozen=True, slots=True)
class OrchestratorStatistics:
    """Counts an orchestrator's agent processes since the supervisor was made."""

    running: int
    started: int
    refused: int  # starts that got no process
    failed: int  # processes that could not be started
    ended: int


@dataclass(slots=True, eq=False)
class _AgentProcess:
    """An agent's process that runs or is about to start."""

    start: AgentStart
    pid: int = 0
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    replaced: bool = False  # the gateway has asked for the same agent again


class AgentSupervisor:
    """Starts, stops and reports the agent processes of one orchestrator."""

    def __init__(
        self,
        agents: Mapping[str, AgentSpec],
        addresses: GatewayAddresses,
        reporter: Reporter,
        limits: OrchestratorLimits | None = None,
    ) -> None:
        self._agents = agents
        self._addresses = addresses
        self._reporter = reporter
        self._limits = limits or OrchestratorLimits()
        self._processes: dict[str, _AgentProcess] = {}
        self._capacity = Capacity(
            self._limits.most, lambda: [process.start for process in self._processes.values()], self._spec_of
        )
        self._started = self._refused = self._failed = self._ended = 0

    @property
    def profiles(self) -> list[str]:
        """The launch profiles of all agents, with which the orchestrator connects."""
        return sorted({spec.profile for spec in self._agents.values()})

    @property
    def agents(self) -> list[str]:
        """The implementations of all agents, which the orchestrator tells the gateway."""
        return sorted(self._agents)

    @property
    def described(self) -> str:
        """The agents and launch profiles in one line, for a person."""
        names = ", ".join(sorted(self._agents))
        return f"{names} (profile{'s' if len(self.profiles) > 1 else ''} {', '.join(self.profiles)})"

    def replace(self, agents: Mapping[str, AgentSpec]) -> None:
        """Start these agents from now on. Raises ValueError for other profiles."""
        before, self._agents = self._agents, agents
        if {spec.profile for spec in agents.values()} != {spec.profile for spec in before.values()}:
            self._agents = before
            raise ValueError(
                "the launch profiles have changed; restart the orchestrator, which sends them when it connects"
            )
        self._capacity.changed()  # a limit may be higher

    def kill_all(self) -> None:
        """Kill all agent processes, also those that are being stopped."""
        for process in self._processes.values():
            if process.pid:
                kill_group(process.pid)

    def statistics(self) -> OrchestratorStatistics:
        """Return how many agent processes run, and how starts have ended."""
        return OrchestratorStatistics(len(self._processes), self._started, self._refused, self._failed, self._ended)

    async def register(self, client: OrchestratorClient) -> None:
        """Register all agents with the gateway, again if need be. Raises AetherError."""
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
        """Start agents for `client` until cancelled; raise AetherError when it has ended."""
        async with trio.open_nursery() as nursery:
            on_serving()
            async for assignment in client.starts:
                nursery.start_soon(self._serve, client, assignment, nursery)

    async def _serve(self, client: OrchestratorClient, assignment: Assignment, nursery: trio.Nursery) -> None:
        try:
            start = AgentStart.of(assignment)
        except IdentityError as error:
            self._reporter.event("", f"task {assignment.task_id} names no agent: {error}")
            await self._report(client, assignment.reference, "", f"no agent is called that: {error}")
            return
        name = start.identity.text
        if self._spec_of(start) is None:
            await self._refuse(client, start, self._unknown(start))
            return
        before = self._processes.get(name)
        if before is not None and (before.start.task_id, before.start.token) == (start.task_id, start.token):
            return  # the same assignment came twice
        while before is not None:
            # The gateway has no connection of this agent, whose process hangs or cannot reconnect.
            self._reporter.event(name, "is wanted again; the old process is stopped first")
            before.replaced = True
            before.scope.cancel()
            await before.ended.wait()
            before = self._processes.get(name)
        problem = await self._capacity.wait(start, lambda why: self._reporter.event(name, f"waits, as {why}"))
        if problem is None:
            return
        spec = self._spec_of(start)  # the agents may have been replaced meanwhile
        if problem or spec is None:
            busy = EndReport.BUSY if problem else EndReport.FAILED
            await self._refuse(client, start, problem or self._unknown(start), busy)
            return
        process = self._processes[name] = _AgentProcess(start)
        watch = trio.CancelScope()
        nursery.start_soon(self._watch, client, process, watch)
        try:
            reason, how = await self._run(spec, process)
        finally:
            watch.cancel()  # and no wait for its end: it may wait for a gateway that is away
            process.pid = 0
            del self._processes[name]
            process.ended.set()
            self._capacity.changed()
        if not process.replaced:
            await self._report(client, start.reference, name, reason, how)

    def _spec_of(self, start: AgentStart) -> AgentSpec | None:
        """Return how an agent is started; for "name:version" also the spec of "name"."""
        implementation = start.identity.implementation
        return self._agents.get(implementation) or self._agents.get(implementation.rpartition(":")[0])

    def _unknown(self, start: AgentStart) -> str:
        known = ", ".join(sorted(self._agents))
        return f"this orchestrator has no agent {start.identity.implementation!r}; it has {known}"

    async def _refuse(
        self, client: OrchestratorClient, start: AgentStart, why: str, what: EndReport = EndReport.FAILED
    ) -> None:
        self._refused += 1
        self._reporter.event(start.identity.text, f"is not started: {why}")
        await self._report(client, start.reference, start.identity.text, why, what)

    async def _run(self, spec: AgentSpec, process: _AgentProcess) -> tuple[str, EndReport]:
        """Run an agent's process to its end; return how it ended, for the gateway."""
        name = process.start.identity.text
        plan = plan_launch(spec, process.start, self._addresses)
        report = self._reporter

        def started(pid: int) -> None:
            self._started += 1
            process.pid = pid
            command = f"docker run {spec.image}" if spec.image else " ".join(spec.command)
            report.event(name, f"process {pid}: {command}")

        reason, how = "", EndReport.FAILED
        with process.scope:
            try:
                on_line, grace_s = partial(report.line, name), self._limits.grace_s
                ended = await run_process(plan, on_line=on_line, on_started=started, grace_s=grace_s)
                self._ended += 1
                reason, how = ended.report, EndReport.DONE if ended.well else EndReport.FAILED
                report.event(name, str(ended))
            except (OSError, ValueError) as error:
                # ValueError: a launch parameter has a zero byte.
                self._failed += 1
                reason = cannot_run(plan, error)
                report.event(name, reason)
            finally:
                if not reason:
                    report.event(name, "was stopped")
        return reason or "its process was stopped", how

    async def _watch(self, client: OrchestratorClient, process: _AgentProcess, scope: trio.CancelScope) -> None:

        def stop(why: str) -> None:
            self._reporter.event(process.start.identity.text, f"is stopped, as {why}")
            process.scope.cancel()

        with scope:
            await watch_startup_task(client, process.start, stop)

    async def _report(
        self,
        client: OrchestratorClient,
        reference: str,
        name: str,
        reason: str,
        what: EndReport = EndReport.FAILED,
    ) -> None:
        problem = await report_end(client, reference, reason, what)
        if problem:
            self._reporter.event(name, f"the gateway could not be told that it has ended: {problem}")
