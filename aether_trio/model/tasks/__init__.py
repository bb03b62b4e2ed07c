"""Tasks: statuses, retry policies, waits, deadlines and the table of moves.

No I/O, no clock. A store keeps `TaskRow` rows; `transitions.decide` returns what a move makes of a
row, `timed_transitions.next_due` when time alone moves it.
"""

from aether_trio.model.tasks.retry import Backoff, RetrySchedule
from aether_trio.model.tasks.status import GraceClass, StoredStatus
from aether_trio.model.tasks.task import Mode, TaskRow
from aether_trio.model.tasks.transitions import Facts, Move, MoveRefusal, MoveStep, RefusedMove, Repeat, decide
from aether_trio.model.tasks.wait import Reason, Wait

__all__ = [
    "Backoff",
    "Facts",
    "GraceClass",
    "Mode",
    "Move",
    "MoveRefusal",
    "MoveStep",
    "Reason",
    "RefusedMove",
    "Repeat",
    "RetrySchedule",
    "StoredStatus",
    "TaskRow",
    "Wait",
    "decide",
]
