"""Counts the operations of evaluations that belong together.

Each expression or template has a budget. A document may have thousands of them, so what
evaluates several counts what all of them take:

    with metered() as meter:
        value.evaluate(env, now=now)  # raises TooManyOperations, a ValueError
    spent += meter.operations

A block must not yield, as the meter is that of the thread or task.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Final, Self, TypeAlias, TypeVar

T = TypeVar("T")

VALUE_OPERATIONS: Final = 100_000
"""Operations of all expressions and templates of one value together."""


class TooManyOperations(ValueError):
    """Many expressions or templates take too many operations together."""


class EvaluationMeter:
    """Counts the operations of evaluations within a block, up to a bound."""

    __slots__ = ("_most", "_token", "operations")

    def __init__(self, most: int) -> None:
        self.operations = 0
        self._most = most
        self._token: Token[EvaluationMeter | None] | None = None

    def __enter__(self) -> Self:
        self._token = _METER.set(self)
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._token is not None
        _METER.reset(self._token)

    def check(self) -> None:
        """Raise TooManyOperations if no further evaluation may begin."""
        if self.operations > self._most:
            raise TooManyOperations(
                f"the expressions and templates take more than {self._most:,} operations together: "
                "split their work into steps"
            )


_METER: Final[ContextVar[EvaluationMeter | None]] = ContextVar("evaluation meter", default=None)


def metered(most: int = VALUE_OPERATIONS) -> EvaluationMeter:
    """Return a meter for a block."""
    return EvaluationMeter(most)


Spend: TypeAlias = Callable[[int], None]
"""Takes note of operations that were done."""


def spending(evaluate: Callable[[], T], spend: Spend, most: int = VALUE_OPERATIONS) -> T:
    """Return what an evaluation gives, within a meter, and say what it took."""
    meter = metered(most)
    try:
        with meter:
            return evaluate()
    finally:
        spend(meter.operations)


def note_operations(operations: int) -> None:
    """Note that an evaluation has taken operations."""
    meter = _METER.get()
    if meter is not None:
        meter.operations += operations


def check_meter() -> None:
    """Raise TooManyOperations if the meter of the block is used up."""
    meter = _METER.get()
    if meter is not None:
        meter.check()
