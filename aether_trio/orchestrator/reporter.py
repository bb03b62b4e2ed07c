"""Shows a person what agents print, and what happens to their processes.

ag::default::echo::1 | hello                         a line that the agent printed
ag::default::echo::1 : process 4711                  an event
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Reporter(Protocol):
    """Receives the output and the events of agents. No method may wait."""

    def line(self, agent: str, text: str) -> None:
        """Show a line that the agent has printed."""

    def event(self, agent: str, text: str) -> None:
        """Show what has happened to the agent, or to the orchestrator for ""."""


class TextReporter:
    """Writes the output and the events of agents as lines of text."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def line(self, agent: str, text: str) -> None:
        self._write(f"{agent} | {text}")

    def event(self, agent: str, text: str) -> None:
        self._write(f"{agent or 'orchestrator'} : {text}")
