"""What steps of durable functions raise, and why a run cannot go on."""

from __future__ import annotations


class StepFailed(Exception):
    """A step of a durable function has failed; a replay raises it again.

    `error` is the text of the error, `error_type` its type or a word for programs: TIMEOUT,
    CANCELLED, PERMISSION_DENIED, BAD_RESULT and others.
    """

    def __init__(self, error: str, error_type: str = "", step: str = "") -> None:
        super().__init__(f"step {step}: {error}" if step else error)
        self.error = error
        self.error_type = error_type
        self.step = step


class Cancelled(BaseException):
    """The execution is cancelled, or a sibling in the nursery has failed.

    It is raised once in each branch, so that `finally` may undo what was done with further steps.
    Like other cancellations it is no Exception: let it pass.
    """


class Diverged(Exception):
    """The code of a function does not fit the history of its run; nothing is lost."""


class AssignmentOver(Exception):
    """Another worker has the run, or will have it: this one changes nothing any more."""


class CommandRefused(Exception):
    """The gateway refuses what a function asks for; the text says why."""
