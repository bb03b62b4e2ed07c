"""A message to `tk::{workspace}::{task}::input` wakes a task that waits for it (reference: tasks.md 1.8, where nothing sends such messages).

The payload is JSON with `metadata`, an object of strings; the task goes on if every pair of its `input_match` is in it. What is not such JSON
has no metadata, and wakes only a task that waits for anything. A task is woken when the message is in the log, where whoever works on the
task can have it from.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import structlog
import trio

from aether_trio.model.tasks import Status
from aether_trio.routing.log import TopicLog
from aether_trio.services.tasks import rows
from aether_trio.services.tasks.desk import Errand
from aether_trio.services.tasks.transaction import Work
from aether_trio.storage.base import Program, StorageUnavailable
from aether_trio.storage.batches import in_halves

logger = structlog.get_logger("aether.tasks")

MAX_WAITING: Final = 10_000
GROUP: Final = 64
RETRY_S: Final = 0.5


_Input = tuple[str, str, Mapping[str, str]]
"""Workspace, task, metadata."""


class Inputs:
    """See the module docstring. `perform` runs a transaction."""

    def __init__(self, log: TopicLog, perform: Callable[[Errand], Awaitable[object]]) -> None:
        self._log = log
        self._perform = perform
        self._waiting: list[tuple[int, str, str, Mapping[str, str]]] = []
        self._work = trio.Event()

    def put(self, workspace: str, task_id: str, payload: bytes, number: int) -> None:
        """A message was appended to the log under this number. Never blocks."""
        if len(self._waiting) >= MAX_WAITING:
            logger.warning("too many inputs wait; one of them wakes nobody", task_id=task_id)
            return
        self._waiting.append((number, workspace, task_id, metadata_of(payload)))
        self._work.set()

    async def run(self) -> None:
        """Wake tasks, until cancelled."""
        while True:
            if not self._waiting:
                await self._work.wait()
                self._work = trio.Event()
                continue
            group = self._waiting[:GROUP]
            await self._log.wait_settled(max(number for number, _, _, _ in group))
            inputs = [(workspace, task_id, metadata) for _, workspace, task_id, metadata in group]
            try:
                await in_halves(inputs, self._wake, _lost)
            except StorageUnavailable as error:
                logger.warning("inputs of tasks wait for storage", reason=str(error))
                await trio.sleep(RETRY_S)
                continue
            del self._waiting[: len(group)]

    async def _wake(self, inputs: Sequence[_Input]) -> Sequence[None]:
        await self._perform(lambda work: _wake(work, inputs))
        return ()


def _lost(one: _Input, error: Exception) -> None:
    logger.error("an input wakes nobody", task_id=one[1], exc_info=error)


def _wake(work: Work, inputs: Sequence[_Input]) -> Program[None]:
    for workspace, task_id, metadata in inputs:
        task = yield from rows.load(task_id)
        if task is None or task.workspace != workspace or task.status is not Status.WAITING_INPUT:
            continue
        wait = task.waits_for
        if wait is not None and wait.takes(metadata):
            yield from work.wake(task)


def metadata_of(payload: bytes) -> Mapping[str, str]:
    """The metadata of an input; empty if there is none that can be read."""
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    metadata = found.get("metadata") if isinstance(found, dict) else None
    if not isinstance(metadata, dict):
        return {}
    return {key: value for key, value in metadata.items() if isinstance(value, str)}
