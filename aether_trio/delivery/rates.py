"""Rate limits of messages (by connection, workspace, identity) and of requests.

A message is checked in the protocol's order: connection, workspace, identity. In a cluster each
node has its own buckets. The rate of an identity holds for the cluster all the same, because an
identity is on one node at a time. The rate of a workspace is one gateway's, as in the reference.

Invariants: a refused message takes nothing from the buckets behind the one that refused it; the
maps of buckets are bounded, because a bucket that is full again may be forgotten.
"""

from __future__ import annotations

import math

from aether_trio.model.clock import Clock
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.limits import Limits
from aether_trio.model.token_bucket import TokenBucket

MAX_BUCKETS = 10_000
WORKSPACE_RETRY_MS = 100
IDENTITY_RETRY_MS = 1000
MIN_RETRY_MS = 10


class Rates:
    """The message and request rate limits of one node."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._workspaces: dict[str, TokenBucket] = {}
        self._identities: dict[str, TokenBucket] = {}
        self.unlimited = not (limits.send_rate_per_s or limits.workspace_rate_per_s or limits.identity_rate_per_s)

    def connection_bucket(self) -> TokenBucket:
        """Make the token bucket for messages of a new connection."""
        return TokenBucket(self._limits.send_rate_per_s, self._limits.send_burst)

    def take(self, bucket: TokenBucket, workspace: str, identity: str) -> None:
        """Count a message, or raise RequestError that says how long to wait."""
        if self.unlimited:
            return
        now = self._clock.monotonic()
        self.take_connection(bucket, now)
        if workspace and self._limits.workspace_rate_per_s:
            rate = self._limits.workspace_rate_per_s
            if self._bucket(self._workspaces, workspace, rate, now).take(now):
                raise RequestError(
                    Code.WORKSPACE_RATE_LIMITED,
                    f"workspace {workspace} sends more than {rate:g} messages per second; wait and send again",
                    retry_after_ms=WORKSPACE_RETRY_MS,
                )
        if self._limits.identity_rate_per_s:
            rate = self._limits.identity_rate_per_s
            if self._bucket(self._identities, identity, rate, now).take(now):
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

    def request_refusal(self, bucket: TokenBucket) -> RequestError | None:
        """Count a request; return the error if its connection makes too many."""
        if not bucket.rate_per_s or not (wait_s := bucket.take(self._clock.monotonic())):
            return None
        return RequestError(
            Code.RATE_LIMITED,
            f"this connection makes more than {bucket.rate_per_s:g} requests per second ({bucket.burst:g} at once); wait and ask again",
            retry_after_ms=max(MIN_RETRY_MS, math.ceil(1000 * wait_s)),
        )

    @staticmethod
    def _bucket(buckets: dict[str, TokenBucket], name: str, rate: float, now: float) -> TokenBucket:
        bucket = buckets.get(name)
        if bucket is None:
            if len(buckets) >= MAX_BUCKETS:
                for key in [key for key, one in buckets.items() if one.is_full(now)]:
                    del buckets[key]
            bucket = buckets[name] = TokenBucket(rate, max(1.0, rate))
        return bucket
