"""Joins: many events with one key, and one action for all of them.

    arrive(join, state, arrival, now_ms)     an event of a rule whose destination is the join
    time_passed(join, state, now_ms)         the moment `state.due_ms` has come
    cancel(join, state, now_ms)              a client cancels the instance

Each returns the next state and what follows. The state of an instance (name, workspace, correlation
key) is None before its first arrival and after its end; ids of members are rows of the caller,
which are deleted with the state, and when `is_over` says so before an arrival. Moments are Unix ms.

| mode | fires |
|---|---|
| count | when as many new members have arrived as are expected |
| set | when each member of the expected set has arrived |
| coalesce | at the first arrival, and at the end of the window if there were more within it |

What is expected is said by the first arrival that knows it, or, with `arm_on_event`, only by the
events of that name, of which the last counts and none is a member. Nothing fires before it is
known. Rules that share a join may declare different parts of it: `merge` completes one by another.

Invariants: an instance of count and set fires once, or times out once. A coalescing one fires at
the begin of each window and never within one; a window in which something arrived is followed by
another. An arrival changes nothing once the instance has ended, until `linger` has passed; then the
key begins a new instance. A deadline acts when `time_passed` is called: an arrival before that
counts. A clock that is set back delays nothing by more than a timeout, window or linger.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from aether_trio.model.workflows.definition import Action, JoinDefinition, JoinMode, Json

LONGEST_OPEN_MS: Final = 30 * 86_400_000
"""How long an instance without a timeout waits; then it has timed out, without an action."""
MAX_EXPECTED: Final = 2**40
ABORT: Final = "abort"


class JoinStatus(enum.StrEnum):
    """What has become of an instance."""

    OPEN = "open"
    FIRED = "fired"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"


class JoinNote(enum.StrEnum):
    """Why an arrival does not count."""

    LATE = "late"  # the instance has fired, timed out or was cancelled
    DUPLICATE = "duplicate"
    FOREIGN = "foreign"  # the expected set does not have it


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinState:
    """An instance of a join.

    `arrived` is the number of members, or of events of a coalescing join.
    `deadline_ms` is the timeout's end, or the window's; 0 for none. `runs` counts actions done.
    """

    status: JoinStatus = JoinStatus.OPEN
    arrived: int = 0
    expected: int | None = None
    armed: bool = False
    dirty: bool = False
    runs: int = 0
    began_ms: int = 0
    updated_ms: int = 0
    timeout_ms: int = 0
    deadline_ms: int = 0
    linger_until_ms: int = 0

    @property
    def due_ms(self) -> int:
        """When `time_passed` is to be called."""
        return self.deadline_ms or self.linger_until_ms

    def to_json(self) -> dict[str, Json]:
        """Return a small JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> JoinState:
        """Read what `to_json` gave; unknown members are ignored."""
        known = {each.name for each in fields(cls)}
        values = {name: value for name, value in document.items() if name in known}
        return cls(**{**values, "status": JoinStatus(values.get("status", JoinStatus.OPEN))})


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """An event of a join.

    `arms`: it is an `arm_on_event` (`is_arming`). `is_new`: neither its dedup id nor, in a set, its
    member has arrived before. `is_member`: the expected set has its member, or is not known yet.
    `expected`: the count, or the number of different members of the set, if the event says it.
    `present`: how many members of the set have arrived, with this one, when the set becomes known.
    """

    arms: bool = False
    is_new: bool = True
    is_member: bool = True
    expected: int | None = None
    present: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOutcome:
    """What follows: an action, a begin or end, or why an arrival is ignored."""

    action: Action | None = None
    began: bool = False
    ended: JoinStatus | None = None  # the instance has just got this status
    note: JoinNote | None = None


NOTHING: Final = JoinOutcome()


def is_arming(join: JoinDefinition, event_name: str) -> bool:
    """Return whether an event says what is expected, and is no member."""
    return bool(join.arm_on_event) and join.arm_on_event == event_name


def is_over(state: JoinState | None, now_ms: int) -> bool:
    """Return whether an arrival begins a new instance, so that old rows are deleted."""
    return state is None or (not state.deadline_ms and now_ms >= state.linger_until_ms)


def wants_expected(join: JoinDefinition, state: JoinState | None, event_name: str, now_ms: int) -> bool:
    """Return whether an event's expected count or set is used, and so to be computed."""
    if join.mode is JoinMode.COALESCE:
        return False
    if join.arm_on_event:
        return is_arming(join, event_name)
    return state is None or is_over(state, now_ms) or state.expected is None


def expected_number(value: Json) -> int:
    """Return the whole number of an `expected_count`; ValueError if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected_count must be a number, not {_shown(value)}")
    if not 0 <= value <= MAX_EXPECTED:
        raise ValueError(f"expected_count is {_shown(value)}; it must be between 0 and {MAX_EXPECTED}")
    return math.trunc(value)


def merge(join: JoinDefinition, kept: JoinDefinition | None) -> JoinDefinition:
    """Complete what an arrival's rule declares by what an earlier one declared."""
    if kept is None:
        return join
    return replace(
        join,
        timeout_ms=join.timeout_ms or kept.timeout_ms,
        window_ms=join.window_ms or kept.window_ms,
        on_complete=join.on_complete or kept.on_complete,
        on_timeout=join.on_timeout or kept.on_timeout,
        on_partial_failure=join.on_partial_failure or kept.on_partial_failure,
    )


def arrive(
    join: JoinDefinition, state: JoinState | None, arrival: Arrival, now_ms: int
) -> tuple[JoinState, JoinOutcome]:
    """Take in an event; the outcome's action is done in the same transaction."""
    began = is_over(state, now_ms)
    if state is None or began:
        state = JoinState(began_ms=now_ms)
    elif state.status is not JoinStatus.OPEN:
        until_ms = min(state.linger_until_ms, now_ms + join.linger_ms)
        return replace(state, linger_until_ms=max(until_ms, 1)), JoinOutcome(note=JoinNote.LATE)
    state = replace(state, updated_ms=now_ms)
    if join.mode is JoinMode.COALESCE:
        return _coalesce(join, state, arrival, now_ms, began)
    state = _timed(join, state, now_ms)
    note = None
    if arrival.arms:
        if arrival.expected is not None:
            state = replace(state, armed=True, expected=arrival.expected)
    else:
        note = _note(arrival)
        if note is None:
            state = replace(state, arrived=min(state.arrived + 1, MAX_EXPECTED))
        if state.expected is None and not join.arm_on_event:
            state = replace(state, expected=arrival.expected)
    if arrival.present is not None:
        state = replace(state, arrived=arrival.present)
    if state.expected is None or state.arrived < state.expected:
        return state, JoinOutcome(began=began, note=note)
    state = _ended(join, replace(state, runs=1), JoinStatus.FIRED, now_ms)
    return state, JoinOutcome(action=join.on_complete, began=began, ended=JoinStatus.FIRED, note=note)


def time_passed(join: JoinDefinition, state: JoinState | None, now_ms: int) -> tuple[JoinState | None, JoinOutcome]:
    """Act on the due moment of an instance; before it, do nothing.

    The next state is None if the instance is to be forgotten.
    """
    if state is None or not 0 < state.due_ms <= now_ms:
        return state, NOTHING
    if not state.deadline_ms:
        return None, NOTHING
    if join.mode is JoinMode.COALESCE:
        if state.dirty:
            return _run(join, replace(state, dirty=False), now_ms), JoinOutcome(action=join.on_complete)
        return _idle(join, state, now_ms), NOTHING
    fires = bool(state.timeout_ms) and join.on_partial_failure != ABORT
    action = (join.on_timeout or join.on_complete) if fires else None
    state = _ended(join, replace(state, runs=int(fires)), JoinStatus.TIMED_OUT, now_ms)
    return state, JoinOutcome(action=action, ended=JoinStatus.TIMED_OUT)


def cancel(join: JoinDefinition, state: JoinState | None, now_ms: int) -> tuple[JoinState | None, JoinOutcome]:
    """Cancel an open instance, with the run at its window's end; else do nothing."""
    if state is None or state.status is not JoinStatus.OPEN:
        return state, NOTHING
    state = _ended(join, replace(state, dirty=False, updated_ms=now_ms), JoinStatus.CANCELLED, now_ms)
    return state, JoinOutcome(ended=JoinStatus.CANCELLED)


def _coalesce(
    join: JoinDefinition, state: JoinState, arrival: Arrival, now_ms: int, began: bool
) -> tuple[JoinState, JoinOutcome]:
    note = _note(arrival)
    if note is not None or arrival.arms:
        if not state.due_ms:
            state = _idle(join, state, now_ms)
        return state, JoinOutcome(began=began, note=note)
    state = replace(state, arrived=min(state.arrived + 1, MAX_EXPECTED))
    window_end_ms = min(state.deadline_ms, now_ms + join.window_ms)
    if now_ms < window_end_ms:
        return replace(state, dirty=True, deadline_ms=window_end_ms), JoinOutcome(began=began)
    return _run(join, replace(state, dirty=False), now_ms), JoinOutcome(action=join.on_complete, began=began)


def _run(join: JoinDefinition, state: JoinState, now_ms: int) -> JoinState:
    """Count a run of a coalescing join, which opens a window."""
    state = replace(state, runs=state.runs + 1)
    if not join.window_ms:
        return _idle(join, state, now_ms)
    return replace(state, deadline_ms=now_ms + join.window_ms, linger_until_ms=0)


def _idle(join: JoinDefinition, state: JoinState, now_ms: int) -> JoinState:
    """Close the window: for `linger` duplicates are known, and an arrival fires."""
    return replace(state, deadline_ms=0, linger_until_ms=max(now_ms + join.linger_ms, 1))


def _timed(join: JoinDefinition, state: JoinState, now_ms: int) -> JoinState:
    """Set the deadline by the first timeout that is declared."""
    timeout_ms = state.timeout_ms or join.timeout_ms
    longest_ms = timeout_ms or LONGEST_OPEN_MS
    began_ms = min(state.began_ms, now_ms)
    return replace(state, timeout_ms=timeout_ms, deadline_ms=max(began_ms + longest_ms, 1))


def _ended(join: JoinDefinition, state: JoinState, status: JoinStatus, now_ms: int) -> JoinState:
    return replace(state, status=status, deadline_ms=0, linger_until_ms=max(now_ms + join.linger_ms, 1))


def _note(arrival: Arrival) -> JoinNote | None:
    if arrival.arms:
        return None
    if not arrival.is_new:
        return JoinNote.DUPLICATE
    return None if arrival.is_member else JoinNote.FOREIGN


def _shown(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
