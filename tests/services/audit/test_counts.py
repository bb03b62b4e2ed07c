"""Repeats of an event are counted, and none is dropped."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.audit import AuditEvent
from aether_trio.services.audit.counts import OTHERS, SESSION_KINDS, EventCounts, EventSource
from tests.helpers.clocks import ManualClock
from tests.services.audit.conftest import event


def counted(put: list[AuditEvent]) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in put:
        times = one.metadata.get("count", 1)
        assert isinstance(times, int)
        total[one.resource_id] += times
    return total


def test_the_first_is_a_row_at_once_and_the_rest_one_a_minute() -> None:
    put: list[AuditEvent] = []
    clock = ManualClock()
    counts = EventCounts(put.append, clock)
    for _ in range(5):
        counts.count("kind", lambda: event(1, at_ms=clock.now_ms()))
    assert [one.metadata for one in put] == [{}]
    clock.advance(60_000)
    counts.fold()
    assert [one.metadata for one in put] == [{}, {"count": 4}]
    assert put[1].at_ms == put[0].at_ms + 60_000
    counts.fold()
    assert len(put) == 2
    counts.count("kind", lambda: event(1), 3)
    assert put[2].metadata == {"count": 3}


def test_kinds_that_a_session_makes_up_share_a_row() -> None:
    put: list[AuditEvent] = []
    counts = EventCounts(put.append, ManualClock())
    mine, others = EventSource("s1", "w"), EventSource("s2", "w")
    for number in range(3 * SESSION_KINDS):
        counts.count(number, lambda: event(number, workspace=f"w{number}"), source=mine)  # noqa: B023
    counts.count("other", lambda: event(0), source=others)
    counts.fold()
    own = put[:SESSION_KINDS]
    assert len({one.resource_id for one in own}) == SESSION_KINDS
    first, other, rest = put[SESSION_KINDS:]
    assert (first.resource_id, first.workspace, first.operation, other.resource_id) == (OTHERS, "w", "kv_put", "key-0")
    assert (rest.resource_id, rest.metadata["count"]) == (OTHERS, 2 * SESSION_KINDS - 1)
    counts.count(0, lambda: event(0), source=mine)  # another minute
    assert put[-1].resource_id == "key-0"


@given(st.lists(st.one_of(st.tuples(st.integers(0, 5), st.integers(1, 3)), st.none())), st.integers(0, 4))
def test_every_event_is_counted_once(steps: list[tuple[int, int] | None], most: int) -> None:
    put: list[AuditEvent] = []
    counts = EventCounts(put.append, ManualClock(), most=most)
    wanted: Counter[str] = Counter()
    for step in steps:
        if step is None:
            counts.fold()
        else:
            number, times = step
            counts.count(number, lambda: event(number), times)  # noqa: B023
            wanted[f"key-{number}"] += times
    counts.fold()
    assert counted(put) == wanted
