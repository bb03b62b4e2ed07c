"""What a node knows of the topics of the log, and what it reads of them. What writes to it is in log.py.

A topic's state is in memory while somebody listens to it or something of it waits, and as long as there is room for cold ones. It is loaded
from the database before somebody listens (`warm`), several topics with one read. Where other nodes write as well (a shared database),
a look at the database, or a word of theirs, may find more than was offered here; the follower then brings the topic level.

Invariants: a state that somebody has pinned, listens to or waits for is never forgotten; `tail` never goes back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

import trio

from aether_trio.log import programs
from aether_trio.log.cursors import CursorStore
from aether_trio.log.follower import Follower
from aether_trio.log.relay import LogRelay
from aether_trio.log.topic_state import TopicState
from aether_trio.log.writers import Programs
from aether_trio.model.clock import Clock
from aether_trio.storage.base import Database, Row

MAX_COLD_TOPICS = 50_000
"""Topics remembered without a subscriber (about 300 bytes each); beyond it the cold ones are forgotten."""


RENEWED_AT_ONCE = 500
"""Topics whose positions are written again in one group."""


def _alone() -> tuple[int, int]:
    return 0, 0


async def _surely() -> None:
    """Nobody else is there."""


class LogReader:
    """See the module docstring."""

    def __init__(self, database: Database, clock: Clock, own_programs: Programs, cursors: CursorStore) -> None:
        self._database = database
        self._clock = clock
        self._programs = own_programs
        self._topics: dict[str, TopicState] = {}
        self._cold_limit = MAX_COLD_TOPICS
        self.cursors = cursors
        self.relay: LogRelay | None = None
        self.node: Callable[[], tuple[int, int]] = _alone
        """Node and epoch of this process's lease, under which it takes work (shared_groups.py). Node 0 is alone on its database."""
        self.sure: Callable[[], Awaitable[None]] = _surely
        """Wait until that lease was seen to be held a moment ago. No checkpoint at its end. Raises StorageUnavailable."""
        self.departures: list[Callable[[], None]] = []
        """Called when another node's lease has ended, and what it had is free. In one step."""
        self.grown: dict[str, TopicState] = {}
        """Topics that have grown so far that retention is to look at them (TopicState.sweep_bytes)."""
        self._retiring: trio.Event | None = None
        self._follower = Follower(self.learn, database, self.grown)

    @property
    def database(self) -> Database:
        """Where the log is."""
        return self._database

    @property
    def clock(self) -> Clock:
        """By which messages are dated."""
        return self._clock

    def topic(self, name: str) -> TopicState:
        """The state of a topic, made cold (unknown to the database yet) when it is not in memory."""
        state = self._topics.get(name)
        if state is None:
            if len(self._topics) >= self._cold_limit:
                self._forget_cold_topics()
            state = self._topics[name] = TopicState(name)
        return state

    def current(self, state: TopicState) -> bool:
        """Whether `state` is still the one in use for its topic; a cached one may have been forgotten meanwhile."""
        return self._topics.get(state.name) is state

    def _forget_cold_topics(self) -> None:
        self._topics = {name: state for name, state in self._topics.items() if not state.forgettable}
        self._cold_limit = len(self._topics) + MAX_COLD_TOPICS

    async def unread(self, identity: str) -> tuple[int, int]:
        """Give a participant's position in its own topic, and how many messages are behind that.

        Raises StorageUnavailable.
        """
        [(state, cursor)] = await self.warm([(identity, identity)])
        latest = self.cursors.unwritten(state, identity)
        self.unpin([state])
        position = max(cursor or 0, latest or 0)
        return position, max(state.end - position, 0)

    async def warm(self, wanted: Sequence[tuple[str, str | None]]) -> list[tuple[TopicState, int | None]]:
        """Load several topics from the database, with the cursor of a consumer each: (state, cursor or None).

        Cursors that wait to be written count as written. Each state is pinned (`waiting`) until the caller hands it to
        `unpin`, or listens. In a cluster this node counts as a listener of the topics from here on. Raises StorageUnavailable.
        """
        if self.relay is not None:
            await self.relay.expect([name for name, _ in wanted])
        while self._retiring is not None:
            await self._retiring.wait()
        states: list[TopicState] = []
        found: list[tuple[TopicState, int | None]] = []
        known: list[int | None] = []
        try:
            # Pinned before the read: a state that was forgotten and made anew meanwhile would learn from an old snapshot.
            for name, _ in wanted:
                state = self.topic(name)
                state.waiting += 1
                states.append(state)
                known.append(state.topic_id)
            with self.cursors.remembering():
                facts = await self._database.read_small(lambda: self._programs.many_topic_facts(wanted))
                for state, topic_id, (_, consumer), fact in zip(states, known, wanted, facts, strict=True):
                    self._learn(state, fact, topic_id)
                    unwritten = self.cursors.unwritten(state, consumer) if consumer is not None else None
                    found.append((state, fact.cursor if unwritten is None else max(unwritten, fact.cursor or 0)))
        except BaseException:
            self.unpin(states)
            raise
        return found

    @staticmethod
    def unpin(states: Iterable[TopicState]) -> None:
        """Undo the pins of `warm`."""
        for state in states:
            state.waiting -= 1

    async def learn(self, states: Sequence[TopicState]) -> None:
        """Look where these topics end; what is new goes to whoever listens. Raises StorageUnavailable."""
        wanted = [(state.name, None) for state in states]
        known = [state.topic_id for state in states]
        facts = await self._database.read_small(lambda: self._programs.many_topic_facts(wanted))
        for state, topic_id, fact in zip(states, known, facts, strict=True):
            self._learn(state, fact, topic_id)

    def _learn(self, state: TopicState, facts: programs.TopicFacts, known: int | None) -> None:
        """`known` is the topic's id as it was here before the facts were read."""
        if facts.topic_id is None:
            if self._database.shared and known is not None and state.topic_id == known:
                state.deleted()  # by another node
            return
        state.base = max(state.base, facts.base)
        if self._database.shared:
            state.topic_id = facts.topic_id
            state.tail_bytes = max(state.tail_bytes, facts.total_bytes)
            self._more(state, facts.tail)
        elif state.topic_id is None:
            # Only a cold state learns: once it has an id, memory is ahead of any snapshot.
            state.topic_id = facts.topic_id
            state.tail = state.assigned = facts.tail
            state.tail_bytes = state.assigned_bytes = facts.total_bytes

    def _more(self, state: TopicState, head: int) -> None:
        """A shared topic goes up to `head` at least."""
        state.head = max(state.head, head)
        if state.tail < state.head:
            if state.is_read:
                self._follower.follow(state)
            else:
                state.tail = state.head
                state.look()

    # -- for retention --------------------------------------------------------------------------------------------

    async def renew_positions(self) -> None:
        """Write the positions again that are in use and count as unused when they do not move. Returns when that is done."""
        heard = self.heard()
        for start in range(0, len(heard), RENEWED_AT_ONCE):
            for state in heard[start : start + RENEWED_AT_ONCE]:
                for subscriber in list(state.subscribers):
                    subscriber.renew()
            await self.cursors.save()

    # -- others write, too ----------------------------------------------------------------------------------------

    def heard(self) -> list[TopicState]:
        """The topics that somebody here listens to."""
        return [state for state in self._topics.values() if state.subscribers]

    def woken(self, names: Iterable[str]) -> None:
        """Another node has something new for these topics. Never blocks."""
        for name in names:
            state = self._topics.get(name)
            if state is None:
                continue
            if state.subscribers and not state.is_read and state.topic_id is not None:
                state.look()
            elif state.subscribers or state.waiting:
                self._follower.follow(state)

    def somebody_left(self) -> None:
        """Another node's lease has ended. Never blocks."""
        for tell in self.departures:
            tell()

    # -- reading --------------------------------------------------------------------------------------------------
    async def read(self, state: TopicState, after: int, *, rows: int, max_bytes: int) -> list[Row]:
        """Committed messages (offset, ts_ms, frame) behind `after`, oldest first. Raises StorageUnavailable."""
        topic_id, tail = state.topic_id, state.tail
        if topic_id is None or after >= tail:
            return []
        return await self._database.read(lambda: self._programs.read_page(topic_id, after, tail, rows, max_bytes))

    async def read_topics(
        self, wanted: Sequence[tuple[str, int]], *, rows: int, max_bytes: int
    ) -> list[tuple[list[Row], bool]]:
        """Of each topic the committed messages (offset, ts_ms, frame) behind an offset, and whether there are more, as the database has them:
        nobody needs to listen. At most `rows` of each, and no more than `max_bytes` in all beside one message. Raises StorageUnavailable.
        """
        if not wanted:
            return []
        return await self._database.read(lambda: programs.read_topics(self._programs, wanted, rows, max_bytes))

    async def last_topic(self) -> int:
        """The id of the topic that was made last, 0 for none. Raises StorageUnavailable."""
        found = await self._database.fetch("SELECT COALESCE(MAX(id), 0) FROM topics")
        return int(found[0][0])

    async def input_topics(self, after: int, last: int, count: int) -> tuple[list[str], int]:
        """A page of the names of all topics for inputs of tasks behind one id and up to another, and what the next page begins behind; 0:
        there is none. Looks at every topic that there is. Raises StorageUnavailable.
        """
        found = await self._database.fetch(
            "SELECT id, name FROM topics WHERE id > $1 AND id <= $2 AND name LIKE 'tk::%::input' ORDER BY id LIMIT $3",
            after,
            last,
            count,
        )
        return [name for _, name in found], found[-1][0] if len(found) == count else 0

    async def read_at(self, state: TopicState, offsets: Sequence[int]) -> list[Row]:
        """The messages (offset, frame) at these offsets that retention has left. Raises StorageUnavailable."""
        topic_id = state.topic_id
        if topic_id is None:
            return []
        return await self._database.read(lambda: self._programs.read_some(topic_id, offsets))
