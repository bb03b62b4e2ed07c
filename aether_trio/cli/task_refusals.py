"""Says what to do next about an operation on a task that the gateway refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from aether_trio.cli import exits
from aether_trio.cli.connect import is_refusal, refusal_text
from aether_trio.client import AetherError

_NEXT: Final = (
    ("task not found", "`aether tasks list` shows those of a workspace (--workspace); --as says who asks"),
    ("retry of a task", "only tasks that have failed or were cancelled are tried again"),
    ("the task has ended", "`aether tasks show` says how"),
    ("the answer to a question", "`aether tasks answer TASK_ID approve` (or reject) sends it"),
    ("resume of a task", "only paused tasks are resumed"),
    ("so it cannot be started", "register it with `aether agents register`, or let the task wait with --offline queue"),
    ("is not connected", "let the task wait with --offline queue"),
)
"""What to do about a refusal, by a part of its text."""


@contextmanager
def explained_refusals() -> Iterator[None]:
    """Turn the refusal of an operation in the block into a CliError."""
    try:
        yield
    except AetherError as error:
        if not is_refusal(error):
            raise
        raise refused(refusal_text(error)) from error


def refused(text: str) -> exits.CliError:
    """Make the error for a refused operation on a task, with what to do about it."""
    hint = next((hint for part, hint in _NEXT if part in text), "")
    return exits.CliError(f"{text}; {hint}" if hint else text)
