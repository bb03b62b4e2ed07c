"""Renews the grants that tasks hold, for as long as the tasks live.

A task holds the grant with which it was created, that of a pool's worker which has the task, and
the grants whose audience is the task. Each is renewed when a part of its time is left, by as much
time as it had, within `renewable_until` and the ends of all grants above it. So a task whose
creator renews its own grant loses no right, and one that has ended keeps none.

Every node looks for such grants; the first one's change renews them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final, TypeAlias

import structlog
import trio

from aether_trio.model.access.grants import AuthorityGrant, GrantError, Lineage, PrincipalKey, renewed
from aether_trio.model.audit import AuditEvent
from aether_trio.model.clock import Clock
from aether_trio.services.access.changes import AccessChanges, Draft
from aether_trio.services.authority import store
from aether_trio.services.authority.known_grants import GRANT
from aether_trio.services.authority.transactions import grant_row
from aether_trio.services.tasks.transaction import task_rows
from aether_trio.storage.base import Database, Program, StorageUnavailable

logger = structlog.get_logger("aether.authority")

LEAD_MS: Final = 300_000
"""A grant is renewed when this is left of its time, or half of it if that is less."""
SHORTEST_MS: Final = 60_000
"""A grant is renewed by no less than this, if its limits allow."""
LOOK_S: Final = 15.0

Renewed: TypeAlias = list[tuple[Lineage, str]]
"""Renewed grants, with what is above them, and the task that holds each."""


class TaskGrantRenewal:
    """Renews the grants of live tasks, within `run`."""

    def __init__(self, database: Database, clock: Clock, changes: AccessChanges) -> None:
        self._database = database
        self._clock = clock
        self._changes = changes

    async def run(self) -> None:
        """Renew what is about to end, until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            try:
                await self.renew_due()
            except StorageUnavailable as error:
                logger.info("grants of tasks are renewed when storage answers", reason=str(error))

    async def renew_due(self) -> None:
        """Renew the grants of live tasks that are about to end. Raises StorageUnavailable."""
        place: store.Place | None = store.FIRST
        while place is not None:
            after = place
            found, place = await self._database.read(partial(_due, self._clock.now_ms(), after))
            if found:
                await self._changes.commit(partial(_renew, after=after))


def _due(now_ms: int, after: store.Place) -> Program[tuple[Renewed, store.Place | None]]:
    """Return a page of the grants to renew, as they will be, and the next place.

    Those above others come first.
    """
    found: Renewed = []
    later: dict[str, AuthorityGrant] = {}
    ending, place = yield from store.ending_for_tasks(now_ms, now_ms + LEAD_MS, after)
    for grant_id, task_id, is_own in ending:
        lineage = yield from store.load_lineage(grant_id)
        task = yield from task_rows.load(task_id)
        if lineage is None or task is None or task.is_final:
            continue
        # Others below a task's own grant are of participants to whom its worker has passed it on.
        if not (is_own or grant_id == task.authority_grant_id or lineage[-1].terms.audience == ("task", task_id)):
            continue
        lineage = tuple(later.get(one.grant_id, one) for one in lineage)
        renewed_grant = _later(lineage, now_ms)
        if renewed_grant is not None:
            later[grant_id] = renewed_grant
            found.append(((*lineage[:-1], renewed_grant), task_id))
    return found, place


def _later(lineage: Lineage, now_ms: int) -> AuthorityGrant | None:
    """Return a grant with a later end if it is time for that, and there is one."""
    grant = lineage[-1]
    expires_ms = grant.terms.expires_ms
    lease_ms = max(expires_ms - max(grant.created_ms, grant.renewed_ms), SHORTEST_MS)
    if expires_ms - now_ms > min(LEAD_MS, lease_ms // 2):
        return None
    try:
        after = renewed(lineage, now_ms, extend_ms=now_ms + lease_ms - expires_ms)
    except GrantError:
        return None
    return after if after.terms.expires_ms > expires_ms else None


def _renew(draft: Draft, after: store.Place) -> Program[None]:
    found, _ = yield from _due(draft.now_ms, after)
    for lineage, task_id in found:
        grant = lineage[-1]
        yield from store.save_renewed(grant)
        draft.record(GRANT, grant.grant_id, {"expires": grant.terms.expires_ms})
        draft.audit(_event(lineage, task_id, draft.now_ms))


def _event(lineage: Lineage, task_id: str, now_ms: int) -> AuditEvent:
    grant = lineage[-1]
    metadata: dict[str, object] = {
        "delegate": str(grant.delegate),
        "expires_at": grant.terms.expires_ms // 1000,
        "reason": "the task that holds the grant lives on",
    }
    event = grant_row("authority_grant_renew", PrincipalKey("task", task_id), "", lineage, now_ms)
    return replace(event, metadata=metadata)
