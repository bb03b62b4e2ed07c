"""Hints between nodes, over LISTEN and NOTIFY: "look now". Nothing is right or wrong by whether one arrives.

    send(node, topic, body) ──▶ pending ──▶ one statement for all that waits, one pg_notify for each node (and "all")
                                                       ⋮
    handlers[topic](sender, body) ◀── one LISTEN connection per node

A NOTIFY takes a lock of the whole database server until its transaction is over and wakes every backend that listens, so there is one
connection that listens, hints that wait for each other go out together, and they have a connection of their own that commits without
waiting for the disk: send after the commit that a hint speaks of, never inside it. Who has a connection like that, and finds out from the
database whom to tell, may tell them in that statement (`node_channel`, `payload_sql`).

What is lost (a listener that reconnects, a server that restarts, a queue that is full) is made up for: after every reconnect each handler
is told ALL, "look at everything", and whoever waits for a hint looks by itself every few seconds.

Invariants: `send` and the handlers are one step, without a checkpoint; a hint is never sent before the call to `send`; a node does not
hear itself; memory is bounded by MAX_PENDING hints, and what is beyond it becomes one ALL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Final

import msgspec
import structlog
import trio

from aether_trio.cluster.limits import ClusterLimits
from aether_trio.cluster.node.aio import at_first, call, connected, open_connection
from aether_trio.cluster.node.lease import Lease
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.postgres.database import PostgresServer
from aether_trio.storage.postgres.errors import describe
from aether_trio.storage.postgres.pool import Pool
from aether_trio.storage.postgres.statements import within

logger = structlog.get_logger("aether.cluster")

ALL: Final = "*"
"""A body that stands for every body: hints may have been lost."""
MAX_PAYLOAD_BYTES: Final = 7500  # PostgreSQL's limit is 7999
MAX_BODY_BYTES: Final = 2000
MAX_PENDING: Final = 10_000
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
NOTIFY_S: Final = 5.0
CLOSE_S: Final = 1.0

Handler = Callable[[int, str], None]
"""(sender's node id, body). The sender is 0 when the bus itself says ALL."""

_NOTIFY: Final = "SELECT pg_notify(c, p) FROM unnest($1::text[], $2::text[]) AS t (c, p)"


@dataclass(frozen=True, slots=True)
class BusStatistics:
    """`hints` were sent in `notifies` payloads by `statements` statements; `received` counts hints. `dropped` could not be sent."""

    hints: int
    notifies: int
    statements: int
    received: int
    dropped: int
    reconnects: int
    listening: bool


class Bus:
    """See the module docstring."""

    def __init__(self, server: PostgresServer, lease: Lease, limits: ClusterLimits, random: Random) -> None:
        self._server = server
        self._lease = lease
        self._limits = limits
        self._random = random
        self._handlers: dict[str, list[Handler]] = {}
        self._pending: dict[str, dict[tuple[str, str], None]] = {}
        self._waiting = 0
        self._sending = False
        self._sent = trio.Event()
        self._alarm = trio.Event()
        self._closed = False
        self._hints = self._notifies = self._statements = self._received = self._dropped = self._reconnects = 0
        self.listening = False
        factory = partial(open_connection, server, "notify", "SET synchronous_commit = off")
        self._pool = Pool(
            factory,
            server.spawn,
            server.loop,
            most=1,
            keep=1,
            idle_s=server.limits.idle_s,
            patience_s=limits.lease_grace_s,
            watch=server.watch,
        )

    def statistics(self) -> BusStatistics:
        """What has happened so far."""
        return BusStatistics(
            self._hints,
            self._notifies,
            self._statements,
            self._received,
            self._dropped,
            self._reconnects,
            self.listening,
        )

    def handle(self, topic: str, handler: Handler) -> None:
        """Have `handler` told of every hint of this topic, and of ALL. It may only schedule work."""
        self._handlers.setdefault(topic, []).append(handler)

    def send(self, node_id: int, topic: str, body: str) -> None:
        """A hint for one node. A body that is too long is sent as ALL."""
        self._put(self._channel(node_id), topic, body)

    def broadcast(self, topic: str, body: str) -> None:
        """A hint for every other node."""
        self._put(f"{self._server.schema}_all", topic, body)

    def receive(self, payload: str) -> None:
        """What came over a channel: [sender, [[topic, body], ...]] in JSON."""
        try:
            sender, hints = msgspec.json.decode(payload, type=tuple[int, list[tuple[str, str]]])
        except msgspec.DecodeError:
            logger.warning("somebody else notifies on a channel of the cluster")
            return
        if sender == self._lease.node_id:
            return
        for topic, body in hints:
            self._received += 1
            for handler in self._handlers.get(topic, ()):
                handler(sender, body)

    # -- listening ------------------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled. Started when the first connection listens. Raises StorageUnavailable when none can."""
        pause_s = FIRST_PAUSE_S
        started = False
        while True:
            try:
                node_id = self._lease.node_id
                listen = partial(self._listen, node_id)
                connection = await (listen() if started else at_first(listen, self._limits.lease_grace_s))
            except Exception as exc:
                if not started:
                    raise
                logger.info("the bus cannot listen", reason=describe(exc))
                await trio.sleep(pause_s * self._random.uniform(0.5, 1.0))
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
                continue
            pause_s = FIRST_PAUSE_S
            try:
                self.listening = True
                if started:
                    self._reconnects += 1
                    self._tell_all()
                else:
                    started = True
                    task_status.started()
                await self._watch(connection, node_id)
            finally:
                self.listening = False
                connection.terminate()

    async def _listen(self, node_id: int) -> Any:
        connection = await connected(self._server, "listen")
        try:
            connection.add_termination_listener(lambda _: self._alarm.set())
            self._alarm = trio.Event()
            for channel in (self._channel(node_id), f"{self._server.schema}_all"):
                await call(
                    self._server, within(connection, NOTIFY_S, partial(connection.add_listener, channel, self._hear))
                )
        except BaseException:
            connection.terminate()
            raise
        return connection

    def _hear(self, _connection: Any, _pid: int, _channel: str, payload: str) -> None:
        self.receive(payload)

    async def _watch(self, connection: Any, node_id: int) -> None:
        """Until the connection is lost, or does not answer, or this node has another number."""
        while self._lease.node_id == node_id:
            with trio.move_on_after(self._limits.probe_s):
                await self._alarm.wait()
            if connection.is_closed():
                return
            self._alarm = trio.Event()
            answered = False
            with trio.move_on_after(self._limits.probe_timeout_s):
                try:
                    await call(self._server, connection.execute("SELECT 1"))
                except Exception as exc:
                    logger.info("the bus lost its listener", reason=describe(exc))
                    return
                answered = True
            if not answered:
                logger.info("the bus lost its listener", reason="no answer")
                return

    def _tell_all(self) -> None:
        for handlers in self._handlers.values():
            for handler in handlers:
                handler(0, ALL)

    # -- sending --------------------------------------------------------------------------------------------------

    @property
    def node_channel(self) -> str:
        """The name of a node's channel, but for the node's number at its end."""
        return f"{self._server.schema}_n"

    def _channel(self, node_id: int) -> str:
        return f"{self.node_channel}{node_id}"

    def _put(self, channel: str, topic: str, body: str) -> None:
        if self._closed:
            return
        self._hints += 1
        hints = self._pending.setdefault(channel, {})
        if len(msgspec.json.encode(body)) > MAX_BODY_BYTES or self._waiting >= MAX_PENDING:
            body = ALL
        if (topic, ALL) in hints or (topic, body) in hints:
            return
        if body == ALL:
            same = [hint for hint in hints if hint[0] == topic]
            for hint in same:
                del hints[hint]
            self._waiting -= len(same)
        hints[topic, body] = None
        self._waiting += 1
        if not self._sending:
            self._sending = True
            self._sent = trio.Event()
            self._server.spawn(self._send())

    def _take(self) -> tuple[list[str], list[str]]:
        """Everything that waits, as (channels, payloads)."""
        channels: list[str] = []
        payloads: list[str] = []
        for channel, hints in self._pending.items():
            for payload in _payloads(self._lease.node_id, list(hints)):
                channels.append(channel)
                payloads.append(payload)
        self._pending = {}
        self._waiting = 0
        return channels, payloads

    async def _send(self) -> None:
        """On the asyncio side: until nothing waits. What cannot be sent is dropped, as hints may be."""
        try:
            while self._pending and not self._closed:
                try:
                    connection = await self._pool.acquire()
                except StorageUnavailable:
                    self._dropped += self._waiting
                    self._pending, self._waiting = {}, 0
                    continue
                channels, payloads = self._take()
                try:
                    await within(connection, NOTIFY_S, partial(connection.execute, _NOTIFY, channels, payloads))
                except Exception as exc:
                    logger.info("hints were lost", reason=describe(exc))
                    self._dropped += len(payloads)
                    self._pool.release(connection, healthy=False)
                else:
                    self._statements += 1
                    self._notifies += len(payloads)
                    self._pool.release(connection)
        finally:
            self._sending = False
            self._sent.set()

    async def close(self) -> None:
        """Send what waits, if that can be done soon, and nothing more."""
        if self._sending:
            with trio.move_on_after(CLOSE_S):
                await self._sent.wait()
        self._closed = True
        await call(self._server, self._pool.close())


def payload_sql(sender: str, topic: str, body: str) -> str:
    """SQL for a payload with one hint, of SQL expressions: a number, two texts. MAX_PAYLOAD_BYTES is up to the caller."""
    return f"'[' || {sender} || ',[[' || to_json({topic})::text || ',' || to_json({body})::text || ']]]'"


def _payloads(sender: int, hints: list[tuple[str, str]]) -> list[str]:
    """As few payloads as the hints fit in."""
    payloads: list[str] = []
    parts: list[str] = []
    size = 0
    for hint in hints:
        part = msgspec.json.encode(hint).decode()
        more = len(part.encode()) + 1
        if parts and size + more > MAX_PAYLOAD_BYTES:
            payloads.append(f"[{sender},[{','.join(parts)}]]")
            parts, size = [], 0
        parts.append(part)
        size += more
    if parts:
        payloads.append(f"[{sender},[{','.join(parts)}]]")
    return payloads
