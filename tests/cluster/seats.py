"""A node with a directory, and a registry whose sessions are only records."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random
from types import SimpleNamespace
from typing import Any

import trio

from aether_trio.cluster.locks.directory import ClusterDirectory, DirectoryLimits, open_directory
from aether_trio.model.identity import Identity
from aether_trio.model.ownership import IdentityLock, LockRequest, SessionHistory
from aether_trio.session.registry import SessionRegistry
from aether_trio.session.session import Session
from tests.cluster.nodes import LONG_S, STEADY, Node

SOON = DirectoryLimits(poll_s=0.3, ask_again_s=0.1, wait_s=LONG_S)
"""Short waits; for tests that lose notifications."""
LATE = DirectoryLimits(poll_s=10 * LONG_S, ask_again_s=10 * LONG_S, wait_s=LONG_S)
"""Nothing is found by regular looks: what these tests see, a notification has caused."""

_numbers = count(1)


@dataclass(eq=False)
class Guest:
    """A session as registry and directory know it; `ends` are calls of `end`."""

    identity: Identity
    session_id: str
    takes_any: bool = True
    workspace: str = ""
    connected_ms: int = 5_000
    last_activity_ms: int = 7_000
    address: str = "192.0.2.1:4711"
    ends: list[tuple[Any, ...]] = field(default_factory=list)
    on_end: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.history = SessionHistory(self.session_id, self.connected_ms, 0)
        self.link = SimpleNamespace(peer=SimpleNamespace(address=self.address))

    record = Session.record
    disconnect = Session.disconnect

    def end(self, *what: Any) -> None:
        self.ends.append(what)
        self.on_end()


@dataclass
class Seat:
    """`directory` is what services are given."""

    node: Node
    registry: SessionRegistry
    directory: ClusterDirectory

    async def connect(self, text: str, *, takes_any: bool = True, resume: str = "") -> Guest:
        identity = Identity.parse(text)
        guest = Guest(identity, f"session-{next(_numbers)}", takes_any, identity.workspace)
        with trio.fail_after(LONG_S):
            place = {"workspace": identity.workspace, "implementation": identity.implementation, "peer": guest.address}
            request = LockRequest(text, guest.session_id, identity.kind.value, guest.connected_ms, **place)
            request = replace(request, resume_session_id=resume, takes_any=takes_any)
            claimed = await self.node.cluster.locks.claim(request)
        self.registry.claim(guest, resume)  # type: ignore[arg-type]
        guest.on_end = lambda: self.leave(guest, claimed.lock)
        return guest

    def leave(self, guest: Guest, hold: IdentityLock | None = None) -> None:
        self.registry.release(guest)  # type: ignore[arg-type]
        hold = hold or self.node.cluster.locks.mine(guest.identity.text)
        if hold is not None:
            self.node.cluster.locks.release(hold)

    def move(self, guest: Guest, workspace: str) -> None:
        guest.workspace = workspace
        self.directory.moved(guest.record)


@asynccontextmanager
async def seat(node: Node, limits: DirectoryLimits = SOON) -> AsyncIterator[Seat]:
    registry = SessionRegistry()
    async with open_directory(
        node.server, node.cluster, registry, cluster_limits=STEADY, limits=limits, random=Random(1)
    ) as directory:
        yield Seat(node, registry, directory)


@asynccontextmanager
async def seats(*nodes: Node, limits: DirectoryLimits = SOON) -> AsyncIterator[list[Seat]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(seat(node, limits)) for node in nodes]


def lose_notifications(node: Node) -> None:
    node.cluster.bus.receive = lambda _payload: None  # type: ignore[method-assign]
