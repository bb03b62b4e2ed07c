"""Ends what is queued of a definition that was deactivated or deleted.

The transaction that deactivates leaves a timer, whose handler ends a page of what waits. Meanwhile
nothing of it begins: a turn that comes is given to the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from aether_trio.model.workflows.keys import place_key, place_of
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.workflows.flow import flow_rows
from aether_trio.services.workflows.stored import definitions, rule_rows, schedule_rows, timers
from aether_trio.storage.base import Program

TIMER: Final = "flow_stop"
PAGE: Final = 50
SCHEDULE: Final = "schedule"

StopRun = Callable[[Transaction, str, str], Program[None]]
"""Ends a run that has not begun, by its id, with a reason."""


def stop_queued(tx: Transaction, kind: str, workspace: str, id: str) -> Program[None]:  # noqa: A002
    """Have the queued runs of a definition ended, unless it is active by then."""
    yield from timers.set_timer(TIMER, f"{kind} {place_key(workspace, id)}", tx.context.now_ms)
    tx.effects.note_due(tx.context.now_ms)


class FlowStops:
    """Ends what is queued, by the kinds of what starts it."""

    def __init__(self, stops: Mapping[str, StopRun]) -> None:
        self._stops = stops

    def time_passed(self, tx: Transaction, key: str) -> Program[None]:
        """End a page of what is queued: the handler of the timers."""
        kind, _, place = key.partition(" ")
        workspace, id = place_of(place)  # noqa: A001
        found: list[str] = []
        if not (yield from _is_active(kind, workspace, id)):
            if kind == SCHEDULE:
                found = yield from flow_rows.waiting_from(key, PAGE)
            else:
                found = yield from flow_rows.waiting_of(kind, workspace, id, PAGE)
        for run_id in found:
            yield from self._stops[kind](tx, run_id, f"{kind} {id} was deactivated before it began")
        due_ms = tx.context.now_ms if len(found) == PAGE else 0
        yield from timers.set_timer(TIMER, key, due_ms)


def _is_active(kind: str, workspace: str, id: str) -> Program[bool]:  # noqa: A002
    stored: Any
    if kind == SCHEDULE:
        stored = yield from schedule_rows.load(workspace, id)
        return stored is not None and stored.enabled
    if kind == flow_rows.RULE:
        stored = yield from rule_rows.load(int(id))
        return stored is not None and stored.active
    return (yield from definitions.newest_active(workspace, id)) is not None
