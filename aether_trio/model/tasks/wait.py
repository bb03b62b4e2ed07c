"""What a paused task waits for, and what ends the wait (reference: tasks.md 1.8)."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from aether_trio.model.identity import Identity, IdentityError, Kind
from aether_trio.model.tasks.form import QUESTION_ID, Form, asked_by_gateway, form_of, question_id
from aether_trio.model.tasks.status import StoredStatus


class Reason(enum.IntEnum):
    """Why a task waits, as numbered on the wire; UNSPECIFIED is INPUT."""

    UNSPECIFIED = 0
    INPUT = 1
    AUTHORITY = 2
    DEPENDENCY = 3
    HIBERNATION = 4

    @property
    def word(self) -> str:
        """The name of the reason in the task's events."""
        return "" if self is Reason.UNSPECIFIED else self.name.lower()

    @property
    def status(self) -> StoredStatus:
        """The status of a task that waits for this reason."""
        return _STATUSES[self]


_STATUSES = {
    Reason.UNSPECIFIED: StoredStatus.WAITING_INPUT,
    Reason.INPUT: StoredStatus.WAITING_INPUT,
    Reason.AUTHORITY: StoredStatus.WAITING_AUTHORITY,
    Reason.DEPENDENCY: StoredStatus.WAITING_DEPENDENCY,
    Reason.HIBERNATION: StoredStatus.HIBERNATED,
}

ESCALATIONS = frozenset({"", "fail", "retry", "alert"})  # at a hibernated task's timeout


@dataclass(frozen=True, slots=True)
class Wait:
    """What a paused task waits for, as the client gave it; 0 ms is never."""

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
    def status(self) -> StoredStatus:
        """The status of a task with this wait; an unknown reason is treated as INPUT."""
        return Reason(self.reason).status if self.reason in set(Reason) else StoredStatus.WAITING_INPUT

    @property
    def word(self) -> str:
        """The name of the wait's reason in the task's events."""
        return Reason(self.reason).word if self.reason in set(Reason) else ""

    def is_over(self, ended: int) -> bool:
        """Return whether the wait is over when `ended` of its tasks have ended or gone."""
        if not self.depends_on:
            return True
        return ended > 0 if self.wake_on_any else ended >= len(set(self.depends_on))

    def takes(self, metadata: Mapping[str, str], sender: str = "") -> bool:
        """Return whether an input with this metadata and sender ends the wait."""
        if self.expected_principal and not self._is_expected_name(sender):
            return False
        if (form := self.form) is not None and not form.is_answer(metadata):
            return False
        if self.is_stale(metadata):
            return False
        return all(metadata.get(key) == value for key, value in self.input_match.items() if not key.startswith("_"))

    def is_stale(self, metadata: Mapping[str, str]) -> bool:
        """Return whether an input answers another question of the task, which is over."""
        named = asked_by_gateway(metadata)
        return bool(named) and named != self.input_match.get(QUESTION_ID)

    def named(self, number: int, key: str) -> Wait:
        """Return this wait with an id of its question, if it asks one and has none."""
        if self.form is None or QUESTION_ID in self.input_match or self.status is not StoredStatus.WAITING_INPUT:
            return self
        return replace(self, input_match={**self.input_match, QUESTION_ID: question_id(number, key)})

    @property
    def form(self) -> Form | None:
        """The question to a person for whose answer the task waits; None without one."""
        return form_of(self.input_match)

    def is_expected(self, identity: Identity) -> bool:
        """Return whether a participant may end the wait."""
        return not self.expected_principal or self.expected_principal in spellings_of(identity)

    def _is_expected_name(self, name: str) -> bool:
        try:
            return self.is_expected(Identity.parse(name, strict=False))
        except IdentityError:
            return False

    def to_json(self) -> str:
        """Encode the wait for storage."""
        return json.dumps(self._values(), separators=(",", ":"))

    def in_order(self) -> str:
        """Encode the wait so that equal waits give equal texts."""
        return json.dumps(self._values(), sort_keys=True)

    def _values(self) -> dict[str, object]:
        """Return the fields by name.

        `asdict` copies each pair, and takes ten times as long.
        """
        return {one.name: getattr(self, one.name) for one in fields(self)} | {"input_match": dict(self.input_match)}

    @classmethod
    def from_json(cls, text: str) -> Wait:
        """Decode a wait that `to_json` encoded."""
        fields = json.loads(text)
        for name in ("depends_on", "wake_event_types"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


def spellings_of(identity: Identity) -> frozenset[str]:
    """Return all names by which an `expected_principal` can mean a participant.

    A user is meant in all its windows, unless the name is that of one window. An id with a colon is
    spelled with its type, or it could be taken for the name of another principal.
    """
    spellings = {identity.text, f"{identity.type_name}:{identity.canonical_id}"}
    if identity.kind is Kind.USER:
        user_id = identity.user_id
        spellings.add(f"us::{user_id}")
        if ":" not in user_id:
            spellings.add(user_id)
    return frozenset(spellings)
