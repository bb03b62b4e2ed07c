"""Clocks: what happens to calendar time when the machine's clock is moved."""

from __future__ import annotations

import time

import pytest
import trio
import trio.testing

from aether_trio.model.clock import MAX_HOLD_MS, Clock, SystemClock
from tests.helpers.clocks import ManualClock, VirtualClock

START_MS = 1_700_000_000_000


class Wall:
    """A machine's clock that the test moves, in milliseconds."""

    def __init__(self) -> None:
        self.ms = START_MS

    def __call__(self) -> int:
        return self.ms * 1_000_000 + 999_999  # what is below a millisecond is cut, not rounded


def test_system_clock_follows_the_machine() -> None:
    wall = Wall()
    clock: Clock = SystemClock(wall_ns=wall)
    assert clock.now_ms() == START_MS
    wall.ms += 5
    assert clock.now_ms() == START_MS + 5
    wall.ms += 3_600_000
    assert clock.now_ms() == START_MS + 3_600_005


@pytest.mark.parametrize("step_ms", [1, 500, MAX_HOLD_MS])
def test_a_small_step_back_is_waited_out(step_ms: int) -> None:
    wall = Wall()
    clock = SystemClock(wall_ns=wall)
    wall.ms -= step_ms
    assert clock.now_ms() == START_MS
    wall.ms += step_ms // 2
    assert clock.now_ms() == START_MS
    wall.ms = START_MS + 1
    assert clock.now_ms() == START_MS + 1


def test_a_large_step_back_is_followed_at_once() -> None:
    wall = Wall()
    clock = SystemClock(wall_ns=wall)
    wall.ms -= MAX_HOLD_MS + 1
    assert clock.now_ms() == START_MS - MAX_HOLD_MS - 1
    wall.ms += 1
    assert clock.now_ms() == START_MS - MAX_HOLD_MS


def test_many_small_steps_back_do_not_add_up_unnoticed() -> None:
    wall = Wall()
    clock = SystemClock(wall_ns=wall)
    wall.ms -= 600
    assert clock.now_ms() == START_MS
    wall.ms -= 600
    assert clock.now_ms() == START_MS - 1_200


def test_system_clock_defaults_to_the_machine() -> None:
    clock = SystemClock()
    before = time.time_ns() // 1_000_000
    assert abs(clock.now_ms() - before) < 3_600_000
    assert clock.monotonic() <= clock.monotonic()


def test_monotonic_is_the_injected_one() -> None:
    assert SystemClock(monotonic=lambda: 42.5).monotonic() == 42.5


async def test_virtual_clock_follows_trios_virtual_time(autojump_clock: trio.testing.MockClock) -> None:
    clock: Clock = VirtualClock(trio.current_time, epoch_ms=START_MS)
    assert clock.now_ms() == START_MS
    began = clock.monotonic()
    await trio.sleep(3_600)
    assert clock.now_ms() == START_MS + 3_600_000
    assert clock.monotonic() - began == 3_600


def test_manual_clock_moves_when_told() -> None:
    manual = ManualClock(START_MS)
    clock: Clock = manual
    assert (clock.now_ms(), clock.monotonic()) == (START_MS, 0.0)
    manual.advance(1_500)
    assert (clock.now_ms(), clock.monotonic()) == (START_MS + 1_500, 1.5)
    manual.set_wall(START_MS - 10)
    assert (clock.now_ms(), clock.monotonic()) == (START_MS - 10, 1.5)
    with pytest.raises(ValueError, match="set_wall"):
        manual.advance(-1)
