"""Changes statuses of tasks in a database transaction, with all that this causes.

    tx = TaskTransaction(context)        within the program, as a program may run again
    decision = yield from tx.apply(task, move, facts)
    return tx                            after the commit: Engine.after_commit(tx)

What a move causes happens in its transaction: a worker that has room again is assigned the next
task of its queues, a waiting task is assigned to the least busy worker, tasks that depend on an
ended one are woken, tokens are revoked. So between two transactions no task waits while a worker of
its queue has room, and every event is true.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Final

from aether_trio.model.tasks import Facts, Move, MoveStep, StoredStatus, TaskRow, Wait, decide
from aether_trio.model.tasks.result import TaskResult
from aether_trio.model.tasks.status import PAUSED, TERMINAL
from aether_trio.model.tasks.task import AGENT_STARTUP, NO_WORKER, WorkflowPart, holder_of, keeper_of
from aether_trio.model.tasks.timed_transitions import next_due
from aether_trio.model.tasks.transitions import Decision, MoveRefusal, RefusedMove
from aether_trio.model.tasks.waiting_queue import queue_of
from aether_trio.model.text import storable
from aether_trio.model.topics import task_topic
from aether_trio.services.access.changes import Draft, begin
from aether_trio.services.tasks.protobuf import ends_with_parent
from aether_trio.services.tasks.transaction import (
    child_events,
    payloads,
    startup,
    task_rows,
    tokens,
    unused_inputs,
    worker_choice,
)
from aether_trio.services.tasks.transaction.interface import (
    Context,
    Effects,
    LargeError,
    LeftEvent,
    RecordedEvent,
    Transaction,
)
from aether_trio.services.tasks.transaction.workers import WORKER_FIELDS, Worker, read_worker
from aether_trio.storage.base import Deferred, Execute, ExecuteMany, Fetch, Program, Row, placeholders
from aether_trio.wire.delivery import delivery_prefix, delivery_suffix, encode_delivery
from aether_trio.wire.pb import aether_pb2 as pb

WAKE_PAGE: Final = 50
"""Tasks that an ended task wakes in its transaction; further ones follow in others."""

MOST_WRITTEN: Final = 250
"""Tasks that a page of due moments or events writes before the rest is for another one.

With some statements for each, in a round trip each, a page takes seconds at most: a transaction
that takes longer than PostgreSQL's limit would be cut and begun again for ever.
"""

KEPT_EVENTS: Final = 4_096
"""Latest events that are kept of a task at least; at most twice as many are."""

REOPENED: Final = NO_WORKER | WorkflowPart.FUNCTION
"""Of these parts workflows are told when they become PENDING."""

EVENT_INTAKE: Final = "event::receiver0"

_BY_NAME: Final = f"SELECT {WORKER_FIELDS} FROM task_workers WHERE identity = $1"  # noqa: S608
_UNFINISHED: Final = f"""SELECT DISTINCT d.depends_on FROM task_dependents d LEFT JOIN tasks t ON t.task_id = d.depends_on
    WHERE t.task_id IS NULL OR t.next_retry_ms = 0 AND t.status IN ({placeholders(len(TERMINAL))})"""  # noqa: S608
_RECORD: Final = "INSERT INTO task_events (task_id, number, at_ms, event) VALUES ($1, $2, $3, $4)"
_RECORD_AND_LOOK: Final = (
    f"WITH written AS ({_RECORD}) SELECT node FROM task_watchers WHERE task_id = $1 AND node <> $5"  # noqa: S608
)

PAYLOAD_BYTES: Final = 1024 * 1024
"""Payloads that a transaction reads, and one more; others are read when they are sent."""

_ASSIGNING: Final = frozenset({Move.ASSIGN, Move.START})
"""After these moves the worker is sent the task."""

SMALL_ROWS: Final = 100
"""Rows of other tasks that a small transaction reads at most: some 2 ms."""
MOVED_ROWS: Final = 5
"""What a moved task counts for: its row, its event, and the search for a worker."""


@dataclass(slots=True)
class TaskTransaction:
    """One database transaction on tasks; each try of it makes a new TaskTransaction."""

    context: Context
    effects: Effects = field(default_factory=Effects)
    known_parents: set[str] = field(default_factory=set)
    unwatched: set[str] = field(default_factory=set)
    payloads: dict[str, bytes] = field(default_factory=dict)
    """Payloads of the tasks that this transaction has created."""
    written: dict[str, TaskRow] = field(default_factory=dict)
    """The rows that were written, by task id."""
    loaded: dict[str, TaskRow] = field(default_factory=dict)
    """Rows for `load` (`note_loaded`)."""
    left_events: dict[str, Sequence[LeftEvent]] = field(default_factory=dict)
    """What children have left for the logs of these tasks, of those for which it was read."""
    ends: dict[str, pb.TaskEvent] = field(default_factory=dict)
    """By child, the events that tell parents of ends, until what these cause has happened."""
    generation: int = 0
    """That of `Context.live_rows` when the transaction began."""
    repeats: dict[tuple[str, bytes], int] = field(default_factory=dict)
    """How often `record_event_once` was called for equal events of a task."""
    payload_bytes: int = 0
    """Size of the payloads that were read for workers."""
    rows_read: int = 0
    """Rows of other tasks that were read, as `charge` counts them."""
    results: dict[str, TaskResult] = field(default_factory=dict)
    workflow: object = None

    def __post_init__(self) -> None:
        if self.context.live_rows is not None:
            self.generation = self.context.live_rows.generation

    @property
    def is_full(self) -> bool:
        return len(self.written) >= MOST_WRITTEN

    def _note_written(self, row: TaskRow) -> None:
        self.written[row.task_id] = row
        if self.context.live_rows is not None:
            self.context.live_rows.writes(row.task_id, self)

    def row_changes(self, task_id: str) -> None:
        self.loaded.pop(task_id, None)
        self.left_events.pop(task_id, None)
        if self.context.live_rows is not None:
            self.context.live_rows.forget_row(task_id)

    def access_change(self) -> Program[Draft]:
        changes = self.effects.access_changes
        if not changes:
            draft = Draft(self.context.now_ms)
            yield from begin(draft)
            changes.append(draft)
        return changes[0]

    def charge(self, rows: int = 0, *, moved: int = 0) -> None:
        self.rows_read += rows + moved * MOVED_ROWS
        if self.context.small and self.rows_read > SMALL_ROWS:
            raise LargeError

    def load(self, task_id: str) -> Program[TaskRow | None]:
        """Load a task that this transaction is about to change; None if there is none."""
        live_rows = self.context.live_rows
        if live_rows is not None and (known := live_rows.get(task_id)) is not None:
            return known
        if not self.context.shared:
            return (yield from task_rows.load(task_id))
        if (noted := self.loaded.pop(task_id, None)) is not None and task_id not in self.written:
            return noted
        task, watchers = yield from task_rows.load_watched(task_id)
        if not watchers:
            self.unwatched.add(task_id)
        return task

    def note_loaded(self, task: TaskRow, events: Sequence[LeftEvent] | None = None) -> None:
        self.loaded[task.task_id] = task
        if events is not None:
            self.left_events[task.task_id] = events

    def facts(self, caller: str = "", **more: Any) -> Facts:
        for name in ("reason", "error_type"):
            if text := more.get(name):
                more[name] = storable(text)
        return Facts(self.context.now_ms, caller, uniform=self.context.uniform, **more)

    def apply(self, task: TaskRow, move: Move, facts: Facts, reserved: Worker | None = None) -> Program[Decision]:
        decision = decide(task, move, facts)
        if isinstance(decision, MoveStep):
            reopens = move is Move.RETRY and task.task_type == AGENT_STARTUP and task.is_final
            if reopens and (problem := (yield from startup.reopen(self, task))):
                return RefusedMove(MoveRefusal.STATUS, problem)
            if move is Move.RETRY and (problem := (yield from self.context.grants.retry_problem(task))):
                return RefusedMove(MoveRefusal.STATUS, problem)
            yield from self.write(
                task, decision.after, decision.reason, push=move in _ASSIGNING, reserved=reserved, by=facts.caller
            )
        return decision

    def create(self, task: TaskRow, payload: bytes) -> Program[bool]:
        task.queue, task.holder, task.keeper = queue_of(task), holder_of(task), keeper_of(task)
        task.due_ms = next_due(task, self.context.limits)
        row, worker, reason = task, None, ""
        if task.queue and (worker := (yield from worker_choice.reserve_worker(self, task))) is not None:
            given = decide(task, Move.ASSIGN, self.facts(worker.identity))
            assert isinstance(given, MoveStep)
            row, reason = given.after, given.reason
            if row.grants:
                yield from self.context.grants.assigned(self, task, row)
            self._derive(task, row)
        left: tuple[str, int, bytes] | None = None
        if task.parent_task_id:
            yield from self._leave_ends(task.parent_task_id)
        if task.parent_task_id and self.context.shared:  # in one round trip with the row
            left = child_events.insert_args(self._child_event(task, "spawned"))
            self.effects.child_events.add(task.parent_task_id)
        made = True
        if self.context.shared and not self.context.again and task.task_type != AGENT_STARTUP:
            yield from task_rows.insert_fresh(row, payload)
            if left is not None:
                yield Deferred("task_child_events", child_events.INSERT, left)
            if left is None or task.parent_task_id in self.unwatched:
                self.unwatched.add(task.task_id)
        else:
            made = yield from task_rows.insert(row, payload, left)
        if not made:
            self.effects.audit_rows.clear()
            if worker is not None:
                yield from worker_choice.release_reservation(self, task, worker)
            return False
        self.payloads[task.task_id] = payload
        self._note_written(row)
        if names := self.context.workflows.wanted(None, task):
            yield from self.context.workflows.happened(self, row, names, task.creator)
        if task.parent_task_id:
            # Nodes that follow all tasks below the parent follow the child from its first event.
            if self.context.shared and task.parent_task_id not in self.unwatched:
                yield Deferred(
                    "task_watchers",
                    "INSERT INTO task_watchers (task_id, node) SELECT $1, node FROM task_watchers WHERE task_id = $2 "
                    "ON CONFLICT DO NOTHING",
                    (task.task_id, task.parent_task_id),
                )
            if task.parent_task_id not in self.known_parents:
                yield from child_events.mark_parent(self, task.parent_task_id)
            if left is None:
                yield from child_events.add(self, self._child_event(task, "spawned"))
        if worker is not None:
            yield from self._follow(task, row, reason, push=True, reserved=worker)
        if task.task_type == AGENT_STARTUP:
            yield from startup.dispatch(self, task)
        return True

    def write(
        self,
        before: TaskRow,
        after: TaskRow,
        reason: str,
        *,
        push: bool = False,
        reserved: Worker | None = None,
        by: str = "",
    ) -> Program[None]:
        if before.has_children and _has_event(before, after):
            yield from self._take_child_events(before)
        if after.grants and after.assigned_to != before.assigned_to:
            yield from self.context.grants.assigned(self, before, after)
        self._derive(before, after)
        yield from task_rows.save(before, after, shared=self.context.shared)
        self._note_written(after)
        yield from self._follow(before, after, reason, push=push, reserved=reserved, by=by)

    def _derive(self, before: TaskRow, after: TaskRow) -> None:
        """Set queue, holder, due time and number of events in a task's changed row."""
        after.queue, after.holder, after.keeper = queue_of(after), holder_of(after), keeper_of(after)
        after.due_ms = next_due(after, self.context.limits)
        after.events = before.events + _has_event(before, after)

    def _follow(
        self, before: TaskRow, after: TaskRow, reason: str, *, push: bool, reserved: Worker | None, by: str = ""
    ) -> Program[None]:
        """Write events, assignments and wake-ups that follow from a changed task."""
        if after.events > before.events:
            change = _status_changed if reason else _status_changed_silently
            yield from self._record(after, after.events, change(before.status, after.status, reason))
            self.effects.status_changes.append(after)
            if names := self.context.workflows.wanted(before, after):
                yield from self.context.workflows.happened(self, after, names, by)
        yield from worker_choice.update_workers(self, before, after, push=push, reserved=reserved)
        if after.is_final and not before.is_final:
            if after.parent_task_id and after.status is not before.status:
                self.ends[after.task_id] = self._child_event(after, "completed")
            yield from self._on_end(after)
        if after.status is not before.status:
            yield from self._on_status_change(before, after)
        if after.queue and not before.queue:
            # The former worker has room now, and may have been assigned this task again already.
            waiting = (yield from task_rows.load(after.task_id)) if before.holder else after
            if waiting is not None and waiting.queue:
                yield from worker_choice.assign_waiting(self, waiting)
        if after.task_type == AGENT_STARTUP:
            yield from startup.moved(self, before, after)

    def payload_of(self, task_id: str) -> Program[bytes | None]:
        known = self.payloads.get(task_id)
        if known is not None:
            return known
        if self.payload_bytes >= PAYLOAD_BYTES:
            return None
        payload = yield from payloads.load(task_id)
        self.payload_bytes += len(payload)
        return payload

    @property
    def due_ms(self) -> int:
        """The earliest moment (Unix ms) at which a written task falls due, 0 for never."""
        moments = [row.due_ms for row in self.written.values() if row.due_ms]
        if self.effects.due_ms:
            moments.append(self.effects.due_ms)
        return min(moments, default=0)

    def _on_status_change(self, before: TaskRow, after: TaskRow) -> Program[None]:
        """Update dead letter, dependencies and parent of a task whose status has changed."""
        if before.status is StoredStatus.DLQ:
            yield from task_rows.resolve_dead_letter(after.task_id, self.context.now_ms, "", "tried again")
        if before.status is StoredStatus.WAITING_DEPENDENCY:
            yield Execute("DELETE FROM task_dependents WHERE task_id = $1", (after.task_id,))
        if before.status is StoredStatus.WAITING_AUTHORITY:
            yield from self.context.grants.end_wait(after.task_id)
        if after.status is StoredStatus.HIBERNATED:
            worker = yield from self.find_worker(after.assigned_to)
            if worker is not None:
                self.effects.hibernated.append((after, worker.node))
        if after.parent_task_id and (after.is_final or after.status in PAUSED):
            if after.is_final and not before.is_final:
                told = self.ends.pop(after.task_id, None)  # None: what has followed is behind it
            else:
                told = self._child_event(after, "transitioned" if after.status in PAUSED else "completed")
            if told is not None:
                self.left_events.pop(after.parent_task_id, None)
                yield from child_events.add(self, told)
        if after.workflow & REOPENED and after.status is StoredStatus.PENDING:
            yield from self.context.workflows.reopened(self, before, after)

    def worker_is_present(self, task: TaskRow) -> Program[bool]:
        """Return whether a task's worker is connected and knows of it; True without one."""
        if not task.assigned_to:
            return True
        worker = yield from self.find_worker(task.assigned_to)
        return worker is not None and worker.knows_of(task)

    def find_worker(self, identity: str) -> Program[Worker | None]:
        return read_worker((yield Fetch(_BY_NAME, (identity,))))

    def _on_end(self, task: TaskRow) -> Program[None]:
        now_ms = self.context.now_ms
        if task.tokens:
            self.effects.sessions_to_end.extend((yield from tokens.revoke(task, now_ms)))
        if task.grants:
            yield from self.context.grants.ended(self, task)
        if task.status is StoredStatus.DLQ:
            yield Execute(
                "INSERT INTO task_dead_letters (task_id, workspace, reason, error_type, attempts, buried_ms) "
                "VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (task_id) DO UPDATE SET reason = excluded.reason, "
                "error_type = excluded.error_type, attempts = excluded.attempts, buried_ms = excluded.buried_ms, "
                "resolved_ms = 0, resolved_by = '', notes = ''",
                (task.task_id, task.workspace, task.error, task.error_type, task.retry_count, now_ms),
            )
        if task.input_offset:
            yield from unused_inputs.forget(task.task_id)
        yield from self._write_completion(task)
        if task.awaited:
            yield from self.wake_dependents(task.task_id)
        if task.status is StoredStatus.CANCELLED and task.has_children:
            yield from self._cancel_children_later(task)
        if task.workflow:
            yield from self.context.workflows.ended(self, task)

    def _cancel_children_later(self, task: TaskRow) -> Program[None]:
        """Have children of a cancelled task that end with it cancelled later."""
        yield Execute(
            "INSERT INTO task_cancelled_parents (task_id) VALUES ($1) ON CONFLICT DO NOTHING", (task.task_id,)
        )
        self.effects.follow_ups.append(partial(cancel_children, parent_id=task.task_id))

    def wake_dependents(self, task_id: str) -> Program[None]:
        """Wake a page of the tasks that wait for a task which has ended or was deleted."""
        found: list[Row] = yield Fetch(
            "SELECT task_id FROM task_dependents WHERE depends_on = $1 ORDER BY task_id LIMIT $2", (task_id, WAKE_PAGE)
        )
        self.charge(moved=len(found))
        if len(found) == WAKE_PAGE:
            self.effects.unfinished.append(task_id)
        for (waiting_id,) in found:
            yield Execute("DELETE FROM task_dependents WHERE depends_on = $1 AND task_id = $2", (task_id, waiting_id))
            waiting = yield from task_rows.load(waiting_id)
            wait = waiting.waits_for if waiting is not None else None
            if waiting is None or wait is None or waiting.status is not StoredStatus.WAITING_DEPENDENCY:
                continue
            left: list[Row] = yield Fetch("SELECT 1 FROM task_dependents WHERE task_id = $1 LIMIT 1", (waiting_id,))
            if wait.wake_on_any or (not left and (yield from self.add_dependencies(waiting, wait))):
                yield from self.wake(waiting)

    def find_unfinished(self) -> Program[None]:
        """Find ended tasks whose dependents or children an ended process has not handled."""
        found: list[Row] = yield Fetch(_UNFINISHED, tuple(sorted(status.value for status in TERMINAL)))
        self.effects.unfinished.extend(task_id for (task_id,) in found)
        parents: list[Row] = yield Fetch("SELECT task_id FROM task_cancelled_parents")
        self.effects.follow_ups.extend(partial(cancel_children, parent_id=task_id) for (task_id,) in parents)
        yield from self.context.workflows.find_unfinished(self)

    def add_dependencies(self, task: TaskRow, wait: Wait) -> Program[bool]:
        """Write for which tasks a task waits; return whether its wait is over already."""
        ended = 0
        wanted = dict.fromkeys(wait.depends_on)
        self.charge(len(wanted))
        for task_id in wanted:
            other = yield from task_rows.load(task_id)
            if other is not None and other.workspace != task.workspace:
                other = None  # a task of another workspace is treated as one that does not exist
            if other is not None and not other.awaited:
                self.row_changes(task_id)
                yield Execute("UPDATE tasks SET awaited = 1 WHERE task_id = $1", (task_id,))
            if other is None or other.is_final:
                ended += 1
            else:
                yield Execute(
                    "INSERT INTO task_dependents (depends_on, task_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                    (task_id, task.task_id),
                )
        return wait.is_over(ended)

    def wake(self, task: TaskRow) -> Program[None]:
        present = yield from self.worker_is_present(task)
        yield from self.apply(task, Move.WAKE, self.facts(present=present))

    def _record(self, task: TaskRow, number: int, what: bytes) -> Program[None]:
        """Write an event of a task; `what`: the part of the TaskEvent that names it."""
        now_ms = self.context.now_ms
        event = pb.TaskEvent(
            task_id=task.task_id,
            workspace=task.workspace,
            parent_task_id=task.parent_task_id,
            emitted_at_unix_ms=now_ms,
        )
        encoded = event.SerializeToString() + what
        row = (task.task_id, number, now_ms, encoded)
        if self.context.shared and task.task_id not in self.unwatched:
            nodes: list[Row] = yield Fetch(_RECORD_AND_LOOK, (*row, self.context.node))
            self.effects.watching_nodes.update((node, task.task_id) for (node,) in nodes)
        else:
            yield Deferred("task_events", _RECORD, row)
        self.effects.events.append(RecordedEvent(task.task_id, number, now_ms, encoded))
        if number % KEPT_EVENTS == 0:
            yield from self._forget_events(task.task_id, number)

    def _forget_events(self, task_id: str, number: int) -> Program[None]:
        sql = "DELETE FROM task_events WHERE task_id = $1 AND number <= $2"
        yield Deferred("task_events", sql, (task_id, number - KEPT_EVENTS))

    def record_events(self, events: Mapping[str, tuple[int, Sequence[tuple[int, bytes]]]]) -> Program[None]:
        """Write events of tasks, whose rows count them: (first number, events)."""
        recorded = [
            RecordedEvent(task_id, number, *event)
            for task_id, (first, found) in events.items()
            for number, event in enumerate(found, first)
        ]
        if self.context.shared and len(events) == 1:  # with what else this transaction writes
            for row in recorded:
                yield Deferred("task_events", _RECORD, row)
        else:
            yield ExecuteMany(_RECORD, recorded)
        self.effects.events.extend(recorded)
        if self.context.shared and (followed := [task_id for task_id in events if task_id not in self.unwatched]):
            nodes: list[Row] = yield Fetch(
                "SELECT node, task_id FROM task_watchers WHERE task_id = ANY($1::text[]) AND node <> $2",
                (followed, self.context.node),
            )
            self.effects.watching_nodes.update((node, task_id) for node, task_id in nodes)
        for task_id, (first, found) in events.items():
            mark = (first + len(found) - 1) // KEPT_EVENTS * KEPT_EVENTS
            if mark >= first:
                yield from self._forget_events(task_id, mark)

    def _take_child_events(self, task: TaskRow) -> Program[None]:
        """Move the events of a task's children to its log; its row is written after this."""
        left, read = child_events.PAGE, self.left_events.pop(task.task_id, None)
        while left == child_events.PAGE:
            if read is not None:
                events = yield from child_events.take_read(task.task_id, task.parent_task_id, read)
                left = 0
            else:
                events = yield from child_events.take(self, task.task_id, task.parent_task_id)
                left = len(events)
            if left < child_events.PAGE:
                events += self._take_ends(task)
            if events:
                self.row_changes(task.task_id)
                yield from self.record_events({task.task_id: (task.events + 1, events)})
                task.events += len(events)

    def _take_ends(self, task: TaskRow) -> list[tuple[int, bytes]]:
        """Take the ends of a task's children that have ended it."""
        found = [child_events.insert_args(event)[1:] for event in self._ends_below(task.task_id)]
        return child_events.as_logged(found, task.parent_task_id)

    def _leave_ends(self, parent_id: str) -> Program[None]:
        """Write ends of a task's children before it gets another one."""
        self.left_events.pop(parent_id, None)
        for event in self._ends_below(parent_id):
            yield from child_events.add(self, event)

    def _ends_below(self, parent_id: str) -> list[pb.TaskEvent]:
        found = [child for child, event in self.ends.items() if event.task_id == parent_id] if self.ends else ()
        return [self.ends.pop(child) for child in found]

    def collect_child_events(self, task: TaskRow) -> Program[None]:
        """Move the events of a task's children to its log, before another event."""
        while count := (yield from child_events.collect_for(self, task.task_id)):
            task.events += count
            if count < child_events.PAGE:
                break

    def events_since(self, task_id: str, since_ms: int) -> Program[list[pb.TaskEvent]]:
        """Read a task's events since a moment (Unix ms), at most the KEPT_EVENTS latest."""
        found: list[Row] = yield Fetch(
            "SELECT event FROM task_events WHERE task_id = $1 AND at_ms >= $2 ORDER BY number DESC LIMIT $3",
            (task_id, since_ms, KEPT_EVENTS),
        )
        return [pb.TaskEvent.FromString(event) for (event,) in found]

    def record_event_once(self, task: TaskRow, event: pb.TaskEvent, since_ms: int) -> Program[None]:
        """Write a task's event, unless an earlier try wrote it at or after `since_ms`."""
        written = yield from self.events_since(task.task_id, since_ms)
        same = sum(one.WhichOneof("event") == "progress" and one.progress == event.progress for one in written)
        place = task.task_id, event.progress.SerializeToString(deterministic=True)
        self.repeats[place] = self.repeats.get(place, 0) + 1
        if same < self.repeats[place]:
            yield from self.record_event(task, event)

    def record_event(self, task: TaskRow, event: pb.TaskEvent) -> Program[None]:
        """Write an event of a task whose row changes in nothing else."""
        if task.has_children:
            yield from self.collect_child_events(task)
        self.row_changes(task.task_id)
        numbers: list[Row] = yield Fetch(
            "UPDATE tasks SET events = events + 1 WHERE task_id = $1 RETURNING events", (task.task_id,)
        )
        if numbers:
            yield from self._record(task, numbers[0][0], event.SerializeToString())

    def _child_event(self, task: TaskRow, lifecycle: str) -> pb.TaskEvent:
        """Make the event that tells a parent of its child's creation, end or pause."""
        status = _wire(task.status)
        child = pb.TaskChildLifecycleEvent(child_task_id=task.task_id, child_status=status, lifecycle=lifecycle)
        return pb.TaskEvent(
            task_id=task.parent_task_id,
            workspace=task.workspace,
            emitted_at_unix_ms=self.context.now_ms,
            child_lifecycle=child,
        )

    def _write_completion(self, task: TaskRow) -> Program[None]:
        """Write the completion message that the task's creator asked for to `task_outbox`."""
        if not task.spec:
            return
        spec = pb.CreateTaskRequest.FromString(task.spec)
        wanted = spec.completion_event
        if not wanted.enabled or (wanted.on_statuses and task.status.wire not in wanted.on_statuses):
            return
        payload = {
            "source_agent": "orchestrator",
            "workspace": task.workspace,
            "event_names": [wanted.event_name or f"task.{task.status.value}"],
            # The log may have it twice (outbox_publisher.py); the embedded engine handles it once.
            "event_id": f"{task.task_id}.{task.events}",
            "data": {
                "task_id": task.task_id,
                "status": task.status.value,
                "task_type": task.task_type,
                "correlation_id": task.correlation_id,
                "root_task_id": task.root_task_id,
                "metadata": dict(spec.metadata),
            },
        }
        frame = encode_delivery(
            delivery_prefix(task_topic(task.workspace, task.task_id, "events")),
            json.dumps(payload, separators=(",", ":")).encode(),
            delivery_suffix(pb.EVENT, task.workspace),
        )
        yield Deferred(
            "task_outbox",
            "INSERT INTO task_outbox (task_id, number, node, topic, frame) VALUES ($1, $2, $3, $4, $5)",
            (task.task_id, task.events, self.context.node, EVENT_INTAKE, frame),
        )
        self.effects.outbox = True


Mutation = Callable[[TaskTransaction], Program[None]]
"""Part of a program that one transaction runs."""


def cancel_children(tx: Transaction, parent_id: str, after: str = "") -> Program[None]:
    """Cancel some children of a cancelled parent, those behind the child id `after`."""
    parent = yield from task_rows.load(parent_id)
    found: list[TaskRow] = []
    if parent is not None and parent.status is StoredStatus.CANCELLED:  # not retried meanwhile
        found = yield from task_rows.select(
            "parent_task_id = $1 AND parent_task_id <> '' AND task_id > $2 ORDER BY task_id LIMIT $3",
            (parent_id, after, WAKE_PAGE),
        )
    for child in found:
        if not child.is_final and ends_with_parent(child):
            facts = tx.facts(reason=f"parent task {parent_id} was cancelled")
            # Load it again: the end of another child may have moved it.
            current = yield from task_rows.load(child.task_id)
            if current is not None and not current.is_final:
                yield from tx.apply(current, Move.CANCEL, facts)
    if len(found) == WAKE_PAGE:
        tx.effects.follow_ups.append(partial(cancel_children, parent_id=parent_id, after=found[-1].task_id))
    else:
        yield Execute("DELETE FROM task_cancelled_parents WHERE task_id = $1", (parent_id,))


def _has_event(before: TaskRow, after: TaskRow) -> bool:
    """Return whether a task's change is an event: a new wire status or no more retry."""
    if after.status is before.status:
        return False
    buried = after.status is StoredStatus.DLQ and before.status is StoredStatus.FAILED
    return buried or before.status.wire != after.status.wire


def _wire(status: StoredStatus) -> pb.TaskStatus.ValueType:
    return pb.TaskStatus.ValueType(status.wire)


def _status_changed(before: StoredStatus, after: StoredStatus, reason: str) -> bytes:
    """Encode the part of a TaskEvent that tells of a status change."""
    changed = pb.TaskStatusChangedEvent(from_status=_wire(before), to_status=_wire(after), reason=reason)
    return pb.TaskEvent(status_changed=changed).SerializeToString()


_status_changed_silently: Final = lru_cache(maxsize=256)(_status_changed)
"""The same for changes without a reason, of which there are few."""
