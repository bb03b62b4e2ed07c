"""Exit codes of `aether`, and the errors that carry them."""

from __future__ import annotations

import contextlib
from typing import IO, Any, Final, TypeVar, cast

import click

from aether_trio.cli.output import Announcements, announce, visible

E = TypeVar("E", bound=BaseException)

FAILED: Final = 1
USAGE: Final = 2
SETTINGS: Final = 3
UNREACHABLE: Final = 4
REFUSED: Final = 5
NOT_YET: Final = 124
"""What timeout(1) ends with when its time is over."""
INTERRUPTED: Final = 130
"""What a shell makes of SIGINT: 128 + 2."""
CLOSED: Final = 141
"""What a shell makes of SIGPIPE: 128 + 13."""

EXIT_CODES_TEXT: Final = """\b
Exit codes:
  0    done
  1    the gateway said no to the operation, or something failed
  2    the command line is wrong
  3    the settings are wrong, or a gateway cannot start with them
  4    the gateway cannot be reached
  5    the gateway refused the connection (credentials, identity in use)
  124  what was waited for did not happen within --timeout
  130  Ctrl-C
  141  nothing reads the output any more
"""


class CliError(click.ClickException):
    """The failure of a command on one line, or more with `lines`, and its exit code."""

    def __init__(self, message: str, code: int = FAILED, *, lines: bool = False) -> None:
        super().__init__(visible(message, lines=lines))
        self.exit_code = code  # type: ignore[misc]  # click wants it per class; ours differs per error

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the error; in a JSON log it is a line of that."""
        if Announcements.log is None:
            with contextlib.suppress(OSError):  # a full disk; the exit code says it too
                super().show(file)
        else:
            announce(self.message, lines=True, level="error")


def first_of(group: BaseExceptionGroup[E]) -> E:
    """Return the first exception in nested exception groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return cast("E", error)
