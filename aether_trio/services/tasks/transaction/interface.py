"""Defines context, effects and interface of a database transaction on tasks.

TaskTransaction (task_transaction.py) implements `Transaction`. The parts of a transaction
(worker_choice.py, child_events.py, startup.py) use it only through this Protocol: applying a move
calls the parts, and the parts apply further moves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from aether_trio.model.audit import AuditEvent
from aether_trio.model.tasks import Facts, Move, TaskRow
from aether_trio.model.tasks.result import TaskResult
from aether_trio.model.tasks.timed_transitions import TimeLimits
from aether_trio.model.tasks.transitions import Decision
from aether_trio.services.access.changes import Draft
from aether_trio.services.tasks.transaction.live_rows import LiveRows
from aether_trio.services.tasks.transaction.workers import Worker
from aether_trio.storage.base import Program
from aether_trio.wire.pb import aether_pb2 as pb


class LargeError(Exception):
    """A small transaction on tasks would read too many rows; it is run as a large one."""


class NotReadyError(Exception):
    """A program needs what takes long to make; it runs again after `prepare`."""

    async def prepare(self) -> None:
        """Make it outside of transactions, while other tasks run."""
        raise NotImplementedError


class ChangeRefused(Exception):
    """What was asked for is refused in its transaction, and nothing is committed.

    It is the caller's answer. When the caller has left, nothing is wrong.
    """


class TaskGrants(Protocol):
    """What tasks do with grants, in their transactions (services/authority/).

    A task that was created on behalf of a subject has a grant for its worker, which ends with it.
    """

    def assigned(self, tx: Transaction, before: TaskRow, after: TaskRow) -> Program[None]:
        """Give a pool's worker a grant, in the row `after`; end the last one."""

    def ended(self, tx: Transaction, task: TaskRow) -> Program[None]:
        """Revoke the grants that end with a task."""

    def retry_problem(self, task: TaskRow) -> Program[str]:
        """Return why an ended task may not be tried again: what it rests on is revoked."""

    def begin_wait(self, tx: Transaction, task: TaskRow, request_id: str) -> Program[None]:
        """Let a task wait for a request, unless it is decided already."""

    def end_wait(self, task_id: str) -> Program[None]:
        """Forget that a task waits for an authority request."""


class NoTaskGrants:
    """The TaskGrants of tasks without authority."""

    def assigned(self, tx: Transaction, before: TaskRow, after: TaskRow) -> Program[None]:
        yield from ()

    def ended(self, tx: Transaction, task: TaskRow) -> Program[None]:
        yield from ()

    def retry_problem(self, task: TaskRow) -> Program[str]:
        yield from ()
        return ""

    def begin_wait(self, tx: Transaction, task: TaskRow, request_id: str) -> Program[None]:
        yield from ()

    def end_wait(self, task_id: str) -> Program[None]:
        yield from ()


NO_TASK_GRANTS: Final = NoTaskGrants()


class SentStep(NamedTuple):
    """The step of an execution whose task this node has sent to a worker."""

    execution_id: str
    step: str
    item: int


class TaskWorkflows(Protocol):
    """What workflows do in the transactions of tasks (services/workflows/).

    Only tasks that are part of a workflow (`TaskRow.workflow`) are given to it, and those with
    events that definitions take.
    """

    def wanted(self, before: TaskRow | None, task: TaskRow) -> Sequence[str]:
        """Return the names of a task's event that definitions take; any thread.

        `before`: None for a new task. It is asked of all tasks, in memory.
        """

    def happened(self, tx: Transaction, task: TaskRow, names: Sequence[str], by: str) -> Program[None]:
        """Write a task's event; `by`: the identity that has caused it, "": the gateway."""

    def ended(self, tx: Transaction, task: TaskRow) -> Program[None]:
        """Move on the execution whose step has ended, or which has ended itself."""

    def sent(self, task: TaskRow) -> SentStep | None:
        """Return which step a task is; None: its end is taken in later, or no step's."""

    def load_step(self, tx: Transaction, task_id: str, step: SentStep) -> Program[TaskRow | None]:
        """Load a step's task with its execution; None if there is no such task."""

    def ends_apart(self, tx: Transaction, task: TaskRow) -> Program[bool]:
        """Return whether the completion of a step decides on no rows of other tasks.

        But for those of the execution that `load_step` has loaded.
        """

    def retry_problem(self, task: TaskRow) -> Program[str]:
        """Return why an ended execution may not be tried again; else ""."""

    def reopened(self, tx: Transaction, before: TaskRow, after: TaskRow) -> Program[None]:
        """Go on with an execution or a question whose row has become PENDING."""

    def forget_part(self, tx: Transaction, task: TaskRow) -> Program[int]:
        """Delete a part of what belongs to an ended task that is to be deleted.

        Return in how many ms the task may be looked at again, 0 if it may be deleted now: the rest
        is small, and its execution undoes nothing.
        """

    def forgotten(self, task: TaskRow) -> Program[None]:
        """Delete what belongs to an execution whose task is deleted."""

    def fire(self, tx: Transaction, *, one: bool = False) -> Program[int]:
        """Handle a page of due moments of workflows, or one; return how many there were."""

    def settled(self, error: Exception | None) -> bool:
        """Note that a page of `fire` was committed, or undone by this error.

        Return whether the error is that of one thing, which the next `fire` puts off. After a
        `fire` of one moment it is.
        """

    def fold(self, tx: Transaction, execution_id: str) -> Program[None]:
        """Let an execution take in a page of its items that have ended."""

    def used(self, tx: Transaction, task: TaskRow, metadata: Mapping[str, str]) -> Program[str]:
        """Sum up what a task has used, as its worker reports; return what is wrong."""

    def find_unfinished(self, tx: Transaction) -> Program[None]:
        """Find what an ended process has left, such as items that were not taken in."""


class NoTaskWorkflows:
    """The TaskWorkflows of tasks without workflows."""

    def wanted(self, before: TaskRow | None, task: TaskRow) -> Sequence[str]:
        return ()

    def happened(self, tx: Transaction, task: TaskRow, names: Sequence[str], by: str) -> Program[None]:
        yield from ()

    def ended(self, tx: Transaction, task: TaskRow) -> Program[None]:
        yield from ()

    def sent(self, task: TaskRow) -> SentStep | None:
        return None

    def load_step(self, tx: Transaction, task_id: str, step: SentStep) -> Program[TaskRow | None]:
        return tx.load(task_id)

    def ends_apart(self, tx: Transaction, task: TaskRow) -> Program[bool]:
        yield from ()
        return False

    def retry_problem(self, task: TaskRow) -> Program[str]:
        yield from ()
        return ""

    def reopened(self, tx: Transaction, before: TaskRow, after: TaskRow) -> Program[None]:
        yield from ()

    def forget_part(self, tx: Transaction, task: TaskRow) -> Program[int]:
        yield from ()
        return 0

    def forgotten(self, task: TaskRow) -> Program[None]:
        yield from ()

    def fire(self, tx: Transaction, *, one: bool = False) -> Program[int]:
        yield from ()
        return 0

    def settled(self, error: Exception | None) -> bool:
        return False

    def fold(self, tx: Transaction, execution_id: str) -> Program[None]:
        yield from ()

    def used(self, tx: Transaction, task: TaskRow, metadata: Mapping[str, str]) -> Program[str]:
        yield from ()
        return ""

    def find_unfinished(self, tx: Transaction) -> Program[None]:
        yield from ()


NO_TASK_WORKFLOWS: Final = NoTaskWorkflows()


class Context(NamedTuple):
    """Time, limits and kind of database of one transaction; `node` is a lease's name."""

    now_ms: int
    node: str
    limits: TimeLimits
    shared: bool = False
    """Whether other nodes write to the same tables."""
    small: bool = False
    """Whether the event loop waits: then more than SMALL_ROWS rows raise LargeError."""
    again: bool = False
    """Whether an earlier run of the program may have been committed."""
    live_rows: LiveRows | None = None
    """Rows that need not be read; None: the transaction may write rows that it does not load."""
    uniform: Callable[[], float] = lambda: 0.5
    """Random numbers from 0 to 1, for the jitter of retries."""
    note_start: Callable[[str], None] = lambda identity: None
    """Is told of an agent before it gets a row in `agent_starts`. Any thread."""
    grants: TaskGrants = NO_TASK_GRANTS
    may_serve: Callable[[str, str], bool] = lambda identity, workspace: True
    """Whether a service may be given tasks of a workspace's pools. Any thread."""
    workflows: TaskWorkflows = NO_TASK_WORKFLOWS


class RecordedEvent(NamedTuple):
    """A written event of a task: number, time and TaskEvent without its subscription."""

    task_id: str
    number: int
    at_ms: int
    event: bytes


class LeftEvent(NamedTuple):
    """A row of `task_child_events`: an event for the log of the parent."""

    id: int
    at_ms: int
    event: bytes


class NewAssignment(NamedTuple):
    """A task that its worker is sent; its payload, or None: read when it is sent."""

    task: TaskRow
    worker: Worker
    payload: bytes | None


@dataclass(slots=True)
class Effects:
    """What the task engine does after a transaction's commit (`Engine.after_commit`)."""

    events: list[RecordedEvent] = field(default_factory=list)
    """Events for subscribers of this node."""
    watching_nodes: set[tuple[str, str]] = field(default_factory=set)
    """(node, task id): other nodes whose subscribers are to be sent new events."""
    status_changes: list[TaskRow] = field(default_factory=list)
    """Tasks whose creators are sent a progress update with the new status."""
    assignments: list[NewAssignment] = field(default_factory=list)
    hibernated: list[tuple[TaskRow, str]] = field(default_factory=list)
    """Tasks that were hibernated, with the nodes of their workers."""
    unfinished: list[str] = field(default_factory=list)
    """Ended tasks on which more tasks depend than this transaction has woken."""
    child_events: set[str] = field(default_factory=set)
    """The parents to whose logs child events are to be moved that were added."""
    outbox: bool = False
    """Whether messages were added to `task_outbox` that are to be appended to the topic log."""
    absent_targets: list[str] = field(default_factory=list)
    """Targets of waiting tasks that are not connected; some may be agents that can be started."""
    lost_agents: list[str] = field(default_factory=list)
    """Agents that are started when they are needed, and whose gateway has ended."""
    sessions_to_end: list[tuple[str, str]] = field(default_factory=list)
    """(node, session id): sessions whose token is revoked, as its task has ended."""
    crashed_agents: list[str] = field(default_factory=list)
    """Agents whose processes have failed, as their orchestrators have reported."""
    ended_processes: list[tuple[str, str]] = field(default_factory=list)
    """(node, session id): sessions of agents whose process is known to have ended."""
    follow_ups: list[Callable[[Transaction], Program[None]]] = field(default_factory=list)
    """Further pages of work, each for a separate transaction."""
    access_changes: list[Draft] = field(default_factory=list)
    """A change of access data in this transaction, to be applied after the commit."""
    audit_rows: list[AuditEvent] = field(default_factory=list)
    """Events that are written to the audit log in this transaction."""
    due_ms: int = 0
    """The earliest moment (Unix ms) that workflows have set, 0 for none."""
    arrivals: set[str] = field(default_factory=set)
    """Executions of workflows with items that have ended and are to be taken in."""

    def note_due(self, due_ms: int) -> None:
        """Note a moment that workflows set; 0 for none."""
        if due_ms and not 0 < self.due_ms <= due_ms:
            self.due_ms = due_ms


class Transaction(Protocol):
    """Interface of a database transaction on tasks, for the modules of its parts."""

    context: Context
    effects: Effects
    known_parents: set[str]
    """Tasks whose rows say that they have children."""
    unwatched: set[str]
    """Tasks of which no other node follows the events."""
    results: dict[str, TaskResult]
    """Results of tasks that end in this transaction and are not written yet."""
    workflow: object
    """What `TaskWorkflows` keeps for this transaction; None at its begin."""

    @property
    def is_full(self) -> bool:
        """Whether it has written so much that what may wait is for another one."""

    def access_change(self) -> Program[Draft]:
        """Return the transaction's change of access data; it is begun if there is none."""

    def charge(self, rows: int = 0, *, moved: int = 0) -> None:
        """Count rows to be read and tasks to be changed; LargeError beyond SMALL_ROWS."""

    def row_changes(self, task_id: str) -> None:
        """Note that a statement changes a task's row, besides `write` and `create`."""

    def load(self, task_id: str) -> Program[TaskRow | None]:
        """Load a task that this transaction is about to change; None if there is none."""

    def note_loaded(self, task: TaskRow, events: Sequence[LeftEvent] | None = None) -> None:
        """Keep a row that this transaction has read, and alone changes, for `load`.

        `events`: all that children of the task have left for its log, if they were read, too.
        """

    def facts(self, caller: str = "", **more: Any) -> Facts:
        """Make the facts (time, caller, reason) of a status change that happens now."""

    def find_worker(self, identity: str) -> Program[Worker | None]:
        """Find the connected worker with this identity."""

    def payload_of(self, task_id: str) -> Program[bytes | None]:
        """Read a task's payload for a worker here; None after PAYLOAD_BYTES in all."""

    def apply(self, task: TaskRow, move: Move, facts: Facts, reserved: Worker | None = None) -> Program[Decision]:
        """Decide on a task's status change; if it is allowed, write it and all it causes."""

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
        """Write a task's changed row with the events, assignments and wake-ups it causes.

        `push`: the worker is sent the task. `reserved`: the worker that counts the task already
        (`worker_choice.reserve_worker`). `by`: the identity that has caused it, "": the gateway.
        """

    def create(self, task: TaskRow, payload: bytes) -> Program[bool]:
        """Write a new task, assigned if a worker has room; return False if it exists."""

    def wake(self, task: TaskRow) -> Program[None]:
        """Let a waiting task go on, as what it waited for has happened."""

    def record_event(self, task: TaskRow, event: pb.TaskEvent) -> Program[None]:
        """Write an event of a task whose row changes in nothing else."""

    def record_events(self, events: Mapping[str, tuple[int, Sequence[tuple[int, bytes]]]]) -> Program[None]:
        """Write events of tasks whose rows count them already.

        `events` has, by task id, the number of the first event and (time in ms, event) of each.
        """
