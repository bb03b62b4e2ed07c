"""Starts of agents (tasks of type agent_startup), from request to connection.

    request_start ──▶ PENDING ── dispatch ──▶ STARTING, assigned to an orchestrator
                         ▲                        │ the agent connects ──▶ RUNNING, until it ends
                         │ the orchestrator goes: to the next one, at once
                         └── it fails, or the agent does not connect in time: to the next one,
                             after a pause; the third time DLQ

Each identity has one start that has not ended: a further request finds it. A paused start whose
agent is away is woken by a request: a hibernated one is dispatched, a waiting one has its grace
window. orchestrators.py says which orchestrator is next, on any node. A start without one waits for
the first that has the agent.

Differences from the reference (tasks.md 4): a start to which no agent attaches ends with a reason
(there it stays assigned for ever), and an orchestrator may report that a process has ended.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from aether_trio.model.identity import Identity
from aether_trio.model.tasks import Mode, Move, StoredStatus, TaskRow
from aether_trio.model.tasks.status import PAUSED, WAITING
from aether_trio.model.tasks.task import AGENT_STARTUP, NO_WORKER, PROCESS_ENDED, PROCESS_FAILED, AgentProcess
from aether_trio.model.tasks.timed_transitions import start_delay_ms
from aether_trio.model.tasks.transitions import Decision, MoveRefusal, RefusedMove, Repeat
from aether_trio.model.tasks.waiting_queue import POOL
from aether_trio.services.tasks.protobuf import assignment, hibernation_of, may_start_target
from aether_trio.services.tasks.transaction import orchestrators, task_rows, tokens
from aether_trio.services.tasks.transaction.interface import Context, Transaction
from aether_trio.storage.base import Execute, Fetch, Program, Row, placeholders
from aether_trio.wire.pb import aether_pb2 as pb

ATTEMPTS: Final = 3
NORMAL: Final = TaskRow.priority
PROFILE: Final = "profile"
TOKEN: Final = "auth_token"  # noqa: S105  # the name of a launch parameter
TRIGGER: Final = "trigger_timestamp_ms"
IDENTITY: Final = "target_identity"
"""Metadata of a start: the identity; other fields do not tell agents from unique tasks."""
CATEGORY: Final = "orchestrated"
GIVEN_BACK: Final = 20  # latest assignments of a start whose rows stay when it is given back
WAITING_PAGE: Final = 50
GATEWAY_GRACE_MS: Final = 60_000
"""More grace for an agent whose gateway has ended: clients reconnect after growing pauses."""
PRIORITY: Final = "priority"
"""Metadata of a start: its priority, for an orchestrator without room for all starts."""
_BEGUN: Final = WAITING | {StoredStatus.RUNNING}
"""The agent of a start has connected, and the start was not taken from it."""


# By the index, from one name to the next, however many tasks wait for each.
_WAITED_FOR: Final = """WITH RECURSIVE waited (name) AS (
        SELECT MIN(queue) FROM tasks WHERE queue <> '' AND queue > $1
        UNION ALL SELECT (SELECT MIN(t.queue) FROM tasks t WHERE t.queue <> '' AND t.queue > waited.name)
        FROM waited WHERE waited.name IS NOT NULL
    ) SELECT name FROM waited WHERE name IS NOT NULL LIMIT $2"""
_FIRST_WAITING: Final = "queue = $1 AND queue <> '' ORDER BY priority DESC, order_us LIMIT 1"
_SERVED: Final = "SELECT 1 FROM task_workers WHERE workspace = $1 AND implementation = $2 AND pooled = 1 LIMIT 1"
_AT_WORK: Final = f"""SELECT 1 FROM tasks WHERE holder = $1 AND holder <> '' AND task_type <> '{AGENT_STARTUP}'
    AND (status = 'running' OR begun = 1) LIMIT 1"""  # noqa: S608
_NOTE_WORK: Final = """INSERT INTO agent_crashes (identity, position, times, task_id, skip_to, at_work)
    VALUES ($1, 0, 0, '', 0, $2) ON CONFLICT (identity) DO UPDATE SET at_work = excluded.at_work"""
_STARTABLE: Final = ("ag::", "tu::")
_ORCHESTRATORS: Final = "orc::"


@dataclass(frozen=True, slots=True)
class AgentStartRequest:
    """A request to start an agent with these complete launch parameters."""

    task_id: str
    target: Identity
    params: Mapping[str, str]
    trigger_ms: int
    order_us: int
    creator: str = ""
    priority: int = NORMAL
    """The priority of the task that needs the agent."""


@dataclass(frozen=True, slots=True)
class StartResult:
    """An agent's current start, `created` or `woken` by this request, or the problem."""

    task: TaskRow | None = None
    created: bool = False
    woken: bool = False
    problem: str = ""
    waits: str = ""
    """Why the start waits for an orchestrator, as a sentence; "" if it was assigned to one."""
    crashed: bool = False
    """Whether the agent has crashed, which is to be counted before it is started."""

    @property
    def missing(self) -> bool:
        """Whether the started agent has lost its connection, and may return."""
        return self.task is not None and bool(self.task.disconnected_ms)


def current_start(identity: str) -> Program[TaskRow | None]:
    """Return the start of an agent that has not ended; None if there is none."""
    found: list[Row] = yield Fetch("SELECT task_id FROM agent_starts WHERE identity = $1", (identity,))
    task = (yield from task_rows.load(found[0][0])) if found else None
    return task if task is not None and not task.is_final else None


def started_names(after: str, count: int) -> Program[list[str]]:
    """Read a page of the agents that the gateway has started, ordered by name."""
    wanted = "SELECT identity FROM agent_starts WHERE identity > $1 ORDER BY identity LIMIT $2"
    rows: list[Row] = yield Fetch(wanted, (after, count))
    return [identity for (identity,) in rows]


def was_started(identity: str) -> Program[bool]:
    """Return whether a participant is an agent that the gateway had started."""
    found: list[Row] = yield Fetch("SELECT 1 FROM agent_starts WHERE identity = $1", (identity,))
    return bool(found)


def connected_among(identities: Sequence[str]) -> Program[set[str]]:
    """Return which of these participants are connected, by the table `task_workers`."""
    sql = f"SELECT identity FROM task_workers WHERE identity IN ({placeholders(len(identities))})"  # noqa: S608
    found: list[Row] = yield Fetch(sql, identities)
    return {identity for (identity,) in found}


def absent_agent_of(task: TaskRow) -> Program[list[str]]:
    """Return the agent that may be started for the task of a workflow's step, if any.

    The step names an implementation; an agent of it is started if none is connected.
    """
    if not task.workflow or task.workflow & NO_WORKER or task.mode is not Mode.POOL:
        return []
    served: list[Row] = yield Fetch(_SERVED, (task.workspace, task.target_implementation))
    return [] if served else [f"ag::{task.workspace}::{task.target_implementation}::default"]


def absent_targets(after: str) -> Program[tuple[list[str], str]]:
    """Return a page of absent agents for which tasks wait, and the next page's begin."""
    found: list[Row] = yield Fetch(_WAITED_FOR, (after, WAITING_PAGE))
    names = [name for (name,) in found if name.startswith(_STARTABLE)]
    here = (yield from connected_among(names)) if names else set()
    wanted: list[str] = []
    for name in names:
        if name not in here:
            waiting = yield from task_rows.select(_FIRST_WAITING, (name,))
            if waiting and waiting[0].mode is Mode.TARGETED and may_start_target(waiting[0]):
                wanted.append(name)
    for name in (name for (name,) in found if name.startswith(POOL)):
        for task in (yield from task_rows.select(_FIRST_WAITING, (name,))):
            wanted += yield from absent_agent_of(task)
    return wanted, found[-1][0] if len(found) == WAITING_PAGE else ""


def new_start(wish: AgentStartRequest, context: Context) -> TaskRow:
    """Make the row of a task that starts an agent."""
    target, now_ms = wish.target, context.now_ms
    spec = pb.CreateTaskRequest(launch_param_overrides=wish.params, metadata={TRIGGER: str(wish.trigger_ms)})
    return TaskRow(
        wish.task_id,
        AGENT_STARTUP,
        target.workspace,
        mode=Mode.POOL,
        category=CATEGORY,
        priority=wish.priority,
        creator=wish.creator,
        target=target.text,
        target_implementation=target.implementation,
        target_specifier=target.specifier,
        root_task_id=wish.task_id,
        grace_ms=context.limits.start_grace_ms,
        schedule_to_start_ms=context.limits.start_timeout_ms,
        max_attempts=ATTEMPTS,
        spec=spec.SerializeToString(),
        order_us=wish.order_us,
        created_ms=now_ms,
        updated_ms=now_ms,
        pending_ms=now_ms,
    )


def request_start(tx: Transaction, wish: AgentStartRequest) -> Program[StartResult]:
    """Start an agent that is not connected, by its current start or by a new one."""
    profile = wish.params.get(PROFILE, "")
    if not profile:
        return StartResult(problem=f"{wish.target.implementation} has no launch profile, so it cannot be started")
    under_way = yield from current_start(wish.target.text)
    if under_way is not None:
        yield from _raise_priority(tx, under_way, wish.priority)
        task = (yield from task_rows.load(under_way.task_id)) or under_way
        if task.status not in PAUSED:
            return StartResult(task)
        yield from tx.wake(task)
        return StartResult((yield from task_rows.load(task.task_id)), woken=task.status is StoredStatus.HIBERNATED)
    task = new_start(wish, tx.context)
    yield from _become_the_start(tx, task)
    yield from tx.create(task, b"")
    made = yield from task_rows.load(task.task_id)
    return StartResult(made, created=True, waits=(yield from why_it_waits(made)) if made is not None else "")


def why_it_waits(task: TaskRow) -> Program[str]:
    """Return why an agent's start waits for an orchestrator; "" if it does not wait."""
    if task.task_type != AGENT_STARTUP or task.status is not StoredStatus.PENDING:
        return ""
    return (yield from orchestrators.what_is_missing(task.target_implementation, launch_params(task).get(PROFILE, "")))


def _raise_priority(tx: Transaction, task: TaskRow, priority: int) -> Program[None]:
    """Raise the priority of an agent's start to that of another task that needs it."""
    if priority > task.priority and task.status not in _BEGUN:
        yield from tx.write(task, task.changed({"priority": priority}), "")
        yield Execute(
            "UPDATE agent_starts SET priority = $3 WHERE identity = $1 AND task_id = $2",
            (task.target, task.task_id, priority),
        )


def _become_the_start(tx: Transaction, task: TaskRow) -> Program[None]:
    """Write that this start of an agent is its current one; the former has ended."""
    tx.context.note_start(task.target)
    yield Execute(
        "INSERT INTO agent_starts (identity, task_id, profile, order_us, waits, priority, implementation, family) "
        "VALUES ($1, $2, $3, $4, 0, $5, $6, $7) "
        "ON CONFLICT (identity) DO UPDATE SET task_id = excluded.task_id, profile = excluded.profile, "
        "order_us = excluded.order_us, waits = 0, priority = excluded.priority",
        (
            task.target,
            task.task_id,
            launch_params(task).get(PROFILE, "").encode(),
            task.order_us,
            task.priority,
            task.target_implementation,
            orchestrators.family_of(task.target_implementation),
        ),
    )


def reopen(tx: Transaction, task: TaskRow) -> Program[str]:
    """Make an ended start current again for its retry; return why it cannot be, or ""."""
    under_way = yield from current_start(task.target)
    if under_way is not None and under_way.task_id != task.task_id:
        return f"{task.target} is being started already (task {under_way.task_id})"
    yield from _become_the_start(tx, task)
    return ""


def refusal_of(task: TaskRow, move: Move, caller: str, epoch: int | None) -> str:
    """Return why a caller may not move an agent's start so; "" if it may.

    A start is RUNNING only when its agent has connected, and COMPLETED only when the agent has done
    its work. An orchestrator that means "I have launched it" by either move would leave its agent
    with a token that is revoked.
    """
    if task.status is StoredStatus.STARTING and move is Move.RESUME:
        return f"{task.target} is being started: the start goes on when it connects"
    if epoch is None and caller.startswith(_ORCHESTRATORS) and move in (Move.COMPLETE, Move.FAIL, Move.REJECT):
        return f"{caller} was not asked to start {task.target}: only an orchestrator that was reports on it"
    if task.status in (StoredStatus.PENDING, StoredStatus.STARTING) and move is Move.COMPLETE:
        return f"{task.target} has not connected: the start is completed when it has, and says goodbye"
    return ""


def confirm_launch(task: TaskRow, caller: str, epoch: int) -> Decision | None:
    """Answer an orchestrator's CLAIM of an agent's start; None for other claims.

    It says that it was told of the start, or asks whether its process is the one of the start. Only
    the agent's connection makes the start RUNNING. The process of an agent that connected without a
    token may be that of any orchestrator.
    """
    if task.status is StoredStatus.STARTING:
        return Repeat() if task.assigned_to == caller and task.epoch == epoch else None
    if task.status not in _BEGUN | PAUSED | {StoredStatus.COMPLETED} or not caller.startswith(_ORCHESTRATORS):
        return None
    return Repeat() if task.launched in (0, epoch) else None


def was_given(task: TaskRow, caller: str, epoch: int) -> Program[bool]:
    """Return whether this assignment of an agent's start was the caller's.

    Participants name the assignment that they mean, and may name that of another.
    """
    if (task.assigned_to, task.epoch) == (caller, epoch):
        return True
    found: list[Row] = yield Fetch(
        "SELECT 1 FROM task_attempts WHERE task_id = $1 AND epoch = $2 AND worker = $3", (task.task_id, epoch, caller)
    )
    return bool(found)


def wanted_start(identity: str) -> Program[tuple[Mapping[str, str], int]]:
    """Return launch parameters and priority of the first task that waits for an agent."""
    waiting = yield from task_rows.select(_FIRST_WAITING, (identity,))
    return (launch_params(waiting[0]), waiting[0].priority) if waiting else ({}, NORMAL)


def attach(tx: Transaction, task: TaskRow, identity: str, token: bytes = b"") -> Program[None]:
    """Write that the agent of a start has connected, and which token it showed."""
    if task.next_retry_ms:
        # Between two attempts, the connection is the next attempt.
        yield from tx.apply(task, Move.RETRY, tx.facts())
        task = (yield from task_rows.load(task.task_id)) or task
    changes: dict[str, int | str] = {"launched": (yield from tokens.epoch_of(token)) if token else 0}
    another = changes["launched"] != task.launched
    if task.grace_ms > 0 or (task.process_ended and another):
        changes["grace_ms"] = tx.context.limits.start_grace_ms
    if another:
        changes |= {"process": AgentProcess.UNKNOWN, "error": ""}
    if another or task.process < AgentProcess.DONE:
        reports = task.process != AgentProcess.UNKNOWN and not another
        reports = reports or (yield from _is_reported(task, changes["launched"]))
        changes["process"] = AgentProcess.REPORTED if reports else AgentProcess.UNKNOWN
    before, task = task, task.changed(changes)
    if before.differences(task):
        yield from tx.write(before, task, "")
    yield from tx.apply(task, Move.ATTACH, tx.facts(identity))


def _is_reported(task: TaskRow, epoch: int | str) -> Program[bool]:
    """Return whether the orchestrator of an assignment reports how its process ends."""
    if not epoch:
        return False
    if task.status is StoredStatus.STARTING and task.epoch == epoch:
        return (yield from orchestrators.reports_ends(task.assigned_to))
    found: list[Row] = yield Fetch(
        "SELECT worker FROM task_attempts WHERE task_id = $1 AND epoch = $2", (task.task_id, int(epoch))
    )
    return bool(found) and (yield from orchestrators.reports_ends(found[0][0]))


def agent_left(tx: Transaction, task: TaskRow, identity: str) -> Program[None]:
    """Write that a start's agent has said goodbye.

    If its orchestrator reports how its process ends, that decides, within the grace window: an
    agent that has failed may have left its block well.
    """
    if task.process == AgentProcess.REPORTED and task.grace_ms > 0 and task.status is StoredStatus.RUNNING:
        left = {"disconnected_ms": tx.context.now_ms, "process": AgentProcess.LEFT}
        yield from tx.write(task, task.changed(left), "")
    elif task.process == AgentProcess.FAILED:
        yield from _end_process(tx, task, task.error)  # `agent_gone` follows
    else:
        yield from tx.apply(task, Move.COMPLETE, tx.facts(identity, caller_epoch=task.epoch))


def agent_lost(tx: Transaction, task: TaskRow, *, by_gateway: bool) -> Program[None]:
    """Write that a start's agent has lost its connection, and perhaps its gateway."""
    if task.process >= AgentProcess.DONE:
        yield from _end_process(tx, task, task.error)  # `agent_gone` follows
        return
    if task.disconnected_ms or not task.grace_ms:
        return
    changes = {"disconnected_ms": tx.context.now_ms}
    if by_gateway and not task.process_ended:
        changes["grace_ms"] = task.grace_ms + GATEWAY_GRACE_MS
    yield from tx.write(task, task.changed(changes), "")


def dispatch(tx: Transaction, task: TaskRow) -> Program[None]:
    """Assign an agent's start to the orchestrator whose turn it is, or let it wait."""
    if task.process_ended:
        ended, task = task, task.changed({"grace_ms": tx.context.limits.start_grace_ms})
        yield from task_rows.save(ended, task)
    if (yield from tx.find_worker(task.target)) is not None:
        yield from attach(tx, task, task.target)
        return
    profile = launch_params(task).get(PROFILE, "")
    found = yield from orchestrators.next_for(task, profile)
    yield Execute(
        "UPDATE agent_starts SET waits = $3 WHERE identity = $1 AND task_id = $2",
        (task.target, task.task_id, int(found is None)),
    )
    if found is not None:
        yield from orchestrators.had_turn(profile, found[0])
        yield from tx.apply(task, Move.START, tx.facts(found[0]))


def moved(tx: Transaction, before: TaskRow, after: TaskRow) -> Program[None]:
    """Assign a waiting agent start again; fail the tasks that wait for a failed one."""
    if after.status is StoredStatus.PENDING:
        yield from dispatch(tx, after)
    elif after.status is StoredStatus.COMPLETED:
        # The next crash of the agent is the first one in a row.
        yield Execute("UPDATE agent_crashes SET times = 0 WHERE identity = $1 AND skip_to = 0", (after.target,))
    elif after.is_final and before.status not in _BEGUN | PAUSED:
        yield from _fail_waiting_tasks(tx, after.target, f"{after.target} could not be started: {after.error}")


def _fail_waiting_tasks(tx: Transaction, target: str, reason: str) -> Program[None]:
    """Fail a page of the tasks that wait for an agent which cannot be started."""
    waiting = yield from task_rows.select(
        "queue = $1 AND queue <> '' ORDER BY order_us LIMIT $2", (target, WAITING_PAGE)
    )
    tx.charge(moved=len(waiting))
    for task in waiting:
        if may_start_target(task):
            yield from tx.apply(task, Move.FAIL, tx.facts(reason=reason, error_type="START_FAILED"))
    if len(waiting) == WAITING_PAGE and any(map(may_start_target, waiting)):
        tx.effects.follow_ups.append(partial(_fail_waiting_tasks, target=target, reason=reason))


def orchestrator_joined(
    tx: Transaction, orchestrator: str, session_id: str, profiles: Sequence[str], agents: Collection[str] | None
) -> Program[None]:
    """Write that an orchestrator is connected; assign it the starts that wait for it."""
    yield from orchestrators.join(orchestrator, session_id, profiles, agents, tx.context.now_ms)
    for profile in sorted({one.encode() for one in profiles}):
        yield from dispatch_waiting(tx, profile)


def orchestrator_changed(
    tx: Transaction, orchestrator: str, session_id: str, profiles: Sequence[str], agents: Collection[str]
) -> Program[None]:
    """Write which agents an orchestrator has by now; assign it waiting starts."""
    yield from orchestrators.change_agents(orchestrator, session_id, agents)
    for profile in sorted({one.encode() for one in profiles}):
        yield from dispatch_waiting(tx, profile)


def dispatch_waiting(tx: Transaction, profile: bytes) -> Program[None]:
    """Assign a page of waiting agent starts that a profile's orchestrators can take."""
    waiting = yield from orchestrators.startable(profile, WAITING_PAGE)
    for identity, task_id in waiting:
        task = yield from task_rows.load(task_id)
        if task is not None and task.status is StoredStatus.PENDING:
            yield from dispatch(tx, task)
        else:
            yield Execute("UPDATE agent_starts SET waits = 0 WHERE identity = $1 AND task_id = $2", (identity, task_id))
    if len(waiting) == WAITING_PAGE:
        tx.effects.follow_ups.append(partial(dispatch_waiting, profile=profile))


def forget_start(task: TaskRow) -> Program[None]:
    """Delete the row in `agent_starts` of a deleted start of an agent."""
    if task.task_type == AGENT_STARTUP:
        yield Execute(
            "DELETE FROM agent_crashes WHERE identity = $1 AND skip_to = 0 "
            "AND (task_id = $2 OR (task_id = '' AND at_work = $2))",
            (task.target, task.task_id),
        )
        yield Execute("DELETE FROM agent_starts WHERE identity = $1 AND task_id = $2", (task.target, task.task_id))


def untold_starts(orchestrator: str) -> Program[list[TaskRow]]:
    """Return the starts that an orchestrator was assigned and may not know of."""
    where = "holder = $1 AND holder <> '' AND status = 'starting' ORDER BY order_us"
    return (yield from task_rows.select(where, (orchestrator,)))


def issue_token(tx: Transaction, task_id: str, epoch: int, token_hash: bytes) -> Program[TaskRow | None]:
    """Write a token for a start's agent; None if the orchestrator has lost the start."""
    task = yield from task_rows.load(task_id)
    if task is None or task.epoch != epoch or task.status is not StoredStatus.STARTING:
        return None
    yield from tokens.supersede(task_id, tx.context.now_ms)
    yield from tokens.insert(
        tokens.IssuedToken(token_hash, task.target, lasting=True, epoch=epoch), task_id, tx.context.now_ms
    )
    if not task.tokens:
        yield from task_rows.save(task, task.changed({"tokens": 1}))
    return task


def ask_others(tx: Transaction, task: TaskRow) -> Program[TaskRow]:
    """Give a failing start one more attempt if an orchestrator was not asked."""
    if task.retry_count + 1 < task.max_attempts:
        return task
    following = yield from orchestrators.next_for(task, launch_params(task).get(PROFILE, ""), but=task.assigned_to)
    if following is None or following[1]:
        return task
    after = task.changed({"max_attempts": task.retry_count + 2})
    yield from tx.write(task, after, "")
    return after


def report_failure(tx: Transaction, task: TaskRow, caller: str, epoch: int, reason: str) -> Program[Decision | None]:
    """Handle an orchestrator's FAIL: a launch failed, or a process has failed.

    Returns None for an ordinary FAIL of a worker. Before the agent has connected, the report is a
    failed attempt.
    """
    if task.status is StoredStatus.STARTING and task.assigned_to == caller and task.epoch == epoch:
        text = reason or "its orchestrator could not start it"
        task = yield from ask_others(tx, task)
        facts = tx.facts(caller, reason=text, error_type="START_FAILED", delay_ms=start_delay_ms(task))
        return (yield from tx.apply(task, Move.TIME_OUT, facts))
    return (yield from _report_end(tx, task, caller, epoch, reason or "its process has ended", AgentProcess.FAILED))


def report_done(tx: Transaction, task: TaskRow, caller: str, epoch: int) -> Program[Decision | None]:
    """Handle an orchestrator's COMPLETE: a process has ended well.

    Its agent had connected.

    Returns None for an ordinary COMPLETE of a worker.
    """
    return (yield from _report_end(tx, task, caller, epoch, "", AgentProcess.DONE))


def give_back(tx: Transaction, task: TaskRow, caller: str, epoch: int) -> Program[Decision | None]:
    """Handle an orchestrator's REJECT: it has no room for the agent now.

    That is no failed attempt: the orchestrator whose turn it is gets the start, which may be this
    one again. Returns None for a REJECT of another participant.
    """
    if task.status is not StoredStatus.STARTING or task.assigned_to != caller or task.epoch != epoch:
        return None
    # A start waits as long as all are full, so only its latest assignments are kept.
    yield Execute(
        "DELETE FROM task_attempts WHERE task_id = $1 AND epoch < $2 AND worker = $3 AND outcome = 'pending'",
        (task.task_id, task.epoch - GIVEN_BACK, caller),
    )
    return (yield from tx.apply(task, Move.UNASSIGN, tx.facts()))


def _report_end(
    tx: Transaction, task: TaskRow, caller: str, epoch: int, reason: str, how: AgentProcess
) -> Program[Decision | None]:
    """Handle the report that a process has ended whose agent had connected.

    Only the orchestrator of that process may report it: the one of the assignment whose token the
    agent has shown. An agent that has shown no token may be any process: then its connection
    decides, and the report only ends the wait for its return.
    """
    if task.status not in _BEGUN or task.assigned_to == caller or not caller.startswith(_ORCHESTRATORS):
        return None
    launched = task.launched
    if not launched:
        # It is taken for the process of the latest attempt.
        [(launched,)] = yield Fetch(
            "SELECT MAX(epoch) FROM task_attempts WHERE task_id = $1 AND worker LIKE 'orc::%'", (task.task_id,)
        )
    if launched != epoch:
        return None
    worker = yield from tx.find_worker(task.target)
    if task.disconnected_ms or worker is None:
        if not task.launched and how == AgentProcess.FAILED:
            # No crash: it may have been a process that no orchestrator has started.
            yield from tx.apply(task, Move.FAIL, tx.facts(reason=reason, error_type="WORKER_LOST"))
            return Repeat()
        yield from _end_process(tx, task.changed({"process": how}), reason)
        if worker is None and task.launched:
            yield from lose_tasks(tx, task.target)
        return Repeat()
    if not task.launched:
        if not task.process_ended:
            yield from tx.write(task, task.changed({"grace_ms": PROCESS_ENDED}), "")
        text = f"{task.assigned_to} is connected; the start ends when its connection does"
        return RefusedMove(MoveRefusal.STALE, text)
    if task.process < AgentProcess.DONE:
        ended = task.changed({"grace_ms": PROCESS_ENDED, "process": how, "error": reason})
        yield from tx.write(task, ended, "")
    tx.effects.ended_processes.append((worker.node, worker.session_id))
    return Repeat()


def _end_process(tx: Transaction, task: TaskRow, reason: str) -> Program[None]:
    """End the start of an agent whose process has ended."""
    if task.process == AgentProcess.DONE:
        yield from tx.apply(task, Move.COMPLETE, tx.facts(task.assigned_to))
    else:
        at_work: list[Row] = yield Fetch(_AT_WORK, (task.target,))
        if at_work:
            yield Execute(_NOTE_WORK, (task.target, task.task_id))
        yield from tx.apply(task, Move.FAIL, tx.facts(reason=reason, error_type=PROCESS_FAILED))
        tx.effects.crashed_agents.append(task.target)


def agent_gone(tx: Transaction, identity: str) -> Program[None]:
    """End the start of an agent whose process has ended; lose the agent's tasks."""
    found: list[Row] = yield Fetch("SELECT task_id FROM agent_starts WHERE identity = $1", (identity,))
    task = (yield from task_rows.load(found[0][0])) if found else None
    if task is None or task.process < AgentProcess.DONE:
        return
    if not task.is_final:
        yield from _end_process(tx, task, task.error)
    yield from lose_tasks(tx, identity)


def lose_tasks(tx: Transaction, identity: str) -> Program[None]:
    """Fail the tasks that an ended process worked on; give back what it had not begun."""
    found = yield from task_rows.select_either(
        "holder = $1 AND holder <> ''", "keeper = $1 AND keeper <> ''", (identity,)
    )
    text = f"the process of {identity} has ended"
    for seen in found:
        # Load it again: the end of another may have moved it.
        task = (yield from task_rows.load(seen.task_id)) or seen
        if task.task_type == AGENT_STARTUP or task.assigned_to != identity:
            continue
        if task.status is StoredStatus.RUNNING:
            yield from tx.apply(task, Move.FAIL, tx.facts(reason=text, error_type="WORKER_LOST"))
        elif task.status is StoredStatus.ASSIGNED and task.begun:
            yield from tx.apply(task, Move.LOSE, tx.facts(reason=text, error_type="WORKER_LOST"))
        elif task.status is StoredStatus.ASSIGNED and task.holder:
            yield from tx.apply(task, Move.UNASSIGN, tx.facts(lost=True))


def launch_params(task: TaskRow) -> dict[str, str]:
    """Return the launch parameters of an agent's start."""
    return dict(pb.CreateTaskRequest.FromString(task.spec).launch_param_overrides)


def start_assignment(task: TaskRow, token: str, *, numbered: bool = False) -> pb.TaskAssignment:
    """Make the TaskAssignment that an orchestrator is sent for an agent's start."""
    params = launch_params(task)
    given = assignment(task, b"", numbered=numbered)
    given.metadata.update({IDENTITY: task.target, PRIORITY: str(task.priority)})
    given.profile = params.get(PROFILE, "")
    given.launch_params.update({**params, TOKEN: token})
    return given


def task_context(task: TaskRow) -> dict[str, str]:
    """Return what an agent is told of its start (ConfigSnapshot.task_context)."""
    params = launch_params(task)
    kept = pb.CreateTaskRequest.FromString(task.spec)
    return {
        **{f"lp.{name}": value for name, value in params.items()},
        **kept.metadata,
        **hibernation_of(task),
        "task_id": task.task_id,
        "workspace": task.workspace,
        "implementation": task.target_implementation,
        "specifier": task.target_specifier,
        "profile": params.get(PROFILE, ""),
    }
