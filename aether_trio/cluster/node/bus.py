"""Notifications ("look now") between cluster nodes, over LISTEN and NOTIFY.

    send(node, topic, body) ─▶ pending ─▶ one statement, with one pg_notify per node (and "all")
                                                       ⋮
    handlers[topic](sender, body) ◀── one LISTEN connection per node

A NOTIFY takes a lock of the whole database server until its transaction is over, and wakes every
backend that listens. So one connection of a node listens, and notifications that wait go out
together, over a connection that commits without waiting for the disk. Send a notification after the
commit that it is about. A part that finds the nodes to notify in the database may notify them in
the same statement (`node_channel`, `payload_sql`). Small groups of messages are pushed in their
commit, while commits are quick (log/group_writers.py), over a channel for each node whose name is a
secret: any role of the database may NOTIFY and LISTEN on a channel that it knows.

Notifications are lost when a listener reconnects, the server restarts or a queue is full. So after
each reconnect all handlers are called with ALL, "look at everything", and a part that waits for a
notification also looks every few seconds.

Invariants: `send` and the handlers are one step, without a checkpoint; a notification is never sent
before the call to `send`; a node does not receive its own notifications; at most MAX_PENDING
notifications wait, and those beyond it become one ALL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any, Final

import msgspec
import structlog
import trio

from aether_trio.cluster.node.lease import Lease
from aether_trio.cluster.node.postgres_calls import (
    open_connection,
    open_connection_from_trio,
    retry_at_start,
    run_in_asyncio,
)
from aether_trio.cluster.timeouts import ClusterLimits
from aether_trio.concurrency.events import AutoResetEvent, RepeatedEvent
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.postgres.database import PostgresServer
from aether_trio.storage.postgres.errors import describe
from aether_trio.storage.postgres.pool import Pool
from aether_trio.storage.postgres.statements import within

logger = structlog.get_logger("aether.cluster")

ALL: Final = "*"
"""The notification body that stands for every body: notifications may have been lost."""
MAX_PAYLOAD_BYTES: Final = 7500  # PostgreSQL's limit is 7999
MAX_BODY_BYTES: Final = 2000
MAX_PENDING: Final = 10_000
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
NOTIFY_S: Final = 5.0
CLOSE_S: Final = 1.0

PUSH_CHANNEL: Final = "aether_push_"
"""The channel for pushed messages (log/pushed_messages.py), followed by the node's token."""

Handler = Callable[[int, str], None]
"""(sender's node id, body). The sender is 0 when the bus itself says ALL."""

_NOTIFY: Final = "SELECT pg_notify(c, p) FROM unnest($1::text[], $2::text[]) AS t (c, p)"


@dataclass(slots=True)
class BusStatistics:
    """Counters of notifications between nodes since start; whether this node listens.

    `sent` notifications went out in `notifies` payloads by `statements` statements; `dropped` could
    not be sent.
    """

    sent: int = 0
    notifies: int = 0
    statements: int = 0
    received: int = 0
    dropped: int = 0
    reconnects: int = 0
    listening: bool = False


class Bus:
    """Sends notifications to other cluster nodes; calls handlers for received ones."""

    def __init__(self, server: PostgresServer, lease: Lease, limits: ClusterLimits, random: Random) -> None:
        self._server = server
        self._lease = lease
        self._limits = limits
        self._random = random
        self._handlers: dict[str, list[Handler]] = {}
        self._on_push: Callable[[str], None] = lambda payload: None
        self._pending: dict[str, dict[tuple[str, str], None]] = {}
        self._waiting = 0
        self._sending = False
        self._idle = RepeatedEvent()
        self._alarm = AutoResetEvent()
        self._closed = False
        self._counts = BusStatistics()
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
        """Return the counters of sent and received notifications since start."""
        return replace(self._counts, listening=self.listening)

    def handle(self, topic: str, handler: Handler) -> None:
        """Call `handler`, which only schedules work, for each notification of a topic."""
        self._handlers.setdefault(topic, []).append(handler)

    def handle_pushes(self, handler: Callable[[str], None]) -> None:
        """Call `handler`, which only schedules work, for each payload of pushed messages.

        Only programs that may read the table `nodes` can send one. After a reconnect handlers of
        `handle` are called; lost pushes are theirs to make up for.
        """
        self._on_push = handler

    def send(self, node_id: int, topic: str, body: str) -> None:
        """Send a notification to one node; a body that is too long becomes ALL."""
        self._put(self._channel(node_id), topic, body)

    def broadcast(self, topic: str, body: str) -> None:
        """Send a notification to every other node."""
        self._put(f"{self._server.schema}_all", topic, body)

    def receive(self, payload: str) -> None:
        """Call the handlers of a NOTIFY payload: [sender, [[topic, body], ...]] in JSON."""
        try:
            sender, notifications = msgspec.json.decode(payload, type=tuple[int, list[tuple[str, str]]])
        except msgspec.DecodeError:
            logger.warning("a program other than a node notifies on a channel of the cluster; the payload is ignored")
            return
        if sender == self._lease.node_id:
            return
        for topic, body in notifications:
            self._counts.received += 1
            for handler in self._handlers.get(topic, ()):
                handler(sender, body)

    def receive_push(self, payload: str) -> None:
        """Call the handler of pushed messages."""
        self._counts.received += 1
        self._on_push(payload)

    # -- listening ---------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen to notifications until cancelled; started when a connection listens."""
        pause_s = FIRST_PAUSE_S
        started = False
        while True:
            try:
                node_id = self._lease.node_id
                listen = partial(self._listen, node_id)
                connection = await (listen() if started else retry_at_start(listen, self._limits.lease_grace_s))
            except Exception as exc:
                if not started:
                    raise
                logger.info(
                    "this node cannot listen to notifications of other nodes; it tries again", reason=describe(exc)
                )
                await trio.sleep(pause_s * self._random.uniform(0.5, 1.0))
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
                continue
            pause_s = FIRST_PAUSE_S
            try:
                self.listening = True
                if started:
                    self._counts.reconnects += 1
                    self._notify_all()
                else:
                    started = True
                    task_status.started()
                await self._watch(connection, node_id)
            finally:
                self.listening = False
                connection.terminate()

    async def _listen(self, node_id: int) -> Any:
        connection = await open_connection_from_trio(self._server, "listen")
        try:
            connection.add_termination_listener(lambda _: self._alarm.set())
            for channel, heard in (
                (self._channel(node_id), self._on_notify),
                (f"{self._server.schema}_all", self._on_notify),
                (f"{PUSH_CHANNEL}{self._lease.token}", self._on_push_notify),
            ):
                await run_in_asyncio(
                    self._server, within(connection, NOTIFY_S, partial(connection.add_listener, channel, heard))
                )
        except BaseException:
            connection.terminate()
            raise
        return connection

    def _on_notify(self, _connection: Any, _pid: int, _channel: str, payload: str) -> None:
        self.receive(payload)

    def _on_push_notify(self, _connection: Any, _pid: int, _channel: str, payload: str) -> None:
        self.receive_push(payload)

    async def _watch(self, connection: Any, node_id: int) -> None:
        """Return when the listening connection is lost, or the node has another number."""
        while self._lease.node_id == node_id:
            with trio.move_on_after(self._limits.probe_s):
                await self._alarm.wait()
            if connection.is_closed():
                return
            failure: str | None = "no answer"
            with trio.move_on_after(self._limits.probe_timeout_s):
                try:
                    await run_in_asyncio(self._server, connection.execute("SELECT 1"))
                    failure = None
                except Exception as exc:
                    failure = describe(exc)
            if failure is not None:
                logger.info(
                    "the connection that listens to notifications was lost; this node opens another", reason=failure
                )
                return

    def _notify_all(self) -> None:
        for handlers in self._handlers.values():
            for handler in handlers:
                handler(0, ALL)

    # -- sending -----------------------------------------------------------------------------------

    @property
    def node_channel(self) -> str:
        """The PostgreSQL channel of a node, without the node number at its end."""
        return f"{self._server.schema}_n"

    def _channel(self, node_id: int) -> str:
        return f"{self.node_channel}{node_id}"

    def _put(self, channel: str, topic: str, body: str) -> None:
        if self._closed:
            return
        self._counts.sent += 1
        waiting = self._pending.setdefault(channel, {})
        if len(msgspec.json.encode(body)) > MAX_BODY_BYTES or self._waiting >= MAX_PENDING:
            body = ALL
        if (topic, ALL) in waiting or (topic, body) in waiting:
            return
        if body == ALL:
            same = [one for one in waiting if one[0] == topic]
            for one in same:
                del waiting[one]
            self._waiting -= len(same)
        waiting[topic, body] = None
        self._waiting += 1
        if not self._sending:
            self._sending = True
            self._server.spawn(self._send())

    def _take(self) -> tuple[list[str], list[str]]:
        """Take all waiting notifications as (channels, payloads) for pg_notify."""
        channels: list[str] = []
        payloads: list[str] = []
        for channel, waiting in self._pending.items():
            for payload in _payloads(self._lease.node_id, list(waiting)):
                channels.append(channel)
                payloads.append(payload)
        self._pending = {}
        self._waiting = 0
        return channels, payloads

    async def _send(self) -> None:
        try:
            while self._pending and not self._closed:
                try:
                    connection = await self._pool.acquire()
                except StorageUnavailable:
                    self._counts.dropped += self._waiting
                    self._pending, self._waiting = {}, 0
                    continue
                channels, payloads = self._take()
                try:
                    await within(connection, NOTIFY_S, partial(connection.execute, _NOTIFY, channels, payloads))
                except Exception as exc:
                    logger.info(
                        "notifications to other nodes could not be sent; those nodes look every few seconds",
                        reason=describe(exc),
                    )
                    self._counts.dropped += len(payloads)
                    self._pool.release(connection, healthy=False)
                else:
                    self._counts.statements += 1
                    self._counts.notifies += len(payloads)
                    self._pool.release(connection)
        finally:
            self._sending = False
            self._idle.set()

    async def close(self) -> None:
        """Send the waiting notifications within CLOSE_S, then nothing more."""
        if self._sending:
            with trio.move_on_after(CLOSE_S):
                await self._idle.wait()
        self._closed = True
        await run_in_asyncio(self._server, self._pool.close())


def payload_sql(sender: str, topic: str, body: str) -> str:
    """Return SQL for a NOTIFY payload with one notification, from SQL expressions.

    `sender` is a number, `topic` and `body` are texts. The caller keeps the payload below
    MAX_PAYLOAD_BYTES.
    """
    return f"'[' || {sender} || ',[[' || to_json({topic})::text || ',' || to_json({body})::text || ']]]'"


def _payloads(sender: int, notifications: list[tuple[str, str]]) -> list[str]:
    """Pack notifications into as few NOTIFY payloads as they fit into."""
    payloads: list[str] = []
    parts: list[str] = []
    size = 0
    for notification in notifications:
        part = msgspec.json.encode(notification).decode()
        more = len(part.encode()) + 1
        if parts and size + more > MAX_PAYLOAD_BYTES:
            payloads.append(f"[{sender},[{','.join(parts)}]]")
            parts, size = [], 0
        parts.append(part)
        size += more
    if parts:
        payloads.append(f"[{sender},[{','.join(parts)}]]")
    return payloads
