"""What workflows do in the transactions of tasks (TaskWorkflows).

Executions take the ends of tasks; whatever time moves has a row of `workflow_timers` and a handler
for its kind. A handler whose code raises is undone, and its row put off, so the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Final, TypeVar

from aether_trio.model.containment import report
from aether_trio.model.tasks import TaskRow
from aether_trio.model.tasks.task import WorkflowPart
from aether_trio.services.tasks.transaction.interface import LargeError, NotReadyError, SentStep, Transaction
from aether_trio.services.workflows.events import task_events
from aether_trio.services.workflows.executions import execution_rows
from aether_trio.services.workflows.executions.advancing import TIMER, Executions, sent_step
from aether_trio.services.workflows.executions.functions import FUNCTION, Functions
from aether_trio.services.workflows.rules.reactions import EventReactions
from aether_trio.services.workflows.rules.rule_runs import RuleRuns
from aether_trio.services.workflows.schedules.schedule_starts import ScheduleStarter
from aether_trio.services.workflows.stored import schedule_rows, timers
from aether_trio.services.workflows.stored.sources import WantedEvents
from aether_trio.services.workflows.stored.timers import SET_BACK_MS
from aether_trio.storage.base import Fetch, Program, Row

T = TypeVar("T")

FIRE_PAGE: Final = 100
DEFECT_MS: Final = 60_000
"""For how long a thing is put off whose handler raises."""

TimerHandler = Callable[[Transaction, str], Program[None]]
"""Handles the due moment of one thing, by its key; sets the next moment or deletes the row."""

LetterHandler = Callable[[Transaction, TaskRow], Program[None]]
"""Tries again what a dead letter of its type is about, and settles it."""


class DefectError(Exception):
    """The code of a handler has raised; its transaction is to be undone."""

    def __init__(self, kind: str, key: str) -> None:
        super().__init__(kind, key)
        self.kind = kind
        self.key = key


def contained(program: Generator[Any, Any, T], kind: str, key: str) -> Generator[Any, Any, T]:
    """Run a program; raise DefectError for what its code raises, and not storage."""
    value: Any = None
    while True:
        try:
            statement = program.send(value)
        except StopIteration as done:
            result: T = done.value
            return result
        except (LargeError, NotReadyError):
            raise
        except Exception as error:
            raise DefectError(kind, key) from error
        value = yield statement


class WorkflowHook:
    """The TaskWorkflows of a gateway: executions, and other kinds of timers.

    `letters` has dead letters by their types, but for those of events.
    """

    def __init__(
        self,
        executions: Executions,
        functions: Functions,
        schedules: ScheduleStarter,
        reactions: EventReactions,
        rules: RuleRuns,
        timers: Mapping[str, TimerHandler],
        letters: Mapping[str, LetterHandler],
        wanted: WantedEvents,
    ) -> None:
        self._wanted = wanted
        self._executions = executions
        self._functions = functions
        self._reactions = reactions
        self._rules = rules
        self._schedules = schedules
        self._timers: Final = {TIMER: executions.time_passed, FUNCTION: functions.time_passed, **timers}
        self._letters = letters
        self._put_off: set[tuple[str, str]] = set()
        """Things whose handlers have raised, to be put off in the next transaction."""
        self._alone: tuple[str, str] | None = None
        """The thing whose moment the latest `fire` of one has handled."""
        self._now_ms = self._latest_ms = 0
        """The moment of the latest page, and of the latest that was committed."""

    def wanted(self, before: TaskRow | None, task: TaskRow) -> Sequence[str]:
        """Return the names of a task's event that definitions take; any thread."""
        return self._wanted.among(task_events.names_of(before, task), task.workspace) if self._wanted else ()

    def happened(self, tx: Transaction, task: TaskRow, names: Sequence[str], by: str) -> Program[None]:
        """Write the event of a task to the outbox."""
        return task_events.write(tx, task, names, by)

    def ended(self, tx: Transaction, task: TaskRow) -> Program[None]:
        """Move on the execution whose step has ended, or which has ended itself."""
        if task.workflow & WorkflowPart.EVENT:
            return
        if task.workflow & WorkflowPart.FUNCTION:
            yield from self._functions.ended(tx, task)
        if task.workflow & WorkflowPart.CALLED and not task.workflow & WorkflowPart.RUN:
            yield from self._functions.step_ended(tx, task)
        else:
            yield from self._executions.ended(tx, task)
        if task.workflow & WorkflowPart.BUDGET:
            yield from self._executions.budget_answered(tx, task)
        if task.workflow & WorkflowPart.FLOW:
            if task.workflow & WorkflowPart.FUNCTION:
                yield from self._executions.flow_ended(tx, task.task_id)
            elif not task.workflow & WorkflowPart.RUN:  # a graph ends when it has compensated, too
                yield from self._rules.ended(tx, task.task_id)
        if task.workflow & WorkflowPart.FIRED:
            yield from self._schedules.run_ended(tx, task.task_id)

    def sent(self, task: TaskRow) -> SentStep | None:
        """Return which step a task is; None: its end is taken in later, or no step's."""
        return sent_step(task)

    def load_step(self, tx: Transaction, task_id: str, step: SentStep) -> Program[TaskRow | None]:
        """Load a step's task with its execution; None if there is no such task."""
        return self._executions.load_step(tx, task_id, step)

    def ends_apart(self, tx: Transaction, task: TaskRow) -> Program[bool]:
        """Return whether the completion of a step decides on no rows of other tasks."""
        return self._executions.ends_apart(tx, task)

    def retry_problem(self, task: TaskRow) -> Program[str]:
        """Return why an ended execution may not be tried again; else ""."""
        return execution_rows.retry_problem(task.task_id)

    def reopened(self, tx: Transaction, before: TaskRow, after: TaskRow) -> Program[None]:
        """Go on with an execution or a question whose row has become PENDING."""
        if after.workflow & WorkflowPart.EVENT:
            return self._letters.get(after.task_type, self._reactions.retry)(tx, after)
        if after.workflow & WorkflowPart.FUNCTION:
            return self._functions.reopened(tx, before, after)
        return self._executions.reopened(tx, before, after)

    def forget_part(self, tx: Transaction, task: TaskRow) -> Program[int]:
        """Delete a part of the rows of an execution, unless it undoes steps."""
        return self._executions.forget_part(tx, task)

    def forgotten(self, task: TaskRow) -> Program[None]:
        """Delete what belongs to an execution whose task is deleted."""
        return self._executions.forgotten(task)

    def fold(self, tx: Transaction, execution_id: str) -> Program[None]:
        """Let an execution take in a page of its items that have ended."""
        return self._executions.fold(tx, execution_id)

    def used(self, tx: Transaction, task: TaskRow, metadata: Mapping[str, str]) -> Program[str]:
        """Sum up what a task has used, as its worker reports; return what is wrong."""
        return self._executions.used(tx, task, metadata)

    def find_unfinished(self, tx: Transaction) -> Program[None]:
        """Find what an ended process has left, such as items that were not taken in."""
        yield from self._executions.find_unfinished(tx)
        yield from self._executions.find_set_back(tx, self._latest_ms)
        yield from self._schedules.find_set_back(tx)

    def fire(self, tx: Transaction, *, one: bool = False) -> Program[int]:
        """Handle a page of due moments, or one; return how many there were."""
        now_ms = tx.context.now_ms
        self._alone = None
        if now_ms < self._latest_ms - SET_BACK_MS:
            yield from self._schedules.find_set_back(tx)
        yield from self._executions.find_set_back(tx, self._latest_ms)
        self._now_ms = now_ms
        for kind, key in sorted(self._put_off):
            yield from timers.set_timer(kind, key, now_ms + DEFECT_MS)
        locked = " FOR UPDATE SKIP LOCKED" if tx.context.shared else ""
        found: list[Row] = yield Fetch(
            f"SELECT kind, key FROM workflow_timers WHERE due_ms <= $1 ORDER BY due_ms LIMIT $2{locked}",  # noqa: S608
            (now_ms, 1 if one else FIRE_PAGE),
        )
        self._alone = found[0] if one and found else None
        if any(kind == schedule_rows.TIMER for kind, _ in found):
            yield from self._schedules.fire(tx, self._contained_schedule, one=one)
        for kind, key in found:
            if tx.is_full:
                break  # what is left is due still
            if kind == schedule_rows.TIMER:
                continue
            handler = self._timers.get(kind)
            if handler is None:
                # This release does not know such a thing.
                yield from timers.set_timer(kind, key, 0)
            else:
                yield from contained(handler(tx, key), kind, key)
        return len(found)

    def _contained_schedule(self, program: Program[int], key: str) -> Program[int]:
        if self._alone is not None:
            self._alone = schedule_rows.TIMER, key
        return contained(program, schedule_rows.TIMER, key)

    def settled(self, error: Exception | None) -> bool:
        """Note that a page of `fire` was committed, or undone by this error.

        Return whether the error is that of one thing, which is put off now.
        """
        if error is not None and not isinstance(error, DefectError) and self._alone is not None:
            made = DefectError(*self._alone)
            made.__cause__ = error
            error = made
        if error is None:
            self._put_off.clear()
            self._latest_ms = self._now_ms
            self._executions.latest_start_ms = min(self._executions.latest_start_ms, self._now_ms)
        elif isinstance(error, DefectError):
            self._put_off.add((error.kind, error.key))
            report(error.__cause__ or error, f"the due moment of a workflow's {error.kind} {error.key}")
            return True
        return False
