"""When the writer opens a further connection (test_database.py has the rest)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

from aether_trio.storage.base import Program
from aether_trio.storage.postgres.connections import PostgresLimits
from aether_trio.storage.postgres.statements import PostgresJob
from aether_trio.storage.postgres.writer import HURRY_S, PostgresWriter


class Loop:
    """A loop with one timer, whose time stands still."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due = 0.0
        self._call: Callable[[], None] | None = None

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[[], None]) -> object:
        return self.call_at(self.now + delay, call)

    def call_at(self, when: float, call: Callable[[], None]) -> object:
        self.due, self._call = when, call
        return object()

    def go_on(self) -> None:
        """Go on to the moment of the timer."""
        self.now, call = self.due, self._call
        assert call is not None
        self._call = None
        call()


def nothing() -> Program[None]:
    yield from ()


def opened() -> tuple[PostgresWriter, Loop, list[object]]:
    loop, spawned = Loop(), list[object]()

    def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        work.close()
        spawned.append(work)
        return None  # type: ignore[return-value]

    pool = SimpleNamespace(most=4)
    writer = PostgresWriter("tasks", pool, spawn, loop, lambda _: None, PostgresLimits())  # type: ignore[arg-type]
    return writer, loop, spawned


def test_a_program_that_waits_for_long_gets_a_further_connection() -> None:
    writer, loop, spawned = opened()
    for _ in range(2):
        writer.put(PostgresJob(nothing, "key"))
    assert len(spawned) == 1
    loop.go_on()
    assert (loop.now, len(spawned)) == (HURRY_S, 2)


def test_a_queue_that_moves_on_gets_none() -> None:
    """Connections that write to the same rows only take each other's time."""
    writer, loop, spawned = opened()
    for _ in range(2):
        writer.put(PostgresJob(nothing, "key"))
    for _ in range(5):
        loop.now += HURRY_S / 2
        writer._queue.clear()  # the open connection has taken them
        writer.put(PostgresJob(nothing, "key"))
        loop.go_on()
    assert len(spawned) == 1
    loop.go_on()
    assert len(spawned) == 2
