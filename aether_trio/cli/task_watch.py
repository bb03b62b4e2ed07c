"""`aether tasks watch`: the events of tasks as they happen, over as many connections as it takes."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from aether_trio.cli import exits
from aether_trio.cli.options import Target
from aether_trio.cli.output import print_json, say
from aether_trio.cli.session import ClientSession, open_session
from aether_trio.cli.task_texts import event_as_json, event_line, state_line
from aether_trio.model.identity import Identity
from aether_trio.wire.pb import aether_pb2 as pb

AGAIN_S: Final = 1.0
"""Before the next connection."""
QUIET_S: Final = 0.5
"""Without an event, a replay is over."""
SKIP_S: Final = 5.0
"""For a replay that does not come to an end, as the task is busy."""

ENDED: Final = frozenset(
    {pb.TASK_STATUS_COMPLETED, pb.TASK_STATUS_FAILED, pb.TASK_STATUS_CANCELLED, pb.TASK_STATUS_REJECTED}
)

GetTask = Callable[[ClientSession, str], Awaitable[pb.TaskInfo]]


class TaskWatch:
    """What is printed of which tasks. `run` prints until Ctrl-C, or `until_end` until all have ended."""

    def __init__(
        self,
        task_ids: Sequence[str],
        recursive: bool,
        from_start: bool,
        until_end: bool,
        as_lines: bool,
        get_task: GetTask,
    ) -> None:
        self._begun = False
        self._since_ms = 1
        """What to replay from: behind the last event that was seen, by the gateway's clock."""
        self._from_start = from_start
        self._task_ids = tuple(dict.fromkeys(task_ids))
        self._recursive = recursive
        self._until_end = until_end
        self._as_lines = as_lines
        self._get_task = get_task
        self._ends: dict[str, int] = {}

    async def run(self, target: Target, who: Identity) -> dict[str, int]:
        """Their last statuses. Raises CliError."""
        while True:
            try:
                async with open_session(target, who, endless=True) as session:
                    return await self._follow(session)
            except exits.CliError as error:
                if error.exit_code != exits.UNREACHABLE or not self._begun:
                    raise
                say(f"{error.message}; trying again", err=True)
                await trio.sleep(AGAIN_S)

    async def _follow(self, session: ClientSession) -> dict[str, int]:
        for task_id in self._task_ids:
            await self._subscribe(session, task_id)
        replayed = (
            self._begun or self._from_start
        )  # else it begins with the state of things, and what led to it is not shown
        if not replayed:
            await self._skip(session)
        for task_id in self._task_ids:
            task = await self._get_task(session, task_id)
            if not replayed:
                self._note(task_id, task.status)
                if not self._as_lines:
                    say(state_line(task))
        self._begun = True
        while True:
            # What is replayed comes without a pause, and may be an end that a retry has followed.
            over = await self._is_over(session)
            if over and not replayed:
                return self._ends
            with trio.move_on_after(QUIET_S if over else math.inf):
                self._show(await session.task_event())
                continue
            return self._ends

    async def _skip(self, session: ClientSession) -> None:
        """Pass over what has happened, so that it is known from where on to replay should the connection break before anything new."""
        with trio.move_on_after(SKIP_S):
            while True:
                with trio.move_on_after(QUIET_S) as quiet:
                    self._since_ms = (await session.task_event()).emitted_at_unix_ms + 1
                if quiet.cancelled_caught:
                    return

    def _show(self, event: pb.TaskEvent) -> None:
        self._since_ms = event.emitted_at_unix_ms + 1
        if self._as_lines:
            print_json(event_as_json(event))
        else:
            say(event_line(event))
        if event.WhichOneof("event") == "status_changed":
            self._note(event.task_id, event.status_changed.to_status)

    async def _subscribe(self, session: ClientSession, task_id: str) -> None:
        op = pb.TaskSubscriptionOperation(
            op=pb.TaskSubscriptionOperation.SUBSCRIBE,
            task_id=task_id,
            recursive=self._recursive,
            start_timestamp_unix_ms=self._since_ms,
        )
        answer = (await session.request(pb.UpstreamMessage(task_subscription_op=op))).task_subscription_response
        if not answer.success:
            await self._get_task(session, task_id)  # says better what to do, if it is not there
            raise exits.CliError(answer.error)

    def _note(self, task_id: str, status: int) -> None:
        if task_id in self._task_ids:
            if status in ENDED:
                self._ends[task_id] = status
            else:
                self._ends.pop(task_id, None)

    async def _is_over(self, session: ClientSession) -> bool:
        """Whether all have ended, as the events say and a look confirms."""
        if not self._until_end or len(self._ends) < len(self._task_ids):
            return False
        for task_id in self._task_ids:
            self._note(task_id, (await self._get_task(session, task_id)).status)
        return len(self._ends) == len(self._task_ids)
