"""Caches the gateway's answers on authority grants, for services that check them.

    async with agent.grants.cached() as cache:
        resolved = await cache.resolve(grant_id, actor=message.source, subject=who)

An answer is remembered for `max_age_s`, not beyond the grant's expiry, and not after a revocation
was heard of. A gateway tells only those who may use a grant of its revocation, so `max_age_s` is
how late an enforcer may learn of it. A refusal is not remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import anyio

from aether_trio.client.errors import ConnectionLost
from aether_trio.client.feeds import Feed
from aether_trio.client.operations.grant_values import ResolvedGrant
from aether_trio.client.operations.principals import Principal

MAX_AGE_S: Final = 60.0
MAX_ENTRIES: Final = 10_000
"""The oldest is forgotten when there are more."""


@dataclass(frozen=True, slots=True)
class _Key:
    grant_id: str
    actor: Principal
    subject: Principal
    audience_type: str
    audience_id: str


@dataclass(slots=True)
class _Entry:
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    resolved: ResolvedGrant | None = None
    until: float = 0.0
    """On the event loop's clock."""


class GrantCache:
    """Caches the gateway's answers about what grants allow; `Grants.cached` makes one."""

    def __init__(self, resolve: Callable[..., Awaitable[ResolvedGrant]], news: Feed[Any], max_age_s: float) -> None:
        self._resolve = resolve
        self._news = news
        self._max_age_s = max_age_s
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._dropped = 0
        self.hits = 0
        self.misses = 0

    async def resolve(
        self,
        grant_id: str,
        *,
        actor: Principal | str,
        subject: Principal | str,
        audience_type: str = "",
        audience_id: str = "",
    ) -> ResolvedGrant:
        """Return what a grant allows, as Grants.resolve does, from the cache if possible."""
        key = _Key(grant_id, Principal.of(actor), Principal.of(subject), audience_type, audience_id)
        while True:
            self._hear()
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            if len(self._entries) > MAX_ENTRIES:
                self._entries.popitem(last=False)
            async with entry.lock:
                self._hear()
                if self._entries.get(key) is not entry:
                    continue  # it was revoked while we waited for who had asked first
                if entry.resolved is not None and anyio.current_time() < entry.until:
                    self.hits += 1
                    return entry.resolved
                self.misses += 1
                resolved = await self._resolve(
                    grant_id, actor=key.actor, subject=key.subject, audience_type=audience_type, audience_id=audience_id
                )
                entry.until = anyio.current_time() + self._good_for_s(resolved)
                entry.resolved = resolved
                return resolved

    def forget(self, grant_id: str) -> None:
        """Drop what is cached about this grant."""
        for key in [key for key in self._entries if key.grant_id == grant_id]:
            del self._entries[key]

    def _good_for_s(self, resolved: ResolvedGrant) -> float:
        grant = resolved.grant
        if grant is None or grant.expires_at is None:
            return self._max_age_s
        return min(self._max_age_s, (grant.expires_at - datetime.now(UTC)).total_seconds())

    def _hear(self) -> None:
        """Drop cached grants that were revoked; after a cut, which hides revocations, all."""
        if self._news.dropped != self._dropped:
            self._dropped = self._news.dropped
            self._entries.clear()
        while (news := self._news.get_nowait()) is not None:
            if isinstance(news, ConnectionLost) or news.cascade:
                self._entries.clear()
            else:
                self.forget(news.grant_id)
