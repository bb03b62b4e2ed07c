"""`aether tasks watch`: prints events of tasks, over several connections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import trio

from aether_trio.cli import exits
from aether_trio.cli.connect import is_refusal, open_client
from aether_trio.cli.options import GatewayTarget
from aether_trio.cli.output import print_json, say
from aether_trio.cli.task_client import task_id_of
from aether_trio.cli.task_refusals import explained_refusals
from aether_trio.cli.task_texts import event_as_json, event_line, outcome_text, state_line
from aether_trio.client import AetherError, Feed
from aether_trio.client.operations import StatusChanged, TaskEvent, TaskStatus
from aether_trio.client.operations.task_events import task_event
from aether_trio.client.operations.task_values import ENDED, Task
from aether_trio.client.operations.tasks import Tasks
from aether_trio.model.identity import Identity
from aether_trio.wire.pb import aether_pb2 as pb

AGAIN_S: Final = 1.0
"""Before the next connection."""
QUIET_S: Final = 0.5
"""Without an event, a replay is over."""
SKIP_S: Final = 5.0
"""For a replay that does not come to an end, as the task is busy."""

REPLAYED: Final = 2**20
"""Events that may wait while the subscriptions to all tasks are made."""
START: Final = datetime.fromtimestamp(0, UTC)
_MS: Final = timedelta(milliseconds=1)


class TaskWatch:
    """Prints the events of tasks until Ctrl-C, or `until_end` until all have ended."""

    def __init__(
        self, task_ids: Sequence[str], recursive: bool, from_start: bool, until_end: bool, as_lines: bool
    ) -> None:
        self._begun = False
        self._since = START
        """Where a replay begins, by the clock of the gateway: right after the last event."""
        self._from_start = from_start
        self._task_ids = tuple(dict.fromkeys(task_ids))
        self._recursive = recursive
        self._until_end = until_end
        self._as_lines = as_lines
        self._ends: dict[str, TaskStatus] = {}

    async def run(self, target: GatewayTarget, who: Identity) -> dict[str, TaskStatus]:
        """Print events until the tasks have ended; return their statuses."""
        said = ""
        while True:
            try:
                async with open_client(target, who, endless=True) as client:
                    with explained_refusals(), client.open_feed("task_event", capacity=REPLAYED) as events:
                        return await self._follow(client.tasks.within(None), events)
            except exits.CliError as error:
                if error.exit_code != exits.UNREACHABLE or not self._begun:
                    raise
                if error.message != said:
                    said = error.message
                    say(f"{said}; trying again", err=True)
                await trio.sleep(AGAIN_S)

    async def _follow(self, tasks: Tasks, events: Feed[pb.TaskEvent]) -> dict[str, TaskStatus]:
        whole = [await task_id_of(tasks, given) for given in self._task_ids]
        self._task_ids = tuple(dict.fromkeys(whole))
        for task_id in self._task_ids:
            await self._subscribe(tasks, task_id)
        # Otherwise the output begins with the state of the tasks, and what led to it is not shown.
        replayed = self._begun or self._from_start
        if not replayed:
            await self._skip(events)
        for task_id in self._task_ids:
            task = await tasks.get(task_id)
            if not replayed:
                self._note_task(task)
                if not self._as_lines:
                    say(state_line(task))
        self._begun = True
        if replayed:
            await self._replay(tasks, events)
        while True:
            # A replay comes without a pause, and may have an end in it that a retry has followed.
            over = await self._is_over(tasks)
            if over and not replayed:
                return self._ends
            with trio.move_on_after(QUIET_S if over else math.inf):
                await self._show(tasks, task_event(await anext(events)))
                continue
            return self._ends

    async def _skip(self, events: Feed[pb.TaskEvent]) -> None:
        """Skip the past events, and note the time from which a replay begins."""
        for event in await _past(events):
            self._note_time(event)

    async def _replay(self, tasks: Tasks, events: Feed[pb.TaskEvent]) -> None:
        """Print the past events; what follows a failure is known of the latest one only."""
        past = await _past(events)
        latest = {event.task_id: event for event in past if isinstance(event.event, StatusChanged)}
        for event in past:
            await self._show(tasks, event, superseded=latest.get(event.task_id) is not event)

    async def _show(self, tasks: Tasks, event: TaskEvent, *, superseded: bool = False) -> None:
        """Print an event; a `superseded` one was followed by another status of its task."""
        self._note_time(event)
        change = event.event
        if self._as_lines:
            print_json(event_as_json(event))
        else:
            say(event_line(event, "" if superseded else await self._outcome(tasks, event)))
        if isinstance(change, StatusChanged):
            self._note(event.task_id, change.to_status)

    async def _outcome(self, tasks: Tasks, event: TaskEvent) -> str:
        """Return what follows a failure that was just told of; "" if it has followed."""
        change = event.event
        if not isinstance(change, StatusChanged) or change.to_status is not TaskStatus.FAILED:
            return ""
        try:
            task = await tasks.get(event.task_id)
        except AetherError as error:
            if is_refusal(error):  # a task below it that this participant may not see
                return ""
            raise
        return outcome_text(task)

    def _note_time(self, event: TaskEvent) -> None:
        if event.emitted_at is not None:
            self._since = event.emitted_at + _MS

    async def _subscribe(self, tasks: Tasks, task_id: str) -> None:
        try:
            await tasks.subscribe(task_id, recursive=self._recursive, since=self._since)
        except AetherError as error:
            if is_refusal(error):
                # Its refusal says better what to do, if there is no such task.
                await tasks.get(task_id)
            raise

    def _note_task(self, task: Task) -> None:
        if task.has_ended or task.status not in ENDED:
            self._note(task.task_id, task.status)
        else:
            self._ends.pop(task.task_id, None)  # it will be tried again

    def _note(self, task_id: str, status: TaskStatus) -> None:
        if task_id in self._task_ids:
            if status in ENDED:
                self._ends[task_id] = status
            else:
                self._ends.pop(task_id, None)

    async def _is_over(self, tasks: Tasks) -> bool:
        """Whether all tasks have ended, as the events say and a query confirms."""
        if not self._until_end or len(self._ends) < len(self._task_ids):
            return False
        for task_id in self._task_ids:
            self._note_task(await tasks.get(task_id))
        return len(self._ends) == len(self._task_ids)


async def _past(events: Feed[pb.TaskEvent]) -> list[TaskEvent]:
    """Read the events of a replay, which come without a pause."""
    past: list[TaskEvent] = []
    with trio.move_on_after(SKIP_S):
        while True:
            with trio.move_on_after(QUIET_S) as quiet:
                past.append(task_event(await anext(events)))
            if quiet.cancelled_caught:
                break
    return past
