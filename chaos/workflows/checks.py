"""The invariants of workflows, as functions of the tables and of records."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

from aether_trio.model.tasks.status import TERMINAL, StoredStatus
from aether_trio.wire.pb import aether_pb2 as pb
from chaos.checks import Verdict
from chaos.tasks.checks import check_work
from chaos.tasks.history import TaskHistory
from chaos.workflows.fate import is_doomed, number_of, place_name
from chaos.workflows.history import Sent, WorkflowHistory
from chaos.workflows.plays import AT_ONCE, NOTHING, PLAYS, Demanded, Outcome, demanded
from chaos.workflows.snapshot import Snapshot
from chaos.workflows.stories import PARTS

Json = Any

EMPTY: Final = (
    "task_outbox", "workflow_arrivals", "workflow_waits", "workflow_interests", "workflow_kept_events",
    "workflow_kept_keys", "workflow_taken_events", "workflow_join_actions", "workflow_unfinished_events",
    "workflow_relays", "workflow_planned_firings", "workflow_schedule_runs", "workflow_flow_runs",
    "workflow_flow_items",
)  # fmt: skip
"""The tables that have nothing when all executions have ended."""
TIMERS_STAY: Final = frozenset({"join"})
"""Timers that may be there at the end: a join that has fired is kept for a while."""
WAITS_MS: Final[Mapping[tuple[str, str], int]] = {
    ("timers", "short"): 300,
    ("timers", "long"): 1_500,
    ("timers", "late"): 700,
    ("survey", "sleep"): 200,
}
"""How long the steps of these names wait, at least."""
DONE: Final = frozenset({"completed", "compensated", "compensation_failed"})
"""The statuses of a step that was completed."""
ENDED: Final = frozenset({"completed", "failed", "cancelled"})
CALLS: Final = ("left", "right")


@dataclass(frozen=True, slots=True)
class StepTask:
    """The task of a step, an item, a compensation or a question."""

    task_id: str
    epoch: int
    place: str
    undo: bool
    status: str
    failures: int
    max_attempts: int
    created_ms: int
    ended_ms: int
    result: Json
    is_action: bool


@dataclass(slots=True)
class Execution:
    """An execution with what belongs to it."""

    id: str
    play: str
    kind: str
    status: str
    given: Json
    error: str
    completed_ms: int
    parent_id: str
    entries: int
    task_status: str = ""
    epochs: int = 0
    result: Json = None
    steps: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    """Status, begin and end of each step as a whole."""
    tasks: list[StepTask] = field(default_factory=list)

    @property
    def key(self) -> str:
        return str(self.given.get("key", ""))


class Evidence:
    """All that is known of a run."""

    def __init__(
        self, history: WorkflowHistory, tasks: TaskHistory, snapshot: Snapshot, replays: Mapping[str, str]
    ) -> None:
        self.history = history
        self.tasks = tasks
        self.snapshot = snapshot
        self.replays = replays

    @cached_property
    def executions(self) -> dict[str, Execution]:
        """All executions by their ids."""
        rows = self.snapshot.rows(
            "SELECT execution_id, workflow_id, kind, status, trigger_data, error, completed_ms, parent_id, entries "
            "FROM workflow_executions"
        )
        found = {
            id_: Execution(id_, play, kind, status, json.loads(given), *more)
            for id_, play, kind, status, given, *more in rows
        }
        for id_, step, *more in self.snapshot.rows(
            "SELECT execution_id, step, status, started_ms, completed_ms FROM workflow_steps WHERE item = -1"
        ):
            found[id_].steps[step] = tuple(more)
        for row in self.snapshot.rows(
            "SELECT t.task_id, parent_task_id, status, epoch, retry_count, max_attempts, created_ms, completed_ms, "
            "failed_ms, updated_ms, spec, task_type, workflow, r.data FROM tasks t "
            "LEFT JOIN task_results r ON r.task_id = t.task_id WHERE workflow <> 0"
        ):
            self._add_task(found, row)
        return found

    def _add_task(self, found: dict[str, Execution], row: tuple[Any, ...]) -> None:
        task_id, parent_id, status, epoch, failures, most, created_ms, completed_ms, failed_ms, updated_ms = row[:10]
        spec, task_type, _, data = row[10:]
        result = json.loads(data) if data is not None and status == "completed" else None
        if task_id in found:
            own = found[task_id]
            own.task_status, own.epochs, own.result = status, epoch, result
        parent = found.get(parent_id)
        if parent is None:
            return
        metadata = pb.CreateTaskRequest.FromString(spec).metadata
        number = metadata.get("item") or metadata.get("round")
        name = place_name(metadata.get("step_id", ""), int(number) if number else None)
        ended_ms = max(completed_ms, failed_ms) if status in ("completed", "failed", "dlq") else updated_ms
        is_action = task_type not in ("workflow_run", "workflow_question")
        parent.tasks.append(
            StepTask(
                task_id,
                epoch,
                name,
                "compensates" in metadata,
                status,
                failures,
                most,
                created_ms,
                ended_ms,
                result,
                is_action,
            )
        )

    @cached_property
    def working(self) -> list[tuple[str, float, float, str]]:
        """When which execution was at work whose turn is bounded, by the workers' records.

        (turn, Unix ms, Unix ms, execution) of work that was taken: it lies within the execution.
        """
        turns = {
            (task.task_id, task.epoch): (one.given["turn"], one.id)
            for one in self.executions.values()
            if "turn" in one.given
            for task in one.tasks
            if task.status == "completed"
        }
        began: dict[tuple[str, int], float] = {}
        found = []
        for moment in self.history.moments:
            place = moment.task_id, moment.epoch
            if moment.what == "began":
                began[place] = moment.at_ms
            elif moment.what == "done" and place in turns and place in began:
                turn, execution = turns[place]
                found.append((turn, began[place], moment.at_ms, execution))
        return found

    @cached_property
    def completions(self) -> dict[tuple[str, str], int]:
        """The numbers of the entries with which steps that are to be undone have ended.

        They say in which order; times are those at which the transactions were asked for.
        """
        found: dict[tuple[str, str], int] = {}
        plays = [name for name, play in PLAYS.items() if any(rule.undone for rule in play.rules)]
        for execution_id, number, entry in self.snapshot.rows(
            "SELECT h.execution_id, h.number, h.entry FROM workflow_history h JOIN workflow_executions e "
            f"ON e.execution_id = h.execution_id WHERE e.workflow_id IN ({', '.join('?' * len(plays))})",
            *plays,
        ):
            happened = json.loads(entry or b"{}")
            if happened.get("type") == "StepEnded" and not happened.get("compensates"):
                found[execution_id, happened["place"][0]] = number
        return found

    @cached_property
    def payloads(self) -> list[tuple[str, Json]]:
        """The type and payload of each task that events have made."""
        rows = self.snapshot.rows(
            "SELECT task_type, coalesce(t.payload, p.payload) FROM tasks t "
            "LEFT JOIN task_payloads p ON p.task_id = t.task_id "
            "WHERE task_type IN ('noted', 'near', 'joined', 'ticked')"
        )
        return [(kind, json.loads(payload)) for kind, payload in rows]

    def sent(self, kind: str, about: str = "") -> list[Sent]:
        """Return the requests of a kind, about one thing if given."""
        return [one for one in self.history.sent.values() if one.kind == kind and (not about or one.about == about)]

    def demanded(self, execution: Execution) -> Demanded:
        """Return what an execution must have come to, by how its work has ended."""
        work = {one.place: one for one in execution.tasks if not one.undo}

        def outcome_of(place: str) -> Outcome | None:
            task = work.get(place)
            if task is None or StoredStatus(task.status) not in TERMINAL:
                return None
            return Outcome("failed" if task.status == "dlq" else task.status, task.result)

        return demanded(
            PLAYS[execution.play], execution.given, outcome_of, stopped=execution.id in self.history.cancelled
        )


def check_all(evidence: Evidence) -> list[Verdict]:
    """Check every invariant."""
    executions = evidence.executions
    history = evidence.history
    graphs = [one for one in executions.values() if one.kind == "graph"]
    runs = [one for one in executions.values() if one.kind == "function"]
    undone = [one for one in graphs if one.status != "completed" and any(rule.undone for rule in PLAYS[one.play].rules)]
    steps = sum(len(one.tasks) for one in executions.values())

    def verdict(invariant: str, looked_at: int, what: str, check: Callable[[Evidence], Iterator[str]]) -> Verdict:
        return Verdict(invariant, looked_at, what, tuple(check(evidence)))

    return [
        verdict("every execution has ended, and nothing is open", len(executions), "executions", _open),
        verdict("each was begun once, and its client told its end", len(history.begun), "keys", _begun),
        verdict("it came to what its outcomes demand", len(graphs), "executions", _demanded),
        verdict("work ended as was decided, and once", steps, "steps", _work),
        verdict("functions too, and no step was done beyond its assignments", len(runs), "functions", _functions),
        verdict("compensations are complete, and in reverse order", len(undone), "executions", _undone),
        verdict("an acknowledged event acts once, others at most once", len(evidence.sent("event")), "events", _events),
        verdict("what was answered and signalled counts", len(evidence.sent("answer") + evidence.sent("signal")),
                "answers, signals", _heard),
        verdict("flow control lets no more work at once", len(evidence.working), "pieces of work", _crowded),
        verdict("nothing is early", _timed(evidence), "waits", _early),
        verdict("histories replay to their states", len(evidence.replays), "histories", _replayed),
        verdict("no two workers had one assignment", len(evidence.tasks.attempts), "assignments", _shared),
        verdict("no gateway and no worker fails", len(executions), "executions", _failures),
        *check_work(evidence.tasks, suspended=True),
    ]  # fmt: skip


def _open(evidence: Evidence) -> Iterator[str]:
    if evidence.history.unsettled:
        yield f"it did not come to rest: {evidence.history.unsettled}"
    for one in evidence.executions.values():
        if not one.completed_ms or one.status not in ENDED:
            yield f"{one.play} {one.id} is {one.status}"
        elif one.task_status != one.status:
            yield f"{one.play} {one.id} is {one.status}, and its task {one.task_status or 'gone'}"
        for step, (status, _, ended_ms) in one.steps.items():
            if status in ("pending", "running", "waiting", "compensating") or not ended_ms:
                yield f"{one.play} {one.id}: step {step} is {status}"
    tables = evidence.snapshot.tables()
    for table in EMPTY:
        if table in tables and (number := evidence.snapshot.rows(f"SELECT count(*) FROM {table}")[0][0]):
            yield f"{table} has {number} rows"
    for kind, key in evidence.snapshot.rows("SELECT kind, key FROM workflow_timers"):
        if kind not in TIMERS_STAY:
            yield f"a timer of {kind} {key} is left"


def _begun(evidence: Evidence) -> Iterator[str]:
    by_key: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in evidence.executions.values():
        if not one.parent_id and PLAYS[one.play].needs != "trigger":
            by_key[one.play, one.key].append(one.id)
    for key, begun in evidence.history.begun.items():
        ids = by_key.pop((begun.play, key), [])
        if len(ids) > 1:
            yield f"{begun.play} {key} was begun {len(ids)} times: {', '.join(ids)}"
        if begun.execution_id and ids != [begun.execution_id]:
            yield f"{begun.play} {key} was promised as {begun.execution_id}, and is {', '.join(ids) or 'not there'}"
        found = evidence.executions.get(begun.execution_id)
        if begun.ended and found is not None and begun.ended != found.status:
            yield f"{begun.play} {begun.execution_id} is {found.status}, and its client was told {begun.ended}"
    continued = {key + "+" for _, key in by_key} | {key + "+" for key in evidence.history.begun}
    for (play, key), ids in by_key.items():
        if not (play == "again" and key in continued and len(ids) == 1):
            yield f"{play} {key} is there {len(ids)} times, and was not asked for"


def _demanded(evidence: Evidence) -> Iterator[str]:
    for one in evidence.executions.values():
        if one.kind != "graph" or one.status not in ENDED:
            continue
        wanted = evidence.demanded(one)
        about = f"{one.play} {one.id}"
        for problem in wanted.problems:
            yield f"{about}: {problem}"
        stopped = one.id in evidence.history.cancelled and one.status == "cancelled"
        if one.status != wanted.status and not stopped:
            yield f"{about} is {one.status}, and its outcomes demand {wanted.status} ({', '.join(wanted.failed)})"
            continue
        if one.status == "failed" and not any(one.error.startswith(f"step {name}") for name in wanted.failed):
            yield f"{about} failed by {one.error!r}, and {', '.join(wanted.failed)} failed"
        for step, status in wanted.steps.items():
            found = one.steps.get(step, ("skipped", 0, 0))[0]
            if status and found != status and not (status == "completed" and found in DONE):
                yield f"{about}: step {step} is {found}, and {status} is demanded"
        if one.status == "completed" and wanted.result is not NOTHING and one.result != wanted.result:
            yield f"{about} has the result {one.result}, and {wanted.result} is demanded"
        if one.play == "again" and one.given["left"]:
            following = evidence.executions.get((one.result or {}).get("continued_as", ""))
            if one.status == "completed" and (following is None or following.given["left"] != one.given["left"] - 1):
                yield f"{about} is not continued"


def _work(evidence: Evidence) -> Iterator[str]:
    for one in evidence.executions.values():
        places = Counter((task.place, task.undo) for task in one.tasks)
        for (place, undo), times in places.items():
            if times > 1 and one.kind == "graph":
                yield f"{one.play} {one.id}: {place}{'~' if undo else ''} has {times} tasks"
        for task in one.tasks:
            if not task.is_action:
                continue
            name, _, number = task.place.partition("[")
            place = name + "~" * task.undo + (f"[{number}" if number else "")
            if one.kind == "function":
                place = name.rpartition(".")[2]
            about = f"{one.play} {one.id}: {place}, task {task.task_id},"
            doomed = is_doomed(one.key, place)
            if task.status == "completed" and (doomed or task.result != {"n": number_of(one.key, place)}):
                yield f"{about} is completed with {task.result}, and was to {'fail' if doomed else 'succeed'}"
            if task.status in ("failed", "dlq") and not doomed and task.failures < task.max_attempts:
                yield f"{about} failed after {task.failures} of {task.max_attempts} attempts, and was to succeed"


def _functions(evidence: Evidence) -> Iterator[str]:
    effects = Counter((one.execution_id, one.place) for one in evidence.history.moments if one.what == "effect")
    for one in evidence.executions.values():
        if one.kind != "function":
            continue
        about = f"{one.play} {one.id}"
        for place in ("first", "end"):
            times = effects[one.id, place]
            if not 1 <= times <= one.epochs:
                yield f"{about}: {place} was done {times} times in {one.epochs} assignments"
        if one.status != "completed":
            yield f"{about} is {one.status}: {one.error}"
            continue
        calls = {task.place.rpartition(".")[2]: task for task in one.tasks}
        for call in CALLS:
            task = calls.get(call)
            wanted = number_of(one.key, call) if task is not None and task.status == "completed" else None
            if task is None or one.result[call] != wanted:
                yield f"{about}: the call {call} gave {one.result[call]}, and its task {task}"
        for place in ("first", "end"):
            if one.result[place] != number_of(one.key, place):
                yield f"{about}: {place} gave {one.result[place]}"
    for execution_id, number, last in evidence.snapshot.rows(
        "SELECT execution_id, count(*), max(number) FROM workflow_history GROUP BY execution_id"
    ):
        found = evidence.executions.get(execution_id)
        if found is None or not number == last == found.entries:
            yield f"{execution_id} has {number} entries of history up to {last}, and counts {found and found.entries}"


def _undone(evidence: Evidence) -> Iterator[str]:
    completed = evidence.completions
    for one in evidence.executions.values():
        if one.kind != "graph":
            continue
        about = f"{one.play} {one.id}"
        rules = {rule.name for rule in PLAYS[one.play].rules if rule.undone}
        done = {task.place: task for task in one.tasks if not task.undo and task.status == "completed"}
        undone = sorted((task for task in one.tasks if task.undo), key=lambda task: (task.created_ms, task.task_id))
        wanted = rules & set(done) if one.status in ("failed", "cancelled") else set()
        if wanted != {task.place for task in undone}:
            yield f"{about} is {one.status}: {sorted(wanted)} are to be undone, and {[t.place for t in undone]} were"
            continue
        for before, after in pairwise(undone):
            if after.created_ms < before.ended_ms:
                yield f"{about}: {after.place} was undone before the compensation of {before.place} had ended"
            if completed.get((one.id, after.place), 0) > completed.get((one.id, before.place), 0):
                yield f"{about}: {after.place} was completed behind {before.place}, and undone after it"


def _events(evidence: Evidence) -> Iterator[str]:
    made: dict[str, Counter[str]] = defaultdict(Counter)
    ticks: Counter[str] = Counter()
    for kind, payload in evidence.payloads:
        made[kind][str(payload["job" if kind == "joined" else "id"])] += 1
        if kind == "ticked":
            ticks[str(payload["lamp"])] += 1
    for one in evidence.executions.values():
        if PLAYS[one.play].needs == "trigger":
            made["begun"][str(one.given.get("id"))] += 1
    simple = {"chaos.note": "noted", "chaos.far": "near", "chaos.tick": "ticked", "chaos.begin": "begun"}
    known: dict[str, set[str]] = defaultdict(set)
    for event in evidence.sent("event"):
        kind = simple.get(event.about, "")
        if kind:
            known[kind].add(event.id)
            times = made[kind][event.id]
            if times > 1 or (event.acknowledged and not times):
                told = "acknowledged" if event.acknowledged else "not acknowledged"
                yield f"{event.about} {event.id} was {told}, and acted {times} times"
    for kind in simple.values():
        for strange in set(made[kind]) - known[kind]:
            yield f"{kind} {strange} follows an event that was not sent"
    yield from _joined(evidence, made["joined"])
    yield from _lamps(evidence, ticks)


def _joined(evidence: Evidence, joined: Counter[str]) -> Iterator[str]:
    parts: dict[str, set[int]] = defaultdict(set)
    for event in evidence.sent("event", "chaos.part"):
        if event.acknowledged:
            parts[event.data["job"]].add(event.data["item"])
    for job in set(parts) | set(joined):
        wanted = len(parts[job]) == PARTS
        if joined[job] > 1 or (wanted and not joined[job]):
            yield f"join {job} has {len(parts[job])} of {PARTS} acknowledged parts, and has fired {joined[job]} times"


def _lamps(evidence: Evidence, ticks: Counter[str]) -> Iterator[str]:
    rows = evidence.snapshot.rows("SELECT instance_id, data FROM workflow_instances")
    lamps = {id_: json.loads(data) for id_, data in rows}
    for event in evidence.sent("event", "chaos.lamp"):
        if event.acknowledged and event.data["id"] not in lamps:
            yield f"{event.about} {event.id} was acknowledged, and there is no instance {event.data['id']}"
    for lamp, data in lamps.items():
        if data.get("n", 0) != ticks[lamp]:
            yield f"instance {lamp} has counted {data.get('n', 0)} events, and {ticks[lamp]} have acted"


def _heard(evidence: Evidence) -> Iterator[str]:
    by_execution: dict[str, list[Sent]] = defaultdict(list)
    for one in (*evidence.sent("answer"), *evidence.sent("signal")):
        by_execution[one.about].append(one)
    orders: dict[str, list[Sent]] = defaultdict(list)
    for one in evidence.sent("event", "chaos.paid"):
        orders[one.data["order"]].append(one)
    for execution in evidence.executions.values():
        if execution.status != "completed":
            continue
        match execution.play:
            case "approval":
                heard = execution.result[1]
            case "release" | "order":
                heard = execution.result
            case "survey":
                heard = execution.result["go"]
            case _:
                continue
        sent = orders[execution.key] if execution.play == "order" else by_execution[execution.id]
        told = [one.id for one in sent if one.acknowledged]
        about = f"{execution.play} {execution.id}"
        if heard not in [one.id for one in sent]:
            yield f"{about} has heard {heard}, and it was sent {[one.id for one in sent]}"
        elif execution.play == "approval" and told not in ([], [heard]):
            yield f"{about} has heard {heard}, and the answer {told} was acknowledged"


def _crowded(evidence: Evidence) -> Iterator[str]:
    by_turn: dict[str, list[tuple[float, bool, str]]] = defaultdict(list)
    for turn, began_ms, done_ms, execution in evidence.working:
        by_turn[turn] += [(began_ms, True, execution), (done_ms, False, execution)]
    for turn, moments in by_turn.items():
        at_work: Counter[str] = Counter()
        for at_ms, began, execution in sorted(moments):
            at_work[execution] += 1 if began else -1
            if began and len(+at_work) > AT_ONCE:
                yield f"at {at_ms:.0f} ms {len(+at_work)} executions with the turn {turn} were at work"


def _timed(evidence: Evidence) -> int:
    return sum((one.play, step) in WAITS_MS for one in evidence.executions.values() for step in one.steps)


def _early(evidence: Evidence) -> Iterator[str]:
    for one in evidence.executions.values():
        for step, (status, started_ms, ended_ms) in one.steps.items():
            least_ms = WAITS_MS.get((one.play, step))
            if least_ms and status == "completed" and ended_ms - started_ms < least_ms:
                yield f"{one.play} {one.id}: {step} took {ended_ms - started_ms} ms of {least_ms}"


def _replayed(evidence: Evidence) -> Iterator[str]:
    for execution_id, problem in evidence.replays.items():
        if problem:
            yield f"{evidence.executions[execution_id].play} {execution_id}: {problem}"


def _shared(evidence: Evidence) -> Iterator[str]:
    """Check that each assignment was begun once, by the workers' records."""
    begun: dict[tuple[str, int], list[str]] = defaultdict(list)
    for moment in evidence.history.moments:
        if moment.what == "began":
            begun[moment.task_id, moment.epoch].append(moment.worker)
    for (task_id, epoch), workers in begun.items():
        if len(workers) > 1:
            yield f"{task_id} was begun under its assignment {epoch} by {', '.join(workers)}"


def _failures(evidence: Evidence) -> Iterator[str]:
    yield from evidence.history.tracebacks
