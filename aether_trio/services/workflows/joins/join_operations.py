"""Operations on joins, whose instances are made by events (arrivals.py)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from aether_trio.model.access import AccessLevel
from aether_trio.model.text import shown
from aether_trio.model.workflows.go_names import go_time
from aether_trio.model.workflows.joins import JoinStatus
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.workflows.documents.json_values import write_json
from aether_trio.services.workflows.joins.arrivals import Joins
from aether_trio.services.workflows.requests.asked import (
    OperationAnswer,
    OperationAsked,
    OperationError,
    WorkspaceAccess,
    page_answer,
)
from aether_trio.services.workflows.stored import join_rows
from aether_trio.services.workflows.stored.join_rows import JoinRow
from aether_trio.wire.pb import aether_pb2 as pb

Op = pb.WorkflowOperation
_OVER: Final = {JoinStatus.FIRED.value: "has fired", JoinStatus.TIMED_OUT.value: "has timed out"}
"""What joins have done that cannot be cancelled any more, by their status."""


class JoinOperations:
    """Performs operations on joins; `table` has them by number.

    `id` is the name of a join, `secondary_id` the correlation key.
    """

    def __init__(self, engine: Engine, joins: Joins, access: WorkspaceAccess) -> None:
        self._engine = engine
        self._joins = joins
        self._access = access
        self.table: Final[Mapping[int, Callable[[OperationAsked], Awaitable[OperationAnswer]]]] = MappingProxyType(
            {Op.LIST_JOINS: self._list, Op.GET_JOIN: self._get, Op.CANCEL_JOIN: self._cancel}
        )

    async def _list(self, asked: OperationAsked) -> OperationAnswer:
        if asked.status not in ("", *JoinStatus):
            raise OperationError(f"status_filter is one of {', '.join(JoinStatus)}, and not {shown(asked.status)}")
        workspaces = await self._access.visible(asked)
        page = await asked.page()
        behind = page.changed()
        found = await self._engine.database.read(
            lambda: join_rows.listed(workspaces, asked.status, page.limit + 1, behind)
        )
        return page_answer(
            found, page, lambda one: write_json(shown_join(one)), lambda one: f"{one.updated_ms} {one.join_id}"
        )

    async def _get(self, asked: OperationAsked) -> OperationAnswer:
        join_id = _id(asked)
        found = await self._engine.database.read_small(lambda: join_rows.load(join_id))
        if found is None or await self._access.problem(asked.session, asked.own_workspace, AccessLevel.READ):
            raise OperationError(_not_found(asked))
        return OperationAnswer(shown_join(found))

    async def _cancel(self, asked: OperationAsked) -> OperationAnswer:
        """Cancel an open join; refuse one that has fired or timed out."""
        join_id = _id(asked)
        await self._access.need(asked.session, asked.own_workspace)
        row = await self._engine.result(lambda tx: self._joins.cancel(tx, join_id))
        if row is None:
            return OperationAnswer(message=f"{_not_found(asked)}: nothing is to be cancelled")
        if row.status in _OVER:
            when = go_time(row.updated_ms)
            raise OperationError(f"{_named(asked)} {_OVER[row.status]} at {when}: nothing is to be cancelled")
        return OperationAnswer(shown_join(row), f"join {row.join_name} is {row.status}")


def _id(asked: OperationAsked) -> str:
    if not asked.id or not asked.secondary_id:
        raise OperationError("id is the name of the join, and secondary_id its correlation key")
    return join_rows.id_of(asked.own_workspace, asked.id, asked.secondary_id)


def _not_found(asked: OperationAsked) -> str:
    return f"{_named(asked)} not found in workspace {shown(asked.own_workspace)}"


def _named(asked: OperationAsked) -> str:
    return f"join {shown(asked.id)} with key {shown(asked.secondary_id)}"


def shown_join(row: JoinRow) -> dict[str, Any]:
    """Return a join as operations answer it."""
    return {
        "join_name": row.join_name,
        "workspace": row.workspace,
        "correlation_key": row.correlation_key,
        "mode": row.mode,
        "arrived": row.arrived,
        "expected": None if row.expected < 0 else row.expected,
        "dirty": bool(row.dirty),
        "status": row.status,
        "deadline_at": go_time(row.deadline_ms) if row.deadline_ms else None,
        "linger_until": go_time(row.linger_until_ms) if row.linger_until_ms else None,
        "created_at": go_time(row.created_ms),
        "updated_at": go_time(row.updated_ms),
    }
