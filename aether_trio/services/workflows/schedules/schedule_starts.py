"""Starts what the slots of schedules stand for, in the transactions of tasks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from aether_trio.model.access import AccessLevel
from aether_trio.model.tasks.task import WorkflowPart
from aether_trio.model.workflows.definition import EvaluationError, ScheduleDefinition
from aether_trio.model.workflows.hops import Hops
from aether_trio.model.workflows.keys import place_key
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.workflows.actions.performer import ActionRefused, Actions, Cause, dated_id, values_of
from aether_trio.services.workflows.documents.reader import read_json
from aether_trio.services.workflows.events.taken_events import TakenEvent
from aether_trio.services.workflows.executions.advancing import Executions
from aether_trio.services.workflows.executions.new_executions import Begin, StartDropped, StartRefused
from aether_trio.services.workflows.flow.flow_stops import SCHEDULE
from aether_trio.services.workflows.schedules.firing import (
    PAGE,
    Firing,
    FiringRefused,
    GuardFiring,
    Schedules,
    environment_of,
    trigger_of,
)
from aether_trio.services.workflows.stored import definitions
from aether_trio.services.workflows.stored.schedule_rows import EVERYWHERE, StoredSchedule
from aether_trio.storage.base import Program

KEPT: Final = 1024
"""Compiled schedules in memory."""


class ScheduleStarter:
    """Starts what the slots of schedules stand for, in their transaction."""

    def __init__(self, schedules: Schedules, actions: Actions, executions: Executions) -> None:
        self._schedules = schedules
        self._actions = actions
        self._executions = executions
        self._compiled: OrderedDict[str, ScheduleDefinition] = OrderedDict()

    def fire(self, tx: Transaction, guard: GuardFiring, *, one: bool = False) -> Program[int]:
        """Fire a page of due schedules, or one; `guard` runs the program of each."""
        start = partial(self._start, tx)
        page, shared = 1 if one else PAGE, tx.context.shared
        now_ms = tx.context.now_ms
        fire = partial(self._schedules.fire, shared=shared, page=page, guard=guard, is_full=lambda: tx.is_full)
        return (yield from fire(now_ms, start))

    def find_set_back(self, tx: Transaction) -> Program[None]:
        """Have schedules looked at whose slots are decided ahead of time."""
        if (yield from self._schedules.find_set_back(tx.context.now_ms)):
            tx.effects.note_due(tx.context.now_ms)

    def names_waited_for(self, events: Sequence[TakenEvent]) -> Program[frozenset[str]]:
        """Return the names of these events after which some schedule fires."""
        return (yield from self._schedules.names_waited_for(name for event in events for name in event.names))

    def event_taken(self, tx: Transaction, event: TakenEvent, waited: frozenset[str]) -> Program[int]:
        """Plan what fires a while after an event; return how many schedules that does.

        `waited` are the names after which any does.
        """
        planned = 0
        allowed = partial(self._may_see, event.workspace, tx.context.now_ms)
        for name in event.names:
            if name in waited:
                source = {
                    "agent": event.agent, "workspace": event.workspace, "event": name, "principal": event.principal,
                }  # fmt: skip
                count, due_ms = yield from self._schedules.event_arrived(
                    name, event.workspace, str(event.offset), event.at_ms, {"data": event.data, "source": source},
                    allowed, event.hops,
                )  # fmt: skip
                planned += count
                tx.effects.note_due(due_ms)
        return planned

    def _may_see(self, workspace: str, now_ms: int, stored: StoredSchedule) -> bool:
        return not self._actions.allowed(stored.owner, workspace, AccessLevel.READ, now_ms)

    def run_ended(self, tx: Transaction, run_id: str) -> Program[None]:
        """Let the schedule of a run that has ended fire what waits for that."""
        due_ms = yield from self._schedules.run_ended(run_id, tx.context.now_ms)
        tx.effects.note_due(due_ms)

    def _definition(self, stored: StoredSchedule) -> ScheduleDefinition:
        found = self._compiled.get(stored.digest)
        if found is None:
            made, _ = read_json(SCHEDULE, stored.document)
            assert isinstance(made, ScheduleDefinition)
            found = self._compiled[stored.digest] = made
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        return found

    def _start(self, tx: Transaction, stored: StoredSchedule, firing: Firing) -> Program[str]:
        definition, now_ms = self._definition(stored), tx.context.now_ms
        key = f"schedule\0{stored.workspace}\0{stored.id}\0{firing.kind}\0{firing.slot_ms}\0{firing.key}"
        env = environment_of(stored, firing)
        try:
            if definition.workflow_id:
                given: Any = trigger_of(stored, firing)
                if definition.input is not None:
                    moment = datetime.fromtimestamp(now_ms / 1000, UTC)
                    given = definition.input.evaluate(env, now=lambda: moment)
                return (yield from self._start_execution(tx, stored, definition.workflow_id, given, key, firing.hops))
            assert definition.action is not None
            values = values_of(definition.action, env, now_ms)
            cause = Cause(key, stored.owner, stored.workspace, firing.hops)
            task = yield from self._actions.perform(tx, definition.action, values, cause, part=WorkflowPart.FIRED)
        except (ActionRefused, StartRefused, EvaluationError) as error:
            raise FiringRefused(str(error)) from None
        return "" if task is None else task.task_id

    def _start_execution(
        self, tx: Transaction, stored: StoredSchedule, workflow: str, given: Any, key: str, hops: Hops
    ) -> Program[str]:
        if stored.workspace == EVERYWHERE:
            raise FiringRefused("a schedule of workspace * cannot start a workflow: give it a workspace")
        if problem := self._actions.allowed(stored.owner, stored.workspace, AccessLevel.READWRITE, tx.context.now_ms):
            raise FiringRefused(problem)
        newest = yield from definitions.newest(stored.workspace, workflow)
        if newest is None:
            raise FiringRefused(f"there is no workflow {workflow} in workspace {stored.workspace}")
        task_id = dated_id(tx.context.now_ms, key)
        begin = Begin(given, stored.owner, metadata={"schedule_id": stored.id}, hops=hops, origin=origin_of(stored))
        start, part = self._executions.start, WorkflowPart.FIRED
        try:
            run_id = yield from start(tx, newest, stored.workspace, begin, task_id=task_id, part=part)
        except StartDropped:
            return ""  # as its flow control says
        return task_id if run_id == task_id else ""


def origin_of(stored: StoredSchedule) -> str:
    """Return as what flow control knows the runs of a schedule."""
    return f"{SCHEDULE} {place_key(stored.workspace, stored.id)}"
