"""Read stored events of many tasks in the order of their time, a page at a time.

    sizes of the next events of each task ──▶ the earliest of all, up to PAGE_BYTES ──▶ read whole
         ▲                                          │ the known sizes of a task are used up
         └──────────────────────────────────────────┘

Between two pages the positions of the next events are kept, and no event: clients choose the size
and the number of events.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heappop, heapreplace
from typing import Final, NamedTuple

from aether_trio.model.limits import KIB
from aether_trio.storage.base import Fetch, Program, Row, placeholders, rounded_up

PAGE_BYTES: Final = 256 * KIB
"""Size of the events that are read whole at a time; at least one is."""
PAGE_ROWS: Final = 100
"""Events of one task whose sizes are read at a time, at most."""
LEAST_ROWS: Final = 8
"""Events of one task whose sizes are read at a time, at least."""
AHEAD_ROWS: Final = 16_000
"""Sizes that are kept for a subscription, unless LEAST_ROWS of each task are more."""
PART: Final = 500
"""Tasks for which one statement asks."""


class EventPosition(NamedTuple):
    """An event's number in its task, its size, and its time, which never goes back."""

    number: int
    size: int
    at_ms: int


class UpcomingEvents(NamedTuple):
    """Positions of a task's next events, the latest time read, and if `more` follow."""

    places: tuple[EventPosition, ...]
    more: bool
    at_ms: int


Ahead = dict[str, UpcomingEvents]
"""The next events by task id."""


def used_up(ahead: Mapping[str, UpcomingEvents]) -> list[str]:
    """Return the tasks of which no event positions are left that were read ahead."""
    return [task_id for task_id, coming in ahead.items() if not coming.places]


def read_on(ahead: Mapping[str, UpcomingEvents], wanted: Mapping[str, int]) -> Program[tuple[list[Row], Ahead]]:
    """Read the next page of stored events of several tasks, earliest first.

    Returns (task id, number, event) of each, and the positions of the events after the page.
    `wanted` are the tasks whose sizes are to be read, with the number of the last known event of
    each. Tasks whose known sizes are used up must be among them.
    """
    upcoming = {task_id: coming for task_id, coming in ahead.items() if task_id not in wanted}
    yield from _look(ahead, wanted, upcoming)
    taken = _take(upcoming)
    found: dict[str, dict[int, bytes]] = {}
    last = dict(taken)
    first = dict(reversed(taken))
    for task_id, number in last.items():
        rows: list[Row] = yield Fetch(
            "SELECT number, event FROM task_events WHERE task_id = $1 AND number >= $2 AND number <= $3",
            (task_id, first[task_id], number),
        )
        found[task_id] = dict(rows)
    page = [(task_id, number, found[task_id][number]) for task_id, number in taken if number in found[task_id]]
    return page, upcoming


def _look(ahead: Mapping[str, UpcomingEvents], wanted: Mapping[str, int], upcoming: Ahead) -> Program[None]:
    """Read the positions of the `wanted` tasks' next events into `upcoming`."""
    news = (yield from _with_news(wanted)) if len(wanted) > 1 else list(wanted)
    if not news:
        return
    kept = sum(len(coming.places) for coming in upcoming.values())
    count = min(PAGE_ROWS, max((AHEAD_ROWS - kept) // len(news), LEAST_ROWS))
    for task_id in news:
        rows: list[Row] = yield Fetch(
            "SELECT number, at_ms, LENGTH(event) FROM task_events WHERE task_id = $1 AND number > $2 "
            "ORDER BY number LIMIT $3",
            (task_id, wanted[task_id], count),
        )
        # Nodes write their times, so an event may have an earlier one than the event before it.
        latest_ms = ahead[task_id].at_ms if task_id in ahead else 0
        places = []
        for number, at_ms, size in rows:
            latest_ms = max(latest_ms, at_ms)
            places.append(EventPosition(number, size, latest_ms))
        if places:
            upcoming[task_id] = UpcomingEvents(tuple(places), len(places) == count, latest_ms)


def _take(upcoming: Ahead) -> list[tuple[str, int]]:
    """Take the earliest `upcoming` events of all tasks, up to PAGE_BYTES of events."""
    heads = [(coming.places[0].at_ms, task_id) for task_id, coming in upcoming.items()]
    heapify(heads)
    used: dict[str, int] = {}
    taken: list[tuple[str, int]] = []
    size = 0
    while heads:
        task_id = heads[0][1]
        coming, at = upcoming[task_id], used.get(task_id, 0)
        place = coming.places[at]
        size += place.size
        if taken and size > PAGE_BYTES:
            break
        taken.append((task_id, place.number))
        used[task_id] = at + 1
        if at + 1 < len(coming.places):
            heapreplace(heads, (coming.places[at + 1].at_ms, task_id))
        elif coming.more:
            break  # the next ones may be earlier than those of other tasks
        else:
            heappop(heads)
    for task_id, count in used.items():
        coming = upcoming.pop(task_id)
        if count < len(coming.places) or coming.more:
            upcoming[task_id] = coming._replace(places=coming.places[count:])
    return taken


def _with_news(wanted: Mapping[str, int]) -> Program[list[str]]:
    """Return the tasks that have events after these numbers; most have none."""
    found: list[str] = []
    for names, marks in in_parts(wanted):
        rows: list[Row] = yield Fetch(f"SELECT task_id, events FROM tasks WHERE task_id IN ({marks})", names)  # noqa: S608
        found += [task_id for task_id, number in rows if number > wanted[task_id]]
    return found


def in_parts(task_ids: Iterable[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Split task ids for SQL statements of few sizes, with placeholders for each part."""
    names = tuple(task_ids)
    for first in range(0, len(names), PART):
        part = names[first : first + PART]
        if len(part) > 1:
            part = rounded_up(part, 4)
        yield part, placeholders(len(part))
