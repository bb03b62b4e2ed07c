"""Handles events of the engine's topic, in transactions on tasks.

    page of events ─▶ one transaction: reactions to each ─▶ cursor behind the last one

A page that starts much is split: a transaction ends after the event with which it has done enough
(`TURN_COST`), and one event that alone starts more leaves a row and a timer, which go on with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.workflows.events.intake import move_cursor
from aether_trio.services.workflows.events.taken_events import KEYS, TakenEvent
from aether_trio.services.workflows.rules import unfinished_events
from aether_trio.services.workflows.rules.known import NotLoadedError
from aether_trio.services.workflows.rules.reactions import ACTION_COST, TURN_COST, EventReactions, Turn
from aether_trio.services.workflows.schedules.schedule_starts import ScheduleStarter
from aether_trio.storage.base import Program


class EventHandler:
    """Handles pages of events; one at a time, on the node of the engine's session."""

    def __init__(self, engine: Engine, reactions: EventReactions, schedules: ScheduleStarter) -> None:
        self._engine = engine
        self._reactions = reactions
        self._schedules = schedules

    async def prepare(self) -> None:
        """Load rules, triggers and machines, for which the first event would wait.

        Raises StorageUnavailable.
        """
        for known in (self._reactions.rules, self._reactions.triggers, self._reactions.machines):
            await known.load(self._engine.database)

    async def handle(self, events: Sequence[TakenEvent]) -> None:
        """Do what follows events, once. Raises StalePageError and StorageUnavailable.

        Anything else is a defect, and the first events of the page may be handled.
        """
        while events:
            try:
                done = await self._engine.result(partial(self._page, events=events))
            except NotLoadedError as error:
                await error.load(self._engine.database)
                continue
            self._reactions.confirm()
            events = events[done:]

    def _page(self, tx: TaskTransaction, events: Sequence[TakenEvent]) -> Program[int]:
        """Handle some events; return how many."""
        yield from self._reactions.refresh()
        turn = Turn(TURN_COST, tx)
        done = 0
        delayed = yield from self._schedules.names_waited_for(events)
        for event in events:
            if turn.is_over:
                break
            done += 1
            yield from self._handle_one(tx, event, turn)
            if delayed and not event.reason and not event.source_topic.startswith(KEYS):
                turn.cost += ACTION_COST * (yield from self._schedules.event_taken(tx, event, delayed))
        yield from move_cursor(events[:done])
        return done

    def _handle_one(self, tx: Transaction, event: TakenEvent, turn: Turn) -> Program[None]:
        if event.reason:
            yield from self._reactions.poison(tx, event, turn)
            return
        left = yield from self._reactions.react(tx, event, turn)
        if left:
            yield from unfinished_events.defer(tx, event, left)
