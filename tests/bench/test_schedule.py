"""Moments of sending do not depend on the server or the run."""

from __future__ import annotations

import pytest

from bench.loop import Loop
from bench.schedule import Schedule


def moments(rate: float) -> list[int]:
    sent: list[int] = []
    pulse = Schedule(rate).pulse(100.0, 101.0, sent.append)
    assert pulse(100.0) > 100.0
    assert pulse(200.0) > 101.0  # sends all that was due in this window
    return sent


def test_the_same_rate_has_the_same_moments_in_every_run() -> None:
    sent = moments(1000.0)
    assert sent == moments(1000.0)
    assert len(sent) == pytest.approx(1000, rel=0.1)
    assert sent == sorted(sent)
    assert all(100e9 < due < 101e9 for due in sent)


def test_a_window_ends_without_what_is_due_behind_it() -> None:
    sent: list[int] = []
    with Loop() as loop:
        Schedule(0.001).run(loop, 0.01, sent.append)
    assert len(sent) <= 1
