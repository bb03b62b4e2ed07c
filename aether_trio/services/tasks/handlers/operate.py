"""TaskOperation: from the wire's operations to moves, in one transaction each (reference: tasks.md 6.3)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from aether_trio.model.tasks import Mode, Move, Reason, Refused, Status, Step, Task, Wait, decide
from aether_trio.model.tasks.table import RULES, Decision
from aether_trio.model.tasks.task import AGENT_STARTUP
from aether_trio.services.tasks.handlers.permissions import Caller, is_party, may_be_given, waits_for
from aether_trio.services.tasks.handlers.sanitize import storable
from aether_trio.services.tasks.transaction import input_rows, rows, startup
from aether_trio.services.tasks.transaction.work import Context, Work
from aether_trio.storage.base import Execute, Fetch, Program, Row, placeholders
from aether_trio.wire.pb import aether_pb2 as pb

Op = pb.TaskOperation

MAX_DEPENDENCIES: Final = 1_000
MAX_CIRCLE: Final = 10_000
"""Tasks that one waits for, itself or through others, if it is waited for itself: so many are looked at for a circle."""
CIRCLE_PART: Final = 50
"""Of them, rows that one statement reads.

Each names up to MAX_DEPENDENCIES tasks, which are read while all else of the process waits.
"""
MAX_TIMEOUT_MS: Final = 10 * 365 * 24 * 3600 * 1000
"""Ten years: a longer wait is as good as one without an end, and must not overflow a column when it is added to a time."""
MAX_WAKE_MS: Final = 2**62

MOVES: Final[Mapping[int, tuple[Move, str]]] = MappingProxyType(
    {
        Op.RETRY: (Move.RETRY, "task queued for retry"),
        Op.CANCEL: (Move.CANCEL, "task cancelled"),
        Op.COMPLETE: (Move.COMPLETE, "task completed"),
        Op.FAIL: (Move.FAIL, "task marked as failed"),
        Op.PAUSE: (Move.PAUSE, "task paused"),
        Op.WAIT_FOR: (Move.PAUSE, "task waiting on dependencies"),
        Op.RESUME: (Move.RESUME, "task resumed"),
        Op.REJECT: (Move.REJECT, "task rejected"),
        Op.CLAIM: (Move.CLAIM, "task claimed"),
    }
)
"""Each operation's move, and the message of its success."""


class Asked(NamedTuple):
    """One operation. `wait` belongs to PAUSE and WAIT_FOR, `checked` says that its dependencies are to be in the task's workspace.

    `number` is the assignment that the caller speaks for, 0 for its latest. A PAUSE with the same `request_id` is the same PAUSE.
    """

    task_id: str
    move: Move
    reason: str = ""
    wait: Wait | None = None
    request_id: str = ""
    checked: bool = False
    number: int = 0
    first_claim: bool = False
    """Whether it shows for the first time that the caller's client says when it begins."""


class Outcome(NamedTuple):
    """What became of it. `work` is None when nothing was written; `task` None: there is no such task for this caller.

    `needs`: nothing was done, and an access rule of this workspace is to be asked first.
    """

    task: Task | None = None
    work: Work | None = None
    refusal: str = ""
    needs: str = ""


def operate(context: Context, caller: Caller, asked: Asked, since_ms: int = 0) -> Program[Outcome]:
    """One move that a participant asks for.

    `since_ms`: this is not the first run. An earlier one began at that moment, and it is not known whether it was committed.
    """
    task = yield from rows.load(asked.task_id)
    if task is None:
        return Outcome()
    epoch: int | None = task.epoch
    if caller.name != task.assigned_to:
        epoch = yield from rows.latest_epoch(task.task_id, caller.name)
    if asked.number and epoch is not None:
        epoch = asked.number  # a participant of the same name may have it by now, or its own earlier work be late
    # Who had it is told that it has lost it when it reports the end; that gives no right to cancel another's work.
    had_it = epoch is not None and RULES[asked.move].by_worker
    its_turn = RULES[asked.move].by_worker and (waits_for(task, caller) or task.ended_by == caller.name)
    if not (caller.allowed or is_party(task, caller) or had_it or its_turn):
        return Outcome(needs=task.workspace)
    work = Work(context)
    if since_ms and (yield from _was_made(work, task, asked, since_ms)):
        return Outcome(task, work)
    refusal = _check_claim(task, caller, asked) or (yield from _check_wait(work, task, caller, asked))
    if refusal:
        return Outcome(task, refusal=refusal)
    present = True
    if asked.move is Move.RESUME and task.assigned_to:
        present = yield from work.at_work(task)
    facts = work.facts(
        caller.name,
        caller_epoch=epoch,
        reason=asked.reason,
        wait=asked.wait,
        pause_key=_pause_key(task, caller, asked, epoch),
        present=present,
    )
    if asked.wait is not None and isinstance(decide(task, asked.move, facts), Step):
        circle = yield from _check_circle(work, task, asked.wait)
        if circle:
            return Outcome(task, refusal=circle)
    decision: Decision | None = None
    if task.task_type == AGENT_STARTUP:
        refusal = startup.refuse(task, asked.move)
        if refusal:
            return Outcome(task, refusal=refusal)
        if asked.move is Move.FAIL and epoch is not None:
            decision = yield from startup.failed(work, task, caller.name, epoch, asked.reason)
        elif asked.move is Move.CLAIM and epoch is not None:
            decision = startup.claimed(task, caller.name, epoch)
    if decision is None:
        decision = yield from work.make(task, asked.move, facts)
    if isinstance(decision, Refused):
        return Outcome(task, refusal=decision.text)
    if asked.first_claim:
        yield Execute("UPDATE task_workers SET claims = 1 WHERE identity = $1", (caller.name,))
    after = decision.after if isinstance(decision, Step) else task
    if after.status is Status.PENDING:  # or whatever has become of it by now
        after = (yield from rows.load(task.task_id)) or task
    if after.status is Status.WAITING_DEPENDENCY and asked.wait is not None:
        yield from _wait_for(work, after, asked.wait)
        after = (yield from rows.load(task.task_id)) or after
    if asked.move is Move.PAUSE and after.status is Status.WAITING_INPUT and (yield from _use_input(work, after)):
        after = (yield from rows.load(task.task_id)) or after
    return Outcome(after, work)


def _pause_key(task: Task, caller: Caller, asked: Asked, epoch: int | None) -> str:
    """The same for the same PAUSE of the same assignment, and short. "" for one that cannot be recognized, and for other moves."""
    if asked.move is not Move.PAUSE or asked.wait is None or not asked.request_id:
        return ""
    number = task.epoch if epoch is None else epoch
    text = "\0".join((caller.name, str(number), asked.request_id, asked.wait.in_order()))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _use_input(work: Work, task: Task) -> Program[bool]:
    """Go on at once if an input that the task waits for is there already; whether it was."""
    if not task.input_offset or task.waits_for is None:
        return False
    kept = yield from input_rows.kept(task.task_id)
    work.look_at(len(kept))
    for offset, metadata in kept:
        if task.waits_for.takes(metadata):
            yield from input_rows.use(task.task_id, offset)
            yield from work.wake(task)
            return True
    return False


def _was_made(work: Work, task: Task, asked: Asked, since_ms: int) -> Program[bool]:
    """Whether an earlier run was committed, of a move whose row does not tell who has made it."""
    wanted = _LEADS_TO.get(asked.move)
    if wanted is None:
        return False
    for event in (yield from work.events_since(task.task_id, since_ms)):
        changed = event.status_changed
        if event.HasField("status_changed") and changed.to_status in wanted:
            return asked.move is not Move.FAIL or changed.reason == (asked.reason or "task failed")
    return False


_LEADS_TO: Final[Mapping[Move, frozenset[int]]] = MappingProxyType(
    {
        Move.RETRY: frozenset({pb.TASK_STATUS_QUEUED}),
        Move.RESUME: frozenset({pb.TASK_STATUS_QUEUED, pb.TASK_STATUS_RUNNING}),
        Move.FAIL: frozenset({pb.TASK_STATUS_FAILED}),
    }
)
"""Of moves after which a task may go on at once: what their events say that it has become."""


def _check_claim(task: Task, caller: Caller, asked: Asked) -> str:
    """Why a task of a pool is not this caller's to take; "" if it is. The table knows the others."""
    if asked.move is not Move.CLAIM or task.status is not Status.PENDING or task.mode is not Mode.POOL:
        return ""
    if may_be_given(task, caller.identity):
        return ""
    if task.task_type == AGENT_STARTUP:
        return "a start is given to an orchestrator"
    return f"the task is for workers of {task.target_implementation}"


def _check_wait(work: Work, task: Task, caller: Caller, asked: Asked) -> Program[str]:
    """Why this wait cannot be begun; "" if it can."""
    wait = asked.wait
    if asked.move is not Move.PAUSE or wait is None:
        return ""
    if len(wait.depends_on) > MAX_DEPENDENCIES:
        return f"a task may wait for at most {MAX_DEPENDENCIES} others"
    if task.task_id in wait.depends_on:
        return "a task cannot wait for itself"
    if wait.reason == Reason.HIBERNATION and not task.assigned_to:
        return "a task that nobody has cannot hibernate"
    if wait.reason == Reason.HIBERNATION and caller.name != task.assigned_to:
        return "only its worker can let a task hibernate: it leaves a checkpoint of its own to the next one"
    if asked.checked:
        work.look_at(len(wait.depends_on))
        for task_id in wait.depends_on:
            rows_found: list[Row] = yield Fetch("SELECT workspace FROM tasks WHERE task_id = $1", (task_id,))
            if not rows_found or rows_found[0][0] != task.workspace:
                return f"dependency {task_id} not found"
    return ""


def _check_circle(work: Work, task: Task, wait: Wait) -> Program[str]:
    """Why this wait would be for the task's own end; "" if it would not.

    What tasks wait for is in their rows. A task that none has ever waited for is on no circle, and costs nothing here.
    """
    if not task.awaited or wait.status is not Status.WAITING_DEPENDENCY:
        return ""
    via = {task_id: task_id for task_id in wait.depends_on}
    ahead = list(via)
    while ahead:
        part, ahead = ahead[:CIRCLE_PART], ahead[CIRCLE_PART:]
        work.look_at(len(part))
        marks = placeholders(len(part), first=3)
        found: list[Row] = yield Fetch(
            f"SELECT task_id, wait FROM tasks WHERE workspace = $1 AND status = $2 AND task_id IN ({marks})",  # noqa: S608
            (task.workspace, Status.WAITING_DEPENDENCY.value, *part),
        )
        for waiting_id, text in found:
            for task_id in Wait.from_json(text).depends_on:
                if task_id == task.task_id:
                    return f"{via[waiting_id]} waits for this task, itself or through others: neither would ever go on"
                if task_id not in via:
                    via[task_id] = via[waiting_id]
                    ahead.append(task_id)
            if len(via) > MAX_CIRCLE:
                return f"the task would wait, itself or through others, for more than {MAX_CIRCLE} tasks"
    return ""


def _wait_for(work: Work, task: Task, wait: Wait) -> Program[None]:
    """Begin to wait for others, and for no earlier ones; if that leaves nothing to wait for, go on at once."""
    yield Execute("DELETE FROM task_dependents WHERE task_id = $1", (task.task_id,))
    if (yield from work.depend(task, wait)):
        yield from work.wake(task)


def read_wait(op: pb.TaskOperation) -> Wait | None:
    """The wait of a PAUSE or WAIT_FOR; None when there is none."""
    if not op.HasField("wait_spec"):
        return None
    spec = op.wait_spec
    asleep = spec.hibernation
    return Wait(
        reason=Reason.DEPENDENCY if op.op == Op.WAIT_FOR else int(spec.reason),
        expected_principal=spec.expected_principal,
        input_match=dict(spec.input_match),
        authority_request_id=spec.authority_request_id,
        depends_on=tuple(storable(task_id) for task_id in spec.depends_on if task_id),
        wake_on_any=spec.wake_on_any,
        timeout_ms=min(max(spec.timeout_ms, 0), MAX_TIMEOUT_MS),
        wake_ms=min(max(spec.scheduled_wake_unix_ms, 0), MAX_WAKE_MS),
        checkpoint_key=storable(asleep.checkpoint_key),
        resume_session_id=storable(asleep.resume_session_id),
        wake_event_types=tuple(asleep.wake_event_types),
        escalation=asleep.escalation_policy,
    )
