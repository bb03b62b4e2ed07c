"""Shows a person what agents print and what becomes of them.

ag::default::echo::1 | hello                         what it printed
ag::default::echo::1 : process 4711                  what became of it
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Reporter(Protocol):
    """Receives the output and the events of agents. No method may wait."""

    def line(self, agent: str, text: str) -> None:
        """Show a line that the agent has printed."""
        ...

    def event(self, agent: str, text: str) -> None:
        """Show what has happened to the agent, or to the orchestrator for ""."""
        ...


class TextReporter:
    """Writes output and events as lines of text."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def line(self, agent: str, text: str) -> None:
        """Write a line that the agent has printed."""
        self._write(f"{agent} | {text}")

    def event(self, agent: str, text: str) -> None:
        """Write what has happened to the agent, or to the orchestrator for ""."""
        self._write(f"{agent or 'orchestrator'} : {text}")
