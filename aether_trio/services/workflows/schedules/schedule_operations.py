"""Operations on schedules, and what they start.

A schedule starts an execution of its workflow, or does its action, in its workspace. One of
workspace * needs an action that names a workspace, as it has none to act in.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from aether_trio.model.access import AccessLevel
from aether_trio.model.ids import IdFactory
from aether_trio.model.text import shown
from aether_trio.model.workflows.definition import ScheduleDefinition
from aether_trio.model.workflows.keys import place_key
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.workflows.documents.compilation_thread import compile_in_thread
from aether_trio.services.workflows.documents.json_thread import SMALL_BYTES, in_json_thread
from aether_trio.services.workflows.documents.json_values import size_up_to, write_json
from aether_trio.services.workflows.documents.reader import read_json
from aether_trio.services.workflows.flow.flow_stops import SCHEDULE, stop_queued
from aether_trio.services.workflows.requests.applying import CREATED, UNCHANGED, UPDATED, AppliedRow, ConflictError
from aether_trio.services.workflows.requests.asked import (
    OperationAnswer,
    OperationAsked,
    OperationError,
    WorkspaceAccess,
    page_answer,
)
from aether_trio.services.workflows.requests.made_operations import MadeOperation, forget, schedule_subject
from aether_trio.services.workflows.requests.reach import within_reach
from aether_trio.services.workflows.schedules.firing import (
    ScheduleError,
    Schedules,
    answer_of,
)
from aether_trio.services.workflows.stored import schedule_rows
from aether_trio.services.workflows.stored.schedule_rows import EVERYWHERE, StoredSchedule
from aether_trio.storage.base import Program
from aether_trio.wire.pb import aether_pb2 as pb

Op = pb.WorkflowOperation

PAUSE_SCHEDULE: Final = 110
RESUME_SCHEDULE: Final = 111
BACKFILL_SCHEDULE: Final = 112


def put_schedule(
    schedules: Schedules, tx: TaskTransaction, definition: ScheduleDefinition, owner: str
) -> Program[AppliedRow]:
    """Apply a schedule for its owner. Raises ConflictError."""
    stored = yield from schedule_rows.load(definition.workspace, definition.id)
    change = CREATED if stored is None else UPDATED
    if stored is not None and stored.digest == definition.digest:
        change = UNCHANGED
    else:
        try:
            made = yield from schedules.upsert(definition, owner, tx.context.now_ms)
        except ScheduleError as error:
            raise ConflictError(str(error)) from None
        if not made.enabled:
            yield from stop_queued(tx, SCHEDULE, made.workspace, made.id)
        else:
            tx.effects.note_due(made.next_fire_ms)
    return AppliedRow(SCHEDULE, definition.workspace, definition.id, 1, change)


class ScheduleOperations:
    """Performs operations on schedules; `table` has them by number."""

    def __init__(self, engine: Engine, schedules: Schedules, access: WorkspaceAccess, ids: IdFactory) -> None:
        self._engine = engine
        self._schedules = schedules
        self._access = access
        self._ids = ids
        self.table: Final[Mapping[int, Callable[[OperationAsked], Awaitable[OperationAnswer]]]] = MappingProxyType(
            {
                Op.LIST_SCHEDULES: self._list,
                Op.CREATE_SCHEDULE: partial(self._put, upsert=False),
                Op.UPSERT_SCHEDULE: partial(self._put, upsert=True),
                Op.DELETE_SCHEDULE: self._delete,
                PAUSE_SCHEDULE: self._pause,
                RESUME_SCHEDULE: self._resume,
                BACKFILL_SCHEDULE: self._backfill,
            }
        )

    async def _list(self, asked: OperationAsked) -> OperationAnswer:
        workspaces = await self._access.visible(asked)
        page = await asked.page()
        place = page.place()
        found = await self._engine.database.read(lambda: schedule_rows.listed(workspaces, page.limit + 1, place))
        return await in_json_thread(
            lambda: page_answer(found, page, _shown, lambda one: place_key(one.workspace, one.id)),
            sum(size_up_to(one.document, SMALL_BYTES) for one in found),
        )

    async def _put(self, asked: OperationAsked, *, upsert: bool) -> OperationAnswer:
        document = dict(await asked.document())
        names = {key.lower() for key in document}
        if asked.id and "id" not in names:
            document["id"] = asked.id
        if asked.workspace and "workspace" not in names:
            document["workspace"] = asked.workspace
        try:
            definition, ignored = await compile_in_thread(partial(read_json, SCHEDULE, document), len(asked.data))
        except ValueError as error:
            raise OperationError(str(error)) from None
        assert isinstance(definition, ScheduleDefinition)
        await within_reach(self._access, asked.session, definition)
        put = self._schedules.upsert if upsert else self._schedules.create
        owner = asked.session.identity.text

        def program(tx: TaskTransaction) -> Program[StoredSchedule]:
            there = None
            if tx.context.again:
                there = yield from schedule_rows.load(definition.workspace, definition.id)
            if there is not None and (there.digest, there.owner) == (definition.digest, owner):
                return there  # an earlier run was committed
            return (yield from put(definition, owner, tx.context.now_ms))

        stored = await self._change(program)
        message = f"schedule {stored.id}"
        if ignored:
            message += f"; unknown keys were ignored: {', '.join(map(shown, ignored))}"
        return OperationAnswer(await _written(stored), message)

    async def _change(self, program: Callable[[TaskTransaction], Program[StoredSchedule]]) -> StoredSchedule:
        """Change a schedule in a transaction that tells the timer of its due moment."""

        def page(tx: TaskTransaction) -> Program[StoredSchedule]:
            stored = yield from program(tx)
            tx.effects.note_due(stored.next_fire_ms)
            if not stored.enabled:
                yield from stop_queued(tx, SCHEDULE, stored.workspace, stored.id)
            return stored

        try:
            return await self._engine.result(page)
        except ScheduleError as error:
            raise OperationError(str(error)) from None

    async def _find(self, asked: OperationAsked) -> StoredSchedule:
        """Find a schedule that the caller may change. Raises OperationError."""
        workspaces = dict.fromkeys((asked.own_workspace, EVERYWHERE))
        found = await self._engine.database.read(lambda: self._schedules.get(tuple(workspaces), asked.id))
        if found is None or await self._access.problem(asked.session, found.workspace, AccessLevel.READ):
            raise OperationError(f"schedule {shown(asked.id)} not found in workspace {shown(asked.own_workspace)}")
        await self._access.need(asked.session, found.workspace)
        return found

    async def _delete(self, asked: OperationAsked) -> OperationAnswer:
        found = await self._find(asked)

        def page(tx: TaskTransaction) -> Program[None]:
            yield from self._schedules.delete(found.workspace, found.id)
            yield from forget(schedule_subject(found.workspace, found.id))
            yield from stop_queued(tx, SCHEDULE, found.workspace, found.id)

        await self._engine.result(page)
        return OperationAnswer(message=f"schedule {found.id} is deleted")

    async def _pause(self, asked: OperationAsked) -> OperationAnswer:
        found = await self._find(asked)
        stored = await self._change(lambda tx: self._schedules.pause(found.workspace, found.id, tx.context.now_ms))
        return OperationAnswer(await _written(stored), f"schedule {found.id} is paused")

    async def _resume(self, asked: OperationAsked) -> OperationAnswer:
        found = await self._find(asked)
        stored = await self._change(lambda tx: self._schedules.resume(found.workspace, found.id, tx.context.now_ms))
        return OperationAnswer(await _written(stored), f"schedule {found.id} goes on")

    async def _backfill(self, asked: OperationAsked) -> OperationAnswer:
        found = await self._find(asked)
        given = await asked.document()
        from_ms, until_ms = (_moment(given, name) for name in ("from", "until"))
        slots: list[int] = []
        made = MadeOperation(self._ids.unique())

        def program(tx: TaskTransaction) -> Program[StoredSchedule]:
            if (yield from made.subject()) and (there := (yield from schedule_rows.load(found.workspace, found.id))):
                return there
            yield from made.note(tx, schedule_subject(found.workspace, found.id))
            stored, planned = yield from self._schedules.backfill(
                found.workspace, found.id, from_ms, until_ms, tx.context.now_ms
            )
            slots[:] = planned
            return stored

        stored = await self._change(program)
        return OperationAnswer(
            await _written(stored),
            f"{len(slots)} slots of schedule {found.id} are filled",
        )


async def _written(stored: StoredSchedule) -> bytes:
    return await in_json_thread(partial(_shown, stored), size_up_to(stored.document, SMALL_BYTES + 1))


def _shown(stored: StoredSchedule) -> bytes:
    return write_json(answer_of(stored))


def _moment(document: Mapping[str, Any], name: str) -> int:
    """Read an RFC 3339 moment of an operation's document, in Unix ms."""
    text = document.get(name)
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise OperationError(f"{name} is a moment such as 2026-11-29T06:00:00Z, and not {json.dumps(text)[:40]}")
    return round(moment.timestamp() * 1000)
