"""Measures for `aether bench`: pairs of clients play ping-pong.

One client of a pair sends a message, the other sends it back: a round. First as many rounds as
possible, with a window of them in flight; then rounds at a given rate, in an open loop: each is
timed from the moment at which it was due, so a stall counts for all that it delays. All clients
live in this process, whose CPU is part of what is measured.
"""

from __future__ import annotations

import math
import random
import struct
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from aether_trio.client import AetherError, Client, Publication

HEAD: Final = struct.Struct(">QQ")  # number of the round, nanosecond at which it was due
PERCENTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
_CONNECTING_AT_ONCE: Final = 16
_STALL_S: Final = 1.0
_DRAIN_S: Final = 10.0
_LATE_S: Final = 2.0
"""A round that could not begin so long after the end is not begun."""
_NS: Final = 1_000_000_000


def percentiles_ms(samples_ns: Sequence[int]) -> dict[str, float]:
    """Return percentiles by nearest rank in milliseconds; {} without samples."""
    ordered = sorted(samples_ns)
    if not ordered:
        return {}
    return {name: round(ordered[max(0, math.ceil(len(ordered) * at) - 1)] / 1e6, 3) for name, at in PERCENTILES.items()}


@dataclass(slots=True)
class Measured:
    """The results of `aether bench`. Times of samples are nanoseconds."""

    connect_ns: list[int] = field(default_factory=list)
    connect_s: float = 0.0
    busiest_per_s: float | None = None
    """Messages; None when that was not measured."""
    rate_per_s: float = 0.0
    """Rounds that were due."""
    round_ns: list[int] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    texts: dict[str, str] = field(default_factory=dict)
    sent: int = 0
    late: int = 0
    """Rounds that were due and not begun in time: the rate is too high."""
    answered: int = 0
    refused: int = 0
    """Messages of either side."""

    @property
    def unanswered(self) -> int:
        """How many ping-pong rounds have neither an answer nor a refusal."""
        return max(0, self.sent - self.answered - self.refused)

    def refusal(self, error: AetherError) -> None:
        """Count a refused message by its error code."""
        self.refused += 1
        self.errors[error.code] += 1
        self.texts.setdefault(error.code, error.message)


class _Side:
    """One client of a ping-pong pair, and its publications that are not settled yet."""

    def __init__(self, client: Client, measured: Measured) -> None:
        self.client, self._measured = client, measured
        self._open: deque[Publication] = deque()

    async def say(self, topic: str, payload: bytes) -> None:
        publication = await self.client.publish(topic, payload)
        # Its refusal is counted here, and must not be raised at the end of the block.
        publication.seen = True
        self._open.append(publication)
        self.reap()

    def reap(self) -> None:
        """Count the refusals among the publications that have been settled since."""
        waiting = self._open
        while waiting and waiting[0].settled:
            error = waiting.popleft().error
            if error is not None:
                self._measured.refusal(error)


class Bench:
    """Runs `aether bench`; `make(role, number)` makes one of a pair's two clients."""

    def __init__(
        self, make: Callable[[str, int], Client], pairs: int, payload: int, window: int, show: Callable[[str], None]
    ) -> None:
        self._make, self._pairs, self._window, self._show = make, pairs, window, show
        self._filler = bytes(max(0, payload - HEAD.size))
        self._asking: list[_Side] = []
        self._answering: list[_Side] = []
        self._slots: list[trio.Semaphore] = []
        self._timed = False
        self.measured = Measured()

    async def run(self, seconds: float, rate: float | None) -> Measured:
        """Measure for `seconds`; without `rate`, the first half finds the highest rate."""
        measured = self.measured
        async with trio.open_nursery() as nursery:
            await self._connect(nursery)
            for number in range(self._pairs):
                nursery.start_soon(self._answer, self._answering[number])
                nursery.start_soon(self._listen, number)
            if rate is None:
                began, before = time.perf_counter(), measured.answered
                await self._phase("maximum", seconds / 2, self._saturate)
                took = time.perf_counter() - began
                rounds_per_s = (measured.answered - before) / took
                measured.busiest_per_s = 2 * rounds_per_s
                await self._drain()
                rate, seconds = rounds_per_s / 2, seconds / 2
            measured.rate_per_s = rate
            self._timed = True
            if rate > 0:
                await self._phase("latency", seconds, lambda number, until: self._pace(number, until, rate))
            await self._drain()
            nursery.cancel_scope.cancel()
        return measured

    async def _connect(self, nursery: trio.Nursery) -> None:
        limiter = trio.CapacityLimiter(_CONNECTING_AT_ONCE)
        sides: dict[tuple[str, int], _Side] = {}
        measured = self.measured

        async def live(role: str, number: int, *, task_status: trio.TaskStatus[None]) -> None:
            began = time.perf_counter_ns()
            async with self._make(role, number) as client:
                measured.connect_ns.append(time.perf_counter_ns() - began)
                sides[role, number] = _Side(client, measured)
                task_status.started()
                await trio.sleep_forever()

        async def one(role: str, number: int) -> None:
            async with limiter:
                await nursery.start(live, role, number)
            self._show(f"connecting: {len(sides)} of {2 * self._pairs}")

        # The first one alone: if we are not let in, that is said once.
        await nursery.start(live, "a", 0)
        began = time.perf_counter()
        async with trio.open_nursery() as connecting:
            for number in range(self._pairs):
                for role in "ab":
                    if (role, number) != ("a", 0):
                        connecting.start_soon(one, role, number)
        measured.connect_s = time.perf_counter() - began
        self._asking = [sides["a", number] for number in range(self._pairs)]
        self._answering = [sides["b", number] for number in range(self._pairs)]

    async def _answer(self, side: _Side) -> None:
        async for message in side.client:
            await side.say(message.source, message.payload)

    async def _listen(self, number: int) -> None:
        measured = self.measured
        async for message in self._asking[number].client:
            _, due_ns = HEAD.unpack_from(message.payload)
            measured.answered += 1
            if self._timed:
                measured.round_ns.append(time.perf_counter_ns() - due_ns)
            elif self._slots:
                self._slots[number].release()

    async def _ask(self, number: int, due_ns: int) -> None:
        self.measured.sent += 1
        payload = HEAD.pack(self.measured.sent, due_ns) + self._filler
        await self._asking[number].say(self._answering[number].client.topic, payload)

    async def _phase(self, name: str, seconds: float, task: Callable[[int, float], Awaitable[None]]) -> None:
        self._slots = [trio.Semaphore(self._window) for _ in range(self._pairs)]
        until = trio.current_time() + seconds
        async with trio.open_nursery() as nursery:
            for number in range(self._pairs):
                nursery.start_soon(task, number, until)
            before = self.measured.answered
            while trio.current_time() < until:
                await trio.sleep(min(1.0, max(0.0, until - trio.current_time())))
                done, before = self.measured.answered - before, self.measured.answered
                left = max(0.0, until - trio.current_time())
                self._show(
                    f"{name}: {2 * done:,} messages/s, {self.measured.errors.total():,} errors, {left:.0f} s left"
                )

    async def _saturate(self, number: int, until: float) -> None:
        """Keep a window of ping-pong rounds in flight; after a stall, begin one more."""
        slots = self._slots[number]
        while trio.current_time() < until:
            with trio.move_on_after(_STALL_S) as stalled:
                await slots.acquire()
            if stalled.cancelled_caught:
                self._asking[number].reap()
            await self._ask(number, time.perf_counter_ns())

    async def _pace(self, number: int, until: float, rate: float) -> None:
        """Begin one client pair's share of `rate` ping-pong rounds, at exponential gaps."""
        mean_s = self._pairs / rate
        offset_ns = time.perf_counter_ns() - int(trio.current_time() * _NS)
        due = trio.current_time() + random.expovariate(1 / mean_s)
        while due < until:
            await trio.sleep_until(due)
            if trio.current_time() >= until + _LATE_S:
                self.measured.late += 1 + int((until - due) / mean_s)
                return
            await self._ask(number, int(due * _NS) + offset_ns)
            due += random.expovariate(1 / mean_s)

    async def _drain(self) -> None:
        """Wait until all ping-pong rounds are answered, or no answer came for _DRAIN_S."""
        self._show("waiting for the last answers")
        last, since = -1, trio.current_time()
        while trio.current_time() - since < _DRAIN_S:
            for side in (*self._asking, *self._answering):
                side.reap()
            if not self.measured.unanswered:
                return
            if self.measured.answered != last:
                last, since = self.measured.answered, trio.current_time()
            await trio.sleep(0.05)
