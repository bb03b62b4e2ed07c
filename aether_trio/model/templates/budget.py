"""What one rendering may use up, and the meter that counts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aether_trio.model.templates.errors import RenderFault

BYTES_PER_OPERATION: Final = 256
"""Bytes of text that a function may read or make for one operation."""


@dataclass(frozen=True, slots=True)
class TemplateBudget:
    """Limits of one rendering; a template beyond one of them fails with TemplateError.

    `operations` counts the words and fields of pipelines, the turns of loops, the templates that
    are invoked, and each 256 bytes of text that a function reads or makes. `output_bytes` bounds
    the result in bytes of UTF-8. `nesting` bounds the templates within each other, each with the
    control structures around its invocation.
    """

    operations: int = 10_000
    output_bytes: int = 1 << 20
    nesting: int = 100


DEFAULT_BUDGET: Final = TemplateBudget()


class Meter:
    """Counts one rendering's operations, bytes and nesting down, and refuses at zero."""

    __slots__ = ("budget", "depth", "operations", "room")

    def __init__(self, budget: TemplateBudget) -> None:
        self.budget = budget
        self.operations = budget.operations
        self.room = budget.output_bytes
        self.depth = 0

    def charge(self, operations: int) -> None:
        """Take some operations; RenderFault if they are used up."""
        self.operations -= operations
        if self.operations < 0:
            raise RenderFault(
                f"the template takes more than {self.budget.operations:,} operations; make its loops or texts smaller"
            )

    def charge_text(self, size: int) -> None:
        """Take the operations for `size` bytes or characters that a function handles."""
        self.charge(size // BYTES_PER_OPERATION)

    def take_room(self, size: int) -> None:
        """Take `size` bytes of the output; RenderFault if it gets too long."""
        self.room -= size
        if self.room < 0:
            raise RenderFault(f"the template prints more than {self.budget.output_bytes:,} bytes; print less")
