"""Puts the parts of authority together: handlers, pushes, timers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Final

from aether_trio.model.clock import Clock
from aether_trio.model.ids import IdFactory
from aether_trio.services.access import Authorizer
from aether_trio.services.access.changes import AccessChanges
from aether_trio.services.authority.endings import GrantEndings
from aether_trio.services.authority.expiry import RequestExpiry
from aether_trio.services.authority.grants import GrantService
from aether_trio.services.authority.known_grants import KnownGrants
from aether_trio.services.authority.push import AuthorityPush
from aether_trio.services.authority.renewal import TaskGrantRenewal
from aether_trio.services.authority.requests import RequestService
from aether_trio.services.authority.rights import Decider, Rights
from aether_trio.services.authority.tasks import TaskGrantMaker
from aether_trio.services.authority.transactions import AuditSink
from aether_trio.services.tasks.engine import Engine
from aether_trio.session.directory import SessionDirectory
from aether_trio.session.dispatch import Handler
from aether_trio.session.registry import SessionRegistry


class AuthorityService:
    """Grants and authority requests of a gateway.

    `handlers` has the handlers by request field, `background` the functions that run as long as the
    gateway, by name. It is made before `changes` starts.
    """

    def __init__(
        self,
        engine: Engine,
        changes: AccessChanges,
        cache: KnownGrants,
        authorizer: Authorizer,
        decider: Decider,
        registry: SessionRegistry,
        directory: SessionDirectory,
        ids: IdFactory,
        clock: Clock,
        audit: AuditSink,
        *,
        strict: bool = True,
    ) -> None:
        database = engine.database
        rights = Rights(decider)
        endings = GrantEndings(engine)
        push = AuthorityPush(database, clock, registry, rights, changes)
        expiry = RequestExpiry(engine, clock, changes)
        renewal = TaskGrantRenewal(database, clock, changes)
        grants = GrantService(
            database, engine, changes, cache, endings, rights, directory, audit, ids, clock, strict=strict
        )
        requests = RequestService(database, engine, changes, rights, audit, ids, clock, strict=strict)
        self.grants = grants
        self.grant_maker = TaskGrantMaker(database, cache, endings, authorizer, rights, ids, clock)
        self.handlers: Final[Mapping[str, Handler]] = MappingProxyType(
            {
                "authority_grant_op": grants.handle,
                "resolve_authority_request": grants.resolve,
                "authority_request_op": requests.handle,
            }
        )
        self.background: Final[Mapping[str, Callable[[], Awaitable[None]]]] = MappingProxyType(
            {
                "authority-push": push.run,
                "authority-endings": endings.run,
                "authority-expiry": expiry.run,
                "authority-sweep": expiry.sweep_forever,
                "authority-renewal": renewal.run,
            }
        )
