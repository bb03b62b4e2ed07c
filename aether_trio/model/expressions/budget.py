"""Bounds the work and the memory of evaluations, without a clock.

One operation is a node of the expression or one element that a builtin visits. What a short circuit
leaves out counts too, so that a node costs nothing while it runs: a piece without loops is charged
once, a predicate's body once for each element. Bytes are those of the strings, lists and maps that
the expression makes.
"""

from __future__ import annotations

from dataclasses import dataclass

from aether_trio.model.expressions.errors import Fault

OPERATIONS = 10_000
BYTES = 1_048_576
SLOT = 8  # bytes that one element of a list or map counts, besides its value


@dataclass(slots=True, eq=False)
class EvaluationBudget:
    """What is left for evaluations; several may share one. Faults when it is used up."""

    operations: int = OPERATIONS
    bytes: int = BYTES

    def spend(self, operations: int) -> None:
        """Take operations."""
        self.operations -= operations
        if self.operations < 0:
            raise Fault("the expression takes too many operations: shorten its lists or split its work into steps")

    def make(self, size: int) -> None:
        """Take bytes."""
        self.bytes -= size
        if self.bytes < 0:
            raise Fault("the expression makes too much data: shorten its lists, ranges or strings")

    def make_list(self, length: int) -> None:
        """Take an operation and a slot for each element of a new list or map."""
        self.spend(length)
        self.make(length * SLOT)
