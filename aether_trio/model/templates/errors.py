"""Errors of templates: what users see, and what parts raise without a position."""

from __future__ import annotations

from typing import NoReturn


class TemplateError(ValueError):
    """A template cannot be compiled, or failed while it was rendered.

    `message` says what is wrong; `offset` is the place in the source in characters from 0, `line`
    and `column` are the same place, both from 1. The error's text is `line:column: message`.
    """

    def __init__(self, message: str, offset: int, line: int, column: int) -> None:
        super().__init__(message, offset, line, column)
        self.message = message
        self.offset = offset
        self.line = line
        self.column = column

    def __str__(self) -> str:
        return f"{self.line}:{self.column}: {self.message}"


class RenderFault(Exception):
    """What went wrong, perhaps without the place; it never leaves the package."""

    def __init__(self, message: str, offset: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset

    def at(self, offset: int, prefix: str = "") -> NoReturn:
        """Raise this again; the innermost place and its prefix win."""
        if self.offset is None:
            self.offset = offset
            self.message = prefix + self.message
        raise self


def located(fault: RenderFault, source: str) -> TemplateError:
    """Turn a fault into the error with its line and column in the source."""
    offset = min(fault.offset or 0, len(source))
    line = source.count("\n", 0, offset) + 1
    column = offset - source.rfind("\n", 0, offset)
    return TemplateError(fault.message, offset, line, column)
