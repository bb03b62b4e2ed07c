"""Refuses clients for a while after failed authentications.

Failures are counted twice, and never for an identity alone, because any client can claim it:

    by address and claimed identity   the reference's bound: 5 in 30 s, then 30 s. The identity's
                                      owner can still connect from another address
    by address                        a wider bound, against a client that tries many identities

Many clients share an address behind a proxy or a NAT (an IPv6 address counts with its /64). So
credentials that were accepted from an address are checked there even if it is throttled, and its
other clients get UNAVAILABLE: try again. An attempt that was refused without a check is not
counted, so a client that keeps trying a wrong key does not throttle its address.

Senders of webhooks are counted alike, in a throttle of their own: `subject` is the webhook. Each of
their messages has another signature, so a sender that was accepted is known by its address alone.

Invariant: at most `max_tracked_identities` of each kind are remembered, the most recently used.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import lru_cache
from typing import Final, Generic, TypeVar

from aether_trio.config import AuthSettings
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Status, StatusError

K = TypeVar("K")
V = TypeVar("V")

_IPV6_NETWORK: Final = 64


class Throttle:
    """Counts failed authentications, and refuses clients that have too many.

    `address` is a Peer's; `subject` is the claimed identity without an assigned part; `proof` is a
    hash of the credentials.
    """

    def __init__(self, settings: AuthSettings, clock: Clock) -> None:
        self._clock = clock
        bounds = settings.failure_window_s, settings.cooldown_s, settings.max_tracked_identities
        self._pairs: _Failures[tuple[str, str]] = _Failures(clock, settings.max_failures, *bounds)
        self._addresses: _Failures[str] = _Failures(clock, settings.max_failures_per_address, *bounds)
        self._let_in: _Recent[tuple[str, str], bytes] = _Recent(settings.max_tracked_identities)

    def check(self, address: str, subject: str, proof: Callable[[], bytes]) -> None:
        """Raise StatusError while a client's credentials are refused without a check."""
        if not (self._pairs or self._addresses):
            return
        place = network_of(address)
        pair = place, subject
        left_s = self._pairs.left_s(pair)
        if left_s > 0 and not self._was_let_in(pair, proof):
            raise StatusError(
                Status.UNAUTHENTICATED,
                f"authentication temporarily throttled after {self._pairs.most} failures; try again in {left_s:.0f} s",
            )
        left_s = self._addresses.left_s(place)
        if left_s > 0 and not self._was_let_in(pair, proof):
            # Another client of this address may have failed, so UNAVAILABLE: try again.
            raise StatusError(
                Status.UNAVAILABLE,
                f"authentication from your address is throttled after {self._addresses.most} failures; "
                f"try again in {left_s:.0f} s",
            )

    def wait_s(self, address: str, subject: str) -> float:
        """Return the seconds for which a client that has no fixed proof is refused, or 0."""
        place = network_of(address)
        if not (self._pairs or self._addresses) or self.knows(address, subject):
            return 0.0
        return max(0.0, self._pairs.left_s((place, subject)), self._addresses.left_s(place))

    def knows(self, address: str, subject: str) -> bool:
        """Return whether credentials of a subject were accepted from an address of late."""
        return (network_of(address), subject) in self._let_in

    def _was_let_in(self, pair: tuple[str, str], proof: Callable[[], bytes]) -> bool:
        known = self._let_in.get(pair)
        return known is not None and hmac.compare_digest(known, proof())

    def failed(self, address: str, subject: str) -> None:
        """Count a client's credentials that were checked and refused."""
        place = network_of(address)
        self._pairs.count((place, subject))
        self._addresses.count(place)

    def succeeded(self, address: str, subject: str, proof: bytes = b"") -> None:
        """Remember a client's accepted credentials, and forget its earlier failures."""
        place = network_of(address)
        self._pairs.forget((place, subject))
        self._let_in.put((place, subject), proof)

    @property
    def remembered(self) -> int:
        """The number of records of failed and successful authentications in memory."""
        return len(self._pairs) + len(self._addresses) + len(self._let_in)


class _Recent(OrderedDict[K, V], Generic[K, V]):
    """A mapping of at most `most` entries; the least recently put leaves first."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def put(self, key: K, value: V) -> None:
        self[key] = value
        self.move_to_end(key)
        if len(self) > self._most:
            self.popitem(last=False)


class _Failures(Generic[K]):
    """Counts failures by key, and returns how long a key with too many has to wait."""

    def __init__(self, clock: Clock, most: int, window_s: float, cooldown_s: float, tracked: int) -> None:
        self.most = most
        self._clock = clock
        self._window_s = window_s
        self._cooldown_s = cooldown_s
        self._times: _Recent[K, deque[float]] = _Recent(tracked)
        self._until: _Recent[K, float] = _Recent(tracked)

    def __len__(self) -> int:
        return len(self._times) + len(self._until)

    def left_s(self, key: K) -> float:
        """Return the seconds that a key still has to wait; 0 or less for none."""
        until = self._until.get(key)
        if until is None:
            return 0
        left_s = until - self._clock.monotonic()
        if left_s <= 0:
            del self._until[key]
        return left_s

    def count(self, key: K) -> None:
        now = self._clock.monotonic()
        times = self._times.get(key)
        if times is None:
            times = deque(maxlen=self.most)
        times.append(now)
        if len(times) == self.most and now - times[0] <= self._window_s:
            self._until.put(key, now + self._cooldown_s)
            self._times.pop(key, None)
        else:
            self._times.put(key, times)

    def forget(self, key: K) -> None:
        self._times.pop(key, None)


def network_of(address: str) -> str:
    """Return the network whose failed authentications count together: a host or a /64."""
    host = address.rpartition(":")[0] or address
    return _ipv6_network(host.strip("[]")) if ":" in host else host


@lru_cache(maxsize=1024)
def _ipv6_network(host: str) -> str:
    try:
        parsed = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed), _IPV6_NETWORK), strict=False))
