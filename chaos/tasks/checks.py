"""The invariants of tasks, as functions of a history, with counts of checks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import groupby, pairwise
from typing import Final

from aether_trio.model.tasks.status import TERMINAL, StoredStatus
from chaos.checks import Verdict
from chaos.tasks.history import Attempt, Moment, TaskHistory

ENDS: Final = {status.wire for status in TERMINAL}
FAILED: Final = StoredStatus.FAILED.wire
QUEUED: Final = StoredStatus.PENDING.wire
FROM_FAILED: Final = frozenset({(FAILED, QUEUED), (FAILED, StoredStatus.CANCELLED.wire)})
"""What follows a failed attempt: the next one, or the end of a task that waits for it."""
CLOCK_MS: Final = 50.0
"""The workers' clock is read a little before or behind the gateway's."""

QUEUE_MS: Final = 5_000.0
"""A transaction bears the time at which it was asked for, and may have waited behind others of its
node. That epochs are numbered in the order of their transactions is the database's doing.
"""


def check_all(history: TaskHistory) -> list[Verdict]:
    ended, *rest = check_work(history)
    return [
        ended,
        Verdict("each was made once", len(history.keys), "idempotency keys", tuple(_made_twice(history))),
        *rest,
    ]


def check_work(history: TaskHistory, *, suspended: bool = False) -> list[Verdict]:
    """Check what holds of tasks however they were made.

    `suspended`: processes were. A worker whose claim is answered late, or which stood still, may
    then begin what another one has been given meanwhile.
    """
    attempts = _by_task(history)
    return [
        Verdict("every task has ended, for good", len(history.tasks), "tasks", tuple(_unended(history))),
        Verdict(
            "events tell of each change once, and of one end", len(history.events), "events", tuple(_told(history))
        ),
        Verdict("one epoch at a time", len(history.attempts), "attempts", tuple(_epochs(attempts))),
        Verdict(
            "no more attempts than the policy allows", len(attempts), "tasks", tuple(_too_often(history, attempts))
        ),
        Verdict(
            "workers did what the epochs say",
            len(history.moments),
            "moments",
            tuple(_workers(history, attempts, suspended)),
        ),
        Verdict("dead letters are the dead tasks", len(history.tasks), "tasks", tuple(_letters(history))),
        Verdict("no idle worker counts as busy", len(history.busy), "workers", tuple(_busy(history))),
    ]


def _by_task(history: TaskHistory) -> dict[str, list[Attempt]]:
    found: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in history.attempts:
        found[attempt.task_id].append(attempt)
    return found


def _unended(history: TaskHistory) -> Iterator[str]:
    for task in history.tasks:
        if StoredStatus(task.status) not in TERMINAL or task.next_retry_ms:
            yield f"{task.task_id} is {task.status} (epoch {task.epoch}, {task.failures} failures)"


def _made_twice(history: TaskHistory) -> Iterator[str]:
    there = {task.task_id for task in history.tasks}
    told = list(history.keys.values())
    for task_id in set(told) - there:
        yield f"{task_id or 'a task'} was promised to its creator and is not there"
    for task_id, times in Counter(told).items():
        if times > 1:
            yield f"{task_id} was given to {times} keys"
    for task_id in there - set(told):
        yield f"{task_id} exists, and no client was answered"


def _told(history: TaskHistory) -> Iterator[str]:
    ended = {task.task_id: StoredStatus(task.status).wire for task in history.tasks}
    # Executions of workflows and their questions have no worker, and do not begin in a queue.
    worked = {attempt.task_id for attempt in history.attempts}
    seen = set()
    for task_id, group in groupby(history.events, key=lambda event: event.task_id):
        events = list(group)
        seen.add(task_id)
        if [event.number for event in events] != list(range(1, len(events) + 1)):
            yield f"{task_id}: its events are numbered {[event.number for event in events]}"
        events = [event for event in events if event.before or event.after]  # those of its status
        if events[0].before != QUEUED and task_id in worked:
            yield f"{task_id}: its first event is of {events[0].before}"
        for one, other in pairwise(events):
            if one.after != other.before:
                yield f"{task_id}: {one.before} to {one.after}, then {other.before} to {other.after}"
            if one.after in ENDS and (one.after, other.after) not in FROM_FAILED:
                yield f"{task_id}: it was {one.after}, an end, and then {other.after}"
        if events[-1].after != ended.get(task_id):
            yield f"{task_id}: its last event is {events[-1].after}, and it is {ended.get(task_id)}"
    for task_id in set(ended) - seen:
        yield f"{task_id}: no event tells of its end"


def _epochs(attempts: dict[str, list[Attempt]]) -> Iterator[str]:
    for task_id, several in attempts.items():
        if [one.epoch for one in several] != list(range(1, len(several) + 1)):
            yield f"{task_id}: epochs {[one.epoch for one in several]}"
        for one in several:
            if not one.outcome:
                yield f"{task_id}: epoch {one.epoch} of {one.worker} has not ended"
        for one, other in pairwise(several):
            if other.assigned_ms < one.ended_ms - QUEUE_MS:
                yield f"{task_id}: epoch {other.epoch} began {one.ended_ms - other.assigned_ms} ms before {one.epoch} ended"


def _too_often(history: TaskHistory, attempts: dict[str, list[Attempt]]) -> Iterator[str]:
    for task in history.tasks:
        begun = sum(attempt.started_ms > 0 for attempt in attempts.get(task.task_id, ()))
        if begun > task.max_attempts or task.failures > task.max_attempts:
            yield f"{task.task_id} was begun {begun} times and has failed {task.failures} times, of {task.max_attempts}"


def _workers(history: TaskHistory, attempts: dict[str, list[Attempt]], suspended: bool) -> Iterator[str]:
    """Check by workers' records that beginnings and ends lie within their attempts."""
    begun: Counter[tuple[str, str]] = Counter()
    completed: Counter[str] = Counter()
    for moment in history.moments:
        mine = [one for one in attempts.get(moment.task_id, ()) if one.worker.endswith(f"::{moment.worker}")]
        if moment.what == "began":
            begun[moment.task_id, moment.worker] += 1
            began = [one for one in mine if one.started_ms and one.started_ms <= moment.at_ms + CLOCK_MS]
            if begun[moment.task_id, moment.worker] > len(began):
                yield f"{moment.worker} began {moment.task_id} once more than it was given it"
        elif moment.what == "completed":
            completed[moment.task_id] += 1
            if not any(one.outcome == "completed" for one in mine):
                yield f"{moment.worker} was told that it had completed {moment.task_id}, which another worker has"
    if not suspended:
        yield from _beside(history)
    for task_id, times in completed.items():
        if times > 1:
            yield f"{task_id} was completed {times} times"


def _beside(history: TaskHistory) -> Iterator[str]:
    """Check that the worker that completed a task had it alone since its beginning."""
    at_it: dict[tuple[str, str], float] = {}
    beginnings: dict[str, list[Moment]] = defaultdict(list)
    for moment in history.moments:
        if moment.what == "began":
            at_it[moment.task_id, moment.worker] = moment.at_ms
            beginnings[moment.task_id].append(moment)
        elif moment.what == "completed":
            since_ms = at_it.get((moment.task_id, moment.worker), moment.at_ms)
            for other in beginnings[moment.task_id]:
                if other.worker != moment.worker and since_ms < other.at_ms < moment.at_ms:
                    yield f"{other.worker} began {moment.task_id} while {moment.worker}, who completed it, was at it"


def _letters(history: TaskHistory) -> Iterator[str]:
    dead = {task.task_id for task in history.tasks if task.status == "dlq"}
    for task_id in dead ^ history.letters:
        yield f"{task_id}: {'no letter' if task_id in dead else 'a letter of a task that is not dead'}"


def _busy(history: TaskHistory) -> Iterator[str]:
    for worker, live in history.busy.items():
        if live:
            yield f"{worker} is thought to have {live} live tasks"
