"""Decides which slots of a schedule fire now: a pure plan.

    terms, state, now, how many run ──▶ plan ──▶ the next state, slots to fire, the next moment

A *slot* is a planned moment (timetables.py). Each is *claimed* once: the state knows what was
claimed, so a clock that runs ahead and is set back, a restart or a second node never fires a slot
again. A claimed slot that may not start yet is *owed*.

When a slot is late, because the gateway or its clock stood still, `miss_policy` decides:

    skip        it fires if it is at most `tolerance_ms` late, else it is missed
    fire_once   the latest of them fires, for all
    fire_all    each fires, of more than MOST_OWED the latest

The same counts when as many as `max_concurrent` run: skip misses the slot, the others owe it until
one has ended. A start that is refused is owed by every policy; skip and fire_once owe it until the
next slot takes its place. It is tried again later and later, and with each further slot.

When the clock is set back, slots that were not claimed have their moment again. What was claimed is
remembered as MOST_RANGES ranges of neighbours; the clock counts as set back only as far as those
reach.

Moments are Unix ms, and 0 is "none".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from aether_trio.model.workflows.timetables import Timetable, latest, next_after, slots_between

POLICIES: Final = ("skip", "fire_once", "fire_all")
TOLERANCE_MS: Final = 60_000
MOST_OWED: Final = 100
MOST_RANGES: Final = 16
MOST_COUNTED: Final = 1_000
BUSY_MS: Final = 30_000
"""When slots that wait for the end of a run look again, should its end not be reported."""
FIRST_BACKOFF_MS: Final = 5_000
MAX_BACKOFF_MS: Final = 3_600_000
MOST_BACKFILLED: Final = 10_000
EVENT: Final = "event"
BACKFILL: Final = "backfill"


@dataclass(frozen=True, slots=True, kw_only=True)
class FiringTerms:
    """What a plan needs of a schedule; `key` is its name among all, for its jitter.

    `jitter_ms`: each slot fires up to so much later, and before the next slot.
    """

    key: str
    timetable: Timetable
    miss_policy: str = "skip"
    tolerance_ms: int = TOLERANCE_MS
    max_concurrent: int = 0
    jitter_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FiringState:
    """What has happened to a schedule's slots.

    All slots up to `decided_ms` are decided. `claimed` are ranges of claimed slots between which no
    slot lies, in order; claimed slots up to `forgotten_ms` are not in them any more. `retry_ms` is
    when a refused start is tried again, for the `refusals`-th time. `missed` counts slots.
    """

    anchor_ms: int
    decided_ms: int
    claimed: tuple[tuple[int, int], ...] = ()
    forgotten_ms: int = 0
    owed: tuple[int, ...] = ()
    retry_ms: int = 0
    refusals: int = 0
    missed: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "anchor": self.anchor_ms, "decided": self.decided_ms, "claimed": [list(one) for one in self.claimed],
            "forgotten": self.forgotten_ms, "owed": list(self.owed), "retry": self.retry_ms,
            "refusals": self.refusals, "missed": self.missed,
        }  # fmt: skip

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> FiringState:
        return cls(
            anchor_ms=found["anchor"], decided_ms=found["decided"],
            claimed=tuple((first, last) for first, last in found["claimed"]),
            forgotten_ms=found["forgotten"], owed=tuple(found["owed"]), retry_ms=found["retry"],
            refusals=found["refusals"], missed=found["missed"],
        )  # fmt: skip


class FiringPlan(NamedTuple):
    """What follows now: fire these slots, if the state is written; look again then."""

    state: FiringState
    firings: tuple[int, ...]
    next_due_ms: int


def new_state(now_ms: int) -> FiringState:
    """Return the state of a schedule that is created now: earlier slots do not exist."""
    return FiringState(anchor_ms=now_ms, decided_ms=now_ms)


def rewritten(state: FiringState, now_ms: int) -> FiringState:
    """Return the state when a schedule gets another expression now.

    No slot up to the last claimed one comes again, as it is not known which of them the two
    expressions share.
    """
    last_ms = max((last for _, last in state.claimed), default=0)
    return FiringState(
        anchor_ms=now_ms, decided_ms=max(now_ms, last_ms), forgotten_ms=max(last_ms, state.forgotten_ms),
        missed=state.missed + len(state.owed),
    )  # fmt: skip


def resumed(state: FiringState, now_ms: int) -> FiringState:
    """Return the state when a schedule is resumed: what was owed is missed."""
    return replace(
        state, decided_ms=max(now_ms, state.decided_ms), owed=(), retry_ms=0, refusals=0,
        missed=state.missed + len(state.owed),
    )  # fmt: skip


def firing_moment(terms: FiringTerms, slot_ms: int, anchor_ms: int) -> int:
    """Return when a slot fires if nothing stands in its way: later by its jitter."""
    if not terms.jitter_ms:
        return slot_ms
    following = next_after(terms.timetable, slot_ms, anchor_ms)
    most = min(terms.jitter_ms, following - slot_ms - 1) if following else terms.jitter_ms
    return slot_ms + jitter_of(terms.key, slot_ms, most)


def jitter_of(key: str, slot_ms: int, most_ms: int) -> int:
    """Return the jitter of a slot, from 0 to `most_ms`: always the same one."""
    digest = hashlib.sha256(f"{key}\0{slot_ms}".encode()).digest()
    return int.from_bytes(digest[:8]) % (most_ms + 1)


def plan(terms: FiringTerms, state: FiringState, now_ms: int, running: int = 0) -> FiringPlan:
    """Decide on the slots up to now; `running` of the schedule's runs are live."""
    if now_ms < state.decided_ms:
        state = _set_back(terms, state, now_ms)
    fresh, missed = _fresh(terms, state, now_ms)
    waits = _waits(state, now_ms, fresh=bool(fresh))
    state = _claim(terms, state, fresh)
    candidates = [*state.owed, *fresh]
    most = {"fire_all": MOST_OWED, "skip": len(fresh) or len(candidates)}.get(terms.miss_policy, 1)
    missed += max(len(candidates) - most, 0)
    candidates = candidates[-most:] if most else []
    room = max(terms.max_concurrent - running, 0) if terms.max_concurrent else len(candidates)
    owed: list[int] = []
    if waits:
        # One is kept by skip: the refusal, not the time, stands in its way.
        kept = candidates[-1:] if terms.miss_policy == "skip" else candidates
        missed += len(candidates) - len(kept)
        firings, owed = [], kept
    else:
        firings, rest = candidates[:room], candidates[room:]
        if terms.miss_policy == "skip":
            missed += len(rest)
        else:
            owed = rest
    state = replace(
        state,
        decided_ms=max(_up_to(terms, now_ms, state.anchor_ms), state.decided_ms),
        owed=tuple(owed),
        missed=state.missed + missed,
        retry_ms=state.retry_ms if waits else 0,
    )
    return FiringPlan(state, tuple(firings), next_due(terms, state, now_ms))


class PlannedFiring(NamedTuple):
    """A slot that an event or a backfill has planned; `key` tells it apart."""

    kind: str  # EVENT or BACKFILL
    key: str
    slot_ms: int
    due_ms: int
    refusals: int = 0


class PlannedDecision(NamedTuple):
    """Which planned slots fire and which are missed; the others wait until `again_ms`."""

    fire: tuple[PlannedFiring, ...]
    missed: tuple[PlannedFiring, ...]
    again_ms: int


def plan_planned(
    terms: FiringTerms, state: FiringState, due: Sequence[PlannedFiring], now_ms: int, running: int = 0
) -> PlannedDecision:
    """Decide on planned slots whose moment has come.

    Those of a backfill are never missed. Of events, fire_once misses those that are late by more
    than the tolerance, but for the latest of them.
    """
    if _waits(state, now_ms, fresh=any(not one.refusals for one in due)):
        return PlannedDecision((), (), state.retry_ms)
    late = [one for one in due if one.kind == EVENT and not one.refusals and now_ms - one.due_ms > terms.tolerance_ms]
    missed = {"skip": late, "fire_once": late[:-1]}.get(terms.miss_policy, [])
    rest = [one for one in due if one not in missed]
    room = max(terms.max_concurrent - running, 0) if terms.max_concurrent else len(rest)
    fire, rest = rest[:room], rest[room:]
    if terms.miss_policy == "skip":
        missed = [*missed, *(one for one in rest if one.kind == EVENT)]
        rest = [one for one in rest if one.kind != EVENT]
    return PlannedDecision(tuple(fire), tuple(missed), now_ms + BUSY_MS if rest else 0)


def next_due(terms: FiringTerms, state: FiringState, now_ms: int) -> int:
    """Return when the schedule is to be planned again; 0: never."""
    moments = []
    if state.owed:
        moments.append(state.retry_ms or now_ms + BUSY_MS)
    slot = next(_unclaimed(terms, state), 0)
    if slot:
        moments.append(firing_moment(terms, slot, state.anchor_ms))
    return min(moments, default=0)


def next_slot(terms: FiringTerms, state: FiringState) -> int:
    """Return the next slot that was not decided; 0 for none."""
    return next(_unclaimed(terms, state), 0)


def started(state: FiringState) -> FiringState:
    """Return the state after the starts of a plan: none was refused."""
    return replace(state, retry_ms=0, refusals=0) if state.refusals or state.retry_ms else state


def refused(terms: FiringTerms, state: FiringState, slots: Iterable[int], now_ms: int) -> FiringState:
    """Return the state when these slots of a plan could not be started: they are owed."""
    owed = sorted((*slots, *state.owed))
    most = MOST_OWED if terms.miss_policy == "fire_all" else 1
    return replace(
        state,
        owed=tuple(owed[-most:]),
        missed=state.missed + max(len(owed) - most, 0),
        refusals=state.refusals + 1,
        retry_ms=now_ms + backoff_ms(state.refusals),
    )


def backoff_ms(refusals: int) -> int:
    """Return how long to wait after so many earlier refusals."""
    return min(FIRST_BACKOFF_MS << min(max(refusals, 0), 20), MAX_BACKOFF_MS)


def backfill(terms: FiringTerms, state: FiringState, from_ms: int, until_ms: int) -> list[int]:
    """Return the slots in [from_ms, until_ms), as if the schedule had existed then.

    They are MOST_BACKFILLED + 1 if there are more than MOST_BACKFILLED.
    """
    anchor_ms = state.anchor_ms
    return slots_between(terms.timetable, from_ms, until_ms, anchor_ms, MOST_BACKFILLED + 1)


def _waits(state: FiringState, now_ms: int, *, fresh: bool) -> bool:
    """Return whether a refused start is to be tried later.

    A fresh slot is a reason to try again soon. The clock may have been set back.
    """
    if fresh and now_ms >= state.retry_ms - backoff_ms(state.refusals - 1) + FIRST_BACKOFF_MS:
        return False
    return now_ms < state.retry_ms <= now_ms + MAX_BACKOFF_MS


# -- slots -----------------------------------------------------------------------------------------


def _up_to(terms: FiringTerms, now_ms: int, anchor_ms: int) -> int:
    """Return up to which moment slots are decided: all whose firing moment has come."""
    if terms.jitter_ms:
        for slot in latest(terms.timetable, now_ms - terms.jitter_ms - 1, now_ms, anchor_ms, 1):
            if firing_moment(terms, slot, anchor_ms) > now_ms:
                return slot - 1
    return now_ms


def _set_back(terms: FiringTerms, state: FiringState, now_ms: int) -> FiringState:
    """Return the state for a clock that was set back: its slots come again."""
    decided_ms = max(_up_to(terms, now_ms, state.anchor_ms), state.forgotten_ms)
    if decided_ms >= state.decided_ms:
        return state
    claimed = list(state.claimed)
    for slot in (one for one in state.owed if one > decided_ms):
        first, last = next(one for one in claimed if one[0] <= slot <= one[1])
        claimed.remove((first, last))
        claimed += [(first, one) for one in latest(terms.timetable, first - 1, slot - 1, state.anchor_ms, 1)]
        following = next_after(terms.timetable, slot, state.anchor_ms)
        if first <= following <= last:
            claimed.append((following, last))
    owed = tuple(one for one in state.owed if one <= decided_ms)
    return replace(state, decided_ms=decided_ms, owed=owed, claimed=tuple(sorted(claimed)), retry_ms=0)


def _fresh(terms: FiringTerms, state: FiringState, now_ms: int) -> tuple[list[int], int]:
    """Return which slots that are due are to fire, and how many are missed."""
    until_ms = _up_to(terms, now_ms, state.anchor_ms)
    # One more than is counted would be missed anyhow.
    found = latest(terms.timetable, state.decided_ms, until_ms, state.anchor_ms, MOST_COUNTED)
    unclaimed = [slot for slot in found if not _is_claimed(state, slot)]
    match terms.miss_policy:
        case "fire_once":
            kept = unclaimed[-1:]
        case "fire_all":
            kept = unclaimed[-MOST_OWED:]
        case _:
            kept = [
                slot for slot in unclaimed[-MOST_OWED:] if _lateness(terms, state, slot, now_ms) <= terms.tolerance_ms
            ]
    return kept, len(unclaimed) - len(kept)


def _lateness(terms: FiringTerms, state: FiringState, slot_ms: int, now_ms: int) -> int:
    if now_ms - slot_ms <= terms.tolerance_ms:
        return 0
    return now_ms - firing_moment(terms, slot_ms, state.anchor_ms)


def _is_claimed(state: FiringState, slot_ms: int) -> bool:
    return any(first <= slot_ms <= last for first, last in reversed(state.claimed))


def _unclaimed(terms: FiringTerms, state: FiringState) -> Iterator[int]:
    moment_ms = state.decided_ms
    while slot := next_after(terms.timetable, moment_ms, state.anchor_ms):
        inside = next((last for first, last in state.claimed if first <= slot <= last), 0)
        if not inside:
            yield slot
        moment_ms = inside or slot


def _claim(terms: FiringTerms, state: FiringState, slots: Sequence[int]) -> FiringState:
    """Note slots as claimed; neighbours become one range."""
    if not slots:
        return state
    ranges = sorted((*state.claimed, *((slot, slot) for slot in slots)))
    joined = ranges[:1]
    for first, last in ranges[1:]:
        before, end = joined[-1]
        if next_after(terms.timetable, end, state.anchor_ms) == first:
            joined[-1] = (before, last)
        else:
            joined.append((first, last))
    forgotten = joined[:-MOST_RANGES]
    return replace(
        state,
        claimed=tuple(joined[-MOST_RANGES:]),
        forgotten_ms=forgotten[-1][1] if forgotten else state.forgotten_ms,
    )
