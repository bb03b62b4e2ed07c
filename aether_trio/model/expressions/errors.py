"""Errors of expressions: with a place for authors, and within an evaluation."""

from __future__ import annotations


class ExpressionError(ValueError):
    """An expression does not compile, or its evaluation failed.

    `message` says why, `offset` is the place in characters from 0, `line` and `column` count from
    1. The text is `LINE:COLUMN: MESSAGE`.
    """

    def __init__(self, message: str, source: str, offset: int) -> None:
        self.message = message
        self.offset = min(max(offset, 0), len(source))
        before = source[: self.offset]
        self.line = before.count("\n") + 1
        self.column = len(before) - (before.rfind("\n") + 1) + 1
        super().__init__(f"{self.line}:{self.column}: {message}")

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (self.message, self.offset, self.line, self.column)


def _restore(message: str, offset: int, line: int, column: int) -> ExpressionError:
    error = ExpressionError(message, "", 0)
    error.offset, error.line, error.column = offset, line, column
    error.args = (f"{line}:{column}: {message}",)
    return error


class Fault(Exception):
    """A part of an expression failed; an offset of -1 is for the caller to set."""

    def __init__(self, message: str, offset: int = -1) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset

    def at(self, offset: int) -> Fault:
        """Return this fault with a place, unless it has one."""
        if self.offset < 0:
            self.offset = offset
        return self
