"""Sessions end when their credential expires, whatever the calendar does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from aether_trio.model.errors import Status
from aether_trio.session.expiry import _SPARE, CHECK_S, SessionExpiry
from aether_trio.session.registry import SessionRegistry
from aether_trio.session.session import Session

START_MS = 1_700_000_000_000


class _Clock:
    """A calendar over trio's clock that can be set."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return START_MS + int(trio.current_time() * 1000) + self.ahead_ms

    def monotonic(self) -> float:
        return trio.current_time()


class _Session:
    def __init__(self, number: int, expires_ms: int, ended: list[tuple[int, float]]) -> None:
        self.session_id, self.expires_ms = str(number), expires_ms
        self._number, self._ended = number, ended
        self.ending: Status | None = None

    def end(self, status: Status, reason: str) -> None:
        self.ending = status
        assert status is Status.UNAUTHENTICATED
        assert "expired" in reason
        self._ended.append((self._number, trio.current_time()))


class _World:
    """An expiry with sessions of the test's making."""

    def __init__(self) -> None:
        self.clock = _Clock()
        self.live: dict[str, _Session] = {}
        registry = cast("SessionRegistry", SimpleNamespace(session=self.live.get))
        self.expiry = SessionExpiry(registry, self.clock)
        self.ended: list[tuple[int, float]] = []
        self.start = trio.current_time()

    def add(self, number: int, in_s: float) -> None:
        session = _Session(number, self.clock.now_ms() + int(in_s * 1000), self.ended)
        self.live[session.session_id] = session
        self.expiry.watch(cast("Session", session))

    def times(self) -> dict[int, float]:
        return {number: at - self.start for number, at in self.ended}


@pytest.fixture
async def world(autojump_clock: Any, nursery: trio.Nursery) -> _World:
    made = _World()
    nursery.start_soon(made.expiry.run)
    return made


async def test_each_session_ends_at_its_moment(world: _World) -> None:
    for number, in_s in enumerate((50.0, 3.5, 3.5, 7200.0, 0.25)):
        world.add(number, in_s)
    await trio.sleep(7300)
    assert [number for number, _ in world.ended] == [4, 1, 2, 0, 3]
    for number, in_s in enumerate((50.0, 3.5, 3.5, 7200.0, 0.25)):
        assert world.times()[number] == pytest.approx(in_s, abs=0.01)


async def test_an_earlier_end_that_is_added_later_is_not_missed(world: _World) -> None:
    world.add(0, 0.9)
    await trio.sleep(0.1)
    world.add(1, 0.1)
    await trio.sleep(0.5)
    assert world.times() == {1: pytest.approx(0.2, abs=0.01)}


async def test_a_session_that_is_expired_ends_at_once(world: _World) -> None:
    world.add(0, -1)
    assert world.times() == {0: 0.0}


async def test_a_session_without_an_end_is_not_watched(world: _World) -> None:
    world.expiry.watch(cast("Session", SimpleNamespace(expires_ms=0)))
    assert len(world.expiry) == 0


async def test_a_calendar_that_is_set_forward_ends_what_has_expired(world: _World) -> None:
    world.add(0, 3600)
    world.add(1, 7200)
    await trio.sleep(10)
    world.clock.ahead_ms = 3_600_000
    await trio.sleep(CHECK_S + 0.1)
    assert list(world.times()) == [0]
    await trio.sleep(3700)
    assert list(world.times()) == [0, 1]
    assert world.times()[1] == pytest.approx(3600, abs=CHECK_S + 0.1)


async def test_a_calendar_that_is_set_back_keeps_no_session(world: _World) -> None:
    world.add(0, 100)
    await trio.sleep(10)
    world.clock.ahead_ms = -86_400_000
    await trio.sleep(5)
    world.add(1, 100)
    await trio.sleep(200)
    assert world.times() == {0: pytest.approx(100, abs=0.01), 1: pytest.approx(115, abs=0.01)}


async def test_a_calendar_that_was_wrong_and_is_right_again(world: _World) -> None:
    world.clock.ahead_ms = -86_400_000
    await trio.sleep(5)
    world.add(0, 86_500)  # by the right calendar, 100 s
    await trio.sleep(5)
    world.clock.ahead_ms = 0
    await trio.sleep(200)
    assert world.times() == {0: pytest.approx(105, abs=CHECK_S + 0.1)}


async def test_entries_of_ended_sessions_are_forgotten(world: _World) -> None:
    for number in range(20 * _SPARE):
        world.add(number, 3600)
        if number >= 10:
            del world.live[str(number)]
    assert len(world.expiry) < 3 * _SPARE
    await trio.sleep(3700)
    assert sorted(world.times()) == list(range(10))


async def test_ten_thousand_sessions_have_one_task(world: _World) -> None:
    for number in range(10_000):
        world.add(number, 60 + number % 7)
    assert trio.lowlevel.current_statistics().tasks_living < 20
    await trio.sleep(70)
    assert len(world.ended) == 10_000
