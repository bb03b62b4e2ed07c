"""Shows a person what agents print, and what happens to their processes.

2026-11-29 08:50:00.123 ag::default::echo::1 | hello                a line that the agent printed
2026-11-29 08:50:00.125 ag::default::echo::1 : process 4711         an event
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final, Protocol

ORCHESTRATOR: Final = "orchestrator"
"""What stands for the agent in an event of no agent."""


class Reporter(Protocol):
    """Receives the output and the events of agents. No method may wait."""

    def line(self, agent: str, text: str) -> None:
        """Show a line that the agent has printed."""

    def event(self, agent: str, text: str) -> None:
        """Show what has happened to the agent, or to the orchestrator for ""."""


class TextReporter:
    """Writes the output and the events of agents as lines of text, with the time."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def line(self, agent: str, text: str) -> None:
        self._write(f"{_time()} {agent} | {text}")

    def event(self, agent: str, text: str) -> None:
        self._write(f"{_time()} {agent or ORCHESTRATOR} : {text}")


class LogReporter:
    """Gives the output and the events of agents to a log, which adds the time.

    `write(text, agent, kind)` gets "output" or "event" as the kind.
    """

    def __init__(self, write: Callable[[str, str, str], None]) -> None:
        self._write = write

    def line(self, agent: str, text: str) -> None:
        self._write(text, agent, "output")

    def event(self, agent: str, text: str) -> None:
        self._write(text, agent or ORCHESTRATOR, "event")


def _time() -> str:
    """Return the local time, as log lines for people have it."""
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
