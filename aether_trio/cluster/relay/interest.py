"""Tells other cluster nodes which topics this node has listeners for, in a table.

The rows are written before the listener is acknowledged. There is one table for ephemeral topics
(`ephemeral_interest`) and one for topics of the log (`topic_interest`).

`_known` are the topics that have a row, as far as this node knows; a topic without listeners keeps
its row for `linger_s`. The tables are not logged: after a crash of the server they are empty, and
rows may be missing under a new number of this node. `look_after` notices that by their count.

A topic counts as told only when `behind_add`, a statement about the topics with new rows, has run.

Invariants: one statement at a time changes the rows of this node; a topic is in `_known` only after
its row was written; a row is deleted only after its topic has left `_known`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

import structlog
import trio

from aether_trio.cluster.node.lease import Lease
from aether_trio.cluster.node.query_pool import QueryPool
from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.bisection import in_halves

logger = structlog.get_logger("aether.cluster")

BATCH: Final = 1000

_ADD: Final = "INSERT INTO {table} (topic, node_id) SELECT t, $1 FROM unnest($2::text[]) AS t ON CONFLICT DO NOTHING"
_REMOVE: Final = "DELETE FROM {table} WHERE node_id = $1 AND topic = ANY($2::text[])"
_REMOVE_OTHERS: Final = "DELETE FROM {table} WHERE node_id = $1 AND topic <> ALL($2::text[])"
_COUNT: Final = "SELECT count(*) FROM {table} WHERE node_id = $1"
# With some delay: a node that was declared dead may come back, and looks at its rows later.
_FORGET: Final = """
    DELETE FROM {table} WHERE node_id IN (SELECT node_id FROM nodes WHERE NOT alive AND ended_ms < aether_now_ms() - 60000)
"""


def _refused(topic: str, error: Exception) -> None:
    logger.error("PostgreSQL refuses to write that this node listens to a topic", topic=topic, reason=str(error))


class Interest:
    """Topics with listeners on this node, in a table that other nodes read."""

    def __init__(
        self,
        queries: QueryPool,
        lease: Lease,
        table: str,
        heard: Callable[[], Iterable[str]],
        linger_s: float,
        behind_add: str = "",
    ) -> None:
        """`behind_add` is run with the topics as $1 when their rows are committed."""
        self._queries = queries
        self._lease = lease
        self._heard = heard
        self._add, self._remove, self._remove_others, self._count, self._forget = (
            statement.format(table=table) for statement in (_ADD, _REMOVE, _REMOVE_OTHERS, _COUNT, _FORGET)
        )
        self._linger_s = linger_s
        self._behind_add = behind_add
        self._known: dict[str, float] = {}  # topic -> when it was last wanted, in trio's time
        self._wanted: dict[str, trio.Event] = {}
        self._work = AutoResetEvent()
        self._changing = trio.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def add(self, topic: str) -> None:
        """Have the row of a topic with a listener on this node written. In one step."""
        if topic in self._known:
            self._known[topic] = trio.current_time()
        elif topic not in self._wanted:
            self._wanted[topic] = trio.Event()
            self._work.set()

    async def expect(self, topics: Sequence[str]) -> None:
        """Wait until these topics have rows in the table. Raises StorageUnavailable."""
        for topic in topics:
            self.add(topic)
        for topic in topics:
            while (event := self._wanted.get(topic)) is not None:
                await event.wait()
            if topic not in self._known:
                raise StorageUnavailable("this gateway could not tell the other nodes that it listens to a topic")

    async def run(self) -> None:
        """Write the rows of topics with listeners until cancelled."""
        while True:
            if not self._wanted:
                await self._work.wait()
            while self._wanted:
                topics = list(self._wanted)[:BATCH]
                try:
                    async with self._changing:
                        node_id, epoch = self._lease.node_id, self._lease.epoch
                        known = await in_halves(topics, partial(self._add_some, node_id), _refused)
                        if (node_id, epoch) != (self._lease.node_id, self._lease.epoch):
                            continue  # under a lease that has ended: write again
                except StorageUnavailable as exc:
                    logger.info(
                        "this node could not write which topics it listens to; it tries again in a few seconds",
                        topics=len(topics),
                        reason=str(exc),
                    )
                    self._settle(topics)
                    # `look_after` writes them for listeners that stay.
                    continue
                now = trio.current_time()
                self._known.update(dict.fromkeys(known, now))
                self._settle(topics)

    async def _add_some(self, node_id: int, topics: Sequence[str]) -> Sequence[str]:
        await self._queries.fetch(self._add, node_id, list(topics))
        if self._behind_add:
            await self._queries.fetch(self._behind_add, list(topics))
        return topics

    def renew(self) -> None:
        """Write the rows of this node's topics again: other nodes may have deleted them."""
        self._known.clear()
        for topic in self._heard():
            self.add(topic)

    def _settle(self, topics: Sequence[str]) -> None:
        for topic in topics:
            self._wanted.pop(topic).set()

    async def look_after(self) -> None:
        """Write missing topic rows, delete those unheard. Raises StorageUnavailable."""
        async with self._changing:
            node_id, now = self._lease.node_id, trio.current_time()
            for topic in self._heard():
                if topic in self._known:
                    self._known[topic] = now
                else:
                    self.add(topic)
            old = [topic for topic, wanted in self._known.items() if wanted < now - self._linger_s][:BATCH]
            for topic in old:
                del self._known[topic]
            if old:
                await self._queries.fetch(self._remove, node_id, old)
            rows = (await self._queries.fetch(self._count, node_id))[0][0]
            if rows != len(self._known):
                names = list(self._known)
                await self._queries.fetch(self._remove_others, node_id, names)
                logger.info("this node writes anew which topics it listens to, as rows were missing", topics=len(names))
                for start in range(0, len(names), BATCH):
                    await self._add_some(node_id, names[start : start + BATCH])
            await self._queries.fetch(self._forget)
