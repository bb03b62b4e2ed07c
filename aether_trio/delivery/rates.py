"""Rate limits of messages (by connection, workspace, identity) and of requests.

A message is checked in the protocol's order: connection, workspace, identity. The rate of an
identity holds for a whole cluster, because an identity is on one node at a time. The rate of a
workspace is that of one gateway, or is leased to the nodes of a cluster by demand
(cluster/rate_leases.py). Rates are quotas: they may differ from one workspace to another.

Invariants: a refused message takes nothing from the buckets behind the one that refused it; the
maps of buckets are bounded, because a bucket that is full again may be forgotten.
"""

from __future__ import annotations

import math
from typing import Protocol

from aether_trio.model.clock import Clock
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.limits import Limits
from aether_trio.model.quotas import WorkspaceQuotas
from aether_trio.model.token_bucket import TokenBucket

MAX_BUCKETS = 10_000
WORKSPACE_RETRY_MS = 100
IDENTITY_RETRY_MS = 1000
MIN_RETRY_MS = 10


class WorkspaceRates(Protocol):
    """Counts messages of workspaces against their rates. Never waits."""

    def take(self, workspace: str, rate: float, now: float) -> bool:
        """Count a message of a workspace; False if its rate has no room."""

    def __len__(self) -> int: ...


class BucketsByName:
    """Token buckets by name: the WorkspaceRates of a gateway that is alone.

    A bucket holds one second's worth of its rate, at least one token.
    """

    def __init__(self) -> None:
        self._buckets: dict[str, TokenBucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, name: str, rate: float, now: float) -> bool:
        bucket = self._buckets.get(name)
        if bucket is None or bucket.rate_per_s != rate:
            if len(self._buckets) >= MAX_BUCKETS:
                for key in [key for key, one in self._buckets.items() if one.is_full(now)]:
                    del self._buckets[key]
            bucket = self._buckets[name] = TokenBucket(rate, max(1.0, rate))
        return not bucket.take(now)


class Rates:
    """The message and request rate limits of one node."""

    def __init__(
        self,
        limits: Limits,
        clock: Clock,
        quotas: WorkspaceQuotas | None = None,
        workspaces: WorkspaceRates | None = None,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._quotas = quotas or WorkspaceQuotas(limits)
        self._workspaces = workspaces if workspaces is not None else BucketsByName()
        self._identities = BucketsByName()

    @property
    def unlimited(self) -> bool:
        """Whether no message is counted."""
        return not (self._limits.send_rate_per_s or self._quotas.limits_messages)

    def connection_bucket(self) -> TokenBucket:
        """Make the token bucket for messages of a new connection."""
        return TokenBucket(self._limits.send_rate_per_s, self._limits.send_burst)

    def take(self, bucket: TokenBucket, workspace: str, identity: str) -> None:
        """Count a message, or raise RequestError that says how long to wait."""
        limits_messages = self._quotas.limits_messages
        if not (limits_messages or bucket.rate_per_s):
            return
        now = self._clock.monotonic()
        self.take_connection(bucket, now)
        if not limits_messages:
            return
        quotas = self._quotas.of(workspace)
        rate = quotas.workspace_rate_per_s
        if rate and workspace and not self._workspaces.take(workspace, rate, now):
            raise RequestError(
                Code.WORKSPACE_RATE_LIMITED,
                f"workspace {workspace} sends more than {rate:g} messages per second; wait and send again",
                retry_after_ms=WORKSPACE_RETRY_MS,
            )
        rate = quotas.identity_rate_per_s
        if rate and not self._identities.take(identity, rate, now):
            raise RequestError(
                Code.QUOTA,
                f"{identity} sends more than {rate:g} messages per second; wait and send again",
                retry_after_ms=IDENTITY_RETRY_MS,
            )

    def take_connection(self, bucket: TokenBucket, now: float | None = None) -> None:
        """Count a progress report against its connection's rate. Raises RequestError."""
        wait_s = bucket.take(self._clock.monotonic() if now is None else now)
        if wait_s:
            rate = bucket.rate_per_s
            raise RequestError(
                Code.RATE_LIMITED,
                f"this connection sends more than {rate:g} messages per second ({bucket.burst:g} at once); wait and send again",
                retry_after_ms=max(MIN_RETRY_MS, round(1000 / rate)),
            )

    def request_bucket(self) -> TokenBucket:
        """Make a connection's token bucket for requests other than messages."""
        return TokenBucket(self._limits.request_rate_per_s, self._limits.request_burst)

    def request_refusal(self, bucket: TokenBucket, times: int = 1) -> RequestError | None:
        """Count `times` requests; return the error if their connection makes too many."""
        if not bucket.rate_per_s or not (wait_s := bucket.take(self._clock.monotonic(), min(times, int(bucket.burst)))):
            return None
        return RequestError(
            Code.RATE_LIMITED,
            f"this connection makes more than {bucket.rate_per_s:g} requests per second ({bucket.burst:g} at once); wait and ask again",
            retry_after_ms=max(MIN_RETRY_MS, math.ceil(1000 * wait_s)),
        )
