"""Starts of agents: tasks of type agent_startup, from the wish to the agent's connection; parts of a program each (reference: tasks.md 4).

    request_start ──▶ PENDING ── dispatch ──▶ STARTING, an orchestrator's ── its agent connects ──▶ RUNNING, the agent's, for as long as it lives
                 ▲                        │ the orchestrator goes: to the next one, at once
                 └────────────────────────┤ it says no, or nobody connects in time: to the next one, after a pause; the third time DLQ
                                          ▼
    whoever wishes for an agent that has a start which has not ended finds that one: there is one for each identity
    one that is paused, and whose agent is away, goes on then: hibernated it is dispatched, waiting it has its grace window

An orchestrator is a row of task_workers that is in no pool, and whose turn it is, is in orchestrator_profiles. A start that finds nobody
waits, and is given to the first who comes.

Differences from the reference: a start that nobody attaches to ends, with a reason (there it stays assigned for ever); the orchestrator
that is asked is the one that has waited longest, on whichever node (there the oldest of the node); an orchestrator may say that a
process has ended, and is believed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aether_trio.model.identity import Identity
from aether_trio.model.tasks import Mode, Move, Status, Task
from aether_trio.model.tasks.due import start_delay_ms
from aether_trio.model.tasks.status import PAUSED, WAITING
from aether_trio.model.tasks.table import Decision, Refusal, Refused, Repeat
from aether_trio.model.tasks.task import AGENT_STARTUP, PROCESS_ENDED
from aether_trio.services.tasks.protobuf import ASSIGNMENT, hibernation_of, may_start_target
from aether_trio.services.tasks.transaction import task_rows, tokens
from aether_trio.services.tasks.transaction.interface import Context, Transaction
from aether_trio.storage.base import Execute, Fetch, Program, Row, placeholders
from aether_trio.wire.pb import aether_pb2 as pb

ATTEMPTS: Final = 3
NORMAL: Final = Task.priority
PROFILE: Final = "profile"
TOKEN: Final = "auth_token"  # noqa: S105  # the name of a launch parameter
TRIGGER: Final = "trigger_timestamp_ms"
IDENTITY: Final = "target_identity"
"""Metadata of what an orchestrator is told: who is to be started, in full. The other fields do not say whether it is an agent or a unique task."""
CATEGORY: Final = "orchestrated"
WAITING_PAGE: Final = 50
GATEWAY_GRACE_MS: Final = 60_000
"""More grace for an agent whose gateway has ended: clients come back after growing pauses."""
PRIORITY: Final = "priority"
"""Metadata of what an orchestrator is told: how urgent it is, for one that has no room for all of them."""
_BEGUN: Final = WAITING | {Status.RUNNING}
"""Its agent has come, and has not been let go."""

_NEXT: Final = """SELECT p.orchestrator FROM orchestrator_profiles p
    JOIN task_workers w ON w.identity = p.orchestrator AND w.session_id = p.session_id
    WHERE p.profile = $1 ORDER BY p.turn, p.orchestrator LIMIT 1"""
_TURN: Final = """UPDATE orchestrator_profiles SET turn =
    (SELECT MAX(turn) + 1 FROM orchestrator_profiles WHERE profile = $1) WHERE profile = $1 AND orchestrator = $2"""
_JOIN: Final = """INSERT INTO orchestrator_profiles (profile, orchestrator, session_id, connected_ms, turn) VALUES ($1, $2, $3, $4,
    (SELECT COALESCE(MAX(turn), 0) + 1 FROM orchestrator_profiles WHERE profile = $1))"""
_ENTRIES: Final = """SELECT p.orchestrator, p.profile, p.connected_ms FROM orchestrator_profiles p
    JOIN task_workers w ON w.identity = p.orchestrator AND w.session_id = p.session_id ORDER BY p.orchestrator, p.profile"""


# By the index, from one name to the next, however many tasks wait for each.
_WAITED_FOR: Final = """WITH RECURSIVE waited (name) AS (
        SELECT MIN(queue) FROM tasks WHERE queue <> '' AND queue > $1
        UNION ALL SELECT (SELECT MIN(t.queue) FROM tasks t WHERE t.queue <> '' AND t.queue > waited.name)
        FROM waited WHERE waited.name IS NOT NULL
    ) SELECT name FROM waited WHERE name IS NOT NULL LIMIT $2"""
_STARTABLE: Final = ("ag::", "tu::")
_ORCHESTRATORS: Final = "orc::"


@dataclass(frozen=True, slots=True)
class StartRequest:
    """An agent to be started. `params` are its launch parameters, complete; `task_id` is that of the start, if there has to be one."""

    task_id: str
    target: Identity
    params: Mapping[str, str]
    trigger_ms: int
    order_us: int
    creator: str = ""
    priority: int = NORMAL
    """That of the task that it is for."""


@dataclass(frozen=True, slots=True)
class StartResult:
    """The start that the agent has now. `created`: it was made for this wish; `woken`: it slept. `problem`: there can be none, and why."""

    task: Task | None = None
    created: bool = False
    woken: bool = False
    problem: str = ""

    @property
    def missing(self) -> bool:
        """Whether the agent was there, and has agent_lost its connection: then it may come back, or the start ends soon."""
        return self.task is not None and bool(self.task.disconnected_ms)


def current_start(identity: str) -> Program[Task | None]:
    """The start of this identity that has not ended."""
    found: list[Row] = yield Fetch("SELECT task_id FROM agent_starts WHERE identity = $1", (identity,))
    task = (yield from task_rows.load(found[0][0])) if found else None
    return task if task is not None and not task.is_final else None


def was_started(identity: str) -> Program[bool]:
    """Whether this participant is one that is started when it is needed."""
    found: list[Row] = yield Fetch("SELECT 1 FROM agent_starts WHERE identity = $1", (identity,))
    return bool(found)


def connected_among(identities: Sequence[str]) -> Program[set[str]]:
    """Those that are connected_among, as far as the table knows."""
    sql = f"SELECT identity FROM task_workers WHERE identity IN ({placeholders(len(identities))})"  # noqa: S608
    found: list[Row] = yield Fetch(sql, identities)
    return {identity for (identity,) in found}


def absent_targets(after: str) -> Program[tuple[list[str], str]]:
    """A page of those that tasks wait for that may start them, and who are not connected_among; where the next page begins, "" at the end."""
    found: list[Row] = yield Fetch(_WAITED_FOR, (after, WAITING_PAGE))
    names = [name for (name,) in found if name.startswith(_STARTABLE)]
    here = (yield from connected_among(names)) if names else set()
    wanted: list[str] = []
    for name in names:
        if name not in here:
            waiting = yield from task_rows.select(
                "queue = $1 AND queue <> '' ORDER BY priority DESC, order_us LIMIT 1", (name,)
            )
            if waiting and waiting[0].mode is Mode.TARGETED and may_start_target(waiting[0]):
                wanted.append(name)
    return wanted, found[-1][0] if len(found) == WAITING_PAGE else ""


def new_start(wish: StartRequest, context: Context) -> Task:
    """The row of a start."""
    target, now_ms = wish.target, context.now_ms
    spec = pb.CreateTaskRequest(launch_param_overrides=wish.params, metadata={TRIGGER: str(wish.trigger_ms)})
    return Task(
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


def request_start(tx: Transaction, wish: StartRequest) -> Program[StartResult]:
    """See to it that an agent that is not connected_among is started: by the start that it has, or by a new one."""
    profile = wish.params.get(PROFILE, "")
    if not profile:
        return StartResult(problem=f"{wish.target.implementation} has no launch profile, so nobody can start it")
    under_way = yield from current_start(wish.target.text)
    if under_way is not None and under_way.status in PAUSED:
        yield from _hurry(tx, under_way, wish.priority)
        under_way = (yield from task_rows.load(under_way.task_id)) or under_way
        yield from tx.wake(under_way)
        return StartResult((yield from task_rows.load(under_way.task_id)), woken=under_way.status is Status.HIBERNATED)
    if under_way is not None:
        yield from _hurry(tx, under_way, wish.priority)
        return StartResult((yield from task_rows.load(under_way.task_id)))
    task = new_start(wish, tx.context)
    yield from _become_the_start(task)
    yield from tx.create(task, b"")
    return StartResult((yield from task_rows.load(task.task_id)), created=True)


def _hurry(tx: Transaction, task: Task, priority: int) -> Program[None]:
    """A start is wanted by a task of this priority as well."""
    if priority > task.priority and task.status not in _BEGUN:
        yield from tx.write(task, task.changed({"priority": priority}), "")
        yield Execute(
            "UPDATE agent_starts SET priority = $3 WHERE identity = $1 AND task_id = $2",
            (task.target, task.task_id, priority),
        )


def _become_the_start(task: Task) -> Program[None]:
    """This is the start of its identity from now on; an earlier one has ended."""
    yield Execute(
        "INSERT INTO agent_starts (identity, task_id, profile, order_us, waits, priority) VALUES ($1, $2, $3, $4, 0, $5) "
        "ON CONFLICT (identity) DO UPDATE SET task_id = excluded.task_id, profile = excluded.profile, "
        "order_us = excluded.order_us, waits = 0, priority = excluded.priority",
        (task.target, task.task_id, launch_params(task).get(PROFILE, "").encode(), task.order_us, task.priority),
    )


def reopen(task: Task) -> Program[str]:
    """A start that has ended is to be tried untold_starts: it is the start of its identity once more. Why it cannot be, "" if it can."""
    under_way = yield from current_start(task.target)
    if under_way is not None and under_way.task_id != task.task_id:
        return f"{task.target} is being started already (task {under_way.task_id})"
    yield from _become_the_start(task)
    return ""


def refusal_of(task: Task, move: Move) -> str:
    """Why a participant may not make this move of a start; "" if it may.

    A start is RUNNING when its agent has connected_among, and by nothing else; and COMPLETED when that has done what it came for. An orchestrator
    that takes either for "I have launched it" would leave its agent with a token that is no good any more.
    """
    if task.status is Status.STARTING and move is Move.RESUME:
        return f"{task.target} is being started: the start goes on when it connects"
    if task.status in (Status.PENDING, Status.STARTING) and move is Move.COMPLETE:
        return f"{task.target} has not connected: the start is completed when it has, and says goodbye"
    return ""


def confirm_launch(task: Task, caller: str, epoch: int) -> Decision | None:
    """An orchestrator says that it has been told of a start, or asks whether its process is the one of the start; None if not.

    Only its agent's connection makes it RUNNING; until then it is late in time. When the agent has come without a token, it may be anybody's.
    """
    if task.status is Status.STARTING:
        return Repeat() if task.assigned_to == caller and task.epoch == epoch else None
    if task.status not in _BEGUN | PAUSED | {Status.COMPLETED} or not caller.startswith(_ORCHESTRATORS):
        return None
    return Repeat() if task.launched in (0, epoch) else None


def wanted_start(identity: str) -> Program[tuple[Mapping[str, str], int]]:
    """The launch parameters that the first task wants that waits for this participant, and its priority."""
    waiting = yield from task_rows.select(
        "queue = $1 AND queue <> '' ORDER BY priority DESC, order_us LIMIT 1", (identity,)
    )
    return (launch_params(waiting[0]), waiting[0].priority) if waiting else ({}, NORMAL)


def attach(tx: Transaction, task: Task, identity: str, token: bytes = b"") -> Program[None]:
    """The agent of a start has connected_among, with the token of this hash, if any."""
    if task.next_retry_ms:
        # Between two attempts: this is the next one.
        yield from tx.apply(task, Move.RETRY, tx.facts())
        task = (yield from task_rows.load(task.task_id)) or task
    changes = {"launched": (yield from tokens.epoch_of(token)) if token else 0}
    another = changes["launched"] != task.launched
    if task.grace_ms > 0 or (task.process_ended and another):
        changes["grace_ms"] = tx.context.limits.start_grace_ms
    before, task = task, task.changed(changes)
    if before.differences(task):
        yield from tx.write(before, task, "")
    yield from tx.apply(task, Move.ATTACH, tx.facts(identity))


def agent_lost(tx: Transaction, task: Task, *, by_gateway: bool) -> Program[None]:
    """The agent of a start has agent_lost its connection. One that has agent_lost its gateway as well needs longer to come back."""
    if task.disconnected_ms or not task.grace_ms:
        return
    changes = {"disconnected_ms": tx.context.now_ms}
    if by_gateway and not task.process_ended:
        changes["grace_ms"] = task.grace_ms + GATEWAY_GRACE_MS
    yield from tx.write(task, task.changed(changes), "")


def dispatch(tx: Transaction, task: Task) -> Program[None]:
    """Give a waiting start to the orchestrator whose turn it is, or note that it waits for one.

    A grace that ended with the process before is there untold_starts for the next one.
    """
    if task.process_ended:
        ended, task = task, task.changed({"grace_ms": tx.context.limits.start_grace_ms})
        yield from task_rows.save(ended, task)
    if (yield from tx.find_worker(task.target)) is not None:
        yield from attach(tx, task, task.target)
        return
    profile = launch_params(task).get(PROFILE, "").encode()
    found: list[Row] = yield Fetch(_NEXT, (profile,))
    yield Execute(
        "UPDATE agent_starts SET waits = $3 WHERE identity = $1 AND task_id = $2",
        (task.target, task.task_id, int(not found)),
    )
    if found:
        orchestrator = found[0][0]
        yield Execute(_TURN, (profile, orchestrator))
        yield from tx.apply(task, Move.START, tx.facts(orchestrator))


def moved(tx: Transaction, before: Task, after: Task) -> Program[None]:
    """A start has changed: one that waits is given to somebody, and one that has ended before its agent came leaves nobody waiting."""
    if after.status is Status.PENDING:
        yield from dispatch(tx, after)
    elif after.is_final and after.status is not Status.COMPLETED and before.status not in _BEGUN | PAUSED:
        reason = f"{after.target} could not be started: {after.error}"
        yield from _nobody_comes(tx, after.target, reason)


def _nobody_comes(tx: Transaction, target: str, reason: str) -> Program[None]:
    """Tasks for somebody who cannot be started have report_failure, a page of them; their retry policies may have it tried untold_starts."""
    waiting = yield from task_rows.select(
        "queue = $1 AND queue <> '' ORDER BY order_us LIMIT $2", (target, WAITING_PAGE)
    )
    tx.charge(moved=len(waiting))
    for task in waiting:
        if may_start_target(task):
            yield from tx.apply(task, Move.FAIL, tx.facts(reason=reason, error_type="START_FAILED"))
    if len(waiting) == WAITING_PAGE and any(map(may_start_target, waiting)):
        tx.effects.follow_ups.append(lambda untold_starts: _nobody_comes(untold_starts, target, reason))


def orchestrator_joined(tx: Transaction, orchestrator: str, session_id: str, profiles: Sequence[str]) -> Program[None]:
    """An orchestrator has come, whose row is in task_workers: it is behind everybody who waits for a turn."""
    yield Execute("DELETE FROM orchestrator_profiles WHERE orchestrator = $1", (orchestrator,))
    for profile in sorted({one.encode() for one in profiles}):
        yield Execute(_JOIN, (profile, orchestrator, session_id, tx.context.now_ms))
    for profile in sorted({one.encode() for one in profiles}):
        yield from dispatch_waiting(tx, profile)


def dispatch_waiting(tx: Transaction, profile: bytes) -> Program[None]:
    """Hand out what waits for this profile; what is more than a page, in another transaction."""
    waiting: list[Row] = yield Fetch(
        "SELECT identity, task_id FROM agent_starts WHERE profile = $1 AND waits = 1 "
        "ORDER BY priority DESC, order_us LIMIT $2",
        (profile, WAITING_PAGE),
    )
    for identity, task_id in waiting:
        task = yield from task_rows.load(task_id)
        if task is not None and task.status is Status.PENDING:
            yield from dispatch(tx, task)
        else:
            yield Execute("UPDATE agent_starts SET waits = 0 WHERE identity = $1 AND task_id = $2", (identity, task_id))
    if len(waiting) == WAITING_PAGE:
        tx.effects.follow_ups.append(lambda untold_starts: dispatch_waiting(untold_starts, profile))


def forget_start(task: Task) -> Program[None]:
    """The row of a task that may be a start is gone: its identity has no start any more, unless it has a later one."""
    if task.task_type == AGENT_STARTUP:
        yield Execute("DELETE FROM agent_starts WHERE identity = $1 AND task_id = $2", (task.target, task.task_id))


def orchestrator_left(orchestrator: str, session_id: str) -> Program[None]:
    """An orchestrator has gone. What it had not finished goes back with its row in task_workers."""
    yield Execute(
        "DELETE FROM orchestrator_profiles WHERE orchestrator = $1 AND session_id = $2", (orchestrator, session_id)
    )


def untold_starts(tx: Transaction, orchestrator: str) -> Program[list[Task]]:
    """What an orchestrator was asked to start and may not have heard of."""
    return (
        yield from task_rows.select(
            "holder = $1 AND holder <> '' AND status = 'starting' ORDER BY order_us", (orchestrator,)
        )
    )


def issue_token(tx: Transaction, task_id: str, epoch: int, token_hash: bytes) -> Program[Task | None]:
    """A token for the agent of a start that is still this orchestrator's; None when it is not."""
    task = yield from task_rows.load(task_id)
    if task is None or task.epoch != epoch or task.status is not Status.STARTING:
        return None
    yield from tokens.supersede(task_id, tx.context.now_ms)
    yield from tokens.insert(
        tokens.IssuedToken(token_hash, task.target, lasting=True, epoch=epoch), task_id, tx.context.now_ms
    )
    if not task.tokens:
        yield from task_rows.save(task, task.changed({"tokens": 1}))
    return task


def report_failure(tx: Transaction, task: Task, caller: str, epoch: int, reason: str) -> Program[Decision | None]:
    """An orchestrator says that what it was asked to start has report_failure or ended; None if that is an ordinary move of a worker.

    While nobody has connected_among it is a report_failure attempt. Afterwards the agent's connection says whether it lives, but the orchestrator knows
    earlier that it does not: then nobody waits for it to come back.
    """
    if task.status is Status.STARTING and task.assigned_to == caller and task.epoch == epoch:
        text = reason or "its orchestrator could not start it"
        facts = tx.facts(caller, reason=text, error_type="START_FAILED", delay_ms=start_delay_ms(task))
        return (yield from tx.apply(task, Move.TIME_OUT, facts))
    if task.status not in _BEGUN or task.assigned_to == caller:
        return None
    launched = task.launched
    if not launched:  # the agent has shown no token: it is taken for the process of the latest attempt
        [(launched,)] = yield Fetch(
            "SELECT MAX(epoch) FROM task_attempts WHERE task_id = $1 AND worker LIKE 'orc::%'", (task.task_id,)
        )
    if launched != epoch:
        return None
    paused = task.status is not Status.RUNNING
    if task.disconnected_ms or (paused and (yield from tx.find_worker(task.target)) is None):
        facts = tx.facts(reason=reason or "its process has ended", error_type="WORKER_LOST")
        return (yield from tx.apply(task, Move.FAIL, facts))
    if not task.process_ended:
        yield from tx.write(task, task.changed({"grace_ms": PROCESS_ENDED}), "")
    return Refused(Refusal.STALE, f"{task.assigned_to} is connected; the start ends when its connection does")


def launch_params(task: Task) -> dict[str, str]:
    """What the agent is started with."""
    return dict(pb.CreateTaskRequest.FromString(task.spec).launch_param_overrides)


def start_assignment(task: Task, token: str, *, numbered: bool = False) -> pb.TaskAssignment:
    """What an orchestrator is told.

    The reference gives it no metadata, so it knows neither who exactly is meant, nor the trigger, nor that the agent slept.
    """
    params = launch_params(task)
    kept = pb.CreateTaskRequest.FromString(task.spec)
    return pb.TaskAssignment(
        task_id=task.task_id,
        task_type=AGENT_STARTUP,
        assigned_to=task.assigned_to,
        metadata={
            **kept.metadata,
            IDENTITY: task.target,
            PRIORITY: str(task.priority),
            **hibernation_of(task),
            **({ASSIGNMENT: str(task.epoch)} if numbered else {}),
        },
        assigned_at=task.assigned_ms // 1000,
        profile=params.get(PROFILE, ""),
        launch_params={**params, TOKEN: token},
        target_implementation=task.target_implementation,
        workspace=task.workspace,
        specifier=task.target_specifier,
        checkpoint_key=task.checkpoint_key,
        resume_session_id=task.resume_session_id,
    )


def task_context(task: Task) -> dict[str, str]:
    """What an agent is told about its own start (ConfigSnapshot.task_context)."""
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


def orchestrator_rows() -> Program[list[Row]]:
    """(orchestrator, profile, when it connected_among) of everybody who can start something."""
    found: list[Row] = yield Fetch(_ENTRIES)
    return found
