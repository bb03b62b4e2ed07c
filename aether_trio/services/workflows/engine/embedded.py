"""The gateway's own workflow engine: it connects as a client, within the process.

    wait until the identity is free ─▶ connect (transport/in_process.py) ─▶ take events (intake.py)
                  ▲                                                              │
                  └──────────── its session has ended, or was refused ◀──────────┘

It holds `wfe::shard0` like any other client, in the identity locks: one engine in a cluster, and
another node's when its node dies. With `auto` it gives way: its session ends as soon as an external
engine connects, to any node (session/duplicate_grace.py). An external engine that has left has
RETURN_S to come back, as after its own restart or that of its gateway. Then the embedded engine
takes over.

An attempt that is refused registers this node with the owner's, which notifies it when it releases
the lock. So only an attempt in POLL_S is made without a cause, in case a notification was lost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Final, Literal, TypeAlias

import structlog
import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.model.errors import Status, StatusError
from aether_trio.model.identity import Kind
from aether_trio.model.ownership import SessionRecord
from aether_trio.services.workflows.engine.relay import WorkflowRelay
from aether_trio.services.workflows.events.intake import EventIntake
from aether_trio.services.workflows.events.taken_events import ENGINE
from aether_trio.session.directory import SessionDirectory
from aether_trio.session.duplicate_grace import GAVE_WAY
from aether_trio.session.session import Session
from aether_trio.storage.base import StorageUnavailable
from aether_trio.transport.in_process import InProcessLink, StreamEnded
from aether_trio.transport.link import IN_PROCESS, Link, Peer
from aether_trio.version import __version__
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.workflows")

EngineMode: TypeAlias = Literal["auto", "embedded", "external", "off"]

RETURN_S: Final = 30.0
"""How long an external engine that has left is waited for. The SDK's clients come back in it."""
POLL_S: Final = 10.0
PAUSE_S: Final = 1.0
"""After the end of a session, before the next attempt: the client that has ended it goes first."""
_GIVEN_WAY: Final = "it has given way to an external engine"
SWITCHED_OFF: Final = "workflows are off at this gateway; its setting is workflow.engine"


class EngineSessions:
    """What this gateway does when sessions of workflow engines begin and end."""

    def __init__(self, mode: EngineMode, relay: WorkflowRelay, intake: EventIntake, free: AutoResetEvent) -> None:
        """`free` is set when the engine's identity may be free."""
        self._mode = mode
        self._relay = relay
        self._intake = intake
        self._free = free

    def authorize(self, session: Session) -> None:
        """Refuse an external engine where the gateway's own is the only one."""
        external = session.identity.kind is Kind.WORKFLOW_ENGINE and not session.link.peer.part_of_gateway
        if external and self._mode == "embedded":
            raise StatusError(
                Status.ALREADY_EXISTS, f"{ENGINE} is this gateway's own engine, as workflow.engine is embedded"
            )

    async def prepare(self, session: Session) -> None:
        """Let an engine go on where the one before has stopped. Raises StorageUnavailable."""
        if session.identity.kind is Kind.WORKFLOW_ENGINE:
            await self._intake.align()

    def ended(self, session: Session) -> None:
        """Note that a session has ended, of an engine or of a client that has asked one."""
        self._relay.ended(session)
        if session.identity.kind is Kind.WORKFLOW_ENGINE:
            self._free.set()


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """Which workflow engine is connected, and how far it is with the events.

    `node_id` is that of the engine's node, 0 for this one; `since_ms` and `peer` are those of its
    session. `position` and `lag` count messages of its topic, -1 if storage does not say. `waits`
    says why this node's own engine is not the one, "" if it is, or if there is none.
    """

    mode: EngineMode
    engine: Literal["embedded", "external", "none"]
    node_id: int = 0
    since_ms: int = 0
    peer: str = ""
    position: int = -1
    lag: int = -1
    waits: str = ""


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """Whether this node's own engine is connected, and counters since start."""

    connected: bool
    attempts: int
    gave_way: int


class EmbeddedEngine:
    """Connects the gateway's own engine whenever its identity is free; `run` must run."""

    def __init__(
        self,
        mode: EngineMode,
        intake: EventIntake,
        directory: SessionDirectory,
        free: AutoResetEvent,
        random: Random,
    ) -> None:
        """`free` is set when the identity may be free."""
        self._mode = mode
        self._intake = intake
        self._directory = directory
        self._free = free
        self._random = random
        self._refused_by = ""
        """The session that holds the identity, and whose node knows that this one waits."""
        self._left_at: float | None = None
        self._external = False
        """Whether the last engine that this node knows of was an external one."""
        self._waits = ""
        self.connected = False
        """Whether this node's engine holds the identity and is served."""
        self.attempts = self.gave_way = 0
        """Counters of attempts to connect, and of sessions that have given way, since start."""

    def statistics(self) -> EngineStatistics:
        """Return whether this node's own engine is connected, and counters since start."""
        return EngineStatistics(self.connected, self.attempts, self.gave_way)

    async def status(self) -> EngineStatus:
        """Return which engine is connected, on any node. Raises StorageUnavailable."""
        holder = await self._directory.holder(ENGINE)
        progress = await self._intake.progress()
        status = partial(EngineStatus, self._mode, position=progress.position, lag=progress.lag, waits=self._waits)
        if holder is None:
            return status("none")
        kind: Literal["embedded", "external"] = "embedded" if holder.peer == IN_PROCESS else "external"
        return status(kind, holder.node_id, holder.connected_ms, holder.peer)

    async def run(self, serve: Callable[[Link], Awaitable[None]]) -> None:
        """Hold the identity whenever no other engine does, until cancelled.

        `serve` is SessionServer.serve.
        """
        if self._mode not in {"auto", "embedded"}:
            return
        while True:
            try:
                holder = await self._directory.holder(ENGINE)
                wait_s = await self._wait_s(holder)
            except StorageUnavailable as error:
                self._waits = f"storage does not answer: {error}"
                await trio.sleep(PAUSE_S)
                continue
            if wait_s > 0:
                with trio.move_on_after(wait_s):
                    await self._free.wait()
                continue
            ended = await self._connect(serve)
            self._refused_by = ""
            if ended.status is Status.ALREADY_EXISTS:
                self._refused_by = "" if holder is None else holder.session_id
            elif ended.status in {Status.CANCELLED, Status.UNAVAILABLE}:
                await trio.sleep(PAUSE_S)
            else:
                self._waits = f"it was refused: {ended.message}"
                await trio.sleep(POLL_S)

    async def _wait_s(self, holder: SessionRecord | None) -> float:
        """Return how long to wait for the identity before the next look; 0: connect now."""
        if holder is not None:
            self._left_at = None
            self._external = holder.peer != IN_PROCESS
            self._waits = "another node's engine is connected" if holder.peer == IN_PROCESS else _GIVEN_WAY
            if self._mode == "embedded" and holder.peer != IN_PROCESS:
                self._waits = "an external engine was connected before"
            # Its node is to know that this one waits.
            known = holder.session_id == self._refused_by or not holder.node_id
            return POLL_S * self._random.uniform(0.8, 1.2) if known else 0.0
        if self._mode == "embedded":
            return 0.0
        if not self._external and not (await self._intake.progress()).by_other:
            return 0.0
        now = trio.current_time()
        if self._left_at is None:
            self._left_at = now
            logger.info("the external workflow engine has gone; the embedded one takes over soon", within_s=RETURN_S)
        self._waits = "the external engine may come back"
        return self._left_at + RETURN_S - now

    async def _connect(self, serve: Callable[[Link], Awaitable[None]]) -> StreamEnded:
        """Connect and take events until the session ends; return how."""
        self.attempts += 1
        peer = Peer(IN_PROCESS, IN_PROCESS, part_of_gateway=True, gives_way=self._mode == "auto")
        link = InProcessLink(peer, self._on_control)
        link.send(_hello())
        ended = StreamEnded(Status.CANCELLED, "")
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, link)
                try:
                    await self._intake.take(link)
                except StreamEnded as error:
                    ended = error
                finally:
                    link.cut()
        finally:
            was_connected, self.connected = self.connected, False
            ended = link.ended or ended
        if was_connected:
            self._external = ended.message == GAVE_WAY
            self.gave_way += self._external
            self._waits = _GIVEN_WAY if self._external else f"its session has ended: {ended.message}"
            if ended.status is not Status.UNAVAILABLE:  # the gateway stops
                logger.info("the session of the embedded workflow engine has ended", reason=ended.message)
        return ended

    def _on_control(self, message: pb.DownstreamMessage) -> None:
        case = message.WhichOneof("payload")
        if case == "connection_ack":
            self.connected = True
            self._waits = ""
            self._left_at = None
            self._external = False
            logger.info("the embedded workflow engine is connected", session=message.connection_ack.session_id)
        elif case == "error":
            self._intake.note_missed(message.error.message)


def _hello() -> pb.UpstreamMessage:
    identity = pb.WorkflowEngineIdentity(instance_id="embedded")
    init = pb.InitConnection(workflow_engine=identity, client_version=__version__, client_sdk="aether-trio")
    # It displaces no other part of a gateway (session/duplicate_grace.py).
    init.resume_session_id = IN_PROCESS
    return pb.UpstreamMessage(init=init)
