"""Changes access data without a gateway, for `--offline` and `aether init`.

The databases are those of the settings: files, which must not be in use by a gateway, or
PostgreSQL, whose nodes notice a change within seconds. Changes are committed and audited like those
of a gateway.
"""

from __future__ import annotations

import getpass
import random
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from aether_trio.config import Settings
from aether_trio.gateway.audit import open_audit
from aether_trio.gateway.databases import open_databases, starting
from aether_trio.model.access import AccessLevel
from aether_trio.model.access.holdings import Holder
from aether_trio.model.access.ladder import AccessIndex
from aether_trio.model.access.rules import Lock
from aether_trio.model.clock import Clock, SystemClock
from aether_trio.model.identity import MAX_TOKEN_BYTES, Identity
from aether_trio.model.ids import IdFactory
from aether_trio.services.access.authorizer import (
    DIRECT,
    AccessDecision,
    AccessQuestion,
    Actor,
    Authority,
    GatewayActor,
    NoDecisions,
    NoGrants,
)
from aether_trio.services.access.changes import AccessChanges, NoPeers
from aether_trio.services.access.granting import Granting, HeldRights
from aether_trio.services.access.rule_authorizer import RuleAuthorizer
from aether_trio.services.access.service import AccessService
from aether_trio.services.audit.service import AuditService
from aether_trio.session.lease_gate import LeaseGate
from aether_trio.storage.base import Database
from aether_trio.wire.pb import aether_pb2 as pb

__all__ = ["OfflineAccess", "open_offline"]

_NOT_A_NAME: Final = re.compile(r"[^A-Za-z0-9._@-]")


@dataclass(frozen=True, slots=True)
class OfflineAccess:
    """The access data of a gateway that is not running."""

    settings: Settings
    clock: Clock
    database: Database
    changes: AccessChanges
    service: AccessService

    async def operate(self, op: pb.ACLOperation) -> pb.ACLResponse:
        """Perform an operation on access data, as the owner of the databases."""
        answer, *_ = await self.service.handle(_operator(), op)
        return answer.acl


class _OwnersAuthorizer(RuleAuthorizer):
    """Allows all: who can write the databases needs no rule."""

    def decide(self, actor: Actor, access: AccessQuestion, authority: Authority = DIRECT) -> AccessDecision:
        return AccessDecision(True, level=AccessLevel.SUPERADMIN)


class _OwnersGranting(Granting):
    """Lets the owner of the databases give, remove and lock anything."""

    def held(self, actor: Actor, authority: Authority = DIRECT) -> HeldRights:
        return _OwnersRights(self.authorizer, actor, authority, ())

    def holders(self, actor: Actor, authority: Authority = DIRECT) -> Sequence[Holder]:
        return ()  # none gains by a removal

    def check_lock(self, actor: Actor, lock: Lock) -> None:
        return


class _OwnersRights(HeldRights):
    """All rights on everything."""

    def level_over(self, resource_type: str, resource_id: str) -> AccessLevel:
        return AccessLevel.SUPERADMIN


def _operator() -> GatewayActor:
    """Return the person at this machine, as the audit names them."""
    name = _NOT_A_NAME.sub("-", getpass.getuser())[:MAX_TOKEN_BYTES] or "operator"
    return GatewayActor(Identity.orchestrator("offline", name))


@asynccontextmanager
async def open_offline(settings: Settings) -> AsyncIterator[OfflineAccess]:
    """Open the access data until the block ends. Raises StorageSetupError."""
    clock = SystemClock(trio.current_time)
    with starting("the access data cannot be opened, as storage does not answer") as done:
        async with (
            open_databases(settings) as databases,
            open_audit(settings, clock, databases.tasks, random.SystemRandom()) as audit,
        ):
            changes = AccessChanges(databases.tasks, clock, NoPeers(), LeaseGate(), audit.writer)
            authorizer = _OwnersAuthorizer(AccessIndex(), clock, NoGrants(), NoDecisions())
            authorizer.follow(changes)
            service = AccessService(
                databases.tasks,
                authorizer,
                changes,
                AuditService(databases.tasks, clock, authorizer, audit.writer, lambda: 0, audit.upkeep.forget),
                IdFactory(random.SystemRandom()),
                clock,
                _OwnersGranting(authorizer),
            )
            await changes.start()
            done()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(changes.run)
                yield OfflineAccess(settings, clock, databases.tasks, changes, service)
                nursery.cancel_scope.cancel()
