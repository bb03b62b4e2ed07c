"""Who says something when: an open loop.

A conversation is a pair of users that talk in turns for some seconds at exponential gaps; then
another pair, drawn at random, takes its place. When a message is due does not depend on how the
gateway does: a late message keeps the time at which it was meant to be sent, and its latency counts
from there (no coordinated omission).

Pure: given times and a random generator, no clock and no sockets.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator

NS = 1_000_000_000
TRIES = 16
"""Pairs that are drawn before the place of a conversation stays empty for a second: while few are
connected.
"""


class Conversations:
    """`places` conversations at a time among `pairs` pairs.

    Each of the two says `rate` messages a second.

    `ready(pair)` says whether both have been connected; `open_places()` how many places are in use
    by now.
    """

    def __init__(
        self,
        pairs: int,
        places: int,
        rate: float,
        length_s: float,
        rng: random.Random,
        now_ns: int,
        ready: Callable[[int], bool],
        open_places: Callable[[], int],
    ) -> None:
        self._pairs, self._rate, self._length_ns, self._rng = pairs, 2 * rate, int(length_s * NS), rng
        self._ready, self._open_places = ready, open_places
        self._pair = [-1] * places
        self._until = [0] * places
        # Staggered, or all would change their pairs in the same moment.
        self._heap = [(now_ns + int(rng.random() * NS), place) for place in range(places)] if pairs and rate else []
        heapq.heapify(self._heap)

    @property
    def next_ns(self) -> int | None:
        """When `due` has something to do next; None when no user ever sends."""
        return self._heap[0][0] if self._heap else None

    def due(self, now_ns: int) -> Iterator[tuple[int, int]]:
        """(intended time, speaker) of what is due; pair p is the users 2p and 2p + 1."""
        heap, rng = self._heap, self._rng
        while heap and heap[0][0] <= now_ns:
            at, place = heap[0]
            if at >= self._until[place] and not self._meet(at, place):
                heapq.heapreplace(heap, (at + NS, place))
                continue
            heapq.heapreplace(heap, (at + int(rng.expovariate(self._rate) * NS) + 1, place))
            yield at, 2 * self._pair[place] + rng.getrandbits(1)

    def _meet(self, at: int, place: int) -> bool:
        if place >= self._open_places():
            return False
        for _ in range(TRIES):
            pair = self._rng.randrange(self._pairs)
            if self._ready(pair):
                self._pair[place] = pair
                self._until[place] = at + int(self._length_ns * (0.5 + self._rng.random()))
                return True
        return False
