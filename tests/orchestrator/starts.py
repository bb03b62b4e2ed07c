"""Start requests, agents of one line of Python, and a client that records calls."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from aether_trio.client.errors import AetherError
from aether_trio.client.feeds import Feed
from aether_trio.client.operations.agents import Registration
from aether_trio.client.operations.enums import TaskStatus
from aether_trio.client.operations.records import read
from aether_trio.client.operations.task_events import TaskEvent, task_event
from aether_trio.client.operations.task_values import Assignment, Task
from aether_trio.orchestrator import AgentSpec
from aether_trio.wire.pb import aether_pb2 as pb


def python(code: str, implementation: str = "echo", **changes: Any) -> AgentSpec:
    fields: dict[str, Any] = {
        "implementation": implementation,
        "profile": "process",
        "manner": "process",
        "command": (sys.executable, "-c", code),
        "directory": Path.cwd(),
        "environment": {},
        "params": {},
        "description": "",
        "most": 0,
    }
    return AgentSpec(**{**fields, **changes})


def assignment(
    implementation: str = "echo",
    specifier: str = "1",
    *,
    task_id: str = "task",
    token: str = "secret",
    workspace: str = "w",
    params: Mapping[str, str] | None = None,
    trigger: str = "",
    priority: str = "",
    number: str = "",
) -> pb.TaskAssignment:
    metadata = {"trigger_timestamp_ms": trigger, "priority": priority, "_assignment": number}
    return pb.TaskAssignment(
        task_id=task_id,
        task_type="agent_startup",
        profile="process",
        target_implementation=implementation,
        specifier=specifier,
        workspace=workspace,
        launch_params={"profile": "process", "auth_token": token, **(params or {})},
        metadata={name: value for name, value in metadata.items() if value},
    )


class Client:
    """A double of OrchestratorClient that keeps failures and registrations."""

    def __init__(self) -> None:
        self.starts: Feed[Assignment] = Feed(100, lossy=False, convert=lambda message: read(Assignment, message))
        self.failed: list[tuple[str, str]] = []
        self.completed: list[str] = []
        self.rejected: list[tuple[str, str]] = []
        """Those of `failed` that were given back, as there was no room."""
        self.connected = False
        """Whether the gateway knows that the agents had connected."""
        self.registered: list[Registration] = []
        self.refusal: AetherError | None = None
        self.claimed: list[str] = []
        self.lost: AetherError | None = None
        self.status = TaskStatus.QUEUED
        self.say, self._said = trio.open_memory_channel[TaskEvent](100)
        self.asked = 0
        self.tasks = self.registry = self

    def within(self, _limit_s: float) -> Client:
        return self

    async def fail(self, task_id: str, *, reason: str) -> None:
        self.asked += 1
        if self.refusal is not None:
            raise self.refusal
        self.failed.append((task_id, reason))

    async def complete(self, task_id: str) -> None:
        self.asked += 1
        if self.refusal is not None:
            raise self.refusal
        if not self.connected:
            raise AetherError("", "the agent has not connected")
        self.completed.append(task_id)

    async def reject(self, task_id: str, *, reason: str) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.rejected.append((task_id, reason))
        self.failed.append((task_id, reason))

    @asynccontextmanager
    async def follow(self, _task_id: str) -> AsyncIterator[AsyncIterator[TaskEvent]]:
        yield self._said.clone()

    async def claim(self, reference: str) -> None:
        self.claimed.append(reference)
        if self.lost is not None:
            raise self.lost

    async def get(self, task_id: str) -> Task:
        return read(Task, pb.TaskInfo(task_id=task_id, status=pb.TaskStatus.ValueType(self.status)))

    async def register(self, registration: Registration) -> None:
        self.registered.append(registration)


class Notes:
    """A Reporter that remembers: (agent, text)."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.events: list[tuple[str, str]] = []

    def line(self, agent: str, text: str) -> None:
        self.lines.append((agent, text))

    def event(self, agent: str, text: str) -> None:
        self.events.append((agent, text))


def becomes(status: TaskStatus) -> TaskEvent:
    """The event of a start that has this status now."""
    change = pb.TaskStatusChangedEvent(to_status=pb.TaskStatus.ValueType(status))
    return task_event(pb.TaskEvent(task_id="task", status_changed=change))
