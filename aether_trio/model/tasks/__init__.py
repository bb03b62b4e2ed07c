"""What a task is and how it may change. No I/O, no clock.

Statuses, retry policies, waits, deadlines and the table of moves. A store keeps `Task` rows;
`table.decide` returns what a move makes of a row, `due.next_due` when time alone moves it.
"""

from aether_trio.model.tasks.retry import Backoff, RetryPolicy
from aether_trio.model.tasks.status import Status, TaskClass
from aether_trio.model.tasks.table import Facts, Move, Refusal, Refused, Repeat, Step, decide
from aether_trio.model.tasks.task import Mode, Task
from aether_trio.model.tasks.wait import Reason, Wait

__all__ = [
    "Backoff",
    "Facts",
    "Mode",
    "Move",
    "Reason",
    "Refusal",
    "Refused",
    "Repeat",
    "RetryPolicy",
    "Status",
    "Step",
    "Task",
    "TaskClass",
    "Wait",
    "decide",
]
