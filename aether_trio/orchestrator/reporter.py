"""What a person sees of the agents: each line with the name of whom it is about.

ag::default::echo::1 | hello                         what it printed
ag::default::echo::1 : process 4711                  what became of it
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Reporter(Protocol):
    """Told everything. It must not wait."""

    def line(self, agent: str, text: str) -> None:
        """The agent has printed this."""
        ...

    def event(self, agent: str, text: str) -> None:
        """Something has happened to the agent; "" for the orchestrator itself."""
        ...


class TextReporter:
    """Lines of text for `write`."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def line(self, agent: str, text: str) -> None:
        """See Reporter."""
        self._write(f"{agent} | {text}")

    def event(self, agent: str, text: str) -> None:
        """See Reporter."""
        self._write(f"{agent or 'orchestrator'} : {text}")
