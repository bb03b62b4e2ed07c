"""Computes when a failed task is retried, from its retry policy (tasks.md 1.7)."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Final

DEFAULT_ATTEMPTS: Final = 3
DEFAULT_DELAY_MS: Final = 1_000
MAX_EXPONENT: Final = 62
MAX_DELAY_MS: Final = 10 * 365 * 24 * 3600 * 1000  # ten years: a time column holds the sum


class Backoff(enum.IntEnum):
    """How retry delays grow, as numbered on the wire; UNSPECIFIED is EXPONENTIAL."""

    UNSPECIFIED = 0
    FIXED = 1
    EXPONENTIAL = 2
    EXPLICIT_SCHEDULE = 3


@dataclass(frozen=True, slots=True)
class RetrySchedule:
    """A task's retry policy; delays in ms, `max_attempts` with the first, 0 is three."""

    max_attempts: int = 0
    backoff: int = Backoff.UNSPECIFIED
    initial_delay_ms: int = 0
    max_delay_ms: int = 0
    jitter_factor: float = 0.0
    schedule_ms: tuple[int, ...] = ()
    retryable_status_codes: tuple[int, ...] = ()
    honor_retry_after: bool = False
    final_errors: tuple[str, ...] = ()
    """Patterns (*, ?) of types or texts of errors after which there is no further attempt."""

    def is_final(self, error_type: str, error: str) -> bool:
        """Return whether no attempt follows an error of this type and text."""
        return any(fnmatchcase(text, pattern) for pattern in self.final_errors for text in (error_type, error))

    @property
    def attempts(self) -> int:
        """How many attempts the task may have in all."""
        return self.max_attempts if self.max_attempts > 0 else DEFAULT_ATTEMPTS

    def delay_ms(self, failures: int, uniform: Callable[[], float]) -> int:
        """Return the delay after failure number `failures`; `uniform` gives the jitter."""
        delay = float(self._delay_ms(max(failures, 1)))
        jitter = min(max(self.jitter_factor, 0.0), 1.0)
        if jitter:
            delay *= 1 + jitter * (2 * uniform() - 1)
        return round(min(max(delay, 0.0), MAX_DELAY_MS))

    def _delay_ms(self, failures: int) -> int:
        if self.backoff == Backoff.FIXED:
            return self.initial_delay_ms
        if self.backoff == Backoff.EXPLICIT_SCHEDULE:
            if not self.schedule_ms:
                return self.initial_delay_ms
            return self.schedule_ms[min(failures, len(self.schedule_ms)) - 1]
        delay = (self.initial_delay_ms or DEFAULT_DELAY_MS) * (1 << min(failures - 1, MAX_EXPONENT))
        return min(delay, self.max_delay_ms) if self.max_delay_ms > 0 else delay

    def to_json(self) -> str:
        """Encode the retry policy for storage."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> RetrySchedule:
        """Decode a retry policy that `to_json` encoded."""
        fields = json.loads(text)
        for name in ("schedule_ms", "retryable_status_codes", "final_errors"):
            fields[name] = tuple(fields[name])
        return cls(**fields)
