"""A token bucket (rate limit) as one number, without a timer.

The algorithm is the generic cell rate algorithm (ITU-T I.371). Instead of counting tokens, the
bucket remembers the moment at which it will be full again, and a take moves that moment forward.

Invariants: between any two moments s <= t at most `burst + rate_per_s * (t - s)` tokens are given,
plus what fits into TOLERANCE_S; a refused take changes nothing; a take at `now + wait` after a
refusal that returned `wait` succeeds if no other take succeeded meanwhile.
"""

from __future__ import annotations

import math
from typing import Final

TOLERANCE_S: Final = 1e-6  # absorbs rounding: who waits as told is not told to wait again


class TokenBucket:
    """A rate limit with a burst; rate 0 is unlimited; `now` is monotonic seconds."""

    __slots__ = ("_full_at", "burst", "rate_per_s")

    def __init__(self, rate_per_s: float, burst: float) -> None:
        if not (math.isfinite(rate_per_s) and rate_per_s >= 0):
            raise ValueError(f"rate_per_s is {rate_per_s}; it must be 0 (unlimited) or a positive number")
        if rate_per_s and not (math.isfinite(burst) and burst >= 1):
            raise ValueError(f"burst is {burst}; a bucket that holds less than one token gives none")
        self.rate_per_s = rate_per_s
        self.burst = burst
        self._full_at = -math.inf

    def take(self, now: float, n: int = 1) -> float:
        """Take `n` tokens; return 0.0, or seconds to wait; ValueError beyond the burst."""
        if not self.rate_per_s:
            return 0.0
        if not 0 <= n <= self.burst:
            raise ValueError(f"cannot take {n} tokens from a bucket that holds {self.burst}")
        full_at = max(self._full_at, now) + n / self.rate_per_s
        wait_s = full_at - self.burst / self.rate_per_s - now
        if wait_s > TOLERANCE_S:
            return wait_s
        self._full_at = full_at
        return 0.0

    def is_full(self, now: float) -> bool:
        """Return whether the bucket is full, and so may be forgotten and made anew."""
        return not self.rate_per_s or self._full_at <= now
