"""What a paused task waits for, and what ends the wait (reference: tasks.md 1.8)."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from aether_trio.model.tasks.status import Status


class Reason(enum.IntEnum):
    """As numbered on the wire. UNSPECIFIED is INPUT."""

    UNSPECIFIED = 0
    INPUT = 1
    AUTHORITY = 2
    DEPENDENCY = 3
    HIBERNATION = 4

    @property
    def word(self) -> str:
        """As events name it."""
        return _WORDS[self]

    @property
    def status(self) -> Status:
        """What a task that pauses for this is."""
        return _STATUSES[self]


_WORDS = {
    Reason.UNSPECIFIED: "",
    Reason.INPUT: "input",
    Reason.AUTHORITY: "authority",
    Reason.DEPENDENCY: "dependency",
    Reason.HIBERNATION: "hibernation",
}
_STATUSES = {
    Reason.UNSPECIFIED: Status.WAITING_INPUT,
    Reason.INPUT: Status.WAITING_INPUT,
    Reason.AUTHORITY: Status.WAITING_AUTHORITY,
    Reason.DEPENDENCY: Status.WAITING_DEPENDENCY,
    Reason.HIBERNATION: Status.HIBERNATED,
}

ESCALATIONS = frozenset({"", "fail", "retry", "alert"})
"""What becomes of a hibernated task whose time is up: failed, woken, or left asleep."""


@dataclass(frozen=True, slots=True)
class Wait:
    """As the client gave it. `timeout_ms` 0 is never, `wake_ms` 0 is no alarm; the last four belong to a hibernation."""

    reason: int = Reason.UNSPECIFIED
    expected_principal: str = ""
    input_match: Mapping[str, str] = field(default_factory=dict)
    authority_request_id: str = ""
    depends_on: tuple[str, ...] = ()
    wake_on_any: bool = False
    timeout_ms: int = 0
    wake_ms: int = 0
    checkpoint_key: str = ""
    resume_session_id: str = ""
    wake_event_types: tuple[str, ...] = ()
    escalation: str = ""

    @property
    def status(self) -> Status:
        """What a task that waits for this is; an unknown reason is input."""
        return _STATUSES.get(Reason(self.reason) if self.reason in set(Reason) else Reason.INPUT, Status.WAITING_INPUT)

    @property
    def word(self) -> str:
        """The reason, as events name it."""
        return _WORDS[Reason(self.reason)] if self.reason in set(Reason) else ""

    def is_over(self, ended: int) -> bool:
        """Whether a wait for dependencies is over when `ended` of them have ended (or are gone)."""
        if not self.depends_on:
            return True
        return ended > 0 if self.wake_on_any else ended >= len(set(self.depends_on))

    def takes(self, metadata: Mapping[str, str]) -> bool:
        """Whether an input with this metadata is the one that is waited for; no `input_match` takes any."""
        return all(metadata.get(key) == value for key, value in self.input_match.items())

    def to_json(self) -> str:
        """For storage."""
        return json.dumps(asdict(self), separators=(",", ":"))

    def in_order(self) -> str:
        """The same text for the same wait, in whatever order its `input_match` came."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Wait:
        """What `to_json` wrote."""
        fields = json.loads(text)
        for name in ("depends_on", "wake_event_types"):
            fields[name] = tuple(fields[name])
        return cls(**fields)
