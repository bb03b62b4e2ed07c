"""Which lanes this node listens to, as the others see it: rows of `lane_interest`, written before anybody listens.

`_known` are the lanes that have a row, as far as is known; a lane without listeners keeps its row for `linger_s`. The table is not
logged: after a crash of the server it is empty, and rows may be missing under a new number of this node. `look_after` notices by
their count, and writes them again.

Invariants: one statement at a time changes the rows of this node; a lane is in `_known` only after its row was written; a row is
deleted only after its lane has left `_known`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog
import trio

from aether_trio.cluster.lease import Lease
from aether_trio.cluster.queries import Queries
from aether_trio.routing.lanes import Lanes
from aether_trio.storage.base import StorageUnavailable

logger = structlog.get_logger("aether.cluster")

BATCH: Final = 1000

_ADD: Final = (
    "INSERT INTO lane_interest (topic, node_id) SELECT t, $1 FROM unnest($2::text[]) AS t ON CONFLICT DO NOTHING"
)
_REMOVE: Final = "DELETE FROM lane_interest WHERE node_id = $1 AND topic = ANY($2::text[])"
_REMOVE_OTHERS: Final = "DELETE FROM lane_interest WHERE node_id = $1 AND topic <> ALL($2::text[])"
_COUNT: Final = "SELECT count(*) FROM lane_interest WHERE node_id = $1"
# With some delay: a node that was declared dead may come back and is in no hurry to look at its rows.
_FORGET: Final = """
    DELETE FROM lane_interest WHERE node_id IN (SELECT node_id FROM nodes WHERE NOT alive AND ended_ms < aether_now_ms() - 60000)
"""


class Interest:
    """See the module docstring. `run` writes what `add` asks for; it must run."""

    def __init__(self, queries: Queries, lease: Lease, lanes: Lanes, linger_s: float) -> None:
        self._queries = queries
        self._lease = lease
        self._lanes = lanes
        self._linger_s = linger_s
        self._known: dict[str, float] = {}  # lane -> when it was last wanted, in trio's time
        self._wanted: dict[str, trio.Event] = {}
        self._work = trio.Event()
        self._changing = trio.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def add(self, topic: str) -> None:
        """Somebody listens to this lane: see to its row. In one step."""
        if topic in self._known:
            self._known[topic] = trio.current_time()
        elif topic not in self._wanted:
            self._wanted[topic] = trio.Event()
            self._work.set()

    async def expect(self, topics: Sequence[str]) -> None:
        """Return when these lanes have their rows. Raises StorageUnavailable."""
        for topic in topics:
            self.add(topic)
        for topic in topics:
            while (event := self._wanted.get(topic)) is not None:
                await event.wait()
            if topic not in self._known:
                raise StorageUnavailable("that this gateway listens to progress could not be told to the others")

    async def run(self) -> None:
        """Write rows until cancelled."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            while self._wanted:
                topics = list(self._wanted)[:BATCH]
                try:
                    async with self._changing:
                        await self._queries.fetch(_ADD, self._lease.node_id, topics)
                except StorageUnavailable as exc:
                    logger.info("an interest in progress could not be made known", lanes=len(topics), reason=str(exc))
                    self._settle(topics)
                    # Whoever listens all the same is served by `look_after`.
                    continue
                now = trio.current_time()
                self._known.update(dict.fromkeys(topics, now))
                self._settle(topics)

    def _settle(self, topics: Sequence[str]) -> None:
        for topic in topics:
            self._wanted.pop(topic).set()

    async def look_after(self) -> None:
        """Put right what is missing, and take back what nobody wants. Raises StorageUnavailable."""
        async with self._changing:
            node_id, now = self._lease.node_id, trio.current_time()
            for topic in self._lanes.heard():
                if topic in self._known:
                    self._known[topic] = now
                else:
                    self.add(topic)
            old = [topic for topic, wanted in self._known.items() if wanted < now - self._linger_s][:BATCH]
            for topic in old:
                del self._known[topic]
            if old:
                await self._queries.fetch(_REMOVE, node_id, old)
            rows = (await self._queries.fetch(_COUNT, node_id))[0][0]
            if rows != len(self._known):
                names = list(self._known)
                await self._queries.fetch(_REMOVE_OTHERS, node_id, names)
                logger.info("interests in progress are made known again", lanes=len(names))
                for start in range(0, len(names), BATCH):
                    await self._queries.fetch(_ADD, node_id, names[start : start + BATCH])
            await self._queries.fetch(_FORGET)
