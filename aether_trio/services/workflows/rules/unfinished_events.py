"""Goes on with events that start more than one transaction does.

page of events ─▶ row with what is left, and a timer that is due now
            ─▶ transaction of the timer: a part of it ─▶ … ─▶ row and timer are deleted
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.workflows.actions.event_dead_letters import decode_event, encode_event
from aether_trio.services.workflows.events.taken_events import TakenEvent
from aether_trio.services.workflows.rules.reactions import TIMER_COST, EventReactions, PendingReaction, Turn
from aether_trio.services.workflows.stored import timers
from aether_trio.storage.base import Execute, Fetch, Program, Row

TIMER: Final = "event"
"""The kind of the timers."""


def defer(tx: Transaction, event: TakenEvent, left: Sequence[PendingReaction]) -> Program[None]:
    """Keep what is left to be done for an event."""
    key = f"{event.topic}/{event.offset}"
    yield Execute(
        "INSERT INTO workflow_unfinished_events (key, event, payload, pending) VALUES ($1, $2, $3, $4)",
        (key, json.dumps(encode_event(event)), event.payload, json.dumps(left)),
    )
    yield from _set_timer(tx, key)


def go_on(reactions: EventReactions, tx: Transaction, key: str) -> Program[None]:
    """Do a part of what is left for an event: the handler of its timer."""
    found: list[Row] = yield Fetch(
        "SELECT event, payload, pending FROM workflow_unfinished_events WHERE key = $1", (key,)
    )
    left: Sequence[PendingReaction] = ()
    if found:
        event, payload, pending = found[0]
        all_left = [PendingReaction(*one) for one in json.loads(pending)]
        taken = decode_event(json.loads(event), bytes(payload))
        left = yield from reactions.go_on(tx, taken, all_left, Turn(TIMER_COST, tx))
    if left:
        yield Execute("UPDATE workflow_unfinished_events SET pending = $2 WHERE key = $1", (key, json.dumps(left)))
        yield from _set_timer(tx, key)
    else:
        yield Execute("DELETE FROM workflow_unfinished_events WHERE key = $1", (key,))
        yield from timers.set_timer(TIMER, key, 0)


def _set_timer(tx: Transaction, key: str) -> Program[None]:
    now_ms = tx.context.now_ms
    yield from timers.set_timer(TIMER, key, now_ms)
    tx.effects.note_due(now_ms)
