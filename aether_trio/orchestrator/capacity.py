"""Decides which agent starts an orchestrator may run now.

Invariants: no more than `most` processes run, nor more than an agent's own limit. Of the starts
that wait, the most urgent gets the next free place, and of equally urgent ones the first that came.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from aether_trio.orchestrator.agents_file import AgentSpec
from aether_trio.orchestrator.launch_plan import AgentStart

WAIT_S: Final = 30.0  # seconds until a waiting start is refused, and another orchestrator gets it


@dataclass(slots=True, eq=False)
class _QueuedStart:
    """An agent start that waits for a free place; `replaced` by a newer start."""

    start: AgentStart
    room: trio.Event = field(default_factory=trio.Event)
    replaced: bool = False


class Capacity:
    """Counts an orchestrator's processes, and lets agent starts wait for a place."""

    def __init__(
        self, most: int, running: Callable[[], list[AgentStart]], spec_of: Callable[[AgentStart], AgentSpec | None]
    ) -> None:
        self._most = most
        self._running = running
        self._spec_of = spec_of
        self._queued: dict[str, _QueuedStart] = {}

    def __len__(self) -> int:
        """Count the agent starts that wait."""
        return len(self._queued)

    def problem(self, start: AgentStart) -> str:
        """Return why `start` cannot run now; "" if it can, or if its agent is unknown."""
        running = self._running()
        if len(running) >= self._most:
            return f"this orchestrator runs {len(running)} agents, which is its limit"
        spec = self._spec_of(start)
        if spec is None or not spec.most:
            return ""
        replicas = sum(1 for one in running if self._spec_of(one) is spec)
        if replicas >= spec.most:
            return f"{replicas} agents {spec.implementation!r} run here, which is their limit"
        return ""

    async def wait(self, start: AgentStart, on_wait: Callable[[str], None]) -> str | None:
        """Wait for a free place: return "" for one, or after WAIT_S why there is none.

        None: the gateway has asked for the agent again. `on_wait` gets the reason for the wait.
        """
        name = start.identity.text
        older = self._queued.get(name)
        if older is not None:
            older.replaced = True
            older.room.set()
        problem = self.problem(start)
        if not problem:
            return ""
        on_wait(problem)
        queued = self._queued[name] = _QueuedStart(start)
        try:
            with trio.move_on_after(WAIT_S):
                while self.problem(start) and not queued.replaced:
                    queued.room = trio.Event()
                    await queued.room.wait()
        finally:
            if self._queued.get(name) is queued:
                del self._queued[name]
            self.changed()  # the place may have been offered to this start, which does not take it
        return None if queued.replaced else self.problem(start)

    def changed(self) -> None:
        """Wake the most urgent agent start that can run now, which wakes the next one."""
        for queued in sorted(self._queued.values(), key=lambda one: -one.start.priority):
            if not self.problem(queued.start) and not queued.room.is_set():
                queued.room.set()
                return
